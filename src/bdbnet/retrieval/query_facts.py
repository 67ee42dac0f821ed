"""What happened to each query: how well it was answered, by which image, and which wrong image came nearest."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bdbnet.retrieval.distances import Block
from bdbnet.retrieval.matrices import Array, distances_between, matching_matrices, rows_of
from bdbnet.retrieval.per_query import average_precision, precision_at_r
from bdbnet.retrieval.ranks import Matches, positive_ranks

_PAIRS_AT_ONCE = 1024  # whose embeddings are widened to float64


class QueryFacts(NamedTuple):
    """One entry per query. One without a match in the gallery has `matches` 0, NaN, and -1 for ranks and indices.

    Attributes:
        matches: int64 (Q,), number of its matches in the gallery.
        ap, inp: float64 (Q,), average precision, and (number of matches) / (rank of the last one).
        map_at_r, r_precision: float64 (Q,), see `retrieval_metrics`.
        first_rank, last_rank: int64 (Q,), ranks of the nearest and of the farthest match, from 1.
        match, match_distance: int64 and float64 (Q,), gallery index and distance of the nearest match.
        negative, negative_distance: the same of the hardest negative: the nearest wrong image that counts (-1 and NaN
            where there is none).
    """

    matches: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    map_at_r: np.ndarray
    r_precision: np.ndarray
    first_rank: np.ndarray
    last_rank: np.ndarray
    match: np.ndarray
    match_distance: np.ndarray
    negative: np.ndarray
    negative_distance: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """Float64 (Q,): by how much the hardest negative is farther away than the nearest match: positive where rank 1
        is right, but for distances that rounding makes equal."""
        return self.negative_distance - self.match_distance


def query_facts(blocks: Iterable[tuple[int, Block]], matches: Matches, *, ap_at: int | None = None) -> QueryFacts:
    """Facts of every query in one pass, without a Q x G matrix; their means are the values of `reid_metrics`.

    Args:
        blocks: `(first query, distances (queries, G))`, see `positive_ranks`; distances of the facts are theirs. They
            are overwritten.
        matches: positives and left-out images of each query.
        ap_at: cut of AP, see `reid_metrics`.
    """
    nearest: list[tuple[int, float, int, float]] = []
    found = positive_ranks(_noted(blocks, matches, nearest), matches)
    counts = np.diff(found.offsets)
    answered = counts > 0
    inp = np.full(len(counts), np.nan)
    first, last = np.full(len(counts), -1), np.full(len(counts), -1)
    first[answered] = found.ranks[found.offsets[:-1][answered]]
    last[answered] = found.ranks[found.offsets[1:][answered] - 1]
    inp[answered] = counts[answered] / last[answered]
    match, match_distance, negative, negative_distance = (np.array(column) for column in zip(*nearest, strict=True))
    ap = average_precision(found, ap_at)
    return QueryFacts(
        counts, ap, inp, *precision_at_r(found), first, last, match, match_distance, negative, negative_distance
    )


def with_distances(facts: QueryFacts, query: Array, gallery: Array, *, distance: str = "euclidean") -> QueryFacts:
    """The same facts with real distances: Euclidean, or 1 minus the cosine similarity.

    They are computed from the embeddings themselves in float64, and so are accurate near zero.

    Args:
        facts: of these embeddings.
        query, gallery: (Q, D) and (G, D).
        distance: `euclidean` or `cosine`.
    """
    query, gallery = matching_matrices(query, gallery)
    distances = []
    for index in (facts.match, facts.negative):
        values = np.full(len(index), np.nan)
        there = np.flatnonzero(index >= 0)
        for begin in range(0, len(there), _PAIRS_AT_ONCE):
            part = there[begin : begin + _PAIRS_AT_ONCE]
            values[part] = distances_between(rows_of(query, part), rows_of(gallery, index[part]), distance)
        distances.append(values)
    return facts._replace(match_distance=distances[0], negative_distance=distances[1])


class CameraPairs(NamedTuple):
    """Results of every query in the images of one camera alone, averaged over the queries of one camera.

    Attributes:
        query_cameras, gallery_cameras: int64 (A,) and (B,), ascending.
        queries: int64 (A, B), number of queries with a match.
        rank1, mean_ap: float64 (A, B), NaN where no query has a match, as within one camera.
    """

    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    queries: np.ndarray
    rank1: np.ndarray
    mean_ap: np.ndarray


class CameraPairCounter:
    """Evaluates each gallery camera's images alone while blocks pass by on their way to `query_facts`.

    Args:
        query_labels, gallery_labels: int64 (Q,) and (G,).
        query_cameras, gallery_cameras: int64 (Q,) and (G,). Images of the query's own identity and camera do not count,
            which leaves out the query itself where a set is searched in itself.
    """

    def __init__(
        self,
        query_labels: np.ndarray,
        gallery_labels: np.ndarray,
        query_cameras: np.ndarray,
        gallery_cameras: np.ndarray,
    ) -> None:
        self._query_cameras, self._row = np.unique(query_cameras, return_inverse=True)
        self._gallery_cameras = np.unique(gallery_cameras)
        self._images = [np.flatnonzero(gallery_cameras == camera) for camera in self._gallery_cameras]
        self._matches = [
            Matches(query_labels, gallery_labels[images], query_cameras, gallery_cameras[images])
            for images in self._images
        ]
        self._sums = np.zeros((3, len(self._query_cameras), len(self._gallery_cameras)))

    def counted(self, blocks: Iterable[tuple[int, Block]]) -> Iterator[tuple[int, Block]]:
        """Pass on every block as it is, once its distances have been evaluated."""
        for begin, block in blocks:
            here = _on_cpu(block)
            for column, (images, matches) in enumerate(zip(self._images, self._matches, strict=True)):
                part = np.take(here, images, axis=1)  # a copy, and its rows in one piece
                found = positive_ranks([(begin, part)], matches)
                counts = np.diff(found.offsets)
                answered = np.flatnonzero(counts > 0)
                hits = found.ranks[found.offsets[:-1][answered]] == 1
                precision = average_precision(found)[answered]
                rows = self._row[begin + answered]
                for sums, values in zip(self._sums, (np.ones(len(rows)), hits, precision), strict=True):
                    np.add.at(sums[:, column], rows, values)
            yield begin, block

    def result(self) -> CameraPairs:
        """Of all blocks that have passed by."""
        queries, hits, precision = self._sums
        with np.errstate(invalid="ignore"):
            rank1, mean_ap = hits / queries, precision / queries
        return CameraPairs(self._query_cameras, self._gallery_cameras, queries.astype(np.int64), rank1, mean_ap)


def _noted(
    blocks: Iterable[tuple[int, Block]], matches: Matches, nearest: list[tuple[int, float, int, float]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Pass blocks on; note index and distance of each query's nearest match and of its hardest negative."""
    for begin, block in blocks:
        rows = _on_cpu(block)
        for query, row in enumerate(rows, begin):
            positives, left_out = matches.of(query)
            distances = row[positives]
            row[left_out] = np.inf
            row[positives] = np.inf
            wrong = int(row.argmin())
            row[positives] = distances
            match = (-1, np.nan)
            if len(positives):
                place = int(distances.argmin())
                match = int(positives[place]), float(distances[place])
            counts = len(positives) + len(left_out) < len(row)
            nearest.append((*match, *((wrong, float(row[wrong])) if counts else (-1, np.nan))))
        yield begin, rows


def _on_cpu(block: Block) -> np.ndarray:
    return block.cpu().numpy() if isinstance(block, Tensor) else block
