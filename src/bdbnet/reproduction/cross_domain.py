"""Cells of a cross-domain table: a training or a checkpoint for each row, which is evaluated on the data set of each column."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bdbnet.config import ConfigError, shown_path
from bdbnet.loading.entries import dataset_words
from bdbnet.models import CheckpointError
from bdbnet.reproduction.budget import Budget, listed_metrics
from bdbnet.reproduction.cells import (
    Cell,
    EvaluationCell,
    Run,
    State,
    absent_data,
    build_cell,
    build_evaluation,
    compose_training,
)
from bdbnet.reproduction.cross_spec import column_dataset
from bdbnet.reproduction.data_keys import data_key
from bdbnet.reproduction.spec import Row, Table
from bdbnet.results import LAST, Result

#: Overrides of trainings that an evaluation takes, too.
_OF_EVALUATIONS = re.compile(r"\+*(evaluation\.|loading\.(?!on_error)|trainer\.accelerator=)")


class Found(NamedTuple):
    """What fills a row's columns of one data set.

    Attributes:
        cell: the row's training, or the evaluation of its checkpoint on this data set.
        runs: with the metrics on this data set in the place of a training's own.
        jobs: what has to be run, with its seed.
        own: the row was trained on this data set.
    """

    cell: Cell
    runs: tuple[Run, ...]
    jobs: tuple[tuple[Cell, int], ...]
    own: bool


def look_up(
    table: Table, row: Row, column: str, budget: Budget, root: Path, seeds: Sequence[int], code: str | None
) -> Found | None:
    """The state of a row's columns of one data set; None for a row of stated numbers alone.

    Raises:
        ConfigError: an override is wrong, a set is in the row's union twice, or its checkpoint is absent.
    """
    if row.run is None and row.checkpoint is None:
        return None
    try:
        if row.checkpoint is not None:
            return _evaluated(table, row, column, budget, root, code)
        return _trained(table, row, column, budget, root, seeds, code)
    except (ConfigError, CheckpointError, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{table.heading}, row {row.name}: {error}") from error


def column_metrics(result: Result, key: str) -> Mapping[str, float] | None:
    """The metrics of a training on the data set of this `data_key`; None where it was not evaluated there.

    Further data sets are recorded in the order of the union's members that have a test part and of ``evaluations``.
    """
    config = result.config
    if config.get("dataset") and data_key(config["dataset"]) == key:
        return result.metrics
    further, listed = [*(result.further or {}).values()], [*(config.get("evaluations") or [])]
    entries = [*(config.get("union") or []), *listed]
    if len(entries) != len(further):  # a member without a test part: which of them, the record does not say
        entries, further = listed, further[len(further) - len(listed) :]
    for entry, metrics in zip(entries, further, strict=True):
        if data_key(column_dataset(str(entry), str(config.get("data_root")))) == key:
            return metrics
    return None


def _evaluated(table: Table, row: Row, column: str, budget: Budget, root: Path, code: str | None) -> Found:
    assert row.checkpoint is not None
    checkpoint, entry = _placed(row.checkpoint, budget), table.cross[column]
    beside = [
        *(_placed(override, budget) for override in row.run or ()),
        *filter(_OF_EVALUATIONS.match, budget.overrides),
    ]
    cell = _evaluation(checkpoint, entry, table, beside, budget, root, code)
    key = _key(entry, budget)
    own = key in {_key(table.cross.get(name, name), budget) for name in row.trained_on}
    return Found(cell, (cell.inspect(1),), ((cell, 1),), own)


def _trained(
    table: Table, row: Row, column: str, budget: Budget, root: Path, seeds: Sequence[int], code: str | None
) -> Found:
    assert row.run is not None
    overrides = (*(_placed(override, budget) for override in row.run), *budget.overrides, *listed_metrics(table))
    trained_on = _training_keys(compose_training(overrides), budget)
    keys = {name: _key(entry, budget) for name, entry in table.cross.items()}
    # What the training evaluates anyway is not listed, nor what is absent: the training is worth having without it.
    further = [
        _placed(entry, budget)
        for name, entry in table.cross.items()
        if keys[name] not in trained_on and not _absent(entry, budget)
    ]
    listed = ",".join('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in further)
    cell = build_cell((*overrides, f"evaluations=[{listed}]"), root, code=code)
    runs: list[Run] = []
    jobs: list[tuple[Cell, int]] = [(cell, seed) for seed in seeds]
    for seed in sorted({*seeds, *cell.seeds()}):
        run, later = _on_column(cell.inspect(seed), cell, table, column, budget, root)
        runs.append(run)
        jobs += [] if later is None else [(later, 1)]
    return Found(cell, tuple(runs), tuple(jobs), keys[column] in trained_on)


def _on_column(
    run: Run, cell: Cell, table: Table, column: str, budget: Budget, root: Path
) -> tuple[Run, EvaluationCell | None]:
    """What a training gives for a column, and the evaluation that its record lacks, where there is one to be made."""
    entry = table.cross[column]
    absent = _absent(entry, budget)
    if run.state is State.DONE and run.result is not None:
        if (metrics := column_metrics(run.result, _key(entry, budget))) is not None:
            return replace(run, result=replace(run.result, metrics=metrics, further=None)), None
        if not absent and not (run.folder / LAST).is_file():
            return Run(run.folder, run.seed, State.OPEN, remark=_not_kept(run.folder, column)), None
        if not absent:
            settings = [f"++{key}={_typed(value)}" for key, value in cell.evaluation.items()]
            later = _evaluation(str(run.folder / LAST), entry, table, settings, budget, root, cell.code)
            return replace(later.inspect(1), seed=run.seed), later
    elif run.state is not State.OPEN:
        return run, None
    return (Run(run.folder, run.seed, State.ABSENT, remark=absent) if absent else run), None


def _not_kept(folder: Path, column: str) -> str:
    return (
        f"trained before {column} was there to be evaluated on, and {LAST} was not kept: move {shown_path(folder)} away to "
        "train it again"
    )


def _evaluation(
    checkpoint: str, entry: str, table: Table, settings: Sequence[str], budget: Budget, root: Path, code: str | None
) -> EvaluationCell:
    first, *words = dataset_words(_placed(entry, budget), "dataset")
    return build_evaluation(
        (f"checkpoint={checkpoint}", f"data_root={budget.places['data_root']}", f"dataset={first}", *words, "evaluation.top_k=0",
         *settings, *listed_metrics(table)),
        root, code=code,
    )  # fmt: skip


def _training_keys(config: DictConfig, budget: Budget) -> list[str]:
    """`data_key` of every data set that is trained on.  Raises ConfigError where one is there twice."""
    names = [str(config.dataset.name), *map(str, config.union)]
    keys = [data_key(config.dataset), *(_key(entry, budget) for entry in config.union)]
    for name, key in zip(names, keys):
        if keys.count(key) > 1:
            raise ConfigError(f"dataset=[...]: {name} is in the list twice; leave one out")
    return keys


def _key(entry: str, budget: Budget) -> str:
    return data_key(column_dataset(_placed(entry, budget), budget.places["data_root"]))


def _absent(entry: str, budget: Budget) -> str:
    return absent_data(column_dataset(_placed(entry, budget), budget.places["data_root"]))


def _placed(text: str, budget: Budget) -> str:
    """A text of the table's file in which ``${data_root}`` and ``${weights_root}`` are replaced."""
    for name, folder in budget.places.items():
        text = text.replace(f"${{{name}}}", folder)
    return text


def _typed(value: Any) -> str:
    """A value of flat settings as it is typed."""
    return "[" + ",".join(map(_typed, value)) + "]" if isinstance(value, list) else str(value)
