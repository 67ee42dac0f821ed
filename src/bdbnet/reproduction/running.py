"""Trainings of the missing cells: one process per cell, stopped ones resumed, finished ones never repeated."""

import gc
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.command_line import one_logger_each
from bdbnet.config import ConfigError, is_ours
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.run_log import Place
from bdbnet.evaluation.test_set import EvaluationError
from bdbnet.files import LockedError, is_about_writing, locked, write_atomically
from bdbnet.models import CheckpointError, read_checkpoint
from bdbnet.reproduction.cells import (
    CELL,
    FAILURE,
    Cell,
    EvaluationCell,
    Run,
    State,
    compose_evaluation,
    compose_training,
)
from bdbnet.results import BEST, LAST, PREVIOUS, RESULT
from bdbnet.training.callbacks import TrainingError
from bdbnet.training.resuming import latest_checkpoint, set_aside
from bdbnet.training.runs import train

_OVER = "not started, max_hours is over"


class IncompleteError(RuntimeError):
    """Trainings that were asked for and have no result; the message says how many, and why."""


class Job(NamedTuple):
    """A training or an evaluation that tables ask for, the places where they show it, and whether a picture needs its network."""

    cell: Cell
    seed: int
    places: tuple[str, ...]
    pictured: bool = False


class _Way(NamedTuple):
    """How trainings are run: number of the GPU, choices of the group `logger`, and where progress goes."""

    device: int | None
    loggers: tuple[str, ...]
    say: Callable[[str], None]


def run_missing(
    jobs: Sequence[Job],
    *,
    retry: bool = False,
    keep_checkpoints: bool = True,
    seconds: float | None = None,
    device: int | None = None,
    loggers: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Run]:
    """Train and evaluate every job that has no result yet.

    Several processes may do this at once with the same folder: each job is trained by the one that locks it first. A job
    whose data are absent, or that another process trains, is left out; a training that fails is recorded with its reason
    and not tried again unless ``retry``.

    Args:
        jobs: in the order in which they are run.
        retry: try failed ones again, and those whose network a picture needs and that was not kept.
        keep_checkpoints: false: remove the weights of a run that is done, unless a picture needs them.
        seconds: start no further training after this time.
        device: number of the GPU to use; None leaves the choice to Lightning.
        loggers: choices of the group `logger`, beside those of the cell.
        say: where progress goes.

    Returns:
        The state of every job afterwards, in the same order.
    """
    began, outcomes = time.monotonic(), []
    for number, job in enumerate(jobs, start=1):
        run = job.cell.inspect(job.seed)
        heading = f"[{number}/{len(jobs)}] {_named(job)}"
        wanted = run.state in (State.OPEN, State.STARTED) or (retry and run.state is State.FAILED)
        if retry and job.pictured and run.state is State.DONE and not (run.folder / LAST).is_file():
            wanted = True
        if wanted and seconds is not None and time.monotonic() - began > seconds:
            say(f"{heading}: {_OVER}")
            run = replace(run, remark=_OVER)
        elif wanted:
            run = _run_locked(job, heading, keep_checkpoints, _Way(device, tuple(loggers), say))
        else:
            say(f"{heading}: {run.state}" + (f" ({run.remark})" if run.remark else ""))
        outcomes.append(run)
    return outcomes


def check_complete(runs: Sequence[Run], weights_root: str) -> None:
    """Raise IncompleteError where trainings have no result, unless others train them or their time was over.

    Args:
        runs: as `run_missing` returns them.
        weights_root: folder in which weight files are looked for.
    """
    missing = [run for run in runs if run.state not in (State.DONE, State.RUNNING) and run.remark != _OVER]
    if not missing:
        return
    reasons = Counter(
        f"{run.state}" + (f": {run.remark.partition(chr(10))[0]}" if run.remark else "") for run in missing
    )
    lines = [
        f"{len(missing)} of {len(runs)} trainings have no result:",
        *(f"  {count} x {reason}" for reason, count in reasons.items()),
    ]
    if any(run.remark.startswith(f"{Path(weights_root)}/") for run in missing):
        lines.append(
            f"Weight files are looked for in weights_root={weights_root}: put them there, or give weights_root=<their folder>."
        )
    raise IncompleteError("\n".join(lines))


