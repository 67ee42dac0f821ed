"""``per_query.parquet`` as it is read: a metric's value for each query, and the paired test of two runs."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.checked import Column, read_parquet
from bdbnet.evaluation.significance import PairedDifference, paired_difference
from bdbnet.results import metric_of

#: p-value from which on no difference is claimed.
SURE = 0.05

_COLUMNS = {
    "query_index": Column("whole"), "path": Column("text"), "label": Column("label"), "ap": Column("number", empty=True),
    "matches": Column("whole", least=0), "first_match_rank": Column("whole"),
}  # fmt: skip
_DETAILS = ("path", "ap")


def read_queries(path: Path, metrics: Iterable[str], *, details: bool = False) -> pd.DataFrame:
    """The rows of the queries, with the columns that the metrics need.

    Args:
        metrics: names.
        details: the path and AP of each query have to be there too, which a copy that is kept for its numbers may lack.

    Raises:
        OSError: it is a named pipe, a socket or a device.
        UnfitError: it is no Parquet file, or a column is missing or of another kind; the message names it.
    """
    known = {name: column for name, column in _COLUMNS.items() if details or name not in _DETAILS}
    values = {metric_of(name).column: Column("number", empty=True) for name in metrics}
    return read_parquet(path, known | {name: column for name, column in values.items() if name not in known})


def query_values(queries: pd.DataFrame, name: str) -> np.ndarray:
    """A metric's value for each query (Q,), NaN without a match."""
    metric = metric_of(name)
    values = queries[metric.column].to_numpy(np.float64)
    if metric.within is None:
        return values
    return np.where(queries["matches"] > 0, values <= metric.within, np.nan)


def metric_difference(
    name: str, a: np.ndarray, b: np.ndarray, identities: np.ndarray, *, seed: int = 0
) -> PairedDifference:
    """`paired_difference` of a metric's values: a share differs by 1 at most.

    Args:
        name: of the metric.
        a, b: (Q,) of the same queries.
        identities: (Q,) of the queries.
        seed: of the bootstrap and of the test.

    Raises:
        ValueError: fewer than two identities whose queries count.
    """
    limits = (-1.0, 1.0) if metric_of(name).unit == "%" else (-np.inf, np.inf)
    return paired_difference(a, b, identities, seed=seed, limits=limits)
