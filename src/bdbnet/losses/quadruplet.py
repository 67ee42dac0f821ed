"""Quadruplet loss (Chen, Chen, Zhang, Huang, CVPR 2017, "Beyond Triplet Loss: A Deep Quadruplet Network for Person
Re-Identification") on the hardest pairs of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.arguments import at_least_zero
from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks, pairwise_distances, row_distances


class QuadrupletLoss(nn.Module):
    """A triplet term, and a term that keeps positives closer than negative pairs of two other identities.

    With p the farthest positive of anchor a, n its nearest negative, and (k, l) the nearest pair of images of two
    identities that are neither each other's nor the anchor's:

        mean over anchors of max(0, alpha1 + D_ap - D_an)  +  mean over anchors of max(0, alpha2 + D_ap - D_kl)

    Anchors that lack one of the pairs of a term take no part in its mean; the second term needs three identities. The
    publication sums over all quadruplets of a learned, squared metric and then mines by margins that follow the data;
    here, as in the batch-hard triplet loss, Euclidean distances and each anchor's hardest quadruplet.

    Args:
        alpha1: margin of the first term.
        alpha2: margin of the second term, the weaker one in the publication.
        normalize: scale embeddings to unit length first.

    Raises:
        ValueError: a margin is not a number of at least 0.

    >>> loss = QuadrupletLoss(alpha1=2.0, alpha2=1.0)
    >>> x = torch.tensor([[0.0], [3.0], [5.0], [9.0]])
    >>> loss(x, torch.tensor([7, 7, 8, 9]))  # mean of 2+3-5 and 2+3-2, plus 1+3-4 of both
    tensor(1.5000)
    """

    def __init__(self, alpha1: float = 1.0, alpha2: float = 0.5, *, normalize: bool = False) -> None:
        super().__init__()
        self.alpha1 = at_least_zero("alpha1", alpha1)
        self.alpha2 = at_least_zero("alpha2", alpha2)
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) where no anchor has both pairs."""
        points = in_full_precision(embeddings, normalize=self.normalize)
        positive, negative = pair_masks(labels)
        with torch.no_grad():
            distances = pairwise_distances(points)
            farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1)
            apart = distances.masked_fill(~negative, torch.inf)
            nearest = apart.argmin(dim=1)
            pairs, left_out = _nearest_pairs(apart, labels)
        # Mined on the distance matrix, then computed pair by pair, as in the batch-hard triplet loss.
        to_positive = row_distances(points, points.index_select(0, farthest))
        to_negative = row_distances(points, points.index_select(0, nearest))
        overall, without_first, without_second = row_distances(*points.index_select(0, pairs.flatten()).chunk(2))
        first, second = left_out
        elsewhere = torch.where(labels == first, without_first, torch.where(labels == second, without_second, overall))

        usable = positive.any(dim=1) & negative.any(dim=1)
        third_identity = ((labels != first) & (labels != second)).any()
        near = masked_mean(F.relu(self.alpha1 + to_positive - to_negative), usable)
        far = masked_mean(F.relu(self.alpha2 + to_positive - elsewhere), usable & third_identity)
        return near + far

    def extra_repr(self) -> str:
        return f"alpha1={self.alpha1}, alpha2={self.alpha2}, normalize={self.normalize}"


def _nearest_pairs(apart: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest pair of two identities for every anchor at once: only two identities can need another than the overall one.

    Args:
        apart: (N, N) distances, infinite where the identity is the same.
        labels: (N,).

    Returns:
        (2, 3) rows of three nearest pairs: overall, without the first image's identity, without the second's; and those
        two identities, (2,).
    """

    def nearest(candidates: Tensor) -> Tensor:
        cell = candidates.argmin()
        return torch.stack([cell // len(labels), cell % len(labels)])

    overall = nearest(apart)
    pairs, left_out = [overall], labels.index_select(0, overall)
    for identity in left_out:
        excluded = labels == identity
        pairs.append(nearest(apart.masked_fill(excluded[:, None] | excluded[None, :], torch.inf)))
    return torch.stack(pairs, dim=1), left_out
