"""Train and test transforms of the paper (sections 4.1 and 4.2.1), and normalisation on the device.

Images stay 8-bit until they are on the device.  Erasing augmentations give rectangles, not pixels: `normalize` sets
them to zero after normalisation, which is where both publications erase with the ImageNet mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = tuple[int, int]
Rectangle = tuple[int, int, int, int]
NOTHING: Rectangle = (0, 0, 0, 0)

# As Zhong et al.: after so many rectangles that do not fit, the image stays whole.
_ATTEMPTS = 100


class Eraser(Protocol):
    """Chooses one rectangle (top, left, height, width) in an image of height x width; (0, 0, 0, 0) erases nothing."""

    def __call__(self, height: int, width: int, generator: np.random.Generator) -> Rectangle: ...


@dataclass(frozen=True)
class Cutout:
    """A square of `size` pixels at a uniform place (DeVries and Taylor, 2017).

    Its centre lies anywhere in the image, so that it may hang over the border; with `overhang=False` the whole square
    lies inside, and an image that is not larger than the square stays whole.
    """

    probability: float = 0.5
    size: int = 64
    overhang: bool = True

    def __post_init__(self) -> None:
        _check_probability("Cutout.probability", self.probability)
        if self.size < 1:
            raise ValueError(f"Cutout.size is {self.size}: give at least 1 pixel")

    def __call__(self, height: int, width: int, generator: np.random.Generator) -> Rectangle:
        if generator.random() >= self.probability:
            return NOTHING
        size = self.size
        if not self.overhang:
            return _place(size, size, height, width, generator) if size < min(height, width) else NOTHING
        top = int(generator.integers(height)) - size // 2
        left = int(generator.integers(width)) - size // 2
        bottom, right = min(top + size, height), min(left + size, width)
        top, left = max(top, 0), max(left, 0)
        return top, left, bottom - top, right - left


@dataclass(frozen=True)
class RandomErasing:
    """A rectangle of random size at a uniform place inside the image (Zhong et al., 2020, algorithm 1).

    `area` bounds its share of the image, `ratio` its height divided by its width; both are uniform.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _check_probability("RandomErasing.probability", self.probability)
        if not 0 < self.area[0] <= self.area[1] < 1:
            raise ValueError(f"RandomErasing.area is {tuple(self.area)}: give two shares between 0 and 1, least first")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"RandomErasing.ratio is {tuple(self.ratio)}: give two positive numbers, least first")

    def __call__(self, height: int, width: int, generator: np.random.Generator) -> Rectangle:
        if generator.random() >= self.probability:
            return NOTHING
        for _ in range(_ATTEMPTS):
            area = generator.uniform(*self.area) * height * width
            ratio = generator.uniform(*self.ratio)
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < rows < height and 0 < columns < width:
                return _place(rows, columns, height, width, generator)
        return NOTHING


def _place(rows: int, columns: int, height: int, width: int, generator: np.random.Generator) -> Rectangle:
    top = int(generator.integers(height - rows, endpoint=True))
    left = int(generator.integers(width - columns, endpoint=True))
    return top, left, rows, columns


