"""How many gallery images come before a query's positives: the inner loop of every metric, without sorting a row.

Where few images are nearer than a query's farthest positive, as with good embeddings, these few are sorted. Elsewhere
distances are compared with the positives' and counted, in pieces that fit into a core's cache.
"""

from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

COUNTED_AT_ONCE = 2**20  # counted in one go, of whole queries, but of no more than
ROWS = 64

_SEGMENT = 16384  # distances of a row and
_CHEAP = 3  # positives that are compared with all sooner than the near images are sorted
_FLAGS = 64  # comparisons with positives at once
_LANES = 1024  # flags that are summed up side by side in bytes
_LOOK = 1024  # columns by which is guessed whether few images are near, and
_FEW = 1 / 8  # the share of a row that is few enough to be sorted


class Ragged(NamedTuple):
    """Some columns of each row: those of row `i` are next to each other in `columns`, ascending; `counts` (rows,)."""

    columns: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The row of each column."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> np.ndarray:
        """Where each row's columns begin."""
        return np.cumsum(self.counts) - self.counts


def counting_threads() -> AbstractContextManager[Executor | None]:
    """Threads that count, as many as torch computes with; None where there is one alone."""
    count = torch.get_num_threads()
    return ThreadPoolExecutor(count) if count > 1 else nullcontext()


