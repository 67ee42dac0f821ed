"""A trained network that turns images into the embeddings that `bdbnet.evaluate` evaluates, through the same code."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bdbnet.config import ConfigError, config_dir
from bdbnet.gallery.sources import Images
from bdbnet.gallery.store import ModelStamp, check_same_model
from bdbnet.loading import EvaluationTransform, ImageDataset, ImageError, default_workers, normalize
from bdbnet.loading.samples import Batch
from bdbnet.models import load_network
from bdbnet.renamed import first_name
from bdbnet.training.module import ReIDModule
from bdbnet.training.runs import architecture_of
from bdbnet.training.setup import build_module, build_network, check_evaluation, check_views

ACCELERATORS = ("auto", "cpu", "gpu")


class EmbeddingError(ValueError):
    """An image without a usable embedding; the message names it."""


class Embedded(NamedTuple):
    """Embeddings (n, D) float32 of the images in `rows` (n,), and what of the batch could not be read: row -> reason."""

    rows: np.ndarray
    embeddings: np.ndarray
    unreadable: dict[int, str]


class Embedder:
    """A network with the settings of a stamp, on a device.

    Attributes:
        module: the same that evaluates.
        stamp: what its embeddings are stamped with.
        device: where it computes.
    """

    def __init__(self, module: ReIDModule, stamp: ModelStamp, device: torch.device) -> None:
        self.module = module.to(device).eval()
        self.stamp = stamp
        self.device = device
        self._transform = EvaluationTransform(stamp.image_size, pad_to_square=stamp.pad_to_square)

    @torch.inference_mode()
    def embed(
        self,
        images: Images,
        batches: Sequence[Sequence[int]],
        *,
        num_workers: int | None = None,
        local_ranks: int = 1,
        skip_unreadable: bool = False,
    ) -> Iterator[Embedded]:
        """Embed the rows in each of `batches`, in order, while `num_workers` processes decode the next ones.

        Args:
            num_workers: None: `default_workers(local_ranks)`.
            local_ranks: processes on this machine that embed at the same time.
            skip_unreadable: go on without images that can't be read.

        Raises:
            ImageError: an image can't be read.
            EmbeddingError: the network gives NaN or infinity for an image.
        """
        dataset = ImageDataset(images.manifest, self._transform, decode_margin=self.stamp.decode_margin)
        workers = default_workers(local_ranks) if num_workers is None else num_workers
        loader = DataLoader(
            _Readable(dataset, skip=skip_unreadable),
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=min(workers, len(batches)),
            prefetch_factor=4 if min(workers, len(batches)) else None,
            pin_memory=self.device.type == "cuda",
        )
        for batch, unreadable in loader:
            if batch is None:
                yield Embedded(np.empty(0, np.int64), np.empty((0, self.stamp.dimensions), np.float32), unreadable)
                continue
            rows = batch["index"].numpy()
            embeddings = self._embed(batch)
            bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
            if len(bad):
                raise EmbeddingError(
                    f"the embedding of {images.manifest.paths[rows[bad[0]]]} holds NaN or infinity (and so do those of "
                    f"{len(bad) - 1} more images of its batch): the weights of {self.stamp.checkpoint} or evaluation.precision="
                    f"{self.stamp.precision} can't be used"
                )
            yield Embedded(rows, embeddings, unreadable)

    def _embed(self, batch: Batch) -> np.ndarray:
        # As `ReIDDataModule` brings a batch to the device: reordered while it is 8-bit.
        images = batch["image"].to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        embeddings: np.ndarray = self.module.embed(normalize(images, batch["erased"])).cpu().numpy()
        return embeddings


class _Readable(Dataset[tuple[Batch | None, dict[int, str]]]):
    """The batches of a dataset, and with `skip` without the images that can't be read."""

    def __init__(self, dataset: ImageDataset, *, skip: bool) -> None:
        self._dataset = dataset
        self._skip = skip

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, rows: list[int]) -> tuple[Batch | None, dict[int, str]]:
        try:
            return self._dataset.__getitems__(rows), {}
        except ImageError:
            if not self._skip:
                raise
        reasons = {row: reason for row in rows if (reason := self._problem(row)) is not None}
        rest = [row for row in rows if row not in reasons]
        return self._dataset.__getitems__(rest) if rest else None, reasons

    def _problem(self, row: int) -> str | None:
        try:
            self._dataset.prepare(row)
        except ImageError as error:
            return str(error)
        return None


