"""Which settings make two trainings one, and what a cell's folder says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from bdbnet.config import ConfigError
from bdbnet.reproduction.cells import LOCK, Cell, State, build_cell
from bdbnet.results import Protocol, Result

BASE = ("dataset=market1501", "backbone=osnet_x0_25")


def cell(root: Path, *overrides: str, **options) -> Cell:
    return build_cell((*BASE, *overrides), root, **options)


@pytest.mark.parametrize(
    "override",
    ["data_root=elsewhere", "dataset.root=elsewhere", "loading.num_workers=3", "loading.cache=packed", "trainer.devices=2",
     "logger=wandb", "evaluation.top_k=3", "callbacks.progress=false", "evaluation.recall_at=[1,5]", "sweep_name=x",
     "evaluation.flip=false", "evaluation.distance=euclidean", "evaluation.single_shot=100", "+trainer.limit_train_batches=null"],
)  # fmt: skip
def test_what_changes_no_number_makes_no_other_cell(tmp_path, override):
    assert cell(tmp_path, override).folder == cell(tmp_path).folder


@pytest.mark.parametrize(
    "override",
    ["loss=none", "model=baseline", "dropping.height_ratio=0.4", "dropping=dropblock", "augmentation=cutout",
     "trainer.max_epochs=3", "optimizer.lr=0.1", "evaluation.normalize=joint", "sampler.batch_size=64", "loss.metric.margin=0.3",
     "backbone.weights=some.pth", "dataset.image_size=[256,128]", "trainer.precision=32-true",
     "optimizer.weight_decay=0", "loss.label_smoothing=0"],
)  # fmt: skip
def test_what_changes_a_number_makes_another_cell(tmp_path, override):
    assert cell(tmp_path, override).folder != cell(tmp_path).folder


def test_what_only_the_dropping_branch_sees_does_not_concern_a_network_without_it(tmp_path):
    assert cell(tmp_path, "model=baseline", "dropping=dropout").folder == cell(tmp_path, "model=baseline").folder


def test_zero_is_a_value_and_not_an_absence(tmp_path):
    """Dropout at the rate 0 drops nothing; at the rate null it drops what the ratios say."""
    layer = ("dropping=dropout", "dropping.rate=0"), ("dropping=dropout", "dropping.rate=null")
    assert len({cell(tmp_path, *overrides).folder for overrides in layer}) == 2


def test_a_renamed_key_makes_no_other_cell(tmp_path):
    former, today = cell(tmp_path, "evaluation.measure=cosine"), cell(tmp_path, "evaluation.distance=cosine")
    assert former.folder == today.folder
    assert former.settings["evaluation.distance"] == "cosine"
    written(tmp_path, today)
    path = today.folder / "cell.json"
    record = json.loads(path.read_text())
    record["settings"]["evaluation.measure"] = record["settings"].pop("evaluation.distance")
    path.write_text(json.dumps(record))
    [found] = cell(tmp_path).elsewhere()
    assert "evaluation.distance=cosine" in found


def test_files_count_by_their_name(tmp_path):
    here, there = (cell(tmp_path, f"backbone.weights={folder}/w.pth") for folder in ("a", "b"))
    assert here.folder == there.folder


@pytest.mark.parametrize("override", ["seed=2", "run_name=x", "ckpt_path=last"])
def test_what_the_command_sets_itself_is_refused(tmp_path, override):
    with pytest.raises(ConfigError, match="set by the command"):
        cell(tmp_path, override)


def written(tmp_path: Path, mine: Cell, **changes) -> Path:
    """A finished run's record in the cell's folder of seed 1."""
    settings = {"evaluation": {"normalize": "none", "precision": "32-true", "query_pooling": "mean"}}
    record = Result(
        kind="train", metrics={"rank1": 0.5, "mAP": 0.4}, protocol=Protocol("reid", "market1501", (384, 128)),
        checkpoint="last", data={"fingerprint": "f"}, config=settings, seed=1, epochs=400,
    )  # fmt: skip
    folder = mine.folder / "seed=1"
    replace(record, **changes).write(folder / "result.json")
    (mine.folder / "cell.json").write_bytes(mine.record())
    return folder


def test_a_finished_run_is_done(tmp_path):
    mine = cell(tmp_path)
    assert mine.inspect(1).state is not State.DONE
    written(tmp_path, mine)
    run = mine.inspect(1)
    assert run.state is State.DONE
    assert run.result is not None
    assert run.result.metrics["rank1"] == 0.5


@pytest.mark.parametrize(
    ("changes", "state", "remark"),
    [
        ({"epochs": 399}, State.STARTED, "epoch 399 of 400"),
        ({"versions": {"bdbnet": "0.0.1"}}, State.OTHER, "bdbnet 0.0.1"),
        ({"seed": 7}, State.OTHER, "seed 7"),
        ({"config": {"evaluation": {"normalize": "joint", "precision": "32-true", "query_pooling": "mean"}}}, State.OTHER,
         "evaluation.normalize=joint"),
        ({"config": {"evaluation": {"normalize": "none", "precision": "32-true", "query_pooling": "mean", "ap_at": 50}}},
         State.OTHER, "evaluation.ap_at=50"),
    ],
)  # fmt: skip
def test_a_result_of_another_protocol_or_version_does_not_count_and_is_named(tmp_path, changes, state, remark):
    mine = cell(tmp_path)
    written(tmp_path, mine, **changes)
    run = mine.inspect(1)
    assert (run.state, run.result) == (state, None)
    assert remark in run.remark


def test_a_half_written_result_is_no_result(tmp_path):
    mine = cell(tmp_path)
    folder = written(tmp_path, mine)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text[: len(text) // 2])
    run = mine.inspect(1)
    assert run.state is State.STARTED
    assert "not a complete result" in run.remark


def test_results_of_other_protocols_and_versions_in_other_folders_are_named(tmp_path):
    mine = cell(tmp_path)
    written(tmp_path, cell(tmp_path, "evaluation.normalize=joint"))
    written(tmp_path, cell(tmp_path, code="0.0.1"))
    written(tmp_path, cell(tmp_path, "loss=none"))
    said = "; ".join(mine.elsewhere())
    assert "another protocol (evaluation.normalize=joint)" in said
    assert "bdbnet 0.0.1" in said
    assert len(mine.elsewhere()) == 2


def test_a_locked_folder_is_running(tmp_path):
    mine = cell(tmp_path)
    folder = mine.folder / "seed=1"
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        assert mine.inspect(1).state is State.RUNNING
    assert mine.inspect(1).state is not State.RUNNING


def test_absent_data_and_weights_are_named(tmp_path):
    assert "no such folder; python -m bdbnet.prepare dataset=market1501" in cell(tmp_path, "data_root=/nowhere").absent
    assert cell(tmp_path, "backbone.weights=/nowhere/w.pth").absent == "/nowhere/w.pth: no such file"
    assert cell(tmp_path, "dataset=table", "dataset.manifest=/nowhere.csv").absent == "/nowhere.csv: no such file"
    assert cell(tmp_path, "dataset=synthetic_reid", "data_root=/nowhere").absent == ""


def test_the_record_of_a_cell_says_what_it_is(tmp_path):
    record = json.loads(cell(tmp_path).record())
    assert record["settings"]["dataset.name"] == "market1501"
    assert record["overrides"] == list(BASE)
