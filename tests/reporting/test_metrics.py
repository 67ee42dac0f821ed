"""A metric that a user adds: its row alone brings it into every table, page, plot and comparison."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bdbnet.reporting import write_report
from bdbnet.reporting.analysis import analysis_tables
from bdbnet.reporting.compare_runs import compare_runs
from bdbnet.reporting.sweep_page import write_sweep_report
from bdbnet.reporting.terminal import metrics_table
from bdbnet.results import METRICS, Metric, add_metric, read_result

VALUES = {"soft_rank1": 0.5, "mean_rank": 12.3}


@pytest.fixture(autouse=True)
def rows():
    """A fraction of which more is better, and a plain number of which less is."""
    add_metric(Metric("soft_rank1", "Soft Rank-1", headline=True))
    add_metric(Metric("mean_rank", "Mean <rank>", unit="images", better="lower", per_query="first_match_rank"))
    yield
    for name in VALUES:
        del METRICS[name]


def test_the_terminal_shows_it(run_folder, change_result):
    metrics = {"rank1": 0.9} | VALUES | {"valid_queries": 6.0}
    change_result(metrics=metrics, before=metrics, best=None)
    head, _, before, after, _ = metrics_table(read_result(run_folder / "result.json")).splitlines()[1:]
    assert head.split("  ")[-1] == "valid queries"
    assert [text.strip() for text in head.split("  ") if text.strip()] == [
        "Rank-1, %", "Soft Rank-1, %", "Mean <rank>, images", "valid queries",
    ]  # fmt: skip
    assert before.split()[-4:] == after.split()[-4:] == ["90.0", "50.0", "12.3", "6"]


def test_the_page_of_a_run_shows_it_with_its_curve_and_its_change(run_folder, change_result):
    metrics = {"rank1": 0.9} | VALUES | {"valid_queries": 6.0}
    worse = metrics | {"mean_rank": 1020.6}
    change_result(metrics=metrics, before=worse, best={"metrics": worse, "epoch": 1, "note": ""})
    history = pd.read_csv(run_folder / "history.csv")
    history.assign(mean_rank=[20, 12.3]).to_csv(run_folder / "history.csv", index=False)
    page = write_report(run_folder).read_text()
    assert '<th scope="row">Soft Rank-1</th>' in page
    # Fewer are better, so that the decrease is the improvement.
    assert (
        '<th scope="row">Mean &lt;rank&gt;</th><td>1021 images</td><td class="main">12.3 images</td>'
        '<td class="up">\N{MINUS SIGN}1008</td><td>1021 images</td>'
    ) in page
    assert 'alt="Metrics by epoch: Mean &lt;rank&gt; from 20 images to 12.3 images"' in page
    assert "Mean <rank>" not in page


def test_the_table_of_a_sweep_shows_it_and_the_best_is_the_lowest(run_folder):
    result = read_result(run_folder / "result.json")
    sweep = run_folder.parent / "sweep"
    for lr, rank in ((0.1, 20.0), (0.2, 10.0)):
        config = {"seed": 1, "optimizer": {"lr": lr}}
        replace(result, metrics=VALUES | {"mean_rank": rank}, config=config).write(sweep / f"{lr}" / "result.json")
    text, (page, csv, markdown, _) = write_sweep_report(sweep)
    assert "Soft Rank-1, %  Mean <rank>, images" in text
    assert "| 0.2          |           50.0 |               **10** |" in markdown.read_text()
    assert "In percent." not in text
    assert [line.split(",")[2:6:2] for line in csv.read_text().splitlines()] == [
        ["soft_rank1", "mean_rank"], ["50.0000", "20.0000"], ["50.0000", "10.0000"],
    ]  # fmt: skip
    assert 'alt="Soft Rank-1 by optimizer.lr: 0.1 50.0, 0.2 50.0"' in page.read_text()


def analysed(run_folder, name: str, shift: float):
    """A copy of the run with an analysis that holds the metrics' values for every query."""
    folder = run_folder.parent / name
    replace(read_result(run_folder / "result.json"), metrics=VALUES).write(folder / "result.json")
    record = {
        "schema": 1, "data": {"name": "drawn", "fingerprint": "0"}, "protocol": {"task": "reid"},
        "metrics": {name: {"value": 1.0, "interval": [0.5, 1.5]} for name in VALUES},
    }  # fmt: skip
    (folder / "analysis.json").write_text(json.dumps(record))
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"query_index": np.arange(60), "path": [f"{i}.png" for i in range(60)], "label": np.arange(60)})
    rows = rows.assign(ap=draw.uniform(size=60), matches=2, first_match_rank=draw.integers(1, 40, 60) + shift)
    rows.assign(soft_rank1=draw.uniform(0.2, 0.4, 60) + shift / 10).to_parquet(folder / "per_query.parquet")
    return folder


def test_a_comparison_shows_it_and_knows_which_is_better(run_folder):
    text, path = compare_runs(analysed(run_folder, "ours", 0), analysed(run_folder, "theirs", 5))
    record = json.loads(path.read_text())["metrics"]
    assert (record["mean_rank"]["difference"], record["soft_rank1"]["difference"]) == (-5, pytest.approx(-0.5))
    assert "theirs is better in Soft Rank-1 by 50.0 points (50.0 to 50.0)" in text
    assert "Soft Rank-1, %" in text
    assert "Mean <rank>, images" in text
    assert "is better in Mean <rank>" not in text
    METRICS["mean_rank"] = replace(METRICS["mean_rank"], headline=True)
    assert (
        "ours is better in Mean <rank> by 5 images (5 to 5)"
        in compare_runs(run_folder.parent / "ours", run_folder.parent / "theirs")[0]
    )


def test_a_comparison_without_its_column_says_what_to_do(run_folder):
    ours, theirs = (analysed(run_folder, name, 0) for name in ("ours", "theirs"))
    path = theirs / "per_query.parquet"
    pd.read_parquet(path).drop(columns="soft_rank1").to_parquet(path)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) soft_rank1\. Analyse again"):
        compare_runs(ours, theirs)


def test_the_error_analysis_shows_it_with_its_interval():
    record = {
        "protocol": {"task": "reid", "single_shot": None}, "queries": 6, "valid_queries": 6, "camera_pairs": None,
        "metrics": {name: {"value": value, "interval": [value, 2 * value]} for name, value in VALUES.items()},
        "by_gallery_images": [], "worst_queries": [], "confused_identities": [], "distractors_at_rank_1": 0,
        "pairs": {"positives": 0, "negatives": 0},
    }  # fmt: skip
    (table,) = analysis_tables(record)
    assert table.title == "Metrics over 6 queries"
    assert table.rows == [["Soft Rank-1, %", "50.0", "50.0 to 100.0"], ["Mean <rank>, images", "12.3", "12.3 to 24.6"]]
