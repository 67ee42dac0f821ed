"""The ResNet backbone of the BDB Network: torchvision's without head, stage 4 at stride 1 (paper, section 3)."""

from pathlib import Path
from typing import Any

import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from bdbnet.models.weights import load_backbone, load_imagenet

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class ResNetBackbone(nn.Module):
    """ResNet up to the output of stage 4: images (N, 3, H, W) to features (N, C, H / 16, W / 16).

    C is `out_channels`: 512 for resnet18 and 34, 2048 for the others, so that resnet50 maps a 384 x 128 image to
    2048 x 24 x 8. He et al., "Deep Residual Learning", CVPR 2016; key names are torchvision's.

    Args:
        name: resnet18, resnet34, resnet50, resnet101 or resnet152.
        weights: "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), "none", or a file: a torchvision state_dict
            (its `fc` is left out) or a checkpoint of a `BDBNetwork` on this backbone, of which the backbone takes its own
            part.
        last_stride: stride of stage 4; 2 is torchvision's ResNet.

    Raises:
        ValueError: unknown name or stride.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
    """

    def __init__(self, name: str = "resnet50", weights: str | Path | None = "imagenet", last_stride: int = 1) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"unknown ResNet {name!r}; choose from {', '.join(RESNETS)}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
        resnet = torchvision.models.get_model(name, weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        set_stride(self.layer4, last_stride)
        self.out_channels: int = resnet.fc.in_features
        if weights == "imagenet":
            load_imagenet(self, name)
        elif weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def set_stride(stage: nn.Sequential, stride: int) -> None:
    """Set the stride of a ResNet's stage, which begins with a down-sampling block; the weights stay."""
    first: Any = stage[0]
    strided = first.conv2 if isinstance(first, Bottleneck) else first.conv1
    strided.stride = first.downsample[0].stride = (stride, stride)
