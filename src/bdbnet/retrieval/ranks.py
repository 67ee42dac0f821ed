"""Exact ranks of each query's positives, without a Q x G matrix.

Only the ranks of the positives matter for CMC, mAP, mINP, Recall@K and MAP@R, and a query has few of them. So the
distances are streamed through a small block (`distance_blocks`) and, for every positive, the gallery images before it
are counted (`counting`). No row is sorted.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bdbnet.retrieval.counting import COUNTED_AT_ONCE, ROWS, Ragged, counting_threads, ranks_in_rows, ranks_on_device
from bdbnet.retrieval.distances import Block
from bdbnet.retrieval.matrices import Array


class PositiveRanks(NamedTuple):
    """Ranks of all positives: those of query `i` are `ranks[offsets[i]:offsets[i + 1]]`, ascending, 1 for the
    nearest."""

    ranks: np.ndarray
    offsets: np.ndarray


def label_array(values: Array, count: int, name: str) -> np.ndarray:
    """Labels or cameras as int64 (count,); raises `ValueError` for another shape, length or a non-integer dtype."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) != count:
        raise ValueError(f"{name} must have shape ({count},), one for each embedding, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64, copy=False)


class Matches:
    """Which gallery images a query should find and which ones do not count for it.

    A positive has the query's label. Left out of the ranking are, where cameras are given, the images with the query's
    label and camera, and with `same_set`, where queries and gallery are one list of images, the query itself.

    Args:
        query_labels, gallery_labels: int64 (Q,) and (G,).
        query_cameras, gallery_cameras: int64 (Q,) and (G,), or None for both.
        same_set: query `i` is gallery image `i`.
    """

    def __init__(
        self,
        query_labels: np.ndarray,
        gallery_labels: np.ndarray,
        query_cameras: np.ndarray | None = None,
        gallery_cameras: np.ndarray | None = None,
        *,
        same_set: bool = False,
    ) -> None:
        if (query_cameras is None) != (gallery_cameras is None):
            raise ValueError("cameras are given for queries or gallery only: give both or none")
        self._query_cameras, self._gallery_cameras = query_cameras, gallery_cameras
        self._same_set = same_set
        # A stable sort keeps the images of one label in gallery order.
        self._by_label = np.argsort(gallery_labels, kind="stable")
        sorted_labels = gallery_labels[self._by_label]
        self._begin = np.searchsorted(sorted_labels, query_labels, "left")
        self._end = np.searchsorted(sorted_labels, query_labels, "right")

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Gallery indices of the query's positives and of the images left out, both ascending."""
        positives, left_out = self.of_queries(query, query + 1)
        return positives.columns, left_out.columns

    def of_queries(self, begin: int, end: int) -> tuple[Ragged, Ragged]:
        """Positives and images left out of the queries from `begin` to `end`."""
        queries = np.arange(begin, end)
        counts = self._end[begin:end] - self._begin[begin:end]
        of = np.repeat(queries, counts)
        within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        same = self._by_label[self._begin[of] + within]
        left_out = same == of if self._same_set else np.zeros(len(same), bool)
        if self._query_cameras is not None and self._gallery_cameras is not None:
            left_out |= self._gallery_cameras[same] == self._query_cameras[of]
        left = np.bincount(of[left_out] - begin, minlength=len(queries))
        return Ragged(same[~left_out], counts - left), Ragged(same[left_out], left)


def positive_ranks(
    blocks: Iterable[tuple[int, Block]], matches: Matches, *, nearest_only: bool = False
) -> PositiveRanks:
    """Rank of every positive among the gallery images that count for its query.

    The rank is one more than the number of images before it: those nearer, and of those equally near the ones earlier
    in the gallery. A query without a positive has no ranks.

    Args:
        blocks: `(first query, distances (queries, G))` in query order, NumPy, or torch to count on the tensor's device;
            any distance where smaller is nearer. Distances of positives and of images left out are overwritten.
        matches: positives and left-out images of each query.
        nearest_only: give the rank of the nearest positive alone, which is cheaper.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with counting_threads() as threads:
        for begin, block in blocks:
            if isinstance(block, Tensor):
                chosen = matches.of_queries(begin, begin + len(block))
                found.append(ranks_on_device(block, *chosen, nearest_only=nearest_only))
                continue

            at_once = max(1, min(ROWS, COUNTED_AT_ONCE // block.shape[1]))

            def rank(
                first: int, begin: int = begin, block: np.ndarray = block, at_once: int = at_once
            ) -> tuple[np.ndarray, np.ndarray]:
                rows = block[first : first + at_once]
                chosen = matches.of_queries(begin + first, begin + first + len(rows))
                return ranks_in_rows(rows, *chosen, nearest_only=nearest_only)

            parts = range(0, len(block), at_once)
            found += map(rank, parts) if threads is None or len(parts) == 1 else threads.map(rank, parts)
    counts = np.concatenate([count for _, count in found])
    return PositiveRanks(np.concatenate([ranks for ranks, _ in found]), np.r_[0, np.cumsum(counts)])
