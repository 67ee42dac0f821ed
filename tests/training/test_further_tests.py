"""A training that evaluates on further data sets gives each the numbers that `evaluate` gives it."""

import pandas as pd
import pytest

import bdbnet
from bdbnet.config import ConfigError
from bdbnet.datasets import DatasetError
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.reporting import write_report
from bdbnet.reporting.terminal import metrics_table
from bdbnet.results import read_result
from bdbnet.training.runs import train


@pytest.fixture
def other_set(tiny_data, tmp_path):
    """The rendered test images as a table of their own, without cameras and with fewer identities."""
    from bdbnet.datasets import load_manifest

    manifest = load_manifest("synthetic_reid", tiny_data / "synthetic_reid", **OPTIONS)
    rows = manifest.table[(manifest.table["split"] != "train") & (manifest.table["label"] != 0)]
    table = pd.DataFrame(
        {"path": [str(manifest.root / path) for path in rows["path"]], "label": rows["label"], "split": "test"}
    )
    table["path"] = [str(path).removeprefix(f"{manifest.root}/") for path in table["path"]]
    table.to_csv(tmp_path / "others.csv", index=False)
    return tmp_path / "others.csv", manifest.root


OPTIONS = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 2, "cameras": 2, "distractors": 2,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip


def test_a_further_data_set_is_evaluated_beside_the_own_one(tiny_config, other_set, tmp_path):
    table, root = other_set
    entry = f"table dataset.manifest={table} dataset.root={root} dataset.pad_test=false"
    plain = train(tiny_config("evaluation.every_n_epochs=1"), tmp_path / "plain")
    both = train(tiny_config("evaluation.every_n_epochs=1", f'evaluations=["{entry}"]'), tmp_path / "both")
    assert both.metrics == plain.metrics
    assert plain.further is None
    assert "further" not in (tmp_path / "plain" / "result.json").read_text()
    found = read_result(tmp_path / "both" / "result.json").further
    assert found is not None
    assert list(found) == ["others"]
    alone = evaluate(
        tiny_config(
            f"checkpoint={tmp_path / 'both' / 'last.ckpt'}", "dataset=table", f"dataset.manifest={table}",
            f"dataset.root={root}", "dataset.pad_test=false", "trainer.accelerator=cpu", command="evaluate",
        ),
        tmp_path / "alone",
    )  # fmt: skip
    assert found["others"] == pytest.approx(dict(alone.metrics))
    assert f"On others: Recall@1 {100 * found['others']['recall@1']:.1f} %" in metrics_table(both)
    assert "On others: Recall@1" in write_report(tmp_path / "both", queries=0).read_text()
    history = pd.read_csv(tmp_path / "both" / "history.csv")
    assert history["others/recall@1"].notna().all()
    assert history["rank1"].tolist() == pd.read_csv(tmp_path / "plain" / "history.csv")["rank1"].tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("evaluations=cuhk03_detect", "evaluations=cuhk03_detect: give a list of data sets"),
        ("evaluations=['cuhk03_detect +dataset.rot=a']", "dataset.rot: .*did you mean dataset.root"),
        ("evaluations=[no_such_set]", "evaluations: no_such_set: .*no_such_set"),
        ("evaluations=[synthetic_reid,synthetic_reid]", "synthetic_reid: the same data set is in evaluations twice"),
    ],
)
def test_entries_that_are_none_are_named(tiny_config, tmp_path, value, message):
    options = [f"++dataset.options.{key}={value}".replace(" ", "") for key, value in OPTIONS.items()]
    with pytest.raises((ConfigError, DatasetError), match=message):
        train(tiny_config(value.replace("[synthetic_reid,synthetic_reid]", _twice(options))), tmp_path / "run")


def test_two_sets_of_one_name_are_numbered(tiny_config, tmp_path):
    settings = [f"++dataset.options.{key}={value}".replace(" ", "") for key, value in OPTIONS.items()]
    entries = [" ".join(["synthetic_reid", *settings, f"dataset.options.seed={seed}"]) for seed in (1, 2)]
    found = train(tiny_config("trainer.max_epochs=1", f'evaluations=["{entries[0]}","{entries[1]}"]'), tmp_path).further
    assert found is not None
    assert list(found) == ["synthetic_reid", "synthetic_reid_2"]


def _twice(options: list[str]) -> str:
    entry = " ".join(["synthetic_reid", *options])
    return f'["{entry}","{entry}"]'


def test_without_a_dataset_a_checkpoint_is_evaluated_on_its_own(tiny_config, finished_run, tmp_path):
    arguments = [f"checkpoint={finished_run / 'last.ckpt'}", "trainer.accelerator=cpu"]
    result = evaluate(tiny_config(*arguments, command="evaluate"), tmp_path)
    trained = read_result(finished_run / "result.json")
    assert result.metrics == trained.metrics
    assert result.protocol == trained.protocol
    assert result.data["fingerprint"] == trained.data["fingerprint"]


def test_without_a_dataset_a_saved_folder_is_evaluated_as_its_checkpoint(tiny_config, finished_run, tmp_path):
    folder = bdbnet.load(finished_run / "last.ckpt", device="cpu").save(tmp_path / "model")
    config = tiny_config(f"checkpoint={folder}", "trainer.accelerator=cpu", command="evaluate")
    assert evaluate(config, tmp_path / "run").metrics == read_result(finished_run / "result.json").metrics
