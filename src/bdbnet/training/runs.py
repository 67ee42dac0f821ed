"""A training run from configuration to ``result.json``."""

from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from torch.nn.modules.batchnorm import _BatchNorm

from bdbnet.command_line import is_first
from bdbnet.config import ConfigError, check_settings, plain
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.evaluate import build_test_set, describe, write_outcome
from bdbnet.evaluation.load import settings_of
from bdbnet.evaluation.network import build_network, count_parameters
from bdbnet.evaluation.protocol import build_protocol, main_metric
from bdbnet.evaluation.run_log import Outcome, Place, facts_of, logged
from bdbnet.evaluation.trainer import build_trainer, keep_freed_memory, quiet_libraries, seed_everything
from bdbnet.files import LockedError, locked
from bdbnet.loading import Preprocessing, ReIDDataModule
from bdbnet.loading.from_config import build_data, build_manifest
from bdbnet.models import EmbeddingNetwork
from bdbnet.results import BEST, LAST, Result
from bdbnet.stopping import Stopped, signals_kept
from bdbnet.training.callbacks import (
    EpochLog,
    EpochTimer,
    EvaluateLastEpoch,
    FiniteLossGuard,
    History,
    InterruptionHint,
    NotFiniteError,
    TrainingError,
    nothing_kept,
)
from bdbnet.training.checkpoint_files import CheckpointFiles, finish_writing
from bdbnet.training.checkpoints import Signals, checkpoint_callbacks, clear_auxiliary, clear_unfinished
from bdbnet.training.further_tests import further_tests
from bdbnet.training.joining import Rendezvous, facts_of_rank, told_before_meeting
from bdbnet.training.module import TrainingModule
from bdbnet.training.monitors import check_monitors
from bdbnet.training.processor_time import ProcessorTime
from bdbnet.training.progress import TrainingProgress
from bdbnet.training.restoring import fit
from bdbnet.training.resuming import check_resumable, clear_folder, prepare_folder
from bdbnet.training.setup import build_module, extra_callbacks, resolve_compile, resolve_precision
from bdbnet.training.step import cache_folder
from bdbnet.training.sync_norm import layer_sync_of
from bdbnet.training.union import read_members, training_sets
from bdbnet.wording import counted, trained_on_lines


@told_before_meeting()
def train(config: DictConfig, folder: Path, place: Place | None = None) -> Result:
    """Train, evaluate and record one run in ``folder``.

    Args:
        place: what the run is called in its loggers, where another command than `train` asks for it.

    Raises:
        ConfigError: settings that do not go together, a folder that holds an earlier run, or one that another process trains in.
        DatasetError, ImageError, CheckpointError, TrainingError: see there.
        Stopped: a signal ended the training; the checkpoint of the last step is there.
    """
    if not is_first():  # the first rank holds the lock, and says what happened
        try:
            return _train(config, folder, place)
        except (Stopped, NotFiniteError):
            # The first rank says it; another status of a rank that Lightning has started would kill that one.
            raise SystemExit(0) from None
    try:
        lock = locked(folder, timeout=0)
    except LockedError as error:
        raise ConfigError(
            f"{folder}: another process is training there. Wait for its end, or give this run a folder of its own: "
            "run_name=<another name>"
        ) from error
    with lock:
        clear_unfinished(folder)
        return _train(config, folder, place)


def _train(config: DictConfig, folder: Path, place: Place | None) -> Result:
    clock = ProcessorTime()
    quiet_libraries()
    keep_freed_memory()
    check_settings(config, "train")
    resume = prepare_folder(folder, config.ckpt_path, overwrite=config.overwrite)
    resolve_precision(config)
    seed_everything(config.seed)
    manifest = build_manifest(config)
    members = read_members(config, manifest)
    sets = training_sets(manifest, members)
    data = build_data(config, manifest, sets=sets, channels_last=config.trainer.channels_last)
    compiling = resolve_compile(config, len(data.train_sampler()), resume)
    data.normalizes = not config.trainer.compile  # a compiled step does it
    network, loaded = build_network(config, data.num_classes)
    if config.trainer.channels_last:
        network.to(memory_format=torch.channels_last)
    preprocessing = Preprocessing(
        data.test_transform.image_size, data.test_transform.pad_to_square, config.loading.decode_margin
    )
    embedder = Embedder(
        network, preprocessing, settings_of(config.evaluation), channels_last=bool(config.trainer.channels_last)
    )
    further = further_tests(config, data.test_transform.image_size, members)
    data.further_tests = tuple((each.manifest, each.transform) for each in further)
    tests = [build_test_set(config, manifest), *(each.test for each in further)]
    module = build_module(config, embedder, tests, data.num_classes, sets.fingerprint)
    here = resume is None or resume.parent.resolve() == folder.resolve()
    history, signals = History(folder, resumed_here=here), Signals()
    log = EpochLog(history)
    callbacks = [clock, *_callbacks(config, folder, module, log, signals, resumed_here=here)]
    trainer = build_trainer(config, folder, callbacks, layer_sync_of(config, network))
    data.train_sampler(world_size=trainer.world_size)  # refused here, before other ranks are started
    rendezvous = Rendezvous(trainer, lambda: facts_of_rank(plain(config), sets, resume), config.trainer.join_seconds)
    trainer.strategy.checkpoint_io = CheckpointFiles()
    if resume is not None:
        synced = bool(config.trainer.sync_batchnorm)
        check_resumable(module, resume, trainer.world_size, other_ranks=config.other_ranks, same_on_ranks=synced)
    trainer.check_val_every_n_epoch = config.evaluation.every_n_epochs
    if trainer.is_global_zero:
        _announce(config, folder, data, network, loaded, resume)
        if config.trainer.compile or compiling:
            print(
                f"torch.compile: {compiling or 'on'}"
                + (f"; kept in {cache_folder()}" if config.trainer.compile else "")
            )
        if trainer.world_size > 1:
            _announce_ranks(config, network, trainer.world_size)
    module.configure_optimizers()  # tried before anything is deleted
    facts = facts_of(
        "train", config, folder, data=_described(data), protocol=build_protocol(config, data).record(),
        place=place, anew=bool(config.overwrite) and resume is None,
    )  # fmt: skip
    with logged(trainer.loggers, facts) as log.run_log:
        # A job that SLURM has queued again resumes its own work. The first rank alone holds the folder's lock.
        if config.overwrite and resume is None and not cast(Any, rank_zero_only).rank:
            clear_folder(folder)
        with signals_kept(), rendezvous.told():
            result = _fit_and_record(config, folder, trainer, module, data, resume, log, clock)
        if signals.asked is not None:  # in the last epoch: this run is finished, those that would follow are not wanted
            raise Stopped(signals.asked)
        return result


