"""Embeddings as matrices that can be compared: checked, of one dtype, on one device."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor

_ROWS_PER_PASS = 256  # rows that are widened to float64 at a time for their norms


def as_matrix(embeddings: Array, name: str) -> Array:
    """Embeddings as a (N, D) matrix of float32 or float64: a NumPy view on the CPU, else a tensor on its own device.

    Only half precision and foreign byte orders are copied. Raises `ValueError` where it is no floating-point matrix
    with at least one row and one column.
    """
    matrix: Array
    if isinstance(embeddings, Tensor):
        tensor = embeddings.detach() if embeddings.requires_grad else embeddings
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


def distances_between(left: np.ndarray, right: np.ndarray, distance: str) -> np.ndarray:
    """Distances (N,) float64 of rows to rows, (N, D) or one row for all: Euclidean, or 1 minus the cosine similarity.

    They come from differences in float64, and so are accurate near zero, unlike those of a matrix product.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    if distance == "cosine":
        left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
    difference = left - right
    squared = np.einsum("ij,ij->i", difference, difference)
    # Between unit vectors 1 minus the cosine is half the squared distance.
    return squared / 2 if distance == "cosine" else np.sqrt(squared)


class Prepared(NamedTuple):
    """A gallery that was looked through once: its matrix (G, D), squared norms (G,), and the rows that repeat an earlier
    one, each with the first such row."""

    matrix: Array
    norms: np.ndarray
    later: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.matrix)


def prepared(embeddings: Array, name: str = "gallery") -> Prepared:
    """A gallery for many calls of `distance_blocks`, which then need not look through it again.

    Raises `ValueError` where the embeddings can't be compared.
    """
    matrix = as_matrix(embeddings, name)
    return Prepared(matrix, *norms_and_duplicates(matrix, name))


def rows_of(matrix: Array, index: slice | np.ndarray) -> np.ndarray:
    """The chosen rows as a contiguous NumPy matrix."""
    if isinstance(matrix, Tensor):
        return matrix[index if isinstance(index, slice) else torch.from_numpy(index).to(matrix.device)].cpu().numpy()
    return np.ascontiguousarray(matrix[index])


def norms_and_duplicates(
    matrix: Array, name: str, *, duplicates: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared norms (N,); for each row that repeats an earlier one its index, and the index of the first such row.

    Raises `ValueError` for a row with NaN, infinity or a norm too large for the precision.
    """
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


def refuse_zeros(norms: np.ndarray, name: str) -> None:
    """Raise `ValueError` where a squared norm is zero: such a row has no direction."""
    zero = norms == 0
    if zero.any():
        raise ValueError(
            f"{name} embedding {int(np.argmax(zero))} is all zeros and so has no direction for the cosine distance "
            f"({int(zero.sum())} such rows of {len(norms)})"
        )
