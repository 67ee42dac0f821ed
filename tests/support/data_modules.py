"""Data modules by plain settings, as a configuration has them."""

from dataclasses import fields
from typing import Any

from bdbnet.datasets import Manifest
from bdbnet.loading import EvaluationTransform, Reading, ReIDDataModule, Sampling, TrainTransform


def data_module(
    manifest: Manifest, train: TrainTransform, test: EvaluationTransform, **settings: Any
) -> ReIDDataModule:
    """The module with those of ``settings`` that are `Sampling`'s and `Reading`'s in their place."""
    parts: dict[str, Any] = {}
    for name, group in (("sampling", Sampling), ("reading", Reading)):
        own = {field.name for field in fields(group)}
        parts[name] = group(**{key: settings.pop(key) for key in [*settings] if key in own})
    return ReIDDataModule(manifest, train, test, **parts, **settings)
