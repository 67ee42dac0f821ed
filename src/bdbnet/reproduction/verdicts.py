"""Verdicts on claims: a paired test over identities of the rows that are said to be better and worse."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.config import ConfigError, shown_path
from bdbnet.evaluation.per_query import SURE, metric_difference, query_values
from bdbnet.evaluation.significance import PairedDifference
from bdbnet.reporting.compare_runs import changed_settings
from bdbnet.reporting.compare_runs import verdict as compared
from bdbnet.reproduction.cells import Run, State
from bdbnet.reproduction.claims import OWN_PROTOCOL, Claim
from bdbnet.reproduction.measured import Entry, Measured
from bdbnet.reproduction.queries import has_queries, queries_of, shown_file
from bdbnet.results import PER_QUERY, Metric, Result, metric_of


class Verdict(StrEnum):
    """What has been found of a claim, or of one of its pairs in one metric."""

    SUPPORTED = "supported"
    NOT_SHOWN = "not shown"
    CONTRADICTED = "contradicted"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Finding:
    """A pair of rows in one metric.

    Attributes:
        above, below: the row that is said to be better, and the other.
        means: of the two, over the queries and seeds that both have, as fractions.
        found: the test on values per query that are averaged over the seeds; None where it can't be made.
        by_seed: seed -> difference.
    """

    above: Entry
    below: Entry
    metric: Metric
    means: tuple[float, float] | None = None
    found: PairedDifference | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Supported or contradicted with p < 0.05 and, of several seeds, the same sign in each."""
        if self.found is None:
            return Verdict.NOT_MEASURED
        if self.found.p_value >= SURE or self.found.difference == 0 or not self.seeds_agree:
            return Verdict.NOT_SHOWN
        return Verdict.SUPPORTED if self.metric.improves(self.found.difference) else Verdict.CONTRADICTED

    @property
    def seeds_agree(self) -> bool:
        """Whether the difference has the same sign in each seed."""
        return len({np.sign(difference) for difference in self.by_seed.values()}) == 1

    @property
    def paper(self) -> float | None:
        """The paper's difference in the metric's unit; None where it lacks a number."""
        above, below = (entry.paper(self.metric.name) for entry in (self.above, self.below))
        return None if above is None or below is None else above - below

    @property
    def words(self) -> str:
        """What the test shows, in a sentence."""
        names = self.above.row.label, self.below.row.label
        pair = f"{names[0]} and {names[1]}"
        if self.found is None:
            return f"{pair}: not measured"
        if self.found.p_value < SURE and not self.seeds_agree:
            seeds = ", ".join(f"{self.metric.change(of)} with seed {seed}" for seed, of in self.by_seed.items())
            return f"{pair}: the seeds disagree in {self.metric.title}: {seeds}"
        return f"{pair}: {compared(self.metric, self.found, *names)}"


