"""fast-reid's ResNet: another stem than torchvision's, and at will IBN-a and non-local blocks. Key names are fast-reid's."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.resnet import ResNetBackbone
from bdbnet.models.weights import load_backbone


class IBN(nn.Module):
    """Instance normalisation of the first half of the channels of a map (N, C, h, w), batch normalisation of the others.

    Pan et al., "Two at Once", ECCV 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.IN(features[:, : self.first]), self.BN(features[:, self.first :])], dim=1)


class FastReIDBackbone(ResNetBackbone):
    """ResNet as fast-reid builds it: images (N, 3, H, W) to features (N, C, h, w), about H / 16 and W / 16.

    Its stem pools without padding and rounds up.

    Args:
        name: resnet18, resnet34, resnet50, resnet101 or resnet152.
        weights: "none", or a file of fast-reid, of which the backbone takes its own part.
        last_stride: stride of stage 4; fast-reid's configurations for persons set 1.
        ibn: IBN-a in stages 1 to 3.
        non_local, non_local_channels: see `ResNetBackbone`.

    Raises:
        ValueError: unknown name or stride, or not four numbers of blocks.
        CheckpointError: the file can't be read safely or holds another architecture.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | Path | None = "none",
        last_stride: int = 1,
        ibn: bool = False,
        non_local: Sequence[int] = (0, 0, 0, 0),
        non_local_channels: int = 1,
    ) -> None:
        super().__init__(name, "none", last_stride)
        self.add_non_local(
            non_local, non_local_channels
        )  # its files may have more than a stage has blocks, and use the last ones
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if ibn:
            for stage in (self.layer1, self.layer2, self.layer3):
                for block in stage:
                    block.bn1 = IBN(block.bn1.num_features)
        if weights not in (None, "none"):
            load_backbone(self, str(weights))
