"""Signals while training: the step is finished and kept, and a resumed run ends bit for bit as if nothing had happened."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pytorch_lightning.utilities import CombinedLoader

from bdbnet.results import read_result
from bdbnet.stopping import Stopped
from bdbnet.training.callbacks import History
from bdbnet.training.checkpoints import Signals
from bdbnet.training.module import TrainingModule
from bdbnet.training.runs import train

SETTINGS = ["evaluation.before_training=true", "evaluation.every_n_epochs=1"]


@pytest.fixture(autouse=True)
def in_the_foreground():
    """In the background of a shell, where tests may run, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def at_step(monkeypatch):
    """``at_step(step, number)``: the process receives this signal in the middle of this step of the run, from 1."""

    def plan(step: int, *numbers: signal.Signals) -> None:
        real = TrainingModule.training_step

        def training_step(self, batch, batch_index):
            if self.global_step + 1 == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return real(self, batch, batch_index)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)

    return plan


def content(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True)


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def table(folder) -> pd.DataFrame:
    rows = pd.read_csv(folder / "history.csv")
    times = [name for name in rows if name in ("seconds", "images_per_second") or name.startswith("waited_seconds")]
    return rows.drop(columns=times)


@pytest.mark.parametrize(
    ("step", "kept"),
    [(1, 1), (2, 2), (3, 3)],
    ids=["within the first epoch", "at its last step", "in the second epoch"],
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_step_and_nothing_is_repeated(
    step, kept, number, status, at_step, finished_run, tiny_config, tmp_path, monkeypatch, capsys
):
    at_step(step, number)
    with pytest.raises(Stopped) as stop:
        train(tiny_config(*SETTINGS), tmp_path)
    assert stop.value.code == status
    assert content(tmp_path)["global_step"] == kept
    assert f"Interrupted in epoch {1 if step <= 2 else 2}. Kept: {tmp_path / 'last.ckpt'}" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    monkeypatch.undo()
    steps, real = [], TrainingModule.training_step
    monkeypatch.setattr(
        TrainingModule,
        "training_step",
        lambda self, batch, index: steps.append(self.global_step + 1) or real(self, batch, index),
    )
    result = train(tiny_config(*SETTINGS, "ckpt_path=last"), tmp_path)
    assert steps == [*range(kept + 1, 5)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(content(finished_run)[key], content(tmp_path)[key]), key
    pd.testing.assert_frame_equal(table(tmp_path), table(finished_run), check_exact=True)
    assert result.metrics == read_result(finished_run / "result.json").metrics
    assert result.before == read_result(finished_run / "result.json").before
    assert not {"previous.ckpt", "epoch_so_far"} & {*content(tmp_path), *(path.name for path in tmp_path.iterdir())}


def test_a_signal_in_the_last_epoch_leaves_a_finished_run(at_step, tiny_config, tmp_path):
    at_step(4, signal.SIGTERM)
    with pytest.raises(Stopped):  # so that a sweep does not go on
        train(tiny_config(), tmp_path)
    assert read_result(tmp_path / "result.json").epochs == 2


def test_no_step_is_kept_whose_gradients_are_still_being_summed_up(at_step, tiny_config, tmp_path):
    at_step(1, signal.SIGTERM)
    with pytest.raises(Stopped):
        train(tiny_config("trainer.accumulate_grad_batches=2"), tmp_path)
    kept = content(tmp_path)
    assert (kept["global_step"], kept["epoch"]) == (1, 0)
    assert "epoch_so_far" not in kept  # an epoch has two batches


def test_what_a_shell_ignores_for_a_background_job_is_left_ignored(at_step, tiny_config, tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    at_step(1, signal.SIGINT)
    assert train(tiny_config("trainer.max_epochs=1"), tmp_path).epochs == 1


def test_a_second_ctrl_c_stops_at_once(at_step, tiny_config, tmp_path, capsys):
    at_step(1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Stopped) as stop:
        train(tiny_config(), tmp_path)
    assert stop.value.code == 130
    said = capsys.readouterr()
    assert "Ctrl-C again stops at once" in said.err
    assert "Interrupted in epoch 1. No epoch was finished." in said.out
    assert not (tmp_path / "last.ckpt").exists()


def test_a_signal_during_the_first_evaluation_stops_at_once(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingModule, "on_validation_epoch_start", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped) as stop:
        train(tiny_config("evaluation.before_training=true"), tmp_path)
    assert stop.value.code == 143


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_lightning_tears_down_is_no_fault(number, status, tiny_config, tmp_path, monkeypatch, capsys):
    real, told = CombinedLoader.reset, []

    def reset(self):
        if self._iterator is not None and self._mode == "max_size_cycle" and not told:
            told.append(number)
            real(self)
            os.kill(os.getpid(), number)
        real(self)

    monkeypatch.setattr(CombinedLoader, "reset", reset)
    with pytest.raises(Stopped) as stop:
        train(tiny_config("trainer.max_epochs=1"), tmp_path)
    assert (stop.value.code, told) == (status, [number])
    assert f"Interrupted after the last epoch. Kept: {tmp_path / 'last.ckpt'}" in capsys.readouterr().out


def test_the_time_of_an_epoch_is_that_of_both_processes(at_step, tiny_config, tmp_path, monkeypatch):
    at_step(1, signal.SIGTERM)
    with pytest.raises(Stopped):
        train(tiny_config(), tmp_path)
    so_far = content(tmp_path)["epoch_so_far"]
    assert so_far["images"] == 8
    monkeypatch.undo()
    train(tiny_config("ckpt_path=last"), tmp_path)
    first = pd.read_csv(tmp_path / "history.csv").iloc[0]
    assert first["seconds"] > so_far["seconds"] > 0
    assert round(first["seconds"] * first["images_per_second"]) == pytest.approx(16, abs=1)


@pytest.fixture
def slurm(monkeypatch):
    """A SLURM job whose `scontrol` is recorded."""
    asked = []
    for key, value in {
        "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "77", "JOB_NAME": "train", "NNODES": "1",
        "NODELIST": "here", "STEP_NUM_TASKS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setattr(
        "pytorch_lightning.trainer.connectors.signal_connector.call", lambda command: asked.append(command) or 0
    )
    return asked


def test_a_job_that_slurm_takes_away_is_queued_again_between_two_steps(
    slurm, at_step, finished_run, tiny_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        at_step(3, signal.SIGUSR1)

        def killed(self, trainer, module, outputs, batch, batch_idx, real=History.on_train_batch_end):
            real(self, trainer, module, outputs, batch, batch_idx)
            if trainer.global_step == 4:
                raise SystemExit  # what comes after the signal: the end without a word

        patch.setattr(History, "on_train_batch_end", killed)
        with pytest.raises(SystemExit):
            train(tiny_config(*SETTINGS), tmp_path)
    assert slurm == [["scontrol", "requeue", "77"]]
    assert content(tmp_path, "hpc_ckpt_1.ckpt")["global_step"] == 3

    monkeypatch.undo()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the same command, started by SLURM
    train(tiny_config(*SETTINGS, "overwrite=true"), tmp_path)
    assert same(content(finished_run)["state_dict"], content(tmp_path)["state_dict"])
    pd.testing.assert_frame_equal(table(tmp_path), table(finished_run), check_exact=True)
    assert not list(tmp_path.glob("hpc_ckpt_*"))


def test_a_run_that_goes_on_after_the_signal_leaves_no_checkpoint_of_it(slurm, at_step, tiny_config, tmp_path):
    at_step(1, signal.SIGUSR1)
    train(tiny_config(), tmp_path)
    assert len(slurm) == 1
    assert not list(tmp_path.glob("hpc_ckpt_*"))


def test_workers_that_receive_the_signal_too_do_not_end_the_run_in_a_traceback(tiny_config, tmp_path, monkeypatch):
    real = TrainingModule.training_step

    def training_step(self, batch, batch_index):
        if self.global_step == 1:
            workers = self.trainer.fit_loop._combined_loader.flattened[0]._iterator._workers
            pids = [str(os.getpid()), *(str(worker.pid) for worker in workers)]
            subprocess.run(["kill", "-TERM", *pids], check=True)
        return real(self, batch, batch_index)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    with pytest.raises(Stopped):
        train(tiny_config("loading.num_workers=1", "trainer.max_epochs=3"), tmp_path)
    assert content(tmp_path)["global_step"] == 2


def test_with_several_ranks_none_stops_before_all_know():
    signals, trainer = Signals(), SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    signals.asked = signal.SIGTERM
    told = [[0, 0], [int(signal.SIGTERM), 0]]  # of the call before, as with several ranks
    signals._any_rank = lambda values, device: told.pop(0)
    assert [signals.requested(trainer), signals.requested(trainer)] == [None, signal.SIGTERM]


def test_epochs_of_older_checkpoints_say_nothing_of_waiting(tmp_path):
    history = History(tmp_path)
    row = {"epoch": 1, "seconds": 2.0, "images_per_second": 8.0, "learning_rate": 1e-3, "loss": 3.0}
    history.load_state_dict({"rows": [row], "before": None, "epochs_elsewhere": 0})
    history.rows.append({**row, "epoch": 2, "waited_seconds": 0.5, "waited_seconds/loader": 0.5})
    history.evaluate_last(SimpleNamespace(is_global_zero=True), {"mAP": 0.5})
    assert pd.read_csv(tmp_path / "history.csv")["waited_seconds"].isna().tolist() == [True, False]
    assert history.train_seconds == 4
