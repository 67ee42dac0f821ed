"""Whole runs at toy size: what they leave, how they resume, what stops them."""

import errno
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from bdbnet.config import ConfigError
from bdbnet.loading import ImageError, SamplerError
from bdbnet.models import CheckpointError
from bdbnet.results import read_result
from bdbnet.training.callbacks import History, TrainingError
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.runs import evaluate, prepare_folder, train


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "finished"


@pytest.fixture
def finished_run(finished, tiny_config) -> Path:
    """Folder of a run of two epochs that was judged before, during and after; shared by the tests of this file."""
    if not finished.exists():
        train(tiny_config("evaluation.before_training=true", "evaluation.every_n_epochs=1"), finished)
    return finished


def test_a_run_leaves_everything_that_was_measured(finished_run):
    result = read_result(finished_run / "result.json")
    history = pd.read_csv(finished_run / "history.csv")
    assert {"last.ckpt", "best.ckpt", "topk.parquet"} <= {path.name for path in finished_run.iterdir()}
    assert result.kind == "train"
    assert result.epochs == 2
    assert set(result.metrics) == {"rank1", "rank5", "rank10", "mAP", "mINP", "valid_queries"}
    assert result.before is not None
    assert result.before.keys() == result.metrics.keys()
    assert result.embedding_dim == 1536
    assert result.protocol.image_size == (64, 32)
    assert list(history["epoch"]) == [1, 2]
    assert history["mAP"].iloc[-1] == pytest.approx(result.metrics["mAP"])
    assert (
        history["mAP"].max() == pytest.approx(history["mAP"][result.best["epoch"] - 1])
        or "rank1" in result.best["metrics"]
    )
    parts = [column for column in history if column.startswith("loss/")]
    assert len(parts) == 4
    assert history["loss"].to_numpy() == pytest.approx(history[parts].sum(axis=1).to_numpy(), rel=1e-5)


def test_the_first_epoch_s_rate_and_loss_are_its_own(finished_run, tiny_config):
    config = tiny_config()
    history = pd.read_csv(finished_run / "history.csv")
    # Two epochs of 400 squeezed: no epoch lies inside the warm-up, the second lies after the first decay.
    assert history["learning_rate"].tolist() == pytest.approx([config.optimizer.lr, config.optimizer.lr / 10])


def test_ranking_lists_agree_with_the_metrics(finished_run):
    result = read_result(finished_run / "result.json")
    lists = pd.read_parquet(finished_run / "topk.parquet")
    first = lists[lists["rank"] == 1]
    assert first["correct"].mean() == pytest.approx(result.metrics["rank1"])
    assert not (
        (lists["query_label"] == lists["gallery_label"]) & (lists["query_camera"] == lists["gallery_camera"])
    ).any()
    assert lists.groupby("query_index")["distance"].apply(lambda d: d.is_monotonic_increasing).all()


