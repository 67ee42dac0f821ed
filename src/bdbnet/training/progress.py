"""Progress bar over the whole training: epoch, loss parts, learning rate, images per second, time left."""

import time
from collections.abc import Sized
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
from tqdm import tqdm

from bdbnet.evaluation.progress import EvaluationProgress
from bdbnet.results import headline_metrics, metric_of


class TrainingProgress(EvaluationProgress):
    """One bar for all epochs, so that the time left is that of the run; a bar of its own for each evaluation.

    Where the output is not a terminal (a log file, a CI run), a line per epoch is printed instead.

    Args:
        seconds_between: least seconds between two refreshes; each reads the losses back from the device.
    """

    def __init__(self, seconds_between: float = 0.5) -> None:
        super().__init__()
        self.seconds_between = seconds_between
        self._bar: tqdm[NoReturn] | None = None
        self._refreshed = self._epoch_began = self._run_began = self._rate = 0.0
        self._images = self._first_epoch = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._first_epoch, self._run_began = trainer.current_epoch, time.perf_counter()
        batches, epochs = int(trainer.num_training_batches), cast(int, trainer.max_epochs)
        self.on_train_epoch_start(trainer)  # which a run that resumes within an epoch does not call
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
        self._bar.n = int(trainer.num_training_batches) * trainer.current_epoch + batch_idx + 1
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
        super().on_exception(*_)


def _clock(seconds: float) -> str:
    return tqdm.format_interval(max(0.0, seconds))
