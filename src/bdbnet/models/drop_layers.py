"""Drop layers of the feature dropping branch: Batch DropBlock and the methods it competes with in the paper's Table 3.

Every layer maps features (N, C, H, W) to the same shape, has no parameters and is the identity in eval mode. The mask
is a function of `(seed, step)`, where `step` is a persistent buffer that counts the training forwards, and, depending on
`mask_scope`, of the rank or the image's position in the batch. Ranks with the same seed therefore draw the same mask
without communication, a checkpoint restores the sequence, and there is no device synchronisation and no recompilation
as the step changes. `mask_scope` sets which images share a mask:

- `global`: all images of all ranks (Batch DropBlock and Batch Dropout, paper),
- `rank`: the images of one rank; `rank` is a plain attribute (default 0) that the training code may set. The released
  code of the paper does this: one block per replica,
- `image`: none, every image has its own (DropBlock, Dropout, SpatialDropout).

`rescale` divides the kept units by the share that is kept, as the authors of DropBlock, Dropout and SpatialDropout do;
Batch DropBlock and Batch Dropout only set units to zero (paper).

Rates for comparison: with the ratios 0.3 and 1.0 on a map of 24 x 8, Batch DropBlock and DropBlock drop
round(0.3 * 24) = 7 of 24 rows, 29.2 % of the units, at every step. Batch Dropout, Dropout and SpatialDropout drop each
position, unit or channel with probability 0.3 * 1.0 = 30 %, on average nearly as much; their `rate` sets another.
"""

from abc import ABC, abstractmethod
from numbers import Real
from typing import cast

import torch
from torch import Tensor, nn

Shape = torch.Size | tuple[int, int, int, int]

MASK_SCOPES = ("global", "rank", "image")

_WORD, _MULTIPLIER = 0xFFFFFFFF, 0x045D9F3B
_ROW, _COLUMN = 0, 1  # counters of a step's two draws


def counter_hash(*counters: Tensor | int) -> Tensor | int:
    """Random 32-bit words (0 .. 2**32 - 1, held in int64) from integer counters, which broadcast.

    Counters are folded in one at a time by two rounds of xor-shift and multiply. The multiplier is below 2**31, so
    products of 32-bit words stay inside int64 and every device and compiler gives the same words.

    >>> counter_hash(0, 1) == counter_hash(0, 1) != counter_hash(1, 0)
    True
    """
    word: Tensor | int = 0x9E3779B9
    for counter in counters:
        word = (word ^ counter ^ (counter >> 32)) & _WORD
        for _ in range(2):
            word = ((word ^ (word >> 16)) * _MULTIPLIER) & _WORD
        word = word ^ (word >> 16)
    return word


def hash_is_below(limit: int, word: Tensor, counter: Tensor) -> Tensor:
    """Where `counter_hash(*counters, counter) < limit`; `word` is `counter_hash(*counters)`, `counter` below 2**31;
    tensors of any shape that broadcast.

    The same words in wrapping 32-bit arithmetic, which reuses its memory: several times faster for millions of units.
    """
    if limit > _WORD:
        return torch.ones_like(word ^ counter, dtype=torch.bool)
    word = word.to(torch.int32) ^ counter.to(torch.int32)
    high = torch.empty_like(word)
    for multiplier in (_MULTIPLIER, _MULTIPLIER, 1):
        torch.bitwise_right_shift(word, 16, out=high).bitwise_and_(0xFFFF)  # the shift alone would copy the sign
        word.bitwise_xor_(high).mul_(multiplier)
    return word.bitwise_xor_(-(2**31)) < limit - 2**31  # compares signed numbers as unsigned


