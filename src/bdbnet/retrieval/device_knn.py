"""Nearest neighbours on a GPU, without a wait for the host: shapes follow from the sizes alone, and ties go by column."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from bdbnet.retrieval.distances import native_blocks
from bdbnet.retrieval.matrices import Prepared

_GROUP = 128  # columns whose minimum is taken first, then
_SMALL_GROUP = 8
_FEWEST_GROUPS = 4  # groups for each value wanted, below which smaller groups are taken, or the row is sorted
_KEPT_MB = 256  # values of the chosen groups


def smallest_columns(values: Tensor, k: int) -> Tensor:
    """Columns int64 (rows, k) of the `k` smallest values in each row, in order of value, then of column.

    Ordered by value and column, the k smallest values lie in the k groups of adjacent columns whose minima are smallest, ordered
    by minimum and group: in each of these groups some value comes before all of any other group.

    Args:
        values: (rows, G) without NaN.
        k: from 1 to G.
    """
    rows, count = values.shape
    width = next((width for width in (_GROUP, _SMALL_GROUP) if count >= _FEWEST_GROUPS * k * width), 0)
    if not width:
        return values.sort(dim=1, stable=True).indices[:, :k]
    groups = count // width
    minima = values[:, : groups * width].view(rows, groups, width).amin(2)
    if groups * width < count:
        minima = torch.cat([minima, values[:, groups * width :].amin(1, keepdim=True)], 1)
    chosen = minima.sort(dim=1, stable=True).indices[:, :k].sort(dim=1).values
    within = torch.arange(width, device=values.device)
    at_once = max(1, _KEPT_MB * 2**20 // (k * width * (8 + 2 * values.element_size())))
    found = []
    for begin in range(0, rows, at_once):
        part = slice(begin, begin + at_once)
        columns = (chosen[part, :, None] * width + within).flatten(1)
        beyond = columns >= count
        kept = values[part].gather(1, columns.clamp_(max=count - 1)).masked_fill_(beyond, torch.inf)
        # Beyond the last column lies nothing, so what is put there comes last of all that is infinite.
        found.append(columns.gather(1, smallest_columns(kept, k)))
    return torch.cat(found)


class DeviceNeighbours(NamedTuple):
    """`knn.Neighbours` as tensors on the embeddings' device: `indices` and `squared` (Q, k), `largest` a scalar."""

    indices: Tensor
    squared: Tensor
    largest: Tensor


def neighbours_on_device(
    images: Prepared, k: int, chunk_memory_mb: float | None, progress: Callable[[int], object] | None
) -> DeviceNeighbours:
    """`knn.nearest_neighbours` of embeddings on a GPU, of whole rows of distances: twice the products, but in fixed shapes.

    Args:
        images: embeddings without an offset.
        k, chunk_memory_mb, progress: see `nearest_neighbours`; `k` is from 1 to N.
    """
    count, later, first = len(images), cast(Tensor, images.later), cast(Tensor, images.first)
    norms = cast(Tensor, images.norms)
    indices = torch.empty((count, k), dtype=torch.int64, device=norms.device)
    squared, largest = norms.new_empty((count, k)), norms.new_empty(count)
    for begin, distances in native_blocks(images, images, "euclidean", chunk_memory_mb=chunk_memory_mb):
        block = cast(Tensor, distances)
        part = slice(begin, begin + len(block))
        block.add_(norms[part, None]).clamp_(min=0)
        block.diagonal(begin).zero_()
        if len(later):
            block[:, later] = block[:, first]
        torch.amax(block[:, :count], 1, out=largest[part])
        indices[part] = smallest_columns(block, k)
        torch.gather(block, 1, indices[part], out=squared[part])
        if progress is not None:
            progress(len(block))
    if len(later):
        # Copies are as far from all images as the first of them, whatever rounding their own rows had.
        indices[later], squared[later], largest[later] = indices[first], squared[first], largest[first]
    return DeviceNeighbours(indices, squared, largest)
