"""Exact ranks of each query's positives, without a Q x G matrix.

Only the ranks of the positives matter for CMC, mAP, mINP, Recall@K and MAP@R, and a query has few of them. So the
distances are streamed through a small block (`distance_blocks`); of each row only the images no farther than the query's
farthest positive are sorted, and the positives looked up among them.
"""

from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.device_ranks import DeviceRanks
from bdbnet.retrieval.distances import Block
from bdbnet.retrieval.matches import Matches, Ragged

_ROWS = 64  # queries that one thread ranks at a time


class PositiveRanks(NamedTuple):
    """Ranks (P,) of all positives: those of query `i` are `ranks[offsets[i]:offsets[i + 1]]`, ascending, 1 for the nearest;
    `offsets` (Q + 1,)."""

    ranks: np.ndarray
    offsets: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of ranks (Q,) of each query."""
        return np.diff(self.offsets)

    @property
    def nearest(self) -> np.ndarray:
        """Rank (Q,) of each query's nearest match, -1 without one."""
        return self._at(self.offsets[:-1])

    @property
    def farthest(self) -> np.ndarray:
        """Rank (Q,) of each query's farthest match, -1 without one."""
        return self._at(self.offsets[1:] - 1)

    def average_precision(self, ap_at: int | None = None) -> np.ndarray:
        """AP (Q,): the mean over a query's matches of (matches up to it) / (its rank); those after rank `ap_at` count 0.

        Here and below NaN for a query without a match; metrics are means over the others.
        """
        precision = self._numbers() / self.ranks
        if ap_at is not None:
            precision[self.ranks > ap_at] = 0
        return self._share(precision)

    def inverse_penalty(self) -> np.ndarray:
        """INP (Q,): (number of matches) / (rank of the last one)."""
        counts = self.counts
        return np.where(counts > 0, counts / self.farthest, np.nan)

    def precision_at_r(self) -> tuple[np.ndarray, np.ndarray]:
        """AP within the R nearest images and the share of matches among these (Q,), R being a query's number of matches."""
        counts = self.counts
        inside = self.ranks <= np.repeat(counts, counts)
        return self._share(inside * self._numbers() / self.ranks), self._share(inside)

    def _at(self, places: np.ndarray) -> np.ndarray:
        found = np.full(len(places), -1)
        answered = self.counts > 0
        found[answered] = self.ranks[places[answered]]
        return found

    def _numbers(self) -> np.ndarray:
        """The number of each rank among its query's, from 1."""
        numbers: np.ndarray = np.arange(1, len(self.ranks) + 1) - np.repeat(self.offsets[:-1], self.counts)
        return numbers

    def _share(self, values: np.ndarray) -> np.ndarray:
        """Sum of each query's values by its number of matches."""
        counts = self.counts
        means = np.full(len(counts), np.nan)
        answered = counts > 0
        owner = np.repeat(np.arange(len(counts)), counts)
        means[answered] = np.bincount(owner, values, minlength=len(counts))[answered] / counts[answered]
        return means


