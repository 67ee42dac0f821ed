"""result.json: nothing lost, nothing half-written, nothing misread."""

import errno
import json
import os

import pytest

from bdbnet.results import Protocol, Result, ResultError, read_result, write_atomically


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
