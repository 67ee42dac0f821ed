"""From a configuration to the objects that a run needs."""

import ctypes
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import pytorch_lightning.callbacks
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torchmetrics import Metric

from bdbnet.config import ConfigError, arguments_of, check_class, instantiate, is_ours, is_set, locate, without
from bdbnet.loading.from_config import is_reid, query_expansion, query_pooling, reranking, single_shot
from bdbnet.models import EmbeddingNetwork, initialize_from
from bdbnet.retrieval import POOLINGS, ReIDMetrics, RetrievalRecall
from bdbnet.training.callbacks import EpochTimer
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.module import ReIDModule
from bdbnet.training.objective import build_metric_loss, build_schedule, optimizer_factory

#: Keys of the trainer group that are ours, not Lightning's.
_OWN_TRAINER_KEYS = frozenset({"channels_last", "compile"})

#: Keys of Lightning's that would evaluate a part of the test set under the name of the whole.
_PARTIAL = ("fast_dev_run", "limit_val_batches", "overfit_batches")

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def has_native_bfloat16(accelerator: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware, where it is several times as fast as float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator in ("auto", "cpu"):
        # Not public in PyTorch, so that a release may drop them: then the answer is no.
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe is not None and probe() for probe in probes)
    return False


def resolve_precision(config: DictConfig) -> None:
    """Replace ``auto`` in ``trainer.precision`` and ``trainer.channels_last`` by what this device is fastest with."""
    trainer = config.trainer
    if trainer.precision == "auto":
        trainer.precision = "bf16-mixed" if has_native_bfloat16(trainer.accelerator) else "32-true"
    if trainer.channels_last == "auto":
        trainer.channels_last = str(trainer.precision) in ("bf16-mixed", "16-mixed")


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


def seed_everything(seed: Any) -> None:
    """Seed initial weights; batches, augmentation and masks take the seed by themselves."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}")
    pl.seed_everything(seed, workers=True, verbose=False)


def quiet_libraries() -> None:
    """Keep hints for programmers of the libraries out of a user's terminal; errors and our own warnings stay."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*", ".*Checkpoint directory.*exists and is not empty.*",
        ".*number of training batches.*is smaller than the logging interval.*", ".*treespec, LeafSpec.*",
        ".*You are running on a GPU.*", ".*tensorboardX.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)


def build_network(
    config: DictConfig, num_classes: int, *, ours_only: bool = False
) -> tuple[EmbeddingNetwork, list[str]]:
    """The network, and the names of its parts that start from a file of weights.

    Args:
        config: groups ``model``, ``backbone`` and, for networks with branches, ``dropping``.
        num_classes: identities that the classifiers know; 0 leaves them out.
        ours_only: the config comes from a checkpoint, not from the user: only networks of bdbnet are built.

    Raises:
        ConfigError: settings that a class refuses, a class that is not allowed, or a backbone that is none.
    """
    backbone = _build_backbone(config, ours_only=ours_only)
    # Networks with a choice of branches have a drop layer; others have no use for one.
    drop = {"dropping": instantiate(config.dropping, ours_only=ours_only)} if "branches" in config.model else {}
    network: EmbeddingNetwork = instantiate(
        config.model, ours_only=ours_only, num_classes=num_classes, backbone=backbone, **drop
    )
    weights = config.backbone.get("weights")
    if weights in (None, "none", "imagenet"):
        return network, []
    return network, initialize_from(network, weights)


def _build_backbone(config: DictConfig, *, ours_only: bool) -> torch.nn.Module:
    settings, target = config.backbone, config.backbone.get("_target_")
    check_class(settings, "backbone", ours_only=ours_only)
    weights = settings.get("weights")
    is_own = str(target).startswith("bdbnet.")
    if not is_own and "weights" in settings and "weights" not in arguments_of(locate(target)):
        if weights == "imagenet":
            raise ConfigError(f"backbone.weights=imagenet: {target} has no argument `weights`; give none, or a file")
        settings = without(settings, ["weights"])
    backbone = instantiate(settings, ours_only=ours_only)
    if not isinstance(backbone, torch.nn.Module):
        raise ConfigError(f"backbone {target} is a {type(backbone).__name__}; expected a torch.nn.Module")
    channels = getattr(backbone, "out_channels", None)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ConfigError(
            f"backbone {target} has no out_channels: set self.out_channels to the number of channels of its feature map"
        )
    if not is_own and is_set(config.get("dataset"), "image_size"):
        _check_feature_map(backbone, target, list(config.dataset.image_size))
    return backbone


def _check_feature_map(backbone: torch.nn.Module, name: str, size: list[int]) -> None:
    """Try a backbone of a plugin on two blank images, before anything is written."""
    expected = f"expected a feature map (N, C, H, W), here (2, {backbone.out_channels}, H, W)"
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval()(torch.zeros(2, 3, *size))
    except Exception as error:
        raise ConfigError(
            f"backbone {name} fails on images (2, 3, {size[0]}, {size[1]}): {type(error).__name__}: {error}"
        ) from error
    finally:
        backbone.train(training)
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"backbone {name} returned a {type(found).__name__}; {expected}")
    if found.ndim != 4 or found.shape[:2] != (2, backbone.out_channels):
        raise ConfigError(f"backbone {name} returned shape {tuple(found.shape)}; {expected}")


