"""From a manifest to normalised batches on the device."""

from bdbnet.loading.datamodule import ReIDDataModule, default_workers
from bdbnet.loading.identity_sampler import IdentityBatchSampler, SamplerError
from bdbnet.loading.images import Draw, ImageDataset, ImageError, read_image
from bdbnet.loading.transforms import (
    Cutout,
    EvaluationTransform,
    RandomErasing,
    TrainTransform,
    normalize,
    transforms_for,
)

__all__ = [
    "Cutout",
    "Draw",
    "EvaluationTransform",
    "IdentityBatchSampler",
    "ImageDataset",
    "ImageError",
    "RandomErasing",
    "ReIDDataModule",
    "SamplerError",
    "TrainTransform",
    "default_workers",
    "normalize",
    "read_image",
    "transforms_for",
]
