"""Weighted regularised triplet loss (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks, pairwise_distances


class WeightedTripletLoss(nn.Module):
    """Soft-margin triplet loss of each anchor's weighted mean distances to its positives and to its negatives.

    The weights are a softmax of the distances to the positives, and of the negated distances to the negatives, so that hard pairs
    count most and there is no margin (the survey's equations 12 and 13). The gradient flows through the weights, too, as in the
    released code, which other than the publication counts an image among its own positives, at distance 0. Anchors without a
    positive or without a negative take no part; the mean runs over the others.

    Args:
        normalize: scale embeddings to unit length first. The publication does not.

    >>> loss = WeightedTripletLoss()
    >>> loss(torch.tensor([[0.0], [3.0], [5.0]]), torch.tensor([7, 7, 8]))  # log(1 + e^(3-5)) and log(1 + e^(3-2)), halved
    tensor(0.7201)
    """

    def __init__(self, *, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) where no anchor has both pairs."""
        distances = pairwise_distances(in_full_precision(embeddings, normalize=self.normalize))
        positive, negative = pair_masks(labels)
        excess = _weighted(distances, distances, positive) - _weighted(distances, -distances, negative)
        return masked_mean(F.softplus(excess, threshold=50), positive.any(dim=1) & negative.any(dim=1))

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


def _weighted(distances: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row's masked distances (N, N), weighted by a softmax of their logits: (N,), 0 where a row has none."""
    some = mask.any(dim=1, keepdim=True)
    # A row without a pair gets equal weights, and then none: -inf alone would give NaN, also as a gradient.
    weights = logits.masked_fill(~mask & some, -torch.inf).softmax(dim=1) * mask
    return (weights * distances).sum(dim=1)
