"""How checkpoints get to the disk: whole or not at all, by a thread, from a copy."""

import io
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from bdbnet.files import WriteError, replaced
from bdbnet.models.weights import digests_of
from bdbnet.results import LAST, PREVIOUS
from bdbnet.training.host_copy import HostCopy

#: Checkpoints that Lightning writes when SLURM is about to take a job's machine away.
REQUEUED = "hpc_ckpt_*.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints while the training continues: at any time `last.ckpt` is whole, and `previous.ckpt` is the one before it.

    The training waits for a copy on the host and for the file before it, so that there is one copy at most. An error of a
    write is raised by the next call of any method here. Lightning's `AsyncCheckpointIO` queues any number of copies, and lets
    SLURM have a job again before its checkpoint is there.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # which Python joins before the process ends
        self._writing: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        self.wait()
        self._writing = self._thread.submit(_write, _HostCopies(checkpoint), Path(path))
        if Path(path).match(REQUEUED):
            self.wait()

    def load_checkpoint(self, path: str | os.PathLike[str], *arguments: Any, **named: Any) -> dict[str, Any]:
        self.wait()
        return super().load_checkpoint(os.fspath(path), *arguments, **named)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        self.wait()
        super().remove_checkpoint(os.fspath(path))

    def teardown(self) -> None:
        handled = sys.exc_info()[1]
        try:
            self.wait()
        except WriteError as error:
            if handled is None:
                raise
            print(f"\n{error}", flush=True)  # the end has a reason already

    def check(self) -> None:
        """Raise WriteError where a write has failed, without waiting for one that is being written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk.  Raises WriteError."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        finally:
            if self._writing.done():  # else a signal has ended the waiting, and whoever says what is kept waits again
                self._writing = None


class _HostCopies:
    """A checkpoint as it is now, on the host; the copies from a device are made while it works on."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self._copies: dict[int, HostCopy] = {}
        apply_to_collection(checkpoint, Tensor, self._begin)
        # Mappings with their attributes and tensors that share a storage stay so: the file is that of the original.
        self._content = deepcopy(checkpoint, {key: copy.pending for key, copy in self._copies.items()})

    def _begin(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            self._copies[id(tensor)] = HostCopy(tensor)
        return tensor

    def complete(self) -> dict[str, Any]:
        for copy in self._copies.values():
            copy.wait()
        return self._content


def _write(copies: _HostCopies, path: Path) -> None:
    checkpoint = copies.complete()
    if "bdbnet" in checkpoint:
        checkpoint["bdbnet"]["digests"] = digests_of(checkpoint)
    content = io.BytesIO()  # PyTorch's own writer turns an error of the disk into one without a reason
    torch.save(checkpoint, content)
    with replaced(path, keep=path.with_name(PREVIOUS) if path.name == LAST else None) as file:
        file.write(content.getbuffer())


def finish_writing(trainer: Any) -> None:
    """Wait for the checkpoint that a trainer is writing.  Raises WriteError."""
    files = trainer.strategy.checkpoint_io
    if isinstance(files, CheckpointFiles):
        files.wait()