def test_evaluating_the_checkpoint_gives_the_run_s_own_numbers(finished_run, tiny_config, tmp_path):
    config = tiny_config(f"checkpoint={finished_run / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    config.dataset.options = read_result(finished_run / "result.json").config["dataset"]["options"]
    judged = evaluate(config, tmp_path)
    assert judged.metrics == pytest.approx(read_result(finished_run / "result.json").metrics)
    assert judged.protocol.image_size == (64, 32)  # the checkpoint's, not the dataset's default
    assert read_result(tmp_path / "result.json").metrics == judged.metrics


def test_a_resumed_run_ends_with_the_same_weights(finished_run, tiny_config, tmp_path, monkeypatch):
    """Order, masks, rates and optimiser state are restored: bit for bit what an uninterrupted run gives."""
    begin_epoch = History.on_train_epoch_start

    def stop_in_second_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    overrides = ["evaluation.before_training=true", "evaluation.every_n_epochs=1"]
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config(*overrides), tmp_path)
    assert (tmp_path / "last.ckpt").is_file()
    result = train(tiny_config(*overrides, "ckpt_path=last"), tmp_path)
    expected, found = weights_of(finished_run), weights_of(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert result.metrics == read_result(finished_run / "result.json").metrics
    assert result.before == read_result(finished_run / "result.json").before
    assert list(pd.read_csv(tmp_path / "history.csv")["epoch"]) == [1, 2]


def test_an_interruption_says_how_to_go_on(tiny_config, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(History, "on_train_batch_end", interrupt)
    with pytest.raises(SystemExit):
        train(tiny_config(), tmp_path)
    assert "Interrupted in epoch 1. No epoch was finished." in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_is_named(value, tiny_config, tmp_path, monkeypatch):
    forward, calls = BranchLosses.forward, []

    def spoilt(self, outputs, labels):
        total, parts = forward(self, outputs, labels)
        calls.append(1)
        return (total * value, parts) if len(calls) == 3 else (total, parts)

    monkeypatch.setattr(BranchLosses, "forward", spoilt)
    with pytest.raises(TrainingError) as stop:
        train(tiny_config("trainer.max_epochs=3"), tmp_path)
    message = str(stop.value)
    assert "epoch 2, step 1" in message  # an epoch has two
    assert "triplet_global = " in message
    assert ".jpg" in message or ".png" in message
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in kept["state_dict"].values() if tensor.is_floating_point())
    assert not (tmp_path / "result.json").exists()


def test_an_earlier_run_is_neither_overwritten_nor_continued_unasked(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"x")
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(ConfigError, match="ckpt_path=last"):
        prepare_folder(tmp_path, None, overwrite=False)
    assert prepare_folder(tmp_path, "last", overwrite=False) == tmp_path / "last.ckpt"
    assert prepare_folder(tmp_path, None, overwrite=True) is None
    assert list(tmp_path.iterdir()) == []
    assert prepare_folder(tmp_path, "last", overwrite=False) is None
    with pytest.raises(ConfigError, match="no such file"):
        prepare_folder(tmp_path, str(tmp_path / "other.ckpt"), overwrite=False)


def test_a_checkpoint_of_another_architecture_is_refused(finished_run, tiny_config, tmp_path):
    shutil.copy(finished_run / "last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="another architecture"):
        train(tiny_config("ckpt_path=last", "model=baseline"), tmp_path)


def test_a_truncated_checkpoint_is_refused(finished_run, tiny_config, tmp_path):
    content = (finished_run / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        train(tiny_config("ckpt_path=last"), tmp_path)
    config = tiny_config(f"checkpoint={tmp_path / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        evaluate(config, tmp_path)


def test_bare_weights_need_a_network(finished_run, tiny_config, tmp_path):
    torch.save({"conv1.conv.weight": torch.zeros(1)}, tmp_path / "bare.pth")
    config = tiny_config(f"checkpoint={tmp_path / 'bare.pth'}", "dataset=synthetic_reid", command="evaluate")
    with pytest.raises(ConfigError, match="model= and backbone="):
        evaluate(config, tmp_path)
    config = tiny_config(
        f"checkpoint={finished_run / 'last.ckpt'}", "dataset=synthetic_reid", "model=bdb", command="evaluate"
    )
    with pytest.raises(ConfigError, match="knows its own network"):
        evaluate(config, tmp_path)


def test_a_damaged_image_is_named(tiny_config, tiny_data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    victim = sorted(root.rglob("train/*"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ImageError, match=victim.name):
        train(tiny_config(f"data_root={root}", "trainer.max_epochs=1", "sampler.epoch=images"), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampler.batch_size=9", "sampler.batch_size=9"),
        ("sampler.batch_size=128", "identities"),
        ("sampler.images_per_identity=0", "images_per_identity"),
    ],
)
def test_a_batch_that_cannot_be_drawn_is_refused(override, said, tiny_config, tmp_path):
    with pytest.raises(SamplerError, match=said):
        train(tiny_config(override), tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+trainer.max_epoch=3", "max_epoch"),
        ("trainer.precision=8-bit", "precision"),
        ("trainer.accelerator=abacus", "abacus"),
        ("optimizer._target_=torch.load", "allow-list"),
        ("loss.metric.margin=-1", "margin"),
        ("evaluation.normalize=l3", "evaluation.normalize"),
        ("dropping.height_ratio=1.5", "height_ratio"),
        ("model.branches=[local]", "local"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(override, said, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=said) as stop:
        train(tiny_config(override), tmp_path)
    assert type(stop.value).__module__.startswith("bdbnet.")


def test_a_full_disk_ends_the_run_with_the_system_s_words(tiny_config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

    monkeypatch.setattr("lightning_fabric.plugins.io.torch_io._atomic_save", full)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_config(), tmp_path)


def test_retrieval_is_judged_by_recall(tiny_config, tmp_path):
    options = {"train_classes": 4, "test_classes": 4, "images_per_class": 3, "image_size": [32, 32], "workers": 1}
    config = tiny_config(
        "dataset=synthetic_retrieval", "dataset.image_size=[64,64]", "trainer.max_epochs=1", options=options
    )
    result = train(config, tmp_path)
    assert set(result.metrics) == {"recall@1", "recall@2", "recall@4", "recall@8", "valid_queries"}
    assert result.protocol.task == "retrieval"
    assert result.config["dropping"]["width_ratio"] == 0.5
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    assert (lists["query_path"] != lists["gallery_path"]).all()
    assert lists[lists["rank"] == 1]["correct"].mean() == pytest.approx(result.metrics["recall@1"])