@dataclass(frozen=True)
class Judged:
    """A claim with what has been found of its pairs.

    Attributes:
        measured: the table's cells; its budget and what replaces the data.
        missing: cells that are not measured: row, dataset, seed and why.
    """

    claim: Claim
    measured: Measured
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Contradicted if any pair is, not measured where a pair is not, supported if all are."""
        verdicts = {finding.verdict for finding in self.findings} or {Verdict.NOT_MEASURED}
        order = (Verdict.CONTRADICTED, Verdict.NOT_MEASURED, Verdict.NOT_SHOWN)
        return next((verdict for verdict in order if verdict in verdicts), Verdict.SUPPORTED)

    @property
    def reasons(self) -> list[str]:
        """Why the claim is not supported: each pair that is not; of cells that are missing each of these."""
        if self.verdict is Verdict.NOT_MEASURED:
            return list(self.missing)
        order = (Verdict.CONTRADICTED, Verdict.NOT_SHOWN)
        shown = [finding.words for verdict in order for finding in self.findings if finding.verdict is verdict]
        return [*shown, *(self.missing if Verdict.NOT_MEASURED in {of.verdict for of in self.findings} else ())]

    @property
    def own_protocols(self) -> list[str]:
        """What the rows of a pair were evaluated differently in, which the claim allows."""
        found: dict[str, None] = {}
        for of in self.findings:
            above, below = ([run.result for run in entry.counted if run.result] for entry in (of.above, of.below))
            if above and below:
                differing = changed_settings(above[0].protocol.record(), below[0].protocol.record())
                for key, (one, other) in differing.items():
                    found[f"{key} of {of.above.row.label}: {one}, of {of.below.row.label}: {other}"] = None
        return list(found)

    @property
    def results(self) -> dict[Path, Result]:
        """Folder -> record of the trainings behind the verdict."""
        return {
            run.folder: run.result
            for finding in self.findings
            for entry in (finding.above, finding.below)
            for run in entry.runs
            if run.seed in finding.by_seed and run.result is not None
        }


def check_comparable(claims: Sequence[Claim], measured: Sequence[Measured]) -> None:
    """Refuse claims on trainings of another version or protocol, or on other data.

    Raises:
        ConfigError: names the claim and both trainings.
    """
    for claim, table in _with_tables(claims, measured):
        for above, below in _pairs(claim, table):
            _check_pair(claim, above, below)


def judge(claims: Sequence[Claim], measured: Sequence[Measured]) -> list[Judged]:
    """The verdict on each claim, from the trainings that there are.

    A pair is compared on the seeds that both rows have; values per query are averaged over them.

    Args:
        measured: as `measure_claims` looks them up.

    Raises:
        ConfigError: see `check_comparable`; or the values per query of a training can't be read, or are of another evaluation.
    """
    check_comparable(claims, measured)
    return [_judge(claim, table) for claim, table in _with_tables(claims, measured)]


def _with_tables(claims: Sequence[Claim], measured: Sequence[Measured]) -> Iterator[tuple[Claim, Measured]]:
    for claim in claims:
        yield claim, next(table for table in measured if table.table is claim.table)


def _pairs(claim: Claim, measured: Measured) -> list[tuple[Entry, Entry]]:
    """The two cells of each pair; none where the budget leaves the data out."""
    if claim.dataset not in measured.datasets:
        return []
    return [(measured.entries[a, claim.dataset], measured.entries[b, claim.dataset]) for a, b in claim.pairs]


def _judge(claim: Claim, measured: Measured) -> Judged:
    pairs = _pairs(claim, measured)
    if not pairs:
        return Judged(claim, measured, (), (f"budget {measured.budget.name} leaves out {claim.dataset}",))
    entries = {entry.row.label: entry for pair in pairs for entry in pair}
    findings = tuple(finding for above, below in pairs for finding in _compare(claim, above, below))
    return Judged(claim, measured, findings, tuple(_missing(entries.values())))


def _named(entry: Entry, run: Run) -> str:
    return f"{entry.row.label}, {entry.dataset}, seed {run.seed}"


def _missing(entries: Iterable[Entry]) -> Iterator[str]:
    """The trainings without values per query: which rows, on which data, with which seed, and why."""
    rows: dict[tuple[str, int, str], list[str]] = {}
    for entry in entries:
        for run in entry.runs:
            if not has_queries(run):
                rows.setdefault((entry.dataset, run.seed, _why_missing(entry, run)), []).append(entry.row.label)
    for (dataset, seed, why), labels in rows.items():
        yield f"{', '.join(labels)} ({dataset}, seed {seed}): {why}"


def _why_missing(entry: Entry, run: Run) -> str:
    if run.state is State.DONE:
        return f"no {PER_QUERY} in {shown_path(run.folder)}"
    if run.state in (State.OPEN, State.ABSENT):  # whether the data are here is no matter of the record
        others = entry.cell.elsewhere() if entry.cell is not None else []
        return "; ".join([State.OPEN.value, *(f"{note}, not counted" for note in others)])
    return f"{run.state}: {run.remark.partition(chr(10))[0]}"


def _check_pair(claim: Claim, above: Entry, below: Entry) -> None:
    where = f"claim {claim.name}"
    for entry, other in ((above, below), (below, above)):
        for run in entry.runs:
            if run.state is State.OTHER:
                raise ConfigError(
                    f"{where}: {_named(entry, run)} ({shown_path(run.folder)}) was {run.remark}: it can't be compared with "
                    f"{other.row.label}. Move that folder away to measure it again"
                )
    done = [(entry, run, run.result) for entry in (above, below) for run in entry.runs if run.state is State.DONE]
    for (entry, run, result), (other, of_other, theirs) in pairwise(done):
        assert result is not None
        assert theirs is not None
        both = f"{_named(entry, run)} ({shown_path(run.folder)}) and {_named(other, of_other)} ({shown_path(of_other.folder)})"
        prints = [of.data.get("fingerprint") for of in (result, theirs)]
        if prints[0] != prints[1]:
            raise ConfigError(
                f"{where}: {both} were evaluated on different data (fingerprints {prints[0]} and {prints[1]}): move one of the "
                "folders away to measure it again"
            )
        if result.protocol.single_shot is not None:
            raise ConfigError(
                f"{where}: {_named(entry, run)} was evaluated on galleries drawn at random, one image of each identity: such "
                "numbers have no values per query that could be compared"
            )
        differing = changed_settings(result.protocol.record(), theirs.protocol.record())
        allowed = set() if entry is other else {*claim.may_differ}  # two seeds of a row have one protocol
        if refused := {key: values for key, values in differing.items() if key not in allowed}:
            what = ", ".join(f"{key} {here} and {there}" for key, (here, there) in refused.items())
            advice = ""
            if entry is not other and differing.keys() <= {*OWN_PROTOCOL}:
                advice = f"; or, if that belongs to what is compared, write may_differ: [{', '.join(differing)}] in the claim"
            raise ConfigError(
                f"{where}: {both} were evaluated under different protocols ({what}): move one of the folders away to measure it "
                f"again{advice}"
            )


def _compare(claim: Claim, above: Entry, below: Entry) -> list[Finding]:
    """A finding for each metric."""
    runs = [{run.seed: run for run in entry.runs if has_queries(run)} for entry in (above, below)]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    metrics = [metric_of(name) for name in claim.metrics]
    if not seeds:
        return [Finding(above, below, metric) for metric in metrics]
    tables = [[queries_of(of[seed], claim.metrics) for seed in seeds] for of in runs]
    first, place = tables[0][0], runs[0][seeds[0]].folder
    for of, row in zip(runs, tables):
        for seed, table in zip(seeds, row):
            if not table[["query_index", "label"]].equals(first[["query_index", "label"]]):
                raise ConfigError(
                    f"claim {claim.name}: {shown_file(of[seed])} and {place / PER_QUERY} are not of the same queries"
                )
    return [_test(claim, Finding(above, below, metric), seeds, *tables) for metric in metrics]


def _test(
    claim: Claim, pair: Finding, seeds: Sequence[int], above: Sequence[pd.DataFrame], below: Sequence[pd.DataFrame]
) -> Finding:
    name = pair.metric.name
    # A row per seed, a column per query; a query without a match has none in any seed.
    a, b = (np.stack([query_values(table, name) for table in of]) for of in (above, below))
    counted = ~np.isnan(a).any(axis=0) & ~np.isnan(b).any(axis=0)
    identities = above[0]["label"].to_numpy()
    try:
        found = metric_difference(name, a.mean(axis=0), b.mean(axis=0), identities)
    except ValueError as error:
        raise ConfigError(f"claim {claim.name}: {pair.above.row.label}, {pair.below.row.label}: {error}") from error
    a, b = a[:, counted], b[:, counted]
    by_seed = dict(zip(seeds, (a - b).mean(axis=1).tolist()))
    return Finding(pair.above, pair.below, pair.metric, (float(a.mean()), float(b.mean())), found, by_seed)
