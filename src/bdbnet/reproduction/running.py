"""Trainings of the missing cells: one process per cell, stopped ones resumed, finished ones never repeated."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, is_ours
from bdbnet.evaluation.test_set import EvaluationError
from bdbnet.models import CheckpointError, read_checkpoint
from bdbnet.reproduction.cells import CELL, FAILURE, LOCK, Cell, Run, State, compose_training
from bdbnet.results import BEST, LAST, RESULT, write_atomically
from bdbnet.training.callbacks import TrainingError
from bdbnet.training.runs import train


class Job(NamedTuple):
    """A training that tables ask for, and the places where they show it."""

    cell: Cell
    seed: int
    places: tuple[str, ...]


def run_missing(
    jobs: Sequence[Job],
    *,
    retry: bool = False,
    keep_checkpoints: bool = True,
    seconds: float | None = None,
    device: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Run]:
    """Train and evaluate every job that has no result yet.

    Several processes may do this at once with the same folder: each job is trained by the one that locks it first. A job
    whose data are absent, or that another process trains, is left out; a training that fails is recorded with its reason
    and not tried again unless ``retry``.

    Args:
        jobs: in the order in which they are run.
        retry: try failed ones again.
        keep_checkpoints: false: remove the weights of a run that is done.
        seconds: start no further training after this time.
        device: number of the GPU to use; None leaves the choice to Lightning.
        say: where progress goes.

    Returns:
        The state of every job afterwards, in the same order.
    """
    began, outcomes = time.monotonic(), []
    for number, job in enumerate(jobs, start=1):
        run = job.cell.inspect(job.seed)
        heading = f"[{number}/{len(jobs)}] {_named(job)}"
        wanted = run.state in (State.OPEN, State.STARTED) or (retry and run.state is State.FAILED)
        if wanted and seconds is not None and time.monotonic() - began > seconds:
            say(f"{heading}: not started, max_hours is over")
        elif wanted:
            run = _run_locked(job, heading, keep_checkpoints, device, say)
        else:
            say(f"{heading}: {run.state}" + (f" ({run.remark})" if run.remark else ""))
        outcomes.append(run)
    return outcomes


def _named(job: Job) -> str:
    """The first place that shows a training; of the others the tables."""
    first, *others = job.places
    tables = dict.fromkeys(place.partition(":")[0] for place in others if not place.startswith(first.partition(":")[0]))
    return first + (f" (also {', '.join(tables)})" if tables else "") + f", seed {job.seed}"


def _run_locked(job: Job, heading: str, keep_checkpoints: bool, device: int | None, say: Callable[[str], None]) -> Run:
    folder = job.cell.folder / f"seed={job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=2):
            # Another process may have finished it before this one got the lock.
            if (folder / RESULT).is_file() and (run := job.cell.check(folder, job.seed)).state is State.DONE:
                return run
            say(f"\n{heading}")
            (folder / FAILURE).unlink(missing_ok=True)
            write_atomically(job.cell.folder / CELL, job.cell.record())
            _train(job, folder, device, say)
    except Timeout:
        say(f"{heading}: {State.RUNNING} (another process trains it)")
        return Run(folder, job.seed, State.RUNNING, remark="another process trains it")
    run = job.cell.inspect(job.seed)
    if run.state is State.DONE and not keep_checkpoints:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
    return run


def _train(job: Job, folder: Path, device: int | None, say: Callable[[str], None]) -> None:
    """Train in ``folder``; errors are printed, and recorded where the training itself is to blame."""
    config = _configuration(job, folder, device, say)
    try:
        _refuse_several_devices(config)
        train(config, folder)
    except (TrainingError, EvaluationError) as error:
        _record_failure(folder, str(error))
        say(f"failed: {error}")
    except Exception as error:
        if is_ours(error) or isinstance(error, OSError):  # data, weights or a folder, which the next attempt may find
            say(f"not run: {error}")
            return
        _record_failure(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
        say(f"failed: {type(error).__name__}: {error}")
    finally:
        gc.collect()  # a Lightning trainer and its parts refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _configuration(job: Job, folder: Path, device: int | None, say: Callable[[str], None]) -> DictConfig:
    config = deepcopy(compose_training(job.cell.overrides))
    config.seed, config.run_name = job.seed, f"{job.cell.folder.name}/seed={job.seed}"
    if (folder / LAST).is_file():
        try:
            read_checkpoint(folder / LAST)
            config.ckpt_path = "last"
        except CheckpointError as error:  # written by half when the process was killed
            aside = folder / f"{LAST}.damaged"
            (folder / LAST).replace(aside)
            say(f"{error}\nkept as {aside}; the training starts from the first epoch")
    if device is not None:
        config.trainer.devices = [device]
    if config.logger.logger is not None and "save_dir" in config.logger.logger:
        config.logger.logger.save_dir = str(folder)  # otherwise the folder of the command
    return config


def _refuse_several_devices(config: DictConfig) -> None:
    """Lightning would start this whole command again for every further device, and those would wait for the lock."""
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    if nodes != 1 or not (devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)):
        raise ConfigError(
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: a training of reproduce has one device; keep several busy "
            "with -m worker=0,1,..., or train this cell with bdbnet.train"
        )


def _record_failure(folder: Path, reason: str, trace: str = "") -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"reason": reason, "trace": trace, "created": now}, indent=2) + "\n"
    write_atomically(folder / FAILURE, text.encode())
