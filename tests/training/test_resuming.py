"""Stops of every kind, and going on: what is kept, what is refused, what comes out."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.loading.from_config import read_manifest
from bdbnet.models import CheckpointError
from bdbnet.results import read_result
from bdbnet.training.callbacks import History, TrainingError
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.module import Record, TrainingModule
from bdbnet.training.resuming import check_resumable, clear_folder, prepare_folder
from bdbnet.training.runs import train
from modules import training_module

EVERY_EPOCH = "callbacks.checkpoint_every_seconds=0"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_a_resumed_run_ends_with_the_same_weights(finished_run, tiny_config, tmp_path, monkeypatch):
    """Order, masks, rates and optimiser state are restored: bit for bit what an uninterrupted run gives."""
    begin_epoch = History.on_train_epoch_start

    def stop_in_second_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    overrides = ["evaluation.before_training=true", "evaluation.every_n_epochs=1", EVERY_EPOCH]
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
        ("evaluation.ranks=[1,2]", "evaluation.ranks"),
        ("evaluation.ap_at=2", "evaluation.ap_at"),
    ],
)
def test_a_run_does_not_go_on_with_settings_that_the_checkpoint_would_override(
    override, said, finished_run, tiny_config, tmp_path
):
    with pytest.raises(ConfigError, match=said):
        train(tiny_config(f"ckpt_path={finished_run / 'last.ckpt'}", override), tmp_path)


def test_a_finished_run_can_be_evaluated_again_elsewhere(finished_run, tiny_config, tmp_path):
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


def test_a_run_that_is_stopped_by_time_is_whole_epochs_and_evaluated(tiny_config, tmp_path, capsys):
    result = train(tiny_config("trainer.max_epochs=5000", "trainer.max_time=00:00:00:01"), tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert result.epochs == len(history) < 5000
    assert f"stopped after epoch {result.epochs} of 5000" in capsys.readouterr().out
    assert history["rank1"].iloc[-1] == pytest.approx(result.metrics["rank1"])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == result.epochs
    again = train(tiny_config("trainer.max_epochs=5000", "trainer.max_time=00:00:00:01", "ckpt_path=last"), tmp_path)
    assert again.epochs > result.epochs  # the time of a resumed run is its own


def test_time_that_is_over_before_the_first_epoch_is_said(tiny_config, tmp_path):
    with pytest.raises(TrainingError, match="max_time"):
        train(tiny_config("trainer.max_time=00:00:00:00"), tmp_path)


def test_the_best_checkpoint_survives_an_interruption(tiny_config, tmp_path, monkeypatch):
    """Scores .1, .9, .5, .2 with a stop after the second epoch: result and file both name the second."""
    scores = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.2}
    evaluate, begin_epoch = TrainingModule.on_validation_epoch_end, History.on_train_epoch_start

    def scored(self):
        evaluate(self)
        self.metrics["rank1"] = scores[self.current_epoch]
        self.log_dict(self.metrics)

    def stop_in_third_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    overrides = ["trainer.max_epochs=4", "evaluation.every_n_epochs=1"]
    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", scored)
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_third_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config(*overrides), tmp_path)
    result = train(tiny_config(*overrides, "ckpt_path=last"), tmp_path)
    assert result.best["epoch"] == 2
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1


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
        train(tiny_config("trainer.max_epochs=3", EVERY_EPOCH), tmp_path)
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
    assert (tmp_path / "last.ckpt").is_file()  # until all settings have proved usable
    clear_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert prepare_folder(tmp_path, "last", overwrite=False) is None
    with pytest.raises(ConfigError, match="leave one out"):
        prepare_folder(tmp_path, "last", overwrite=True)
    with pytest.raises(ConfigError, match="no such file"):
        prepare_folder(tmp_path, str(tmp_path / "other.ckpt"), overwrite=False)


def test_a_checkpoint_of_another_architecture_is_refused(finished_run, tiny_config, tmp_path):
    shutil.copy(finished_run / "last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="does not match the architecture"):
        train(tiny_config("ckpt_path=last", "model=baseline"), tmp_path)


def test_a_truncated_checkpoint_is_refused(finished_run, tiny_config, tmp_path):
    content = (finished_run / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        train(tiny_config("ckpt_path=last"), tmp_path)
    config = tiny_config(f"checkpoint={tmp_path / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        evaluate(config, tmp_path)


@pytest.mark.parametrize("override", ["optimizer.lr=abc", "trainer.accelerator=abacus", "backbone.weights=nothing.pth"])
def test_an_earlier_run_is_not_thrown_away_for_settings_that_cannot_be_used(
    override, finished_run, tiny_config, tmp_path
):
    shutil.copytree(finished_run, tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError):
        train(tiny_config("overwrite=true", override), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == before


def test_what_the_loss_guard_advises_fits(tiny_config, tmp_path, monkeypatch):
    forward = BranchLosses.forward

    def spoilt(self, outputs, labels):
        total, parts = forward(self, outputs, labels)
        return total * torch.nan, parts

    monkeypatch.setattr(BranchLosses, "forward", spoilt)
    with pytest.raises(TrainingError, match="No epoch was finished") as stop:
        train(tiny_config(), tmp_path)
    assert "ckpt_path" not in str(stop.value)


def test_other_data_than_the_checkpoints_are_refused(tiny_config, finished_run, tmp_path, monkeypatch):
    """As many identities, but other rows: the classifiers' weights would belong to other people."""
    config = tiny_config(f"ckpt_path={finished_run / 'last.ckpt'}", "evaluation.every_n_epochs=1")
    manifest = read_manifest(config.dataset)
    table = manifest.table.copy()
    table.loc[table["split"] == "train", "label"] = table.loc[table["split"] == "train", "label"].to_numpy()[::-1]
    monkeypatch.setattr("bdbnet.loading.from_config.load_manifest", lambda *_, **__: Manifest(table, manifest.root))
    with pytest.raises(ConfigError, match=r"was trained on other data: the dataset has changed since"):
        train(config, tmp_path)


