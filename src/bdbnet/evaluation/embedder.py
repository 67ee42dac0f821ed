"""The embedder: a network, the preprocessing of its images and the scaling of its embeddings, as one thing to use and ship."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from tqdm import tqdm

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.datasets.checking import usable_cores
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.inputs import ImageFiles, InputError, as_pixels, boxes_in, only_image
from bdbnet.evaluation.saved import save_embedder
from bdbnet.loading import Preprocessing, default_workers
from bdbnet.loading.loader import WorkerLoader
from bdbnet.loading.sources import find_images
from bdbnet.models import EmbeddingNetwork
from bdbnet.renamed import as_first_written, first_module
from bdbnet.settings import is_whole

#: Scalings of the concatenated embedding before distances; the paper's is raw.
NORMALIZATIONS = ("none", "joint", "per_branch")
PRECISIONS = ("32-true", "bf16-mixed")

_BAR_AFTER = 2.0  # seconds of work from which on a progress bar is shown


class EmbeddingError(ValueError):
    """Embeddings that can't be used, such as NaN, or a comparison that needs what is not there; the message says what."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a network's output becomes the embedding that is compared.

    Attributes:
        precision: arithmetic of the network, `32-true`, or `bf16-mixed` for speed.
        normalize: scaling to unit length: `none`, `joint` (the whole embedding) or `per_branch`.
        flip: the mean embedding of an image and its mirror image.
        scales: the mean embedding of an image resized by these factors.

    Raises:
        ConfigError: a value that can't be used; the message names the key of a configuration.
    """

    precision: str = "32-true"
    normalize: str = "none"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ConfigError(f"evaluation.normalize={self.normalize!r}: choose one of {', '.join(NORMALIZATIONS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"evaluation.precision={self.precision!r}: choose 32-true or bf16-mixed")
        if not isinstance(self.flip, bool):
            raise ConfigError(f"evaluation.flip={self.flip}: give true or false")
        fine = isinstance(self.scales, tuple) and all(
            isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf
            for scale in self.scales
        )
        if not fine or not self.scales:
            shown = [*self.scales] if isinstance(self.scales, Sequence) else self.scales
            raise ConfigError(f"evaluation.scales={shown}: give a list of factors above 0, such as [1,1.5], or null")
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))


@dataclass(frozen=True)
class Origin:
    """Where a network comes from.

    Attributes:
        source: file, folder or name that it was loaded from, as given.
        network: groups `model`, `backbone` and `dropping` of the configuration that builds it; empty for a network that
            its source alone names.
        trained_with: configuration of its training; None where the source does not say.
        metrics, protocol: what was measured of it, and how, where the source says so.
        provenance: what else is known of the weights: `epochs` that were trained; of a file that bdbnet did not write its
            `program` and what was `assumed` of it, sentences; of a network of the zoo `trained_on`, `terms` and `published`
            (metric -> percent).
    """

    source: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    trained_with: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] | None = None
    protocol: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


class Embedded(NamedTuple):
    """Embeddings (n, D) float32 of the images in `rows` (n,), and what of the batch could not be read: row -> reason."""

    rows: np.ndarray
    embeddings: np.ndarray
    unreadable: dict[int, str]


class Embedder:
    """A network with everything that decides an embedding.  `bdbnet.load` makes one.

    It may be used by several threads at once. Its network shares memory with whoever made it: while training it follows
    the training.

    Args:
        network: in evaluation mode before anything is embedded.
        preprocessing: of every image.
        settings: scaling and views.
        distance: by which its embeddings are meant to be compared, `euclidean` or `cosine`.
        threshold: pairs nearer than this show the same identity; None: that of the calibration, or not known.
        calibration: what the threshold is worth, and for which distance and settings; `python -m bdbnet.calibrate` makes one.
        origin: where the network comes from.
        channels_last: memory format of the images; faster on CPUs, no slower elsewhere.
    """

    def __init__(
        self,
        network: EmbeddingNetwork,
        preprocessing: Preprocessing,
        settings: EmbeddingSettings | None = None,
        *,
        distance: str = "euclidean",
        threshold: float | None = None,
        calibration: Calibration | None = None,
        origin: Origin | None = None,
        channels_last: bool = True,
    ) -> None:
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be euclidean or cosine, got {distance!r}")
        self.network = network
        self.preprocessing = preprocessing
        self.settings = settings or EmbeddingSettings()
        self.distance_name = distance
        self.threshold = calibration.threshold if threshold is None and calibration is not None else threshold
        self.calibration = calibration
        self.origin = origin or Origin()
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.preprocessing.image_size))
        return (
            f"Embedder({type(self.network).__name__} from {self.origin.source or 'memory'}: images of {size} pixels -> "
            f"{self.dimensions} numbers, on {self.device})"
        )

    @property
    def dimensions(self) -> int:
        """Length D of an embedding."""
        return self.network.embedding_dim

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Embedder":
        """The same embedder, with its network moved to another device."""
        self.network.to(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 is meant, in this whole process
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the network's parameters and buffers and of every setting that changes an embedding.

        Embeddings of two embedders may be compared if it is equal.
        """
        preprocessing, settings = self.preprocessing, self.settings
        record = {
            "dimensions": self.dimensions, "image_size": preprocessing.image_size,
            "pad_to_square": preprocessing.pad_to_square, "decode_margin": preprocessing.decode_margin,
            **asdict(settings), **preprocessing.unusual(),
        }  # fmt: skip
        # Strides and pooling have no parameters. What only training looks at changes no embedding.
        # As first written: a renamed class makes the same embeddings.
        parts = {name: as_first_written(part) for name, part in self.origin.network.items() if name != "dropping"}
        parts.get("backbone", {}).pop("weights", None)
        record["network"] = parts
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
        for name, tensor in sorted((first_module(key), tensor) for key, tensor in self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # Embedding

    def embed(
        self,
        images: Any,
        *,
        batch_size: int = 128,
        num_workers: int | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Embeddings (N, D) float32 of N images, in their order; memory grows with `batch_size`, not with N.

        Args:
            images: a list (or any iterable) of image files, PIL images, uint8 RGB arrays (H, W, 3) of any sizes, or uint8
                tensors (3, H, W), also mixed; one of these alone; a uint8 array (N, H, W, 3) or tensor (N, 3, H, W); a
                `Manifest`; or the path of a folder (all images in it and below, by path) or of a table, see
                `find_images`. Arrays in the order BGR, as OpenCV reads files, can't be told from RGB: reverse them with
                `array[..., ::-1]`.
            batch_size: images that the network sees at once.
            num_workers: processes that decode the files of a manifest, folder or table; None: none for a single batch, else
                as many as `default_workers` says. Files in a list are decoded by threads.
            progress: show a progress bar; None: where the work takes more than two seconds, in a terminal.

        Raises:
            InputError: not an image as above; the message says which one and what to do.
            ImageError, DatasetError: a file that can't be read, a folder without images.
            EmbeddingError: the network gives NaN or infinity for an image.
        """
        if not is_whole(batch_size, 1):
            raise InputError(f"batch_size={batch_size}: give a whole number of at least 1")
        manifest = images if isinstance(images, Manifest) else self._listed(images)
        if manifest is not None:
            count = len(manifest.table)
            batches = [range(count)[first : first + batch_size] for first in range(0, count, batch_size)]
            workers = 0 if num_workers is None and len(batches) == 1 else num_workers
            parts = (part.embeddings for part in self.embed_files(manifest, batches, num_workers=workers))
            return self._joined(parts, count, progress)
        single = only_image(images)
        items: Iterable[Any] = [images] if single else images
        if not isinstance(items, Iterable) or isinstance(items, Mapping):
            raise InputError(
                f"images: {type(images).__name__}; expected images, a list of them, a manifest, a folder or a table"
            )
        if isinstance(images, Tensor) and not single and images.ndim != 4:
            raise InputError(f"tensor of shape {tuple(images.shape)}: expected (N, 3, H, W) or (3, H, W), uint8")
        total = len(items) if isinstance(items, Sized) else None
        return self._joined(self._embed_stream(items, batch_size), total, progress)

    def embed_boxes(self, frame: np.ndarray, xyxy: Any, *, batch_size: int = 128) -> np.ndarray:
        """Embeddings (N, D) float32 of the crops of a video frame, as trackers ask for them.

        Args:
            frame: uint8 RGB (H, W, 3).
            xyxy: boxes (N, 4) in pixels, left, top, right and bottom, right and bottom excluded. Parts outside of the frame
                are cut off; fractions are widened to whole pixels.
            batch_size: crops that the network sees at once.

        Returns:
            (N, D); (0, D) where there are no boxes.

        Raises:
            InputError: not such a frame or boxes, a box with NaN, without area or outside of the frame.
        """
        pixels = as_pixels(frame, "frame")
        boxes = boxes_in(pixels.shape[0], pixels.shape[1], xyxy)
        crops = (pixels[top:bottom, left:right] for left, top, right, bottom in boxes)
        return self._joined(self._embed_stream(crops, batch_size), len(boxes), False)

    def embed_files(
        self,
        manifest: Manifest,
        batches: Sequence[Sequence[int]],
        *,
        num_workers: int | None = None,
        local_ranks: int = 1,
        skip_unreadable: bool = False,
    ) -> Iterator[Embedded]:
        """Embed the rows of a manifest in each of `batches`, in order, while processes decode the next ones.

        Args:
            num_workers: processes; None: `default_workers(local_ranks)`.
            local_ranks: processes on this machine that embed at the same time.
            skip_unreadable: leave out images that can't be read, and say why in `Embedded.unreadable`.

        Raises:
            ImageError: an image can't be read.
            EmbeddingError: the network gives NaN or infinity for an image.
        """
        for rows, images, unreadable in self.prepared_files(
            manifest, batches, num_workers=num_workers, local_ranks=local_ranks, skip_unreadable=skip_unreadable
        ):
            embeddings = self._to_numpy(images, [manifest.paths[row] for row in rows.tolist()])
            yield Embedded(rows.numpy(), embeddings, unreadable)

    def prepared_files(
        self,
        manifest: Manifest,
        batches: Sequence[Sequence[int]],
        *,
        num_workers: int | None = None,
        local_ranks: int = 1,
        skip_unreadable: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor, dict[int, str]]]:
        """The images that `embed_files` embeds, as `embed_prepared` takes them: rows (n,), images, and what could not be read."""
        workers = min(default_workers(local_ranks) if num_workers is None else num_workers, len(batches))
        yield from WorkerLoader(
            ImageFiles(manifest, self.preprocessing, skip_unreadable=skip_unreadable),
            batch_sampler=cast(Any, batches),
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
        )

    @torch.no_grad()
    def embed_prepared(self, images: Tensor) -> Tensor:
        """Embeddings (N, D) float32 on the network's device of prepared images, uint8 RGB (N, 3, H, W) of `image_size`.

        With `flip` or `scales` the raw embeddings of all views are averaged first, then scaled as `normalize` says.
        """
        settings, device = self.settings, self.device
        # Reordered while it is 8-bit: a quarter of the bytes.
        pixels = images.to(device, non_blocking=True).contiguous(memory_format=self._memory_format)
        inputs = self.preprocessing.normalize(pixels).to(self.network.dtype)
        views = [view for scale in settings.scales for view in views_of(inputs, scale, settings.flip)]
        mixed = settings.precision == "bf16-mixed"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            embeddings = [self.network.embed(view).float() for view in views]
        mean = embeddings[0] if len(views) == 1 else torch.stack(embeddings).mean(0)
        return scale_embeddings(mean, self.network.branch_dims, settings.normalize)

    # Looking

    def prepare(self, images: Any) -> Tensor:
        """A list of images as `embed` takes them, as what the network's preprocessing makes of them: uint8 RGB (N, 3, H, W).

        Raises:
            InputError, ImageError: see `embed`; no image.
        """
        items = [images] if only_image(images) else [*images]
        if not items:
            raise InputError("no image is given")
        with ThreadPoolExecutor(max(1, usable_cores() // 2)) as threads:
            ready = [pixels for _, pixels in threads.map(self._prepared, range(len(items)), items)]
        return torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2)

    def maps(
        self,
        images: Any,
        kind: str = "energy",
        *,
        identities: Sequence[int] | None = None,
        method: str = "gradcam",
        tokens: bool = False,
    ) -> dict[str, np.ndarray]:
        """Where the network looks in N images: branch -> map (N, h, w) float32, not negative.

        Args:
            images: a list of images as `embed` takes them; a few, all of them are in memory at once.
            kind: `energy` (squared activations) or `class` (what speaks for an identity of the training set).
            identities, method: of class maps, see `evaluation.maps.class_maps`.
            tokens: of a transformer without a feature map, use the tokens that lie in the image.

        Raises:
            MapError: a map that the network can't give.
        """
        from bdbnet.evaluation.maps import MapError, class_maps, energy_maps

        prepared = self.prepare(images)
        if kind == "energy":
            return energy_maps(self, prepared, tokens=tokens)
        if kind == "class":
            return class_maps(self, prepared, identities, method=method, tokens=tokens)[0]
        raise MapError(f"kind={kind!r}: choose energy or class; similarity_maps compares pairs of images")

    def similarity_maps(
        self, a: Any, b: Any, *, tokens: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Where image i of `a` and image i of `b` agree: branch -> map (N, h, w) float32, for `a` and for `b`.

        See `evaluation.maps.similarity_maps`.
        """
        from bdbnet.evaluation.maps import similarity_maps

        return similarity_maps(self, self.prepare(a), self.prepare(b), tokens=tokens)

    # Comparing

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distances (N, M) float64 of embeddings (N, D) to embeddings (M, D), by the embedder's own distance.

        One embedding (D,) on either side gives (M,) or (N,), on both sides a number. They come from differences in float64,
        and so are accurate near zero.

        Raises:
            InputError: arrays of another length of embedding.
        """
        left, right = (np.asarray(side.detach().cpu() if isinstance(side, Tensor) else side) for side in (a, b))
        for name, side in (("a", left), ("b", right)):
            if side.ndim not in (1, 2) or side.shape[-1] != self.dimensions:
                raise InputError(f"{name} has shape {side.shape}: expected embeddings (N, {self.dimensions})")
        if self.distance_name == "cosine" and not (left.any(axis=-1).all() and right.any(axis=-1).all()):
            raise InputError("an embedding of zeros has no direction for the cosine distance")
        found = cdist(
            np.atleast_2d(left).astype(np.float64), np.atleast_2d(right).astype(np.float64), self.distance_name
        )
        return np.asarray(found[0 if left.ndim == 1 else slice(None), 0 if right.ndim == 1 else slice(None)])

    def same(self, a: np.ndarray, b: np.ndarray, *, threshold: float | None = None) -> np.ndarray:
        """Whether embeddings show the same identity: bool (N, M), true where `distance(a, b)` is below the threshold.

        Raises:
            EmbeddingError: no threshold is known and none is given, or the embedder's own was calibrated for another distance or
                other settings than it has now.
        """
        limit = self.threshold if threshold is None else threshold
        if limit is None:
            raise EmbeddingError(
                "no threshold is known for this embedder: python -m bdbnet.calibrate finds one for the false match rate that you "
                "accept, or give same(a, b, threshold=...)"
            )
        if threshold is None and self.calibration is not None and limit == self.calibration.threshold:
            self._fitting(self.calibration)
        return self.distance(a, b) < limit

    def same_probability(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Probability (N, M) that embeddings show the same identity, by the calibration's curve; for its `prior`, as a rule 0.5.

        Raises:
            EmbeddingError: the embedder is not calibrated, or was for another distance or other settings than it has now.
        """
        if self.calibration is None:
            raise EmbeddingError("this embedder is not calibrated: python -m bdbnet.calibrate makes a calibrated one")
        return self._fitting(self.calibration).probability(self.distance(a, b))

    @property
    def made_for(self) -> dict[str, Any]:
        """What a threshold of its distances holds for: a distance, and every setting of preprocessing and scaling."""
        return {
            "distance": self.distance_name, "image_size": list(self.preprocessing.image_size),
            "pad_to_square": self.preprocessing.pad_to_square, "decode_margin": self.preprocessing.decode_margin,
            **asdict(self.settings), "scales": list(self.settings.scales), **self.preprocessing.unusual(),
        }  # fmt: skip

    def _fitting(self, calibration: Calibration) -> Calibration:
        """Raise EmbeddingError where a calibration is for something else than this embedder is now."""
        if apart := calibration.differences(self.made_for):
            raise EmbeddingError(
                f"the threshold {calibration.threshold:.4g} was calibrated for {'; '.join(apart)}: calibrate again with "
                "python -m bdbnet.calibrate, or give same(a, b, threshold=...)"
            )
        return calibration

    # Keeping

    def save(self, folder: str | Path) -> Path:
        """Write the embedder into a folder that `bdbnet.load` reads; see `evaluation.saved`."""
        return save_embedder(self, folder)

    def push_to_hub(
        self, name: str, *, private: bool = True, token: str | None = None, message: str = "Upload an embedder"
    ) -> str:
        """Upload the embedder, as `save` writes it, to a model hub; `bdbnet.load("hub:user/name")` reads it.  Returns its address.

        Args:
            name: `user/name`, or `user/name@revision` for a branch that is there.
            private: whether only you can see it; people whose data trained it may have a say in that.
            token: of your account; None: the one you logged in with.

        Raises:
            HubError: huggingface_hub is not installed, or the hub refuses.
        """
        from bdbnet.evaluation.hub import push_to_hub

        return push_to_hub(self, name, private=private, token=token, message=message)

    def export(
        self,
        output: str | Path,
        *,
        format: str | None = None,
        input: str = "floats",
        source_size: tuple[int, int] | None = None,
        precision: str = "fp32",
        opset: int = 20,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write a file that ONNX Runtime, OpenVINO or `torch.export.load` runs without this package, once it is found to compute
        the same; returns the report that lies beside it. See `evaluation.exporting` for arguments and errors; `format=None`
        follows from the suffix: .onnx, .xml (OpenVINO) or .pt2.
        """
        from bdbnet.evaluation.exporting import ExportSettings, export_embedder, format_of

        settings = ExportSettings(format or format_of(output), input, source_size, precision, opset)
        return export_embedder(self, output, settings, overwrite=overwrite)

    # Inside

    def _listed(self, images: Any) -> Manifest | None:
        """The images of a folder or a table."""
        if isinstance(images, str | Path):
            path = Path(images).expanduser()
            if path.is_dir() or path.suffix.lower() in (".csv", ".parquet", ".pq"):
                return find_images(images).manifest
        return None

    def _embed_stream(self, items: Iterable[Any], batch_size: int) -> Iterator[np.ndarray]:
        """Embed images of any kind, batch by batch, while threads prepare the next ones."""
        numbered = enumerate(items)
        # Decoders and resizing let go of Python's lock. Preparing costs little beside the network: half of the cores.
        with ThreadPoolExecutor(max(1, usable_cores() // 2)) as threads:

            def submit() -> list[Future[tuple[str, np.ndarray]]]:
                return [threads.submit(self._prepared, *item) for item in islice(numbered, batch_size)]

            ahead = submit()
            while ahead:
                batch, ahead = ahead, submit()
                yield self._embed_pixels([future.result() for future in batch])

    def _prepared(self, number: int, item: Any) -> tuple[str, np.ndarray]:
        name = f"images[{number}]"
        if isinstance(item, str | Path):
            return str(item), self.preprocessing.read(os.fspath(Path(item).expanduser()))
        return name, self.preprocessing.prepare(as_pixels(item, name))

    def _embed_pixels(self, ready: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        images = torch.from_numpy(np.stack([pixels for _, pixels in ready])).permute(0, 3, 1, 2)
        return self._to_numpy(images, [name for name, _ in ready])

    @torch.inference_mode()
    def _to_numpy(self, images: Tensor, names: Sequence[str]) -> np.ndarray:
        if len(images) == 0:
            return np.empty((0, self.dimensions), np.float32)
        embeddings: np.ndarray = self.embed_prepared(images).cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise EmbeddingError(
                f"the embedding of {names[bad[0]]} holds NaN or infinity (and so do those of {len(bad) - 1} more images of "
                f"its batch): the weights of {self.origin.source or 'this network'} or precision={self.settings.precision} "
                "can't be used"
            )
        return embeddings

    def _joined(self, parts: Iterable[np.ndarray], total: int | None, progress: bool | None) -> np.ndarray:
        """All embeddings, under a progress bar."""
        hidden = None if progress is None else not progress
        found = np.empty((total or 0, self.dimensions), np.float32)
        more: list[np.ndarray] = []
        done = 0
        delay = _BAR_AFTER if progress is None else 0
        with tqdm(total=total, desc="embedding", unit=" images", leave=False, disable=hidden, delay=delay) as bar:
            for part in parts:
                if total is None:
                    more.append(part)
                else:
                    found[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))
        return np.concatenate(more) if more else found


def scale_embeddings(embeddings: Tensor, dims: Iterable[int], normalize: str) -> Tensor:
    """Scale (N, D) embeddings made of parts of `dims` columns: not at all, to unit length, or each part to unit length."""
    if normalize == "none":
        return embeddings
    parts = [embeddings] if normalize == "joint" else torch.split(embeddings, list(dims), dim=1)
    return torch.cat([nn.functional.normalize(part) for part in parts], dim=1)


def views_of(images: Tensor, scale: float, flip: bool) -> list[Tensor]:
    """The images (N, 3, H, W) at a scale, and with `flip` their mirror images too."""
    if scale != 1:
        size = [max(1, round(scale * side)) for side in images.shape[2:]]
        images = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return [images, images.flip(3)] if flip else [images]


def _as_it_is(batch: Any) -> Any:
    """`ImageFiles` gives whole batches."""
    return batch
