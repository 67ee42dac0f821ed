"""Reading of image files of any common format as 8-bit RGB."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from bdbnet.regular_files import regular

MAX_PIXELS = 80_000_000
"""Largest accepted image.  Below Pillow's own limit, so Pillow never warns about an accepted image."""

# Format -> suffixes of its files.  Pillow's readers of other formats are never tried: some start external programs (EPS).
# AVIF and JPEG 2000 depend on how Pillow was built, HEIF on a package that registers it (pillow-heif).
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# Suffixes of images that are never read.
_OTHER_SUFFIXES = (
    *(".jxl", ".tga", ".ico", ".psd", ".svg", ".eps", ".dds", ".dib", ".pcx", ".exr", ".hdr", ".qoi", ".sgi"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)

_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)

# From this excess on (see `read_image`), colours are enlarged without smoothing.
_COARSE_COLOURS = 1.5

Box = tuple[int, int, int, int]
Excess = Callable[[int, int], float]


class ImageError(ValueError):
    """An image file that can't be used; the message names the file and says what to do."""


def readable_formats() -> tuple[str, ...]:
    """The formats that are read here, in the order in which they are tried."""
    Image.init()  # at the first call; nothing later
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


def image_suffixes() -> tuple[str, ...]:
    """The suffixes of image files that are read here, in small letters.

    >>> {".jpg", ".jfif", ".png"} <= {*image_suffixes()}
    True
    """
    return tuple(suffix for name in readable_formats() for suffix in _SUFFIXES[name])


def known_suffixes() -> tuple[str, ...]:
    """The suffixes of image files, read here or not."""
    return (*(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes), *_OTHER_SUFFIXES)


def unread_images(names: Iterable[str]) -> str:
    """How many of the file `names` seem to be images in formats that are not read here, as text; empty where none is.

    >>> unread_images(["a.jpg", "b.HEIC", "notes.txt", "c.tga", "d.tga", "0007"])
    '3 image(s) in formats that are not read here (2 .tga, 1 .heic)'
    """
    read, known = image_suffixes(), known_suffixes()
    suffixes = [os.path.splitext(name)[1].lower() for name in names]  # noqa: PTH122  (of a million names)
    counts = Counter(suffix for suffix in suffixes if suffix in known and suffix not in read)
    if not counts:
        return ""
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
    return f"{counts.total():,} image(s) in formats that are not read here ({listed})"


