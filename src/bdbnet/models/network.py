"""`EmbeddingNetwork`, the interface of all networks, and backbones by name."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.osnet import WIDTHS, OSNetBackbone
from bdbnet.models.backbones.resnet import RESNETS, ResNetBackbone
from bdbnet.models.heads import BranchOutput

_OSNETS = {f"osnet_x{width}".replace(".", "_"): width for width in WIDTHS}
BACKBONES = (*RESNETS, *_OSNETS)


class MapLayer(NamedTuple):
    """Where the last feature map of a branch is, for activation maps.

    Attributes:
        module: gives the map (N, C, h, w).
        parts: numbers, in `branch_dims`, of the parts of the embedding that are computed of it.
        outputs: names of `forward`'s outputs that are computed of it.
    """

    module: nn.Module
    parts: tuple[int, ...]
    outputs: tuple[str, ...]


class EmbeddingNetwork(nn.Module, ABC):
    """Interface of a network that training and evaluation use.

    A network whose training has phases also has `begin_epoch(epoch, max_epochs)`, called before every epoch (from 0).

    Attributes:
        backbone: the backbone.
        branch_dims: lengths of the parts of the embedding.
    """

    backbone: nn.Module
    branch_dims: tuple[int, ...]

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return sum(self.branch_dims)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the images that the network takes."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        """Images (N, 3, H, W) to each branch's embedding and logits, for the losses."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to embeddings (N, embedding_dim), not normalised."""

    def map_layers(self) -> dict[str, MapLayer]:
        """The last feature map of each branch, by the branch's name; one of a map that all of them share, "backbone"."""
        branches = getattr(self, "branches", None)
        outputs = tuple(branches) if isinstance(branches, nn.ModuleDict) else ("pooled",)
        return {"backbone": MapLayer(self.backbone, tuple(range(len(self.branch_dims))), outputs)}

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that start from the backbone's weights, for learning rates of their own."""
        return [*self.backbone.parameters()]


def build_backbone(backbone: str | nn.Module) -> nn.Module:
    """The backbone itself, or the one of this name with random weights.  Raises ValueError for an unknown name."""
    if isinstance(backbone, nn.Module):
        return backbone
    if backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {backbone!r}; choose from {', '.join(BACKBONES)}")
    return OSNetBackbone(_OSNETS[backbone]) if backbone in _OSNETS else ResNetBackbone(backbone, weights="none")
