"""Exact ranks of each query's positives, and the nearest gallery images, without a Q x G matrix.

Only the ranks of the positives matter for CMC, mAP, mINP and Recall@K, and a query has few of them. So the distances
are streamed through a small block (`distance_blocks`) and, for every positive, the gallery images before it are
counted. Nothing is sorted but the few positives.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bdbnet.retrieval.distance_blocks import Array, distance_blocks, matching_matrices, rows_of

_SEGMENT = 16384  # distances of a row and
_GROUP = 16  # positives that are compared at once: the flags of all pairs fit into the processor's cache


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
        same = self._by_label[self._begin[query] : self._end[query]]
        left_out = same == query if self._same_set else np.zeros(len(same), bool)
        if self._query_cameras is not None and self._gallery_cameras is not None:
            left_out |= self._gallery_cameras[same] == self._query_cameras[query]
        return same[~left_out], same[left_out]


def positive_ranks(
    blocks: Iterable[tuple[int, np.ndarray]], matches: Matches, *, nearest_only: bool = False
) -> PositiveRanks:
    """Rank of every positive among the gallery images that count for its query.

    The rank is one more than the number of images before it: those nearer, and of those equally near the ones earlier
    in the gallery. A query without a positive has no ranks.

    Args:
        blocks: `(first query, distances (queries, G))` in query order; any measure where smaller is nearer. Distances
            of images left out are overwritten.
        matches: positives and left-out images of each query.
        nearest_only: give the rank of the nearest positive alone, which is cheaper.
    """
    found: list[np.ndarray] = []
    for begin, block in blocks:
        flags = np.empty((_GROUP, min(block.shape[1], _SEGMENT)), bool)
        for query, row in enumerate(block, begin):
            positives, left_out = matches.of(query)
            row[left_out] = np.inf
            if nearest_only and len(positives) > 1:
                nearest = np.argmin(row[positives])
                positives = positives[nearest : nearest + 1]
            found.append(_count_before(row, positives, flags))
    offsets = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(ranks) for ranks in found], out=offsets[1:])
    return PositiveRanks(np.concatenate(found) + 1, offsets)


def _count_before(row: np.ndarray, positives: np.ndarray, flags: np.ndarray) -> np.ndarray:
    distances = row[positives]
    before = np.zeros(len(positives), np.int64)
    equal = 0
    for begin in range(0, len(row), flags.shape[1]):
        segment = row[begin : begin + flags.shape[1]]
        for first in range(0, len(positives), len(flags)):
            group = slice(first, first + len(flags))
            limits = distances[group, None]
            marked = flags[: len(limits), : len(segment)]
            np.less(segment, limits, marked)
            before[group] += [np.count_nonzero(nearer) for nearer in marked]
            np.equal(segment, limits, marked)
            equal += int(np.count_nonzero(marked))
    if equal > len(positives):  # some other image is as far as a positive: the gallery's order decides
        before += [np.count_nonzero(row[:k] == distance) for k, distance in zip(positives, distances, strict=True)]
    return np.sort(before)


def top_k(
    query: Array,
    gallery: Array | None,
    k: int,
    *,
    query_labels: Array | None = None,
    gallery_labels: Array | None = None,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    chunk_memory_mb: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest gallery images of every query, nearest first, ties in gallery order.

    With labels and cameras of both sets, gallery images with the query's label and camera are left out.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D) embeddings, or None to search the queries' own set, where each query itself is left out.
        k: neighbours wanted, at least 1.
        query_labels, gallery_labels, query_cameras, gallery_cameras: integers (Q,) or (G,), all of them or none
            (with `gallery=None` those of the queries).
        chunk_memory_mb: see `distance_blocks`.

    Returns:
        Gallery indices int64 (Q, k) and Euclidean distances (Q, k), taken from the differences of the embeddings and so
        accurate near zero; -1 and infinity where fewer than `k` images count.

    Raises:
        ValueError: bad embeddings, `k` below 1, or labels and cameras that are incomplete or of another length.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    same_set = gallery is None
    query, gallery = matching_matrices(query, query if gallery is None else gallery)
    if same_set:
        gallery_labels, gallery_cameras = query_labels, query_cameras
    matches = None
    given = [values is not None for values in (query_labels, gallery_labels, query_cameras, gallery_cameras)]
    if (
        query_labels is not None
        and gallery_labels is not None
        and query_cameras is not None
        and gallery_cameras is not None
    ):
        matches = Matches(
            label_array(query_labels, len(query), "query labels"),
            label_array(gallery_labels, len(gallery), "gallery labels"),
            label_array(query_cameras, len(query), "query cameras"),
            label_array(gallery_cameras, len(gallery), "gallery cameras"),
        )
    elif any(given):
        raise ValueError("leaving out images of the same label and camera needs labels and cameras of both sets")
    k_there = min(k, len(gallery))
    indices = np.full((len(query), k), -1, np.int64)
    distances = np.full((len(query), k), np.inf, rows_of(query, slice(0, 1)).dtype)
    for begin, block in distance_blocks(query, gallery, chunk_memory_mb=chunk_memory_mb):
        for number, row in enumerate(block, begin):
            if matches is not None:
                row[matches.of(number)[1]] = np.inf
            if same_set:
                row[number] = np.inf
            near = np.flatnonzero(row <= np.partition(row, k_there - 1)[k_there - 1])
            near = near[np.argsort(row[near], kind="stable")[:k_there]]
            near = near[row[near] < np.inf]
            difference = rows_of(gallery, near).astype(np.float64) - rows_of(query, slice(number, number + 1))
            indices[number, : len(near)] = near
            distances[number, : len(near)] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return indices, distances