def positive_ranks(
    blocks: Iterable[tuple[int, Block]], matches: Matches, *, nearest_only: bool = False
) -> PositiveRanks:
    """Rank of every positive among the gallery images that count for its query.

    The rank is one more than the number of images before it: those nearer, and of those equally near the ones earlier
    in the gallery. A query without a positive has no ranks.

    Args:
        blocks: `(first query, distances (queries, G))` in query order, all NumPy, or all torch to count on the tensors'
            device (with further columns of infinity or without); any distance where smaller is nearer. Distances of
            positives and of images left out are overwritten.
        matches: positives and left-out images of each query.
        nearest_only: give the rank of the nearest positive alone, which is cheaper.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    on_device: DeviceRanks | None = None
    with _threads() as threads:
        for begin, block in blocks:
            if isinstance(block, Tensor):
                on_device = on_device or DeviceRanks(matches, nearest_only=nearest_only)
                on_device.add(begin, block)
                continue
            rank = partial(_ranks_of_some, block, begin, matches, nearest_only)
            parts = range(0, len(block), _ROWS)
            found += map(rank, parts) if threads is None or len(parts) == 1 else threads.map(rank, parts)
    if on_device is not None:
        found.append(on_device.result())
    counts = np.concatenate([count for _, count in found])
    return PositiveRanks(np.concatenate([ranks for ranks, _ in found]), np.r_[0, np.cumsum(counts)])


def _threads() -> AbstractContextManager[Executor | None]:
    """As many threads as torch computes with; None where there is one alone."""
    count = torch.get_num_threads()
    return ThreadPoolExecutor(count) if count > 1 else nullcontext()


def _ranks_of_some(
    block: np.ndarray, begin: int, matches: Matches, nearest_only: bool, first: int
) -> tuple[np.ndarray, np.ndarray]:
    rows = block[first : first + _ROWS]
    chosen = matches.of_queries(begin + first, begin + first + len(rows))
    return _ranks_in_rows(rows, *chosen, nearest_only=nearest_only)


def _ranks_in_rows(
    distances: np.ndarray, positives: Ragged, left_out: Ragged, *, nearest_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of each query's positives, ascending, 1 for the nearest; equal distances rank in gallery order.

    Args:
        distances: (queries, G) without NaN; those of positives and of images left out are overwritten.
        positives, left_out: gallery indices of each query.
        nearest_only: rank the nearest positive alone.

    Returns:
        The ranks of all queries after each other, and how many each query has.
    """
    distances[left_out.rows, left_out.columns] = np.inf
    values = distances[positives.rows, positives.columns]
    order = np.lexsort((values, positives.rows))  # stable: of equal distances the earlier image comes first
    columns, values, counts = positives.columns[order], values[order], positives.counts
    if nearest_only:
        first = positives.starts[counts > 0]
        columns, values, counts = columns[first], values[first], np.minimum(counts, 1)
    rows, ends = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts)
    # Compares with nothing, so positives are counted by their order alone.
    distances[rows, columns] = np.nan
    if len(columns) and not nearest_only and _mostly_near(distances[rows[0]], values[ends[rows[0]] - 1]):
        before = _before_in_all(distances, rows, columns, values)
    else:
        before = np.empty(len(columns), np.int64)
        for row, begin, end in zip(distances, ends - counts, ends):
            if begin < end:
                before[begin:end] = _before(row, values[begin:end], columns[begin:end])
    return before + np.arange(1, len(columns) + 1) - (ends - counts)[rows], counts


def _mostly_near(row: np.ndarray, farthest: np.floating) -> bool:
    """Whether picking out the images no farther than a row's farthest positive takes nearly as long as sorting all."""
    return bool(2 * np.count_nonzero(row <= farthest) > len(row))


def _before_in_all(distances: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`_before` for the positives of all rows together: the fewer calls, the less two threads wait for each other."""
    width = distances.shape[1]
    flat = np.sort(distances, axis=1).ravel()  # NaN comes last
    first = rows * width
    place, size = first.copy(), width
    while size > 1:  # where each value would be put in its sorted row, before its equals
        half = size // 2
        place += (flat[place + half - 1] < values) * half
        size -= half
    place += flat[place] < values
    before: np.ndarray = place - first
    tied = (before < width) & (flat[np.minimum(place, len(flat) - 1)] == values)
    for number in np.flatnonzero(tied):  # the gallery's order decides
        before[number] += np.count_nonzero(distances[rows[number], : columns[number]] == values[number])
    return before


def _before(row: np.ndarray, own: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """For each of a row's positives, ascending in `own`, the other images before it; NaN in `row` is none."""
    if len(own) == 1:  # comparing twice costs less than picking out the nearer images
        before, tied = np.array([np.count_nonzero(row < own)]), bool((row == own).any())
    else:
        others = np.sort(row) if _mostly_near(row, own[-1]) else np.sort(row[row <= own[-1]])
        before = others.searchsorted(own)
        tied = bool((others.searchsorted(own, "right") != before).any())
    if tied:  # the gallery's order decides
        before += [np.count_nonzero(row[:column] == value) for column, value in zip(columns, own)]
    return before
