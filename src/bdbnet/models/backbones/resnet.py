"""The ResNet backbone of the BDB Network: torchvision's without head, stage 4 at stride 1 (paper, section 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from bdbnet.models.backbones.non_local import NonLocal
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
        non_local: of stages 1 to 4, behind how many of their last blocks a `NonLocal` follows; None: nowhere. Weights of a network
            without them leave them as initialised.
        non_local_channels: their inner channels; None: half of the stage's.

    Attributes:
        added_layers: names of the lists of non-local blocks, "NL_1" to "NL_4", of the stages that have some.
        new_layers: those of them that the starting weights did not have.

    Raises:
        ValueError: unknown name or stride; not four numbers of blocks, or more than a stage has.
        CheckpointError: the download failed, or the file can't be read safely or holds another architecture.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | Path | None = "imagenet",
        last_stride: int = 1,
        non_local: Sequence[int] | None = None,
        non_local_channels: int | None = None,
    ) -> None:
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
        self.add_non_local((0, 0, 0, 0) if non_local is None else non_local, non_local_channels)
        most = [len(stage) for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]
        if any(count > blocks for count, blocks in zip(self.non_local, most)):
            raise ValueError(
                f"non_local={[*self.non_local]}: the stages of {name} have {most} blocks; give at most as many"
            )
        if weights == "imagenet":
            load_imagenet(self, name)
        elif weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        if not self.added_layers:
            features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return features
        for stage, count in enumerate(self.non_local, start=1):
            blocks: Any = self.get_submodule(f"layer{stage}")
            for number, block in enumerate(blocks):
                x = block(x)
                if (behind := number - len(blocks) + count) >= 0:
                    x = self.get_submodule(f"NL_{stage}.{behind}")(x)
        return x

    def add_non_local(self, blocks: Sequence[int], inner: int | None) -> None:
        """Put non-local blocks behind the last blocks of the stages; for the arguments see the class.  Raises ValueError."""
        if len(blocks) != 4 or min(blocks) < 0:
            raise ValueError(
                f"non_local={[*blocks]}: give a number of blocks for each of the four stages, such as [0,2,2,0]"
            )
        if inner is not None and inner < 1:
            raise ValueError(f"non_local_channels={inner}: give a whole number of at least 1, or null")
        self.non_local = tuple(blocks)
        for stage, count in enumerate(blocks, start=1):
            if count:
                channels = self.out_channels // 2 ** (4 - stage)
                layers = (NonLocal(channels, inner or channels // 2) for _ in range(count))
                self.add_module(f"NL_{stage}", nn.ModuleList(layers))
        self.added_layers = tuple(f"NL_{stage}" for stage, count in enumerate(blocks, start=1) if count)
        self.new_layers = self.added_layers


def set_stride(stage: nn.Sequential, stride: int) -> None:
    """Set the stride of a ResNet's stage, which begins with a down-sampling block; the weights stay."""
    first: Any = stage[0]
    strided = first.conv2 if isinstance(first, Bottleneck) else first.conv1
    strided.stride = first.downsample[0].stride = (stride, stride)
