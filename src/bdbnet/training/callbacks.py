"""Callbacks of a training: a stop at the first loss that is not finite, the log by epoch, what an interruption says."""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Timer
from torch import Tensor

from bdbnet.evaluation.run_log import RunLog
from bdbnet.files import is_about_writing, write_atomically
from bdbnet.loading import ReIDDataModule
from bdbnet.results import BEST, HISTORY, LAST
from bdbnet.stopping import Stopped
from bdbnet.training.checkpoint_files import finish_writing
from bdbnet.training.distributed import gather, largest_of_ranks, texts_of_ranks, world_size
from bdbnet.training.host_copy import HostCopy
from bdbnet.training.waits import EVALUATION, LOADER, Waits


class TrainingError(RuntimeError):
    """Training that can't continue; the message says where it stopped and what to do."""


class NotFiniteError(TrainingError):
    """The loss is NaN or infinite on one of the ranks, which all of them know: the first one says it."""


class FiniteLossGuard(Callback):
    """Stops all ranks at a loss that is NaN or infinite on one of them, before a checkpoint is written from it.

    Whether a step's loss is finite is copied to the host while the next step runs and looked at after that, so that the host
    never waits for work that it has just queued. The error names epoch, step, loss parts and the batch's images.
    """

    def __init__(self) -> None:
        self._pending: _Step | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        bad = HostCopy(largest_of_ranks((~torch.isfinite(loss)).int()))
        self._check(trainer)
        self._pending = _Step(trainer.current_epoch, batch_idx, bad, loss, outputs["parts"], batch["index"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        step, self._pending = self._pending, None
        if step is None or not step.bad.value:
            return
        found = texts_of_ranks("" if torch.isfinite(step.loss) else self._described(step, trainer))
        text = next(text for text in found if text)
        finish_writing(trainer)
        advice = f"{nothing_kept(trainer)} Lower optimizer.lr, or try trainer.gradient_clip_val=1 or trainer.precision=32-true."
        last = Path(trainer.default_root_dir) / LAST
        if last.is_file():
            advice = (
                f"The last good checkpoint is {last}. Resume with ckpt_path=<that file> and trainer.gradient_clip_val=1 or "
                "trainer.precision=32-true, or lower optimizer.lr in a new run with backbone.weights=<that file>."
            )
        raise NotFiniteError(f"{text}\n{advice}")

    def _described(self, step: "_Step", trainer: pl.Trainer) -> str:
        shown = ", ".join(f"{name} = {part.item():.4g}" for name, part in step.parts.items())
        paths = [str(path) for path in cast(Any, trainer).datamodule.train_paths(step.rows.tolist())]
        listed = "\n  ".join(paths[:8] + ([f"... and {len(paths) - 8} more"] if len(paths) > 8 else []))
        where = f"epoch {step.epoch + 1}, step {step.batch + 1}"
        if trainer.world_size > 1:
            where += f", on process {trainer.global_rank + 1} of {trainer.world_size}"
        return f"the loss is {step.loss.item()} in {where} ({shown}).\nImages of the batch:\n  {listed}"


class _Step(NamedTuple):
    """A training step whose loss has yet to be looked at."""

    epoch: int
    batch: int
    bad: HostCopy
    loss: Tensor
    parts: dict[str, Tensor]
    rows: Tensor


def nothing_kept(trainer: pl.Trainer) -> str:
    """A sentence that says why a run has no checkpoint."""
    return "No checkpoint was written yet." if trainer.current_epoch else "No epoch was finished."


class EvaluateLastEpoch(Callback):
    """Evaluates at the end of the last epoch, whatever the interval between evaluations."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, module)  # which a run that resumes within an epoch does not call

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class EpochTimer(Timer):
    """Stops at the end of the epoch in which this process has trained for so long; a resumed run has the time anew.

    Half an epoch would be booked as a whole one, and the schedule would lag behind.
    """

    def __init__(self, duration: str) -> None:
        super().__init__(duration, interval="epoch", verbose=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the time of earlier processes is not this one's."""


class InterruptionHint(Callback):
    """Says after Ctrl-C, SIGTERM and a failed write where the run stands and what is kept."""

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        failed = isinstance(exception, OSError) and is_about_writing(exception)
        if not trainer.is_global_zero or not (failed or isinstance(exception, KeyboardInterrupt | Stopped)):
            return
        try:
            finish_writing(trainer)
        except OSError as error:  # the end has a reason already
            print(f"\n{error}", flush=True)
        kept = Path(trainer.default_root_dir) / LAST
        tail = f"Kept: {kept}." if kept.is_file() else nothing_kept(trainer)
        over = trainer.current_epoch == trainer.max_epochs
        where = "after the last epoch" if over else f"in epoch {trainer.current_epoch + 1}"
        print(f"\n{'Stopped' if failed else 'Interrupted'} {where}. {tail}", flush=True)


class History(Callback):
    """Writes ``history.csv``: one row per epoch with time, images/s, learning rate, mean losses and evaluated metrics.

    ``waited_seconds`` is for how long no step was done since the row before, with a part for each of `waits.REASONS`: waiting
    for a batch, for checkpoints (that of an epoch's end counts for the row after it) and for an evaluation. Evaluations and
    checkpoints of an epoch's end are in no row's ``seconds``. It is the time of the first rank.
    Where unreadable images are replaced, ``replaced_images`` counts them over all ranks.
    The rows are part of every checkpoint, so a resumed run continues its table where the checkpoint stands; of one within an
    epoch, so are the sums of that epoch.

    Args:
        folder: run folder.
        resumed_here: whether a resumed run continues from a checkpoint of this folder.

    Attributes:
        waits: where others note for how long the training stood still.
    """

    def __init__(self, folder: str | Path, *, resumed_here: bool = True) -> None:
        self._resumed_here = resumed_here
        self.waits = Waits()
        self.path = Path(folder) / HISTORY
        self.rows: list[dict[str, float]] = []
        self.before: dict[str, float] | None = None  # metrics of the starting weights, if they were evaluated
        self.epochs_elsewhere = 0  # epochs that another run's folder holds the checkpoints of
        self.images_seen = 0  # by training, in all epochs that are finished
        self._began = self._evaluation_began = self._loader_waited = 0.0
        self._rate = 0.0
        self._images = self._replaced = 0
        self._in_epoch = False
        self._earlier: dict[str, Any] | None = None  # sums of the epoch that a run resumes in, until its first step

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.waits.take()  # of an evaluation before the training
        self._loader_waited = cast(Any, trainer).datamodule.waited
        if not trainer.fit_loop.restarted_mid_epoch:
            self._earlier = None
        elif self._earlier is not None:
            self._in_epoch = True
            self.waits.restore(self._earlier.get("waited", {}))
            self._began = time.perf_counter() - self._earlier["seconds"] - self.waits.seconds[EVALUATION]
            self._rate, self._images = self._earlier["learning_rate"], self._earlier["images"]
            self._replaced = -self._earlier["replaced"] if trainer.is_global_zero else 0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began, self._images = time.perf_counter(), 0
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the end of the epoch it is the next one's already
        self._in_epoch = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["label"]) * trainer.world_size
        if self._earlier is not None:
            _add_to_logged(trainer, self._earlier["logged"])
            self._earlier = None

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._evaluation_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.waits.add(EVALUATION, time.perf_counter() - self._evaluation_began)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note_loader(trainer)
        waited = self.waits.take()
        seconds = time.perf_counter() - self._began - waited[EVALUATION]
        row = {
            "epoch": trainer.current_epoch + 1,
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images / seconds, 2),
            "learning_rate": self._rate,
            "waited_seconds": round(math.fsum(waited.values()), 3),
            **{f"waited_seconds/{reason}": round(value, 3) for reason, value in waited.items()},
        }
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row |= {name: value for name, value in values.items() if name == "loss" or name.startswith("loss/")}
        if getattr(module, "metrics_epoch", None) == trainer.current_epoch:
            row |= cast(Any, module).metrics
        data: ReIDDataModule = cast(Any, trainer).datamodule
        if data.reading.on_error == "replace":
            new, self._replaced = data.replaced - self._replaced, data.replaced
            row["replaced_images"] = int(
                trainer.strategy.reduce(torch.tensor(new, device=module.device), reduce_op="sum")
            )
        self.rows.append(row)
        self.images_seen += self._images
        self._in_epoch = False
        if trainer.is_global_zero:
            self._write()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._in_epoch:
            return
        data: ReIDDataModule = cast(Any, trainer).datamodule
        replaced = torch.tensor([data.replaced - self._replaced], device=module.device)
        self._note_loader(trainer)
        checkpoint[_SO_FAR] = {
            "seconds": time.perf_counter() - self._began - self.waits.seconds[EVALUATION],
            "waited": self.waits.seconds,
            "learning_rate": self._rate,
            "images": self._images,
            "replaced": int(gather(replaced).sum()),
            "logged": _logged(trainer, module.device),
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._earlier = checkpoint.get(_SO_FAR)

    def evaluate_last(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Add the metrics of an evaluation after the last epoch to its row."""
        self.rows[-1] |= metrics
        if trainer.is_global_zero:
            self._write()

    def _note_loader(self, trainer: pl.Trainer) -> None:
        waited = cast(Any, trainer).datamodule.waited
        self.waits.add(LOADER, waited - self._loader_waited)
        self._loader_waited = waited

    def _write(self) -> None:
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False).encode())

    @property
    def train_seconds(self) -> float:
        """Seconds spent in training epochs, those before a resume included."""
        return math.fsum(row["seconds"] for row in self.rows)

    @property
    def images_per_second(self) -> float:
        """Training images per second over the whole run; 0 before the first epoch ends."""
        images = math.fsum(row["seconds"] * row["images_per_second"] for row in self.rows)
        return images / self.train_seconds if self.rows else 0.0

    @property
    def replaced_images(self) -> int | None:
        """Training images that were replaced over the whole run; None where none may be."""
        counts = [int(row["replaced_images"]) for row in self.rows if "replaced_images" in row]
        return sum(counts) if counts else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "before": self.before, "epochs_elsewhere": self.epochs_elsewhere, "images_seen": self.images_seen,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.before = state_dict["before"]
        counted = sum(
            round(row["seconds"] * row["images_per_second"]) for row in self.rows
        )  # of older checkpoints, nearly
        self.images_seen = state_dict.get("images_seen", counted)
        here = self._resumed_here and self.path.with_name(BEST).is_file()
        self.epochs_elsewhere = state_dict["epochs_elsewhere"] if here else len(self.rows)


class EpochLog(Callback):
    """Sends every row of the history to the run's loggers.

    Args:
        history: whose rows; it comes before this callback.

    Attributes:
        run_log: where they go; set when the run begins.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.run_log: RunLog | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.send()

    def send(self) -> None:
        """Send the last row, again where something was added to it."""
        if self.run_log is not None:
            self.run_log.row(self.history.rows[-1], self.history.images_seen)

    def send_before(self) -> None:
        """Send what was evaluated before the first epoch, as epoch 0."""
        if self.run_log is not None:
            self.run_log.row({"epoch": 0, **(self.history.before or {})}, 0)


#: Entry of a checkpoint within an epoch: what has been summed up of it.
_SO_FAR = "epoch_so_far"


def _logged(trainer: pl.Trainer, device: torch.device) -> dict[str, list[list[float]]]:
    """Of every mean that is logged over an epoch: for each rank the sum of its values and the number of images in it."""
    found = {}
    device = device if world_size() > 1 else torch.device("cpu")
    for name, metric in _means(trainer).items():
        sums = [[float(metric.value), float(metric.cumulated_batch_size)]]
        own = torch.tensor(sums, dtype=torch.float64, device=device)
        found[name] = gather(own).tolist()
    return found


def _add_to_logged(trainer: pl.Trainer, earlier: dict[str, list[list[float]]]) -> None:
    """Continue means with the sums of an earlier process; its first step has been added already, which gives the same sum."""
    for name, metric in _means(trainer).items():
        for rank, (total, images) in enumerate(earlier.get(name, [])):
            if rank % world_size() == trainer.global_rank:  # also of ranks that there are no more
                metric.value = metric.value + total
                metric.cumulated_batch_size = metric.cumulated_batch_size + int(images)
        metric._computed = None


def _means(trainer: pl.Trainer) -> dict[str, Any]:
    """What Lightning sums up of the values that are logged in training steps; it keeps none of it in a checkpoint."""
    return {
        name: metric
        for name, metric in cast(Any, trainer.fit_loop.epoch_loop)._results.items()
        if metric.is_tensor and metric.meta.is_mean_reduction
    }
