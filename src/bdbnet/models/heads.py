"""Heads on the backbone's feature map: the two branches of the BDB Network (paper, section 3) and heads of parts."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from bdbnet.models.drop_layers import BatchDropBlock

POOLINGS = ("max", "avg", "gem")
HEADS = ("linear", "bnneck")


class BranchOutput(NamedTuple):
    """Output of a branch for the losses; None where the branch has no metric or no softmax loss."""

    embedding: Tensor | None
    """(N, D) for the metric loss, not normalised: the embedding itself, or with a `BNNeck` what is normalised to it."""
    logits: Tensor | None
    """(N, C)."""


def global_max_pool(features: Tensor) -> Tensor:
    """Feature maps (N, C, H, W) to the maximum of each channel, (N, C); its gradient goes to one place of a map."""
    # adaptive_max_pool2d has no deterministic backward on CUDA. The one of amax looks for the values that equal the maximum: a
    # compiled step computes them anew in float32 beside a maximum in bfloat16, finds none and divides by their number, zero.
    return features.flatten(2).max(2).values if features.requires_grad else features.amax((2, 3))


class _Branch(nn.Module):
    """What the branches share: pooling of a feature map (N, C, H, W), or of (N, C), which is pooled already, and the head.

    The head is `reduction` and `classifier` ("linear"), or a `BNNeck` ("bnneck").
    """

    reduction: nn.Module
    classifier: nn.Linear | None

    def _set_pooling(self, pooling: str) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}")
        self.pooling = pooling
        if pooling == "gem":
            self.gem = GeM()

    def _set_head(
        self,
        head: str,
        in_channels: int,
        num_classes: int,
        embedding_dim: int | None,
        mode: Literal["fan_in", "fan_out"],
    ) -> None:
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}; choose from {', '.join(HEADS)}")
        self.head = head
        if head == "bnneck":
            self.embedding_dim = in_channels if embedding_dim is None else embedding_dim
            self.neck = BNNeck(in_channels, num_classes, embedding_dim)
            return
        assert embedding_dim is not None
        self.embedding_dim = embedding_dim
        # The paper's 1x1 convolution acts on a 1x1 map, where it is a linear layer; it is initialised as a convolution.
        self.reduction = build_reduction(in_channels, embedding_dim, mode)
        self.classifier = build_classifier(embedding_dim, num_classes)

    def _pool(self, features: Tensor) -> Tensor:
        if features.ndim == 2:
            return features
        if self.pooling == "gem":
            pooled: Tensor = self.gem(features)
            return pooled
        return global_max_pool(features) if self.pooling == "max" else features.mean((2, 3))

    def map(self, features: Tensor) -> Tensor:
        """What is pooled, of the backbone's features."""
        return features

    def embed(self, features: Tensor) -> Tensor:
        pooled = self._pool(self.map(features))
        embedding: Tensor = self.neck.embed(pooled) if self.head == "bnneck" else self.reduction(pooled)
        return embedding

    def forward(self, features: Tensor) -> BranchOutput:
        if self.head == "bnneck":
            output: BranchOutput = self.neck(self._pool(self.map(features)))
            return output
        embedding = self.embed(features)
        return BranchOutput(embedding, self.classifier(embedding) if self.classifier is not None else None)