def _named(job: Job) -> str:
    """The first place that shows a training; of the others the tables."""
    first, *others = job.places
    tables = dict.fromkeys(place.partition(":")[0] for place in others if not place.startswith(first.partition(":")[0]))
    return first + (f" (also {', '.join(tables)})" if tables else "") + f", seed {job.seed}"


def _run_locked(job: Job, heading: str, keep_checkpoints: bool, way: _Way) -> Run:
    say = way.say
    folder = job.cell.folder / f"seed={job.seed}"
    try:
        with locked(folder, timeout=2):
            # Another process may have finished it before this one got the lock.
            if (folder / RESULT).is_file() and (run := job.cell.check(folder, job.seed)).state is State.DONE:
                if not job.pictured or (folder / LAST).is_file():
                    return run
                set_aside(folder / RESULT)
            say(f"\n{heading}")
            (folder / FAILURE).unlink(missing_ok=True)
            write_atomically(job.cell.folder / CELL, job.cell.record())
            refused = _train(job, folder, way)
    except LockedError:
        say(f"{heading}: {State.RUNNING} (another process trains it)")
        return Run(folder, job.seed, State.RUNNING, remark="another process trains it")
    run = job.cell.inspect(job.seed)
    if refused and run.state is not State.DONE:
        return replace(run, remark=refused)
    if run.state is State.DONE and not (keep_checkpoints or job.pictured):
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
    return run


def _train(job: Job, folder: Path, way: _Way) -> str:
    """Train or evaluate in ``folder``; errors are printed, and recorded where the training itself is to blame.

    Returns:
        Why it was not trained, where that is to blame on something else; "" where it was.
    """
    say = way.say
    trains = not isinstance(job.cell, EvaluationCell)
    config = _configuration(job, folder, way) if trains else _evaluation(job, way)
    try:
        if not trains:
            evaluate(config, folder)
        else:
            _refuse_several_devices(config)
            train(config, folder, *_place(job, config))
    except (TrainingError, EvaluationError) as error:
        _record_failure(folder, str(error))
        say(f"failed: {error}")
    except Exception as error:
        if isinstance(error, OSError) and is_about_writing(error):  # nor could any other training be kept
            raise
        if is_ours(error) or isinstance(error, OSError):  # data, weights or a folder, which the next attempt may find
            say(f"not run: {error}")
            return str(error)
        _record_failure(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
        say(f"failed: {type(error).__name__}: {error}")
    finally:
        gc.collect()  # a Lightning trainer and its parts refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return ""


def _place(job: Job, config: DictConfig) -> list[Place]:
    """What the training is called in its loggers, where it has some."""
    if config.logger.logger is None and not config.get("loggers"):
        return []
    tables = tuple(dict.fromkeys(place.partition(":")[0] for place in job.places))
    return [Place("reproduce", _named(job), tables[0], tables)]


def _configuration(job: Job, folder: Path, way: _Way) -> DictConfig:
    logged = one_logger_each([f"logger=[{','.join(way.loggers)}]"]) if way.loggers else []
    config = deepcopy(compose_training((*job.cell.overrides, *logged)))
    config.seed, config.run_name = job.seed, f"{job.cell.folder.name}/seed={job.seed}"
    try:
        if (found := latest_checkpoint(folder)) is not None:
            read_checkpoint(found)
            config.ckpt_path = "last"
    except CheckpointError as error:
        aside = [set_aside(folder / name) for name in (LAST, PREVIOUS) if (folder / name).is_file()]
        way.say(f"{error}\nkept as {' and '.join(map(str, aside))}; the training starts from the first epoch")
    if way.device is not None:
        config.trainer.devices = [way.device]
    for group in (config.logger, *(config.get("loggers") or {}).values()):
        if group.logger is not None and "save_dir" in group.logger:
            group.logger.save_dir = str(folder)  # otherwise the folder of the command
    return config


def _evaluation(job: Job, way: _Way) -> DictConfig:
    config = deepcopy(compose_evaluation(job.cell.overrides))
    config.run_name = f"{job.cell.folder.name}/seed={job.seed}"
    config.overwrite = True  # what is there does not count
    if way.device is not None:
        config.trainer.devices = [way.device]
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
