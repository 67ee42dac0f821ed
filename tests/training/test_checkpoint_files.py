"""Checkpoints that a thread writes: what is in them, which are there, what happens where one can't be written."""

import errno
import os
import threading
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from bdbnet.files import WriteError
from bdbnet.models.weights import digest_of
from bdbnet.training import checkpoint_files
from bdbnet.training.checkpoint_files import CheckpointFiles
from bdbnet.training.runs import train


@pytest.fixture
def gate(monkeypatch):
    """An event that every write waits for."""
    opened, write = threading.Event(), checkpoint_files._write

    def waiting(*arguments):
        assert opened.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint_files, "_write", waiting)
    return opened


def a_checkpoint(value: float) -> dict:
    weight = torch.full((3,), value)
    state = OrderedDict(weight=weight, tied=weight.view(3))
    state._metadata = {"": {"version": 1}}
    return {"state_dict": state, "epoch": 1, "rows": [{"epoch": 1}], "bdbnet": {"config": {}}}


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(gate, tmp_path):
    files, checkpoint = CheckpointFiles(), a_checkpoint(1.0)
    files.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    checkpoint["state_dict"]["weight"] += 1  # the next step
    checkpoint["rows"][0]["epoch"] = 2
    files.check()
    assert not (tmp_path / "last.ckpt").exists()
    gate.set()
    files.wait()
    found = read(tmp_path / "last.ckpt")
    assert found["rows"] == [{"epoch": 1}]
    assert found["bdbnet"]["digests"]["state_dict"] == digest_of(found["state_dict"])
    state = found["state_dict"]
    assert torch.equal(state["weight"], torch.ones(3))
    assert state["tied"].untyped_storage().data_ptr() == state["weight"].untyped_storage().data_ptr()
    assert state._metadata == {"": {"version": 1}}


def test_a_second_checkpoint_waits_for_the_first_and_keeps_it(tmp_path):
    files = CheckpointFiles()
    for value in (1.0, 2.0, 3.0):
        files.save_checkpoint(a_checkpoint(value), tmp_path / "last.ckpt")
    files.teardown()
    kept = {name: float(read(tmp_path / name)["state_dict"]["weight"][0]) for name in ("last.ckpt", "previous.ckpt")}
    assert kept == {"last.ckpt": 3.0, "previous.ckpt": 2.0}
    assert len([*tmp_path.iterdir()]) == 2


def test_a_job_is_queued_again_when_its_checkpoint_is_there(tmp_path):
    CheckpointFiles().save_checkpoint(a_checkpoint(1.0), tmp_path / "hpc_ckpt_1.ckpt")
    assert read(tmp_path / "hpc_ckpt_1.ckpt")["epoch"] == 1


def test_a_failed_write_is_told_once_and_leaves_the_file_before_it(gate, tmp_path, monkeypatch):
    files = CheckpointFiles()
    gate.set()
    files.save_checkpoint(a_checkpoint(1.0), tmp_path / "last.ckpt")
    files.wait()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    files.save_checkpoint(a_checkpoint(2.0), tmp_path / "last.ckpt")
    with pytest.raises(WriteError, match=r"last\.ckpt can't be written: No space left on device"):
        files.load_checkpoint(tmp_path / "last.ckpt")
    files.teardown()
    assert float(read(tmp_path / "last.ckpt")["state_dict"]["weight"][0]) == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_copy_of_a_cuda_tensor_is_from_before_the_next_step(gate, tmp_path):
    files, weight = CheckpointFiles(), torch.ones(2**24, device="cuda")
    files.save_checkpoint({"state_dict": {"weight": weight}}, tmp_path / "last.ckpt")
    weight += 1
    gate.set()
    files.wait()
    found = read(tmp_path / "last.ckpt")["state_dict"]["weight"]
    assert found.device.type == "cpu"
    assert torch.equal(found, torch.ones(2**24))


def test_checkpoints_are_a_minute_apart_and_waits_are_noted(tiny_config, tmp_path, monkeypatch):
    saved, real = [], CheckpointFiles.save_checkpoint

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        saved.append((Path(path).name, checkpoint["epoch"]))
        real(self, checkpoint, path, storage_options)

    epochs = iter(
        range(100)
    )  # each is 25 seconds long; the clock is read when the training starts and when an epoch ends
    clock = SimpleNamespace(monotonic=lambda: 25.0 * next(epochs))
    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr("bdbnet.training.checkpoints.time", clock)
    train(tiny_config("trainer.max_epochs=5", "evaluation.every_n_epochs=2"), tmp_path)
    last = [epoch for name, epoch in saved if name == "last.ckpt"]
    best = [epoch for name, epoch in saved if name == "best.ckpt"]
    assert 1 in best  # the first evaluation, counted from 0
    # A new best.ckpt is followed by last.ckpt; else a minute lies between two. The last is that of the finished run.
    due, expected = 0, []
    for epoch in range(5):
        if 25 * (epoch + 1 - due) >= 60 or epoch in best or epoch == 4:
            due = epoch + 1
            expected.append(epoch)
    assert last == [*expected, 5]
    rows = pd.read_csv(tmp_path / "history.csv")
    parts = rows[[name for name in rows if name.startswith("waited_seconds/")]]
    assert [*parts] == [f"waited_seconds/{reason}" for reason in ("loader", "checkpoint", "evaluation")]
    assert rows["waited_seconds"].to_numpy() == pytest.approx(parts.sum(axis=1).to_numpy(), abs=2e-3)
    assert [*(rows["waited_seconds/evaluation"] > 0)] == [False, True, False, True, True]
    assert (rows["waited_seconds/loader"] > 0).all()
    assert (rows["waited_seconds/loader"] < rows["seconds"]).all()
    assert rows["waited_seconds/checkpoint"][2] > 0  # for last.ckpt, after best.ckpt in the epoch before


def test_an_error_of_the_disk_does_not_hide_why_a_training_ends(tmp_path, capsys, monkeypatch):
    def full(copies, path):
        raise WriteError(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(checkpoint_files, "_write", full)
    files = CheckpointFiles()
    for reason in (None, ValueError("the reason")):
        files.save_checkpoint(a_checkpoint(1.0), tmp_path / "last.ckpt")
        if reason is None:
            with pytest.raises(WriteError):
                files.teardown()
            continue
        try:
            raise reason
        except ValueError:
            files.teardown()
    assert "last.ckpt can't be written: No space left on device" in capsys.readouterr().out


def test_a_new_best_checkpoint_is_followed_by_the_last(tiny_config, tmp_path, monkeypatch):
    """Evaluated after each epoch; the minute that lies between two checkpoints does not pass."""
    written = []
    write = checkpoint_files._write
    monkeypatch.setattr(
        checkpoint_files, "_write", lambda copies, path: (written.append(path.name), write(copies, path))
    )
    train(tiny_config("evaluation.every_n_epochs=1", "trainer.max_epochs=2"), tmp_path)
    assert written[:2] == ["best.ckpt", "last.ckpt"]
