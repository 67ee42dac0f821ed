"""Train and test batches of a manifest for a Lightning trainer."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from bdbnet.datasets import Manifest
from bdbnet.loading.identity_sampler import IdentityBatchSampler
from bdbnet.loading.images import ImageDataset, Transform
from bdbnet.loading.transforms import normalize

Batch = dict[str, Tensor]

_MOST_WORKERS = 8


class ReIDDataModule(pl.LightningDataModule):
    """P x K training batches and every test image once.

    After the transfer to the device, a batch holds `image` float32 (N, 3, H, W), normalised, and int64 (N,) `label`,
    `camera`, `index`, `position`.  Training labels are 0..C-1, `index` is the row among the train rows
    (`train_paths`).  Test batches have the dataset's own labels, `is_query` bool (N,), and `index`
    is the row in `test_table`: queries (and images that are both) first, then the rest of the gallery, each in
    manifest order.

    `batch_size` counts images over all ranks, `test_batch_size` those of one rank.  Every rank reads its part of the
    test images, none twice: the parts may differ by one image.  `num_workers` processes per rank decode images
    (default: `default_workers()`).  `channels_last` sets the memory format of the images.

    The trainer needs `use_distributed_sampler=False`; with several ranks Lightning refuses the sampler otherwise.
    """

    def __init__(
        self,
        manifest: Manifest,
        train_transform: Transform,
        test_transform: Transform,
        *,
        batch_size: int = 128,
        images_per_identity: int = 4,
        epoch: Literal["identities", "images"] = "identities",
        test_batch_size: int = 128,
        num_workers: int | None = None,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"loading.num_workers is {num_workers}: give 0 or more")
        self.manifest = manifest
        self.train_manifest = manifest.subset("train")
        self.test_table = _test_table(manifest)
        self.train_transform = train_transform
        self.test_transform = test_transform
        self.batch_size = batch_size
        self.images_per_identity = images_per_identity
        self.epoch = epoch
        self.test_batch_size = test_batch_size
        self._given_workers = num_workers
        self.seed = seed
        self.channels_last = channels_last

    @property
    def num_workers(self) -> int:
        """Processes of this rank that decode images."""
        if self._given_workers is not None:
            return self._given_workers
        return default_workers(1 if self.trainer is None else self.trainer.num_devices)

    @property
    def num_classes(self) -> int:
        """Number of training identities."""
        return int(self.train_manifest.table["label"].nunique())

    def train_paths(self, indices: Sequence[int] | Tensor) -> list[Path]:
        """Files of the train rows `indices`, as batches carry them under `index`."""
        return [Path(self.train_manifest.paths[int(index)]) for index in indices]

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's training batches.  Raises DatasetError without train images and SamplerError (see there)."""
        self.manifest.require("train")
        rank, world_size = self._rank()
        labels = self.train_manifest.training_labels()
        sampler = IdentityBatchSampler.from_batch_size(
            labels,
            self.batch_size,
            self.images_per_identity,
            epoch=self.epoch,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        dataset = ImageDataset(self.train_manifest, self.train_transform, labels=labels, seed=self.seed)
        return _TrainLoader(
            dataset,
            sampler,
            self._batches_done,
            persistent_workers=self.num_workers > 0,
            **self._worker_settings(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The same as `test_dataloader`: the datasets have no validation part."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[Batch]:
        """This rank's test images in order of `test_table`.  Raises DatasetError without queries or gallery."""
        self.manifest.require("query", "gallery")
        rank, world_size = self._rank()
        table = self.test_table
        dataset = ImageDataset(
            self.manifest.with_rows(table),
            self.test_transform,
            seed=self.seed,
            columns={
                "is_query": table["split"].isin(("query", "test")).to_numpy(),
            },
        )
        return DataLoader(
            dataset,
            batch_size=self.test_batch_size,
            sampler=range(rank, len(table), world_size),
            **self._worker_settings(),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise and erase on the device."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        batch = dict(batch)
        # Reordered while it is 8-bit: a quarter of the bytes.
        batch["image"] = normalize(batch["image"].contiguous(memory_format=order), batch.pop("erased"))
        return batch

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches_done(self) -> int:
        """Batches that the trainer had completed of an epoch which it now resumes; 0 where it resumes none."""
        if self.trainer is None or not self.trainer.fit_loop.epoch_loop.restarting:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _worker_settings(self) -> dict[str, Any]:
        """PyTorch gives each worker process one computing thread, so that workers do not fight over the cores."""
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "prefetch_factor": 4 if self.num_workers else None,
            "pin_memory": torch.cuda.is_available(),
        }


class _TrainLoader(DataLoader[Batch]):
    """A loader that draws nothing before its first batch is asked for, and that resumes in the middle of an epoch.

    Lightning makes the first iterator before it tells the sampler the epoch.  Workers would then prefetch the batches
    of epoch 0 in a run that resumes at a later one.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: IdentityBatchSampler,
        batches_done: Callable[[], int],
        **settings: Any,
    ) -> None:
        super().__init__(dataset, batch_sampler=sampler, **settings)
        self._sampler = sampler
        self._batches_done = batches_done

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._sampler.first_batch = self._batches_done()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place in the epoch is the trainer's own.  Its presence tells Lightning that resuming works."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore; see `state_dict`."""


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Samples of `ImageDataset` to one batch; images stay uint8, (N, 3, H, W), channels last in memory."""
    images = default_collate([sample["image"].permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    batch = {"image": images, "erased": torch.stack([sample["erased"] for sample in samples])}
    for name in samples[0].keys() - batch.keys():
        batch[name] = torch.from_numpy(np.array([sample[name] for sample in samples]))
    return batch


def default_workers(local_ranks: int = 1) -> int:
    """Worker processes for one rank: half of the cores that this process may use, shared by the ranks here; 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // (2 * local_ranks), 1), _MOST_WORKERS)


def _test_table(manifest: Manifest) -> pd.DataFrame:
    split = manifest.table["split"]
    query, gallery = manifest.table[split.isin(("query", "test"))], manifest.table[split == "gallery"]
    return pd.concat([query, gallery], ignore_index=True)
