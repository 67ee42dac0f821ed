"""Progress bar of an evaluation."""

import sys
import time
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

#: Seconds between two lines of a log file.
SECONDS_BETWEEN_LINES = 30.0


class EvaluationProgress(ProgressBar):
    """A bar while the test set is embedded; where the output is no terminal, a line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._done = self._total = 0
        self._began = self._said = 0.0
        self._evaluation: tqdm[NoReturn] | None = None

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
            sys.stdout.flush()  # whoever follows a log file sees each line as it comes

    def on_exception(self, *_: Any) -> None:
        self._close_evaluation()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._done, self._total = 0, sum(int(n) for n in trainer.num_val_batches)
        self._began = self._said = time.perf_counter()
        if self.live and not trainer.sanity_checking:
            self._evaluation = tqdm(
                total=self._total, desc="embedding the test set", unit="batch", leave=False, dynamic_ncols=True
            )

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._done += 1
        if self._evaluation is not None:
            self._evaluation.update(1)
        elif self._enabled and (now := time.perf_counter()) - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = tqdm.format_interval((now - self._began) / self._done * (self._total - self._done))
            line = f"embedding the test set: batch {self._done} of {self._total}, {left} left"
            print(line, file=sys.stderr, flush=True)  # where the bar would be

    def on_validation_end(self, *_: Any) -> None:
        self._close_evaluation()

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
