"""Batch-hard triplet loss (Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss for Person Re-Identification")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks, pairwise_distances, row_distances


@torch.no_grad()
def hardest_pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each anchor's farthest positive and nearest negative.

    Args:
        embeddings: (N, D).
        labels: (N,).

    Returns:
        (N,) row of the farthest positive, (N,) row of the nearest negative, and (N,) which anchors have both.
    """
    distances = pairwise_distances(embeddings)
    positive, negative = pair_masks(labels)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1)
    nearest = distances.masked_fill(~negative, torch.inf).argmin(dim=1)
    return farthest, nearest, positive.any(dim=1) & negative.any(dim=1)


class BatchHardTripletLoss(nn.Module):
    """Triplet loss on the hardest positive and the hardest negative of every anchor in the batch.

    Paper section 3 ("Loss function") and 4.1.2, which takes the soft margin ``log(1 + exp(positive - negative))``
    to avoid a margin parameter. Anchors without a positive or without a negative take no part; the mean runs over the others.

    Args:
        margin: ``"soft"``, or a non-negative number m for ``max(0, m + positive - negative)``.
        normalize: scale embeddings to unit length first. The paper's embeddings are not normalised.

    Raises:
        ValueError: the margin is neither ``"soft"`` nor a non-negative number.

    >>> loss = BatchHardTripletLoss(margin=1.0)
    >>> loss(torch.tensor([[0.0], [3.0], [5.0]]), torch.tensor([7, 7, 8]))  # anchors 0 and 1: 1+3-5, 1+3-2
    tensor(1.)
    """

    def __init__(self, margin: float | str = "soft", *, normalize: bool = False) -> None:
        super().__init__()
        if margin != "soft" and not (isinstance(margin, int | float) and not isinstance(margin, bool) and margin >= 0):
            raise ValueError(f'margin: expected "soft" or a number of at least 0, got {margin!r}')
        self.margin = margin
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) where no anchor has both pairs."""
        embeddings = in_full_precision(embeddings, normalize=self.normalize)
        farthest, nearest, valid = hardest_pairs(embeddings, labels)
        # Mined on the distance matrix, then computed pair by pair: 2N exact distances instead of N^2 with cancellation,
        # and a backward pass without N x N products. index_select, because the gradient of plain indexing is summed in
        # an order that changes from run to run.
        positives, negatives = embeddings.index_select(0, farthest), embeddings.index_select(0, nearest)
        excess = row_distances(embeddings, positives) - row_distances(embeddings, negatives)
        if isinstance(self.margin, str):
            per_anchor = F.softplus(excess, threshold=50)
        else:
            per_anchor = F.relu(excess + self.margin)
        return masked_mean(per_anchor, valid)

    def extra_repr(self) -> str:
        return f"margin={self.margin!r}, normalize={self.normalize}"
