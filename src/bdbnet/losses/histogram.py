"""Histogram loss (Ustinova and Lempitsky, NIPS 2016, "Learning Deep Embeddings with Histogram Loss")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.distances import in_full_precision


class HistogramLoss(nn.Module):
    """Probability that a random positive pair is less similar than a random negative pair, estimated by histograms.

    Cosine similarities of all pairs are split between the two nearest of ``bins`` nodes, which are spaced
    ``2 / (bins - 1)`` apart from -1 to 1; the loss is the sum over nodes of the negatives' histogram times the positives'
    cumulative one (publication, section 3, equations 2 to 4). Time and memory are linear in the number of pairs, and
    identities may have any number of images.

    Args:
        bins: nodes of the histograms, at least 2. The publication finds distances of 0.04, 0.02, 0.01 and 0.005 between
            nodes (51, 101, 201 and 401 of them) to work equally well; its authors' PyTorch code uses 151.
        normalize: scale embeddings to unit length first, as published. Otherwise dot products replace cosines, and
            those outside of -1 .. 1 are clipped.

    Raises:
        ValueError: fewer than 2 bins.

    >>> loss = HistogramLoss(bins=3)  # nodes at -1, 0 and 1
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> loss(x, torch.tensor([7, 7, 8]))  # positive 0.8: (0, .2, .8); negatives 0 and 0.6: (0, .7, .3)
    tensor(0.4400)
    """

    def __init__(self, bins: int = 150, *, normalize: bool = True) -> None:
        super().__init__()
        if not isinstance(bins, int) or isinstance(bins, bool) or bins < 2:
            raise ValueError(f"bins: expected a whole number of at least 2, got {bins!r}")
        self.bins = bins
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) without a pair of either kind."""
        embeddings = in_full_precision(embeddings, normalize=self.normalize)
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = embeddings @ embeddings.T
        with torch.no_grad():
            # In place and without autograd: values that rounding puts outside are clipped but keep their gradient.
            similarities.clamp_(-1, 1)
        negatives, positives = self._histograms((similarities + 1) * ((self.bins - 1) / 2), labels)
        loss: Tensor = (negatives * positives.cumsum(0)).sum()
        return loss.to(embeddings.dtype)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, normalize={self.normalize}"

    def _histograms(self, position: Tensor, labels: Tensor) -> Tensor:
        """Negatives' and positives' histogram (2, bins) of (N, N) positions on the scale of nodes, 0 .. bins - 1.

        Both triangles count, which changes nothing after normalisation; the diagonal goes into a third histogram.
        """
        lower = position.detach().long().clamp_(0, self.bins - 2)
        upper_share = position - lower
        kind = (labels[:, None] == labels[None, :]).long().fill_diagonal_(2)
        slots = (lower + kind * self.bins).flatten()
        # Sums of float32 shares are exact in float64, whatever the order in which a GPU's threads arrive.
        empty = torch.zeros(3 * self.bins, dtype=torch.float64, device=position.device)
        pairs = empty.index_add(0, slots, torch.ones_like(empty[:1]).expand(len(slots)))
        upper = empty.index_add(0, slots, upper_share.flatten().double())
        pairs, upper = pairs.view(3, -1)[:2], upper.view(3, -1)[:2]
        histograms = pairs - upper + F.pad(upper[:, :-1], (1, 0))
        return histograms / pairs.sum(dim=1, keepdim=True).clamp(min=1)