class TrainTransform:
    """Pad, resize, crop, flip, choose what to erase: `transform(image, generator)` -> (image, erased).

    `image` is uint8 (3, H, W) with `image_size` = (H, W); its memory lies channels last.  `erased` is int64 (R, 4),
    one (top, left, height, width) per eraser, zeros where it does not apply.

    With `resize` the image is resized to that size and a random part of `image_size` is cut out of it (retrieval:
    resize 256, crop 224); without, it is resized to `image_size` (person re-identification).  `pad_to_square` first
    pads the shorter side with black, the image in the middle.  `flip` is the probability of a horizontal flip.
    Crop and flip of a sample do not depend on the erasers, so that runs with and without them compare.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        resize: int | Sequence[int] | None = None,
        pad_to_square: bool = False,
        flip: float = 0.5,
        erasing: Sequence[Eraser] = (),
    ) -> None:
        self.image_size = _size("image_size", image_size)
        self.resize = self.image_size if resize is None else _size("resize", resize)
        if self.resize[0] < self.image_size[0] or self.resize[1] < self.image_size[1]:
            raise ValueError(f"resize {self.resize} is smaller than image_size {self.image_size}, a part of it")
        _check_probability("flip", flip)
        self.pad_to_square = pad_to_square
        self.flip = flip
        self.erasing = tuple(erasing)

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        height, width = self.image_size
        if self.pad_to_square:
            image = pad_to_square(image)
        image = resize(image, self.resize)
        if self.resize != self.image_size:
            top, left, _, _ = _place(height, width, *self.resize, generator)
            image = image.crop((left, top, left + width, top + height))
        if generator.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        erased = [eraser(height, width, generator) for eraser in self.erasing]
        return _to_tensor(image), torch.tensor(erased, dtype=torch.int64).reshape(-1, 4)


class EvaluationTransform:
    """Pad if asked, then resize to `image_size`; nothing random.  Same signature and result as `TrainTransform`."""

    def __init__(self, image_size: int | Sequence[int], *, pad_to_square: bool = False) -> None:
        self.image_size = _size("image_size", image_size)
        self.pad_to_square = pad_to_square

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        if self.pad_to_square:
            image = pad_to_square(image)
        return _to_tensor(resize(image, self.image_size)), torch.empty((0, 4), dtype=torch.int64)


def transforms_for(
    protocol: Literal["reid", "retrieval"],
    image_size: int | Sequence[int],
    *,
    flip: float = 0.5,
    erasing: Sequence[Eraser] = (),
    resize: int | Sequence[int] | None = None,
    pad_train: bool = True,
    pad_test: bool = True,
) -> tuple[TrainTransform, EvaluationTransform]:
    """Train and test transform of a protocol.

    `reid` (section 4.1): both resize to `image_size`.  `retrieval` (section 4.2.1): training resizes to `resize` and
    crops `image_size` at random, testing resizes to `resize` (`image_size` where there is none) and does not crop.
    Only retrieval pads to a square: train images if `pad_train`, test images if `pad_test` (CARS196: not those).
    """
    if protocol == "reid":
        if resize is not None:
            raise ValueError(f"resize={resize} has no meaning for protocol reid: leave it empty")
        return TrainTransform(image_size, flip=flip, erasing=erasing), EvaluationTransform(image_size)
    if protocol != "retrieval":
        raise ValueError(f"unknown protocol {protocol!r}: choose reid or retrieval")
    train = TrainTransform(image_size, resize=resize, pad_to_square=pad_train, flip=flip, erasing=erasing)
    return train, EvaluationTransform(train.resize, pad_to_square=pad_test)


def pad_to_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square that is as large as its longer side."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Resize to (height, width), bilinear with antialiasing: equal to torchvision's `Resize` on PIL images.

    Tensor-based resizing differs in the last bit, and published weights were judged with this one.
    """
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def normalize(images: Tensor, erased: Tensor | None = None) -> Tensor:
    """uint8 images (N, 3, H, W) to float32 with ImageNet mean and standard deviation, on the images' device.

    The rectangles `erased` (N, R, 4), rows of (top, left, height, width), are exactly 0 in the result.  The memory
    format is kept.  Nothing waits for the device.  Raises TypeError for images that are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize needs uint8 images, not {images.dtype}")
    scale, shift = _scale_and_shift(images.device)
    result = images.to(torch.float32)
    # One pass in place; two separate ones or a second buffer take up to 1.8 times as long on a CPU.
    torch.addcmul(shift, result, scale, out=result)
    if erased is not None and erased.shape[1] > 0:
        result.masked_fill_(_covered(erased.to(images.device), images.shape[2], images.shape[3]), 0.0)
    return result


def _covered(erased: Tensor, height: int, width: int) -> Tensor:
    """Which pixels the rectangles (N, R, 4) cover: bool (N, 1, H, W)."""
    top, left, rows, columns = erased.unsqueeze(-1).unbind(2)  # each (N, R, 1)
    y = torch.arange(height, device=erased.device)
    x = torch.arange(width, device=erased.device)
    in_rows = (y >= top) & (y < top + rows)  # (N, R, H)
    in_columns = (x >= left) & (x < left + columns)  # (N, R, W)
    return (in_rows.unsqueeze(3) & in_columns.unsqueeze(2)).any(dim=1, keepdim=True)


@lru_cache
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """Constants (3, 1, 1) on the device, made once: a copy from the host in every step would wait for the device."""
    with torch.inference_mode(False):
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(3, 1, 1)
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def _to_tensor(image: Image.Image) -> Tensor:
    """uint8 (3, H, W), a view of the image's own order (H, W, 3): batches of it are channels last without a copy."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _size(name: str, value: int | Sequence[int]) -> Size:
    size = (value, value) if isinstance(value, int) else tuple(int(side) for side in value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} is {value}: give one number of pixels, or height and width")
    return size[0], size[1]


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: a probability lies between 0 and 1")