class GlobalBranch(_Branch):
    """Global branch, the head of the baseline: global average pooling, reduction to `embedding_dim`, classifier.

    Maps features (N, in_channels, H, W) to an embedding (N, embedding_dim) and logits (N, num_classes). Features
    (N, in_channels), such as the class token of a transformer, are taken as they are.

    Args:
        in_channels: channels of the backbone's feature map.
        num_classes: identities of the training set; 0 leaves the classifier out and the logits are None.
        embedding_dim: length of the embedding; None, with `head="bnneck"` alone: in_channels, without a reduction.
        pooling: "avg" (paper), "max" or "gem" (`GeM`).
        head: "linear" (paper) or "bnneck" (`BNNeck`).

    Raises:
        ValueError: unknown pooling or head.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embedding_dim: int | None = 512,
        pooling: str = "avg",
        head: str = "linear",
    ) -> None:
        super().__init__()
        self._set_pooling(pooling)
        self._set_head(head, in_channels, num_classes, embedding_dim, "fan_in")


class FeatureDroppingBranch(_Branch):
    """Bottleneck block, drop layer, global pooling, reduction to `embedding_dim`, classifier.

    Maps features (N, in_channels, H, W) to an embedding (N, embedding_dim) and logits (N, num_classes).

    Args:
        in_channels: channels of the backbone's feature map.
        num_classes: identities of the training set; 0 leaves the classifier out and the logits are None.
        embedding_dim: length of the embedding; None, with `head="bnneck"` alone: in_channels, without a reduction.
        dropping: the drop layer; None is `BatchDropBlock(0.3, 1.0)`, the paper's choice for persons.
        pooling: "max" (paper), "avg" (Figure 7b) or "gem" (`GeM`).
        head: "linear" (paper) or "bnneck" (`BNNeck`).

    Raises:
        ValueError: unknown pooling or head.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embedding_dim: int | None = 1024,
        dropping: nn.Module | None = None,
        pooling: str = "max",
        head: str = "linear",
    ) -> None:
        super().__init__()
        self._set_pooling(pooling)
        # Without it, the same map would be pooled in two ways, which is hard to train (paper, section 3).
        self.bottleneck = Bottleneck(in_channels, in_channels // 4)
        self.drop = BatchDropBlock(0.3, 1.0) if dropping is None else dropping
        self._set_head(head, in_channels, num_classes, embedding_dim, "fan_out")

    def map(self, features: Tensor) -> Tensor:
        dropped: Tensor = self.drop(self.bottleneck(features))
        return dropped


class BNNeck(nn.Module):
    """Batch normalisation between the metric loss and the softmax (Luo et al., "Bag of Tricks and a Strong Baseline for Deep
    Person Re-identification", CVPR workshops 2019).

    A pooled vector (N, in_channels), reduced by a linear layer without bias where `embedding_dim` is given, is what the metric
    loss sees. Batch normalised, with a bias that stays 0, it is the embedding, and goes to a classifier without bias. With
    `num_classes=0` there is no classifier and the logits are None.
    """

    def __init__(self, in_channels: int, num_classes: int, embedding_dim: int | None = None) -> None:
        super().__init__()
        length = in_channels if embedding_dim is None else embedding_dim
        self.reduction = nn.Identity() if embedding_dim is None else nn.Linear(in_channels, length, bias=False)
        if isinstance(self.reduction, nn.Linear):
            nn.init.kaiming_normal_(self.reduction.weight, mode="fan_out")
        self.norm = nn.BatchNorm1d(length)
        self.norm.bias.requires_grad_(False)
        self.classifier = build_classifier(length, num_classes, bias=False)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled vectors (N, in_channels) to embeddings (N, length), normalised over the batch."""
        embedding: Tensor = self.norm(self.reduction(pooled))
        return embedding

    def forward(self, pooled: Tensor) -> BranchOutput:
        reduced = self.reduction(pooled)
        normalised = self.norm(reduced)
        return BranchOutput(reduced, self.classifier(normalised) if self.classifier is not None else None)


class GeM(nn.Module):
    """Generalised mean over a feature map (N, C, H, W), with a learnt power p: (mean of x^p)^(1/p), x at least 1e-6.

    Radenovic et al., "Fine-Tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019. Of a map in half precision it is
    computed in the precision of p, and is of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, features: Tensor) -> Tensor:
        wide = features.clamp(min=1e-6).to(torch.promote_types(features.dtype, self.p.dtype))
        return wide.pow(self.p).mean((2, 3)).pow(1 / self.p)


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
        """Pooled vectors (N, in_channels) to reduced ones (N, embedding_dim)."""
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
