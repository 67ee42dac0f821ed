"""The nearest gallery images of every query, for ranking lists and for looking at errors."""

import numpy as np
from torch import Tensor

from bdbnet.retrieval.knn import smallest
from bdbnet.retrieval.matrices import Array, distances_between, matching_matrices, rows_of
from bdbnet.retrieval.ranks import Matches, label_array
from bdbnet.retrieval.search import Search


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
) -> tuple[np.ndarray, np.ndarray]:
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

    Returns:
        Gallery indices int64 (Q, k) and the distances between the embeddings (Q, k), whatever decided the order: Euclidean,
        taken from their differences and so accurate near zero, or 1 minus the cosine similarity; -1 and infinity where
        fewer than `k` images count.

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
    search = search or Search()
    indices = np.full((len(query), k), -1, np.int64)
    distances = np.full((len(query), k), np.inf, rows_of(query, slice(0, 1)).dtype)
    for begin, part in search.blocks(query, gallery):
        block = part.cpu().numpy() if isinstance(part, Tensor) else part
        for number, row in enumerate(block, begin):
            if matches is not None:
                row[matches.of(number)[1]] = np.inf
            if same_set:
                row[number] = np.inf
        for number, row, near in zip(range(begin, begin + len(block)), block, smallest(block, min(k, len(gallery)))):
            near = near[row[near] < np.inf]
            own = rows_of(query, slice(number, number + 1))
            indices[number, : len(near)] = near
            distances[number, : len(near)] = distances_between(own, rows_of(gallery, near), search.distance)
    return indices, distances