def test_the_checkpoint_before_a_damaged_one_is_resumed_from(tiny_config, tmp_path, capsys):
    def stop_in_third_epoch(self, trainer, module, begin_epoch=History.on_train_epoch_start):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_third_epoch)
        with pytest.raises(SystemExit) as stop:
            train(tiny_config("trainer.max_epochs=3", EVERY_EPOCH), tmp_path)
    assert stop.value.code == 130
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    for name in (".last.ckpt.abc", ".topk.parquet.xyz"):  # of processes that were killed while they wrote
        (tmp_path / name).touch()
    train(tiny_config("trainer.max_epochs=3", "ckpt_path=last"), tmp_path)
    said = capsys.readouterr().out
    assert f"{last}: " in said
    assert f"It is left out: the checkpoint before it is {tmp_path / 'previous.ckpt'}." in said
    assert f"resuming from {tmp_path / 'previous.ckpt'}" in said
    assert (tmp_path / "last.ckpt.damaged").stat().st_size == 1000
    assert list(pd.read_csv(tmp_path / "history.csv")["epoch"]) == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} >= {"last.ckpt", "best.ckpt", "result.json"}
    left = {"previous.ckpt", ".last.ckpt.abc", ".topk.parquet.xyz"} & {path.name for path in tmp_path.iterdir()}
    assert not left


