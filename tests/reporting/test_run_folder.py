import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbnet.reporting import ReportError, read_run
from bdbnet.reporting.pictures import Images, ranking_lists
from bdbnet.reporting.run_folder import choose_queries, image_root
from bdbnet.results import ANALYSIS_SCHEMA, ResultError


def ranking(firsts: list[int | None], labels: list[int] | None = None, kept: int = 5) -> pd.DataFrame:
    """One list of `kept` images per query, with its first correct image at the given rank."""
    rows = [
        (query, rank, (labels or range(len(firsts)))[query], rank == first)
        for query, first in enumerate(firsts)
        for rank in range(1, kept + 1)
    ]
    return pd.DataFrame(rows, columns=["query_index", "rank", "query_label", "correct"])


def test_a_run_is_read_whole(run_folder):
    run = read_run(run_folder)
    assert run.result.metrics["rank1"] == 0.9121
    assert list(run.history["epoch"]) == [1, 2]
    assert len(run.ranking) == 6 * 5


def test_the_result_file_may_be_named_instead_of_its_folder(run_folder):
    assert read_run(run_folder / "result.json").path == run_folder


def test_an_evaluation_has_no_history(run_folder):
    (run_folder / "history.csv").unlink()
    assert read_run(run_folder).history is None


def test_missing_folder_and_folder_of_runs_are_named(run_folder):
    with pytest.raises(ReportError, match=r"absent: no such folder"):
        read_run(run_folder / "absent")
    with pytest.raises(ReportError, match=r"not a run folder.*loss=none,seed=3"):
        read_run(run_folder.parent)
    with pytest.raises(ReportError, match=r"not a run folder.*A run writes the file at its end"):
        read_run(run_folder.parent / "images")


def test_half_written_result_is_named(run_folder):
    path = run_folder / "result.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(ResultError, match=r"result\.json: not a complete result"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "not a readable table"), ("a,b\n1,2\n", "no column `epoch`"), ("epoch,loss\n1,abc\n", "column loss holds")],
)
def test_bad_history_is_named(run_folder, content, reason):
    (run_folder / "history.csv").write_text(content)
    with pytest.raises(ReportError, match=rf"history\.csv: {reason}.*Move it away"):
        read_run(run_folder)


def test_bad_ranking_lists_are_named(run_folder):
    path = run_folder / "topk.parquet"
    pd.read_parquet(path).drop(columns=["correct", "rank"]).to_parquet(path)
    with pytest.raises(ReportError, match=r"topk\.parquet: lacks the column\(s\) rank, correct"):
        read_run(run_folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReportError, match=r"topk\.parquet: not a readable Parquet file"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"mAP": "x"}}, "metrics.mAP is 'x'; expected a number"),
        ({"metrics": {"mAP": None}}, "metrics.mAP is null"),
        ({"metrics": [1]}, "metrics is a list of 1; expected a mapping"),
        ({"protocol": {"task": "reid", "dataset": "d", "image_size": 5}}, "protocol.image_size is 5; expected a list"),
        ({"protocol": {"task": 1, "dataset": "d", "image_size": [2, 2]}}, "protocol.task is 1; expected text"),
        (
            {"protocol": {"task": "reid", "dataset": "d", "image_size": [2, 2], "rerank": {"k1": "a"}}},
            "protocol.rerank.k1",
        ),
        ({"best": 5}, "best is 5; expected a mapping or null"),
        ({"best": {"metrics": {}}}, "best.epoch is missing"),
        ({"data": {"counts": {"train": [1]}}}, "data.counts.train is a list of 1"),
        ({"config": {"dataset": 5}}, "config.dataset is 5"),
        ({"config": {"dataset": {"options": {"manifest": 5}}}}, "config.dataset.options.manifest is 5"),
        ({"config": {"trainer": "x"}}, "config.trainer is 'x'"),
        ({"seed": None}, "seed is null; expected a whole number"),
        ({"epochs": "many"}, "epochs is 'many'"),
        ({"seconds": {"train": "long"}}, "seconds.train is 'long'"),
        ({"hardware": None}, "hardware is null"),
        ({"more": 1}, "more is not a key of this version"),
    ],
)
def test_an_edited_result_is_named_by_its_key(run_folder, change, message):
    path = run_folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultError, match=rf"result\.json: {message}.*measure again"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rank", "x", "column rank holds .*string; expected whole numbers"),
        ("rank", 0, "column rank, row 1: is 0; expected whole numbers of at least 1"),
        ("query_index", -1, "column query_index, row 1: is -1"),
        ("distance", float("nan"), "column distance, row 1: is (nan|empty)"),
        ("distance", True, "column distance holds bool"),
        ("correct", 1, "column correct holds int64; expected true and false"),
        ("query_path", 5, "column query_path holds int64; expected text"),
        ("gallery_path", None, "column gallery_path"),
        ("gallery_camera", "a", "column gallery_camera holds .*string"),
        ("query_x1", 3, "has some of the columns query_x1, .*, not all"),
    ],
)
def test_a_column_of_the_ranking_lists_is_named(run_folder, column, values, message):
    path = run_folder / "topk.parquet"
    pd.read_parquet(path).assign(**{column: values}).to_parquet(path)
    with pytest.raises(ReportError, match=rf"topk\.parquet: {message}.*Move it away"):
        read_run(run_folder)


