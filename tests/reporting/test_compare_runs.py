import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from bdbnet.config import ConfigError
from bdbnet.evaluation.significance import Interval, PairedDifference, paired_difference
from bdbnet.report import main
from bdbnet.reporting import ReportError
from bdbnet.reporting.compare_runs import compare_runs, verdict
from bdbnet.results import Protocol, Result, metric_of, read_result

LABELS = np.repeat(np.arange(20), 3)


def analysed(
    folder: Path, ap: np.ndarray, *, rows: pd.DataFrame | None = None, fingerprint: str = "0", **protocol
) -> Path:
    """An evaluation's folder with its analysis; rank 1 is right where AP is above a half."""
    measured = Protocol("reid", "drawn", (32, 16), **protocol)
    result = Result("evaluate", {"rank1": 0.5}, measured, "last.ckpt", {"fingerprint": fingerprint}, {"seed": 1}, 1)
    result.write(folder / "result.json")
    metrics = {name: {"value": 0.5, "interval": None} for name in ("rank1", "mAP")}
    record = {"schema": 1, "data": {"name": "drawn", "fingerprint": fingerprint}, "metrics": metrics}
    record["protocol"] = {"task": "reid", "flip": measured.flip}
    (folder / "analysis.json").write_text(json.dumps(record))
    if rows is None:
        rows = pd.DataFrame({"query_index": np.arange(60), "path": [f"{i}.png" for i in range(60)], "label": LABELS})
    ranks = np.where(ap > 0.5, 1, 4)
    rows = rows.assign(
        ap=ap, inp=ap, map_at_r=ap, r_precision=ap, matches=np.where(np.isnan(ap), 0, 2), first_match_rank=ranks
    )
    rows.to_parquet(folder / "per_query.parquet", index=False)
    return folder


@pytest.fixture
def ap() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, 60)


def test_a_better_run_is_called_better(tmp_path, ap):
    better = np.clip(ap + np.random.default_rng(1).normal(0.05, 0.03, 60), 0, 1)
    better[7] = ap[7] + 0.19
    a, b = analysed(tmp_path / "ours", better), analysed(tmp_path / "theirs", ap)
    text, path = compare_runs(a, b)
    expected = paired_difference(better, ap, LABELS)
    assert path == a / "compare-theirs.json"
    record = json.loads(path.read_text())
    assert record["metrics"]["mAP"]["difference"] == expected.difference
    assert record["metrics"]["mAP"]["interval"] == list(expected.interval)
    assert record["metrics"]["mAP"]["p_value"] == expected.p_value < 0.001
    hits = (better > 0.5).mean(), (ap > 0.5).mean()
    assert (record["metrics"]["rank1"]["a"], record["metrics"]["rank1"]["b"]) == hits
    assert f"ours is better in mAP by {100 * expected.difference:.1f} points" in text
    assert "60 queries of 20 identities" in text
    assert "protocols differ" not in text
    most = record["queries_that_differ_most"][0]
    assert (most["path"], most["ap"]) == ("7.png", [better[7], ap[7]])
    assert text.splitlines()[0] == "A: ours; B: theirs"


def test_the_other_way_round_says_the_same(tmp_path, ap):
    a, b = analysed(tmp_path / "ours", ap), analysed(tmp_path / "theirs", ap + 0.1, flip=True)
    text, path = compare_runs(a, b)
    assert "theirs is better in mAP by 10.0 points (10.0 to 10.0), p = 0.0001" in text
    assert "The protocols differ: flip False and True." in text
    assert json.loads(path.read_text())["protocol_differs_in"] == {"flip": [False, True]}


def test_noise_shows_no_difference(tmp_path, ap):
    noise = np.random.default_rng(5).normal(0, 0.1, 60)
    text, _ = compare_runs(analysed(tmp_path / "ours", ap + noise - noise.mean()), analysed(tmp_path / "theirs", ap))
    assert "no difference in mAP can be shown: 0.0 points" in text
    assert "better in mAP" not in text


def test_equal_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, ap):
    a, b = analysed(tmp_path / "1" / "run", ap), analysed(tmp_path / "2" / "run", ap)
    text, path = compare_runs(a, b)
    assert f"A: {a}; B: {b}" in text
    assert "Every query has the same AP in both." in text
    assert path.name == "compare-run.json"


def test_queries_without_a_match_do_not_count(tmp_path, ap):
    lost = ap.copy()
    lost[:6] = np.nan
    text, path = compare_runs(analysed(tmp_path / "ours", lost + 0.05), analysed(tmp_path / "theirs", lost))
    assert "54 queries of 18 identities" in text
    assert json.loads(path.read_text())["metrics"]["mAP"]["b"] == ap[6:].mean()


def test_the_command_prints_the_comparison(tmp_path, ap, capsys):
    a, b = analysed(tmp_path / "ours", ap), analysed(tmp_path / "theirs", ap + 0.1)
    main(OmegaConf.create({"run": str(a), "compare": str(b), "queries": 8, "top": 10, "seed": 0}))
    printed = capsys.readouterr().out
    assert "theirs is better in mAP by 10.0 points" in printed
    assert f"comparison: {a / 'compare-theirs.json'}" in printed
    assert not (a / "report.html").exists()