def _callbacks(
    config: DictConfig,
    folder: Path,
    module: TrainingModule,
    log: EpochLog,
    signals: Signals,
    *,
    resumed_here: bool,
) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = [
        signals,
        FiniteLossGuard(),
        EvaluateLastEpoch(),
        log.history,
        log,
        InterruptionHint(),
        *extra_callbacks(config),
    ]
    check_monitors(callbacks, module)
    if config.callbacks.progress:
        callbacks.append(TrainingProgress(log.history))
    callbacks += checkpoint_callbacks(
        folder,
        main_metric(config),
        signals,
        log.history.waits,
        every_n_epochs=config.callbacks.checkpoint_every_n_epochs,
        every_seconds=config.callbacks.checkpoint_every_seconds,
        resumed_here=resumed_here,
    )
    if config.trainer.max_time is not None:
        callbacks.append(EpochTimer(config.trainer.max_time))
    return callbacks


def _fit_and_record(
    config: DictConfig,
    folder: Path,
    trainer: pl.Trainer,
    module: TrainingModule,
    data: ReIDDataModule,
    resume: Path | None,
    log: EpochLog,
    clock: ProcessorTime,
) -> Result:
    history = log.history
    try:
        if config.evaluation.before_training and resume is None:
            trainer.validate(module, data, verbose=False)
            history.before, module.metrics_epoch = module.own_metrics(), None
            log.send_before()
        fit(trainer, module, data, resume)
        if not history.rows:
            raise TrainingError(
                f"no epoch was finished: trainer.max_time={config.trainer.max_time} or another limit of the trainer was reached"
            )
        if trainer.is_global_zero and history.replaced_images:
            print(
                f"{counted(history.replaced_images, 'training image')} could not be read: another of the same identity was taken"
            )
        if trainer.is_global_zero and trainer.current_epoch < config.trainer.max_epochs:
            print(
                f"stopped after epoch {trainer.current_epoch} of {config.trainer.max_epochs}; resume with ckpt_path=last"
            )
        if module.metrics_epoch != trainer.current_epoch - 1:  # stopped by time, or resumed at its end
            trainer.validate(module, data, verbose=False)
            history.evaluate_last(trainer, module.metrics)
            log.send()
        result = _record_training(config, folder, trainer, module, history, clock)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer, callbacks or logger: {error}") from error
    except torch.OutOfMemoryError as error:
        raise TrainingError(_out_of_memory(config, folder, trainer, data)) from error
    finally:  # before the folder's lock is given up
        trainer.strategy.checkpoint_io.teardown()
    if log.run_log is not None:
        size = module.embedder.preprocessing.image_size
        with module.evaluated_weights():
            log.run_log.outcome(Outcome(result, folder, module.tests[0], data.manifest.root, module.network, size))
    return result


def _out_of_memory(config: DictConfig, folder: Path, trainer: pl.Trainer, data: ReIDDataModule) -> str:
    """What to do where the device has too little memory for the training's settings."""
    own, last = config.sampler.batch_size // trainer.world_size, folder / LAST
    freed = "; loading.cache=packed frees that of the cached images" if data.cache == "device" else ""
    kept = (
        f"Kept: {last}. The last two can change on resuming (ckpt_path=last); a new run with a smaller batch or size starts "
        f"from its weights with backbone.weights={last}"
        if last.is_file()
        else nothing_kept(trainer)
    )
    return (
        f"the memory of {trainer.strategy.root_device} is not enough for {own} training images of "
        f"{_size(data.train_transform.image_size)} in a step (sampler.batch_size={config.sampler.batch_size}, "
        f"dataset.image_size), or for {config.loading.test_batch_size} test images of "
        f"{_size(data.test_transform.image_size)}, in {config.trainer.precision}. Lower sampler.batch_size or "
        f"dataset.image_size, or loading.test_batch_size where it was an evaluation, or set trainer.precision=bf16-mixed{freed}. "
        f"{kept}"
    )


