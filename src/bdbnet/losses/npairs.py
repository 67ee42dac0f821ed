"""N-pair loss (Sohn, NIPS 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.arguments import at_least_zero
from bdbnet.losses.distances import in_full_precision, masked_mean, pair_masks


class NPairsLoss(nn.Module):
    """Softmax cross entropy that finds an anchor's positive among one negative of every other identity, by inner product.

    The publication (N-pair-mc) draws one pair (anchor, positive) per identity, and the other identities' positives are the
    negatives. Here every ordered positive pair (a, p) of the batch takes part, whatever the number of images, and each
    other identity c counts once, by the mean over its images n:

        log(1 + sum over c of mean over n of exp(x_a x_n - x_a x_p))

    averaged over the pairs. Where an identity's images coincide it is the published loss, and it bounds from above the
    mean of the published loss over all ways to draw the negatives.

    Args:
        l2_weight: factor of the mean squared length of the embeddings that take part, before any scaling. The
            publication has such a penalty instead of unit lengths. 0.001 equals the default of TensorFlow's version
            of this loss.
        normalize: scale embeddings to unit length before taking inner products. The publication advises against it.

    Raises:
        ValueError: the weight is not a number of at least 0.

    >>> loss = NPairsLoss(l2_weight=0.0)
    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> loss(x, torch.tensor([7, 7, 8]))  # both pairs have product 2, their negatives 0: log(1 + exp(0 - 2))
    tensor(0.1269)
    """

    def __init__(self, *, l2_weight: float = 0.001, normalize: bool = False) -> None:
        super().__init__()
        self.l2_weight = at_least_zero("l2_weight", l2_weight)
        self.normalize = normalize

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) where no anchor has both pairs."""
        raw = in_full_precision(embeddings, normalize=False)
        points = in_full_precision(embeddings, normalize=self.normalize)
        positive, negative = pair_masks(labels)
        with torch.autocast(points.device.type, enabled=False):
            # Only differences between products of one anchor count, so the other factor can be centred, which keeps
            # float32 accurate where all embeddings have a large common part.
            products = points @ (points - points.detach().mean(dim=0)).T
        shares = (~negative).sum(dim=1).to(products.dtype).log()
        # Not minus infinity: its gradient would be NaN in a batch of one identity.
        lowest = torch.finfo(products.dtype).min
        others = (products - shares).masked_fill(~negative, lowest).logsumexp(dim=1, keepdim=True)
        loss = masked_mean(F.softplus(others - products, threshold=50), positive)
        if self.l2_weight:
            usable = positive.any(dim=1) & negative.any(dim=1)
            loss = loss + self.l2_weight * masked_mean(raw.square().sum(dim=1), usable)
        return loss

    def extra_repr(self) -> str:
        return f"l2_weight={self.l2_weight}, normalize={self.normalize}"
