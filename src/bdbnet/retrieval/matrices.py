"""Embeddings as matrices that can be compared: checked once, of one precision, on one device."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.on_device import looked_through, repeated_rows, squared_norms

Array = np.ndarray | Tensor

#: Devices whose tensors are compared by NumPy; those of others stay there as tensors.
_NUMPY_DEVICES = ("cpu",)

_ROWS_PER_PASS = 256  # rows that are widened to float64 at a time for their norms
_LOST = (
    1e-4  # of the mean squared distance, to rounding: above it embeddings are centred, 29 times their spread in float32
)


def as_matrix(embeddings: Array, name: str) -> Array:
    """Embeddings as a (N, D) matrix of float32 or float64: a NumPy view on the CPU, else a tensor on its own device.

    Only half precision and foreign byte orders are copied. Raises `ValueError` where it is no floating-point matrix
    with at least one row and one column.
    """
    matrix: Array
    if isinstance(embeddings, Tensor):
        tensor = embeddings.detach() if embeddings.requires_grad else embeddings
        if tensor.device.type == "mps":  # has no float64, which norms are summed in
            tensor = tensor.cpu()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        floating = tensor.dtype in (torch.float32, torch.float64)
        matrix = tensor.numpy() if floating and tensor.device.type in _NUMPY_DEVICES else tensor
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


@dataclass(frozen=True, eq=False)
class Prepared:
    """Embeddings that were looked through once: NumPy arrays, or tensors on the device of embeddings on a GPU.

    Attributes:
        matrix: (N, D), see `as_matrix`.
        norms: squared norms (N,) in the matrix's precision.
        hashes: 64-bit integers (N,), equal for equal rows.
        later, first: int64, the rows that repeat an earlier one, and the first such row of each.
        offset: (D,) in the matrix's precision: the mean embedding, where it is so much longer than the embeddings' spread that
            Euclidean distances would lose digits to rounding; else None. See `centred`.
    """

    matrix: Array
    norms: Array
    hashes: Array
    later: Array
    first: Array
    offset: Array | None = None

    def __len__(self) -> int:
        return len(self.matrix)

    @cached_property
    def without_offset(self) -> "Prepared":
        """The same, moved by its own offset."""
        return self if self.offset is None else moved(self, self.offset)


def prepared(embeddings: Array, name: str = "gallery") -> Prepared:
    """Embeddings for many calls of `distance_blocks`, which then need not look through them again.

    Raises `ValueError` where they can't be compared: see `as_matrix`; a row with NaN, infinity or a norm too large for the
    precision, which `name` and its number name.
    """
    matrix = as_matrix(embeddings, name)
    if isinstance(matrix, Tensor):
        return _prepared_on_device(matrix, name)
    norms, hashes, offset = _norms_hashes_and_offset(matrix, name)
    later, first = _repeated_rows(matrix, hashes)
    norms[later] = norms[first]
    return Prepared(matrix, norms, hashes, later, first, offset)


def _prepared_on_device(matrix: Tensor, name: str) -> Prepared:
    # By Cauchy-Schwarz no element of a block can overflow below this bound.
    found = looked_through(matrix, torch.finfo(matrix.dtype).max / 8, _LOST)
    if found.bad_row is not None:
        _refuse(
            rows_of(matrix, slice(found.bad_row, found.bad_row + 1)), found.bad_row, found.bad_rows, len(matrix), name
        )
    later, first = repeated_rows(matrix, found.hashes)
    norms = found.norms.to(matrix.dtype)
    norms[later] = norms[first]
    return Prepared(matrix, norms, found.hashes, later, first, found.mean.to(matrix.dtype) if found.far else None)


def centred(query: Prepared, gallery: Prepared) -> tuple[Prepared, Prepared]:
    """Both sets moved by the gallery's offset, for their Euclidean distances, which do not change by it; most have none.

    Where the squared length of the gallery's mean embedding, times the precision's epsilon, exceeds 1e-4 of the mean squared
    distance to it, in float32 where it is 29 times as long, `|q|^2 + |g|^2 - 2 q.g` cancels too many digits. Everywhere else
    nothing is moved, so that no digit changes. The gallery alone decides, so that the number of queries does not matter. A
    moved gallery is kept with the gallery: as much memory again.
    """
    if gallery.offset is None:
        return query, gallery
    there = gallery.without_offset
    return there if query is gallery else moved(query, gallery.offset), there


def moved(embeddings: Prepared, offset: Any) -> Prepared:
    """Embeddings less an offset (D,)."""
    matrix: Any = embeddings.matrix - offset
    if isinstance(matrix, Tensor):
        there = squared_norms(matrix).to(matrix.dtype)
        there[embeddings.later] = there[embeddings.first]
        return Prepared(matrix, there, embeddings.hashes, embeddings.later, embeddings.first)
    norms = np.empty(len(matrix))
    for begin in range(0, len(matrix), _ROWS_PER_PASS):
        part = slice(begin, begin + _ROWS_PER_PASS)
        wide = rows_of(matrix, part).astype(np.float64)
        np.einsum("ij,ij->i", wide, wide, out=norms[part])
    norms = norms.astype(matrix.dtype)
    norms[embeddings.later] = norms[embeddings.first]
    return Prepared(matrix, norms, embeddings.hashes, embeddings.later, embeddings.first)


def compared(query: Array | Prepared, gallery: Array | Prepared) -> tuple[Prepared, Prepared]:
    """Query and gallery prepared, in one precision; one object for both where the same object was given twice.

    Raises `ValueError`: see `prepared`; other dimensions, or sets on two devices.
    """
    if query is gallery:
        both = query if isinstance(query, Prepared) else prepared(query, "query")
        return both, both
    given = (query, gallery)
    matrices = _matching(*(side.matrix if isinstance(side, Prepared) else side for side in given))
    left, right = (
        side if isinstance(side, Prepared) and side.matrix is matrix else prepared(matrix, name)
        for side, matrix, name in zip(given, matrices, ("query", "gallery"), strict=True)
    )
    return left, right


def joined(query: Prepared, gallery: Prepared) -> Prepared:
    """All images of two sets, queries first; equal rows are looked for in both together."""
    parts = ((query.matrix, gallery.matrix), (query.norms, gallery.norms), (query.hashes, gallery.hashes))
    matrix, norms, hashes = (_one_after_other(*part) for part in parts)
    later, first = repeated_rows(matrix, hashes) if isinstance(matrix, Tensor) else _repeated_rows(matrix, hashes)
    norms[later] = norms[first]
    return Prepared(matrix, norms, hashes, later, first, gallery.offset)


def _one_after_other(left: Any, right: Any) -> Any:
    return torch.cat([left, right]) if isinstance(left, Tensor) else np.concatenate([left, right])


def unit_rows(embeddings: Prepared, name: str) -> Prepared:
    """Embeddings at unit length.  Raises `ValueError` for a row of zeros."""
    refuse_zeros(embeddings.norms, name)
    matrix: Any = embeddings.matrix
    return prepared(matrix / lengths(embeddings)[:, None], name)


def lengths(embeddings: Prepared) -> Any:
    """Norms (N,): NumPy, or a tensor on the embeddings' device."""
    return embeddings.norms.sqrt() if isinstance(embeddings.norms, Tensor) else np.sqrt(embeddings.norms)


