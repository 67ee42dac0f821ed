"""Progress bar over the whole training: epoch, loss parts, learning rate, images per second, time left."""

import sys
import time
from collections.abc import Sized
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from bdbnet.results import headline_metrics, metric_of


class TrainingProgress(ProgressBar):
    """One bar for all epochs, so that the time left is that of the run; a bar of its own for each evaluation.

    Where the output is not a terminal (a log file, a CI run), a line per epoch is printed instead.

    Args:
        seconds_between: least seconds between two refreshes; each reads the losses back from the device.
    """

    def __init__(self, seconds_between: float = 0.5) -> None:
        super().__init__()
        self.seconds_between = seconds_between
        self._enabled = True
        self._bar: tqdm[NoReturn] | None = None
        self._evaluation: tqdm[NoReturn] | None = None
        self._refreshed = self._epoch_began = self._run_began = self._rate = 0.0
        self._images = self._first_epoch = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def live(self) -> bool:
        """Whether bars are drawn, rather than lines printed."""
        return self._enabled and sys.stderr.isatty()

    def print(self, *values: Any, **options: Any) -> None:
        if self._enabled:
            tqdm.write(" ".join(map(str, values)), file=sys.stdout)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._first_epoch, self._run_began = trainer.current_epoch, time.perf_counter()
        batches, epochs = int(trainer.num_training_batches), cast(int, trainer.max_epochs)
        if self.live:
            self._bar = tqdm(
                total=batches * epochs, initial=batches * trainer.current_epoch, unit="step", dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining}{postfix}",
            )  # fmt: skip

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._epoch_began, self._images = time.perf_counter(), 0
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(cast(Sized, batch["label"])) * trainer.world_size
        if self._bar is None:
            return
        self._bar.n += 1
        now = time.perf_counter()
        if now - self._refreshed < self.seconds_between:
            return
        self._refreshed = now
        parts = "  ".join(f"{name} {float(value):.3f}" for name, value in outputs["parts"].items())
        speed = self._images / (now - self._epoch_began)
        self._bar.set_postfix_str(f"{parts}  lr {self._rate:.1e}  {speed:.0f} images/s", refresh=False)
        self._bar.refresh()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch, epochs = trainer.current_epoch + 1, cast(int, trainer.max_epochs)
        parts = "  ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in values.items() if k.startswith("loss/"))
        evaluated = (
            getattr(module, "metrics", {}) if getattr(module, "metrics_epoch", None) == trainer.current_epoch else {}
        )
        headlines = {metric_of(name): evaluated[name] for name in headline_metrics(evaluated)}
        scores = "  ".join(f"{metric.title} {metric.number(value)}" for metric, value in headlines.items())
        seconds = time.perf_counter() - self._run_began
        left = seconds / (epoch - self._first_epoch) * (epochs - epoch)
        if scores or not self.live:
            tail = f"  {scores}" if scores else ""
            self.print(f"epoch {epoch}/{epochs}  {parts}  lr {self._rate:.1e}{tail}  left {_clock(left)}")

    def on_train_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()
        self._close_evaluation()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.live and not trainer.sanity_checking:
            total = sum(int(n) for n in trainer.num_val_batches)
            self._evaluation = tqdm(
                total=total, desc="embedding the test set", unit="batch", leave=False, dynamic_ncols=True
            )

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.update(1)

    def on_validation_end(self, *_: Any) -> None:
        self._close_evaluation()

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def _clock(seconds: float) -> str:
    return tqdm.format_interval(max(0.0, seconds))
