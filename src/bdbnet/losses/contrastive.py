"""Contrastive loss (Hadsell, Chopra, LeCun, CVPR 2006, "Dimensionality Reduction by Learning an Invariant Mapping")."""

import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.arguments import at_least_zero
from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks, pairwise_distances


class ContrastiveLoss(nn.Module):
    """Pulls positives together and pushes negatives at least a margin apart (publication, equation 4).

    A positive pair costs ``D^2 / 2``, a negative one ``max(0, margin - D)^2 / 2``. The publication adds up the pairs of a
    given list; here all pairs of the batch take part, and the loss is the mean over the positive pairs plus the mean
    over the negative ones, so that the far more numerous negatives do not dominate.

    Args:
        margin: distance beyond which negatives cost nothing.
        normalize: scale embeddings to unit length first, which keeps distances between 0 and 2. The publication does not.

    Raises:
        ValueError: the margin is not a number of at least 0.

    >>> import torch
    >>> loss = ContrastiveLoss(margin=4.0)
    >>> x = torch.tensor([[0.0], [3.0], [5.0]])
    >>> loss(x, torch.tensor([7, 7, 8]))  # 3^2 / 2 + mean of 0 and (4 - 2)^2 / 2
    tensor(5.5000)
    """

    def __init__(self, margin: float = 1.0, *, normalize: bool = False) -> None:
        super().__init__()
        self.margin = at_least_zero("margin", margin)
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar. A kind of pair that the batch lacks adds zero."""
        distances = pairwise_distances(in_full_precision(embeddings, normalize=self.normalize))
        positive, negative = pair_masks(labels)
        pull = masked_mean(distances.square(), positive)
        push = masked_mean(F.relu(self.margin - distances).square(), negative)
        return (pull + push) / 2

    def extra_repr(self) -> str:
        return f"margin={self.margin}, normalize={self.normalize}"
