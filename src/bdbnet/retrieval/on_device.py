"""Embeddings on a GPU looked through where they lie: norms, hashes and repeated rows, without a copy on the host.

The host waits twice for a set: for what decides whether it can be compared and is moved (`looked_through`), and for the number
of rows that may be repeated (`repeated_rows`). Everything here runs on tensors of any device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

#: Blocks of distances on a device have a multiple of so many columns.
TILE = 128

_WIDE_MB = 256  # rows that are widened to float64 at a time
_ODD_MULTIPLIER = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64


class LookedThrough(NamedTuple):
    """What one pass over the embeddings found: squared norms (N,) and the mean embedding (D,) in float64, hashes (N,) that are
    equal for equal rows; and on the host the first row whose squared norm is not below `most` or None, the number of such
    rows, and whether the mean is so long that rounding costs digits."""

    norms: Tensor
    hashes: Tensor
    mean: Tensor
    bad_row: int | None
    bad_rows: int
    far: bool


def looked_through(matrix: Tensor, most: float, lost: float) -> LookedThrough:
    """Look through a matrix (N, D) of float32 or float64.

    Args:
        matrix: the embeddings.
        most: largest squared norm that can be compared.
        lost: part of the mean squared distance to the mean, above which rounding costs digits (see `Prepared.offset`).
    """
    count, dimensions = matrix.shape
    device = matrix.device
    norms = torch.empty(count, dtype=torch.float64, device=device)
    hashes = torch.empty(count, dtype=torch.int64, device=device)
    total = torch.zeros(dimensions, dtype=torch.float64, device=device)
    bits = torch.int32 if matrix.dtype == torch.float32 else torch.int64
    # Integer arithmetic wraps around and is exact, so equal rows have equal hashes wherever they lie.
    multipliers = torch.arange(1, 2 * dimensions, 2, device=device).mul_(_ODD_MULTIPLIER).to(bits)
    rows = max(1, _WIDE_MB * 2**20 // (8 * dimensions))
    for begin in range(0, count, rows):
        part = matrix[begin : begin + rows].contiguous()
        wide = part.double()
        total += wide.sum(0)
        torch.sum(wide.square(), 1, out=norms[begin : begin + rows])
        hashes[begin : begin + rows] = (part.view(bits) * multipliers).sum(1, dtype=bits)
    mean = total / count
    squared = mean.dot(mean)
    far = torch.finfo(matrix.dtype).eps * squared > lost * (norms.mean() - squared)
    bad = ~(norms <= most)
    faults = torch.stack([bad.sum(), bad.to(torch.uint8).argmax(), far.long()])
    bad_rows, bad_row, moves = faults.tolist()  # the host waits here
    return LookedThrough(norms, hashes, mean, bad_row if bad_rows else None, bad_rows, bool(moves))


def repeated_rows(matrix: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n,) int64 of a matrix (N, D) with hashes (N,) that repeat an earlier one, and the first row (n,) of the same hash,
    which they equal."""
    values, order = hashes.sort(stable=True)
    same = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    same[1:] = values[1:] == values[:-1]
    places = torch.arange(len(values), device=values.device)
    heads = torch.where(same, 0, places).cummax(0).values
    which = same.nonzero().squeeze(1)  # the host waits here
    if len(which) == 0:
        return which, which
    later, first = order[which], order[heads[which]]
    equal = torch.empty(len(later), dtype=torch.bool, device=values.device)
    rows = max(1, _WIDE_MB * 2**20 // (8 * matrix.shape[1]))
    for begin in range(0, len(later), rows):
        part = slice(begin, begin + rows)
        equal[part] = (matrix[later[part]] == matrix[first[part]]).all(1)
    return later[equal], first[equal]


def squared_norms(matrix: Tensor) -> Tensor:
    """Squared norms (N,) in float64."""
    norms = torch.empty(len(matrix), dtype=torch.float64, device=matrix.device)
    rows = max(1, _WIDE_MB * 2**20 // (8 * matrix.shape[1]))
    for begin in range(0, len(matrix), rows):
        torch.sum(matrix[begin : begin + rows].double().square(), 1, out=norms[begin : begin + rows])
    return norms


@contextmanager
def integer_atomics() -> Iterator[None]:
    """Allow sums by atomic additions of integers, whose order does not matter, where a run asked for deterministic algorithms."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
