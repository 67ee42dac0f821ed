"""`Backbone`, the interface of all backbones, and `FeatureMap`, what those with a class token return."""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class FeatureMap(NamedTuple):
    """A feature map and, of a transformer, its class token."""

    map: Tensor
    """(N, C, h, w)."""
    token: Tensor | None = None
    """(N, C), of which a global branch makes its embedding in place of the pooled map."""


def as_feature_map(output: "Tensor | FeatureMap") -> FeatureMap:
    """What a backbone returned, with or without a class token."""
    return output if isinstance(output, FeatureMap) else FeatureMap(output)


@runtime_checkable
class Backbone(Protocol):
    """An `nn.Module` that maps images (N, 3, H, W), normalised, to a feature map (N, out_channels, h, w), or to a
    `FeatureMap` with a class token (N, out_channels) beside it.

    Attributes:
        out_channels: channels of the feature map.
    """

    out_channels: int

    def __call__(self, images: Tensor) -> Tensor | FeatureMap: ...


class ImageSizeError(ValueError):
    """Images of a size that a backbone can't process."""
