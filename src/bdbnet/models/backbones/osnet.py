"""OSNet, a lightweight backbone: Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019.

Its variants with instance normalisation are of Zhou et al., "Learning Generalisable Omni-Scale Representations for Person
Re-Identification", TPAMI 2021. Module names follow the files of torchreid, the authors' library, so that those load by key.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from bdbnet.models.weights import load_backbone

WIDTHS = (1.0, 0.75, 0.5, 0.25)
#: Variant -> where each block of conv2, conv3 and conv4 has its instance normalisation: after the sum with its input, or before.
VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "plain": (("", ""), ("", ""), ("", "")),
    "ibn": (("after", "after"), ("", ""), ("", "")),
    "ain": (("before", "before"), ("", "before"), ("before", "")),
}
_CHANNELS = (64, 256, 384, 512)  # of conv1 .. conv4 at width 1


class ConvNormReLU(nn.Module):
    """Convolution without bias of a map (N, inputs, h, w), normalisation (batch, instance or none) and, unless `relu=False`, a
    ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, relu: bool = True, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        norms = {"batch": nn.BatchNorm2d(outputs), "instance": nn.InstanceNorm2d(outputs, affine=True)}
        self.bn = norms.get(norm, nn.Identity())
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn(self.conv(features)))
        return result


class LightConv3x3(nn.Module):
    """A 3x3 convolution of a map (N, C, h, w) in two cheap factors: pointwise (no activation), then one 3x3 filter per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn(self.conv2(self.conv1(features))))
        return result


class ChannelGate(nn.Module):
    """Weights each channel of each image of a map (N, C, h, w) by a number in 0..1 that a small network finds from the channel
    means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        weights: Tensor = self.fc2(self.relu(self.fc1(features.mean((2, 3), keepdim=True)))).sigmoid()
        return features * weights


class OmniScaleBlock(nn.Module):
    """Residual block of four streams of 1 to 4 light convolutions (receptive fields 3, 5, 7, 9) that share one gate.

    Of a map (N, C, h, w).
    With `instance_norm="after"` the sum with the block's input is normalised, with `"before"` what is added to it.
    """

    def __init__(self, inputs: int, outputs: int, instance_norm: str = "") -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = ConvNormReLU(inputs, middle)
        self.conv2a = LightConv3x3(middle)
        self.conv2b = nn.Sequential(*(LightConv3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv3x3(middle) for _ in range(4)))
        self.gate = ChannelGate(middle)
        inside = instance_norm == "before"
        self.conv3 = ConvNormReLU(middle, outputs, relu=False, norm="none" if inside else "batch")
        if instance_norm:
            self.IN = nn.InstanceNorm2d(outputs, affine=True)
        self.instance_norm = instance_norm
        self.downsample = nn.Identity() if inputs == outputs else ConvNormReLU(inputs, outputs, relu=False)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv1(features)
        gate = self.gate
        x = gate(self.conv2a(x)) + gate(self.conv2b(x)) + gate(self.conv2c(x)) + gate(self.conv2d(x))
        x = self.conv3(x)
        if self.instance_norm == "before":
            x = self.IN(x)
        x = x + self.downsample(features)
        result: Tensor = self.relu(self.IN(x) if self.instance_norm == "after" else x)
        return result


class OSNetBackbone(nn.Module):
    """OSNet up to the output of conv5: images (N, 3, H, W) to features (N, 512 * width, H / 16, W / 16).

    Args:
        width: 1.0, 0.75, 0.5 or 0.25.
        weights: "none", or a file: torchreid's OSNet of the same width or a checkpoint of a `BDBNetwork` on this
            backbone. The backbone takes its own part of the file; `initialize_from` also starts the branches from it.
        variant: "plain", or with instance normalisation, "ibn" or "ain".

    Raises:
        ValueError: unknown width or variant, or weights="imagenet", of which there are none.
        CheckpointError: the file can't be read safely or holds another architecture.
    """

    def __init__(self, width: float = 1.0, weights: str | Path | None = "none", variant: str = "plain") -> None:
        super().__init__()
        if width not in WIDTHS:
            raise ValueError(f"unknown width {width!r} of OSNet; choose from {', '.join(map(str, WIDTHS))}")
        if weights == "imagenet":
            raise ValueError(
                "backbone.weights=imagenet: no ImageNet weights of OSNet are downloaded; give torchreid's file of this "
                "width, or backbone.weights=none"
            )
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r} of OSNet; choose from {', '.join(VARIANTS)}")
        blocks = VARIANTS[variant]
        first, second, third, fourth = (int(channels * width) for channels in _CHANNELS)
        self.out_channels = fourth
        self.conv1 = ConvNormReLU(3, first, kernel=7, stride=2, norm="batch" if variant == "plain" else "instance")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(first, second, blocks[0], (ConvNormReLU(second, second), nn.AvgPool2d(2)))
        self.conv3 = _stage(second, third, blocks[1], (ConvNormReLU(third, third), nn.AvgPool2d(2)))
        self.conv4 = _stage(third, fourth, blocks[2])
        self.conv5 = ConvNormReLU(fourth, fourth)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if weights not in (None, "none"):
            load_backbone(self, str(weights))

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(images))
        features: Tensor = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return features


def _stage(inputs: int, outputs: int, norms: tuple[str, str], transition: Sequence[nn.Module] = ()) -> nn.Sequential:
    stage = nn.Sequential(OmniScaleBlock(inputs, outputs, norms[0]), OmniScaleBlock(outputs, outputs, norms[1]))
    if transition:
        stage.append(nn.Sequential(*transition))
    return stage
