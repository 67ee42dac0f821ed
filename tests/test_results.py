"""result.json: nothing lost, nothing half-written, nothing misread. Metrics: one row for each."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bdbnet.results import (
    METRICS,
    Metric,
    Protocol,
    Result,
    ResultError,
    add_metric,
    headline_metrics,
    is_metric,
    metric_names,
    metric_of,
    read_result,
    write_atomically,
)


@pytest.fixture
def result() -> Result:
    return Result(
        kind="train",
        metrics={"rank1": 0.912, "mAP": 0.75, "valid_queries": 3368},
        protocol=Protocol("reid", "market1501", (256, 128)),
        checkpoint="last",
        data={"name": "market1501", "fingerprint": "ab"},
        config={"seed": 1},
        seed=1,
    )


def test_what_is_written_is_read(result, tmp_path):
    assert read_result(result.write(tmp_path / "sub" / "result.json")) == result


def test_processor_time_is_in_records_that_have_it(result, tmp_path):
    older = result.write(tmp_path / "older.json")
    assert "processor_seconds" not in json.loads(older.read_text())
    assert read_result(older).processor_seconds is None
    counted = replace(result, processor_seconds=12.5)
    assert read_result(counted.write(tmp_path / "result.json")) == counted
    older.write_text(json.dumps(json.loads(older.read_text()) | {"processor_seconds": -1}))
    with pytest.raises(ResultError, match="processor_seconds is -1"):
        read_result(older)


def test_records_versions_and_hardware(result):
    assert {"python", "torch", "bdbnet"} <= set(result.versions)
    assert result.hardware["cores"] >= 1


@pytest.mark.parametrize("keep", [0, 1, 20, -2])
def test_a_half_written_result_is_refused(result, tmp_path, keep):
    path = result.write(tmp_path / "result.json")
    path.write_text(path.read_text()[:keep])
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(path)


@pytest.mark.parametrize("change", [{"schema": 99}, {"unknown": 1}, {"protocol": {}}, {"protocol": None}])
def test_a_result_of_another_schema_is_refused(result, tmp_path, change):
    path = result.write(tmp_path / "result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(path)


def test_a_missing_result_is_refused(tmp_path):
    with pytest.raises(ResultError, match="no result there"):
        read_result(tmp_path / "result.json")


def test_a_number_that_is_no_number_is_not_written(result, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Result(**{**vars(result), "metrics": {"mAP": float("nan")}}).write(tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "history.csv", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    ("name", "title", "column", "within"),
    [
        ("rank5", "Rank-5", "first_match_rank", 5), ("recall@10", "Recall@10", "first_match_rank", 10), ("mAP", "mAP", "ap", None),
        ("map@r", "MAP@R", "map_at_r", None), ("r_precision", "R-precision", "r_precision", None),
    ],
)  # fmt: skip
def test_a_metric_has_one_title_and_the_values_of_its_queries(name, title, column, within):
    metric = metric_of(name)
    assert (metric.name, metric.title, metric.column, metric.within) == (name, title, column, within)
    assert is_metric(name)


@pytest.mark.parametrize("name", ["accuracy", "rank0", "rank05", "rank1x", "xrank1", "rank", "recall@"])
def test_an_unknown_metric_is_shown_by_its_name(name):
    assert metric_of(name) == Metric(name, name)
    assert metric_of(name).text(0.25) == "25.0 %"
    assert not is_metric(name)


def test_counts_are_no_metrics():
    assert metric_names({"rank1": 0.5, "other": 0.1, "valid_queries": 7}) == ["rank1", "other"]
    assert not is_metric("valid_queries")


def test_the_headlines_of_a_record():
    assert headline_metrics(["rank1", "rank10", "mAP", "mINP", "valid_queries"]) == ["rank1", "mAP"]
    assert headline_metrics(["recall@1", "recall@10", "map@r", "r_precision"]) == ["recall@1", "map@r"]
    assert headline_metrics(["recall@2", "recall@4"]) == ["recall@2"]
    assert headline_metrics([]) == []


@pytest.mark.parametrize("name", ["mAP", "rank7", "recall@{k}", "valid_queries"])
def test_a_name_that_is_taken_is_refused(name):
    before = dict(METRICS)
    with pytest.raises(ValueError, match=r"the name is taken by .*; choose another"):
        add_metric(Metric(name, "Mine"))
    assert before == METRICS


def test_a_family_can_be_added():
    add_metric(Metric("precision@{k}", "Precision@{k}", per_query="precision_at_{k}"))
    try:
        metric = metric_of("precision@5")
        assert (metric.title, metric.column, metric.within) == ("Precision@5", "precision_at_5", None)
    finally:
        del METRICS["precision@{k}"]


def test_numbers_are_shown_in_the_unit_of_their_metric():
    percentage, number = metric_of("rank1"), Metric("mean_rank", "Mean rank", unit="", better="lower")
    assert [percentage.number(0.12345), percentage.text(1.0), percentage.heading] == ["12.3", "100.0 %", "Rank-1, %"]
    assert [number.number(v) for v in (0.0, 1.5, 123.456, 98765.4)] == ["0", "1.5", "123.5", "98765"]
    assert (number.text(3.0), number.heading, number.change_unit) == ("3", "Mean rank", "")
    assert [number.change(v) for v in (0.0, 2.0, -0.5)] == ["0", "+2", "\N{MINUS SIGN}0.5"]
    assert (percentage.improves(0.1), number.improves(0.1), number.improves(-0.1)) == (True, False, True)
    assert (percentage.best([1, 3, 2]), number.best([2, 1, 3])) == (3, 1)


def test_reading_results_needs_no_torch():
    source = Path(__file__).resolve().parents[1] / "src"
    code = "import sys, bdbnet.results, bdbnet.settings; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source), "PATH": ""}, check=False)
    assert done.returncode == 0
