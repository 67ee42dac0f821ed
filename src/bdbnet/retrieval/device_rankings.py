"""Nearest images and extremes of each query where distances lie on a GPU: nothing comes to the host before the end."""

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.device_knn import smallest_columns
from bdbnet.retrieval.device_ranks import DeviceRanks
from bdbnet.retrieval.matches import DeviceMatches, Matches
from bdbnet.retrieval.ranks import PositiveRanks

_PAIRS_MB = 256  # embeddings of pairs that are widened to float64 at a time


def pair_distances(query: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor, distance: str) -> Tensor:
    """`distances_between` of pairs of a query and a gallery image: float64 (N,)."""
    at_once = max(1, _PAIRS_MB * 2**20 // (32 * query.shape[1]))
    found = []
    for begin in range(0, len(rows), at_once):
        part = slice(begin, begin + at_once)
        left, right = query[rows[part]].double(), gallery[columns[part]].double()
        if distance == "cosine":
            left, right = (side / torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in (left, right))
        squared = (left - right).square_().sum(1)
        # Between unit vectors 1 minus the cosine is half the squared distance.
        found.append(squared / 2 if distance == "cosine" else squared.sqrt_())
    return torch.cat(found)


class DeviceWatcher:
    """Looks at blocks of distances (queries, G) before they are ranked."""

    def __init__(self, matches: Matches) -> None:
        self._matches = matches
        self._there: DeviceMatches | None = None

    def on(self, device: torch.device) -> DeviceMatches:
        """The matches as tensors on a device."""
        self._there = self._there or self._matches.on(device)
        return self._there


class DeviceNearest(DeviceWatcher):
    """Collects the nearest images of each query."""

    def __init__(self, matches: Matches, k: int) -> None:
        super().__init__(matches)
        self._k, self._found = k, list[Tensor]()

    def see(self, begin: int, block: Tensor) -> None:
        """Note the nearest images of the queries from `begin` on; `block` (queries, G) holds their distances."""
        table = self.on(block.device).of_queries(begin, begin + len(block))
        block.scatter_(1, table.columns, block.gather(1, table.columns).masked_fill(table.left_out, torch.inf))
        near = smallest_columns(block, min(self._k, len(self._matches.gallery_labels)))
        self._found.append(near.masked_fill(block.gather(1, near).isinf(), -1))

    def result(self, query: Tensor, gallery: Tensor, distance: str) -> tuple[np.ndarray, np.ndarray]:
        """Indices int64 (Q, k), -1 where fewer images count, and distances (Q, k), infinite there."""
        near = torch.cat(self._found)
        near = torch.nn.functional.pad(near, (0, self._k - near.shape[1]), value=-1)
        rows = torch.arange(len(near), device=near.device).repeat_interleave(self._k)
        apart = pair_distances(query, gallery, rows, near.flatten().clamp(min=0), distance).to(query.dtype)
        return near.cpu().numpy(), apart.view_as(near).masked_fill(near < 0, torch.inf).cpu().numpy()


class DeviceExtremes(DeviceWatcher):
    """Collects each query's nearest match and hardest negative."""

    def __init__(self, matches: Matches) -> None:
        super().__init__(matches)
        self._indices, self._values = list[Tensor](), list[Tensor]()

    def see(self, begin: int, block: Tensor) -> None:
        """Note the distances of the queries' matches and others; `block` (queries, G) as in `DeviceNearest`."""
        table = self.on(block.device).of_queries(begin, begin + len(block))
        values = block.gather(1, table.columns).masked_fill(table.left_out, torch.inf)
        matching = values.masked_fill(~table.positive, torch.inf)
        match = matching.amin(1, keepdim=True)
        # Of two images that are equally near the earlier one.
        first = table.columns.masked_fill(matching > match, block.shape[1]).amin(1, keepdim=True)
        block.scatter_(1, table.columns, values.masked_fill(table.some, torch.inf))
        wrong = smallest_columns(block, 1)
        found = torch.cat([match, block.gather(1, wrong)], 1)
        none = found.isinf()
        self._indices.append(torch.cat([first, wrong], 1).masked_fill(none, -1).T)
        self._values.append(found.double().masked_fill(none, torch.nan).T)
        block.scatter_(1, table.columns, values)

    def result(self, query: Tensor, gallery: Tensor, distance: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Indices int64 and distances float64 (2, Q), -1 and NaN where there is none; those seen where `distance` is None."""
        indices, values = torch.cat(self._indices, 1), torch.cat(self._values, 1)
        if distance is not None:
            rows = torch.arange(indices.shape[1], device=indices.device).repeat(2)
            apart = pair_distances(query, gallery, rows, indices.flatten().clamp(min=0), distance)
            values = apart.view_as(values).masked_fill(indices < 0, torch.nan)
        return indices.cpu().numpy(), values.cpu().numpy()


class DeviceCameras:
    """Ranks each gallery camera's images alone: `images` (n,) int64 of each, and who matches whom among them."""

    def __init__(self, images: list[np.ndarray], matches: list[Matches]) -> None:
        self._images = images
        self._columns: list[Tensor] | None = None
        self._ranks = [DeviceRanks(some) for some in matches]

    def see(self, begin: int, block: Tensor) -> None:
        """Count ranks within each camera; `block` as in `DeviceNearest`."""
        if self._columns is None:
            self._columns = [torch.from_numpy(images).to(block.device) for images in self._images]
        for columns, ranks in zip(self._columns, self._ranks, strict=True):
            ranks.add(begin, block.index_select(1, columns))

    def result(self) -> list[PositiveRanks]:
        """Ranks of all queries in each camera's images."""
        found = [ranks.result() for ranks in self._ranks]
        return [PositiveRanks(ranks, np.r_[0, np.cumsum(counts)]) for ranks, counts in found]
