"""Verification: distances of pairs that show the same identity and of pairs that do not, and thresholds between them.

Millions of pairs are counted in bins whose edges lie about 2^-12 of their value apart. Only thresholds are rounded to
those edges: the shares of pairs below a threshold are exact.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bdbnet.retrieval import Matches

# The upper bits of a float32 number its bin: 8 of the exponent and 12 of the mantissa, in the order of the numbers.
_DROPPED_BITS = 11
_BINS = 2 ** (31 - _DROPPED_BITS)
_PAIRS_AT_ONCE = 2**20


class PairCounts(NamedTuple):
    """Numbers of pairs by distance.

    Attributes:
        thresholds: float64 (K,), ascending. Entry k counts pairs nearer than `thresholds[k]` and not nearer than
            `thresholds[k - 1]`.
        positives: int64 (K,), pairs of one identity.
        negatives: int64 (K,), pairs of two.
    """

    thresholds: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """True and false positive rate (K,) where pairs nearer than each threshold are taken for the same identity.

        Raises:
            ValueError: there are no positive or no negative pairs.
        """
        for name, counts in (("positive", self.positives), ("negative", self.negatives)):
            if not counts.any():
                raise ValueError(f"there are no {name} pairs")
        true, false = np.cumsum(self.positives), np.cumsum(self.negatives)
        return true / true[-1], false / false[-1]

    def rates_at(self, threshold: float) -> tuple[float, float]:
        """True and false positive rate at one of the thresholds, or at one of other pairs."""
        true, false = self.rates()
        last = int(np.searchsorted(self.thresholds, threshold, "right")) - 1
        return (float(true[last]), float(false[last])) if last >= 0 else (0.0, 0.0)


class PairDistances(NamedTuple):
    """All pairs, and those whose two images both lie in the first or both in the second half of the identities."""

    everything: PairCounts
    first: PairCounts
    second: PairCounts


class OperatingPoint(NamedTuple):
    """A threshold: pairs nearer than it are taken for the same identity. With the rates that follow."""

    threshold: float
    true_positive_rate: float
    false_positive_rate: float


def pair_distances(blocks: Iterable[tuple[int, np.ndarray]], matches: Matches, *, seed: int = 0) -> PairDistances:
    """Count the distances of all pairs of a query and a gallery image in one pass.

    Pairs that `matches` leaves out do not count. Where a set is searched in itself, both images of a pair ask for the
    other, so each pair counts twice, which changes no rate.

    Args:
        blocks: `(first query, distances (queries, G))`, 0 or more, as from `distance_blocks(..., absolute=True)`.
        matches: positives and left-out images of each query.
        seed: of the random halves. Gallery images whose identity no query has, distractors, are divided one by one:
            they often share one label.
    """
    query_half, gallery_half = _halves(matches.query_labels, matches.gallery_labels, seed)
    inside = [np.flatnonzero(gallery_half == half) for half in (0, 1)]
    positives, negatives = (np.zeros((3, _BINS), np.int64) for _ in range(2))  # in the first half, the second, across
    rows = max(1, _PAIRS_AT_ONCE // len(gallery_half))
    for begin, block in blocks:
        for first in range(0, len(block), rows):
            bins = _bins(block[first : first + rows])
            halves = query_half[begin + first : begin + first + len(bins)]
            for half in (0, 1):
                own = bins[halves == half]
                _add(negatives[half], np.take(own, inside[half], axis=1))
                _add(negatives[2], np.take(own, inside[1 - half], axis=1))
            for query, row in enumerate(bins, begin + first):
                right, left_out = matches.of(query)
                half = int(query_half[query])
                np.add.at(positives[half], row[right], 1)
                # All images of the query's identity lie in its half, where they have been counted.
                np.subtract.at(negatives[half], row[right], 1)
                here = gallery_half[left_out] == half
                np.subtract.at(negatives[half], row[left_out[here]], 1)
                np.subtract.at(negatives[2], row[left_out[~here]], 1)
    used = np.flatnonzero(positives.any(axis=0) | negatives.any(axis=0))
    thresholds = _upper_edges(used)
    positives, negatives = positives[:, used], negatives[:, used]
    return PairDistances(
        PairCounts(thresholds, positives.sum(axis=0), negatives.sum(axis=0)),
        *(PairCounts(thresholds, positives[half], negatives[half]) for half in (0, 1)),
    )


def equal_error(counts: PairCounts) -> tuple[float, OperatingPoint]:
    """Equal error rate, and the threshold nearest to it.

    The rate is where false positives are as frequent as misses, on the straight line between the two thresholds around
    that point.

    Raises:
        ValueError: there are no positive or no negative pairs.
    """
    true, false = counts.rates()
    missed = 1 - true
    after = int(np.argmax(false >= missed))  # exists: at the last threshold nothing is missed
    miss_before, false_before = (missed[after - 1], false[after - 1]) if after else (1.0, 0.0)
    gap_before, gap_after = miss_before - false_before, false[after] - missed[after]
    rate = false_before + (false[after] - false_before) * gap_before / (gap_before + gap_after)
    nearest = after - 1 if after and gap_before < gap_after else after
    return float(rate), _point(counts, nearest)


def at_false_positive_rate(counts: PairCounts, rate: float) -> OperatingPoint:
    """The largest threshold whose false positive rate is at most `rate`.

    Raises:
        ValueError: there are no positive pairs, too few negative ones for such a rate, or already the smallest threshold
            has a higher one.
    """
    pairs = int(counts.negatives.sum())
    if pairs * rate < 1:
        raise ValueError(f"a false positive rate of {rate:g} needs {1 / rate:,.0f} negative pairs, there are {pairs:,}")
    _, false = counts.rates()
    last = int(np.searchsorted(false, rate, "right")) - 1
    if last < 0:
        raise ValueError(f"more than {rate:g} of the negative pairs are at the smallest distance there is")
    return _point(counts, last)


def roc_points(counts: PairCounts, limit: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates (P,), ascending: at most `limit` points, evenly spread where the false positive rate
    is drawn on a logarithmic axis."""
    true, false = counts.rates()
    # Of thresholds with one false positive rate the last has the best true positive rate.
    corners = np.flatnonzero(np.diff(false, append=2.0) > 0)
    if len(corners) > limit:
        wanted = np.geomspace(max(false[corners[0]], 1 / counts.negatives.sum()), 1, limit)
        corners = np.unique(corners[np.searchsorted(false[corners], wanted * (1 - 1e-12))])
    return false[corners], true[corners]


