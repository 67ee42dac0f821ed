"""`Backbone`, the interface of all backbones."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """An `nn.Module` that maps images (N, 3, H, W), normalised, to a feature map (N, out_channels, h, w).

    Attributes:
        out_channels: channels of the feature map.
    """

    out_channels: int

    def __call__(self, images: Tensor) -> Tensor: ...


class ImageSizeError(ValueError):
    """Images of a size that a backbone can't process."""
