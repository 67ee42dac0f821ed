"""Centre loss (Wen, Zhang, Li, Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016)."""

import math

import torch
from torch import Tensor, nn

from bdbnet.losses.distances import in_full_precision


class CenterLoss(nn.Module):
    """Mean squared distance of each embedding to the centre of its identity; the centres follow by steps of their own.

    With Luo et al. ("Bag of Tricks", CVPR workshops 2019) a centre c of n images x in a batch of N moves by gradient descent on
    this loss, unweighted: c - rate * 2 / N * sum(c - x). It is a buffer, so that neither the optimizer nor its schedule touches it,
    and moves at the end of each forward in train mode. The moves are a function of the batch alone: ranks that see the same batch
    hold the same centres.

    Args:
        num_classes: identities, labelled 0 .. num_classes - 1.
        embedding_dim: length D of the embeddings.
        rate: learning rate of the centres, which are the buffer `centers` (C, D).

    Raises:
        ValueError: the rate is no number of at least 0.
    """

    centers: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, rate: float = 0.5) -> None:
        super().__init__()
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < math.inf:
            raise ValueError(f"rate: expected a number of at least 0, got {rate!r}")
        self.rate = rate
        self.register_buffer("centers", torch.randn(num_classes, embedding_dim))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar."""
        points = in_full_precision(embeddings, normalize=False)
        offsets = self.centers.index_select(0, labels).to(points.dtype) - points
        if self.training:
            self._move(offsets.detach(), labels)
        return offsets.square().sum(dim=1).mean()

    @torch.no_grad()
    def _move(self, offsets: Tensor, labels: Tensor) -> None:
        # Every image of an identity gets the sum of all, and writes the same centre: no sum depends on an order.
        same = (labels[:, None] == labels[None, :]).to(offsets.dtype)
        steps = (same @ offsets) * (2 * self.rate / len(labels))
        moved = self.centers.index_select(0, labels) - steps.to(self.centers.dtype)
        self.centers.index_copy_(0, labels, moved)

    def extra_repr(self) -> str:
        return f"{len(self.centers)}, {self.centers.shape[1]}, rate={self.rate}"
