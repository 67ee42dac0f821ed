"""Preprocessing of an image for a network, as data: size, padding, interpolation, mean, deviation, channel order."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from bdbnet.datasets.images import Box, read_image
from bdbnet.loading.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    Channels,
    EvaluationTransform,
    normalize,
)

CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before a network sees it.

    Attributes:
        image_size: height and width of the network's input, pixels.
        pad_to_square: pad the shorter side with black first.
        decode_margin: how many times as large as needed a JPEG stays that is decoded to a part of its size, see
            `read_image`; None: JPEGs are decoded in full.
        interpolation: of the resizing, with antialiasing: `bilinear`, `bicubic` or `nearest`.
        mean, std: of each channel in the order of `channel_order`, for values from 0 to 1.
        channel_order: `rgb`, or `bgr` for networks that were trained so. Images are always given as RGB.

    Raises:
        ValueError: a value out of range; the message names the attribute.
    """

    image_size: tuple[int, int]
    pad_to_square: bool = False
    decode_margin: float | None = 2.0
    interpolation: str = "bilinear"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    channel_order: str = "rgb"

    def __post_init__(self) -> None:
        size = self.image_size
        if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
            raise ValueError(f"image_size={list(size)}: give [height,width] in pixels")
        margin = self.decode_margin
        if margin is not None:
            if not isinstance(margin, int | float) or not margin >= 1:
                raise ValueError(f"decode_margin={margin}: give a number of at least 1, or null")
            object.__setattr__(self, "decode_margin", float(margin))  # 2 and 2.0 are one fingerprint
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation}: choose one of {', '.join(INTERPOLATIONS)}")
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order={self.channel_order}: choose one of {', '.join(CHANNEL_ORDERS)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name}={list(values)}: give a number for each of three channels")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing that `asdict` and JSON made a record of.  Raises KeyError, TypeError or ValueError."""
        tuples = {name: tuple(record[name]) for name in ("image_size", "mean", "std") if name in record}
        return cls(**{**record, **tuples})

    def unusual(self) -> dict[str, Any]:
        """The attributes that differ from what `bdbnet` trains with, other than size, padding and decode margin, for JSON."""
        usual = Preprocessing(self.image_size, self.pad_to_square, self.decode_margin)
        differing = {name: value for name, value in asdict(self).items() if value != getattr(usual, name)}
        return {name: [*value] if isinstance(value, tuple) else value for name, value in differing.items()}

    @cached_property
    def transform(self) -> EvaluationTransform:
        """Padding and resizing."""
        return EvaluationTransform(self.image_size, pad_to_square=self.pad_to_square, interpolation=self.interpolation)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Pad and resize: uint8 RGB (h, w, 3) of any size to uint8 (H, W, 3) of `image_size`."""
        return self.transform.prepare(pixels)

    def read(self, path: str, box: Box | None = None) -> np.ndarray:
        """Decode and prepare an image file, uint8 (H, W, 3).  Raises ImageError, see `read_image`."""
        if self.decode_margin is None:
            return self.prepare(read_image(path, box=box))
        return self.prepare(read_image(path, box=box, excess=self.transform.excess, margin=self.decode_margin))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 RGB images (N, 3, H, W) to the network's float32 input, on their device and in their memory format."""
        return normalize(images if self.channel_order == "rgb" else images.flip(1), mean=self.mean, std=self.std)
