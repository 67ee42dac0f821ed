"""Lifted structure loss (Oh Song, Xiang, Jegelka, Savarese, CVPR 2016, "Deep Metric Learning via Lifted Structured
Feature Embedding")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.arguments import at_least_zero
from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks, pairwise_distances


class LiftedStructureLoss(nn.Module):
    """Compares every positive pair with all negatives of both its images (publication, equation 4).

    For a positive pair (i, j), ``J = D_ij + log(sum of exp(margin - D))`` over all negatives of i and all negatives of j;
    the loss is the sum of ``max(0, J)^2`` over the batch's unordered positive pairs, divided by twice their number.

    Args:
        margin: of the negatives' distances. The publication and the released code take 1.
        normalize: scale embeddings to unit length first. The publication and the paper do not.

    Raises:
        ValueError: the margin is not a number of at least 0.

    >>> loss = LiftedStructureLoss(margin=1.0)
    >>> x = torch.tensor([[0.0], [3.0], [5.0]])
    >>> loss(x, torch.tensor([7, 7, 8]))  # J = 3 + log(exp(1 - 5) + exp(1 - 2)) = 2.0486, halved square
    tensor(2.0984)
    """

    def __init__(self, margin: float = 1.0, *, normalize: bool = False) -> None:
        super().__init__()
        self.margin = at_least_zero("margin", margin)
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) without positives or negatives."""
        distances = pairwise_distances(in_full_precision(embeddings, normalize=self.normalize))
        positive, negative = pair_masks(labels)
        # Not minus infinity: its gradient would be NaN in a batch of one identity.
        lowest = torch.finfo(distances.dtype).min
        pushes = (self.margin - distances).masked_fill(~negative, lowest).logsumexp(dim=1)
        excess = distances + torch.logaddexp(pushes[:, None], pushes[None, :])
        return masked_mean(F.relu(excess).square(), positive) / 2

    def extra_repr(self) -> str:
        return f"margin={self.margin}, normalize={self.normalize}"
