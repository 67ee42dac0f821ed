"""Exact ranks of each query's positives where distances lie on a GPU: counted there, without a wait for the host in between.

The shapes of all steps follow from the sizes of the sets and from the number of images of the commonest identity, which the
host knows; so nothing is read back before the end. Each distance is read once and put between the sorted distances of its
query's positives by binary search; the numbers of images that fall between two of them add up to the ranks.

The gallery's order decides between equal distances. An image as near as a positive comes before it where it is earlier in the
gallery: for the tiles of the gallery before the positive's own the search takes the next number above the positive's distance,
for those after it the distance itself, and in its own tile equal distances are counted one by one. All sums are of integers, so
no order of additions changes them.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bdbnet.retrieval.matches import DeviceMatches, Matches, Table
from bdbnet.retrieval.on_device import TILE, integer_atomics

_WORK_MB = 256  # for the places of some queries' distances, of 8 bytes each
_SORTED_FROM = 64  # bytes of work per distance from which a full sort is cheaper


class DeviceRanks:
    """Collects the ranks of the positives of all queries, a block of distances at a time.

    Args:
        matches: positives and left-out images of each query.
        nearest_only: rank the nearest positive alone.
    """

    def __init__(self, matches: Matches, *, nearest_only: bool = False) -> None:
        self._matches, self._nearest_only = matches, nearest_only
        self._there: DeviceMatches | None = None
        self._found: list[Tensor] = []

    def add(self, begin: int, block: Tensor) -> None:
        """Rank distances (queries, G) of the queries from `begin` on, which are overwritten.

        Columns beyond the G gallery images are infinite. NaN is none of the distances.
        """
        if self._there is None:
            self._there = self._matches.on(block.device)
        if block.shape[1] % TILE or not block.is_contiguous():
            block = pad(block, (0, -block.shape[1] % TILE), value=torch.inf)
        wide = 1 if self._nearest_only else self._there.most
        rows, sort = _rows_at_once(block, wide)
        for first in range(0, len(block), rows):
            part = block[first : first + rows]
            table = self._there.of_queries(begin + first, begin + first + len(part))
            with integer_atomics():
                ranks = _by_sorting(part, table) if sort else _by_counting(part, table, nearest_only=self._nearest_only)
            counts = table.positive.sum(1, keepdim=True, dtype=torch.int32)
            self._found.append(torch.cat([counts, ranks[:, :1] if self._nearest_only else ranks], 1))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (P,) of all queries' positives after each other, and how many each query has, (Q,)."""
        found = torch.cat(self._found).cpu().numpy()  # the host waits here
        ranks = found[:, 1:]
        counts = np.minimum(found[:, 0], ranks.shape[1]).astype(np.int64)
        return ranks[np.arange(ranks.shape[1]) < counts[:, None]].astype(np.int64), counts


def _rows_at_once(block: Tensor, positives: int) -> tuple[int, bool]:
    """Queries to rank at a time, and whether a full sort is cheaper, as it is with very many positives of a query."""
    columns, tiles = block.shape[1], block.shape[1] // TILE
    work = (
        8 * columns
        + positives * ((block.element_size() + 1) * tiles + 16 * TILE)
        + 8 * _lanes(columns, positives) * (positives + 1)
    )
    sort = work > _SORTED_FROM * columns
    if sort:
        work = 40 * columns
    return max(1, _WORK_MB * 2**20 // work), sort


def _lanes(columns: int, positives: int) -> int:
    """Counters for each place, which keep additions apart that would wait for each other; fewer where there are many places."""
    lanes = TILE
    while lanes > 1 and lanes * (positives + 1) > columns:
        lanes //= 2
    return lanes


def _by_counting(block: Tensor, table: Table, *, nearest_only: bool) -> Tensor:
    """Ranks int32 (queries, positives), those of a query ascending and before what fills up its row."""
    values = block.gather(1, table.columns)
    distances = values.masked_fill(~table.positive, torch.inf)
    if nearest_only:
        block.scatter_(1, table.columns, values.masked_fill(table.left_out, torch.inf))
        limits = distances.amin(1, keepdim=True)
        own = table.columns.masked_fill(distances > limits, block.shape[1] - 1).amin(1, keepdim=True)
    else:
        # Positives are counted by their order alone.
        block.scatter_(1, table.columns, values.masked_fill(table.some, torch.inf))
        limits, order = distances.sort(dim=1, stable=True)
        own = table.columns.gather(1, order)
    numbers = torch.arange(1, limits.shape[1] + 1, dtype=torch.int32, device=block.device)
    return _before(block, limits, own) + numbers


def _before(block: Tensor, limits: Tensor, own: Tensor) -> Tensor:
    """Number int32 (queries, P) of the images before each of a query's positives, whose distances `limits` ascend."""
    queries, columns = block.shape
    positives, tiles = limits.shape[1], columns // TILE
    tiled = block.view(queries, tiles, TILE)
    tile = own.div(TILE, rounding_mode="floor")
    numbers = torch.arange(tiles, device=block.device)
    raised = limits.nextafter(limits.new_full((), torch.inf))
    bounds = torch.where(tile[:, None] > numbers[:, None], raised[:, None], limits[:, None])
    place = torch.searchsorted(bounds, tiled, right=True)
    lanes = _lanes(columns, positives)
    counters = torch.zeros((queries, positives + 1, lanes), dtype=torch.int32, device=block.device)
    one = counters.new_ones(()).expand(queries, columns // lanes, lanes)
    counters.scatter_add_(1, place.view(queries, columns // lanes, lanes), one)
    before = counters[:, :positives].sum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    around = tiled.gather(1, tile[:, :, None].expand(-1, -1, TILE))
    within = torch.arange(TILE, device=block.device) < (own - tile * TILE)[:, :, None]
    return before + ((around == limits[:, :, None]) & within).sum(2, dtype=torch.int32)


def _by_sorting(block: Tensor, table: Table) -> Tensor:
    """`_by_counting` through a full stable sort of each row."""
    values = block.gather(1, table.columns)
    block.scatter_(1, table.columns, values.masked_fill(table.left_out, torch.inf))
    order = block.sort(dim=1, stable=True).indices
    places = torch.arange(1, block.shape[1] + 1, dtype=torch.int32, device=block.device).expand(len(block), -1)
    ranks = torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(1, order, places)
    found = ranks.gather(1, table.columns).masked_fill(~table.positive, block.shape[1] + 1)
    return found.sort(dim=1).values