def coarse_histogram(counts: PairCounts, bins: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (bins + 1,) of bins of equal width, and the share of positive and of negative pairs in each (bins,)."""
    nearest, farthest = counts.thresholds[[0, -1]]
    edges = np.linspace(nearest if nearest < farthest else 0, farthest, bins + 1)
    shares = []
    for values in (counts.positives, counts.negatives):
        numbers = np.histogram(counts.thresholds, edges, weights=values)[0]
        shares.append(numbers / max(1, values.sum()))
    return edges, shares[0], shares[1]


def _halves(query_labels: np.ndarray, gallery_labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Half (0 or 1) of every query and of every gallery image."""
    rng = np.random.default_rng(seed)
    identities, query_identity = np.unique(query_labels, return_inverse=True)
    half = rng.permutation(np.arange(len(identities)) % 2)
    place = np.minimum(np.searchsorted(identities, gallery_labels), len(identities) - 1)
    distractor = identities[place] != gallery_labels
    gallery_half = half[place]
    gallery_half[distractor] = rng.permutation(np.arange(distractor.sum()) % 2)
    return half[query_identity], gallery_half


def _bins(distances: np.ndarray) -> np.ndarray:
    # A zero may have a sign, whose bit would lead beyond the last bin.
    return np.abs(distances.astype(np.float32)).view(np.uint32) >> _DROPPED_BITS


def _upper_edges(bins: np.ndarray) -> np.ndarray:
    edges: np.ndarray = ((bins.astype(np.uint32) + 1) << _DROPPED_BITS).view(np.float32)
    return edges.astype(np.float64)


def _add(counts: np.ndarray, bins: np.ndarray) -> None:
    if bins.size:
        lowest = int(bins.min())  # distances of one data set fill a small part of all bins
        numbers = np.bincount((bins - lowest).ravel())
        counts[lowest : lowest + len(numbers)] += numbers


def _point(counts: PairCounts, index: int) -> OperatingPoint:
    true, false = counts.rates()
    return OperatingPoint(float(counts.thresholds[index]), float(true[index]), float(false[index]))
