"""Distances between all queries and all gallery images, a block of queries at a time.

A block holds `|g|^2 - 2 q.g` for some queries against the whole gallery: the squared Euclidean distance without the
term `|q|^2`, which is the same along a row and so changes no order. One matrix product per block does nearly all the
work.

Precision. The blocks have the precision of the inputs (float32 or float64; half precision is widened to float32). Two
different gallery images whose distances agree to about `eps * |q| * |g|` may come in either order, and which one may
depend on the size of the block. Embeddings that lie far from the origin compared with their spread lose digits that
way: centre them or pass float64. Gallery images with identical embeddings always get identical distances, although the
libraries' products round differently from column to column.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

_MB = 2**20
_ROWS_PER_PASS = 256  # rows that are widened to float64 at a time for their norms
_TILE_MB = 8  # copy of a gallery tile that the matrix product can't read in place
_SMALLEST_DEFAULT_MB, _LARGEST_DEFAULT_MB = 32, 256
_DEFAULT_QUERIES = 128  # below this many queries in a block the product is limited by reading the gallery


def as_matrix(embeddings: Array, name: str) -> Array:
    """Embeddings as a (N, D) matrix of float32 or float64: a NumPy view on the CPU, else a tensor on its own device.

    Only half precision and foreign byte orders are copied. Raises `ValueError` where it is no floating-point matrix
    with at least one row and one column.
    """
    matrix: Array
    if isinstance(embeddings, Tensor):
        tensor = embeddings.detach()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        floating = tensor.dtype in (torch.float32, torch.float64)
        matrix = tensor.numpy() if floating and tensor.device.type == "cpu" else tensor
    else:
        matrix = np.asarray(embeddings)
        floating = matrix.dtype.kind == "f"
        if floating and matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float32 if matrix.dtype.itemsize <= 4 else np.float64)
    if not floating:
        raise ValueError(f"{name} embeddings must be floating point, got {matrix.dtype}")
    if matrix.ndim != 2:
        raise ValueError(f"{name} embeddings must have shape (images, dimensions), got {tuple(matrix.shape)}")
    if matrix.shape[0] == 0:
        raise ValueError(f"there are no {name} embeddings")
    if matrix.shape[1] == 0:
        raise ValueError(f"{name} embeddings have no dimensions")
    return matrix


def matching_matrices(query: Array, gallery: Array) -> tuple[Array, Array]:
    """Query and gallery as matrices of one dtype; raises `ValueError` where dimensions or devices differ."""
    same_set = query is gallery
    query = as_matrix(query, "query")
    gallery = query if same_set else as_matrix(gallery, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query embeddings have {query.shape[1]} dimensions, gallery embeddings {gallery.shape[1]}")
    if isinstance(query, np.ndarray) and isinstance(gallery, np.ndarray):
        dtype = np.result_type(query, gallery)
        return query.astype(dtype, copy=False), gallery.astype(dtype, copy=False)
    if isinstance(query, Tensor) and isinstance(gallery, Tensor) and query.device == gallery.device:
        common = torch.promote_types(query.dtype, gallery.dtype)
        return query.to(common), gallery.to(common)
    places = [x.device if isinstance(x, Tensor) else "cpu" for x in (query, gallery)]
    raise ValueError(f"query embeddings are on {places[0]}, gallery embeddings on {places[1]}: move them to one device")


def rows_of(matrix: Array, index: slice | np.ndarray) -> np.ndarray:
    """The chosen rows as a contiguous NumPy matrix."""
    if isinstance(matrix, Tensor):
        return matrix[index if isinstance(index, slice) else torch.from_numpy(index).to(matrix.device)].cpu().numpy()
    return np.ascontiguousarray(matrix[index])


def distance_blocks(
    query: Array, gallery: Array, *, chunk_memory_mb: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(first query, block)`, where `block` (queries, G) holds `|g|^2 - 2 q.g` as a NumPy matrix.

    The next block overwrites the last one, so the caller may write into it and must not keep it.

    Args:
        query: (Q, D) embeddings, NumPy or torch, CPU or GPU; never copied as a whole unless in half precision.
        gallery: (G, D) embeddings; give the same object as `query` to compare a set with itself.
        chunk_memory_mb: MiB for one block (at least one query is computed at a time). None: room for 128 queries, but
            between 32 and 256 MiB.

    Raises:
        ValueError: an empty set, other dimensions, or a row with NaN, infinity or a norm too large for the precision.
    """
    query, gallery = matching_matrices(query, gallery)
    norms, later, first = _norms_and_duplicates(gallery, "gallery")
    if query is not gallery:
        _norms_and_duplicates(query, "query", duplicates=False)
    rows = _rows_in_block(query, gallery, chunk_memory_mb)
    if isinstance(query, Tensor) or isinstance(gallery, Tensor):
        products = _torch_blocks(torch.as_tensor(query), torch.as_tensor(gallery), norms, rows)
    else:
        products = _numpy_blocks(query, gallery, norms, rows)
    return _with_equal_duplicates(products, later, first)


