"""k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017).

Two images that are among each other's nearest are likely to show one identity. Each image of queries and gallery is
encoded by the images it has such a relation with, and the overlap of two encodings (the Jaccard distance) is mixed with
the distance itself. An encoding has some dozens of entries, so encodings are sparse rows and distances are streamed:
no matrix of queries and gallery against themselves is held.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

from bdbnet.retrieval.device_knn import DeviceNeighbours, neighbours_on_device
from bdbnet.retrieval.device_rerank import Encodings, Overlaps, encodings
from bdbnet.retrieval.distances import Block, distance_blocks, native_blocks, rows_in_block
from bdbnet.retrieval.knn import nearest_neighbours, smallest
from bdbnet.retrieval.matrices import Array, Prepared, centred, compared, joined, on_cpu, rows_of

_PAIRS_MB = 16  # differences of pairs of embeddings that are taken at a time,
_PAIRS_ON_DEVICE_MB = 256  # on a GPU
_KEPT_MB = 256  # distances of queries to the gallery that are kept from the search for neighbours,
_BLOCK_MB = 32  # and are mixed with Jaccard distances at a time
_QUERIES = 32  # queries whose encodings are compared at a time


@dataclass(frozen=True)
class KReciprocal:
    """Settings of k-reciprocal re-ranking; the defaults are those published for Market-1501.

    Attributes:
        k1: neighbours, besides the image itself, that may be reciprocal; about as many as an identity has images.
        k2: nearest images, the image itself among them, whose encodings are averaged (local query expansion).
        lambda_value: weight of the original distance beside that of the Jaccard distance, from 0 to 1.

    Raises:
        ValueError: `k1` or `k2` is not a whole number from 1 on, or `lambda_value` is outside of 0 to 1.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} of k-reciprocal re-ranking must be a whole number from 1 on, got {value!r}")
        if not 0 <= self.lambda_value <= 1:
            raise ValueError(f"lambda_value of k-reciprocal re-ranking must be from 0 to 1, got {self.lambda_value!r}")

    def neighbours_in(self, images: int) -> int:
        """Nearest images needed of each image.  Raises `ValueError` where there are not that many."""
        for name, needed in (("k1", self.k1 + 1), ("k2", self.k2)):
            if needed > images:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs {needed} images, but queries and gallery together have "
                    f"{images}: choose a smaller {name}"
                )
        return max(self.k1 + 1, self.k2)


