"""`ImageDataset`: batches of 8-bit images for drawn rows of a manifest."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bdbnet.datasets import BOX_COLUMNS, Manifest
from bdbnet.datasets.images import ImageError, read_image
from bdbnet.loading.packed import JoinedImages, PackedImages
from bdbnet.loading.transforms import TrainTransform

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn training sample.

    `index` is its row in the train manifest, `position` its place in the epoch's order over all ranks.
    """

    index: int
    epoch: int
    position: int


class ImageDataset(Dataset[Batch]):
    """The images of a manifest, in batches: `dataset.__getitems__(draws)`; an integer means that row in epoch 0.

    A batch holds `image` uint8 (N, 3, H, W), channels last in memory, `erased` int64 (N, R, 4), and int64 (N,) `label`,
    `camera`, `index` and `position`.  `labels` (N,) replaces the manifest's own labels, as training does with 0..C-1.
    `columns` are further values per row that batches contain under their name.

    A sample is a function of (seed, epoch, position, index) alone: the number of workers or ranks does not matter, nor
    where the pixels come from: the files, `packed` (see there), or a copy on the device.  With `on_device` the batch
    has no `image` but int64 (N, 4) `view`: row, top, left, flipped of each sample, to be cut out there.

    `replace` takes another image of the same identity for a file that can't be read, chosen by the same seed; the batch
    then also has int64 (N,) `replaced`, the row that was drawn, -1 where it was read.  Otherwise ImageError is raised.
    `decode_margin` decodes large JPEGs at reduced size (`margin` of `read_image`; None: never).
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: TrainTransform,
        *,
        labels: np.ndarray | None = None,
        seed: int = 0,
        columns: Mapping[str, np.ndarray] | None = None,
        packed: PackedImages | JoinedImages | None = None,
        on_device: bool = False,
        replace: bool = False,
        decode_margin: float | None = 2.0,
    ) -> None:
        table = manifest.table
        # Arrays, not tables or lists: reading these in a forked worker would update reference counts and copy memory pages.
        self.paths = np.array(manifest.paths, dtype=np.str_)
        self.labels = np.asarray(table["label"] if labels is None else labels, dtype=np.int64)
        self.boxes = table[[*BOX_COLUMNS]].to_numpy(np.int64) if BOX_COLUMNS[0] in table.columns else None
        self.columns = {"label": self.labels, "camera": table["camera"].to_numpy(np.int64), **(columns or {})}
        self.transform = transform
        self.seed = seed
        self.packed = packed
        self.on_device = on_device
        self.replace = replace
        self.decode_margin = decode_margin
        for name, values in self.columns.items():
            if len(values) != len(table):
                raise ValueError(f"{name} has {len(values)} values for the {len(table)} images of {manifest.name}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> Batch:
        """The sample of a draw as a batch of one."""
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw | int]) -> Batch:
        """The batch of these draws.  Raises ImageError (see `read_image`)."""
        drawn = [draw if isinstance(draw, Draw) else Draw(draw, 0, draw) for draw in draws]
        # All views are drawn before the first image is decoded, which is twice as fast: the processor's caches stay warm.
        views = [
            self.transform.draw(np.random.default_rng((self.seed, draw.epoch, draw.position, draw.index)))
            for draw in drawn
        ]
        images = np.empty((0 if self.on_device else len(drawn), *self.transform.image_size, 3), dtype=np.uint8)
        rows = np.empty(len(drawn), dtype=np.int64)
        for place, (draw, view) in enumerate(zip(drawn, views)):
            rows[place], prepared = self._prepared(draw)
            if prepared is not None:
                self.transform.show(prepared, view, images[place])
        batch: dict[str, Any] = {name: values[rows] for name, values in self.columns.items()}
        batch["index"] = rows
        batch["position"] = np.array([draw.position for draw in drawn], dtype=np.int64)
        batch["erased"] = np.stack([view.erased for view in views])
        if self.replace:
            wanted = np.array([draw.index for draw in drawn], dtype=np.int64)
            batch["replaced"] = np.where(wanted == rows, -1, wanted)
        if self.on_device:
            places = np.array([(view.top, view.left, view.flipped) for view in views], dtype=np.int64)
            batch["view"] = np.concatenate([rows[:, None], places], axis=1)
        result = {name: torch.from_numpy(values) for name, values in batch.items()}
        if not self.on_device:
            result["image"] = torch.from_numpy(images).permute(0, 3, 1, 2)
        return result

    def prepare(self, row: int) -> np.ndarray:
        """The image of a row, decoded and prepared, uint8 (H, W, 3).  Raises ImageError."""
        box = None if self.boxes is None or self.boxes[row, 0] < 0 else tuple(self.boxes[row].tolist())
        if self.decode_margin is None:
            return self.transform.prepare(read_image(str(self.paths[row]), box=box))
        excess, margin = self.transform.excess, self.decode_margin
        return self.transform.prepare(read_image(str(self.paths[row]), box=box, excess=excess, margin=margin))

    def _prepared(self, draw: Draw) -> tuple[int, np.ndarray | None]:
        """The row that is used for a draw and its prepared image; None where the device has it."""
        try:
            return draw.index, self._pixels(draw.index)
        except ImageError as error:
            if not self.replace:
                raise
            return self._replacement(draw, error)

    def _pixels(self, row: int) -> np.ndarray | None:
        if self.packed is None:
            return self.prepare(row)
        if (reason := self.packed.unreadable.get(row)) is not None:
            raise ImageError(reason)
        return None if self.on_device else self.packed.images[row]

    def _replacement(self, draw: Draw, error: ImageError) -> tuple[int, np.ndarray | None]:
        same = np.flatnonzero(self.labels == self.labels[draw.index])
        generator = np.random.default_rng((self.seed, draw.epoch, draw.position, draw.index, 1))
        for row in generator.permutation(same[same != draw.index]).tolist():
            try:
                pixels = self._pixels(row)
            except ImageError:
                continue
            warnings.warn(f"{error}\n  replaced by {self.paths[row]} (loading.on_error=replace)", stacklevel=2)
            return row, pixels
        raise ImageError(f"{error}. No other image of its identity can be read either")


def show_on_device(images: Tensor, view: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the views of a batch out of a whole dataset of prepared images on one device.

    `images` is uint8 (M, H, W, 3), `view` int64 (N, 4) with row, top, left, flipped; the result is uint8 (N, 3, h, w)
    of `size`, channels last in memory, equal to what `TrainTransform.show` gives.  Nothing waits for the device.
    """
    height, width = size
    row, top, left, flipped = view.to(images.device, non_blocking=True).unbind(1)
    y = top[:, None] + torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device).expand(len(view), width)
    x = left[:, None] + torch.where(flipped[:, None] > 0, width - 1 - x, x)
    return images[row[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
