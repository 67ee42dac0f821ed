"""The processor time of a training, over all ranks and over the parts of a run that was resumed."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bdbnet.evaluation.trainer import sum_of_ranks
from bdbnet.processor_time import processor_seconds

_KEY = "processor_seconds"


class ProcessorTime(Callback):
    """Counts from when it is made; a checkpoint holds the sum so far, from which a resumed run continues.

    What an interrupted process did after its last checkpoint is in no sum, as it is in no row of ``history.csv``.
    """

    def __init__(self) -> None:
        self._began = processor_seconds()
        self._earlier: float | None = 0.0  # seconds of earlier processes of a resumed run; None: nobody counted them

    def total(self, trainer: pl.Trainer) -> float | None:
        """Seconds of all ranks so far, which all of them have to ask for; None where a part was not counted."""
        own = sum_of_ranks(trainer, processor_seconds() - self._began)
        return None if self._earlier is None else self._earlier + own

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_KEY] = self.total(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._earlier = checkpoint.get(_KEY)
