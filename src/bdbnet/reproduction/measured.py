"""A table's state: for every row and dataset the trainings, their numbers, and the paper's."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

from bdbnet.config import shown_path
from bdbnet.evaluation.significance import Interval
from bdbnet.reporting.table import Spread, spread, spread_text
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.cells import Cell, EvaluationCell, Run, State
from bdbnet.reproduction.cross_domain import look_up
from bdbnet.reproduction.queries import interval_over_identities
from bdbnet.reproduction.running import Job
from bdbnet.reproduction.spec import Row, Table
from bdbnet.reproduction.statistics import Counts, count_datasets
from bdbnet.results import metric_names, metric_of

#: State of a cell whose seeds are in several states: the first of these; numbers come before all.
_ORDER = (State.RUNNING, State.FAILED, State.STARTED, State.OTHER, State.ABSENT, State.OPEN)


@dataclass(frozen=True)
class Entry:
    """A row's columns of one dataset.

    Attributes:
        cell: None where no training fills them: a method that is not built here, or data that the budget leaves out.
        runs: one for each seed.
        jobs: of a cross-domain table, what has to be run for these columns, with its seed; None: the cell with every seed.
        own: of a cross-domain table, whether the row was trained on this data set; None of other tables.
    """

    row: Row
    dataset: str
    metrics: tuple[str, ...]
    cell: Cell | None
    runs: tuple[Run, ...] = ()
    jobs: tuple[tuple[Cell, int], ...] | None = None
    own: bool | None = None

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The finished runs of one protocol and one data set: of several, that which most runs have."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.state is State.DONE and run.result is not None:
                groups.setdefault(f"{run.result.data.get('fingerprint')} {run.result.protocol}", []).append(run)
        return tuple(sorted(groups.values(), key=len)[-1]) if groups else ()

    @property
    def state(self) -> State:
        """``DONE`` where there are numbers, else the most telling reason why there are none."""
        if self.counted:
            return State.DONE
        states = {run.state for run in self.runs}
        return next((state for state in _ORDER if state in states), State.OPEN)

    def wanted(self, seeds: Sequence[int]) -> list[tuple[Cell, int]]:
        """What has to be run, with its seed."""
        if self.jobs is not None:
            return list(self.jobs)
        return [] if self.cell is None else [(self.cell, seed) for seed in seeds]

    def text(self, metric: str, *, portable: bool = False) -> str:
        """Our number as a table shows it, or why there is none; with ``portable`` whatever data this machine has."""
        if self.cell is None:
            return "-"
        ours = self.ours(metric)
        if ours is not None:
            return spread_text(metric_of(metric), ours)
        if portable and self.state is State.ABSENT:
            return State.OPEN.value
        return self.state.value if self.state is not State.DONE else "not listed"

    def ours(self, metric: str) -> Spread | None:
        """Mean and standard deviation over the seeds, as fractions; None where nothing was measured."""
        values = [run.result.metrics[metric] for run in self.counted if run.result and metric in run.result.metrics]
        return spread(values) if values else None

    @property
    def processor_seconds(self) -> float | None:
        """Of all trainings that are counted; None where one of them has not recorded it."""
        found = [run.result.processor_seconds for run in self.counted if run.result is not None]
        return None if not found or None in found else math.fsum(filter(None, found))

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """95 % interval of each metric over the identities of the test set, where there is one: `interval_over_identities`.

        Galleries of one image an identity are drawn at random, and have no values per query; a training keeps those of its own
        test set alone.
        """
        records = [run.result for run in self.counted if run.result is not None]
        if self.own is not None or any(record.protocol.single_shot is not None for record in records):
            return {}
        measured = [name for name in self.metrics if self.ours(name) is not None]
        found = {name: interval_over_identities(self.counted, name) for name in measured}
        return {name: interval for name, interval in found.items() if interval is not None}

    def paper(self, metric: str) -> float | None:
        """The paper's number in percent, None where it states none."""
        values = self.row.paper.get(self.dataset)
        return None if values is None else values[self.metrics.index(metric)]

    def remarks(self) -> Iterator[str]:
        """Remarks on missing and uncounted runs."""
        if self.cell is None:
            return
        counted = {run.folder for run in self.counted}
        for run in self.runs:
            if run.state is State.DONE and run.folder not in counted:
                yield f"{self.row.name}, seed {run.seed}: measured on other data than the other seeds, not counted"
            elif run.state not in (State.DONE, State.OPEN, State.ABSENT):
                aside = f" (move {shown_path(run.folder)} away to measure it here)" if run.state is State.OTHER else ""
                yield f"{self.row.name}, seed {run.seed}: {run.state}: {run.remark.partition(chr(10))[0]}{aside}"
            elif run.state is State.OPEN and run.remark:
                yield f"{self.row.name}, seed {run.seed}: {run.remark}"
        if self.state is State.ABSENT:
            yield from dict.fromkeys(run.remark for run in self.runs if run.state is State.ABSENT)
        lacking = [name for name in self.metrics if self.ours(name) is None]
        for result in [run.result for run in self.counted if run.result is not None][:1]:
            if self.own is not None and lacking:
                there = ", ".join(metric_names(result.metrics))
                yield f"{self.row.name} on {self.dataset} has no {', '.join(lacking)}: measured are {there}"
        if not self.counted:
            yield from (f"{self.row.name}: {note}, not counted" for note in self.cell.elsewhere())


