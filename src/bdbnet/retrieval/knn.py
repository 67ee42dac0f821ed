"""Nearest neighbours: of each row of a block of distances, and of every image in its own set.

In a set that is compared with itself the distance from `i` to `j` is that from `j` to `i`. So of the matrix product,
which is nearly all the work, only the upper half is computed, a panel of rows at a time, and each value serves the
image of its row and that of its column.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.device_knn import neighbours_on_device, smallest_columns
from bdbnet.retrieval.distances import Block, product, rows_in_block
from bdbnet.retrieval.matrices import Array, Prepared, on_cpu, prepared

_GROUP = 128  # columns whose minimum is taken, and
_FEWEST_GROUPS = 4  # groups for each neighbour wanted, below which a row is sorted
_LARGEST_PANEL, _PANEL_MB = 1024, 512
_STRIP = 4096  # columns whose candidates are collected at a time


class Neighbours(NamedTuple):
    """Nearest images of every image in its own set, itself among them.

    Attributes:
        indices: int64 (N, k), nearest first, ties in index order.
        squared: squared Euclidean distances (N, k), 0 for the image itself and its copies.
        largest: squared Euclidean distance (N,) to the farthest image.
    """

    indices: np.ndarray
    squared: np.ndarray
    largest: np.ndarray


def smallest(block: Block, k: int) -> np.ndarray:
    """Columns int64 (rows, k) of the `k` smallest values in each row, in order of value, then of column.

    Args:
        block: (rows, G) values without NaN, NumPy or torch; infinity is a value like others.
        k: values wanted, from 1 to G.

    Raises:
        ValueError: `k` outside of 1 to G.
    """
    values = torch.as_tensor(block)
    rows, count = values.shape
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to {count}, the number of columns, got {k}")
    if values.device.type != "cpu":
        return smallest_columns(values, k).cpu().numpy()
    width = min(_GROUP, count // (_FEWEST_GROUPS * k))
    if width < 2:
        return _sorted_columns(values, k).numpy()
    groups = count // width
    grouped = values[:, : groups * width].view(rows, groups, width)
    rest = values[:, groups * width :]
    minima = grouped.amin(2)
    # The k smallest minima are k values of the row, so none of its k smallest is above them.
    bound = minima.topk(k, largest=False).values[:, -1:]
    if rest.shape[1]:
        minima = torch.cat([minima, rest.amin(1, keepdim=True)], 1)
    chosen = minima <= bound
    crowded = chosen.sum(1) > 2 * k  # equal values
    if crowded.all():
        return _sorted_columns(values, k).numpy()
    chosen &= ~crowded[:, None]
    row, group = _places(chosen)
    whole = group < groups
    members = values.new_full((len(row), width), torch.inf)
    members[whole] = grouped[row[whole], group[whole]]
    members[~whole, : rest.shape[1]] = rest[row[~whole]]
    which, within = _places(members <= bound[row])
    found, columns = _table(row[which], members[which, within], group[which] * width + within)
    columns = columns.gather(1, found.sort(dim=1, stable=True).indices[:, :k])
    if crowded.any():
        some, columns = columns, columns.new_empty((rows, k))
        columns[~crowded] = some
        columns[crowded] = _sorted_columns(values[crowded], k)
    return columns.numpy()


def _sorted_columns(values: Tensor, k: int) -> Tensor:
    return values.sort(dim=1, stable=True).indices[:, :k]


def _table(owner: Tensor, value: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Values and numbers of each owner as a row, filled up with infinity and 0; owners come in ascending order."""
    counts = torch.unique_consecutive(owner, return_counts=True)[1]
    row = torch.arange(len(counts)).repeat_interleave(counts)
    place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[row]
    shape = (len(counts), int(counts.max()))
    values, numbers = value.new_full(shape, torch.inf), number.new_zeros(shape)
    values[row, place], numbers[row, place] = value, number
    return values, numbers


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each true element, row by row."""
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))  # finds the few among many several times faster than torch
    width = max(1, mask.shape[1])
    row = torch.div(flat, width, rounding_mode="floor")
    return row, flat - row * width


def nearest_neighbours(
    embeddings: Array | Prepared,
    k: int,
    *,
    chunk_memory_mb: float | None = None,
    progress: Callable[[int], object] | None = None,
    see: Callable[[int, np.ndarray], object] | None = None,
) -> Neighbours:
    """The `k` nearest images of every image of a set, without an N x N matrix.

    Distances have the precision that is described in `distance_blocks`; equal embeddings are equally far from others.

    Args:
        embeddings: (N, D) embeddings, NumPy or torch, on the CPU or a GPU.
        k: neighbours wanted, from 1 to N; each image is one of its own, as are its copies.
        chunk_memory_mb: MiB for one block of distances, of which up to two are held. None: room for 1024 images, but at
            most 512 MiB.
        progress: called now and then with the number of images finished since the last call.
        see: called with `(first image, squared distances (rows, N - first image))` of some images to themselves and all later
            ones, which it must not keep; not where embeddings repeat each other or lie on a GPU.

    Raises:
        ValueError: bad embeddings, `k` outside of 1 to N, or memory that does not hold one image's distances.
    """
    images = (embeddings if isinstance(embeddings, Prepared) else prepared(embeddings, "image")).without_offset
    count = len(images)
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to {count}, the number of images, got {k}")
    if isinstance(images.matrix, Tensor):
        found = neighbours_on_device(images, k, chunk_memory_mb, progress)
        return Neighbours(*(values.cpu().numpy() for values in found))
    matrix, norms, later, first = (
        on_cpu(values) for values in (images.matrix, images.norms, images.later, images.first)
    )
    if len(later) == 0:
        return _of_distinct(matrix, norms, k, chunk_memory_mb, progress, see)
    # The product's rounding differs from column to column, and copies must be equally far from all: so distinct
    # embeddings are compared, and each then stands for all its copies.
    originals = np.delete(np.arange(count), later)
    number = np.empty(count, np.int64)
    number[originals] = np.arange(len(originals))
    number[later] = number[first]
    near = _of_distinct(matrix[originals], norms[originals], min(k, len(originals)), chunk_memory_mb, progress)
    copied = _with_copies(near, number, k)
    return Neighbours(copied.indices[number], copied.squared[number], copied.largest[number])


def _with_copies(near: Neighbours, number: np.ndarray, k: int) -> Neighbours:
    """Neighbours of distinct embeddings among all images, where image `i` shows embedding `number[i]`."""
    by_number = np.argsort(number, kind="stable")
    counts = np.bincount(number)
    place = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    copies = np.full((len(counts), min(k, int(counts.max()))), len(number))  # of which only k can be needed
    fits = place < copies.shape[1]
    copies[number[by_number[fits]], place[fits]] = by_number[fits]
    indices = np.empty((len(near.indices), k), np.int64)
    squared = np.empty(indices.shape, near.squared.dtype)
    for begin in range(0, len(indices), _LARGEST_PANEL):
        part = slice(begin, begin + _LARGEST_PANEL)
        images = copies[near.indices[part]]
        distances = np.where(images < len(number), near.squared[part, :, None], np.inf)
        images, distances = (values.reshape(len(values), -1) for values in (images, distances))
        order = np.lexsort((images, distances))[:, :k]
        indices[part], squared[part] = (np.take_along_axis(values, order, 1) for values in (images, distances))
    return Neighbours(indices, squared, near.largest)


def _of_distinct(
    matrix: np.ndarray,
    norms: np.ndarray,
    k: int,
    chunk_memory_mb: float | None,
    progress: Callable[[int], object] | None,
    see: Callable[[int, np.ndarray], object] | None = None,
) -> Neighbours:
    count = len(matrix)
    squares = torch.from_numpy(norms)
    indices = torch.zeros((count, k), dtype=torch.int64)
    squared = torch.full((count, k), torch.inf, dtype=squares.dtype)
    largest = torch.zeros_like(squares)
    for begin, products in _panels(matrix, chunk_memory_mb):
        end = begin + len(products)
        block = products.add_(squares[begin:]).add_(squares[begin:end, None]).clamp_(min=0)
        block.diagonal().zero_()
        if see is not None:
            see(begin, block.numpy())
        near = torch.from_numpy(smallest(block, min(k, count - begin)))
        _merge(squared[begin:end], indices[begin:end], block.gather(1, near), near + begin)
        largest[begin:end] = torch.maximum(largest[begin:end], block.amax(1))
        others = block[:, end - begin :]
        if begin == 0 and end < count:
            near = torch.from_numpy(smallest(others.T.contiguous(), min(k, end)))
            _merge(squared[end:], indices[end:], others.T.gather(1, near), near)
        if end < count:
            largest[end:] = torch.maximum(largest[end:], others.amax(0))
        for left in range(end, count if begin else end, _STRIP):
            strip = slice(left, left + _STRIP)
            _serve_columns(block[:, left - begin : left - begin + _STRIP], begin, squared[strip], indices[strip])
        if progress is not None:
            progress(end - begin)
    return Neighbours(indices.numpy(), squared.numpy(), largest.numpy())


def _panels(matrix: np.ndarray, chunk_memory_mb: float | None) -> Iterator[tuple[int, Tensor]]:
    """`(first row, -2 times the product (rows, N - first row))` of some rows with themselves and all later ones."""
    count, dimensions = matrix.shape
    row_mb = (count + dimensions) * matrix.dtype.itemsize / 2**20
    if chunk_memory_mb is None:
        chunk_memory_mb = max(row_mb, min(_LARGEST_PANEL * row_mb, _PANEL_MB))
    most = rows_in_block(matrix, matrix, chunk_memory_mb)
    for begin in range(0, count, most):
        part = slice(begin, begin + most)
        buffer = np.empty((min(most, count - begin), count - begin), matrix.dtype)
        product(matrix[part] * matrix.dtype.type(-2), matrix[begin:], buffer)
        yield begin, torch.from_numpy(buffer)


def _merge(squared: Tensor, indices: Tensor, more: Tensor, columns: Tensor) -> None:
    """Keep the nearest of those known (rows, k) and of `more` (rows, m), whose images all come later."""
    k = squared.shape[1]
    values, order = torch.cat([squared, more], 1).sort(dim=1, stable=True)
    squared.copy_(values[:, :k])
    indices.copy_(torch.cat([indices, columns], 1).gather(1, order[:, :k]))


def _serve_columns(block: Tensor, begin: int, squared: Tensor, indices: Tensor) -> None:
    """Merge the distances (rows, columns) of the rows from `begin` on into the neighbours of the columns' images."""
    row, column = _places(block < squared[:, -1])
    if len(row) == 0:
        return
    order = column.argsort(stable=True)
    row, column = row[order], column[order]
    images = torch.unique_consecutive(column)
    known, known_indices = squared[images], indices[images]
    _merge(known, known_indices, *_table(column, block[row, column], row + begin))
    squared[images], indices[images] = known, known_indices
