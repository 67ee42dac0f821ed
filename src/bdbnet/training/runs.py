"""A training run from configuration to ``result.json``, and the evaluation of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from bdbnet.config import ConfigError, instantiate
from bdbnet.datasets import Manifest
from bdbnet.evaluation.error_analysis import analyse, clear_analysis
from bdbnet.evaluation.ranking_lists import write_ranking_lists
from bdbnet.loading import ReIDDataModule
from bdbnet.loading.from_config import build_data, build_manifest, build_protocol
from bdbnet.models import load_network, read_checkpoint
from bdbnet.renamed import with_todays_names
from bdbnet.results import BEST, LAST, RESULT, Result
from bdbnet.training.callbacks import (
    EvaluateLastEpoch,
    FiniteLossGuard,
    History,
    InterruptionHint,
    TrainingError,
    checkpoint_callbacks,
)
from bdbnet.training.module import ReIDModule
from bdbnet.training.progress import TrainingProgress
from bdbnet.training.resuming import check_resumable, clear_folder, prepare_folder
from bdbnet.training.setup import (
    build_module,
    build_network,
    build_trainer,
    check_evaluation,
    check_lengths,
    keep_freed_memory,
    main_metric,
    quiet_libraries,
    resolve_precision,
    seed_everything,
)


def train(config: DictConfig, folder: Path) -> Result:
    """Train, evaluate and record one run in ``folder``.

    Raises:
        ConfigError: settings that do not go together, or a folder that holds an earlier run.
        DatasetError, ImageError, CheckpointError, TrainingError: see there.
    """
    quiet_libraries()
    keep_freed_memory()
    check_evaluation(config)
    check_lengths(config)
    resume = prepare_folder(folder, config.ckpt_path, overwrite=config.overwrite)
    resolve_precision(config)
    seed_everything(config.seed)
    manifest = build_manifest(config)
    data = build_data(config, manifest, channels_last=config.trainer.channels_last)
    network, loaded = build_network(config, data.num_classes)
    if config.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    module = build_module(config, network, data.num_classes, train=True, fingerprint=manifest.fingerprint)
    module.top_k = config.evaluation.top_k
    if resume is not None:
        check_resumable(module, resume)
    history = History(folder, resumed_here=resume is None or resume.parent.resolve() == folder.resolve())
    callbacks = [
        FiniteLossGuard(),
        EvaluateLastEpoch(),
        history,
        InterruptionHint(),
        *instantiate(config.callbacks.extra),
    ]
    if config.callbacks.progress:
        callbacks.append(TrainingProgress())
    callbacks += checkpoint_callbacks(folder, main_metric(config), config.callbacks.checkpoint_every_n_epochs)
    trainer = build_trainer(config, folder, callbacks)
    trainer.check_val_every_n_epoch = config.evaluation.every_n_epochs
    if trainer.is_global_zero:
        _announce(config, folder, data, network, loaded, resume)
    for logger in trainer.loggers:
        logger.log_hyperparams(module.config)  # type: ignore[arg-type]
    module.configure_optimizers()  # tried before anything is thrown away
    if config.overwrite:
        clear_folder(folder)
    try:
        if config.evaluation.before_training and resume is None:
            trainer.validate(module, data, verbose=False)
            history.before, module.metrics_epoch = module.metrics, None
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        if not history.rows:
            raise TrainingError(
                f"no epoch was finished: trainer.max_time={config.trainer.max_time} or another limit of the trainer was reached"
            )
        if trainer.is_global_zero and history.replaced_images:
            print(f"{history.replaced_images} training images could not be read: others of their identities were taken")
        if trainer.is_global_zero and trainer.current_epoch < config.trainer.max_epochs:
            print(f"stopped after epoch {trainer.current_epoch} of {config.trainer.max_epochs}; ckpt_path=last goes on")
        if module.metrics_epoch != trainer.current_epoch - 1:  # stopped by time, or resumed at its end
            trainer.validate(module, data, verbose=False)
            history.evaluate_last(trainer, module.metrics)
        return _record_training(config, folder, trainer, module, manifest, history)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer, callbacks or logger: {error}") from error
    finally:
        for logger in trainer.loggers:
            if callable(finish := getattr(getattr(logger, "experiment", None), "finish", None)):
                finish()  # W&B: an unfinished run would swallow the next one of a sweep


def evaluate(config: DictConfig, folder: Path) -> Result:
    """Evaluate ``config.checkpoint`` on ``config.dataset`` and record it in ``folder``.

    Raises:
        ConfigError: the checkpoint does not say what network it is for and the configuration does not either.
        CheckpointError, DatasetError, ImageError: see there.
    """
    quiet_libraries()
    keep_freed_memory()
    check_evaluation(config)
    if not isinstance(config.analysis, bool):
        raise ConfigError(f"analysis={config.analysis}: give true or false")
    path = Path(config.checkpoint).expanduser()
    origin = architecture_of(config, path)
    seed_everything(config.seed)
    network, _ = build_network(origin.config, num_classes=0)
    load_network(network, path, classifiers="drop")
    network.to(memory_format=torch.channels_last)  # faster on CPUs, no slower elsewhere
    manifest = build_manifest(config)
    size = config.image_size or origin.test_size or config.dataset.test_size
    data = build_data(config, manifest, test_size=size, channels_last=True)
    module = build_module(config, network, 0, train=False)
    module.top_k, module.facts = config.evaluation.top_k, config.analysis
    trainer = build_trainer(config, folder, [TrainingProgress()])
    trainer.validate(module, data, verbose=False)
    result = Result(
        kind="evaluate",
        metrics=module.metrics,
        plain=module.plain_metrics,
        protocol=build_protocol(config, data),
        checkpoint=str(config.checkpoint),
        data=describe(manifest),
        config={**module.config, "trained_with": origin.trained_with},
        seed=config.seed,
        parameters=_count_parameters(network),
        embedding_dim=network.embedding_dim,
        seconds={"evaluate": round(module.evaluation_seconds, 2)},
        images_per_second={"evaluate": round(len(data.test_table) / module.evaluation_seconds, 2)},
    )
    if trainer.is_global_zero:
        clear_analysis(folder)
    _write(result, module, data, folder)
    if config.analysis and trainer.is_global_zero:
        assert module.evaluated is not None
        analyse(module.evaluated, data.test_table, folder, result)
    return result


def describe(manifest: Manifest) -> dict[str, Any]:
    """Name, fingerprint and counts of a dataset for ``result.json``."""
    counts = manifest.counts()
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "cameras": manifest.has_cameras,
        "counts": {str(role): {str(k): int(v) for k, v in row.items()} for role, row in counts.iterrows()},
    }


@dataclass(frozen=True)
class Origin:
    """Where a network's architecture is known from.

    Attributes:
        config: groups ``model``, ``backbone`` and ``dropping``, for ``build_network``.
        test_size: height and width of the test images it was trained for, pixels; None where the file doesn't say.
        trained_with: configuration of its training, None for bare weights.
    """

    config: DictConfig
    test_size: list[int] | None
    trained_with: dict[str, Any] | None


def architecture_of(config: DictConfig, path: Path) -> Origin:
    """The network that a checkpoint is for, by itself or by ``config.model`` and ``config.backbone`` for bare weights.

    Raises:
        ConfigError: both say it, or neither does.
        CheckpointError: see ``read_checkpoint``.
    """
    content = read_checkpoint(path)
    saved = content.get("bdbnet") if isinstance(content, dict) else None
    given = [group for group in ("model", "backbone") if config.get(group) is not None]
    if saved is None:
        if len(given) < 2:
            raise ConfigError(
                f"{path}: bare weights, which do not say what network they are for. Add model= and backbone=, for example "
                "model=baseline backbone=osnet_x0_25 for torchreid's OSNet x0.25."
            )
        parts = {"model": config.model, "backbone": {**config.backbone, "weights": "none"}}
        bare = OmegaConf.create({**parts, "dropping": {"_target_": "torch.nn.Identity"}})
        return Origin(bare, None, None)
    if given:
        raise ConfigError(f"{' and '.join(f'{name}=' for name in given)}: leave out, {path} knows its own network")
    settings = with_todays_names(saved["config"])
    trained = OmegaConf.create(settings)
    trained.backbone.weights = "none"
    size = trained.dataset.get("test_size") or trained.dataset.image_size
    return Origin(trained, list(size), settings)


def _record_training(
    config: DictConfig,
    folder: Path,
    trainer: pl.Trainer,
    module: ReIDModule,
    manifest: Manifest,
    history: History,
) -> Result:
    data: ReIDDataModule = trainer.datamodule  # type: ignore[attr-defined]
    monitor = main_metric(config)
    trainer.save_checkpoint(folder / LAST)
    # Epochs of another run, whose checkpoint this one went on from, have their best.ckpt elsewhere.
    evaluated = [row for row in history.rows if monitor in row and row["epoch"] > history.epochs_elsewhere]
    best = max(evaluated or history.rows[-1:], key=lambda row: row[monitor])
    if best is history.rows[-1]:
        trainer.save_checkpoint(folder / BEST, weights_only=True)
    result = Result(
        kind="train",
        metrics=module.metrics,
        plain=module.plain_metrics,
        protocol=build_protocol(config, data),
        checkpoint="last",
        data=describe(manifest) | ({} if (count := history.replaced_images) is None else {"replaced_images": count}),
        config=module.config,
        seed=config.seed,
        before=history.before,
        best={
            "metrics": {name: best[name] for name in module.metrics},
            "epoch": best["epoch"],
            "note": "chosen on the test set, so it flatters",
        },
        epochs=trainer.current_epoch,
        parameters=_count_parameters(module.network),
        embedding_dim=module.network.embedding_dim,
        seconds={"train": round(history.train_seconds, 2), "evaluate": round(module.evaluation_seconds, 2)},
        images_per_second={
            "train": round(history.images_per_second, 2),
            "evaluate": round(len(data.test_table) / module.evaluation_seconds, 2),
        },
    )
    _write(result, module, data, folder)
    return result


def _write(result: Result, module: ReIDModule, data: ReIDDataModule, folder: Path) -> None:
    if module.trainer.is_global_zero:
        result.write(folder / RESULT)  # first: what was measured must not be lost with a list that can't be written
        if module.evaluated is not None:
            write_ranking_lists(module.evaluated, data.test_table, folder)


def _count_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _announce(
    config: DictConfig,
    folder: Path,
    data: ReIDDataModule,
    network: torch.nn.Module,
    loaded: list[str],
    resume: Path | None,
) -> None:
    counts = data.manifest.counts()
    print(f"{data.manifest.name}: " + "; ".join(f"{role} {int(r['images'])} images of {int(r['identities'])} identities"
                                                 for role, r in counts.iterrows()))  # fmt: skip
    train, test = data.train_transform, data.test_transform
    part = "" if train.prepared_size == train.image_size else f", a random part of {_size(train.image_size)}"
    print(f"images: train {_size(train.prepared_size)}{part}; test {_size(test.image_size)}")
    if not data.manifest.has_cameras:
        evaluated = "Recall@K" if config.dataset.protocol == "retrieval" else "Rank-k and mAP over all other images"
        print(f"no cameras: evaluated by the {config.dataset.protocol} protocol ({evaluated})")
    weights = config.backbone.get("weights") or "none"
    start = (
        f"{', '.join(loaded)} from {weights}"
        if loaded
        else {"none": "random weights"}.get(weights, f"{weights} weights")
    )
    print(f"network: {_count_parameters(network) / 1e6:.2f} M parameters, {start}; {config.trainer.precision}")
    print(f"run folder: {folder}" + (f", going on from {resume}" if resume else ""))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
