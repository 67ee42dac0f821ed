"""Rankings of the gallery for all queries, and what follows from them.

One pass over the distances gives the ranks of the positives, the nearest images, every query's nearest match and hardest
negative, and the results by pair of cameras, whichever is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bdbnet.retrieval.device_rankings import DeviceCameras, DeviceExtremes, DeviceNearest
from bdbnet.retrieval.distances import Block
from bdbnet.retrieval.knn import smallest
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.matrices import Array, Prepared, compared, distances_between, on_cpu, rows_of
from bdbnet.retrieval.ranks import PositiveRanks, positive_ranks
from bdbnet.retrieval.search import Search

_PAIRS_AT_ONCE = 1024  # whose embeddings are widened to float64


class TopK(NamedTuple):
    """The nearest gallery images of every query that count for it, nearest first, ties in gallery order.

    Attributes:
        indices: int64 (Q, k), -1 where fewer than `k` images count.
        distances: (Q, k) between the embeddings, whatever decided the order: Euclidean, taken from their differences and so
            accurate near zero, or 1 minus the cosine similarity; infinity where fewer than `k` images count.
    """

    indices: np.ndarray
    distances: np.ndarray


class QueryFacts(NamedTuple):
    """What happened to each query: how well it was answered, by which image, and which wrong image came nearest.

    One entry per query. One without a match in the gallery has `matches` 0, NaN, and -1 for ranks and indices.

    Attributes:
        matches: int64 (Q,), number of its matches in the gallery.
        ap, inp: float64 (Q,), average precision, and (number of matches) / (rank of the last one).
        map_at_r, r_precision: float64 (Q,), see `retrieval_metrics`.
        first_rank, last_rank: int64 (Q,), ranks of the nearest and of the farthest match, from 1.
        match, match_distance: int64 and float64 (Q,), gallery index and distance of the nearest match. With re-ranking the
            distance is the re-ranked one, else Euclidean or 1 minus the cosine similarity, of what is compared (expanded queries
            where there is query expansion), accurate near zero.
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
        margin: np.ndarray = self.negative_distance - self.match_distance
        return margin

    def hits(self, k: int) -> np.ndarray:
        """Float64 (Q,): 1 where a match is among the first `k`, else 0; NaN without a match."""
        return np.where(self.matches > 0, self.first_rank <= k, np.nan)


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


class Rankings(NamedTuple):
    """What a pass found; None for what was not asked for.

    Attributes:
        ranks: of the positives, from which all metrics follow.
        top_k: nearest images.
        facts: of every query.
        camera_pairs: results by the cameras of query and gallery image.
    """

    ranks: PositiveRanks
    top_k: TopK | None
    facts: QueryFacts | None
    camera_pairs: CameraPairs | None


def rank_queries(
    query: Array | Prepared,
    gallery: Array | Prepared,
    matches: Matches,
    search: Search | None = None,
    *,
    top_k: int = 0,
    facts: bool = False,
    camera_pairs: bool = False,
    ap_at: int | None = None,
    nearest_only: bool = False,
) -> Rankings:
    """Rank the gallery for every query, a block of queries at a time, without a Q x G matrix.

    Everything that is asked for comes from one pass over the distances: re-ranking and query expansion run once.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D) embeddings; the very object that is `query` to search a set in itself.
        matches: positives and left-out images of each query.
        search: distance, query expansion and re-ranking; None: Euclidean distance.
        top_k: nearest images to keep for each query; 0 for none.
        facts: keep every query's facts.
        camera_pairs: keep the results by pair of cameras, which `matches` then has to know.
        ap_at: cut of the AP among the facts, see `reid_metrics`.
        nearest_only: rank the nearest positive alone, which is cheaper; facts need all of them.

    Raises:
        ValueError: see `Search.asked` and `Search.order`.
    """
    search = search or Search()
    query, gallery = compared(query, gallery)
    asked, shown = search.asked(query, gallery)
    blocks: Iterable[tuple[int, Block]] = search.order(asked, shown)
    on_device = isinstance(query.matrix, Tensor) and not matches.next_camera
    if not on_device:  # of the next camera alone, few distances count: they are ranked on the CPU
        blocks = ((begin, on_cpu(block)[:, : len(shown)]) for begin, block in blocks)
    by_camera = _ByCamera(matches, on_device=on_device) if camera_pairs else None
    nearest: Any = None
    extremes: Any = None
    if top_k:
        nearest = DeviceNearest(matches, top_k) if on_device else _Nearest(matches, len(query), top_k)
    if facts:
        extremes = DeviceExtremes(matches) if on_device else _Extremes(matches, len(query))
    # In this order: cameras read whole rows, the others leave out what does not count for a query.
    if seen := [watcher.see for watcher in (by_camera, nearest, extremes) if watcher is not None]:
        blocks = _shown(blocks, seen)
    ranks = positive_ranks(blocks, matches, nearest_only=nearest_only and not facts)
    place: Callable[[Any], Any] = (lambda matrix: matrix) if on_device else on_cpu
    return Rankings(
        ranks,
        None if nearest is None else TopK(*nearest.result(place(query.matrix), place(gallery.matrix), search.distance)),
        None
        if extremes is None
        else _facts(
            ranks,
            ap_at,
            *extremes.result(place(asked.matrix), place(shown.matrix), None if search.rerank else search.distance),
        ),
        None if by_camera is None else by_camera.result(),
    )


