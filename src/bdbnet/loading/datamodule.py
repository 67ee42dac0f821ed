"""`ReIDDataModule`: training and test batches of a manifest for a Lightning trainer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from bdbnet.datasets import Manifest
from bdbnet.datasets.union import TrainingSets
from bdbnet.loading.choosing import SHARE, choose_cache, free_memory
from bdbnet.loading.loader import WorkerLoader, default_workers
from bdbnet.loading.packed import CacheError, JoinedImages, PackedImages, open_or_pack
from bdbnet.loading.packed_batches import PackedBatches
from bdbnet.loading.sampler import IdentityBatchSampler, SamplerError
from bdbnet.loading.samples import Batch, ImageDataset, show_on_device
from bdbnet.loading.transforms import EvaluationTransform, TrainTransform, normalize

CACHES = ("auto", "none", "packed", "device")
BALANCES = ("none", "per_set")
ON_ERROR = ("raise", "replace")


@dataclass(frozen=True)
class Sampling:
    """How training batches are drawn, see `IdentityBatchSampler`.

    Attributes:
        batch_size: images over all ranks, P x K.
        images_per_identity: K.
        epoch: what an epoch draws, `identities` or `images`.
        balance: of several data sets, whether batches have as many identities of each: `per_set`, or `none`.

    Raises:
        ValueError: another word for `balance`.
    """

    batch_size: int = 128
    images_per_identity: int = 4
    epoch: Literal["identities", "images"] = "identities"
    balance: str = "none"

    def __post_init__(self) -> None:
        if self.balance not in BALANCES:
            raise ValueError(f"sampler.balance is {self.balance!r}: choose one of {', '.join(BALANCES)}")


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        test_batch_size: test images of one rank in a batch.
        num_workers: processes per rank that decode; None: `default_workers()`.
        cache: `none` decodes files for every batch; `packed` keeps all prepared images in memory-mapped files, made at the
            first use (see `open_or_pack`); `device` also copies those of the training set to the device and crops, flips
            and erases there, and keeps the test images there after their first evaluation where they fit. All three give
            the same batches. `auto` chooses for the trainer's device (see `choose_cache`) and says why.
        cache_root: folder of the memory-mapped files.
        decode_margin: large JPEGs are decoded at reduced size (`margin` of `read_image`); None: never.
        on_error: `replace` trains with another image of the same identity where a file can't be read, and counts it in
            `replaced`; test images must all be readable.

    Raises:
        ValueError: a value out of range; names the key.
    """

    test_batch_size: int = 128
    num_workers: int | None = None
    cache: str = "none"
    cache_root: str | Path = "data/cache"
    decode_margin: float | None = 2.0
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise ValueError(f"loading.cache is {self.cache!r}: choose one of {', '.join(CACHES)}")
        margin = self.decode_margin
        if margin is not None and not (isinstance(margin, int | float) and margin >= 1):
            raise ValueError(f"loading.decode_margin is {margin}: give a number of at least 1, or null")
        if self.on_error not in ON_ERROR:
            raise ValueError(f"loading.on_error is {self.on_error!r}: choose one of {', '.join(ON_ERROR)}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"loading.num_workers is {self.num_workers}: give 0 or more")


class ReIDDataModule(pl.LightningDataModule):
    """P x K training batches and every test image once.

    After the transfer to the device, a training batch holds `image` float32 (N, 3, H, W), normalised, and int64 (N,)
    `label`, `camera`, `index`, `position`.  Training labels are 0..C-1, `index` is the row among the train rows
    (`train_paths`).  Test batches have the images as they are prepared, uint8, the dataset's own labels, `is_query` bool
    (N,), and `index` is the row in `test_table`: queries (and images that are both) first, then the rest of the gallery,
    each in manifest order.

    The test images are divided among the ranks without duplicates: the parts may differ by one image.  `channels_last`
    sets the memory format of the training images.

    `sets` are the training images where these are of several data sets; the test images are those of `manifest` alone.

    The attribute `further_tests` may list further manifests with their transforms: their test images are evaluated after
    the own ones, from loaders of their own.

    The trainer needs `use_distributed_sampler=False`; with several ranks Lightning refuses the sampler otherwise.
    """

    def __init__(
        self,
        manifest: Manifest,
        train_transform: TrainTransform,
        test_transform: EvaluationTransform,
        *,
        sets: TrainingSets | None = None,
        sampling: Sampling | None = None,
        reading: Reading | None = None,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed is {seed}: give 0 or more")
        self.manifest = manifest
        self.training_sets = sets or TrainingSets((manifest,))
        self.train_manifest = self.training_sets.train
        self.test_table = test_rows(manifest)
        self.further_tests: tuple[tuple[Manifest, EvaluationTransform], ...] = ()
        self.train_transform = train_transform
        self.test_transform = test_transform
        self.sampling = sampling or Sampling()
        self.reading = reading or Reading()
        self.seed = seed
        self.channels_last = channels_last
        self.normalizes = True
        """Whether training batches are normalised; otherwise `image` is uint8, and `erased` (N, R, 4) says what is to be erased."""
        self.replaced = 0
        """Training images of this rank, since the start, that were replaced by another of their identity."""
        self.waited = 0.0
        """Seconds for which this rank has waited for training batches, since the start."""
        self._train_images: PackedImages | JoinedImages | None = None
        self._test_datasets: dict[int, ImageDataset] = {}
        self._test_batches: dict[int, PackedBatches] = {}
        self._cache = "" if self.reading.cache == "auto" else self.reading.cache
        self._on_device: Tensor | None = None

    @property
    def num_workers(self) -> int:
        """Processes of this rank that decode images."""
        if self.reading.num_workers is not None:
            return self.reading.num_workers
        return default_workers(1 if self.trainer is None else self.trainer.num_devices)

    @property
    def cache(self) -> str:
        """The cache that is used; with `auto` it is chosen when the first images are asked for."""
        if not self._cache:
            device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            tests = [self._test_set(number) for number in range(1 + len(self.further_tests))]
            sets = [(len(test_rows(manifest)), transform.prepared_size) for manifest, transform in tests]
            # An evaluation reads no training image.
            if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
                sets.append((len(self.train_manifest.table), self.train_transform.prepared_size))
            size = sum(count * height * width * 3 for count, (height, width) in sets)
            self._choose(*choose_cache(sum(count for count, _ in sets), size, device))
        return self._cache

    @property
    def num_classes(self) -> int:
        """Number of training identities."""
        return int(self.train_manifest.table["label"].nunique())

    def train_paths(self, indices: Sequence[int] | Tensor) -> list[Path]:
        """Files of the train rows `indices`, as batches carry them under `index`."""
        return [Path(self.train_manifest.paths[int(index)]) for index in indices]

    def train_sampler(self, rank: int = 0, world_size: int = 1) -> IdentityBatchSampler:
        """What draws a rank's training batches.  Raises DatasetError without training images, and SamplerError."""
        self.manifest.require("train")
        several, balanced = len(self.training_sets.members) > 1, self.sampling.balance == "per_set"
        if balanced and not several:
            raise SamplerError(
                "sampler.balance=per_set: there is one data set; train on several with dataset=[a,b], or leave it out"
            )
        return IdentityBatchSampler.from_batch_size(
            self.train_manifest.training_labels(),
            self.sampling.batch_size,
            self.sampling.images_per_identity,
            epoch=self.sampling.epoch,
            sets=self.training_sets.sets if balanced else None,
            set_names=self.training_sets.names,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's training batches.  Raises DatasetError without training images, and SamplerError."""
        rank, world_size = self._rank()
        sampler = self.train_sampler(rank, world_size)
        labels = self.train_manifest.training_labels()
        dataset = ImageDataset(
            self.train_manifest,
            self.train_transform,
            labels=labels,
            seed=self.seed,
            replace=self.reading.on_error == "replace",
            decode_margin=self.reading.decode_margin,
        )
        dataset.packed = self._train_images = self._packed_sets(dataset)
        dataset.on_device = self._fill_device()
        if self.cache != "none" and len(self.test_table):
            # Now, so that an unreadable image or a full disk is noticed before the first epoch and not after it.
            for number in range(1 + len(self.further_tests)):
                self._test_images(number)
        return _TrainLoader(
            dataset,
            sampler,
            self._batches_done,
            self._note_wait,
            persistent_workers=self.num_workers > 0,
            **self._worker_settings(),
        )

    def val_dataloader(self) -> "TestBatches | list[TestBatches]":
        """The same as `test_dataloader`, for the datasets have no validation part; with `further_tests` a list."""
        further = [self.test_dataloader(number) for number in range(1, len(self.further_tests) + 1)]
        return [self.test_dataloader(), *further] if further else self.test_dataloader()

    def test_dataloader(self, number: int = 0) -> "TestBatches":
        """This rank's test images in order of `test_table`, or those of the further test with this number, from 1.

        Raises DatasetError without queries or gallery.
        """
        self._test_set(number)[0].require("query", "gallery")
        rank, world_size = self._rank()
        dataset = self._test_images(number)
        rows, batch_size = range(rank, len(dataset), world_size), self.reading.test_batch_size
        if dataset.packed is None:
            return WorkerLoader(dataset, batch_size=batch_size, sampler=rows, **self._worker_settings())
        if number not in self._test_batches or self._test_batches[number].rows != rows:
            self._test_batches[number] = PackedBatches(dataset, rows, batch_size)
        return self._test_batches[number]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the replaced images while the batch is on the host."""
        batch = dict(batch)
        if (drawn := batch.pop("replaced", None)) is not None:
            self.replaced += int((drawn >= 0).sum())
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Training images: crop and flip those cached on the device, normalise, erase.  Test images stay as they are."""
        batch = dict(batch)
        if "is_query" in batch:  # of a test set
            batch.pop("erased", None)  # one that was kept has none
            if (batches := self._test_batches.get(dataloader_idx)) is not None and self._keeps(batches, batch):
                batches.keep(batch)
            return batch
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        if (view := batch.pop("view", None)) is not None:
            batch["image"] = show_on_device(self._device_images(view.device), view, self.train_transform.image_size)
        # Reordered while it is 8-bit: a quarter of the bytes.
        batch["image"] = batch["image"].contiguous(memory_format=order)
        if self.normalizes:
            batch["image"] = normalize(batch["image"], batch.pop("erased"))
        return batch

    def _test_set(self, number: int) -> tuple[Manifest, EvaluationTransform]:
        return (self.manifest, self.test_transform) if number == 0 else self.further_tests[number - 1]

    def _test_images(self, number: int = 0) -> ImageDataset:
        """The images of a test set, with their cache; made at the first call."""
        if number in self._test_datasets:
            return self._test_datasets[number]
        whole, transform = self._test_set(number)
        manifest = whole.with_rows(test_rows(whole))
        dataset = ImageDataset(
            manifest,
            transform,
            seed=self.seed,
            columns={"is_query": manifest.table["split"].isin(("query", "test")).to_numpy()},
            decode_margin=self.reading.decode_margin,
        )
        dataset.packed = self._packed(dataset, manifest, "test")
        self._test_datasets[number] = dataset
        return dataset

    def _packed_sets(self, dataset: ImageDataset) -> PackedImages | JoinedImages | None:
        """The cache of the training images: of several data sets those that each has by itself."""
        begin, found = 0, []
        for part in self.training_sets.parts:
            packed = self._packed(dataset, part, "train", begin)
            if packed is None:
                return None
            begin += len(part.table)
            found.append(packed)
        return found[0] if len(found) == 1 else JoinedImages(found)

    def _packed(self, dataset: ImageDataset, manifest: Manifest, part: str, begin: int = 0) -> PackedImages | None:
        """The cache of the rows of `dataset` from `begin` on, which are those of `manifest`."""
        if self.cache == "none":
            return None
        try:
            return open_or_pack(
                Path(self.reading.cache_root),
                f"{manifest.name}-{part}",
                manifest,
                dataset.transform,
                lambda row: dataset.prepare(begin + row),
                decode_margin=self.reading.decode_margin,
                keep_going=dataset.replace,
            )
        except CacheError as error:
            if self.reading.cache != "auto":
                raise
            self._choose("none", str(error))
            return None

    def _choose(self, cache: str, reason: str) -> None:
        self._cache = cache
        self._say(f"loading.cache=auto: {cache} ({reason})")

    def _say(self, line: str) -> None:
        if self._rank()[0] == 0:
            print(line, flush=True)

    def _fill_device(self) -> bool:
        """Whether the training images are on the device; copies them there as soon as the trainer knows it."""
        if self.cache == "device" and self.trainer is not None:
            try:
                self._device_images(self.trainer.strategy.root_device)
            except CacheError as error:
                if self.reading.cache != "auto":
                    raise
                self._choose("packed", str(error))
        return self.cache == "device"

    def _keeps(self, batches: PackedBatches, batch: Batch) -> bool:
        """Whether test images stay on the device: said once, when their first batch is there."""
        if batches.keeps is None:
            device = batch["image"].device
            free = free_memory(device) if self.cache == "device" else None
            batches.keeps = free is not None and batches.nbytes * SHARE <= free
            if free is not None and not batches.keeps:
                self._say(
                    f"the {len(batches.dataset):,} test images stay in the packed cache: they take "
                    f"{batches.nbytes / 2**20:,.0f} MiB, more than a quarter of the free memory on {device}"
                )
        return batches.keeps

    def _device_images(self, device: torch.device) -> Tensor:
        """All prepared training images on the device, copied there at the first call.  Raises CacheError."""
        if self._on_device is None or self._on_device.device != device:
            assert self._train_images is not None  # the batches come from `train_dataloader`, which opens them
            images = self._train_images.images
            free = free_memory(device)
            shown = f"the {len(images):,} training images take {images.nbytes / 2**20:,.0f} MiB, more than"
            if free is not None and images.nbytes > free // 2:
                raise CacheError(f"{shown} half of the free memory on {device}: use loading.cache=packed")
            try:
                self._on_device = torch.empty(images.shape, dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError as error:
                raise CacheError(f"{shown} {device} has room for: use loading.cache=packed") from error
            for begin in range(0, len(images), 1024):  # in portions, so that the host does not hold them all
                portion = torch.from_numpy(np.array(images[begin : begin + 1024]))
                self._on_device[begin : begin + len(portion)] = portion
        return self._on_device

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches_done(self) -> int:
        """Completed batches of the epoch that the trainer resumes; 0 if it does not resume one."""
        if self.trainer is None or not self.trainer.fit_loop.epoch_loop.restarting:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _note_wait(self, seconds: float) -> None:
        self.waited += seconds

    def _worker_settings(self) -> dict[str, Any]:
        """PyTorch gives each worker process one computing thread, so workers do not compete for the cores."""
        return {
            "num_workers": self.num_workers,
            "collate_fn": _as_it_is,
            "prefetch_factor": 4 if self.num_workers else None,
            "pin_memory": torch.cuda.is_available(),
        }


#: What gives the batches of a test set.
TestBatches = DataLoader[Batch] | PackedBatches


class _TrainLoader(WorkerLoader[Batch]):
    """A loader that draws nothing before its first batch is requested, and that can resume within an epoch.

    Lightning makes the first iterator before it tells the sampler the epoch.  Workers would then prefetch the batches
    of epoch 0 in a run that resumes at a later one.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: IdentityBatchSampler,
        batches_done: Callable[[], int],
        note_wait: Callable[[float], None],
        **settings: Any,
    ) -> None:
        super().__init__(dataset, batch_sampler=sampler, **settings)
        self._sampler = sampler
        self._batches_done = batches_done
        self._note_wait = note_wait

    def __iter__(self) -> Any:  # a generator of batches; DataLoader declares a private class
        self._sampler.first_batch = self._batches_done()
        began = time.perf_counter()
        batches = super().__iter__()
        while (batch := next(batches, None)) is not None:
            self._note_wait(time.perf_counter() - began)
            yield batch
            began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Empty: the trainer stores the position in the epoch.  Lightning resumes within an epoch only if this method exists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore; see `state_dict`."""


def _as_it_is(batch: Batch) -> Batch:
    """The batch: `ImageDataset` returns whole batches."""
    return batch


def test_rows(manifest: Manifest) -> pd.DataFrame:
    """The test images of a manifest in the order in which they are evaluated: queries, then the rest of the gallery."""
    split = manifest.table["split"]
    query, gallery = manifest.table[split.isin(("query", "test"))], manifest.table[split == "gallery"]
    return pd.concat([query, gallery], ignore_index=True)
