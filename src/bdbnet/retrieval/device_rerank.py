"""k-reciprocal re-ranking on a GPU: encodings as rows of entries in fixed widths, overlaps without atomic sums of floats.

An encoding is a row of entries, ascending, and of their weights; N fills up the rest, with weight 0. What two encodings share is
the sum over the gallery image's entries of the smaller of the two weights, where the query's are looked up in a dense table.
The host waits for a few numbers: the widths of the rows.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

_WORK_MB = 256  # for what is held at a time of each kind of intermediate result


class Encodings(NamedTuple):
    """Entries int64 (N, E), ascending and filled up with N, and their weights (N, E), 0 where filled up."""

    entries: Tensor
    weights: Tensor


def encodings(near: Tensor, squared: Callable[[slice, Tensor], Tensor], scale: Tensor, k1: int, k2: int) -> Encodings:
    """Encoding of each image.

    Args:
        near: int64 (N, k), nearest images of each image, itself among them.
        squared: squared distances (n, E) of some images to their entries int64 (n, E), from 0 to N - 1.
        scale: (N,), by which each image's squared distances are divided.
        k1, k2: see `KReciprocal`.
    """
    count = len(near)
    wide, small = near[:, : k1 + 1], near[:, : round(k1 / 2) + 1]
    mutual, close = _mutual(wide), _mutual(small)
    work = 8 * wide.shape[1] * small.shape[1] * (wide.shape[1] + 4)
    parts = []
    for part in _parts(count, work):
        entries = _trimmed(_expanded(wide, mutual, small, close, part), count)
        weights = torch.exp(-squared(part, entries.clamp(max=count - 1)) / scale[part, None])
        weights.masked_fill_(entries == count, 0)
        weights /= weights.sum(1, keepdim=True, dtype=torch.float64).to(weights.dtype)
        parts.append(Encodings(entries, weights))
    found = _joined(parts, count)
    if k2 == 1:
        return found
    work = 64 * k2 * found.entries.shape[1]
    return _joined([_averaged(found, near[part, :k2], count) for part in _parts(count, work)], count)


def _parts(count: int, work: int) -> Iterator[slice]:
    rows = max(1, _WORK_MB * 2**20 // work)
    return (slice(begin, min(begin + rows, count)) for begin in range(0, count, rows))


def _mutual(near: Tensor) -> Tensor:
    """Bool like `near` (N, k): whether an image is among the nearest of its own nearest."""
    own = torch.arange(len(near), device=near.device)[:, None, None]
    parts = _parts(len(near), 9 * near.shape[1] ** 2)
    return torch.cat([(near[near[part]] == own[part]).any(2) for part in parts])


def _expanded(wide: Tensor, mutual: Tensor, small: Tensor, close: Tensor, part: slice) -> Tensor:
    """Entries (n, E) of some images: those in each other's neighbourhood, and the neighbourhoods of those that fit."""
    count, candidates = len(wide), wide[part]
    own = candidates.masked_fill(~mutual[part], count)
    theirs = small[candidates].masked_fill(~close[candidates], -1)
    shared = (theirs[..., None] == own[:, None, None]).any(3).sum(2)
    # A candidate's own neighbours come in where more than two thirds of them are among the image's.
    fits = mutual[part] & (3 * shared > 2 * close.sum(1)[candidates])
    theirs = theirs.masked_fill(~fits[..., None] | (theirs < 0), count)
    entries = torch.cat([own, theirs.flatten(1)], 1).sort(dim=1).values
    entries[:, 1:][entries.diff(dim=1) == 0] = count
    return entries.sort(dim=1).values


def _trimmed(entries: Tensor, count: int) -> Tensor:
    width = int((entries < count).sum(1).max())  # the host waits here
    return entries[:, :width]


def _joined(parts: list[Encodings], count: int) -> Encodings:
    width = max(part.entries.shape[1] for part in parts)
    return Encodings(
        torch.cat([pad(part.entries, (0, width - part.entries.shape[1]), value=count) for part in parts]),
        torch.cat([pad(part.weights, (0, width - part.weights.shape[1])) for part in parts]),
    )


def _averaged(found: Encodings, near: Tensor, count: int) -> Encodings:
    """Means (n, E) of the encodings of each image's nearest (n, k)."""
    entries, order = found.entries[near].flatten(1).sort(dim=1, stable=True)
    weights = found.weights[near].flatten(1).gather(1, order)
    sums = weights.clone()
    for shift in range(1, near.shape[1]):  # an entry comes at most once from each
        sums[:, :-shift] += weights[:, shift:] * (entries[:, shift:] == entries[:, :-shift])
    sums /= near.shape[1]
    again = torch.zeros_like(entries, dtype=torch.bool)
    again[:, 1:] = entries.diff(dim=1) == 0
    entries, order = entries.masked_fill(again, count).sort(dim=1, stable=True)
    sums = sums.gather(1, order).masked_fill_(entries == count, 0)
    entries = _trimmed(entries, count)
    return Encodings(entries, sums[:, : entries.shape[1]])


class Overlaps:
    """What encodings of queries share with those of a gallery (G, E), whose entries are from 0 to N."""

    def __init__(self, gallery: Encodings, count: int) -> None:
        # Images with about as many entries are taken together, so that little is filled up.
        sizes, self._order = (gallery.entries < count).sum(1).sort(stable=True)
        self._entries, self._weights = gallery.entries[self._order], gallery.weights[self._order]
        self._sizes: list[int] = sizes.tolist()  # the host waits here
        self._count = count

    def shared(self, query: Encodings, out: Tensor) -> None:
        """Write into `out` (queries, G) the sums of the smaller weights."""
        queries = len(query.entries)
        table = out.new_zeros((self._count + 1, queries))
        table.scatter_(0, query.entries.T, query.weights.T)
        at_once = max(1, _WORK_MB * 2**20 // (queries * max(1, self._sizes[-1]) * out.element_size()))
        for begin in range(0, len(self._sizes), at_once):
            end = min(begin + at_once, len(self._sizes))
            width = self._sizes[end - 1]
            entries, weights = self._entries[begin:end, :width], self._weights[begin:end, :width]
            smaller = table.index_select(0, entries.flatten()).view(end - begin, width, queries)
            torch.minimum(smaller, weights[:, :, None], out=smaller)
            out[:, self._order[begin:end]] = smaller.sum(1).T
