"""Training and test transforms of the paper (sections 4.1 and 4.2.1), and normalisation on the device.

Images stay 8-bit until they are on the device.  Erasing augmentations give rectangles, not pixels: `normalize` sets
them to zero after normalisation, which equals erasing with the ImageNet mean, as in both publications.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")

PROTOCOLS = ("reid", "reid_multi_query", "reid_single_shot", "reid_reassociation", "retrieval")

Size = tuple[int, int]
Channels = tuple[float, float, float]
Rectangle = tuple[int, int, int, int]
NOTHING: Rectangle = (0, 0, 0, 0)

# As Zhong et al.: after this many rectangles that do not fit, nothing is erased.
_ATTEMPTS = 100


class Eraser(Protocol):
    """Chooses one rectangle (top, left, height, width) in an image of height x width; (0, 0, 0, 0) erases nothing."""

    def __call__(self, height: int, width: int, generator: np.random.Generator) -> Rectangle: ...


def _check_eraser(name: str, eraser: Eraser, height: int, width: int) -> None:
    """Raise ValueError unless an eraser chooses a rectangle: what a command line or a plugin builds may be anything."""
    advice = "give bdbnet.loading.Cutout or RandomErasing"
    try:
        chosen = np.array(eraser(height, width, np.random.default_rng(0)), dtype=np.int64).shape
    except Exception as error:
        raise ValueError(f"{name}={eraser!r} can't erase ({type(error).__name__}: {error}); {advice}") from error
    if chosen != (4,):
        raise ValueError(f"{name}={eraser!r} chooses no rectangle (top, left, height, width); {advice}")


@dataclass(frozen=True)
class Cutout:
    """A square of `size` pixels at a uniformly random position (DeVries and Taylor, 2017).

    Its centre is anywhere in the image, so the square may extend beyond the border; with `overhang=False` the whole square
    is inside, and nothing is erased in an image that is not larger than the square.
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
    """A rectangle of random size at a uniformly random position inside the image (Zhong et al., 2020, algorithm 1).

    `area` bounds its share of the image, `ratio` its height divided by its width; both are uniform.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _check_probability("RandomErasing.probability", self.probability)
        if not 0 < self.area[0] <= self.area[1] < 1:
            raise ValueError(
                f"RandomErasing.area is {tuple(self.area)}: give two shares between 0 and 1, the smaller first"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(
                f"RandomErasing.ratio is {tuple(self.ratio)}: give two positive numbers, the smaller first"
            )

    def __call__(self, height: int, width: int, generator: np.random.Generator) -> Rectangle:
        if generator.random() >= self.probability:
            return NOTHING
        for _ in range(_ATTEMPTS):
            # One call for all four numbers, because the calls dominate the cost.
            share, stretch, down, across = generator.random(4).tolist()
            area = (self.area[0] + share * (self.area[1] - self.area[0])) * height * width
            ratio = self.ratio[0] + stretch * (self.ratio[1] - self.ratio[0])
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < rows < height and 0 < columns < width:
                return int(down * (height - rows + 1)), int(across * (width - columns + 1)), rows, columns
        return NOTHING


def _place(rows: int, columns: int, height: int, width: int, generator: np.random.Generator) -> Rectangle:
    top = int(generator.integers(height - rows, endpoint=True))
    left = int(generator.integers(width - columns, endpoint=True))
    return top, left, rows, columns


class View(NamedTuple):
    """Random crop, flip and erased rectangles of one sample.

    The part of `image_size` whose upper left corner is (top, left), mirrored where `flipped`; `erased` is int64 (R, 4),
    one (top, left, height, width) in that part per eraser, zeros where it does not apply.
    """

    top: int
    left: int
    flipped: bool
    erased: np.ndarray


class TrainTransform:
    """Pad, resize, crop, flip, draw rectangles to erase.

    `prepare` pads and resizes, which is deterministic and can be cached; `draw` draws the random rest, a `View`; `show`
    crops and flips the prepared image.

    With `resize` the image is resized to that size and a random part of `image_size` is cut out of it (retrieval:
    resize 256, crop 224); without, it is resized to `image_size` (person re-identification).  Sizes are one number or
    (height, width).  `pad_to_square` first pads the shorter side with black, the image in the middle.  `flip` is the
    probability of a horizontal flip.  Crop and flip of a sample do not depend on the erasers, so runs with and without
    them are comparable.
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
        self.prepared_size = self.image_size if resize is None else _size("resize", resize)
        if self.prepared_size[0] < self.image_size[0] or self.prepared_size[1] < self.image_size[1]:
            raise ValueError(
                f"resize {self.prepared_size} is smaller than image_size {self.image_size}, which is cropped from it"
            )
        _check_probability("flip", flip)
        self.pad_to_square = pad_to_square
        self.interpolation = "bilinear"
        self.flip = flip
        self.erasing = tuple(erasing)
        for number, eraser in enumerate(self.erasing):
            _check_eraser(f"erasing[{number}]", eraser, *self.image_size)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) of any size to uint8 (H, W, 3) of `prepared_size`."""
        return resize(pad_to_square(pixels) if self.pad_to_square else pixels, self.prepared_size, self.interpolation)

    def excess(self, height: int, width: int) -> float:
        """How many times larger an image of height x width is than the result of `prepare`, measured after padding."""
        if self.pad_to_square:
            height = width = max(height, width)
        return min(height / self.prepared_size[0], width / self.prepared_size[1])

    def draw(self, generator: np.random.Generator) -> View:
        """The random part of a sample."""
        height, width = self.image_size
        top = left = 0
        if self.prepared_size != self.image_size:
            top, left, _, _ = _place(height, width, *self.prepared_size, generator)
        flipped = bool(generator.random() < self.flip)
        erased = [eraser(height, width, generator) for eraser in self.erasing]
        return View(top, left, flipped, np.array(erased, dtype=np.int64).reshape(-1, 4))

    def show(self, prepared: np.ndarray, view: View, out: np.ndarray) -> None:
        """Write the cropped and flipped image into `out`, uint8 (H, W, 3) of `image_size`."""
        height, width = self.image_size
        part = prepared[view.top : view.top + height, view.left : view.left + width]
        if view.flipped:
            # torch flips with vector instructions, NumPy pixel by pixel; torch warns about read-only arrays.
            part = part if part.flags.writeable else part.copy()
            part = torch.from_numpy(part).permute(2, 0, 1).flip(2).permute(1, 2, 0).numpy()
        out[...] = part


class EvaluationTransform(TrainTransform):
    """Pad if asked, then resize to `image_size`; nothing random, and `draw` needs no generator."""

    def __init__(
        self, image_size: int | Sequence[int], *, pad_to_square: bool = False, interpolation: str = "bilinear"
    ) -> None:
        super().__init__(image_size, pad_to_square=pad_to_square, flip=0.0)
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"unknown interpolation {interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        self.interpolation = interpolation

    def draw(self, generator: np.random.Generator | None = None) -> View:
        return View(0, 0, False, np.empty((0, 4), dtype=np.int64))


def transforms_for(
    protocol: str,
    image_size: int | Sequence[int],
    *,
    flip: float = 0.5,
    erasing: Sequence[Eraser] = (),
    resize: int | Sequence[int] | None = None,
    test_size: int | Sequence[int] | None = None,
    pad_train: bool | None = None,
    pad_test: bool | None = None,
) -> tuple[TrainTransform, EvaluationTransform]:
    """Train and test transform of a protocol.

    `reid` and all that begin with `reid_` (section 4.1) resize to `image_size`.  `retrieval` (section 4.2.1): images are
    padded to a square; training resizes to `resize` and crops `image_size` at random, testing resizes to `test_size`
    (default: `resize`, else `image_size`) and does not crop.  `pad_train` and `pad_test` override the protocol (CARS196
    does not pad test images).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    square = protocol == "retrieval"
    train = TrainTransform(
        image_size, resize=resize, pad_to_square=square if pad_train is None else pad_train, flip=flip, erasing=erasing
    )
    test = EvaluationTransform(
        train.prepared_size if test_size is None else test_size, pad_to_square=square if pad_test is None else pad_test
    )
    return train, test


