"""Embeddings that lie in several files, used like one matrix, of which only what is asked for is in memory."""

import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_ROWS_PER_COPY = 8192


class Rows:
    """A (N, D) float32 matrix over parts that lie on disk: `rows[begin:end]`, `rows[numbers]`, `np.asarray(rows)`.

    What is taken out of it is an array of its own, or a read-only view of one part.

    Args:
        parts: (n, D) matrices, most often mapped from files.
        live: for each part the numbers of its rows that count, ascending; None for all.
        dimensions: D.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[np.ndarray], live: Sequence[np.ndarray | None], dimensions: int) -> None:
        self._parts, self._live = [*parts], [*live]
        counts = [len(part if rows is None else rows) for part, rows in zip(parts, live, strict=True)]
        self._begins = np.cumsum([0, *counts])
        self.shape = (int(self._begins[-1]), dimensions)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Numbers in the matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by a slice, by their numbers, by a mask (N,), or one row by its number."""
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            return self._between(begin, end) if step == 1 else self._chosen(np.arange(begin, end, step))
        if isinstance(index, int | np.integer):
            return np.asarray(self._chosen(np.array([index]))[0])
        numbers = np.asarray(index)
        if numbers.dtype == bool and numbers.shape != (len(self),):
            raise IndexError(f"a mask of shape {numbers.shape} for {len(self)} rows")
        return self._chosen(np.flatnonzero(numbers) if numbers.dtype == bool else numbers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("embeddings in several files become one array only as a copy")
        whole = np.empty(self.shape, self.dtype)
        for begin, block in self.blocks(_ROWS_PER_COPY):
            whole[begin : begin + len(block)] = block
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """`(first row, block)` of all rows in order, at most `rows` at a time, each within one part.

        The memory that a mapped file took for a block is given back when the next one is asked for: a block is used before
        that.
        """
        for part, live, first, last in zip(self._parts, self._live, self._begins, self._begins[1:], strict=False):
            for begin in range(int(first), int(last), rows):
                own = slice(begin - first, min(begin + rows, last) - first)
                yield begin, part[own] if live is None else part[live[own]]
                give_back(part)

    def _between(self, begin: int, end: int) -> np.ndarray:
        found = [
            part[max(begin - first, 0) : end - first]
            if live is None
            else part[live[max(begin - first, 0) : end - first]]
            for part, live, first, last in zip(self._parts, self._live, self._begins, self._begins[1:], strict=False)
            if begin < last and end > first
        ]
        if len(found) == 1:
            return np.asarray(found[0])
        return np.concatenate(found) if found else np.empty((0, self.shape[1]), self.dtype)

    def _chosen(self, numbers: np.ndarray) -> np.ndarray:
        flat = numbers.astype(np.int64).reshape(-1)
        wrong = (flat < -len(self)) | (flat >= len(self))
        if wrong.any():
            raise IndexError(f"row {flat[wrong][0]} of a matrix of {len(self)} rows")
        flat = np.where(flat < 0, flat + len(self), flat)
        owner = np.searchsorted(self._begins, flat, side="right") - 1
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            own = flat[mine] - self._begins[number]
            live = self._live[number]
            found[mine] = self._parts[number][own if live is None else live[own]]
            give_back(self._parts[number])  # around each row the system maps up to 2 MiB
        return found.reshape(*numbers.shape, self.shape[1])


def blocks_of(embeddings: np.ndarray | Rows, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """`Rows.blocks` of any matrix (N, D): the first row of each block, and the block (rows, D)."""
    whole = embeddings if isinstance(embeddings, Rows) else Rows([embeddings], [None], embeddings.shape[1])
    return whole.blocks(rows)


def give_back(matrix: np.ndarray) -> None:
    """Let the system take back the memory that the pages of a mapped matrix (N, D) have in this process; they are read again when
    used."""
    base: Any = matrix
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
