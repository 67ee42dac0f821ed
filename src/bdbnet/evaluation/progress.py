"""Progress bar of an evaluation."""

import sys
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class EvaluationProgress(ProgressBar):
    """A bar while the test set is embedded, where the output is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
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