def _rows_in_block(query: Array, gallery: Array, chunk_memory_mb: float | None) -> int:
    row_mb = (gallery.shape[0] + gallery.shape[1]) * query.dtype.itemsize / _MB
    if chunk_memory_mb is None:
        chunk_memory_mb = min(max(_DEFAULT_QUERIES * row_mb, _SMALLEST_DEFAULT_MB), _LARGEST_DEFAULT_MB)
    if not chunk_memory_mb > 0:
        raise ValueError(f"chunk_memory_mb must be above 0, got {chunk_memory_mb}")
    rows = max(1, min(int(chunk_memory_mb / row_mb), query.shape[0]))
    # Whole panels of the product's kernels: an odd rest would be computed by slower ones in every block.
    return rows - rows % 32 if rows > 64 else rows


def _norms_and_duplicates(
    matrix: Array, name: str, *, duplicates: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared norms (N,); for each row that repeats an earlier one its index, and the index of the first such row."""
    count, dimensions = matrix.shape
    norms = np.empty(count)
    hashes = np.empty(count, np.uint64)
    bits = np.dtype(np.uint32 if matrix.dtype.itemsize == 4 else np.uint64)
    odd = np.arange(1, 2 * dimensions, 2, dtype=np.uint64)
    multipliers: np.ndarray = (odd * np.uint64(0x9E3779B97F4A7C15)).astype(bits)
    for begin in range(0, count, _ROWS_PER_PASS):
        part = slice(begin, begin + _ROWS_PER_PASS)
        rows = rows_of(matrix, part)
        wide = rows.astype(np.float64)
        np.einsum("ij,ij->i", wide, wide, out=norms[part])
        if duplicates:
            # Integer arithmetic is exact, so equal rows have equal hashes wherever they lie in memory.
            hashes[part] = np.einsum("ij,j->i", rows.view(bits), multipliers)
    dtype = rows.dtype
    # By Cauchy-Schwarz no element of a block can overflow below this bound.
    fine = norms <= np.finfo(dtype).max / 8
    if not fine.all():
        row = int(np.argmin(fine))
        values = rows_of(matrix, slice(row, row + 1))
        fault = "has a norm too large for " + str(dtype) if np.isfinite(values).all() else "contains NaN or infinity"
        raise ValueError(f"{name} embedding {row} {fault} ({int((~fine).sum())} such rows of {count})")
    later, first = _repeated_rows(matrix, hashes) if duplicates else (np.empty(0, np.int64), np.empty(0, np.int64))
    norms = norms.astype(dtype)
    norms[later] = norms[first]
    return norms, later, first


def _repeated_rows(matrix: Array, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(hashes, kind="stable")
    starts = np.r_[True, np.diff(hashes[order]) != 0]
    heads = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    pairs: list[tuple[int, int]] = []
    head, head_row = -1, np.empty(0)
    for row, of in zip(order[~starts].tolist(), heads[~starts].tolist(), strict=True):
        if of != head:
            head, head_row = of, rows_of(matrix, slice(of, of + 1))
        if np.array_equal(rows_of(matrix, slice(row, row + 1)), head_row):
            pairs.append((row, of))
    later, first = np.array(pairs, np.int64).reshape(-1, 2).T
    return later, first


def _numpy_blocks(
    query: np.ndarray, gallery: np.ndarray, norms: np.ndarray, rows: int
) -> Iterator[tuple[int, np.ndarray]]:
    # NumPy's OpenBLAS is as fast as torch's MKL on Intel and up to 1.8 times as fast on AMD processors.
    buffer = np.empty((min(rows, len(query)), len(gallery)), query.dtype)
    for begin in range(0, len(query), rows):
        scaled = query[begin : begin + rows] * query.dtype.type(-2)
        block = buffer[: len(scaled)]
        if _readable_in_place(gallery):
            np.matmul(scaled, gallery.T, out=block)
        else:
            width = max(1, _TILE_MB * _MB // (gallery.shape[1] * gallery.itemsize))
            for left in range(0, len(gallery), width):
                tile = np.ascontiguousarray(gallery[left : left + width])
                np.matmul(scaled, tile.T, out=block[:, left : left + width])
        block += norms
        yield begin, block


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


def _torch_blocks(query: Tensor, gallery: Tensor, norms: np.ndarray, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    device_norms = torch.from_numpy(norms).to(gallery.device)
    for begin in range(0, len(query), rows):
        # TF32 or bfloat16, which a training script may have allowed, would keep only three digits.
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(query.device.type, enabled=False):
                block = torch.addmm(device_norms, query[begin : begin + rows], gallery.T, alpha=-2)
        finally:
            torch.set_float32_matmul_precision(precision)
        yield begin, block.cpu().numpy()


def _with_equal_duplicates(
    blocks: Iterator[tuple[int, np.ndarray]], later: np.ndarray, first: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for begin, block in blocks:
        if len(later):
            for row in block:
                row[later] = row[first]
        yield begin, block
