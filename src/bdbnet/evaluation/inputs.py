"""Images as callers hand them over, checked: arrays, tensors, PIL images, boxes of a frame, files of a manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bdbnet.datasets import BOX_COLUMNS, Manifest
from bdbnet.datasets.images import ImageError, upright_rgb
from bdbnet.loading import Preprocessing

Batch = tuple[Tensor, Tensor, dict[int, str]]


class InputError(ValueError):
    """What is no image, or no box of a frame; the message names the item and says what to give instead."""


def only_image(images: Any) -> bool:
    """Whether what is given is one image, not several."""
    if isinstance(images, str | Path | Image.Image):
        return True
    return isinstance(images, np.ndarray | Tensor) and images.ndim <= 3


def as_pixels(image: Any, name: str) -> np.ndarray:
    """One image as uint8 RGB (H, W, 3).

    Args:
        image: uint8 array (H, W, 3), uint8 tensor (3, H, W), or PIL image of any mode.
        name: what messages call it.

    Raises:
        InputError: another type, shape or dtype, or an image without pixels.
    """
    if isinstance(image, Image.Image):
        try:
            pixels = np.array(upright_rgb(image))
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: the PIL image can't be converted to 8-bit RGB ({error})") from error
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"{name}: tensor of shape {tuple(image.shape)}; expected (3, H, W), uint8 RGB")
        _check_dtype(image.dtype, torch.uint8, name)
        pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    elif isinstance(image, np.ndarray):
        _check_shape(image, name)
        _check_dtype(image.dtype, np.uint8, name)
        pixels = image
    else:
        raise InputError(
            f"{name}: {type(image).__name__}; expected a path, a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W)"
        )
    if pixels.shape[0] == 0 or pixels.shape[1] == 0:
        raise InputError(f"{name}: an image of {pixels.shape[0]} x {pixels.shape[1]} pixels; leave out empty crops")
    # torch takes no negative strides (a reversed or mirrored view), and warns of what can't be written to.
    return np.ascontiguousarray(pixels) if pixels.flags.writeable else pixels.copy()


def _check_shape(array: np.ndarray, name: str) -> None:
    if array.ndim == 3 and array.shape[2] == 3:
        return
    advice = "expected (H, W, 3), uint8 RGB"
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        advice += "; of a greyscale image: np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)"
    elif array.ndim == 3 and array.shape[2] == 4:
        advice += "; of an RGBA image: image[..., :3], or PIL.Image.fromarray(image) to lay it on white"
    elif array.ndim == 3 and array.shape[0] == 3:
        advice += "; of channels first: image.transpose(1, 2, 0)"
    raise InputError(f"{name}: array of shape {array.shape}; {advice}")


def _check_dtype(found: Any, wanted: Any, name: str) -> None:
    if found != wanted:
        raise InputError(
            f"{name}: {found}; expected uint8 from 0 to 255. Of numbers from 0 to 1: (image * 255).round(), then uint8"
        )


def boxes_in(height: int, width: int, xyxy: Any) -> list[tuple[int, int, int, int]]:
    """Boxes (N, 4) as whole pixels inside of a frame: (left, top, right, bottom), right and bottom excluded.

    Raises:
        InputError: another shape, NaN or infinity, or a box without a pixel in the frame; names the box.
    """
    boxes = np.asarray(xyxy.detach().cpu() if isinstance(xyxy, Tensor) else xyxy)
    if boxes.size == 0:
        return []
    if boxes.ndim == 1 and len(boxes) == 4:
        boxes = boxes[None]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise InputError(
            f"boxes of shape {boxes.shape} and {boxes.dtype}: expected numbers (N, 4): x1, y1, x2, y2 in pixels"
        )
    found = []
    for number, box in enumerate(boxes.astype(np.float64)):
        shown = ", ".join(f"{value:g}" for value in box)
        if not np.isfinite(box).all():
            raise InputError(f"box {number} ({shown}) holds NaN or infinity: leave out detections without coordinates")
        left, top = (int(np.floor(max(value, 0))) for value in box[:2])
        right, bottom = (int(np.ceil(min(value, most))) for value, most in zip(box[2:], (width, height), strict=True))
        if left >= right or top >= bottom:
            raise InputError(
                f"box {number} ({shown}) has no pixel in the frame of {width} x {height} pixels: boxes are x1, y1, x2, y2 with "
                "x1 < x2 and y1 < y2"
            )
        found.append((left, top, right, bottom))
    return found


class ImageFiles(Dataset[Batch]):
    """The image files of a manifest, prepared, in batches: `files.__getitems__(rows)`.

    A batch is the rows that were read (n,), their images uint8 (n, 3, H, W), channels last in memory, and row -> reason for
    those that can't be read, with `skip_unreadable`; without, the first of them raises ImageError.
    """

    def __init__(self, manifest: Manifest, preprocessing: Preprocessing, *, skip_unreadable: bool = False) -> None:
        table = manifest.table
        # Arrays, not tables or lists: reading them in a forked worker copies no memory page for a reference count.
        self._paths = np.array(manifest.paths, dtype=np.str_)
        self._boxes = table[[*BOX_COLUMNS]].to_numpy(np.int64) if BOX_COLUMNS[0] in table.columns else None
        self._preprocessing = preprocessing
        self._skip = skip_unreadable

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        images = np.empty((len(rows), *self._preprocessing.image_size, 3), np.uint8)
        kept: list[int] = []
        unreadable: dict[int, str] = {}
        for row in rows:
            box = None if self._boxes is None else tuple(self._boxes[row].tolist())
            try:
                images[len(kept)] = self._preprocessing.read(str(self._paths[row]), box)
            except ImageError as error:
                if not self._skip:
                    raise
                unreadable[row] = str(error)
            else:
                kept.append(row)
        pixels = torch.from_numpy(images[: len(kept)]).permute(0, 3, 1, 2)
        return torch.tensor(kept, dtype=torch.int64), pixels, unreadable
