"""Switches of the evaluation: each changes the numbers as it says, and stands in the result."""

import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

import bdbnet
from bdbnet.config import ConfigError
from bdbnet.evaluate import main
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.evaluate import evaluate as run_evaluation
from bdbnet.evaluation.module import most_alike
from bdbnet.evaluation.protocol import build_metric
from bdbnet.evaluation.test_set import EvaluationError
from bdbnet.results import read_result
from bdbnet.retrieval import reid_metrics


@pytest.fixture
def evaluate(tiny_config, finished_run, tmp_path):
    """``evaluate("evaluation.flip=true")``: the result of evaluating a small trained network."""
    options = {"checkpoint": f"checkpoint={finished_run}/last.ckpt", "dataset": "dataset=synthetic_reid"}
    data = [f"dataset.options.{key}={value}".replace(" ", "") for key, value in TINY.items()]
    return lambda *overrides, folder=tmp_path: run_evaluation(
        tiny_config(*options.values(), *data, *overrides, command="evaluate"), folder
    )


TINY = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 2, "cameras": 2, "distractors": 2,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip


SWITCHES = {
    "evaluation.flip=true": ("flip", True),
    "evaluation.scales=[1,1.5]": ("scales", (1, 1.5)),
    "evaluation.distance=cosine": ("measure", "cosine"),
    "evaluation.query_expansion={k:2,alpha:3}": ("query_expansion", {"k": 2, "alpha": 3}),
    "evaluation.query_expansion={k:2,gallery:true}": ("query_expansion", {"k": 2, "alpha": 0, "gallery": True}),
    "evaluation.rerank={k1:4,k2:2}": ("rerank", {"k1": 4, "k2": 2, "lambda": 0.3}),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_the_evaluation_and_is_stamped_into_the_result(evaluate, switch, tmp_path):
    name, value = SWITCHES[switch]
    evaluate(switch)
    result = read_result(tmp_path / "result.json")
    assert getattr(result.protocol, name) == value
    reordering = name in ("query_expansion", "rerank")
    assert (result.plain is not None) is reordering
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    plain = evaluate("overwrite=true")
    plain_lists = pd.read_parquet(tmp_path / "topk.parquet")
    if reordering:
        assert result.plain == plain.metrics
        assert not lists["gallery_index"].equals(plain_lists["gallery_index"])
    else:
        assert not lists["distance"].equals(plain_lists["distance"])


def test_metrics_and_lists_are_those_of_the_re_ranked_order(evaluate, tmp_path):
    result = evaluate("evaluation.rerank={k1:4,k2:2}", "evaluation.top_k=3")
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    valid = lists.groupby("query_index")["correct"]
    assert result.metrics["rank1"] == pytest.approx(lists[lists["rank"] == 1]["correct"].mean())
    assert result.metrics["rank1"] != result.metrics["mAP"]
    assert valid.size().eq(3).all()


def test_single_gallery_shot_is_a_protocol_of_its_own(evaluate):
    result = evaluate("dataset.protocol=reid_single_shot", "evaluation.single_shot=7")
    assert set(result.metrics) == {"rank1", "rank5", "rank10", "valid_queries"}
    assert (result.protocol.task, result.protocol.single_shot) == ("reid_single_shot", 7)
    assert 0 < result.metrics["rank1"] <= result.metrics["rank5"] <= 1


@pytest.fixture
def compared_by_cosine(finished_run, tmp_path):
    """The network in a folder that says so."""
    embedder = bdbnet.load(finished_run / "last.ckpt", device="cpu")
    embedder.distance_name = "cosine"
    return embedder.save(tmp_path / "model")


def test_embeddings_are_compared_by_the_networks_own_distance(evaluate, compared_by_cosine, tmp_path):
    source = f"checkpoint={compared_by_cosine}"
    own = evaluate(source)
    assert own.protocol.measure == own.config["evaluation"]["distance"] == "cosine"
    assert evaluate(source).metrics == evaluate("evaluation.distance=cosine", folder=tmp_path / "typed").metrics
    with pytest.raises(ConfigError, match=r"evaluation\.distance was cosine, is euclidean"):
        evaluate(source, "evaluation.distance=euclidean")
    assert evaluate(folder=tmp_path / "trained").protocol.measure == "euclidean"


def test_the_command_says_by_which_distance(tiny_data, compared_by_cosine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [f"dataset.options.{key}={value}".replace(" ", "") for key, value in TINY.items()]
    arguments = [
        f"checkpoint={compared_by_cosine}", "dataset=synthetic_reid", *options, f"data_root={tiny_data}",
        "loading.num_workers=0",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    main()
    assert (
        "compared by cosine distance, the network's own; evaluation.distance= sets another" in capsys.readouterr().out
    )


BAD = {
    "evaluation.distance=manhattan": "evaluation.distance=manhattan: choose one of euclidean, cosine",
    "evaluation.rerank={k3:4}": "rerank has no setting k3",
    "evaluation.rerank={k1:0}": "k1",
    "evaluation.rerank=yes_please": "evaluation.rerank=yes_please: give true, null or some of its settings",
    "evaluation.query_expansion={neighbours:3}": "evaluation.query_expansion",
    "evaluation.scales=[0]": r"evaluation.scales=\[0\]",
    "evaluation.scales=1.5": "evaluation.scales=1.5: give a list",
    "evaluation.scales=[true]": "evaluation.scales",
    "evaluation.flip=both": "evaluation.flip=both: give true or false",
    "evaluation.single_shot=0": "evaluation.single_shot=0",
}


@pytest.mark.parametrize("override", BAD)
def test_a_bad_setting_is_named_before_anything_is_loaded(evaluate, override):
    with pytest.raises(ConfigError, match=BAD[override]):
        evaluate(override)


def test_k1_larger_than_the_test_set_says_so(evaluate):
    with pytest.raises(RuntimeError, match="k1"):
        evaluate("evaluation.rerank={k1:400}")


def test_the_evaluator_searches_as_the_function_does(tiny_config):
    metric = build_metric(tiny_config("evaluation.rerank={k1:4,k2:2,lambda:0.5}", "evaluation.query_expansion={k:2}"))
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels, cameras = torch.arange(40) % 6, torch.arange(40) // 6 % 3
    is_query = torch.arange(40) < 12
    metric.update(embeddings, labels, cameras, is_query, torch.arange(40))
    sides = [part for values in (embeddings, labels, cameras) for part in (values[is_query], values[~is_query])]
    assert metric.compute() == reid_metrics(
        *sides, rerank=metric.search.rerank, query_expansion=metric.search.query_expansion
    )
    assert metric.compute_plain() == reid_metrics(*sides)


def test_an_embedding_of_zeros_is_named(evaluate, monkeypatch):
    whole = Embedder.embed_prepared

    def without_first(self, images):
        embeddings = whole(self, images)
        embeddings[0] = 0
        return embeddings

    monkeypatch.setattr(Embedder, "embed_prepared", without_first)
    with pytest.warns(
        UserWarning, match=r"of 18 test images have an embedding of zeros.*the first is row \d+ \(gallery"
    ):
        evaluate()


def test_one_embedding_for_most_images_is_a_collapsed_network(evaluate, monkeypatch):
    monkeypatch.setattr(Embedder, "embed_prepared", lambda self, images: torch.ones(len(images), 7))
    with pytest.warns(UserWarning, match="18 of 18 test images have the same embedding: the network has collapsed"):
        evaluate()


@pytest.mark.parametrize(
    ("rows", "expected"), [([], 0), ([3], 1), ([1, 2, 3, 4], 1), ([5, 1, 1, 1, 1], 4), ([1, 1, 5], 2)]
)
def test_alike_are_those_that_equal_one_of_three(rows, expected):
    assert most_alike(torch.tensor(rows, dtype=torch.float32)[:, None].expand(-1, 4)) == expected


def test_a_gpu_out_of_memory_is_told_with_what_to_lower(evaluate, monkeypatch):
    def full(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Embedder, "embed_prepared", full)
    with pytest.raises(
        EvaluationError, match=r"16 test images of 64 x 32 at once in 32-true: lower loading\.test_batch_size"
    ):
        evaluate()


def test_results_of_other_settings_are_not_replaced(evaluate, tmp_path):
    first = evaluate("evaluation.top_k=2")
    kept = (tmp_path / "result.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"evaluation.flip was False, is True.*run_name=<another name>.*overwrite=true"
    ):
        evaluate("evaluation.top_k=2", "evaluation.flip=true")
    assert (tmp_path / "result.json").read_bytes() == kept
    on_others = replace(first, data=first.data | {"fingerprint": "0"})
    on_others.write(tmp_path / "result.json")
    with pytest.raises(ConfigError, match=r"fingerprint of the data was 0, is \w+.*overwrite=true"):
        evaluate("evaluation.top_k=2")
    first.write(tmp_path / "result.json")
    assert evaluate("evaluation.top_k=2", "loading.num_workers=0", "analysis=true").metrics == first.metrics
    (tmp_path / "report.html").touch()
    evaluate("evaluation.top_k=0", "overwrite=true")
    assert {path.name for path in tmp_path.iterdir()} & {"topk.parquet", "report.html", "analysis.json"} == set()
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ConfigError, match=r"not a complete result.*overwrite=true"):
        evaluate()


def test_the_result_of_a_training_is_not_replaced_by_an_evaluation(evaluate, finished_run):
    before = (finished_run / "result.json").read_bytes()
    with pytest.raises(ConfigError, match="kind was train, is evaluate"):
        evaluate(folder=finished_run)
    assert (finished_run / "result.json").read_bytes() == before