def k_reciprocal_rerank(
    query: Array,
    gallery: Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    chunk_memory_mb: float | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Re-ranked distances (Q, G) of queries to gallery images, from 0 to 1, smaller for nearer images.

    `(1 - lambda_value)` times the Jaccard distance of the encodings plus `lambda_value` times the squared Euclidean
    distance, divided by the query's largest to any query or gallery image, as in the code released with the paper.

    Args:
        query: (Q, D) embeddings, NumPy or torch, on the CPU or a GPU.
        gallery: (G, D) embeddings. Give the very object that is `query` to search a set in itself: it then counts once.
        k1, k2, lambda_value: see `KReciprocal`.
        chunk_memory_mb: MiB for one block of distances, of which up to three are held. None: see `nearest_neighbours`.
        progress: show a progress bar.

    Raises:
        ValueError: see `KReciprocal` and `distance_blocks`; `k1 + 1` or `k2` above the number of images.

    >>> query, gallery = np.array([[0.0]]), np.array([[2.0], [1.0], [9.0]])
    >>> k_reciprocal_rerank(query, gallery, k1=1, k2=1, lambda_value=0.5).round(3)
    array([[0.525, 0.013, 1.   ]])
    """
    settings = KReciprocal(k1, k2, lambda_value)
    blocks = reranked_blocks(query, gallery, settings, chunk_memory_mb=chunk_memory_mb, progress=progress)
    distances = np.empty((0, 0))
    for begin, block in blocks:
        if begin == 0:
            distances = np.empty((len(query), len(gallery)), on_cpu(block[:0]).dtype)
        distances[begin : begin + len(block)] = on_cpu(block[:, : len(gallery)])
    return distances


def reranked_blocks(
    query: Array | Prepared,
    gallery: Array | Prepared,
    settings: KReciprocal,
    *,
    chunk_memory_mb: float | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, Block]]:
    """`k_reciprocal_rerank` in blocks `(first query, distances (queries, G))`, as `positive_ranks` takes them.

    Blocks of embeddings on a GPU stay there and have further columns of infinity, see `native_blocks`. The call itself checks
    what it is given; encodings are computed when the first block is asked for. The next block overwrites the last one, so the
    caller may write into it and must not keep it.
    """
    query, gallery = centred(*compared(query, gallery))
    settings.neighbours_in(len(query) if query is gallery else len(query) + len(gallery))
    rows_in_block(query.matrix, gallery.matrix, chunk_memory_mb)  # refuses memory that does not hold one query
    if isinstance(query.matrix, Tensor):
        there = native_blocks(query, gallery, "euclidean", chunk_memory_mb=chunk_memory_mb)
        return _reranked_on_device(query, gallery, there, settings, chunk_memory_mb, progress)
    return _reranked(query, gallery, settings, chunk_memory_mb, progress)


def _reranked(
    query: Prepared,
    gallery: Prepared,
    settings: KReciprocal,
    chunk_memory_mb: float | None,
    progress: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    queries, lambda_value, same_set = len(query), settings.lambda_value, query is gallery
    norms = on_cpu(query.norms)
    # The search for neighbours computes the distances of queries to the gallery too: where they fit, they are kept.
    kept = None if same_set else _Kept.where_it_fits(query, gallery, chunk_memory_mb)
    with _bar(query, gallery, progress) as bar:
        images = query if same_set else joined(query, gallery)
        encodings, scale = _encoded(images, settings, chunk_memory_mb, bar, kept)
        del images
        by_entry = _by_entry(encodings if same_set else encodings[queries:])
        factors = (lambda_value / scale[:queries]).astype(scale.dtype)
        jaccard = np.empty((0, by_entry.shape[1]), norms.dtype)
        found = kept.blocks() if kept is not None and kept.complete else None
        for begin, block in found or distance_blocks(query, gallery, chunk_memory_mb=chunk_memory_mb):
            part = slice(begin, begin + len(block))
            if len(jaccard) != len(block):
                jaccard = np.empty_like(block)
            _jaccard_distances(encodings[part], by_entry, jaccard)
            if found is None:
                block += norms[part, None]
                np.maximum(block, 0, out=block)  # rounding
            block *= factors[part, None]
            jaccard *= 1 - lambda_value
            block += jaccard
            bar.update(len(block))
            yield begin, block


class _Kept:
    """Squared distances (Q, G) of queries to gallery images, taken from those of all images among themselves, queries first."""

    def __init__(self, queries: int, images: int, dtype: np.dtype) -> None:
        self._squared = np.empty((queries, images), dtype)
        self._filled = 0

    @classmethod
    def where_it_fits(cls, query: Prepared, gallery: Prepared, chunk_memory_mb: float | None) -> "_Kept | None":
        """None where the distances would take more memory than one block may."""
        dtype = on_cpu(query.norms).dtype
        room = (_KEPT_MB if chunk_memory_mb is None else chunk_memory_mb) * 2**20
        return cls(len(query), len(gallery), dtype) if len(query) * len(gallery) * dtype.itemsize <= room else None

    def see(self, begin: int, block: np.ndarray) -> None:
        queries = len(self._squared)
        rows = min(len(block), queries - begin)
        if rows > 0:
            self._squared[begin : begin + rows] = block[:rows, queries - begin :]
            self._filled += rows

    @property
    def complete(self) -> bool:
        return self._filled == len(self._squared)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        rows = max(_QUERIES, _BLOCK_MB * 2**20 // self._squared[:1].nbytes)
        return ((begin, self._squared[begin : begin + rows]) for begin in range(0, len(self._squared), rows))


def _bar(query: Prepared, gallery: Prepared, progress: bool) -> "tqdm[Any]":
    total = len(query) + (len(query) if query is gallery else len(query) + len(gallery))
    return tqdm(total=total, desc="re-ranking", unit=" images", disable=None if progress else True)


def _reranked_on_device(
    query: Prepared,
    gallery: Prepared,
    distances: Iterator[tuple[int, Block]],
    settings: KReciprocal,
    chunk_memory_mb: float | None,
    progress: bool,
) -> Iterator[tuple[int, Tensor]]:
    norms, count = cast(Tensor, query.norms), len(gallery)
    with _bar(query, gallery, progress) as bar:
        images = query if query is gallery else joined(query, gallery)
        near = neighbours_on_device(images, settings.neighbours_in(len(images)), chunk_memory_mb, bar.update)
        scale = torch.where(near.largest > 0, near.largest, 1)
        squared = partial(_squared_on_device, cast(Tensor, images.matrix), near)
        encoded = encodings(near.indices, squared, scale, settings.k1, settings.k2)
        shown = Encodings(*(rows[len(images) - count :] for rows in encoded))
        overlaps = Overlaps(shown, len(images))
        del images, squared, near, shown
        for begin, block in distances:
            part = slice(begin, begin + len(block))
            block = cast(Tensor, block)
            mixed = block[:, :count]
            shared = torch.empty(mixed.shape, dtype=mixed.dtype, device=mixed.device)
            overlaps.shared(Encodings(encoded.entries[part], encoded.weights[part]), shared)
            # Encodings sum to 1, so what two of them cover together is 2 less what they share.
            jaccard = shared.div_(2 - shared).neg_().add_(1)
            mixed.add_(norms[part, None]).clamp_(min=0).mul_(settings.lambda_value / scale[part, None])
            mixed.add_(jaccard, alpha=1 - settings.lambda_value)
            bar.update(len(block))
            yield begin, block


def _squared_on_device(matrix: Tensor, near: DeviceNeighbours, part: slice, entries: Tensor) -> Tensor:
    """Squared distances (n, E) of some images to others, looked up where one is among the other's nearest."""
    own = torch.arange(part.start, part.stop, device=entries.device)
    found = torch.empty(entries.shape, dtype=near.squared.dtype, device=entries.device)
    at_once = max(1, _PAIRS_ON_DEVICE_MB * 2**20 // (entries.shape[1] * matrix.shape[1] * matrix.element_size()))
    for begin in range(0, len(own), at_once):
        some, others = own[begin : begin + at_once], entries[begin : begin + at_once]
        here = others[:, :, None] == near.indices[some][:, None]
        there = near.indices[others] == some[:, None, None]
        apart = (matrix[some][:, None] - matrix[others]).square_().sum(2)
        apart = torch.where(there.any(2), (near.squared[others] * there).sum(2), apart)
        found[begin : begin + at_once] = torch.where(here.any(2), (near.squared[some][:, None] * here).sum(2), apart)
    return found


def _encoded(
    images: Prepared, settings: KReciprocal, chunk_memory_mb: float | None, bar: "tqdm[Any]", kept: "_Kept | None"
) -> tuple[csr_array, np.ndarray]:
    """Encodings (N, N), and the squared distance (N,) by which each image's distances are divided."""
    needed = settings.neighbours_in(len(images))
    see = None if kept is None else kept.see
    near = nearest_neighbours(images, needed, chunk_memory_mb=chunk_memory_mb, progress=bar.update, see=see)
    matrix = on_cpu(images.matrix)
    scale = np.where(near.largest > 0, near.largest, 1)

    def scaled(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        squared = _squared_distances(matrix, rows, columns, near.indices, near.squared)
        squared /= scale[rows]
        return squared

    return _encodings(near.indices, scaled, settings), scale


def k_reciprocal_rerank_distances(
    query_gallery: Array,
    query_query: Array,
    gallery_gallery: Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> np.ndarray:
    """`k_reciprocal_rerank` from given distances, for other distances than those of embeddings.

    Args:
        query_gallery, query_query, gallery_gallery: squared distances (Q, G), (Q, Q) and (G, G), NumPy or torch. The
            code released with the paper takes them before squaring.
        k1, k2, lambda_value: see `KReciprocal`.

    Returns:
        Re-ranked distances (Q, G).

    Raises:
        ValueError: see `KReciprocal`; shapes that do not fit together, NaN, or infinite or negative distances.
    """
    settings = KReciprocal(k1, k2, lambda_value)
    given = {"query_gallery": query_gallery, "query_query": query_query, "gallery_gallery": gallery_gallery}
    parts = {
        name: value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in given.items()
    }
    if parts["query_gallery"].ndim != 2 or parts["query_gallery"].size == 0:
        raise ValueError(f"query_gallery must have shape (queries, images), got {parts['query_gallery'].shape}")
    queries, count = parts["query_gallery"].shape
    for name, side in (("query_query", queries), ("gallery_gallery", count)):
        if parts[name].shape != (side, side):
            raise ValueError(f"{name} must have shape {(side, side)} to fit query_gallery, got {parts[name].shape}")
    for name, part in parts.items():
        fine = np.isfinite(part) & (part >= 0)
        if not fine.all():
            row, column = np.argwhere(~fine)[0]
            raise ValueError(f"{name}[{row}, {column}] is {part[row, column]}: squared distances are finite and >= 0")
    between, own, others = parts.values()
    squared = np.block([[own, between], [between.T, others]])
    largest = squared.max(axis=0)
    scaled = np.ascontiguousarray((squared / np.where(largest > 0, largest, 1)).T)
    near = smallest(scaled, settings.neighbours_in(len(scaled)))
    encodings = _encodings(near, lambda rows, columns: scaled[rows, columns], settings)
    jaccard = np.empty_like(scaled[:queries, queries:])
    _jaccard_distances(encodings[:queries], _by_entry(encodings[queries:]), jaccard)
    return (1 - lambda_value) * jaccard + lambda_value * scaled[:queries, queries:]


def _squared_distances(
    images: np.ndarray, rows: np.ndarray, columns: np.ndarray, near: np.ndarray, near_squared: np.ndarray
) -> np.ndarray:
    """Squared Euclidean distances of pairs of images, looked up where one is among the other's nearest."""
    count = len(images)
    known = _pair_codes(np.repeat(np.arange(count), near.shape[1]), near.ravel(), count)
    known, at = np.unique(known, return_index=True)
    wanted, inverse = np.unique(_pair_codes(rows, columns, count), return_inverse=True)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    squared = near_squared.ravel()[at[place]]
    missing = np.flatnonzero(known[place] != wanted)
    at_once = max(1, _PAIRS_MB * 2**20 // (images.shape[1] * images.dtype.itemsize))
    for begin in range(0, len(missing), at_once):
        pairs = missing[begin : begin + at_once]
        left, right = np.divmod(wanted[pairs], count)
        difference = rows_of(images, left) - rows_of(images, right)
        squared[pairs] = np.einsum("ij,ij->i", difference, difference)
    return squared[inverse]


def _pair_codes(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """One number for a pair of images, whichever comes first."""
    codes: np.ndarray = np.minimum(left, right).astype(np.int64) * count + np.maximum(left, right)
    return codes


def _encodings(
    near: np.ndarray, scaled: Callable[[np.ndarray, np.ndarray], np.ndarray], settings: KReciprocal
) -> csr_array:
    """Encoding of each image as a sparse row (N, N), from its nearest images (N, k), itself among them."""
    reciprocal = _reciprocal(near[:, : settings.k1 + 1])
    candidates = _reciprocal(near[:, : round(settings.k1 / 2) + 1])  # rounds halves to even, as np.around does
    # A candidate's own neighbours come in where more than two thirds of them are among the image's.
    shared = (reciprocal @ candidates).multiply(reciprocal).tocoo()
    sizes = candidates.sum(axis=1)
    image, candidate = shared.coords
    fits = 3 * shared.data > 2 * sizes[candidate]
    members = csr_array((np.ones(int(fits.sum()), np.int32), (image[fits], candidate[fits])), shape=reciprocal.shape)
    expanded = reciprocal + members @ candidates
    expanded.sort_indices()
    owners = np.repeat(np.arange(len(near)), np.diff(expanded.indptr))
    weights = np.exp(-scaled(owners, expanded.indices))
    sums = np.bincount(owners, weights, minlength=len(near)).astype(weights.dtype)
    encodings = csr_array((weights / sums[owners], expanded.indices, expanded.indptr), shape=expanded.shape)
    if settings.k2 == 1:
        return encodings
    encodings = _indicators(near[:, : settings.k2], encodings.dtype) @ encodings
    encodings.data /= settings.k2
    encodings.sort_indices()
    return encodings


def _reciprocal(near: np.ndarray) -> csr_array:
    """Ones (N, N) where two images are in each other's row of `near`."""
    chosen = _indicators(near, np.dtype(np.int32))
    return chosen.multiply(chosen.T).tocsr()


def _indicators(near: np.ndarray, dtype: np.dtype) -> csr_array:
    ends = np.arange(0, near.size + 1, near.shape[1])
    return csr_array((np.ones(near.size, dtype), near.ravel(), ends), shape=(len(near), len(near)))


def _by_entry(encodings: csr_array) -> csr_array:
    """Turned round (N, images): the images that have an entry, and its values."""
    return encodings.T.tocsr()


def _jaccard_distances(own: csr_array, by_entry: csr_array, out: np.ndarray) -> None:
    """Write into `out` (queries, G) the Jaccard distances of query encodings to those of the gallery."""
    for begin in range(0, own.shape[0], _QUERIES):
        part = own[begin : begin + _QUERIES]
        meeting = by_entry[part.indices]
        np.minimum(meeting.data, np.repeat(part.data, np.diff(meeting.indptr)), out=meeting.data)
        # One row for each query instead of each of its entries: what is stored twice adds up.
        ends = meeting.indptr[part.indptr]
        shared = out[begin : begin + _QUERIES]
        csr_array((meeting.data, meeting.indices, ends), shape=shared.shape).toarray(out=shared)
    # Encodings sum to 1, so what two of them cover together is 2 less what they share.
    np.divide(out, 2 - out, out=out)
    np.subtract(1, out, out=out)