def _record_training(
    config: DictConfig,
    folder: Path,
    trainer: pl.Trainer,
    module: TrainingModule,
    history: History,
    clock: ProcessorTime,
) -> Result:
    data: ReIDDataModule = cast(Any, trainer).datamodule
    monitor = main_metric(config)
    trainer.save_checkpoint(folder / LAST)
    # Epochs of another run, from whose checkpoint this one resumed, have their best.ckpt elsewhere.
    evaluated = [row for row in history.rows if monitor in row and row["epoch"] > history.epochs_elsewhere]
    best = max(evaluated or history.rows[-1:], key=lambda row: row[monitor])
    if best is history.rows[-1]:
        trainer.save_checkpoint(folder / BEST, weights_only=True)
    finish_writing(trainer)  # a folder with a result is that of a finished run
    processor_seconds = clock.total(trainer)
    result = Result(
        kind="train",
        metrics=module.own_metrics(),
        further=module.further_metrics() or None,
        plain=module.plain_metrics,
        protocol=build_protocol(config, data),
        checkpoint="last",
        data=_described(data) | ({} if (count := history.replaced_images) is None else {"replaced_images": count}),
        config=module.record.config,
        seed=config.seed,
        before=history.before,
        best={
            "metrics": {name: best[name] for name in module.own_metrics() if name in best},
            "epoch": best["epoch"],
            "note": "selected on the test set; optimistically biased",
        },
        epochs=trainer.current_epoch,
        parameters=count_parameters(module.network),
        embedding_dim=module.network.embedding_dim,
        seconds={"train": round(history.train_seconds, 2), "evaluate": round(module.evaluation_seconds, 2)},
        images_per_second={
            "train": round(history.images_per_second, 2),
            "evaluate": round(sum(len(test.table) for test in module.tests) / module.evaluation_seconds, 2),
        },
        processor_seconds=None if processor_seconds is None else round(processor_seconds, 2),
    )
    if trainer.is_global_zero:
        write_outcome(result, module.tests[0], folder, config.evaluation.top_k, queries=True)
        clear_auxiliary(folder)
    return result


def _described(data: ReIDDataModule) -> dict[str, Any]:
    """The data set whose test part is the run's own, and, of a union, all that is trained on."""
    trained_on = data.training_sets.record()
    return describe(data.manifest) | ({} if trained_on is None else {"trained_on": trained_on})


def _announce(
    config: DictConfig,
    folder: Path,
    data: ReIDDataModule,
    network: EmbeddingNetwork,
    loaded: list[str],
    resume: Path | None,
) -> None:
    counts = data.manifest.counts()
    parts = [
        f"{role} {counted(int(of['images']), 'image')} of {counted(int(of['identities']), 'identity', 'identities')}"
        for role, of in counts.iterrows()
    ]
    print(f"{data.manifest.name}: {'; '.join(parts)}")
    for line in trained_on_lines(_described(data)):
        print(line)
    train, test = data.train_transform, data.test_transform
    part = "" if train.prepared_size == train.image_size else f", a random part of {_size(train.image_size)}"
    print(f"images: train {_size(train.prepared_size)}{part}; test {_size(test.image_size)}")
    if not data.manifest.has_cameras:
        evaluated = "Recall@K" if config.dataset.protocol == "retrieval" else "Rank-k and mAP over all other images"
        print(f"no cameras: evaluated by the {config.dataset.protocol} protocol ({evaluated})")
    weights = config.backbone.get("weights") or "none"
    start = (
        f"{', '.join(part.removesuffix('_') for part in loaded)} from {weights}"
        if loaded
        else {"none": "random weights"}.get(weights, f"{weights} weights")
    )
    print(f"network: {count_parameters(network) / 1e6:.2f} M parameters, {start}; {config.trainer.precision}")
    if weights != "none" and (new := getattr(network.backbone, "new_layers", ())):
        print(
            f"new in the backbone, of random weights: {', '.join(new)} (non-local blocks, which add nothing at the start)"
        )
    if config.averaging.decay is not None:
        print(f"weights: their moving average is evaluated and kept, of decay {config.averaging.decay}")
    print(f"run folder: {folder}" + (f", resuming from {resume}" if resume else ""))


def _announce_ranks(config: DictConfig, network: EmbeddingNetwork, ranks: int) -> None:
    normalised = any(isinstance(layer, _BatchNorm) for layer in network.modules())
    images, own = config.sampler.batch_size, config.sampler.batch_size // ranks
    print(f"{ranks} processes: each step has {images} images, {own} for each of them")
    if normalised:
        of = f"all {images}" if config.trainer.sync_batchnorm else f"its own {own}"
        print(f"batch normalisation: each process takes the statistics of {of} images")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