def pad_to_square(pixels: np.ndarray) -> np.ndarray:
    """The image (h, w, 3) centred in a black square with the side of its longer side."""
    height, width, channels = pixels.shape
    if height == width:
        return pixels
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, channels), dtype=np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square


def resize(pixels: np.ndarray, size: Size, interpolation: str = "bilinear") -> np.ndarray:
    """Resize uint8 (h, w, 3) to (H, W, 3) with antialiasing, through torchvision's transforms v2.

    On processors with AVX2 several times as fast as Pillow's, from which it differs by one level of 255, rarely two (and not
    at all for Market-1501's 128 x 64 pixels enlarged to 384 x 128 or 256 x 128).
    """
    if pixels.shape[:2] == size:
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    mode = functional.InterpolationMode(interpolation)
    resized: Tensor = functional.resize(image, list(size), mode, antialias=True)
    return resized.permute(1, 2, 0).contiguous().numpy()


def normalize(
    images: Tensor, erased: Tensor | None = None, *, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD
) -> Tensor:
    """uint8 images (N, 3, H, W) to float32 with mean 0 and deviation 1 by `mean` and `std`, on the images' device.

    The rectangles `erased` (N, R, 4), rows of (top, left, height, width), are exactly 0 in the result.  The memory
    format is kept.  There is no device synchronisation.  Raises TypeError for images that are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize needs uint8 images, not {images.dtype}")
    scale, shift = scale_and_shift(images.device, tuple(mean), tuple(std))
    count, channels, height, width = images.shape
    if images.is_contiguous(memory_format=torch.channels_last):
        # Contiguous rows of W x 3 values, with the constants repeated along them: three times as fast on a CPU.
        flat = images.permute(0, 2, 3, 1).reshape(count * height, width * channels).to(torch.float32)
        torch.addcmul(shift.repeat(width), flat, scale.repeat(width), out=flat)
        result = flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    else:
        result = images.to(torch.float32).mul_(scale.view(3, 1, 1)).add_(shift.view(3, 1, 1))
    if erased is not None and erased.shape[1] > 0:
        if images.device.type == "cpu":
            for image, rectangles in zip(result, erased.tolist()):
                for top, left, rows, columns in rectangles:
                    image[:, top : top + rows, left : left + columns] = 0.0
        else:  # a mask, because reading the rectangles' numbers would synchronise the device
            result.masked_fill_(covered(erased.to(images.device), height, width), 0.0)
    return result


def normalize_in_a_graph(images: Tensor, erased: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """`normalize` as a compiled graph needs it: the same numbers but for rounding, the same pixels erased.

    Args:
        images: uint8 (N, 3, H, W).
        erased: (N, R, 4), on the images' device.
        scale, shift: (3,), see `scale_and_shift`.
    """
    result = images.to(torch.float32) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    if erased is not None and erased.shape[1] > 0:
        result = result.masked_fill(covered(erased, *images.shape[2:]), 0.0)
    return result


def covered(erased: Tensor, height: int, width: int) -> Tensor:
    """Which pixels the rectangles (N, R, 4) cover: bool (N, 1, H, W)."""
    top, left, rows, columns = erased.unsqueeze(-1).unbind(2)  # each (N, R, 1)
    y = torch.arange(height, device=erased.device)
    x = torch.arange(width, device=erased.device)
    in_rows = (y >= top) & (y < top + rows)  # (N, R, H)
    in_columns = (x >= left) & (x < left + columns)  # (N, R, W)
    return (in_rows.unsqueeze(3) & in_columns.unsqueeze(2)).any(dim=1, keepdim=True)


@lru_cache
def scale_and_shift(device: torch.device, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    """Constants (3,) on the device, created once: copying them in every step would synchronise the device."""
    with torch.inference_mode(False):
        means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        return (1 / (255 * deviations)).float().to(device), (-means / deviations).float().to(device)


def _size(name: str, value: int | Sequence[int]) -> Size:
    size = (value, value) if isinstance(value, int) else tuple(int(side) for side in value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} is {value}: give one number of pixels, or height and width")
    return size[0], size[1]


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: expected a probability between 0 and 1")
