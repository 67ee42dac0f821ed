"""`NonLocal`, a layer that lets each position of a feature map see all others."""

from typing import cast

from torch import Tensor, nn


class NonLocal(nn.Module):
    """Adds to each position of a map (N, channels, H, W) a mixture of all positions, by dot products divided by their number.

    Wang et al., "Non-Local Neural Networks", CVPR 2018. At the start nothing is added: the last batch normalisation begins with
    zeros. Key names are those of AGW's code and fast-reid.

    Args:
        channels: of the map.
        inner: channels in which positions are compared and mixed.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(channels, inner, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(cast(Tensor, self.W[1].weight))

    def forward(self, features: Tensor) -> Tensor:
        g, theta, phi = (
            layer(features).flatten(2) for layer in (self.g, self.theta, self.phi)
        )  # (N, inner, positions)
        weights = theta.transpose(1, 2) @ phi / phi.shape[2]
        mixed = (weights @ g.transpose(1, 2)).transpose(1, 2)
        added: Tensor = self.W(mixed.unflatten(2, features.shape[2:]))
        return features + added