class _DropLayer(nn.Module, ABC):
    """Base of the drop layers: ratios, random counter and training forward."""

    step: Tensor
    default_scope = "global"
    default_rescale = False

    def __init__(
        self,
        height_ratio: float,
        width_ratio: float,
        *,
        seed: int = 0,
        mask_scope: str | None = None,
        rescale: bool | None = None,
    ) -> None:
        super().__init__()
        self.height_ratio = _ratio("height_ratio", height_ratio)
        self.width_ratio = _ratio("width_ratio", width_ratio)
        self.mask_scope = self.default_scope if mask_scope is None else mask_scope
        if self.mask_scope not in MASK_SCOPES:
            raise ValueError(f"mask_scope must be one of {', '.join(MASK_SCOPES)}, got {mask_scope!r}")
        self.rescale = self.default_rescale if rescale is None else rescale
        self.seed = seed
        self.rank = 0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def per_image(self) -> bool:
        """Whether every image has its own mask."""
        return self.mask_scope == "image"

    @abstractmethod
    def dropped(self, shape: Shape) -> Tensor:
        """The mask of the next training forward: bool, True = dropped, broadcastable to `shape` (N, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        share = self._share_kept(features.shape) if self.rescale else 1.0
        kept = (~self.dropped(features.shape)).to(features.dtype).mul_(1 / share if share else 1.0)
        self.step = self.step + 1  # not in place: a compiled backward may draw the mask again from the step before
        return features * kept

    @abstractmethod
    def _share_kept(self, shape: Shape) -> float:
        """Share of the units of features of `shape` that are kept, on average."""

    def extra_repr(self) -> str:
        ratios = f"height_ratio={self.height_ratio}, width_ratio={self.width_ratio}"
        return f"{ratios}, seed={self.seed}, mask_scope={self.mask_scope}, rescale={self.rescale}"

    def _random(self, *counters: Tensor | int) -> Tensor:
        stream = 0 if self.mask_scope == "global" else self.rank
        return cast(Tensor, counter_hash(self.seed, stream, self.step, *counters))

    def _count(self, size: int, dim: int) -> Tensor:
        """0 .. size - 1 along dimension `dim` of (N, C, H, W)."""
        shape = [1, 1, 1, 1]
        shape[dim] = size
        return torch.arange(size, device=self.step.device).view(shape)


class BatchDropBlock(_DropLayer):
    """One rectangle of units, the same for all images and channels of the batch, set to zero (paper, section 3).

    Of a map (N, C, H, W).
    The rectangle has round(height_ratio * H) rows and round(width_ratio * W) columns (Python's `round`) at a uniformly
    drawn position inside the map.

    Args:
        height_ratio: share of the rows, 0..1; 0 drops nothing.
        width_ratio: share of the columns, 0..1; 0 drops nothing.
        seed: chooses the sequence of rectangles.
        mask_scope: which images share a rectangle, one of `MASK_SCOPES`; None is the layer's default, here `global`.
        rescale: multiply the kept units by (number of units) / (number of kept units); None is the layer's default, here
            false.

    Raises:
        ValueError: a ratio outside 0..1, or an unknown scope.
    """

    def dropped(self, shape: Shape) -> Tensor:
        images, _, rows, columns = shape
        image = (self._count(images, 0),) if self.per_image else ()
        return self._interval(rows, self.height_ratio, 2, _ROW, *image) & self._interval(
            columns, self.width_ratio, 3, _COLUMN, *image
        )

    def _share_kept(self, shape: Shape) -> float:
        rows, columns = shape[2:]
        return 1 - round(self.height_ratio * rows) * round(self.width_ratio * columns) / (rows * columns)

    def _interval(self, size: int, ratio: float, dim: int, *draw: Tensor | int) -> Tensor:
        length = round(ratio * size)
        start = (self._random(*draw) * (size - length + 1)) >> 32  # uniform over the size - length + 1 positions
        place = self._count(size, dim)
        return (place >= start) & (place < start + length)


class DropBlock(BatchDropBlock):
    """One rectangle per image, the size of Batch DropBlock's, at a position of its own (paper, Figure 6 and Table 3).

    After Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018, reduced to what the paper compares with: one block per image, shared
    by its channels, without that publication's growing rate. As there, kept units are multiplied by (number of units) /
    (number of kept units). Arguments as in `BatchDropBlock`; `mask_scope` is `image` and `rescale` true by default.
    """

    default_scope = "image"
    default_rescale = True


class _RandomUnits(_DropLayer):
    """Drops positions, channels or units, as `_counters` numbers them, independently with probability `rate`."""

    def __init__(
        self,
        height_ratio: float,
        width_ratio: float,
        *,
        seed: int = 0,
        mask_scope: str | None = None,
        rescale: bool | None = None,
        rate: float | None = None,
    ) -> None:
        super().__init__(height_ratio, width_ratio, seed=seed, mask_scope=mask_scope, rescale=rescale)
        self.rate = self.height_ratio * self.width_ratio if rate is None else _ratio("rate", rate)

    def dropped(self, shape: Shape) -> Tensor:
        image = (self._count(shape[0], 0),) if self.per_image else ()
        *others, last = self._counters(shape)
        return hash_is_below(int(self.rate * 2**32), self._random(*image, *others), last)

    def _share_kept(self, shape: Shape) -> float:
        return 1 - self.rate

    @abstractmethod
    def _counters(self, shape: Shape) -> tuple[Tensor, ...]:
        """Numbers of an image's units to draw for, broadcastable to `shape` (N, C, H, W)."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rate={self.rate}"


class BatchDropout(_RandomUnits):
    """Random spatial positions, the same for all images and channels of the batch, set to zero (paper, Table 3).

    Each position is dropped with probability `rate`, by default height_ratio * width_ratio, which drops the area of
    Batch DropBlock on average but not in one piece. Kept units are unchanged unless `rescale` is true. Other arguments
    as in `BatchDropBlock`.
    """

    def _counters(self, shape: Shape) -> tuple[Tensor, ...]:
        return self._count(shape[2], 2), self._count(shape[3], 3)


class SpatialDropout(_RandomUnits):
    """Whole channels of each image set to zero (Tompson et al., CVPR 2015; paper, Table 3).

    Each channel of each image is dropped with probability `rate`, by default height_ratio * width_ratio. Kept
    channels are multiplied by 1 / (1 - rate), unless `rescale` is false. Other arguments as in `BatchDropBlock`.
    """

    default_scope = "image"
    default_rescale = True

    def _counters(self, shape: Shape) -> tuple[Tensor, ...]:
        return (self._count(shape[1], 1),)


class Dropout(_RandomUnits):
    """Single units set to zero (Srivastava et al., JMLR 2014; paper, Table 3).

    Each unit is dropped with probability `rate`, by default height_ratio * width_ratio. Kept units are multiplied by
    1 / (1 - rate), unless `rescale` is false. Other arguments as in `BatchDropBlock`.
    """

    default_scope = "image"
    default_rescale = True

    def _counters(self, shape: Shape) -> tuple[Tensor, ...]:
        position = self._count(shape[2], 2) * shape[3] + self._count(shape[3], 3)
        return self._count(shape[1], 1), position


def _ratio(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{argument} must be a number from 0 to 1, got {value!r}")
    return float(value)
