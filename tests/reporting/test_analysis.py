import json
import re

import pandas as pd
import pytest

from bdbnet.reporting import ReportError, read_run, write_report
from bdbnet.reporting.analysis import analysis_section, analysis_tables, analysis_text

CAMERAS = {
    "query_cameras": [1, 2], "gallery_cameras": [1, 2], "queries": [[0, 3], [3, 0]], "rank1": [[None, 0.667], [0.333, None]],
    "mAP": [[None, 0.7], [0.4, None]],
}  # fmt: skip
POINT = {"threshold": 1.25, "true_positive_rate": 0.8, "false_positive_rate": 0.00075, "reason": None}
MISSING = {
    "threshold": None,
    "true_positive_rate": None,
    "false_positive_rate": None,
    "reason": "there are no positive pairs",
}
NEAREST = {"path": "gallery/7.png", "label": 7, "camera": 2, "distance": 0.5}


def record(**fields):
    return {
        "schema": 1,
        "data": {"name": "drawn", "fingerprint": "0"},
        "protocol": {"task": "reid", "single_shot": None},
        "queries": 6,
        "valid_queries": 6,
        "metrics": {"rank1": {"value": 0.5, "interval": [0.25, 0.75]}, "mAP": {"value": 0.6, "interval": [0.5, 0.7]}},
        "camera_pairs": CAMERAS,
        "by_gallery_images": [{"images": "2-3", "queries": 6, "rank1": 0.5, "mAP": 0.6}],
        "worst_queries": [
            {"path": "query/<1>.png", "label": 1, "camera": 1, "matches": 2, "ap": 0.05, "first_match_rank": 31,
             "nearest": NEAREST}
        ],
        "confused_identities": [{"label": 1, "taken_for": 7, "queries": 2}],
        "distractors_at_rank_1": 1,
        "average_precision": [2, 0, 0, 4],
        "pairs": {
            "positives": 12, "negatives": 60, "equal_error_rate": 0.2, "equal_error_threshold": 1.5,
            "at_false_positive_rate": [{"rate": 1e-3, **POINT}, {"rate": 1e-4, **MISSING}],
            "held_out": [{"criterion": "equal error rate", **POINT}],
            "roc": {"false_positive_rate": [0.01, 1.0], "true_positive_rate": [0.5, 1.0]},
            "histogram": {"edges": [0.0, 1.0, 2.0], "positives": [0.9, 0.1], "negatives": [0.2, 0.8]},
        },
        **fields,
    }  # fmt: skip


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_tables_say_what_was_measured():
    printed = analysis_text(record())
    rows = lines(printed)
    assert ["Rank-1", "50.0", "25.0", "to", "75.0"] in rows
    assert ["1", "-", "66.7", "/", "70.0"] in rows
    assert ["2-3", "6", "50.0", "60.0"] in rows
    assert ["query/<1>.png", "1", "5.0", "31", "gallery/7.png", "7", "0.500"] in rows
    assert ["1", "7", "2"] in rows
    assert "at rank 1: 1." in printed
    assert ["equal", "error", "rate", "1.50", "80.0", "%", "20.0", "%"] in rows
    assert ["false", "positive", "rate", "0.001", "1.25", "80.0", "%", "0.075", "%"] in rows
    assert ["false", "positive", "rate", "0.0001", "-", "-", "-"] in rows
    assert "false positive rate 0.0001: there are no positive pairs." in printed


def test_what_there_is_not_leaves_no_table():
    bare = record(
        camera_pairs=None, confused_identities=[], pairs={"positives": 3, "negatives": 0}, worst_queries=[],
        protocol={"task": "retrieval", "single_shot": None}, valid_queries=4,
        metrics={"recall@1": {"value": 1.0, "interval": None}},
    )  # fmt: skip
    assert [table.title for table in analysis_tables(bare)] == [
        "Metrics over 4 queries, %", "By number of matches in the gallery",
    ]  # fmt: skip
    printed = analysis_text(bare)
    assert "Recall@1  100.0" in printed
    assert "No interval: all queries that count are of one class." in printed
    assert "2 queries have no match and do not count." in printed


