"""Significance: confidence intervals of means over queries, and paired tests of two networks on the same queries.

Queries of one identity resemble each other, so they are no independent observations: identities are drawn, or change
sides, with all their queries together. A bootstrap over few identities is too sure of itself (of 10 it draws an interval of
95 % that holds the truth nine times in ten); below 100 of them the interval is that of Student's t.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_FEW = 100  # identities below which the interval is Student's
_DRAWS_AT_ONCE = 2**22  # repeats x identities


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """How two measurements of the same queries differ.

    Attributes:
        difference: mean of `a` minus mean of `b`.
        interval: of that difference.
        p_value: probability of a difference at least as large, in either direction, between equals.
        queries, identities: how many were compared.
    """

    difference: float
    interval: Interval
    p_value: float
    queries: int
    identities: int


def bootstrap_interval(
    values: np.ndarray,
    identities: np.ndarray,
    *,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Confidence interval of the mean of a value per query, from 100 identities on a percentile bootstrap over them (Efron 1979;
    Field and Welsh 2007 for clusters).

    In every repeat as many identities as there are are drawn with replacement, each with all its queries. With fewer identities
    the interval is the mean plus and minus a quantile of Student's t with one degree of freedom less than there are identities,
    times the jackknife's standard error, from the means without each identity (Efron and Tibshirani 1993, chapter 11).

    Args:
        values: (Q,) any value per query, such as AP or a hit (0 or 1); NaN for a query that does not count.
        identities: integers (Q,).
        repeats: number of draws.
        level: share of the draws' means inside the interval.
        seed: of the draws.
        limits: least and largest mean that is possible, at which an interval of Student's t ends; that of a bootstrap never
            passes them.

    Raises:
        ValueError: arrays that do not fit together, bad settings, or fewer than two identities whose queries count.
    """
    _check_settings(repeats, level)
    sums, counts = _per_identity(*_counted(values, identities))
    return _interval(sums, counts, repeats, level, seed, limits)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    identities: np.ndarray,
    *,
    repeats: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> PairedDifference:
    """Compare two measurements of the same queries.

    The interval is that of `bootstrap_interval` over the queries' differences. The p-value is that of a two-sided
    permutation test: were both equally good, an identity's difference could as well have the other sign. It counts the
    `repeats` random choices of signs, and the one observed, that give a difference as large: it is never 0.

    Args:
        a, b: (Q,) value per query; queries that are NaN in either are left out.
        identities: integers (Q,).
        repeats: draws of the bootstrap, and of signs.
        level, seed, limits: see `bootstrap_interval`.

    Raises:
        ValueError: see `bootstrap_interval`.
    """
    _check_settings(repeats, level)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must hold a value for each of the same queries, got shapes {a.shape} and {b.shape}")
    differences, owners = _counted(a - b, identities)
    sums, counts = _per_identity(differences, owners)
    # Sums that are equal but for rounding must count as equal.
    reached = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    draws = _draws(repeats, len(sums), seed, lambda rng, shape: rng.integers(0, 2, shape, np.int8))
    extreme = sum(int((np.abs((2.0 * signs - 1) @ sums) >= reached).sum()) for signs in draws)
    return PairedDifference(
        difference=float(differences.mean()),
        interval=_interval(sums, counts, repeats, level, seed, limits),
        p_value=(1 + extreme) / (1 + repeats),
        queries=len(differences),
        identities=len(sums),
    )


def _check_settings(repeats: int, level: float) -> None:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def _counted(values: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and identities of the queries that count."""
    values, identities = np.asarray(values, np.float64), np.asarray(identities)
    if values.ndim != 1 or values.shape != identities.shape:
        raise ValueError(
            f"values and identities must hold one entry per query, got shapes {values.shape} and {identities.shape}"
        )
    counted = ~np.isnan(values)
    return values[counted], identities[counted]


def _per_identity(values: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of each identity's values."""
    names, owner = np.unique(identities, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"an interval over identities needs at least two of them, got {len(names)} whose queries count"
        )
    return np.bincount(owner, values), np.bincount(owner).astype(np.float64)


def _interval(
    sums: np.ndarray, counts: np.ndarray, repeats: int, level: float, seed: int, limits: tuple[float, float]
) -> Interval:
    if len(sums) < _FEW:
        return _student(sums, counts, level, limits)
    return _percentiles(_resampled_means(sums, counts, repeats, seed), level)


def _student(sums: np.ndarray, counts: np.ndarray, level: float, limits: tuple[float, float]) -> Interval:
    number, mean = len(sums), sums.sum() / counts.sum()
    without = (sums.sum() - sums) / (counts.sum() - counts)  # the mean without each identity
    error = np.sqrt((number - 1) * without.var())
    reach = stdtrit(number - 1, (1 + level) / 2) * error
    return Interval(float(max(mean - reach, limits[0])), float(min(mean + reach, limits[1])))


def _resampled_means(sums: np.ndarray, counts: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    means = []
    for drawn in _draws(repeats, len(sums), seed, lambda rng, shape: rng.integers(0, shape[1], shape, np.int32)):
        rows = len(drawn)
        flat = drawn + len(sums) * np.arange(rows)[:, None]
        weights = np.bincount(flat.ravel(), minlength=rows * len(sums)).reshape(rows, -1).astype(np.float64)
        means.append((weights @ sums) / (weights @ counts))
    return np.concatenate(means)


def _draws(
    repeats: int, identities: int, seed: int, draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // identities)
    for begin in range(0, repeats, at_once):
        yield draw(rng, (min(at_once, repeats - begin), identities))


def _percentiles(means: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
