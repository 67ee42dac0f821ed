"""Distances between all queries and all gallery images, a block of queries at a time.

A block holds, for some queries against the whole gallery, a value that is smaller for nearer images: with the Euclidean
distance `|g|^2 - 2 q.g`, the squared distance without the term `|q|^2`, which is the same along a row and so changes no
order; with the cosine distance the cosine similarity with its sign changed. One matrix product per block does nearly all
the work. On a CPU NumPy or torch computes it, whichever is faster there; a GPU's blocks stay on it for who asks.

Precision. The blocks have the precision of the inputs (float32 or float64; half precision is widened to float32). Two
different gallery images whose distances agree to about `eps * |q| * |g|` may come in either order, and which one may
depend on the size of the block. Embeddings that lie far from the origin compared with their spread lose digits that
way: centre them or pass float64. Gallery images with identical embeddings always get identical distances, although the
libraries' products round differently from column to column.
"""

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.matrices import Array, Prepared, matching_matrices, norms_and_duplicates, refuse_zeros

Block = np.ndarray | Tensor

DISTANCES = ("euclidean", "cosine")

_MB = 2**20
_TILE_MB = 8  # copy of a gallery tile that the matrix product can't read in place
_SMALLEST_DEFAULT_MB, _LARGEST_DEFAULT_MB = 32, 256
_DEFAULT_QUERIES = 512  # with fewer queries in a block, reading the gallery again and again takes its share of the time
_WORTH_A_RACE = 2e10  # multiplications (about a tenth of a second) from which on the two libraries are compared
_MARGIN = 1.15  # torch has to be that much faster: a close race must not be decided another way in the next run


