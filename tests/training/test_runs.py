"""Whole runs at toy size: what they leave, how they resume, what stops them."""

import errno
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.loading import ImageError, SamplerError
from bdbnet.models import CheckpointError
from bdbnet.results import read_result
from bdbnet.training.callbacks import History, TrainingError
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.module import EvaluationError, ReIDModule
from bdbnet.training.resuming import prepare_folder
from bdbnet.training.runs import evaluate, train
from bdbnet.training.setup import build_manifest, build_trainer


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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1e-5", "optimizer.lr was 0.001, is 1e-05"),
        ("trainer.max_epochs=9", "trainer.max_epochs"),
        ("dropping=none", "dropping._target_"),
        ("seed=2", "seed was 1, is 2"),
    ],
)
def test_a_run_does_not_go_on_with_settings_that_the_checkpoint_would_override(
    override, said, finished_run, tiny_config, tmp_path
):
    with pytest.raises(ConfigError, match=said):
        train(tiny_config(f"ckpt_path={finished_run / 'last.ckpt'}", override), tmp_path)


def test_a_finished_run_can_be_judged_again_elsewhere(finished_run, tiny_config, tmp_path):
    settings = ["evaluation.before_training=true", "evaluation.every_n_epochs=1"]
    result = train(tiny_config(*settings, f"ckpt_path={finished_run / 'last.ckpt'}"), tmp_path)
    expected = read_result(finished_run / "result.json")
    assert result.metrics == pytest.approx(expected.metrics)
    assert result.best["epoch"] == 2  # of this folder there is the last epoch alone
    assert (tmp_path / "best.ckpt").is_file()


def test_weights_alone_are_nothing_to_go_on_from(finished_run, tiny_config, tmp_path):
    with pytest.raises(CheckpointError, match=r"backbone\.weights="):
        train(tiny_config(f"ckpt_path={finished_run / 'best.ckpt'}"), tmp_path)


def test_a_new_run_starts_from_the_weights_of_another(finished_run, tiny_config, tmp_path, capsys):
    train(tiny_config(f"backbone.weights={finished_run / 'last.ckpt'}", "trainer.max_epochs=1"), tmp_path)
    assert "backbone, branches.global, branches.dropping from" in capsys.readouterr().out


def test_a_run_that_is_stopped_by_time_is_whole_epochs_and_judged(tiny_config, tmp_path):
    result = train(tiny_config("trainer.max_epochs=5000", "trainer.max_time=00:00:00:01"), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert result.epochs == len(history) < 5000
    assert history["rank1"].iloc[-1] == pytest.approx(result.metrics["rank1"])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == result.epochs


def test_time_that_is_over_before_the_first_epoch_is_said(tiny_config, tmp_path):
    with pytest.raises(TrainingError, match="max_time"):
        train(tiny_config("trainer.max_time=00:00:00:00"), tmp_path)


def test_the_best_checkpoint_survives_an_interruption(tiny_config, tmp_path, monkeypatch):
    """Scores .1, .9, .5, .2 with a stop after the second epoch: result and file both name the second."""
    scores = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.2}
    judge, begin_epoch = ReIDModule.on_validation_epoch_end, History.on_train_epoch_start

    def scored(self):
        judge(self)
        self.metrics["rank1"] = scores[self.current_epoch]
        self.log_dict(self.metrics)

    def stop_in_third_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    overrides = ["trainer.max_epochs=4", "evaluation.every_n_epochs=1"]
    monkeypatch.setattr(ReIDModule, "on_validation_epoch_end", scored)
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_third_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config(*overrides), tmp_path)
    result = train(tiny_config(*overrides, "ckpt_path=last"), tmp_path)
    assert result.best["epoch"] == 2
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1


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
    monkeypatch.setattr("bdbnet.training.setup.load_manifest", lambda *_, **__: Manifest(table, root))


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


def test_embeddings_that_are_not_finite_are_named(finished_run, tiny_config, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["state_dict"]["network.branches.global.reduction.0.weight"].fill_(torch.nan)
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
    with pytest.raises(ConfigError, match="leave one out"):
        prepare_folder(tmp_path, "last", overwrite=True)
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
