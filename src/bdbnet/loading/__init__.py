"""Loading: samplers, transforms, caches and the data module, from a manifest to normalised batches on the device."""

import importlib
from typing import TYPE_CHECKING, Any

from bdbnet.datasets.images import ImageError, read_image
from bdbnet.loading.loader import default_workers
from bdbnet.loading.packed import CacheError, PackedImages, open_or_pack
from bdbnet.loading.preprocessing import Preprocessing
from bdbnet.loading.sampler import IdentityBatchSampler, SamplerError
from bdbnet.loading.samples import Draw, ImageDataset, show_on_device
from bdbnet.loading.transforms import (
    PROTOCOLS,
    Cutout,
    EvaluationTransform,
    RandomErasing,
    TrainTransform,
    View,
    normalize,
    transforms_for,
)

if TYPE_CHECKING:
    from bdbnet.loading.datamodule import Reading, ReIDDataModule, Sampling
    from bdbnet.loading.sources import find_images

__all__ = [
    "PROTOCOLS",
    "CacheError",
    "Cutout",
    "Draw",
    "EvaluationTransform",
    "IdentityBatchSampler",
    "ImageDataset",
    "ImageError",
    "PackedImages",
    "Preprocessing",
    "RandomErasing",
    "ReIDDataModule",
    "Reading",
    "SamplerError",
    "Sampling",
    "TrainTransform",
    "View",
    "default_workers",
    "find_images",
    "normalize",
    "open_or_pack",
    "read_image",
    "show_on_device",
    "transforms_for",
]

# Imported when first used: Lightning takes seconds, and who embeds or searches does not need it.
_LATER = {**dict.fromkeys(("ReIDDataModule", "Reading", "Sampling"), "datamodule"), "find_images": "sources"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"bdbnet.loading.{_LATER[name]}"), name)