def test_verdicts():
    worse = PairedDifference(-0.012, Interval(-0.02, 0.001), 0.049, 9, 3)
    assert (
        verdict(metric_of("mAP"), worse, "a", "b")
        == "b is better in mAP by 1.2 points (\N{MINUS SIGN}0.1 to 2.0), p = 0.049"
    )
    unsure = worse._replace(p_value=0.05)
    assert verdict(metric_of("mAP"), unsure, "a", "b") == (
        "no difference in mAP can be shown: \N{MINUS SIGN}1.2 points (\N{MINUS SIGN}2.0 to +0.1), p = 0.05"
    )


def test_folders_that_can_not_be_compared(tmp_path, ap):
    ours = analysed(tmp_path / "ours", ap)
    rows = pd.read_parquet(ours / "per_query.parquet")[["query_index", "path", "label"]]
    other_data = analysed(tmp_path / "data", ap, fingerprint="1")
    fewer = analysed(tmp_path / "fewer", ap[:30], rows=rows.head(30))
    one = analysed(tmp_path / "one", ap, rows=rows.assign(label=1))
    shutil.copytree(one, tmp_path / "one too")
    bare = analysed(tmp_path / "bare", ap)
    (bare / "analysis.json").unlink()
    half = analysed(tmp_path / "half", ap)
    rows.to_parquet(half / "per_query.parquet", index=False)
    for a, b, message in (
        (ours, ours, "the same folder as run="),
        (ours, other_data, "with other content: only results on the same images can be compared"),
        (ours, fewer, r"has 60 queries, .*fewer 30, and they are not the same ones"),
        (one, tmp_path / "one too", "needs at least two of them, got 1"),
        (ours, bare, r"compare=.*: no per_query.parquet there. Run .*checkpoint=last.ckpt dataset=drawn analysis=true"),
        (bare, ours, "run=.*: no per_query.parquet there"),
        (ours, half, r"per_query.parquet: lacks the column\(s\) ap, matches, first_match_rank"),
        (ours, tmp_path / "nowhere", "compare=.*nowhere: no such folder"),
    ):
        with pytest.raises(ReportError, match=message):
            compare_runs(a, b)
    (half / "per_query.parquet").write_text("no table")
    with pytest.raises(ReportError, match=r"per_query\.parquet: not a readable Parquet file"):
        compare_runs(ours, half)
    assert not list(ours.glob("compare-*"))


def test_trainings_are_compared_without_another_evaluation(finished_run, tmp_path):
    other = shutil.copytree(finished_run, tmp_path / "other")
    rows = pd.read_parquet(finished_run / "per_query.parquet")
    rows.assign(ap=rows["ap"] / 2).to_parquet(other / "per_query.parquet")
    measured = read_result(finished_run / "result.json").metrics
    _, path = compare_runs(finished_run, other)
    path.replace(tmp_path / "compare.json")  # the folder is shared
    found = json.loads((tmp_path / "compare.json").read_text())["metrics"]
    assert found.keys() == measured.keys() - {"valid_queries"}
    for name in found:
        assert found[name]["a"] == pytest.approx(measured[name], abs=1e-6), name
    assert found["mAP"]["difference"] == pytest.approx(measured["mAP"] / 2)
    record = json.loads((other / "result.json").read_text())
    record["protocol"] |= {"task": "reid_single_shot", "single_shot": 10}
    (other / "result.json").write_text(json.dumps(record))
    with pytest.raises(
        ReportError, match=r"galleries drawn at random, and per_query\.parquet has ranks in the whole gallery"
    ):
        compare_runs(finished_run, other)


def test_runs_without_a_common_metric_can_not_be_compared(tmp_path, ap):
    ours, other = analysed(tmp_path / "ours", ap), analysed(tmp_path / "other", ap)
    path = other / "analysis.json"
    record = json.loads(path.read_text())
    record["metrics"] = {"recall@1": next(iter(record["metrics"].values()))}
    path.write_text(json.dumps(record))
    with pytest.raises(ReportError, match="have no metric in common"):
        compare_runs(ours, other)
    assert not list(ours.glob("compare-*"))


def test_comparisons_with_runs_of_one_name_do_not_replace_each_other(tmp_path, ap):
    ours = analysed(tmp_path / "ours", ap)
    others = [analysed(tmp_path / sweep / "seed=1", ap) for sweep in ("a", "b")]
    files = [compare_runs(ours, other)[1] for other in (*others, others[0])]
    assert files[0] == files[2] != files[1]
    assert [json.loads(path.read_text())["b"] for path in files[:2]] == [str(other) for other in others]


def test_a_comparison_with_another_seed_is_not_replaced(tmp_path, ap):
    a, b = analysed(tmp_path / "ours", ap), analysed(tmp_path / "theirs", ap + 0.1)
    _, path = compare_runs(a, b, seed=1, overwrite=False)
    kept = path.read_bytes()
    assert compare_runs(a, b, seed=1, overwrite=False)[1].read_bytes() == kept
    with pytest.raises(ConfigError, match=r"compare-theirs.json holds .*seed was 1, is 2.*overwrite=true"):
        compare_runs(a, b, seed=2, overwrite=False)
    assert path.read_bytes() == kept
    assert json.loads(compare_runs(a, b, seed=2)[1].read_text())["seed"] == 2


def test_a_long_name_of_the_other_run_fits_into_the_file_name(tmp_path, ap):
    a, b = analysed(tmp_path / "ours", ap), analysed(tmp_path / ("\u6c49" * 85), ap)
    assert compare_runs(a, b)[1].is_file()
