"""The analysis of an evaluated checkpoint: tables, record, and that both agree with the metrics."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.results import read_result
from bdbnet.retrieval import rerank


@pytest.fixture
def evaluated(finished_run, tiny_config, tmp_path):
    """``evaluated("key=value", ...)``: evaluate the finished run's checkpoint with an analysis -> result, record, queries."""

    def build(*overrides: str, dataset: str = "synthetic_reid", folder=tmp_path / "evaluated"):
        config = tiny_config(
            f"checkpoint={finished_run / 'last.ckpt'}",
            f"dataset={dataset}",
            "analysis=true",
            *overrides,
            command="evaluate",
        )
        if dataset == "synthetic_reid":
            config.dataset.options = read_result(finished_run / "result.json").config["dataset"]["options"]
        result = evaluate(config, folder)
        record = json.loads((folder / "analysis.json").read_text())
        return result, record, pd.read_parquet(folder / "per_query.parquet")

    return build


def test_means_are_the_metrics_and_lie_in_their_intervals(evaluated):
    result, record, queries = evaluated()
    assert record["data"]["fingerprint"] == result.data["fingerprint"]
    assert record["protocol"]["task"] == "reid"
    assert record["valid_queries"] == result.metrics["valid_queries"] == len(queries)
    assert list(record["metrics"]) == ["rank1", "rank5", "rank10", "mAP", "mINP"]
    for name, of in record["metrics"].items():
        assert of["value"] == result.metrics[name]
        assert of["interval"][0] <= of["value"] <= of["interval"][1]
    assert queries["ap"].mean() == pytest.approx(result.metrics["mAP"])
    assert (queries["first_match_rank"] == 1).mean() == result.metrics["rank1"]


def test_rows_agree_with_the_ranking_lists(evaluated, tmp_path):
    _, _, queries = evaluated("evaluation.top_k=200")
    lists = pd.read_parquet(tmp_path / "evaluated" / "topk.parquet").sort_values("rank")
    for right, name in ((True, "match"), (False, "negative")):
        first = lists[lists["correct"] == right].drop_duplicates("query_index").set_index("query_index")
        first = first.loc[queries["query_index"]].reset_index()
        assert first["gallery_index"].tolist() == queries[f"{name}_index"].tolist()
        assert first["gallery_path"].tolist() == queries[f"{name}_path"].tolist()
        assert first["gallery_camera"].tolist() == queries[f"{name}_camera"].tolist()
        assert first["distance"].to_numpy() == pytest.approx(queries[f"{name}_distance"].to_numpy(), rel=1e-5)
        if right:
            assert first["rank"].tolist() == queries["first_match_rank"].tolist()
    assert ((queries["margin"] > 0) == (queries["first_match_rank"] == 1)).all()


def test_breakdowns_add_up(evaluated, tmp_path):
    result, record, queries = evaluated()
    cameras = pd.read_csv(tmp_path / "evaluated" / "camera_pairs.csv")
    assert len(cameras) == 4
    assert cameras.loc[cameras["query_camera"] == cameras["gallery_camera"], "queries"].tolist() == [0, 0]
    # Two cameras: all that counts for a query of one was taken by the other, distractors aside.
    assert cameras["queries"].sum() == len(queries)
    assert record["camera_pairs"]["rank1"][0][0] is None
    assert sum(of["queries"] for of in record["by_gallery_images"]) == len(queries)
    weighted = sum(of["queries"] * of["mAP"] for of in record["by_gallery_images"]) / len(queries)
    assert weighted == pytest.approx(result.metrics["mAP"])
    assert sum(record["average_precision"]) == len(queries)
    aps = [of["ap"] for of in record["worst_queries"]]
    assert aps == sorted(queries["ap"])[:10]
    wrong = (queries["first_match_rank"] > 1).sum()
    assert sum(of["queries"] for of in record["confused_identities"]) + record["distractors_at_rank_1"] == wrong
    assert record["pairs"]["positives"] == queries["matches"].sum()


def test_too_few_pairs_are_said(evaluated):
    _, record, _ = evaluated()
    low, lower = record["pairs"]["at_false_positive_rate"]
    assert low["threshold"] is None
    assert "needs 1,000 negative pairs" in low["reason"]
    assert "needs 10,000 negative pairs" in lower["reason"]
    equal, small = record["pairs"]["held_out"]
    assert equal["reason"] is None
    assert 0 <= equal["false_positive_rate"] <= 1
    assert "negative pairs" in small["reason"]


