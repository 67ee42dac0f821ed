"""Heads on the backbone's feature map: the two branches of the BDB Network (paper, section 3) and heads of parts."""

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from bdbnet.models.drop_layers import BatchDropBlock

POOLINGS = ("max", "avg")


class BranchOutput(NamedTuple):
    """Output of a branch for the losses; None where the branch has no metric or no softmax loss."""

    embedding: Tensor | None
    """(N, D), after the ReLU, not normalised."""
    logits: Tensor | None
    """(N, C)."""


class GlobalBranch(nn.Module):
    """Global branch, the head of the baseline: global average pooling, reduction to `embedding_dim`, classifier.

    Maps features (N, in_channels, H, W) to an embedding (N, embedding_dim) and logits (N, num_classes).
    With `num_classes=0` there is no classifier and the logits are None.
    """

    def __init__(self, in_channels: int, num_classes: int, embedding_dim: int = 512) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        # The paper's 1x1 convolution acts on a 1x1 map, where it is a linear layer; it is initialised as a convolution.
        self.reduction = build_reduction(in_channels, embedding_dim, "fan_in")
        self.classifier = build_classifier(embedding_dim, num_classes)

    def embed(self, features: Tensor) -> Tensor:
        embedding: Tensor = self.reduction(features.mean((2, 3)))
        return embedding

    def forward(self, features: Tensor) -> BranchOutput:
        embedding = self.embed(features)
        return BranchOutput(embedding, self.classifier(embedding) if self.classifier is not None else None)


class FeatureDroppingBranch(nn.Module):
    """Bottleneck block, drop layer, global pooling, reduction to `embedding_dim`, classifier.

    Maps features (N, in_channels, H, W) to an embedding (N, embedding_dim) and logits (N, num_classes).

    Args:
        in_channels: channels of the backbone's feature map.
        num_classes: identities of the training set; 0 leaves the classifier out and the logits are None.
        embedding_dim: length of the embedding.
        dropping: the drop layer; None is `BatchDropBlock(0.3, 1.0)`, the paper's choice for persons.
        pooling: "max" (paper) or "avg" (Figure 7b).

    Raises:
        ValueError: unknown pooling.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embedding_dim: int = 1024,
        dropping: nn.Module | None = None,
        pooling: str = "max",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}")
        self.embedding_dim = embedding_dim
        self.pooling = pooling
        # Without it, the same map would be pooled in two ways, which is hard to train (paper, section 3).
        self.bottleneck = Bottleneck(in_channels, in_channels // 4)
        self.drop = BatchDropBlock(0.3, 1.0) if dropping is None else dropping
        self.reduction = build_reduction(in_channels, embedding_dim, "fan_out")
        self.classifier = build_classifier(embedding_dim, num_classes)

    def embed(self, features: Tensor) -> Tensor:
        features = self.drop(self.bottleneck(features))
        # amax, because adaptive_max_pool2d has no deterministic backward on CUDA.
        embedding: Tensor = self.reduction(features.amax((2, 3)) if self.pooling == "max" else features.mean((2, 3)))
        return embedding

    def forward(self, features: Tensor) -> BranchOutput:
        embedding = self.embed(features)
        return BranchOutput(embedding, self.classifier(embedding) if self.classifier is not None else None)


class PartHead(nn.Module):
    """Reduction and classifier of one part of the body, trained with the softmax loss alone (PCB, MGN).

    Maps a pooled vector (N, in_channels) to logits (N, num_classes). With `num_classes=0` there is no classifier and the
    logits are None.
    """

    def __init__(self, in_channels: int, num_classes: int, embedding_dim: int = 256, *, bias: bool = True) -> None:
        super().__init__()
        self.reduction = build_reduction(in_channels, embedding_dim, "fan_in")
        self.classifier = build_classifier(embedding_dim, num_classes, bias=bias)

    def embed(self, pooled: Tensor) -> Tensor:
        embedding: Tensor = self.reduction(pooled)
        return embedding

    def forward(self, pooled: Tensor) -> BranchOutput:
        return BranchOutput(None, self.classifier(self.embed(pooled)) if self.classifier is not None else None)


def stripes(features: Tensor, parts: int) -> list[Tensor]:
    """Cut features (N, C, H, W) into `parts` bands of equal height, from top to bottom.

    Where H is not a multiple of `parts`, bands share rows, as in adaptive pooling.
    """
    height = features.shape[2]
    # Slices, because adaptive pooling has no deterministic backward on CUDA.
    return [features[:, :, part * height // parts : -(-(part + 1) * height // parts)] for part in range(parts)]


def build_reduction(in_channels: int, embedding_dim: int, mode: Literal["fan_in", "fan_out"]) -> nn.Sequential:
    """Linear layer (a 1x1 convolution on a pooled vector), batch normalisation and ReLU."""
    linear, norm = nn.Linear(in_channels, embedding_dim), nn.BatchNorm1d(embedding_dim)
    nn.init.kaiming_normal_(linear.weight, mode=mode)
    nn.init.zeros_(linear.bias)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return nn.Sequential(linear, norm, nn.ReLU())


def build_classifier(embedding_dim: int, num_classes: int, *, bias: bool = True) -> nn.Linear | None:
    """Linear layer to the logits of the identities; None for `num_classes=0`."""
    if num_classes == 0:
        return None
    classifier = nn.Linear(embedding_dim, num_classes, bias=bias)
    nn.init.kaiming_normal_(classifier.weight, mode="fan_out")
    if bias:
        nn.init.zeros_(classifier.bias)
    return classifier
