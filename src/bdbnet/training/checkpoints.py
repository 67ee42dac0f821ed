"""Checkpoints of a run: which there are, when they are written, and the one that a signal asks for."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn

from bdbnet.files import remove_unfinished
from bdbnet.results import BEST, HISTORY, LAST, PREVIOUS, RESULT, TOP_K
from bdbnet.stopping import ENDING, Stopped, in_main_thread, stop
from bdbnet.training.checkpoint_files import REQUEUED, CheckpointFiles, finish_writing
from bdbnet.training.distributed import AnyRank
from bdbnet.training.waits import CHECKPOINT, Waits


def clear_auxiliary(folder: Path) -> None:
    """Remove the checkpoints that a finished run needs no more, and what killed processes left of others."""
    for path in (folder / PREVIOUS, *folder.glob(REQUEUED)):
        path.unlink(missing_ok=True)
    clear_unfinished(folder)


def clear_unfinished(folder: Path) -> None:
    """Remove what trainings left that were killed while they wrote a file."""
    for name in (LAST, BEST, REQUEUED, HISTORY, RESULT, TOP_K):
        remove_unfinished(folder / name)


class Signals(Callback):
    """Notes signals that come while the network is trained, so that they are obeyed between two steps.

    SIGTERM and SIGINT (Ctrl-C) end the training, a second Ctrl-C does so at once. At the signal by which SLURM announces the
    end of a job's time, Lightning writes a checkpoint and queues the job again; that, too, happens between two steps.
    Outside of the steps the first two raise `Stopped` at once.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._requeue: Callable[[], Any] | None = None
        self._requeue_asked = self._deferred = False
        self._trainer: pl.Trainer | None = None
        self._any_rank = AnyRank()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._take_over(trainer)
        self._deferred = True

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # before the training or after it
            self._take_over(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._deferred = False

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._deferred = False

    def requested(self, trainer: pl.Trainer) -> signal.Signals | None:
        """The signal that one of the ranks has received, after a requested requeueing is done.

        All ranks have to call it; where there are several, all know of a signal one call later.
        """
        ending, requeue = self._any_rank(
            (0 if self.asked is None else int(self.asked), int(self._requeue_asked)), trainer.strategy.root_device
        )
        if requeue and self._requeue is not None:
            self._requeue()
        self._requeue_asked = False
        # Not what this rank has noticed itself: the others know of it one call later.
        return signal.Signals(ending) if ending else None

    def _take_over(self, trainer: pl.Trainer) -> None:
        """Replace the handlers that Lightning has just set; it puts the earlier ones back at its end."""
        if not in_main_thread():
            return
        self._trainer = trainer
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is in the background of a shell
                signal.signal(number, self._end)
        announced = getattr(signal, "SIGUSR1", None)
        theirs: Any = None if announced is None else signal.getsignal(announced)
        if announced is not None and type(theirs).__module__.startswith("pytorch_lightning."):
            self._requeue = lambda: theirs(announced, None)
            signal.signal(announced, self._note_requeue)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or (number == signal.SIGINT and self.asked is signal.SIGINT):
            launcher = None if self._trainer is None else self._trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(cast(Any, number))  # ranks that this process has started
            stop(number, frame)
        if self.asked is None:
            self.asked = signal.Signals(number)
            if number == signal.SIGINT:
                print("\nStopping after this step or evaluation; Ctrl-C again stops at once.", file=sys.stderr)

    def _note_requeue(self, number: int, _: FrameType | None) -> None:
        if self._deferred:
            self._requeue_asked = True
        elif self._requeue is not None:
            self._requeue()


class RunCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` whose state names files relative to the run folder, which may be moved.

    Args:
        folder: of the run.
        name: of the file.
        waits: where the time is noted for which the training stands still.
        resumed_here: whether a resumed run continues from a checkpoint of this folder.
    """

    def __init__(
        self, folder: str | Path, name: str, waits: Waits, *, resumed_here: bool = True, **settings: Any
    ) -> None:
        super().__init__(
            Path(folder), Path(name).stem, save_top_k=1, auto_insert_metric_name=False, enable_version_counter=False,
            **settings,
        )  # fmt: skip
        self._file = Path(folder) / name
        self._waits = waits
        self._resumed_here = resumed_here

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        with self._waits.during(CHECKPOINT):
            super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {key: Path(state[key]).name for key in _PATHS if state[key]}
        scores = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return {**state, **names, "dirpath": "", "best_k_models": scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._resumed_here or not self._file.is_file():
            return  # the best so far lies elsewhere
        path = str(self._file)
        found = {key: path if state_dict.get(key) else "" for key in _PATHS}
        scores = dict(zip([path], state_dict["best_k_models"].values()))
        super().load_state_dict({**state_dict, **found, "dirpath": self.dirpath, "best_k_models": scores})


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class LastCheckpoint(RunCheckpoint):
    """`last.ckpt`, at the end of an epoch from time to time, and when a signal ends the training: then of the step just done.

    Args:
        every_n_epochs: epochs from one to the next, at least.
        every_seconds: seconds from one to the next, at least; 0: none.
        signals: what has been asked for.
        best: a new `best.ckpt` is followed by `last.ckpt`, which knows of it.
    """

    def __init__(
        self,
        folder: str | Path,
        waits: Waits,
        signals: Signals,
        *,
        best: ModelCheckpoint | None = None,
        every_n_epochs: int = 1,
        every_seconds: float = 0,
        resumed_here: bool = True,
    ) -> None:
        super().__init__(
            folder, LAST, waits, resumed_here=resumed_here, every_n_epochs=every_n_epochs, save_on_train_epoch_end=True
        )
        self._signals, self._best = signals, best
        self._every_seconds, self._saved_at = every_seconds, 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that are being accumulated are in no checkpoint; an epoch's last step is followed by its evaluation.
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch:
            self._obey(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        files = trainer.strategy.checkpoint_io
        if isinstance(files, CheckpointFiles):
            files.check()
        # The clocks of several ranks differ, and all of them take part in a checkpoint.
        due = time.monotonic() - self._saved_at >= self._every_seconds
        due |= trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        due |= self._best is not None and self._best._last_global_step_saved == trainer.global_step
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            super().on_train_epoch_end(trainer, module)
        # A training that ends here by itself still has its results to write.
        if trainer.current_epoch + 1 != trainer.max_epochs and not trainer.should_stop:
            self._obey(trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def _obey(self, trainer: pl.Trainer) -> None:
        asked = self._signals.requested(trainer)
        if asked is None:
            return
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
        finish_writing(trainer)  # an error of the disk is what the user has to know of, then
        raise Stopped(asked)


def checkpoint_callbacks(
    folder: str | Path,
    monitor: str,
    signals: Signals,
    waits: Waits,
    *,
    every_n_epochs: int,
    every_seconds: float,
    resumed_here: bool = True,
) -> list[Callback]:
    """``last.ckpt``, to resume from and to evaluate, and ``best.ckpt`` by a metric of the test set, for those who ask for it."""
    # The best is chosen when the test set has been evaluated, before the epoch ends: last.ckpt then holds that choice.
    best = RunCheckpoint(
        folder, BEST, waits, resumed_here=resumed_here, monitor=monitor, mode="max", save_weights_only=True,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    last = LastCheckpoint(
        folder, waits, signals, best=best, every_n_epochs=every_n_epochs, every_seconds=every_seconds,
        resumed_here=resumed_here,
    )  # fmt: skip
    return [best, last]