def test_settings_of_a_foreign_run_write_nothing(run_folder, change_result, tmp_path, monkeypatch):
    monkeypatch.undo()  # the readers of bdbnet
    for name in ("synthetic_reid", "synthetic_retrieval"):
        change_result(config={"dataset": {"name": name, "root": str(tmp_path / "new"), "options": {}}})
        root, remark = image_root(read_run(run_folder))
        assert root is None
        assert "not rendered" in remark
        assert not (tmp_path / "new").exists()
    change_result(config={"dataset": {"name": "synthetic_reid", "root": ".", "options": {"train_identities": 10**12}}})
    assert "at most 10,000,000" in image_root(read_run(run_folder))[1]


def test_half_is_drawn_and_half_is_worst():
    table = ranking([1] * 18 + [None, 4])
    for seed in range(20):
        chosen = choose_queries(table, 4, seed)
        bad = [query for query in (18, 19) if query not in chosen.random]
        assert len(chosen.random) == 2
        assert chosen.worst[: len(bad)] == bad


def test_random_half_depends_on_the_seed_alone():
    table = ranking([1] * 50)
    assert choose_queries(table, 8, 0) == choose_queries(table.sample(frac=1, random_state=3), 8, 0)
    assert choose_queries(table, 8, 0) != choose_queries(table, 8, 1)


def test_an_identity_comes_twice_only_after_all_others():
    table = ranking([None] * 10 + [3] * 2 + [1] * 8, labels=[7] * 10 + [8] * 2 + [9] * 8)
    worst = choose_queries(table, 7, 0).worst
    labels = table.drop_duplicates("query_index").set_index("query_index")["query_label"]
    assert sorted(labels[worst]) == [7, 8, 9]


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=12), st.integers(0, 15), st.integers(0, 3)
)
def test_choice_has_no_repeats_and_as_many_as_there_are(firsts, count, seed):
    chosen = choose_queries(ranking(firsts), count, seed)
    both = chosen.random + chosen.worst
    assert len(set(both)) == len(both) <= min(count, len(firsts))
    assert set(both) <= set(range(len(firsts)))
    if count <= len(firsts):
        assert len(both) == count
        assert len(chosen.random) == count - count // 2


def test_image_root_and_its_remarks(run_folder, change_result):
    root = run_folder.parent / "images"
    assert image_root(read_run(run_folder)) == (root, "")
    change_result(data={"fingerprint": "0" * 64})
    found, remark = image_root(read_run(run_folder))
    assert found == root
    assert "has changed since this run" in remark
    root.rename(root.with_name("elsewhere"))
    found, remark = image_root(read_run(run_folder))
    assert found is None
    assert str(root) in remark
    change_result(config={})
    assert image_root(read_run(run_folder))[1].endswith("do not name the folder of its dataset.")


def test_relative_paths_are_found_from_another_folder(run_folder, change_result, monkeypatch, tmp_path_factory):
    """A run whose record has the path as it was typed, looked at from elsewhere."""
    root = run_folder.parent / "images"
    config = read_run(run_folder).result.config
    change_result(config={**config, "dataset": {**config["dataset"], "root": "images"}})
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert image_root(read_run(run_folder)) == (root, "")


def test_labels_are_shown_as_their_owner_writes_them(run_folder):
    (run_folder / "label_names.json").write_text('{"0": "0000", "2": "Ännä"}', encoding="utf-8")
    nearest = {"path": "b.png", "label": 0, "camera": 1, "distance": 1.0}
    worst = {
        "path": "a.png",
        "label": 2,
        "camera": 0,
        "matches": 1,
        "ap": 0.5,
        "first_match_rank": 2,
        "nearest": nearest,
    }
    confused = {"label": 2, "taken_for": 0, "queries": 1}
    record = {
        "schema": ANALYSIS_SCHEMA, "data": {"name": "two", "fingerprint": "0"}, "protocol": {"task": "reid"}, "metrics": {},
        "worst_queries": [worst], "confused_identities": [confused],
    }  # fmt: skip
    (run_folder / "analysis.json").write_text(json.dumps(record))
    run = read_run(run_folder)
    assert run.ranking["query_label"].unique().tolist() == ["0000", 1, "Ännä", 3, 4, 5]
    assert run.analysis["worst_queries"][0]["label"] == "Ännä"
    assert run.analysis["worst_queries"][0]["nearest"]["label"] == "0000"
    assert run.analysis["confused_identities"] == [{"label": "Ännä", "taken_for": "0000", "queries": 1}]
    assert "Identity Ännä, camera 0" in ranking_lists(run, Images(*image_root(run)), 6, 5, 0)
    for damaged in ("{", "[1]", '{"a": "b"}'):
        (run_folder / "label_names.json").write_text(damaged)
        with pytest.raises(ReportError, match=r"label_names\.json: not the names of labels"):
            read_run(run_folder)