def build_metric(config: DictConfig, *, progress: bool = False) -> Metric:
    """What the dataset's protocol is evaluated by; with ``progress`` re-ranking shows a bar."""
    evaluation = config.evaluation
    try:
        search: dict[str, Any] = {
            "distance": evaluation.distance,
            "query_expansion": query_expansion(config),
            "rerank": reranking(config),
            "chunk_memory_mb": evaluation.chunk_memory_mb,
            "progress": progress and rank_zero_only.rank == 0,  # type: ignore[attr-defined]
        }
        if is_reid(config):
            return ReIDMetrics(
                tuple(evaluation.ranks),
                ap_at=evaluation.ap_at,
                query_pooling=query_pooling(config),
                single_shot=single_shot(config),
                **search,
            )
        return RetrievalRecall(tuple(evaluation.recall_at), precision=True, **search)
    except ValueError as error:
        raise ConfigError(f"evaluation: {error}") from error


def check_lengths(config: DictConfig) -> None:
    """Refuse a number of epochs or steps that is none.  Raises ConfigError that names the key."""
    numbers = {
        "trainer.max_epochs": config.trainer.max_epochs,
        "trainer.accumulate_grad_batches": config.trainer.accumulate_grad_batches,
        "callbacks.checkpoint_every_n_epochs": config.callbacks.checkpoint_every_n_epochs,
    }
    for key, value in numbers.items():
        if not _is_whole(value, 1):
            raise ConfigError(f"{key}={value}: give a whole number of at least 1")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_views(settings: DictConfig) -> None:
    """Refuse views of an image, in the group ``evaluation``, that can't be embedded.  Raises ConfigError that names the key."""
    if not isinstance(settings.flip, bool):
        raise ConfigError(f"evaluation.flip={settings.flip}: give true or false")
    scales = settings.scales
    fine = OmegaConf.is_list(scales) and all(
        isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf for scale in scales
    )
    if scales is not None and not fine:
        raise ConfigError(f"evaluation.scales={scales}: give a list of factors above 0, such as [1,1.5], or null")


def check_evaluation(config: DictConfig) -> None:
    """Refuse settings of the evaluation that would fail only when the first epochs have been trained.

    Raises:
        ConfigError: names the key.
    """
    settings = config.evaluation

    for key in ("ranks", "recall_at"):
        if not settings[key] or not all(_is_whole(value, 1) for value in settings[key]):
            raise ConfigError(f"evaluation.{key}={settings[key]}: give a list of whole numbers of at least 1")
    for key, least in (("every_n_epochs", 1), ("top_k", 0), ("single_shot", 1)):
        if not _is_whole(settings[key], least):
            raise ConfigError(f"evaluation.{key}={settings[key]}: give a whole number of at least {least}")
    if settings.ap_at is not None and not _is_whole(settings.ap_at, 1):
        raise ConfigError(
            f"evaluation.ap_at={settings.ap_at}: give a whole number of at least 1, or null for the full list"
        )
    check_views(settings)
    if settings.query_pooling not in POOLINGS:
        raise ConfigError(f"evaluation.query_pooling={settings.query_pooling}: choose one of {', '.join(POOLINGS)}")
    if not isinstance(settings.chunk_memory_mb, int | float) or not settings.chunk_memory_mb > 0:
        raise ConfigError(f"evaluation.chunk_memory_mb={settings.chunk_memory_mb}: give a number of MiB above 0")


def main_metric(config: DictConfig) -> str:
    """The number by which the best checkpoint is chosen: Rank-1 or Recall@1."""
    if is_reid(config):
        return f"rank{min(config.evaluation.ranks)}"
    return f"recall@{min(config.evaluation.recall_at)}"


def build_module(
    config: DictConfig, network: EmbeddingNetwork, num_classes: int, *, train: bool, fingerprint: str | None = None
) -> ReIDModule:
    """The LightningModule; without ``train`` it can only evaluate."""
    settings: dict[str, Any] = {}
    if train:
        loss = config.loss
        rate = config.backbone_rate
        if rate is not None and not (isinstance(rate, int | float) and rate > 0):
            raise ConfigError(f"backbone_rate={rate}: give a factor above 0, or null")
        settings = {
            "criterion": BranchLosses(
                build_metric_loss(config, network, num_classes), name=loss.name, metric_weight=loss.metric_weight,
                softmax_weight=loss.softmax_weight, label_smoothing=loss.label_smoothing,
            ),
            "optimizer": optimizer_factory(config.optimizer),
            "backbone_rate": rate,
            "schedule": build_schedule(config),
            "compile": config.trainer.compile,
        }  # fmt: skip
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return ReIDModule(
        network,
        metric=build_metric(config, progress=not train),
        config=plain,
        num_classes=num_classes,
        fingerprint=fingerprint,
        normalize=config.evaluation.normalize,
        precision=config.evaluation.precision,
        flip=config.evaluation.flip,
        scales=config.evaluation.scales or (),
        **settings,
    )


def build_trainer(config: DictConfig, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's trainer with the settings of ``config.trainer``, logging into ``folder`` alone."""
    settings: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    for key in _OWN_TRAINER_KEYS:
        settings.pop(key, None)
    groups = [config.get("logger"), *(config.get("loggers") or {}).values()]
    progress = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks)
    limit = settings.pop("max_time", None)
    for key in _PARTIAL:
        if key in settings:
            raise ConfigError(f"trainer.{key}: a part of the test set can't stand for the whole; leave it out")
    # Convolutions round to ten bits otherwise, on GPUs, even where float32 is asked for.
    torch.backends.cudnn.allow_tf32 = False
    try:
        timer = [] if limit is None else [EpochTimer(limit)]
        return pl.Trainer(
            **settings,
            logger=[instantiate(group.logger) for group in groups if is_set(group, "logger")] or False,
            callbacks=[*callbacks, *timer],
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
