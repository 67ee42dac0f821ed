"""Test batches from a packed cache: read by a thread, and kept on the device where they fit."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from bdbnet.loading.packed import PackedImages
from bdbnet.loading.samples import Batch, ImageDataset

_AHEAD = 2  # batches that are read before they are asked for


class PackedBatches:
    """Test images in batches, those that a `DataLoader` over the same rows gives.

    A thread copies the next blocks of the memory map, to pinned memory where there is a GPU, while the network computes: no
    worker process is started, and nothing goes through a queue between processes. What `keep` is given is what later
    iterations return.

    Args:
        dataset: with its packed cache.
        rows: of the dataset, a range.
        batch_size: images of a batch; the last one may have fewer.

    Attributes:
        keeps: whether batches are to be kept; None: not yet known.
    """

    def __init__(self, dataset: ImageDataset, rows: range, batch_size: int) -> None:
        self.dataset = dataset
        self.rows = rows
        self.batch_size = batch_size
        self.keeps: bool | None = None
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def nbytes(self) -> int:
        """Size of all images, prepared."""
        height, width = self.dataset.transform.image_size
        return len(self.rows) * height * width * 3

    @property
    def is_kept(self) -> bool:
        """Whether an iteration returns what was kept."""
        return bool(self._kept) and len(self._kept) == len(self)

    def keep(self, batch: Batch) -> None:
        """Keep the batch that was returned last, as it is now; nothing may change its tensors."""
        if not self.is_kept:
            self._kept.append(batch)

    def __iter__(self) -> Iterator[Batch]:
        if self.is_kept:
            yield from self._kept
            return
        self._kept = []  # of an iteration that was broken off
        parts = [self.rows[begin : begin + self.batch_size] for begin in range(0, len(self.rows), self.batch_size)]
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(self._read, part) for part in parts[:_AHEAD])
            for part in [*parts[_AHEAD:], *[None] * min(_AHEAD, len(parts))]:
                batch = ahead.popleft().result()
                if part is not None:
                    ahead.append(pool.submit(self._read, part))
                yield batch

    def _read(self, rows: range) -> Batch:
        packed = self.dataset.packed
        assert isinstance(packed, PackedImages)  # a test set is of one data set
        shape = (len(rows), *packed.images.shape[1:])
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        np.copyto(images.numpy(), packed.images[rows.start : rows.stop : rows.step])
        index = np.arange(rows.start, rows.stop, rows.step)
        batch = {name: torch.from_numpy(values[index]) for name, values in self.dataset.columns.items()}
        batch |= {"index": torch.from_numpy(index), "position": torch.from_numpy(index)}
        batch["erased"] = torch.empty((len(rows), 0, 4), dtype=torch.int64)
        return batch | {"image": images.permute(0, 3, 1, 2)}