def ranks_in_rows(
    distances: np.ndarray, positives: Ragged, left_out: Ragged, *, nearest_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of each query's positives, ascending, 1 for the nearest; equal distances rank in gallery order.

    Args:
        distances: (queries, G) without NaN; those of positives and of images left out are overwritten.
        positives, left_out: gallery indices of each query.
        nearest_only: rank the nearest positive alone.

    Returns:
        The ranks of all queries after each other, and how many each query has.
    """
    distances[left_out.rows, left_out.columns] = np.inf
    rows = positives.rows
    values = distances[rows, positives.columns]
    order = np.lexsort((values, rows))  # stable: of equal distances the earlier image comes first
    columns, values, counts = positives.columns[order], values[order], positives.counts
    number = np.arange(len(rows)) - positives.starts[rows]
    if nearest_only:
        first = number == 0
        rows, columns, values, number, counts = (
            rows[first],
            columns[first],
            values[first],
            number[first],
            np.minimum(counts, 1),
        )
    distances[rows, columns] = np.nan  # compares with nothing, so positives are counted by their order alone
    if len(rows) == 0:
        return np.empty(0, np.int64), counts
    last = np.full(len(distances), -np.inf, distances.dtype)
    last[rows] = values  # the farthest stays, written last
    starts = np.cumsum(counts) - counts
    before = np.zeros(len(rows), np.int64)
    hard = []
    near = _near(distances, last) if counts.max() > _CHEAP else None
    for row in np.flatnonzero(counts).tolist():
        part = slice(starts[row], starts[row] + counts[row])
        places = None if near is None else _few(near[row])
        if places is None:
            hard.append(row)
        else:
            before[part] = _sorted_in(distances[row], places, columns[part], values[part])
    if hard:
        here = np.isin(rows, hard)
        before[here] = _compared(distances, hard, *(part[here] for part in (rows, columns, values, number)))
    return before + number + 1, counts


def _near(distances: np.ndarray, last: np.ndarray) -> np.ndarray | None:
    """Which images are no farther than `last` of their row; None where a look at some says that most are."""
    look = distances[:, :_LOOK] <= last[:, None]
    if np.count_nonzero(look) > look.size // 2:
        return None
    return distances <= last[:, None]


def _few(near: np.ndarray) -> np.ndarray | None:
    """Columns of a row's near images; None where they are not few."""
    return np.flatnonzero(near) if np.count_nonzero(near) <= max(1, int(_FEW * len(near))) else None


def _sorted_in(row: np.ndarray, places: np.ndarray, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each of a row's positives the other images before it, which are all in `places`."""
    others = row[places]
    others.sort()
    before = others.searchsorted(values)
    if (others.searchsorted(values, "right") != before).any():  # the gallery's order decides between equal distances
        for place, (column, value) in enumerate(zip(columns, values, strict=True)):
            before[place] += np.count_nonzero(row[:column] == value)
    return before


def _compared(
    distances: np.ndarray,
    hard: list[int],
    rows: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    number: np.ndarray,
) -> np.ndarray:
    """For each positive, all in the rows `hard`, the other images before it, by comparing it with all."""
    counts = np.bincount(rows, minlength=len(distances))
    bounds = np.full((len(distances), counts.max()), np.nan, distances.dtype)
    places = np.zeros(bounds.shape, np.int64)
    bounds[rows, number], places[rows, number] = values, columns
    before = np.zeros(bounds.shape, np.int64)
    # One buffer for whole segments, one for the rest of the row; what lies beyond the distances stays False.
    buffers = {width: np.zeros((_FLAGS, _padded(width)), bool) for width in _segment_widths(distances.shape[1])}
    for group in _groups(hard, counts.tolist()):
        most = int(counts[group].max())
        found, tied = _below(distances[group], bounds[group, :most], buffers)
        before[group, :most] = found
        if tied:  # some other image is as far as a positive: the gallery's order decides
            for row in range(group.start, group.stop):
                for place in range(counts[row]):
                    earlier = distances[row, : places[row, place]]
                    before[row, place] += np.count_nonzero(earlier == bounds[row, place])
    return before[rows, number]


def _groups(rows: list[int], counts: list[int]) -> list[slice]:
    """Neighbouring rows that are compared in one call."""
    groups, widest = [slice(rows[0], rows[0] + 1)], counts[rows[0]]
    for row in rows[1:]:
        first, end = groups[-1].start, groups[-1].stop
        widest = max(widest, counts[row])
        if row == end and (row + 1 - first) * widest <= _FLAGS:
            groups[-1] = slice(first, row + 1)
        else:
            groups.append(slice(row, row + 1))
            widest = counts[row]
    return groups


def _below(rows: np.ndarray, bounds: np.ndarray, buffers: dict[int, np.ndarray]) -> tuple[np.ndarray, bool]:
    """For each of `bounds` (R, P) the distances of its row (R, G) below it, and whether any distance equals one."""
    before = np.zeros(bounds.shape, np.int64)
    tied = False
    at_once = max(1, _FLAGS // len(rows))
    for left in range(0, rows.shape[1], _SEGMENT):
        segment = rows[:, None, left : left + _SEGMENT]
        width = segment.shape[2]
        for first in range(0, bounds.shape[1], at_once):
            part = bounds[:, first : first + at_once, None]
            flags = buffers[width][: len(rows) * part.shape[1]]
            marked = flags.reshape(len(rows), part.shape[1], -1)[:, :, :width]
            np.less(segment, part, marked)
            before[:, first : first + at_once] += _sums(flags).reshape(part.shape[:2])
            np.equal(segment, part, marked)
            tied = tied or bool(flags.any())
    return before, tied


def _sums(flags: np.ndarray) -> np.ndarray:
    """True values in each row of (F, W) flags. Bytes add up fastest, and here none can pass 255."""
    lanes = np.add.reduce(flags.view(np.uint8).reshape(len(flags), -1, _LANES), axis=1, dtype=np.uint8)  # up to 16
    few = np.add.reduce(lanes.reshape(len(flags), 8, -1), axis=1, dtype=np.uint8)  # up to 128
    return few.sum(axis=1, dtype=np.int64)


def _padded(width: int) -> int:
    return -(-width // _LANES) * _LANES


def _segment_widths(count: int) -> set[int]:
    return {min(count, _SEGMENT), count % _SEGMENT} - {0}


def ranks_on_device(
    block: Tensor, positives: Ragged, left_out: Ragged, *, nearest_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`ranks_in_rows` for distances on a GPU, which are compared there; only counts come back."""
    device = block.device
    counts = np.minimum(positives.counts, 1) if nearest_only else positives.counts
    block[_places(left_out, device)] = torch.inf
    most = int(positives.counts.max())
    if most == 0:
        return np.empty(0, np.int64), counts
    there = torch.arange(most) < torch.from_numpy(positives.counts)[:, None]
    columns = torch.zeros((len(block), most), dtype=torch.int64)
    columns[there] = torch.from_numpy(positives.columns)
    there, columns = there.to(device), columns.to(device)
    limits, order = block.gather(1, columns).masked_fill(~there, torch.inf).sort(dim=1, stable=True)
    columns = columns.gather(1, order)
    if nearest_only:
        there, limits, columns = there[:, :1], limits[:, :1], columns[:, :1]
    else:
        block[_places(positives, device)] = torch.nan
    ranks = torch.arange(1, limits.shape[1] + 1, device=device).repeat(len(block), 1)
    gallery = torch.arange(block.shape[1], device=device)
    for number in range(limits.shape[1]):
        limit, own = limits[:, number, None], columns[:, number, None]
        ranks[:, number] += ((block < limit) | ((block == limit) & (gallery < own))).sum(1)
    return ranks[there].cpu().numpy(), counts


def _places(chosen: Ragged, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(chosen.rows).to(device), torch.from_numpy(chosen.columns).to(device)