def distance_blocks(
    query: Array,
    gallery: Array | Prepared,
    *,
    distance: str = "euclidean",
    absolute: bool = False,
    chunk_memory_mb: float | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(first query, block)`, where `block` (queries, G) is a NumPy matrix of values that are smaller for nearer
    images.

    The next block overwrites the last one, so the caller may write into it and must not keep it.

    Args:
        query: (Q, D) embeddings, NumPy or torch, CPU or GPU.
        gallery: (G, D) embeddings; give the same object as `query` to compare a set with itself. `prepared(gallery)` saves
            work where one gallery is searched many times. Of two precisions the higher one is used: the other side is
            copied as a whole, as is half precision.
        distance: `euclidean` (values `|g|^2 - 2 q.g`) or `cosine` (values minus the cosine similarity).
        absolute: the distances themselves: Euclidean, or 1 minus the cosine similarity.
        chunk_memory_mb: MiB for one block. None: room for 512 queries, but between 32 and 256 MiB.

    Raises:
        ValueError: an unknown distance, an empty set, other dimensions, memory that does not hold one query, a row with
            NaN, infinity or a norm too large for the precision, or a row of zeros, which has no cosine.
    """
    blocks = native_blocks(query, gallery, distance=distance, absolute=absolute, chunk_memory_mb=chunk_memory_mb)
    return ((begin, block.cpu().numpy() if isinstance(block, Tensor) else block) for begin, block in blocks)


def native_blocks(
    query: Array,
    gallery: Array | Prepared,
    *,
    distance: str,
    absolute: bool = False,
    chunk_memory_mb: float | None = None,
) -> Iterator[tuple[int, Block]]:
    """`distance_blocks`, but blocks of a GPU's embeddings are tensors that stay there."""
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    known = gallery if isinstance(gallery, Prepared) else None
    query, matrix = matching_matrices(query, gallery.matrix if isinstance(gallery, Prepared) else gallery)
    if known is None or matrix is not known.matrix:  # or prepared in another precision
        known = Prepared(matrix, *norms_and_duplicates(matrix, "gallery"))
    gallery, norms, later, first = known
    query_norms = norms if query is gallery else norms_and_duplicates(query, "query", duplicates=False)[0]
    if distance == "cosine":
        refuse_zeros(norms, "gallery")
        refuse_zeros(query_norms, "query")
    rows = rows_in_block(query, gallery, chunk_memory_mb)
    cosine = distance == "cosine"
    if isinstance(query, np.ndarray) and isinstance(gallery, np.ndarray):
        product = product_for(len(query), gallery)
        blocks: Iterator[tuple[int, Block]] = _blocks(query, gallery, query_norms, norms, rows, cosine, product)
    else:
        blocks = _device_blocks(torch.as_tensor(query), torch.as_tensor(gallery), query_norms, norms, rows, cosine)
    blocks = _with_equal_duplicates(blocks, later, first)
    return _absolute(blocks, query_norms, cosine) if absolute else blocks


def rows_in_block(query: Array, gallery: Array, chunk_memory_mb: float | None) -> int:
    row_mb = (gallery.shape[0] + gallery.shape[1]) * query.dtype.itemsize / _MB
    if chunk_memory_mb is None:
        chunk_memory_mb = max(min(max(_DEFAULT_QUERIES * row_mb, _SMALLEST_DEFAULT_MB), _LARGEST_DEFAULT_MB), row_mb)
    if not chunk_memory_mb > 0:
        raise ValueError(f"chunk_memory_mb must be above 0, got {chunk_memory_mb}")
    if chunk_memory_mb < row_mb:
        raise ValueError(
            f"chunk_memory_mb={chunk_memory_mb:g} is too small: one query against {gallery.shape[0]} gallery images of "
            f"{gallery.shape[1]} dimensions takes {row_mb:.3g} MiB"
        )
    rows = max(1, min(int(chunk_memory_mb / row_mb), query.shape[0]))
    # Whole panels of the product's kernels: an odd rest would be computed by slower ones in every block.
    return rows - rows % 32 if rows > 64 else rows


def product_for(queries: int, gallery: np.ndarray) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """The faster library's `product(query (n, D), gallery (G, D), out (n, G))` for so many queries in all."""
    if queries * float(gallery.size) < _WORTH_A_RACE or not _readable_in_place(gallery):
        return _numpy_product
    return _torch_product if _torch_is_faster(gallery.dtype) else _numpy_product


@functools.cache
def _torch_is_faster(dtype: np.dtype) -> bool:
    """Whether torch's matrix product beats NumPy's on this processor: they differ by up to 1.8 times, either way."""
    query, gallery = np.ones((256, 1024), dtype), np.ones((2048, 1024), dtype)
    product = np.empty((256, 2048), dtype)
    tensors = torch.from_numpy(query), torch.from_numpy(gallery).T, torch.from_numpy(product)
    taken: dict[str, list[float]] = {"numpy": [], "torch": []}
    for _ in range(4):
        begin = time.perf_counter()
        np.matmul(query, gallery.T, out=product)
        between = time.perf_counter()
        torch.mm(tensors[0], tensors[1], out=tensors[2])
        taken["numpy"].append(between - begin)
        taken["torch"].append(time.perf_counter() - between)
    return min(taken["numpy"]) > _MARGIN * min(taken["torch"])


def _blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    query_norms: np.ndarray,
    norms: np.ndarray,
    rows: int,
    cosine: bool,
    product: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
) -> Iterator[tuple[int, np.ndarray]]:
    buffer = np.empty((min(rows, len(query)), len(gallery)), query.dtype)
    lengths = np.sqrt(norms)
    for begin in range(0, len(query), rows):
        part = query[begin : begin + rows]
        block = buffer[: len(part)]
        if cosine:
            product(part / -np.sqrt(query_norms[begin : begin + rows, None]), gallery, block)
            block /= lengths
        else:
            product(part * query.dtype.type(-2), gallery, block)
            block += norms
        yield begin, block


def _numpy_product(query: np.ndarray, gallery: np.ndarray, out: np.ndarray) -> None:
    if _readable_in_place(gallery):
        np.matmul(query, gallery.T, out=out)
        return
    width = max(1, _TILE_MB * _MB // (gallery.shape[1] * gallery.itemsize))
    for left in range(0, len(gallery), width):
        tile = np.ascontiguousarray(gallery[left : left + width])
        np.matmul(query, tile.T, out=out[:, left : left + width])


def _torch_product(query: np.ndarray, gallery: np.ndarray, out: np.ndarray) -> None:
    with FullPrecision("cpu"), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The given NumPy array is not writable"
        )  # a mapped gallery, which is only read
        torch.mm(torch.from_numpy(query), torch.from_numpy(gallery).T, out=torch.from_numpy(out))


def _readable_in_place(matrix: np.ndarray) -> bool:
    """Whether the matrix product takes it as it lies in memory; for other layouts NumPy has only a slow loop."""
    if matrix.flags.c_contiguous or matrix.flags.f_contiguous:
        return matrix.flags.aligned
    between_rows, within_row = matrix.strides
    return (
        matrix.flags.aligned
        and within_row == matrix.itemsize
        and between_rows % matrix.itemsize == 0
        and between_rows >= matrix.shape[1] * matrix.itemsize
    )


def _device_blocks(
    query: Tensor, gallery: Tensor, query_norms: np.ndarray, norms: np.ndarray, rows: int, cosine: bool
) -> Iterator[tuple[int, Tensor]]:
    device = gallery.device
    own_norms, device_norms = torch.from_numpy(query_norms).to(device), torch.from_numpy(norms).to(device)
    for begin in range(0, len(query), rows):
        part = query[begin : begin + rows]
        with FullPrecision(device.type):
            if cosine:
                scaled = part / -own_norms[begin : begin + rows, None].sqrt()
                block = (scaled @ gallery.T).div_(device_norms.sqrt())
            else:
                block = torch.addmm(device_norms, part, gallery.T, alpha=-2)
        yield begin, block


class FullPrecision:
    """Products of float32 in float32: TF32 or bfloat16, which a training script may have allowed, keep three digits."""

    def __init__(self, device_type: str) -> None:
        self._autocast = torch.autocast(device_type, enabled=False)

    def __enter__(self) -> None:
        self._precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        self._autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._autocast.__exit__(*error)
        torch.set_float32_matmul_precision(self._precision)


def _with_equal_duplicates(
    blocks: Iterator[tuple[int, Block]], later: np.ndarray, first: np.ndarray
) -> Iterator[tuple[int, Block]]:
    for begin, block in blocks:
        if len(later) and isinstance(block, Tensor):
            block[:, torch.from_numpy(later)] = block[:, torch.from_numpy(first)]
        elif len(later):
            for row in block:
                row[later] = row[first]
        yield begin, block


def _absolute(
    blocks: Iterator[tuple[int, Block]], query_norms: np.ndarray, cosine: bool
) -> Iterator[tuple[int, Block]]:
    for begin, block in blocks:
        norms = query_norms[begin : begin + len(block), None]
        # In place for NumPy and torch alike. Rounding can push the smallest distances below zero.
        block += 1 if cosine else norms if isinstance(block, np.ndarray) else torch.from_numpy(norms).to(block.device)
        block *= block > 0
        yield begin, block if cosine else _root(block)


def _root(block: Block) -> Block:
    return block.sqrt_() if isinstance(block, Tensor) else np.sqrt(block, out=block)
