"""fast-reid's ResNet: another stem than torchvision's, and at will IBN-a and non-local blocks. Key names are fast-reid's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.resnet import ResNetBackbone
from bdbnet.models.weights import load_backbone


class IBN(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the others.

    Pan et al., "Two at Once", ECCV 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.IN(features[:, : self.first]), self.BN(features[:, self.first :])], dim=1)


class NonLocal(nn.Module):
    """Adds to each position a mixture of all positions, by dot products divided by their number.

    Wang et al., "Non-Local Neural Networks", CVPR 2018.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(channels, inner, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(cast(Tensor, self.W[1].weight))  # at the start nothing is added

    def forward(self, features: Tensor) -> Tensor:
        g, theta, phi = (
            layer(features).flatten(2) for layer in (self.g, self.theta, self.phi)
        )  # (N, inner, positions)
        weights = theta.transpose(1, 2) @ phi / phi.shape[2]
        mixed = (weights @ g.transpose(1, 2)).transpose(1, 2)
        added: Tensor = self.W(mixed.unflatten(2, features.shape[2:]))
        return features + added


class FastReIDBackbone(ResNetBackbone):
    """ResNet as fast-reid builds it: images (N, 3, H, W) to features (N, C, h, w), about H / 16 and W / 16.

    Its stem pools without padding and rounds up.

    Args:
        name: resnet18, resnet34, resnet50, resnet101 or resnet152.
        weights: "none", or a file of fast-reid, of which the backbone takes its own part.
        last_stride: stride of stage 4; fast-reid's configurations for persons set 1.
        ibn: IBN-a in stages 1 to 3.
        non_local: non-local blocks behind the last blocks of stages 1 to 4.
        non_local_channels: their inner channels.

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
        if len(non_local) != 4:
            raise ValueError(f"non_local={[*non_local]}: give a number of blocks for each of the four stages")
        super().__init__(name, "none", last_stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.non_local = tuple(non_local)
        for stage, blocks in enumerate(self.non_local, start=1):
            layer: Any = self.get_submodule(f"layer{stage}")
            if ibn and stage < 4:
                for block in layer:
                    block.bn1 = IBN(block.bn1.num_features)
            if blocks:
                channels = self.out_channels // 2 ** (4 - stage)
                others = (NonLocal(channels, non_local_channels) for _ in range(blocks))
                self.add_module(f"NL_{stage}", nn.ModuleList(others))
        if weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage, count in enumerate(self.non_local, start=1):
            blocks: Any = self.get_submodule(f"layer{stage}")
            for number, block in enumerate(blocks):
                x = block(x)
                if (behind := number - len(blocks) + count) >= 0:
                    x = self.get_submodule(f"NL_{stage}.{behind}")(x)
        return x