@pytest.mark.parametrize("formerly", [False, True], ids=["as written now", "as written formerly"])
def test_a_moved_run_folder_keeps_its_best_checkpoint(formerly, tiny_config, tmp_path, monkeypatch):
    """Scores .9, .1 with a stop between them and a move: best.ckpt is still the first epoch's."""
    scores, evaluate_epoch = {0: 0.9, 1: 0.1}, TrainingModule.on_validation_epoch_end

    def scored(self):
        evaluate_epoch(self)
        self.metrics["rank1"] = scores[self.current_epoch]
        self.log_dict(self.metrics)

    def stop_in_second_epoch(self, trainer, module, begin_epoch=History.on_train_epoch_start):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", scored)
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config("evaluation.every_n_epochs=1", EVERY_EPOCH), tmp_path / "old")
    checkpoint = torch.load(tmp_path / "old" / "last.ckpt", weights_only=True)
    states = [state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint{")]
    assert len(states) == 2
    assert str(tmp_path) not in repr(states)
    if formerly:
        for state in states:
            path = str(tmp_path / "old" / state["best_model_path"])
            state |= {"dirpath": str(tmp_path / "old"), "best_model_path": path}
            state["best_k_models"] = dict(zip([path], state["best_k_models"].values()))
        torch.save(checkpoint, tmp_path / "old" / "last.ckpt")
    (tmp_path / "old").rename(tmp_path / "new")
    result = train(tiny_config("evaluation.every_n_epochs=1", "ckpt_path=last"), tmp_path / "new")
    assert result.best["epoch"] == 1
    assert torch.load(tmp_path / "new" / "best.ckpt", weights_only=True)["epoch"] == 0


def test_the_best_is_of_the_epochs_whose_checkpoint_is_there(finished_run, tiny_config, tmp_path):
    """A folder that was moved without its best.ckpt."""
    shutil.copy(finished_run / "last.ckpt", tmp_path / "last.ckpt")
    settings = ["evaluation.before_training=true", "evaluation.every_n_epochs=1"]
    assert train(tiny_config(*settings, "ckpt_path=last"), tmp_path).best["epoch"] == 2
    assert (tmp_path / "best.ckpt").is_file()


def test_another_number_of_processes_is_refused_unless_asked_for(finished_run, tiny_config, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    assert content["bdbnet"]["ranks"] == 1
    content["bdbnet"]["ranks"] = 2
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"was trained by 2 processes, this run has 1.*other_ranks=true"):
        train(tiny_config("ckpt_path=last"), tmp_path)
    assert train(tiny_config("ckpt_path=last", "other_ranks=true"), tmp_path).epochs == 2


@pytest.mark.parametrize(
    ("before", "synced", "ranks", "sync", "message"),
    [
        (2, False, 4, False, "was trained by 2 processes, this run has 4"),
        (2, False, 4, True, "was trained by 2 processes, this run has 4"),
        (2, False, 2, True, "was trained with trainer.sync_batchnorm=false"),
        (2, True, 2, False, "was trained with trainer.sync_batchnorm=true"),
        (2, True, 4, True, None),
        (2, True, 1, False, None),
        (1, False, 4, True, None),
        (1, False, 4, False, "was trained by 1 process, this run has 4"),
    ],
)
def test_with_statistics_of_all_images_any_number_of_processes_resumes(
    before, synced, ranks, sync, message, finished_run, tiny_config, tmp_path
):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["bdbnet"]["ranks"] = before
    content["bdbnet"]["config"]["trainer"]["sync_batchnorm"] = synced
    torch.save(content, path := tmp_path / "last.ckpt")
    module = training_module(tiny_config())
    module.record = Record(content["bdbnet"]["config"], 4, content["bdbnet"]["fingerprint"])
    if message is None:
        check_resumable(module, path, ranks, same_on_ranks=sync)
    else:
        with pytest.raises(ConfigError, match=message):
            check_resumable(module, path, ranks, same_on_ranks=sync)
        check_resumable(module, path, ranks, same_on_ranks=sync, other_ranks=True)


def test_masks_of_each_process_keep_their_number(finished_run, tiny_config, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["bdbnet"]["config"]["dropping"]["mask_scope"] = "image"
    torch.save(content, path := tmp_path / "last.ckpt")
    module = training_module(tiny_config("dropping.mask_scope=image"))
    module.record = Record(content["bdbnet"]["config"], 4, content["bdbnet"]["fingerprint"])
    check_resumable(module, path, 1)
    with pytest.raises(ConfigError, match=r"this run has 2: each process draws its own masks \(mask_scope=image\)"):
        check_resumable(module, path, 2, same_on_ranks=True)


@pytest.mark.parametrize(("devices", "refused"), [(1, False), (4, True), ([0, 1], True), ("auto", False)])
def test_older_checkpoints_say_the_number_of_processes_by_their_settings(
    devices, refused, finished_run, tiny_config, tmp_path
):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    del content["bdbnet"]["ranks"]
    content["bdbnet"]["config"]["trainer"]["devices"] = devices
    torch.save(content, tmp_path / "last.ckpt")
    if refused:
        with pytest.raises(ConfigError, match="other_ranks=true"):
            train(tiny_config("ckpt_path=last"), tmp_path)
    else:
        train(tiny_config("ckpt_path=last"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(optimizer_states=[{"state": 5}]), "its state is damaged"),
        (lambda content: content.update(loops="x"), "its state is damaged"),
        (lambda content: content.update(bdbnet={"fingerprint": None}), "bdbnet.config is missing"),
        (lambda content: content.pop("optimizer_states"), "contains no optimizer state"),
    ],
)
def test_a_checkpoint_whose_state_is_damaged_is_refused_by_name(change, message, finished_run, tiny_config, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    del content["bdbnet"]["digests"]  # they would say so first
    change(content)
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=rf"odd\.ckpt: .*{message}"):
        train(tiny_config(f"ckpt_path={tmp_path / 'odd.ckpt'}"), tmp_path / "run")


def test_a_setting_that_a_checkpoint_does_not_know_yet_had_its_first_value(finished_run, tiny_config):
    config = tiny_config("evaluation.before_training=true", "evaluation.every_n_epochs=1")
    known = read_manifest(config.dataset).fingerprint
    module = training_module(config)
    model = module.record.config["model"]
    earlier = {key: value for key, value in model.items() if key not in ("head", "global_pooling")}
    module.record = Record({**module.record.config, "model": earlier}, 4, known)
    check_resumable(module, finished_run / "last.ckpt")
    other = {**module.record.config, "model": {**model, "head": "bnneck"}}
    module.record = Record(other, 4, known)
    with pytest.raises(ConfigError, match=r"model\.head was linear, is bnneck"):
        check_resumable(module, finished_run / "last.ckpt")
