"""PCB (Part-based Convolutional Baseline), a competing method of Table 1, with and without refined part pooling.

Sun, Zheng, Yang, Tian, Wang, "Beyond Part Models: Person Retrieval with Refined Part Pooling (and a Strong Convolutional
Baseline)", ECCV 2018.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bdbnet.models.backbones.base import as_feature_map
from bdbnet.models.heads import BranchOutput, PartHead, stripes
from bdbnet.models.network import EmbeddingNetwork, build_backbone

DESCRIPTORS = ("pooled", "reduced")


class PCBNetwork(EmbeddingNetwork):
    """Horizontal stripes of the backbone's feature map, each with its own reduction and classifier; softmax alone.

    Of images (N, 3, H, W).
    With `refined=True` training has three phases: uniform stripes; then a part classifier, which assigns every position
    of the map to a part, is trained while everything else is frozen; then everything is trained.

    Args:
        num_classes: identities of the training set; 0 leaves the classifiers out.
        backbone: a backbone with `out_channels`, or a name ("resnet50", "osnet_x0_25") for one with random weights.
        parts: number of stripes.
        embedding_dim: length that each part's vector is reduced to.
        descriptor: the embedding of an image: the parts' vectors "pooled" (6 x 2048 with resnet50, which the publication
            reports; its G) or "reduced" (6 x 256; its H).
        refined: use refined part pooling.
        phases: shares of the epochs of the three phases. The publication appends about 10 epochs to 60. Each phase that has
            a share gets at least one epoch; the first epoch has uniform stripes in any case.

    Raises:
        ValueError: unknown backbone or descriptor, no part, or phases that are not three shares, the first above 0.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "resnet50",
        *,
        parts: int = 6,
        embedding_dim: int = 256,
        descriptor: str = "pooled",
        refined: bool = False,
        phases: Sequence[float] = (60, 5, 5),
    ) -> None:
        super().__init__()
        if parts < 1:
            raise ValueError(f"parts must be at least 1, got {parts}")
        if descriptor not in DESCRIPTORS:
            raise ValueError(f"unknown descriptor {descriptor!r}; choose from {', '.join(DESCRIPTORS)}")
        if len(phases) != 3 or phases[0] <= 0 or min(phases) < 0:
            raise ValueError(f"phases must be three shares of the epochs, the first above 0, got {[*phases]}")
        self.backbone = build_backbone(backbone)
        channels = cast(int, self.backbone.out_channels)
        self.parts, self.descriptor, self.phases = parts, descriptor, tuple(phases)
        self.branches = nn.ModuleDict(
            {f"part{part}": PartHead(channels, num_classes, embedding_dim) for part in range(1, parts + 1)}
        )
        self.pooling = RefinedPartPooling(channels, parts) if refined else None
        self.branch_dims = (channels if descriptor == "pooled" else embedding_dim,) * parts
        self._frozen = False

    def forward(self, images: Tensor) -> dict[str, BranchOutput]:
        pooled = self._pool(as_feature_map(self.backbone(images)).map)
        return {name: head(vector) for (name, head), vector in zip(self.branches.items(), pooled, strict=True)}

    def embed(self, images: Tensor) -> Tensor:
        pooled = self._pool(as_feature_map(self.backbone(images)).map)
        if self.descriptor == "reduced":
            heads = (cast(PartHead, head) for head in self.branches.values())
            pooled = [head.embed(vector) for head, vector in zip(heads, pooled, strict=True)]
        return torch.cat(pooled, dim=1)

    def begin_epoch(self, epoch: int, max_epochs: int) -> None:
        """Enter the phase of `epoch`; it depends on nothing else, so a resumed training enters the same one."""
        if self.pooling is None:
            return
        _, alone, together = (math.ceil(share * max_epochs / sum(self.phases)) for share in self.phases)
        joint = max_epochs - together
        self.pooling.on.fill_(epoch > 0 and epoch >= joint - alone)
        self._frozen = 0 < epoch < joint and epoch >= joint - alone
        self.requires_grad_(not self._frozen)
        self.pooling.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PCBNetwork":
        super().train(mode)
        if self._frozen:  # running statistics of batch normalisation are frozen as well
            self.backbone.eval()
            self.branches.eval()
        return self

    def _pool(self, features: Tensor) -> list[Tensor]:
        if self.pooling is not None and self.pooling.on:
            return [*self.pooling(features).unbind(1)]
        return [stripe.mean((2, 3)) for stripe in stripes(features, self.parts)]


class RefinedPartPooling(nn.Module):
    """Features (N, C, H, W) to one vector per part, (N, parts, C): averages weighted by the parts' probabilities.

    A linear layer and a softmax give the probabilities of every position. The buffer `on` is true once the network uses
    this pooling; it is saved in checkpoints.
    """

    on: Tensor

    def __init__(self, in_channels: int, parts: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(in_channels, parts, 1)
        nn.init.normal_(self.scores.weight, std=0.001)  # all parts start with about equal shares of every position
        nn.init.zeros_(cast(Tensor, self.scores.bias))
        self.register_buffer("on", torch.tensor(False))

    def forward(self, features: Tensor) -> Tensor:
        shares = self.scores(features).log_softmax(1).flatten(2)
        weights = shares.softmax(2)  # normalised shares, also for a part whose shares all round to 0
        vectors: Tensor = weights @ features.to(weights.dtype).flatten(2).transpose(1, 2)
        return vectors