def test_images_that_are_query_and_gallery_at_once(evaluated, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rows = pd.DataFrame({"path": [f"{i}.png" for i in range(12)], "label": np.arange(12) // 4, "split": "test"})
    rows.to_csv(tmp_path / "mine.csv", index=False)
    result, record, queries = evaluated(f"dataset.manifest={tmp_path / 'mine.csv'}", dataset="table")
    assert record["protocol"]["task"] == "retrieval"
    assert record["camera_pairs"] is None
    assert not (tmp_path / "evaluated" / "camera_pairs.csv").exists()
    assert {name: of["value"] for name, of in record["metrics"].items()} == pytest.approx(
        {name: value for name, value in result.metrics.items() if name != "valid_queries"}, abs=1e-12
    )
    assert (queries["match_index"] != queries["query_index"]).all()
    assert (queries["camera"] == -1).all()


def test_multi_queries_stand_under_their_first_image(evaluated):
    result, record, queries = evaluated("dataset.protocol=reid_multi_query")
    assert len(queries) == result.metrics["valid_queries"]
    assert not queries.duplicated(["label", "camera"]).any()
    assert record["metrics"]["mAP"]["value"] == result.metrics["mAP"]


@pytest.mark.parametrize(
    ("overrides", "distance"),
    [
        (["evaluation.rerank={k1: 5, k2: 2, lambda: 0.3}"], "re-ranked"),
        (["evaluation.query_expansion={k: 2}"], "euclidean"),
        (["evaluation.ap_at=3"], "euclidean"),
    ],
)
def test_ranks_are_those_of_the_metrics_and_pairs_are_not_re_ranked(evaluated, overrides, distance):
    result, record, queries = evaluated(*overrides)
    for name, of in record["metrics"].items():
        assert of["value"] == result.metrics[name]
    assert record["distance"] == distance
    assert (queries.loc[queries["margin"] > 0, "first_match_rank"] == 1).all()
    assert record["pairs"] == evaluated("overwrite=true")[1]["pairs"]


def test_a_re_ranked_evaluation_with_lists_and_analysis_encodes_the_images_once(evaluated, monkeypatch):
    encoded = []
    encode = rerank._encoded
    monkeypatch.setattr(rerank, "_encoded", lambda *given: encoded.append(len(given[0])) or encode(*given))
    result, _, queries = evaluated("evaluation.rerank={k1: 5, k2: 2}", "evaluation.top_k=3")
    assert encoded == [18]
    assert result.plain is not None
    assert len(queries) == 8


def test_cosine_distances(evaluated):
    result, record, queries = evaluated("evaluation.distance=cosine")
    assert record["distance"] == "cosine"
    assert record["metrics"]["mAP"]["value"] == result.metrics["mAP"]
    assert queries["match_distance"].between(0, 2).all()
    assert max(record["pairs"]["histogram"]["edges"]) <= 2.01


def test_queries_without_a_match_have_no_values(evaluated, monkeypatch):
    def without_one(*arguments, **options):
        manifest = load_manifest(*arguments, **options)
        table = manifest.table
        victim = table.loc[table["split"] == "query", "label"].iloc[0]
        table = table[(table["split"] != "gallery") | (table["label"] != victim)].reset_index(drop=True)
        return Manifest(table, manifest.root)

    monkeypatch.setattr("bdbnet.loading.from_config.load_manifest", without_one)
    with pytest.warns(UserWarning, match="2 queries have no true match"):
        _, record, queries = evaluated()
    lost = queries["matches"] == 0
    assert lost.sum() == 2
    assert (record["queries"], record["valid_queries"]) == (8, 6)
    assert queries.loc[lost, ["ap", "inp", "match_distance", "match_path", "margin"]].isna().all(axis=None)
    assert (queries.loc[lost, ["first_match_rank", "match_index", "match_label"]] == -1).all(axis=None)
    assert np.isfinite(queries.loc[lost, "negative_distance"]).all()


def test_evaluation_again_without_it_leaves_no_analysis_of_something_else(
    evaluated, finished_run, tiny_config, tmp_path
):
    evaluated()
    options = read_result(finished_run / "result.json").config["dataset"]["options"]
    config = tiny_config(f"checkpoint={finished_run / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    config.dataset.options = options
    evaluate(config, tmp_path / "evaluated")
    left = {path.name for path in (tmp_path / "evaluated").iterdir()}
    assert "result.json" in left
    assert not {"analysis.json", "per_query.parquet", "camera_pairs.csv"} & left


def test_anything_but_true_and_false_is_refused(tiny_config, tmp_path):
    config = tiny_config("checkpoint=x.ckpt", "dataset=synthetic_reid", "analysis=all", command="evaluate")
    with pytest.raises(ConfigError, match="analysis=all: give true or false"):
        evaluate(config, tmp_path)