def build_embedder(config: DictConfig, *, local_rank: int = 0) -> Embedder:
    """The network of `config.checkpoint` (bare weights: of `config.model` and `config.backbone`), for the command's settings.

    The size of the images is `config.image_size`, else that of the checkpoint's own test images, else the dataset's.

    Raises:
        ConfigError: a setting that can't be used or is missing; names the key.
        CheckpointError: see `load_network`.
    """
    check_views(config.evaluation)
    path = Path(config.checkpoint).expanduser()
    origin = architecture_of(config, path)
    dataset, trained = config.get("dataset"), (origin.trained_with or {}).get("dataset", {})
    size = config.image_size or origin.test_size or (dataset.test_size if dataset is not None else None)
    if size is None:
        raise ConfigError(
            f"image_size= is missing: {path} is a file of bare weights, which do not say for which images they are. Give "
            "image_size=[height,width] in pixels, such as image_size=[256,128]."
        )
    if not isinstance(size, int) and len(size) != 2:
        raise ConfigError(f"image_size={size}: give [height,width] in pixels")
    padded = config.pad_to_square
    if padded is None:
        padded = bool(trained.get("pad_test") if dataset is None else dataset.pad_test)
    margin = config.loading.decode_margin
    if margin is not None and not (isinstance(margin, int | float) and margin >= 1):
        raise ConfigError(f"loading.decode_margin={margin}: give a number of at least 1, or null")
    evaluation = config.evaluation
    network = {
        name: OmegaConf.to_container(origin.config[name], resolve=True) for name in _PARTS if name in origin.config
    }
    stamp = ModelStamp(
        fingerprint="",
        checkpoint=str(config.checkpoint),
        network=network,
        dimensions=0,
        image_size=tuple(map(int, (size, size) if isinstance(size, int) else size)),  # type: ignore[arg-type]
        pad_to_square=padded,
        decode_margin=None if margin is None else float(margin),
        precision=evaluation.precision,
        normalize=evaluation.normalize,
        flip=evaluation.flip,
        scales=tuple(map(float, evaluation.scales or (1.0,))),
    )
    return _embedder(stamp, path, config.accelerator, local_rank, ours_only=not origin.typed)


def embedder_of(stamp: ModelStamp, *, checkpoint: str | Path | None = None, accelerator: str = "auto") -> Embedder:
    """The embedder that made the embeddings with this stamp, so that more images can be compared with them.

    Args:
        checkpoint: file of the weights where it is not where the stamp says.

    Raises:
        StoreError: the file now holds other weights.
        CheckpointError: the file is not there or can't be used.
    """
    path = Path(stamp.checkpoint if checkpoint is None else checkpoint).expanduser()
    embedder = _embedder(replace(stamp, checkpoint=str(path)), path, accelerator, 0)
    check_same_model(stamp, embedder.stamp)
    return embedder


# What a network is built from.
_PARTS = ("model", "backbone", "dropping")


def _embedder(stamp: ModelStamp, path: Path, accelerator: str, local_rank: int, *, ours_only: bool = True) -> Embedder:
    """The embedder of a stamp that lacks fingerprint and dimensions; ``ours_only`` unless the user named the network."""
    device = _device(accelerator, local_rank)
    network, _ = build_network(OmegaConf.create(dict(stamp.network)), num_classes=0, ours_only=ours_only)
    load_network(network, path, classifiers="drop")
    network.to(memory_format=torch.channels_last)
    try:
        EvaluationTransform(stamp.image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    stamp = replace(stamp, dimensions=network.embedding_dim)
    stamp = replace(stamp, fingerprint=_fingerprint(network, stamp))
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # as `build_trainer`: float32 is meant
    return Embedder(_module(network, stamp), stamp, device)


def _module(network: Any, stamp: ModelStamp) -> ReIDModule:
    """The module that evaluates with the settings of a stamp; what it would evaluate by plays no part."""
    config = OmegaConf.create({"dataset": {"protocol": "retrieval"}})
    config.evaluation = OmegaConf.load(config_dir() / "evaluation" / "default.yaml")
    config.evaluation.update(
        precision=stamp.precision, normalize=stamp.normalize, flip=stamp.flip, scales=list(stamp.scales)
    )
    check_evaluation(config)
    return build_module(config, network, 0, train=False)


def _fingerprint(network: nn.Module, stamp: ModelStamp) -> str:
    settings = {
        key: value for key, value in asdict(stamp).items() if key not in ("fingerprint", "checkpoint", "network")
    }
    # Strides and pooling have no parameters. What only training looks at changes no embedding.
    parts = {name: dict(part) for name, part in stamp.network.items() if name != "dropping"}
    parts.get("backbone", {}).pop("weights", None)
    for part in parts.values():  # under its first name: a renamed class makes the same embeddings
        part["_target_"] = first_name(part["_target_"])
    settings["network"] = parts
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _device(accelerator: str, local_rank: int) -> torch.device:
    if accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator={accelerator}: choose one of {', '.join(ACCELERATORS)}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator=gpu: PyTorch finds no GPU here; use accelerator=auto or cpu")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _as_it_is(batch: Any) -> Any:
    """`_Readable` gives whole batches."""
    return batch
