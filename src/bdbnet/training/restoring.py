"""The start of a training, and what a damaged checkpoint does to it."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from bdbnet.config import is_ours
from bdbnet.models import CheckpointError
from bdbnet.training.distributed import is_about_others
from bdbnet.training.module import TrainingModule


def fit(trainer: pl.Trainer, module: TrainingModule, data: pl.LightningDataModule, resume: Path | None) -> None:
    """Train, from a checkpoint where there is one.

    Raises:
        CheckpointError: the state of the optimizer, of the loops or of a callback in it can't be restored.
    """
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except (MisconfigurationException, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Until the first step Lightning restores what the file says, piece by piece, and each piece fails in its own way.
        if resume is None or module.has_begun or is_ours(error) or is_about_others(error):
            raise
        raise CheckpointError(
            f"{resume}: this training can't resume from it, its state is damaged ({type(error).__name__}: {error}). Copy it again, "
            f"or start a new run from its weights with backbone.weights={resume}"
        ) from error
