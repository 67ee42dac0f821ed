"""Backbones from torchvision: any of its models that returns a feature map."""

from pathlib import Path

import torch
import torchvision.models
from torch import Tensor, nn

from bdbnet.models.backbones.base import ImageSizeError
from bdbnet.models.weights import load_backbone, load_imagenet

_WITH_FEATURES = "squeezenet1_1, mobilenet_v3_small, densenet121, efficientnet_b0, vgg16_bn, convnext_tiny, swin_t"


class TorchvisionBackbone(nn.Module):
    """A classification model of torchvision without its head: images (N, 3, H, W) to features (N, out_channels, h, w).

    The model has to have `.features`, as alexnet, convnext_*, densenet*, efficientnet_*, mobilenet_*, squeezenet*, swin_*
    and vgg* do; ResNets have `ResNetBackbone`. The map is the input of the model's own head: the output of `.features`,
    for densenet* after a ReLU, for swin_* after the last LayerNorm (that of convnext_* follows the pooling and is part of
    the head). h is about H / 32, for squeezenet* H / 16. Key names are torchvision's.

    Args:
        name: a model of torchvision.models, such as squeezenet1_1.
        weights: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none", or a file: a torchvision state_dict
            (its classifier is left out) or a checkpoint of a `BDBNetwork` on this backbone, of which the backbone takes its
            own part.

    Raises:
        ValueError: a name that torchvision does not have, or a model without a feature map.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
        ImageSizeError: in `forward`, images that are too small for the model.
    """

    def __init__(self, name: str, weights: str | Path | None = "imagenet") -> None:
        super().__init__()
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(
                f"torchvision has no model {name!r} that classifies images; choose, e.g., {_WITH_FEATURES}"
            )
        model = torchvision.models.get_model(name, weights=None)
        if not hasattr(model, "features"):
            raise ValueError(
                f"torchvision's {name} has no .features, which give the feature map; choose, e.g., {_WITH_FEATURES}, "
                "or a ResNet by backbone=resnet50"
            )
        is_swin = isinstance(model, torchvision.models.SwinTransformer)
        self.name = name
        self.features = model.features
        self.norm = model.norm if is_swin else nn.Identity()
        if isinstance(model, torchvision.models.DenseNet):
            self.last: nn.Module = nn.ReLU(inplace=True)
        else:
            self.last = model.permute if is_swin else nn.Identity()  # Swin computes in (N, h, w, C)
        self.out_channels = _count_channels(self, name)
        if weights == "imagenet":
            load_imagenet(self, name)
        elif weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        try:
            features: Tensor = self.last(self.norm(self.features(images)))
        except RuntimeError as error:
            if "too small" not in str(error) and "can't be greater than actual input size" not in str(error):
                raise
            raise ImageSizeError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for {self.name}: raise dataset.image_size"
            ) from error
        return features


def _count_channels(backbone: nn.Module, name: str) -> int:
    """Channels of the map; neither running statistics nor the random state change."""
    backbone.eval()
    with torch.no_grad():
        features: Tensor = backbone(torch.zeros(1, 3, 64, 64))
    backbone.train()
    if features.dim() != 4:
        raise ValueError(
            f"{name} returned shape {tuple(features.shape)}; expected a feature map (N, C, H, W). Choose, e.g., {_WITH_FEATURES}"
        )
    return features.shape[1]