def on_cpu(values: Array) -> np.ndarray:
    """As a NumPy array, of the same shape."""
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def rows_of(matrix: Array, index: slice | np.ndarray) -> np.ndarray:
    """The chosen rows of a matrix (N, D) as a contiguous NumPy matrix (n, D)."""
    if isinstance(matrix, Tensor):
        return matrix[index if isinstance(index, slice) else torch.from_numpy(index).to(matrix.device)].cpu().numpy()
    return np.ascontiguousarray(matrix[index])


def distances_between(left: np.ndarray, right: np.ndarray, distance: str) -> np.ndarray:
    """Distances (N,) float64 of rows to rows, (N, D) or one row for all: Euclidean, or 1 minus the cosine similarity.

    They come from differences in float64, and so are accurate near zero, unlike those of a matrix product.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    if distance == "cosine":
        left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
    difference = left - right
    squared: np.ndarray = np.einsum("ij,ij->i", difference, difference)
    # Between unit vectors 1 minus the cosine is half the squared distance.
    return squared / 2 if distance == "cosine" else np.sqrt(squared)


def refuse_zeros(norms: Array, name: str) -> None:
    """Raise `ValueError` where a squared norm is zero: such a row has no direction."""
    zero = norms == 0
    if zero.any():
        zero = on_cpu(zero)
        raise ValueError(
            f"{name} embedding {int(np.argmax(zero))} is all zeros and so has no direction for the cosine distance "
            f"({int(zero.sum())} such rows of {len(norms)})"
        )


def _matching(query: Array, gallery: Array) -> tuple[Array, Array]:
    """Query and gallery as matrices of one dtype; raises `ValueError` where dimensions or devices differ."""
    query, gallery = as_matrix(query, "query"), as_matrix(gallery, "gallery")
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


def _norms_hashes_and_offset(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Squared norms (N,), hashes (N,) that are equal for equal rows, and the offset (D,), see `Prepared`."""
    count, dimensions = matrix.shape
    norms = np.empty(count)
    hashes = np.empty(count, np.uint64)
    total = np.zeros(dimensions)
    bits = np.dtype(np.uint32 if matrix.dtype.itemsize == 4 else np.uint64)
    odd = np.arange(1, 2 * dimensions, 2, dtype=np.uint64)
    multipliers: np.ndarray = (odd * np.uint64(0x9E3779B97F4A7C15)).astype(bits)

    def look(begin: int) -> np.ndarray:
        part = slice(begin, begin + _ROWS_PER_PASS)
        rows = np.ascontiguousarray(matrix[part])
        wide = rows.astype(np.float64)
        np.einsum("ij,ij->i", wide, wide, out=norms[part])
        # Integer arithmetic is exact, so equal rows have equal hashes wherever they lie in memory.
        hashes[part] = np.einsum("ij,j->i", rows.view(bits), multipliers)
        sums: np.ndarray = wide.sum(axis=0)
        return sums

    parts = range(0, count, _ROWS_PER_PASS)
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        for begin in parts:
            total += look(begin)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for sums in pool.map(look, parts):  # in order, so that no digit depends on the threads
                total += sums
    dtype = matrix.dtype
    # By Cauchy-Schwarz no element of a block can overflow below this bound.
    fine = norms <= np.finfo(dtype).max / 8
    if not fine.all():
        row = int(np.argmin(fine))
        _refuse(rows_of(matrix, slice(row, row + 1)), row, int((~fine).sum()), count, name)
    mean = total / count
    squared = float(mean @ mean)
    far = np.finfo(dtype).eps * squared > _LOST * (float(norms.mean()) - squared)
    return norms.astype(dtype), hashes, mean.astype(dtype) if far else None


def _refuse(values: np.ndarray, row: int, faulty: int, count: int, name: str) -> NoReturn:
    finite = np.isfinite(values).all()
    fault = f"has a norm too large for {values.dtype}" if finite else "contains NaN or infinity"
    raise ValueError(f"{name} embedding {row} {fault} ({faulty} such rows of {count})")


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