def read_image(
    path: str | Path, *, box: Box | None = None, excess: Excess | None = None, margin: float = 2.0
) -> np.ndarray:
    """Decode one image file to 8-bit RGB, upright: uint8 (height, width, 3).

    Greyscale, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8), transparent ones laid on
    white, an EXIF orientation is applied.  `box` (left, top, right, bottom; right and bottom excluded) is cut out of
    the upright image; the part outside of the image is left out.

    `excess(height, width)` gives the ratio of an image's size to the size that is needed; large JPEGs are then decoded at
    reduced size, which is faster.  The decoded size is the smallest that still is `margin` times the needed one:

    | size / needed size | margin=2  | margin=1 |
    |--------------------|-----------|----------|
    | below 2            | full      | full     |
    | 2 to 4             | full      | half     |
    | 4 to 8             | half      | quarter  |
    | 8 to 16            | quarter   | eighth   |
    | 16 and more        | eighth    | eighth   |

    The pixels after resizing differ on average by up to 3 levels of 255 (margin=2) or 7 (margin=1) on the most detailed
    photographs, less on others.  From a ratio of 1.5 on, the colour channels, which most JPEGs store at half size, are
    enlarged without smoothing (less than one level on average).  An image with a box is decoded at full size.

    Raises ImageError for a file that is missing, unreadable, truncated, not an image, larger than `MAX_PIXELS`, or
    that the box misses.  There is one attempt: a file that fails is not retried.
    """
    return decode_image(read_file(path), path, box=box, excess=excess, margin=margin)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image, upright, from the head of its file.  Raises ImageError."""
    try:
        with open(path, "rb", opener=regular) as file:
            return _size(file)
    except Exception as error:  # Pillow's readers raise many types on damaged input
        raise _unreadable(path, error) from error


def content_size(data: bytes, name: str) -> tuple[int, int]:
    """As `image_size`, from the content of an image file; `name` is what messages call it."""
    try:
        return _size(io.BytesIO(data))
    except Exception as error:
        raise _unreadable(name, error) from error


def _size(file: BinaryIO) -> tuple[int, int]:
    with Image.open(file, formats=readable_formats()) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_file(path: str | Path) -> bytes:
    """The content of an image file.  Raises ImageError."""
    try:
        with open(path, "rb", opener=regular) as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist: check its path and the folder that it is relative to") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def decode_image(
    data: bytes,
    path: str | Path,
    *,
    box: Box | None = None,
    excess: Excess | None = None,
    margin: float = 2.0,
) -> np.ndarray:
    """As `read_image`, from the content of the file `path`: uint8 (height, width, 3).  Raises ImageError."""
    try:
        pixels = _decode_jpeg(data, path, box, excess, margin)
        if pixels is None:
            pixels = _decode_any(data, path)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(path, "too many") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged input
        raise _unreadable(path, error) from error
    return pixels if box is None else _cut(pixels, box, path)


def _decode_jpeg(
    data: bytes, path: str | Path, box: Box | None, excess: Excess | None, margin: float
) -> np.ndarray | None:
    """An ordinary JPEG (grey or YCbCr, stored upright) through libjpeg-turbo, in full bit for bit as Pillow decodes it.

    None for everything else, and for damaged files, whose error `_decode_any` gives.
    """
    if not data.startswith(b"\xff\xd8") or (b"Exif\0\0" in data and _is_turned(data)):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray"):
            return None
        if width * height > MAX_PIXELS:
            raise _bomb(path, f"{width} x {height}")
        needed = (height, width) if box is None else (box[3] - box[1], box[2] - box[0])
        scale = 1.0 if excess is None else excess(*needed)
        factor = 1 if box is not None else max(f for f in (1, 2, 4, 8) if f == 1 or scale >= margin * f)
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            fastupsample=scale >= _COARSE_COLOURS,
        )
    except ImageError:
        raise
    except ValueError:
        return None
    if factor > 1:
        # The decoder rounds up, with pixels at the edge that are mostly padding: the nearest size keeps the image in place.
        pixels = np.ascontiguousarray(pixels[: round(height / factor), : round(width / factor)])
    return pixels


def _decode_any(data: bytes, path: str | Path) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _bomb(path, f"{width} x {height}")
        return np.array(upright_rgb(image))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, turned as its EXIF orientation says; see `read_image`.

    Raises ValueError for pixels that have no 8-bit meaning, OSError for a damaged file behind the image.
    """
    return _to_rgb(_upright(image))


def _unreadable(path: str | Path, error: Exception) -> ImageError:
    return ImageError(
        f"image {path} can't be read ({_reason(error)}): copy it again from where it came, or leave it out"
    )


def _bomb(path: str | Path, size: str) -> ImageError:
    return ImageError(f"image {path} has {size} pixels, the limit is {MAX_PIXELS:,}: scale it down or leave it out")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(readable_formats())}"
    return f"{type(error).__name__}: {error}"


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image) != 1
    except Exception:  # damaged: `_decode_any` finds the reason
        return True


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block tells no orientation; the pixels may still be sound
        return 1


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


def _cut(pixels: np.ndarray, box: Box, path: str | Path) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    part = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if part.size == 0:
        raise ImageError(
            f"image {path} ({width} x {height} pixels) has nothing in its box x1={left} y1={top} "
            f"x2={right} y2={bottom}: correct the box in the dataset's table"
        )
    return part
