"""Distances between all queries and all gallery images, a block of queries at a time.

A block holds, for some queries and the whole gallery, a value that is smaller for nearer images: with the Euclidean
distance `|g|^2 - 2 q.g`, the squared distance without the term `|q|^2`, which is the same along a row and so changes no
order; with the cosine distance the cosine similarity with its sign changed. One matrix product per block does nearly all
the work: NumPy's for embeddings on the CPU, so that the digits depend on its library and on the shapes alone, torch's on a
GPU, whose blocks stay there for who asks. (On the CPU torch's product takes as long: on two cores of a Xeon with AVX-512
0.93 to 1.07 times NumPy's time at 1,536 dimensions in float32.)

Precision. The blocks have the precision of the inputs (float32 or float64; half precision is widened to float32). Two
different gallery images whose distances agree to about `eps * |q| * |g|` may come in either order, and which one may
depend on the size of the block. Where the gallery lies so far from the origin, compared with its spread, that this would
cost too many digits, queries and gallery are first moved by the gallery's mean (`matrices.centred`: in float32 where the
mean is 29 times as long as the spread; cosine distances are never moved). Gallery images with identical embeddings always
get identical distances, although the libraries' products round differently from column to column.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bdbnet.renamed import accepts_former
from bdbnet.retrieval.matrices import Array, Prepared, centred, compared, lengths, on_cpu, refuse_zeros
from bdbnet.retrieval.on_device import TILE

Block = np.ndarray | Tensor

DISTANCES = ("euclidean", "cosine")

_MB = 2**20
_TILE_MB = 8  # copy of a gallery tile that the matrix product can't read in place
_DEFAULT_MB = 32, 256  # smallest and largest block; on a GPU a small one does not fill the processors:
_DEVICE_DEFAULT_MB = 256, 1024
#: A block may take so much of the gallery's memory in any case: with 128 queries in it a product takes 1.4 times the time.
_SHARE_OF_GALLERY = 0.25
_DEFAULT_QUERIES = 512  # with fewer queries in a block, reading the gallery again and again takes its share of the time


@accepts_former(measure="distance")
def distance_blocks(
    query: Array | Prepared,
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
        distance: `euclidean` (values `|g|^2 - 2 q.g`, of centred embeddings where the gallery is far from the origin) or
            `cosine` (values minus the cosine similarity).
        absolute: the distances themselves: Euclidean, or 1 minus the cosine similarity.
        chunk_memory_mb: MiB for one block. None: room for 512 queries, but between 32 and 256 MiB, on a GPU between 256 and
            1,024 MiB, or a quarter of what the gallery's embeddings take where that is more.

    Raises:
        ValueError: an unknown distance, an empty set, other dimensions, memory that does not hold one query, a row with
            NaN, infinity or a norm too large for the precision, or a row of zeros, which has no cosine.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    blocks = native_blocks(*compared(query, gallery), distance, absolute=absolute, chunk_memory_mb=chunk_memory_mb)
    images = len(gallery)
    return ((begin, on_cpu(block[:, :images])) for begin, block in blocks)


def native_blocks(
    query: Prepared, gallery: Prepared, distance: str, *, absolute: bool = False, chunk_memory_mb: float | None = None
) -> Iterator[tuple[int, Block]]:
    """`distance_blocks` of two sets in one precision, but blocks of a GPU's embeddings are tensors that stay there.

    These have further columns of infinity, up to a multiple of `TILE`.
    """
    cosine = distance == "cosine"
    if cosine:
        refuse_zeros(gallery.norms, "gallery")
        refuse_zeros(query.norms, "query")
    else:
        query, gallery = centred(query, gallery)
    rows = rows_in_block(query.matrix, gallery.matrix, chunk_memory_mb)
    if isinstance(query.matrix, Tensor):
        blocks: Iterator[tuple[int, Block]] = _device_blocks(query, gallery, rows, cosine)
    else:
        norms = on_cpu(query.norms), on_cpu(gallery.norms)
        blocks = _blocks(on_cpu(query.matrix), on_cpu(gallery.matrix), *norms, rows, cosine)
    blocks = _with_equal_duplicates(blocks, gallery.later, gallery.first)
    return _absolute(blocks, query.norms, cosine) if absolute else blocks


def rows_in_block(query: Array, gallery: Array, chunk_memory_mb: float | None) -> int:
    """Number of queries whose distances to the gallery fit into one block.  Raises ValueError where not one does."""
    row_mb = (gallery.shape[0] + gallery.shape[1]) * query.dtype.itemsize / _MB
    if chunk_memory_mb is None:
        least, largest = _DEVICE_DEFAULT_MB if isinstance(query, Tensor) else _DEFAULT_MB
        most = max(largest, gallery.shape[0] * gallery.shape[1] * query.dtype.itemsize / _MB * _SHARE_OF_GALLERY)
        chunk_memory_mb = max(min(max(_DEFAULT_QUERIES * row_mb, least), most), row_mb)
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


def _blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    query_norms: np.ndarray,
    norms: np.ndarray,
    rows: int,
    cosine: bool,
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


def product(query: np.ndarray, gallery: np.ndarray, out: np.ndarray) -> None:
    """Write the matrix product of (n, D) and the transpose of (G, D) into `out` (n, G)."""
    if _readable_in_place(gallery):
        np.matmul(query, gallery.T, out=out)
        return
    width = max(1, _TILE_MB * _MB // (gallery.shape[1] * gallery.itemsize))
    for left in range(0, len(gallery), width):
        tile = np.ascontiguousarray(gallery[left : left + width])
        np.matmul(query, tile.T, out=out[:, left : left + width])


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


def _device_blocks(query: Prepared, gallery: Prepared, rows: int, cosine: bool) -> Iterator[tuple[int, Tensor]]:
    asked, shown = cast(Tensor, query.matrix), cast(Tensor, gallery.matrix)
    count = len(shown)
    buffer = shown.new_full((min(rows, len(asked)), count + -count % TILE), torch.inf)
    own, others = (cast(Tensor, lengths(side) if cosine else side.norms) for side in (query, gallery))
    for begin in range(0, len(asked), rows):
        part = asked[begin : begin + rows]
        block = buffer[: len(part)]
        products = block[:, :count]
        with full_precision(shown.device.type):
            if cosine:
                torch.mm(part / -own[begin : begin + rows, None], shown.T, out=products)
                products /= others
            else:
                torch.addmm(others, part, shown.T, alpha=-2, out=products)
        yield begin, block


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Products of float32 in float32: TF32 or bfloat16, which a training script may have allowed, keep three digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _with_equal_duplicates(
    blocks: Iterator[tuple[int, Block]], later: Array, first: Array
) -> Iterator[tuple[int, Block]]:
    for begin, block in blocks:
        if len(later) and isinstance(block, Tensor):
            block[:, later] = block[:, first]
        elif len(later):
            for row in block:
                row[later] = row[first]
        yield begin, block


def _absolute(blocks: Iterator[tuple[int, Block]], query_norms: Array, cosine: bool) -> Iterator[tuple[int, Block]]:
    for begin, block in blocks:
        # In place for NumPy and torch alike. Rounding can push the smallest distances below zero.
        block += 1 if cosine else query_norms[begin : begin + len(block), None]
        block *= block > 0
        yield begin, block if cosine else _root(block)


def _root(block: Block) -> Block:
    return block.sqrt_() if isinstance(block, Tensor) else np.sqrt(block, out=block)