def top_k(
    query: Array,
    gallery: Array | None,
    k: int,
    *,
    query_labels: Array | None = None,
    gallery_labels: Array | None = None,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    search: Search | None = None,
) -> TopK:
    """The `k` nearest gallery images of every query, nearest first, ties in gallery order.

    With labels and cameras of both sets, gallery images with the query's label and camera are left out.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D) embeddings, or None to search the queries' own set, where each query itself is left out. The queries
            given as gallery too find themselves.
        k: neighbours wanted, at least 1.
        query_labels, gallery_labels, query_cameras, gallery_cameras: integers (Q,) or (G,), all of them or none
            (with `gallery=None` those of the queries).
        search: distance, query expansion and re-ranking that decide the order; None: Euclidean distance.

    Raises:
        ValueError: bad embeddings, `k` below 1, or labels and cameras that are incomplete or of another length.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    same_set = gallery is None
    asked, shown = compared(query, query if gallery is None else gallery)
    if same_set:
        gallery_labels, gallery_cameras = query_labels, query_cameras
    given = (query_labels, gallery_labels, query_cameras, gallery_cameras)
    tags = [values for values in given if values is not None]
    if not tags:  # all images differ in label: only the query itself can be left out
        tags = [np.arange(len(asked)), np.arange(len(shown)) + (0 if same_set else len(asked))]
    elif len(tags) < len(given):
        raise ValueError("leaving out images of the same label and camera needs labels and cameras of both sets")
    matches = Matches.of_labels(*tags, sizes=(len(asked), len(shown)), same_set=same_set)
    found = rank_queries(asked, shown, matches, search, top_k=k, nearest_only=True).top_k
    assert found is not None
    return found


def _shown(
    blocks: Iterable[tuple[int, Block]], seen: Sequence[Callable[[int, Any], None]]
) -> Iterator[tuple[int, Block]]:
    """The blocks, each shown to all of `seen` first."""
    for begin, block in blocks:
        for see in seen:
            see(begin, block)
        yield begin, block


class _Nearest:
    """Collects the nearest images of each query."""

    def __init__(self, matches: Matches, queries: int, k: int) -> None:
        self._matches = matches
        self._indices = np.full((queries, k), -1, np.int64)

    def see(self, begin: int, block: np.ndarray) -> None:
        _, left_out = self._matches.of_queries(begin, begin + len(block))
        block[left_out.rows, left_out.columns] = np.inf
        near = smallest(block, min(self._indices.shape[1], block.shape[1]))
        counts = np.take_along_axis(block, near, 1) < np.inf
        self._indices[begin : begin + len(block), : near.shape[1]] = np.where(counts, near, -1)

    def result(self, query: Any, gallery: Any, distance: str) -> tuple[np.ndarray, np.ndarray]:
        rows, places = np.nonzero(self._indices >= 0)
        distances = np.full(self._indices.shape, np.inf, query.dtype)
        distances[rows, places] = _distances(query, gallery, rows, self._indices[rows, places], distance)
        return self._indices, distances


class _Extremes:
    """Collects each query's nearest match and hardest negative."""

    def __init__(self, matches: Matches, queries: int) -> None:
        self._matches = matches
        self._indices = np.full((2, queries), -1, np.int64)
        self._values = np.full((2, queries), np.nan)

    def see(self, begin: int, block: np.ndarray) -> None:
        positives, left_out = self._matches.of_queries(begin, begin + len(block))
        rows, columns = positives.rows, positives.columns
        block[left_out.rows, left_out.columns] = np.inf
        values = block[rows, columns]
        order = np.lexsort((values, rows))  # stable: the earlier of two images that are equally near
        answered = positives.counts > 0
        first = order[positives.starts[answered]]
        self._note(0, begin + np.flatnonzero(answered), columns[first], values[first])
        block[rows, columns] = np.inf
        wrong = block.argmin(axis=1)
        some = np.flatnonzero(positives.counts + left_out.counts < block.shape[1])
        self._note(1, begin + some, wrong[some], block[some, wrong[some]])
        block[rows, columns] = values

    def _note(self, kind: int, queries: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
        self._indices[kind, queries], self._values[kind, queries] = indices, values

    def result(self, query: Any, gallery: Any, distance: str | None) -> tuple[np.ndarray, np.ndarray]:
        if distance is not None:
            for indices, values in zip(self._indices, self._values):
                there = np.flatnonzero(indices >= 0)
                values[there] = _distances(query, gallery, there, indices[there], distance)
        return self._indices, self._values


def _facts(ranks: PositiveRanks, ap_at: int | None, indices: np.ndarray, values: np.ndarray) -> QueryFacts:
    (match, negative), (match_distance, negative_distance) = indices, values
    return QueryFacts(
        ranks.counts, ranks.average_precision(ap_at), ranks.inverse_penalty(), *ranks.precision_at_r(), ranks.nearest,
        ranks.farthest, match, match_distance, negative, negative_distance,
    )  # fmt: skip


def _distances(
    query: np.ndarray, gallery: np.ndarray, rows: np.ndarray, columns: np.ndarray, distance: str
) -> np.ndarray:
    """Distances (N,) float64 of pairs of a query and a gallery image, accurate near zero."""
    values = np.empty(len(rows))
    for begin in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        pair = rows_of(query, rows[part]), rows_of(gallery, columns[part])
        values[part] = distances_between(*pair, distance)
    return values


class _ByCamera:
    """Ranks each gallery camera's images alone.

    Images of the query's own identity and camera do not count, which leaves out the query itself where a set is searched
    in itself.
    """

    def __init__(self, matches: Matches, *, on_device: bool) -> None:
        if matches.query_cameras is None or matches.gallery_cameras is None:
            raise ValueError("results by pair of cameras need the cameras of queries and gallery")
        self._query_cameras, self._row = np.unique(matches.query_cameras, return_inverse=True)
        self._gallery_cameras = np.unique(matches.gallery_cameras)
        self._images = [np.flatnonzero(matches.gallery_cameras == camera) for camera in self._gallery_cameras]
        self._matches = [
            Matches(
                matches.query_labels, matches.gallery_labels[images], matches.query_cameras, matches.gallery_cameras[images]
            )
            for images in self._images
        ]  # fmt: skip
        self._sums = np.zeros((3, len(self._query_cameras), len(self._gallery_cameras)))
        self._on_device = DeviceCameras(self._images, self._matches) if on_device else None

    def see(self, begin: int, block: Any) -> None:
        if self._on_device is not None:
            self._on_device.see(begin, block)
            return
        for column, (images, matches) in enumerate(zip(self._images, self._matches, strict=True)):
            part = np.take(block, images, axis=1)  # a copy, and its rows in one piece
            self._count(column, begin, positive_ranks([(begin, part)], matches))

    def _count(self, column: int, begin: int, found: PositiveRanks) -> None:
        answered = np.flatnonzero(found.counts > 0)
        hits, precision = found.nearest[answered] == 1, found.average_precision()[answered]
        rows = self._row[begin + answered]
        for sums, values in zip(self._sums, (np.ones(len(rows)), hits, precision), strict=True):
            np.add.at(sums[:, column], rows, values)

    def result(self) -> CameraPairs:
        for column, found in enumerate(self._on_device.result() if self._on_device is not None else ()):
            self._count(column, 0, found)
        queries, hits, precision = self._sums
        with np.errstate(invalid="ignore"):
            rank1, mean_ap = hits / queries, precision / queries
        return CameraPairs(self._query_cameras, self._gallery_cameras, queries.astype(np.int64), rank1, mean_ap)
