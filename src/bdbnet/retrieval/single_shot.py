"""Single-shot CMC (CUHK03's first protocol, VehicleID's): one image drawn at random shows each identity of the gallery."""

from collections.abc import Iterator, Sequence

import numpy as np

from bdbnet.renamed import accepts_former
from bdbnet.retrieval.distances import Block
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.matrices import Array, Prepared, compared, on_cpu
from bdbnet.retrieval.metrics import checked_cutoffs
from bdbnet.retrieval.search import Search


@accepts_former(measure="distance")
def single_shot_cmc(
    query: Array,
    gallery: Array,
    query_labels: Array,
    gallery_labels: Array,
    query_cameras: Array | None,
    gallery_cameras: Array | None,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    repeats: int = 100,
    seed: int = 0,
    leave_out_drawn: bool = False,
    distance: str = "euclidean",
    chunk_memory_mb: float | None = None,
) -> dict[str, float | int]:
    """Rank-k with a single gallery shot (Li et al. 2014, CUHK03), the mean over random galleries.

    In every repeat one image of each gallery identity is drawn, the same for all queries, except that a query's own
    identity is shown by an image that counts for it: not by one from its own camera. Its rank is the place of its
    identity. Queries without a match are left out. There is no average precision: each query has one match.

    Args:
        query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras, ranks, distance, chunk_memory_mb:
            see `reid_metrics`. Distractors of one label are one identity.
        repeats: number of random galleries.
        seed: of the draws; the order of queries and the size of blocks do not change them.
        leave_out_drawn: for a set that is searched in itself (VehicleID, Liu et al. 2016): the images that are drawn are the
            gallery of their repeat and all others are its queries; the mean is over repeats. Cameras do not count then, as in that
            protocol: images of one camera may be each other's match.

    Returns:
        `rank{k}` for each of `ranks`, and `valid_queries`, those of one repeat.

    Raises:
        ValueError: see `reid_metrics`; `repeats` below 1; with `leave_out_drawn` an identity with a single image.
    """
    sides = compared(query, gallery)
    sizes = len(sides[0]), len(sides[1])
    tags = (query_labels, gallery_labels, query_cameras, gallery_cameras)
    matches = Matches.of_labels(*tags, sizes=sizes, same_set=query is gallery)
    search = Search(distance, chunk_memory_mb=chunk_memory_mb)
    return single_shot_ranks(
        *sides, matches, search, ranks=ranks, repeats=repeats, seed=seed, leave_out_drawn=leave_out_drawn
    )


def single_shot_ranks(
    query: Prepared,
    gallery: Prepared,
    matches: Matches,
    search: Search,
    *,
    ranks: Sequence[int],
    repeats: int,
    seed: int,
    leave_out_drawn: bool = False,
) -> dict[str, float | int]:
    """`single_shot_cmc` of two sets in one precision, whose labels are known."""
    cutoffs = checked_cutoffs(ranks, "ranks")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    labels, own_labels = matches.gallery_labels, matches.query_labels
    identities, identity = np.unique(labels, return_inverse=True)
    # The image with the smallest number shows its identity, so each of its images does so equally often.
    numbers = np.empty((repeats, len(labels)), np.int32)
    for repeat, row in enumerate(numbers):
        row[:] = np.random.default_rng([seed, repeat]).permutation(len(labels))
    shown = np.stack([_first_of_each(row, identity, len(identities)) for row in numbers])
    if leave_out_drawn and query is gallery:
        return _ranks_of_the_rest(search.order(query, gallery), shown, labels, identity, cutoffs)
    hits = dict.fromkeys(cutoffs, 0.0)
    valid = 0
    for begin, block in search.order(query, gallery):
        for number, row in enumerate(on_cpu(block)[:, : len(gallery)], begin):
            positives = matches.of(number)[0]
            if len(positives) == 0:
                continue
            valid += 1
            own = positives[numbers[:, positives].argmin(axis=1), None]
            places = _places(row, own, shown[:, identities != own_labels[number]])
            for k in cutoffs:
                hits[k] += float(np.mean(places <= k))
    if not valid:
        raise ValueError("no query has a match: every gallery image of its identity is missing or from its own camera")
    return {**{f"rank{k}": hits[k] / valid for k in cutoffs}, "valid_queries": valid}


def _ranks_of_the_rest(
    order: Iterator[tuple[int, Block]],
    shown: np.ndarray,
    labels: np.ndarray,
    identity: np.ndarray,
    cutoffs: Sequence[int],
) -> dict[str, float | int]:
    """Rank-k of a set whose drawn images, `shown` (repeats, identities), are the gallery and whose others are the queries.

    Raises ValueError for an identity with one image, which is always drawn and never searched for.
    """
    sizes = np.bincount(identity)
    if (sizes == 1).any():
        alone = labels[np.flatnonzero(sizes[identity] == 1)[0]]
        raise ValueError(
            f"{int((sizes == 1).sum())} identities have one image, the first is {alone}: a single gallery shot takes one image "
            "of each identity and searches for it by the others. Leave these identities out"
        )
    repeats, count = shown.shape
    hits = {k: np.zeros(repeats, np.int64) for k in cutoffs}
    for begin, block in order:
        for number, row in enumerate(on_cpu(block)[:, : len(labels)], begin):
            own = shown[:, identity[number], None]
            places = _places(row, own, shown)  # an image is not nearer than itself
            is_query = own[:, 0] != number
            for k in cutoffs:
                hits[k] += is_query & (places <= k)
    queries = len(labels) - count
    return {**{f"rank{k}": float(np.mean(hits[k] / queries)) for k in cutoffs}, "valid_queries": queries}


def _places(row: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Place of the image `own` (repeats, 1) among `others` (repeats, identities) by the order in `row` (G,), ties by index."""
    nearer = row[others] < row[own]
    nearer |= (row[others] == row[own]) & (others < own)
    places: np.ndarray = 1 + nearer.sum(axis=1)
    return places


def _first_of_each(numbers: np.ndarray, identity: np.ndarray, count: int) -> np.ndarray:
    """For each identity the gallery index of its image with the smallest number."""
    by_number = np.argsort(numbers)
    first = np.empty(count, np.int64)
    first[identity[by_number[::-1]]] = by_number[::-1]
    return first
