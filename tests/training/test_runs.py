"""Whole runs at toy size: what they leave, how they resume, what stops them."""

import errno
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.test_set import EvaluationError
from bdbnet.evaluation.trainer import build_trainer
from bdbnet.files import LOCK, WriteError
from bdbnet.loading import ImageError, SamplerError
from bdbnet.loading.from_config import build_manifest
from bdbnet.models import CheckpointError
from bdbnet.models.weights import digest_of
from bdbnet.results import read_result
from bdbnet.training.runs import train


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
    assert result.best["metrics"]["rank1"] == pytest.approx(history["rank1"].max())
    best = torch.load(finished_run / "best.ckpt", weights_only=True)
    assert best["epoch"] + 1 == result.best["epoch"]
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
    evaluated = evaluate(config, tmp_path)
    assert evaluated.metrics == pytest.approx(read_result(finished_run / "result.json").metrics)
    assert evaluated.protocol.image_size == (64, 32)  # the checkpoint's, not the dataset's default
    assert read_result(tmp_path / "result.json").metrics == evaluated.metrics


def test_no_progress_bar_where_none_is_asked_for(tiny_config, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr("bdbnet.training.runs.build_trainer", lambda *a: built.append(build_trainer(*a)) or built[0])
    train(tiny_config("trainer.max_epochs=1"), tmp_path)
    assert built[0].progress_bar_callback is None


def test_tensorboard_files_lie_in_the_run_folder(tiny_config, tmp_path):
    config = tiny_config("logger=tensorboard", "trainer.max_epochs=1", f"logger.logger.save_dir={tmp_path}")
    train(config, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def with_table(monkeypatch, table: pd.DataFrame, root: Path) -> None:
    monkeypatch.setattr("bdbnet.loading.from_config.load_manifest", lambda *_, **__: Manifest(table, root))


def test_queries_without_any_match_are_refused_before_training(tiny_config, tmp_path, monkeypatch):
    manifest = build_manifest(tiny_config())
    table = manifest.table.copy()
    table.loc[table["split"] == "gallery", "label"] = 0
    with_table(monkeypatch, table, manifest.root)
    with pytest.raises(ConfigError, match="none of the 8 queries has a true match"):
        train(tiny_config(), tmp_path)


def test_queries_absent_from_the_gallery_are_counted_and_left_out(tiny_config, tmp_path, monkeypatch):
    manifest = build_manifest(tiny_config())
    table = manifest.table
    victim = table.loc[table["split"] == "query", "label"].iloc[0]
    table = table[(table["split"] != "gallery") | (table["label"] != victim)].reset_index(drop=True)
    with_table(monkeypatch, table, manifest.root)
    with pytest.warns(UserWarning, match="2 queries have no true match"):
        result = train(tiny_config("trainer.max_epochs=1"), tmp_path)
    assert result.metrics["valid_queries"] == 6


def test_mixed_splits_are_refused(tiny_config, tmp_path, monkeypatch):
    manifest = build_manifest(tiny_config())
    table = manifest.table.copy()
    table.loc[table["split"] == "query", "split"] = "test"
    with_table(monkeypatch, table, manifest.root)
    with pytest.raises(ConfigError, match="split test"):
        train(tiny_config(), tmp_path)


def test_lists_without_cameras_hold_the_matches(tiny_config, tmp_path, monkeypatch):
    manifest = build_manifest(tiny_config())
    with_table(monkeypatch, manifest.table.assign(camera=-1), manifest.root)
    result = train(tiny_config("trainer.max_epochs=1"), tmp_path)
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    assert lists[lists["rank"] == 1]["correct"].mean() == pytest.approx(result.metrics["rank1"])


def test_checkpoints_say_what_was_saved_in_them(finished_run):
    last, best = (torch.load(finished_run / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    for checkpoint in (last, best):
        digests = checkpoint["bdbnet"]["digests"]
        assert digests == {name: digest_of(checkpoint[name]) for name in digests}
    assert last["bdbnet"]["digests"].keys() >= {"state_dict", "optimizer_states", "lr_schedulers", "loops"}
    assert "state_dict" in best["bdbnet"]["digests"]


def test_embeddings_that_are_not_finite_are_named(finished_run, tiny_config, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["state_dict"]["network.branches.global_.reduction.0.weight"].fill_(torch.nan)
    del content["bdbnet"]["digests"]
    torch.save(content, tmp_path / "spoilt.ckpt")
    config = tiny_config(f"checkpoint={tmp_path / 'spoilt.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    config.dataset.options = read_result(finished_run / "result.json").config["dataset"]["options"]
    with pytest.raises(EvaluationError, match="NaN"):
        evaluate(config, tmp_path)


def test_a_file_of_one_tensor_is_no_checkpoint(tiny_config, tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    overrides = [
        f"checkpoint={tmp_path / 'tensor.pth'}",
        "dataset=synthetic_reid",
        "model=baseline",
        "backbone=osnet_x0_25",
    ]
    with pytest.raises(CheckpointError, match=r"tensor\.pth"):
        evaluate(tiny_config(*overrides, command="evaluate"), tmp_path)


def test_bare_weights_need_a_network(finished_run, tiny_config, tmp_path):
    torch.save({"conv1.conv.weight": torch.zeros(1)}, tmp_path / "bare.pth")
    config = tiny_config(f"checkpoint={tmp_path / 'bare.pth'}", "dataset=synthetic_reid", command="evaluate")
    with pytest.raises(CheckpointError, match=r"not recognised. Its keys: conv1.conv.weight \(1,\).*model="):
        evaluate(config, tmp_path)
    config = tiny_config(
        f"checkpoint={finished_run / 'last.ckpt'}", "dataset=synthetic_reid", "model=bdb", command="evaluate"
    )
    with pytest.raises(ConfigError, match="knows its own network"):
        evaluate(config, tmp_path)


def test_a_damaged_image_is_named(tiny_config, tiny_data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    config = tiny_config(f"data_root={root}", "trainer.max_epochs=1", "sampler.epoch=images")
    victim = Path(build_manifest(config).subset("train").paths[0])
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ImageError, match=victim.name):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampler.batch_size=9", "sampler.batch_size=9"),
        ("sampler.batch_size=128", "identities"),
        ("trainer.devices=3", "2 identities .* for 3 processes, .*use at most 2"),
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
        ("sampler.images_per_identity=0", "sampler.images_per_identity"),
        ("evaluation.ranks=[0]", "evaluation.ranks"),
        ("evaluation.ap_at=0", "evaluation.ap_at"),
        ("evaluation.chunk_memory_mb=0", "evaluation.chunk_memory_mb"),
        ("evaluation.every_n_epochs=0", "evaluation.every_n_epochs"),
        ("evaluation.top_k=-1", "evaluation.top_k"),
        ("seed=-1", "seed=-1"),
        ("dataset.image_size=64", "image_size=64"),
        ("dataset.image_size=[64]", "image_size"),
        ("augmentation.flip=2", "flip"),
        ("loading.num_workers=-1", "loading.num_workers"),
        ("trainer.max_time=5m", "5m"),
        ("trainer.max_time=45", "trainer"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
        ("callbacks.checkpoint_every_n_epochs=-1", "checkpoint_every_n_epochs"),
        ("+trainer.limit_val_batches=2", "limit_val_batches"),
        ("+trainer.fast_dev_run=true", "fast_dev_run"),
        ("callbacks.extra=[{_target_:pytorch_lightning.callbacks.LearningRateMonitor}]", "LearningRateMonitor"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(override, said, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=said) as stop:
        train(tiny_config(override), tmp_path)
    assert type(stop.value).__module__.startswith("bdbnet.")


def test_a_full_disk_is_named_and_the_last_checkpoint_is_kept(tiny_config, tmp_path, monkeypatch, capsys):
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        if sum("last.ckpt" in name for name in calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"last\.ckpt can't be written: No space left on device; free some space"):
        train(tiny_config(), tmp_path)
    assert f"Stopped in epoch 2. Kept: {tmp_path / 'last.ckpt'}." in capsys.readouterr().out
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    monkeypatch.undo()
    assert train(tiny_config("ckpt_path=last"), tmp_path).epochs == 2


def test_what_was_evaluated_is_said_where_it_can_not_be_written(
    finished_run, tiny_config, tmp_path, monkeypatch, capsys
):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = tiny_config(f"checkpoint={finished_run / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    config.dataset.options = read_result(finished_run / "result.json").config["dataset"]["options"]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"result\.json can't be written"):
        evaluate(config, tmp_path)
    rank1 = read_result(finished_run / "result.json").metrics["rank1"]
    assert f"measured, but not written: Rank-1 {100 * rank1:.1f} %" in capsys.readouterr().out


def test_a_folder_that_another_process_trains_in_is_refused(tiny_config, tmp_path):
    with FileLock(tmp_path / LOCK), pytest.raises(ConfigError, match=r"another process is training there.*run_name="):
        train(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    train(tiny_config("trainer.max_epochs=1"), tmp_path)


def test_retrieval_is_evaluated_by_recall(tiny_config, tmp_path):
    options = {"train_classes": 4, "test_classes": 4, "images_per_class": 3, "image_size": [32, 32], "workers": 1}
    config = tiny_config(
        "dataset=synthetic_retrieval", "dataset.image_size=[64,64]", "trainer.max_epochs=1", options=options
    )
    result = train(config, tmp_path)
    recalls = {"recall@1", "recall@2", "recall@4", "recall@8"}
    assert set(result.metrics) == recalls | {"map@r", "r_precision", "valid_queries"}
    assert result.protocol.task == "retrieval"
    assert result.config["dropping"]["width_ratio"] == 0.5
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    assert (lists["query_path"] != lists["gallery_path"]).all()
    assert lists[lists["rank"] == 1]["correct"].mean() == pytest.approx(result.metrics["recall@1"])
