"""Lightning's trainer and the process around it, alike for training and evaluation."""

import ctypes
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import pytorch_lightning.callbacks
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.layer_sync import LayerSync

from bdbnet.config import ConfigError, instantiate, is_ours, is_set, plain

#: Keys of the trainer group that are ours, not Lightning's.
_OWN_TRAINER_KEYS = frozenset({"channels_last", "compile", "join_seconds"})

#: Keys of Lightning's that would evaluate a part of the test set under the name of the whole.
_PARTIAL = ("fast_dev_run", "limit_val_batches", "overfit_batches")

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the process keep large blocks that it frees, instead of handing each back to the kernel.

    glibc maps blocks above 32 MB anew every time, and the kernel zeroes them page by page: with the activations of a batch that
    is a third of a training step's processor time on a CPU. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seed_everything(seed: int) -> None:
    """Seed initial weights; batches, augmentation and masks take the seed by themselves."""
    pl.seed_everything(seed, workers=True, verbose=False)


def quiet_libraries() -> None:
    """Keep hints for programmers of the libraries out of a user's terminal; errors and our own warnings stay."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*", ".*Checkpoint directory.*exists and is not empty.*",
        ".*number of training batches.*is smaller than the logging interval.*", ".*treespec, LeafSpec.*",
        ".*You are running on a GPU.*", ".*tensorboardX.*",
        "TensorFloat32 tensor cores for float32.*",  # left off on purpose: an evaluation in float32 is exact
    ):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)


def _logger(settings: Any) -> Logger:
    """The logger of a group.  Raises ConfigError where it is none."""
    found = instantiate(settings) if OmegaConf.is_dict(settings) else settings
    if not isinstance(found, Logger):
        raise ConfigError(f"logger.logger={settings}: is no logger; choose logger=csv, wandb, tensorboard or mlflow")
    return found


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the groups `logger` and `loggers`.  Raises ConfigError where one can't be built."""
    groups = [config.get("logger"), *(config.get("loggers") or {}).values()]
    return [_logger(group.logger) for group in groups if is_set(group, "logger")]


def on_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether the trainer group's ``accelerator`` is a GPU of NVIDIA's or AMD's on this machine."""
    return settings.get("accelerator") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def build_trainer(
    config: DictConfig, folder: Path, callbacks: list[pl.Callback], layer_sync: LayerSync | None = None
) -> pl.Trainer:
    """Lightning's trainer with the settings of ``config.trainer``, logging into ``folder`` alone.

    Args:
        layer_sync: replaces layers of a network that several processes train, in place of Lightning's ``sync_batchnorm``.

    Raises:
        ConfigError: a key that would evaluate a subset, a GPU that is not there, or settings that Lightning refuses.
    """
    settings: dict[str, Any] = plain(config.trainer)
    for key in _OWN_TRAINER_KEYS:
        settings.pop(key, None)
    if settings.get("benchmark") == "auto":  # other algorithms may be found from run to run
        settings["benchmark"] = on_gpu(settings) and not settings.get("deterministic")
    progress = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks)
    settings.pop("max_time", None)  # of training, see `EpochTimer`
    for key in _PARTIAL:
        if key in settings:
            raise ConfigError(f"trainer.{key}: would evaluate a subset; remove this key")
    if settings.get("accelerator") in ("gpu", "cuda") and not _has_gpu(settings["accelerator"]):
        raise ConfigError(f"trainer.accelerator={settings['accelerator']}: PyTorch finds no GPU here; use auto or cpu")
    # Convolutions round to ten bits otherwise, on GPUs, even where float32 is asked for.
    torch.backends.cudnn.allow_tf32 = False
    try:
        trainer = pl.Trainer(
            **settings | ({} if layer_sync is None else {"sync_batchnorm": False, "plugins": [layer_sync]}),
            logger=build_loggers(config) or False,
            callbacks=callbacks,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our batch sampler is rank-aware; a strided one would tear identities apart
            enable_model_summary=False,
            enable_progress_bar=progress,
            enable_checkpointing=any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        if is_ours(error):
            raise
        raise ConfigError(
            f"trainer: {error} (keys of this group are arguments of pytorch_lightning.Trainer)"
        ) from error
    return trainer


def sum_of_ranks(trainer: pl.Trainer, number: float) -> float:
    """The sum of all ranks' numbers, in float32.  All of them have to ask."""
    own = torch.tensor(number, dtype=torch.float32, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(own, reduce_op="sum"))


def _has_gpu(accelerator: str) -> bool:
    return torch.cuda.is_available() or (accelerator == "gpu" and torch.backends.mps.is_available())