def test_a_single_shot_protocol_is_said_to_give_other_numbers():
    single = record(protocol={"task": "reid_single_shot", "single_shot": 100})
    assert "not one image per identity" in analysis_text(single)
    assert "not one image per identity" not in analysis_text(record())


def test_the_page_shows_pictures_and_tables(run_folder):
    (run_folder / "analysis.json").write_text(json.dumps(record()))
    page = write_report(run_folder).read_text()
    assert "<h2>Analysis</h2>" in page
    assert "query/&lt;1&gt;.png" in page
    assert 'alt="ROC: equal error rate 20.0 %"' in page
    assert page.count("<picture>") == 3 + 4
    assert "http:" not in page
    assert analysis_section(record(camera_pairs=None)).count("<picture>") == 3


def test_the_worst_queries_are_shown_before_their_table(run_folder):
    worst = {"path": "query/1.png", "label": 1, "camera": 0, "matches": 2, "ap": 0.05, "first_match_rank": 31}
    found = record(worst_queries=[worst | {"nearest": NEAREST}, worst | {"first_match_rank": 1, "nearest": NEAREST}])
    (run_folder / "analysis.json").write_text(json.dumps(found))
    page = write_report(run_folder, queries=0).read_text()
    pairs, table = page.partition("<h3>Worst queries</h3>")[2].split("<table", maxsplit=1)
    assert re.findall(r'alt="([^"]*)"', pairs) == [
        "query: identity 1, camera 0", "rank 1, wrong: identity 7, camera 2, distance 0.500",
        "query: identity 1, camera 0", "rank 1, right: identity 7, camera 2, distance 0.500",
    ]  # fmt: skip
    assert pairs.count("data:image/jpeg") == 4
    assert "AP 5.0 %, first match at rank 31" in pairs
    assert "query/1.png" in table


def test_the_worst_queries_of_photographs_are_shown_by_their_boxes(run_folder):
    path = run_folder / "topk.parquet"
    ranking = pd.read_parquet(path)
    for of in ("query", "gallery"):
        ranking[[f"{of}_{name}" for name in ("x1", "y1", "x2", "y2")]] = [2, 3, 10, 15]
    ranking.to_parquet(path)
    first = ranking[ranking["query_index"] == 1].iloc[0]
    nearest = NEAREST | {"path": first.gallery_path, "label": int(first.gallery_label)}
    worst = {
        "path": "query/1.png",
        "label": 1,
        "camera": 0,
        "matches": 2,
        "ap": 0.05,
        "first_match_rank": 2,
        "nearest": nearest,
    }
    (run_folder / "analysis.json").write_text(json.dumps(record(worst_queries=[worst])))
    page = write_report(run_folder, queries=0).read_text()
    assert page.count('width="8" height="12"') == 2


def test_without_the_dataset_the_worst_queries_are_a_table_alone(run_folder):
    (run_folder / "analysis.json").write_text(json.dumps(record()))
    (run_folder.parent / "images").rename(run_folder.parent / "elsewhere")
    page = write_report(run_folder).read_text()
    assert "<h3>Worst queries</h3>" in page
    assert 'class="pairs"' not in page


def test_a_run_that_was_not_analysed_has_no_such_section(run_folder):
    assert read_run(run_folder).analysis is None
    assert "<h2>Analysis</h2>" not in write_report(run_folder).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1', "not a complete analysis"),
        ('{"schema": 9}', "schema 9, this version reads schema 1"),
        ("[]", "schema None"),
    ],
)
def test_a_broken_analysis_is_named(run_folder, text, message):
    (run_folder / "analysis.json").write_text(text)
    with pytest.raises(
        ReportError, match=rf"analysis\.json: {message}.*Move it away, or evaluate again with analysis=true"
    ):
        read_run(run_folder)