@dataclass(frozen=True)
class Measured:
    """A table under one budget; `counts` of a table of statistics."""

    table: Table
    budget: Budget
    entries: Mapping[tuple[int, str], Entry]
    counts: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Columns that the budget keeps, in the paper's order; a cross-domain table names its data itself."""
        if self.table.cross:
            return list(self.table.columns)
        return [name for name in self.table.columns if self.budget.datasets.get(name, ()) is not None]

    def stand_in(self, dataset: str) -> str:
        """Name of the data that a column is measured on: the column's own, or what the budget puts in its place."""
        if self.table.cross:
            return dataset
        for (_, name), entry in self.entries.items():
            if name == dataset and entry.cell is not None:
                settings = entry.cell.settings
                return str(settings.get("dataset.manifest", settings["dataset.name"]))
        return dataset

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def order(self) -> Iterator[str]:
        """The number of pairs of rows in the paper's order, by the first metric of each dataset, and the other pairs."""
        for dataset in self.datasets:
            metric = self.table.columns[dataset][0]
            pairs, others = 0, []
            rows = [entry for entry in self if entry.dataset == dataset]
            for first, second in combinations(rows, 2):
                theirs, theirs_of_second = first.paper(metric), second.paper(metric)
                ours, ours_of_second = first.ours(metric), second.ours(metric)
                if theirs is None or theirs_of_second is None or ours is None or ours_of_second is None:
                    continue
                if theirs == theirs_of_second:
                    continue
                pairs += 1
                rising = theirs < theirs_of_second
                low, high = (first, second) if rising else (second, first)
                if (ours.mean >= ours_of_second.mean) if rising else (ours.mean <= ours_of_second.mean):
                    others.append(f"{high.row.name} is not above {low.row.name}")
            if pairs:
                agree = f"{pairs - len(others)} of {pairs} pairs of rows are in the paper's order"
                yield f"{self.stand_in(dataset)}: {agree}" + (f"; not: {'; '.join(others)}" if others else "")


def measure(
    table: Table,
    budget: Budget,
    root: Path,
    seeds: Sequence[int],
    *,
    code: str | None = None,
    only: Collection[tuple[int, str]] | None = None,
) -> Measured:
    """Look up every cell of a table.

    Args:
        root: folder of all trainings.
        seeds: that are asked for; others in a cell's folder count as well.
        code: version of bdbnet whose results count; None is the installed one.
        only: number of the row and dataset of the cells that are wanted; None: all.

    Raises:
        ConfigError: a row's override is wrong.
    """
    if table.statistics:
        return Measured(table, budget, {}, count_datasets(table, budget))
    entries = {}
    for number, row in enumerate(table.rows):
        for dataset, metrics in table.columns.items():
            if table.cross:
                found = look_up(table, row, dataset, budget, root, seeds, code)
                entries[number, dataset] = Entry(row, dataset, metrics, *(found or (None,)))
                continue
            if budget.datasets.get(dataset, ()) is None or (only is not None and (number, dataset) not in only):
                continue
            cell = budget.cell(table, row, dataset, root, code=code)
            runs: tuple[Run, ...] = ()
            if cell is not None:
                runs = tuple(cell.inspect(seed) for seed in sorted({*seeds, *cell.seeds()}))
            entries[number, dataset] = Entry(row, dataset, metrics, cell, runs)
    return Measured(table, budget, entries)


def jobs_of(measured: Sequence[Measured], seeds: Sequence[int]) -> list[Job]:
    """Every training that the tables need, each once, however many tables show it: seed by seed, in the tables' order."""
    places: dict[tuple[Path, int], tuple[Cell, list[str]]] = {}
    pictured: set[Path] = set()
    for table in measured:
        picture = table.table.picture
        if picture is not None and picture.kind == "masks":  # the layers alone
            continue
        for entry in table:
            for cell, seed in entry.wanted(seeds):
                places.setdefault((cell.folder, seed), (cell, []))[1].append(_place(table, entry, cell))
                if picture is not None:
                    pictured.add(cell.folder)
    order = {seed: place for place, seed in enumerate(seeds)}
    found = sorted(places.items(), key=lambda item: order.get(item[0][1], 0))
    return [Job(cell, seed, tuple(dict.fromkeys(where)), cell.folder in pictured) for (_, seed), (cell, where) in found]


def _place(measured: Measured, entry: Entry, cell: Cell) -> str:
    """Where a table shows what a cell gives."""
    where = f"{measured.table.heading}: {entry.row.name}"
    if measured.table.cross:
        return f"{where}, evaluated on {entry.dataset}" if isinstance(cell, EvaluationCell) else where
    sides = [f"{value:g}" for value in (entry.row.x, entry.row.y) if value is not None]
    x = f" at {' x '.join(sides)}" if sides else ""
    return f"{where}{x} on {measured.stand_in(entry.dataset)}"
