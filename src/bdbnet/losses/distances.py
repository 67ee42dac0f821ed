"""Pairwise distances, pair masks and means over pairs that the metric losses share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def in_full_precision(embeddings: Tensor, *, normalize: bool) -> Tensor:
    """Embeddings (N, D) in float32 (float64 stays float64), scaled to unit length if asked; zero vectors stay zero."""
    points = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return F.normalize(points) if normalize else points


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all rows.

    Computed in float32 (float64 stays float64) whatever the autocast state: bfloat16 keeps 8 bits, too few to order
    the distances of a batch.

    Args:
        embeddings: (N, D).

    Returns:
        (N, N), zero on the diagonal. The gradient at distance zero is zero, never NaN.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        points = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        # Distances do not change under translation; centring makes the norms small, and with them the cancellation
        # in |a|^2 + |b|^2 - 2ab that would otherwise swallow small distances.
        points = points - points.detach().mean(dim=0)
        norms = points.square().sum(dim=1)
        squared = torch.addmm(norms[:, None] + norms[None, :], points, points.T, alpha=-2)
        itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
        return safe_sqrt(squared.masked_fill(itself, 0))


def row_distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of each row of ``first`` to the same row of ``second``: two (N, D) -> (N,)."""
    return safe_sqrt((first - second).square().sum(dim=1))


def safe_sqrt(squared: Tensor) -> Tensor:
    """Square root that is zero, with a zero gradient, at and below zero, where the plain one has infinity or NaN.

    Of a tensor of any shape. NaN stays NaN, so that a network that diverged is seen in its loss.
    """
    positive = ~(squared <= 0)
    return torch.where(positive, squared, 1).sqrt() * positive


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of a batch are positive and which negative.

    Args:
        labels: (N,) identities.

    Returns:
        (N, N) positives (same identity, another image) and (N, N) negatives (another identity), both boolean.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is true: two of one shape -> scalar, zero (with a graph) where it never is."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
