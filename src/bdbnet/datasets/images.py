"""Reading image files, and the dataset that turns a row of a manifest into a sample."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from bdbnet.datasets import Manifest

MAX_PIXELS = 80_000_000
"""Largest accepted image.  Below Pillow's own limit, so that Pillow never warns about an image that is accepted."""

# Photographs come in these; the other readers of Pillow (some start programs, such as EPS) are never tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)

Box = tuple[int, int, int, int]
Transform = Callable[[Image.Image, np.random.Generator], tuple[Tensor, Tensor]]


class ImageError(ValueError):
    """An image file that can't be used; the message names the file and says what to do."""


class Draw(NamedTuple):
    """One drawn training sample.

    `index` is its row in the train manifest, `position` its place in the epoch's order over all ranks.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which no one calls on a draw
    epoch: int
    position: int


def read_image(path: str | Path, *, box: Box | None = None) -> Image.Image:
    """Decode one image file to 8-bit RGB, upright.

    Greyscale, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8), transparent ones laid on
    white, an EXIF orientation is applied.  `box` (left, top, right, bottom; right and bottom excluded) is cut out of
    the upright image; what lies over its border is left out.

    Raises ImageError for a file that is missing, unreadable, truncated, not an image, larger than `MAX_PIXELS`, or
    that the box misses.  There is one attempt: a file that fails is never replaced by another.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _bomb(path, f"{width} x {height}")
            rgb = _to_rgb(_upright(image))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist: check the dataset's folder, or prepare it again") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(path, "too many") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged input
        raise ImageError(
            f"image {path} can't be read ({_reason(error)}): restore the file from the original dataset, "
            "or remove it from the dataset"
        ) from error
    return rgb if box is None else _cut(rgb, box, path)


def _bomb(path: str | Path, size: str) -> ImageError:
    return ImageError(
        f"image {path} has {size} pixels, the limit is {MAX_PIXELS:,}: scale it down or remove it from the dataset"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not one of {', '.join(FORMATS)}"
    return f"{type(error).__name__}: {error}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block tells no orientation; the pixels may still be sound
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if mode == "I" or mode.startswith("I;16"):
        return _from_16_bit(image).convert("RGB")
    if mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """The high byte, as Pillow reads 16-bit colour; its conversion of 16-bit grey clips, which leaves white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65_535):
        raise ValueError("pixel values outside of 0 to 65535; save it with 8 or 16 bits per channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _cut(image: Image.Image, box: Box, path: str | Path) -> Image.Image:
    left, top, right, bottom = box
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ImageError(
            f"image {path} ({image.width} x {image.height} pixels) has nothing in its box x1={left} y1={top} "
            f"x2={right} y2={bottom}: correct the box in the dataset's table"
        )
    return image.crop(inside)


class ImageDataset(Dataset[dict[str, Any]]):
    """The images of a manifest, row by row.

    `transform(image, generator)` gives the uint8 image (3, H, W) and the rectangles to erase (R, 4).  `labels` (N,)
    replaces the manifest's own labels, as training does with 0..C-1.  `columns` are further values per row that
    samples carry under their name.

    A sample is a function of (seed, epoch, position, index) alone: the number of workers or ranks does not matter.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        *,
        labels: np.ndarray | None = None,
        seed: int = 0,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        table = manifest.table
        # Arrays, not tables or lists: reading them in a forked worker copies no memory page for a reference count.
        self.paths = np.array(manifest.paths, dtype=np.str_)
        self.labels = np.asarray(table["label"] if labels is None else labels, dtype=np.int64)
        self.cameras = table["camera"].to_numpy(np.int64)
        self.boxes = table[["x1", "y1", "x2", "y2"]].to_numpy(np.int64) if "x1" in table.columns else None
        self.columns = dict(columns or {})
        self.transform = transform
        self.seed = seed
        for name, values in {"labels": self.labels, **self.columns}.items():
            if len(values) != len(table):
                raise ValueError(f"{name} has {len(values)} values for the {len(table)} images of {manifest.name}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """The sample of a draw; an integer is that row in epoch 0 at position = row."""
        index, epoch, position = draw if isinstance(draw, tuple) else (draw, 0, draw)
        box = None if self.boxes is None else tuple(self.boxes[index].tolist())
        image, erased = self.transform(
            read_image(str(self.paths[index]), box=box),
            np.random.default_rng((self.seed, epoch, position, index)),
        )
        sample = {
            "image": image,
            "erased": erased,
            "label": int(self.labels[index]),
            "camera": int(self.cameras[index]),
            "index": index,
            "position": position,
        }
        return sample | {name: values[index] for name, values in self.columns.items()}
