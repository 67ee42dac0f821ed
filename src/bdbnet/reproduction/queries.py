"""Values per query of a cell's trainings: read, checked against the record beside them, and as an interval."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bdbnet.checked import UnfitError
from bdbnet.config import ConfigError, shown_path
from bdbnet.evaluation.per_query import query_values, read_queries
from bdbnet.evaluation.significance import Interval, bootstrap_interval
from bdbnet.reproduction.cells import Run, State
from bdbnet.results import PER_QUERY, metric_of

#: What a metric of a record and the mean of its values per query may differ by: another machine ranks a few images otherwise.
_ROUNDING = 0.002

NO_QUERIES = (
    f"A folder without {PER_QUERY} gets one from python -m bdbnet.evaluate checkpoint=<that folder>/last.ckpt analysis=true "
    "run_name=<a name>, which writes it into outputs/evaluate/<the name>: copy it from there. Without last.ckpt move the folder "
    "away and train again: every training writes one."
)


def has_queries(run: Run) -> bool:
    """Whether a training is finished and has values per query."""
    return run.state is State.DONE and (run.folder / PER_QUERY).is_file()


def queries_of(run: Run, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows of a training's queries; see `read_queries`.

    Raises:
        ConfigError: the file can't be read, or is of another evaluation than the record beside it.
    """
    try:
        queries = read_queries(run.folder / PER_QUERY, metrics)
    except (UnfitError, OSError) as error:
        raise ConfigError(f"{shown_file(run)}: {error}. Replace it. {NO_QUERIES}") from error
    assert run.result is not None
    for name in metrics:
        values, recorded = query_values(queries, name), run.result.metrics.get(name)
        mean = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        if recorded is not None and not abs(mean - recorded) <= _ROUNDING:
            metric = metric_of(name)
            raise ConfigError(
                f"{shown_file(run)}: is of another evaluation: its {metric.title} is {metric.text(mean)}, that of result.json "
                f"beside it {metric.text(recorded)}. Replace it. {NO_QUERIES}"
            )
    return queries


def interval_over_identities(runs: Sequence[Run], metric: str) -> Interval | None:
    """95 % interval of a metric over the identities of the test set, as fractions; see `bootstrap_interval`.

    The values of each query are averaged over the trainings, which are seeds of one cell. None where one of them has no values
    per query, or where there are fewer than two identities.

    Raises:
        ConfigError: see `queries_of`; or the trainings were not evaluated on the same queries.
    """
    if not runs or not all(map(has_queries, runs)):
        return None
    tables = [queries_of(run, [metric]) for run in runs]
    for run, table in zip(runs, tables):
        if not table[["query_index", "label"]].equals(tables[0][["query_index", "label"]]):
            raise ConfigError(f"{shown_file(run)} and {shown_file(runs[0])} are not of the same queries. {NO_QUERIES}")
    values = np.mean([query_values(table, metric) for table in tables], axis=0)
    limits = (0.0, 1.0) if metric_of(metric).unit == "%" else (-np.inf, np.inf)
    identities = tables[0]["label"].to_numpy()
    if len(np.unique(identities[~np.isnan(values)])) < 2:
        return None
    return bootstrap_interval(values, identities, limits=limits)


def shown_file(run: Run) -> str:
    """The file of the values per query, as a message names it."""
    return str(shown_path(run.folder / PER_QUERY))
