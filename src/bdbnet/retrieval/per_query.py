"""From the ranks of its positives to a query's own values, NaN for a query without a match; metrics are means of these."""

import numpy as np

from bdbnet.retrieval.ranks import PositiveRanks


def average_precision(found: PositiveRanks, ap_at: int | None = None) -> np.ndarray:
    """AP (Q,): the mean over a query's matches of (matches up to it) / (its rank); those after rank `ap_at` count 0."""
    owner, number = _numbered(found)
    precision = number / found.ranks
    if ap_at is not None:
        precision[found.ranks > ap_at] = 0
    return _share(found, precision, owner)


def precision_at_r(found: PositiveRanks) -> tuple[np.ndarray, np.ndarray]:
    """AP within the R nearest images and the share of matches among these (Q,), R being a query's number of matches."""
    owner, number = _numbered(found)
    inside = found.ranks <= np.diff(found.offsets)[owner]
    return _share(found, inside * number / found.ranks, owner), _share(found, inside, owner)


def _numbered(found: PositiveRanks) -> tuple[np.ndarray, np.ndarray]:
    """The query of each rank, and its number among the query's, from 1."""
    owner = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    return owner, np.arange(1, len(owner) + 1) - found.offsets[owner]


def _share(found: PositiveRanks, values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Sum of each query's values by its number of matches."""
    counts = np.diff(found.offsets)
    means = np.full(len(counts), np.nan)
    answered = counts > 0
    means[answered] = np.bincount(owner, values, minlength=len(counts))[answered] / counts[answered]
    return means
