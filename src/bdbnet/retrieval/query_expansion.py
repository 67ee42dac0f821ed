"""Query expansion: a query is replaced by a mean of itself and the gallery images nearest to it, and a gallery image too
where that is asked for."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from bdbnet.renamed import accepts_former
from bdbnet.retrieval.distances import distance_blocks
from bdbnet.retrieval.knn import smallest
from bdbnet.retrieval.matrices import Array, Prepared, compared, joined, on_cpu, prepared, refuse_zeros, rows_of

_IMAGES_MB = 64  # nearest gallery images that are averaged at a time


@dataclass(frozen=True)
class QueryExpansion:
    """Settings of query expansion.

    Attributes:
        k: nearest images that count beside the query.
        alpha: 0 for the plain mean (Chum et al. 2007); above 0 an image has the weight of its cosine similarity to the
            query, but at least 0, to this power, and the query itself the weight 1 (Radenovic et al. 2018).
        gallery: gallery images are expanded like queries, and the nearest images of either are looked for among queries and
            gallery together, as in fast-reid, whose `qe_k` counts the image itself and so is `k + 1`. The ranking then depends
            on which queries are asked together.

    Raises:
        ValueError: `k` is not a whole number from 1 on, `alpha` is below 0 or not finite, or `gallery` neither true nor false.
    """

    k: int = 5
    alpha: float = 0.0
    gallery: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"k of query expansion must be a whole number from 1 on, got {self.k!r}")
        if not 0 <= self.alpha < np.inf:
            raise ValueError(f"alpha of query expansion must be 0 or a finite number above it, got {self.alpha!r}")
        if not isinstance(self.gallery, bool):
            raise ValueError(f"gallery of query expansion must be true or false, got {self.gallery!r}")


@accepts_former(measure="distance")
def expand_queries(
    query: Array,
    gallery: Array,
    settings: QueryExpansion,
    *,
    distance: str = "euclidean",
    same_set: bool = False,
    chunk_memory_mb: float | None = None,
) -> Array:
    """Expanded queries (Q, D), a NumPy matrix for embeddings on the CPU, else a tensor on their device.

    `expand_sets` gives the expanded gallery too. Labels are not used. With the cosine distance the mean is that of embeddings
    at unit length, as they are compared.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D) embeddings.
        settings: how many images count, with which weights, and whether the gallery is expanded too.
        distance: `euclidean` or `cosine`: which images are nearest, ties in gallery order.
        same_set: query `i` is gallery image `i`, which then is none of its own neighbours.
        chunk_memory_mb: MiB for one block of distances, see `distance_blocks`.

    Raises:
        ValueError: see `distance_blocks`; fewer than `k` gallery images; embeddings of zeros where weights come from
            cosines; with `same_set` two sets of different size.
    """
    return expand_sets(
        query, gallery, settings, distance=distance, same_set=same_set, chunk_memory_mb=chunk_memory_mb
    )[0]  # fmt: skip


def expand_sets(
    query: Array,
    gallery: Array,
    settings: QueryExpansion,
    *,
    distance: str = "euclidean",
    same_set: bool = False,
    chunk_memory_mb: float | None = None,
) -> tuple[Array, Array]:
    """Queries (Q, D) and gallery (G, D) as they are compared: expanded queries, and with `settings.gallery` an expanded gallery.

    Arguments and errors are those of `expand_queries`. With `same_set` and `settings.gallery` both are the expanded set.
    """
    sides = compared(query, gallery)
    asked, shown = expanded(*sides, settings, distance=distance, same_set=same_set, chunk_memory_mb=chunk_memory_mb)
    return asked.matrix, shown.matrix


def expanded(
    query: Prepared,
    gallery: Prepared,
    settings: QueryExpansion,
    *,
    distance: str,
    same_set: bool,
    chunk_memory_mb: float | None,
) -> tuple[Prepared, Prepared]:
    """`expand_sets` of two sets in one precision."""
    if same_set and len(query) != len(gallery):
        raise ValueError(f"same_set needs queries and gallery of one size, got {len(query)} and {len(gallery)}")

    def means(asked: Prepared, shown: Prepared, *, within: bool) -> Array:
        return _expanded(asked, shown, settings, distance=distance, same_set=within, chunk_memory_mb=chunk_memory_mb)

    if not settings.gallery:
        return prepared(means(query, gallery, within=same_set), "query"), gallery
    if same_set:
        itself = prepared(means(gallery, gallery, within=True), "query")
        return itself, itself
    everything = joined(query, gallery)
    both = means(everything, everything, within=True)
    return prepared(both[: len(query)], "query"), prepared(both[len(query) :], "gallery")


def _expanded(
    query: Prepared,
    gallery: Prepared,
    settings: QueryExpansion,
    *,
    distance: str,
    same_set: bool,
    chunk_memory_mb: float | None,
) -> Array:
    """Each query's mean with its nearest gallery images."""
    count = len(gallery)
    if settings.k > count - same_set:
        kind = "images of queries and gallery" if settings.gallery else "gallery images"
        raise ValueError(
            f"query expansion with k={settings.k} needs as many {kind}{' besides the query' * same_set}, but "
            f"there are {count - same_set}: choose a smaller k"
        )
    near = np.empty((len(query), settings.k), np.int64)
    for begin, block in distance_blocks(query, gallery, distance=distance, chunk_memory_mb=chunk_memory_mb):
        if same_set:
            rows = np.arange(len(block))
            block[rows, begin + rows] = np.inf
        near[begin : begin + len(block)] = smallest(block, settings.k)
    means = _means(query, gallery, near, distance == "cosine", settings.alpha)
    return torch.from_numpy(means).to(query.matrix.device) if isinstance(query.matrix, Tensor) else means


def _means(query: Prepared, gallery: Prepared, near: np.ndarray, unit: bool, alpha: float) -> np.ndarray:
    lengths = [np.ones_like(on_cpu(side.norms)) for side in (query, gallery)]
    if unit or alpha > 0:
        for number, (side, name) in enumerate(((query, "query"), (gallery, "gallery"))):
            refuse_zeros(side.norms, name)
            lengths[number] = np.sqrt(on_cpu(side.norms))
    expanded = np.empty(tuple(query.matrix.shape), lengths[0].dtype)
    at_once = max(1, _IMAGES_MB * 2**20 // (near.shape[1] * expanded.shape[1] * expanded.itemsize))
    for begin in range(0, len(near), at_once):
        part = slice(begin, begin + at_once)
        own, own_lengths = rows_of(query.matrix, part), lengths[0][part]
        images = rows_of(gallery.matrix, near[part].ravel()).reshape(len(own), -1, own.shape[1])
        image_lengths = lengths[1][near[part]]
        weights = np.ones_like(image_lengths)
        if alpha > 0:
            cosines = np.einsum("qd,qkd->qk", own, images) / (own_lengths[:, None] * image_lengths)
            weights = np.maximum(cosines, 0) ** alpha
        total = 1 + weights.sum(axis=1, keepdims=True)
        if unit:
            own, weights = own / own_lengths[:, None], weights / image_lengths
        expanded[part] = (own + np.einsum("qk,qkd->qd", weights, images)) / total
    return expanded
