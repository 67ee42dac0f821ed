"""Margin loss on negatives drawn by distance (Wu, Manmatha, Smola, Krähenbühl, ICCV 2017, "Sampling Matters in Deep
Embedding Learning")."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.losses.arguments import at_least_zero
from bdbnet.losses.distances import in_full_precision, pair_masks, pairwise_distances


def sampling_probabilities(
    distances: Tensor, negative: Tensor, dimension: int, *, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4
) -> Tensor:
    """Probability of each image to be drawn as an anchor's negative (publication, section 4).

    In proportion to 1 / q(d), where q(d) ~ d^(D-2) (1 - d^2/4)^((D-3)/2) is the density of distances between random
    points of the unit sphere in D dimensions. With a few hundred dimensions the weights exceed the range of floating
    point, so they are kept as logarithms until each anchor's largest is 1.

    Args:
        distances: (N, N) on the unit sphere, anchors in rows.
        negative: (N, N) bool.
        dimension: D of the embeddings.
        cutoff: smaller distances count as this one.
        nonzero_loss_cutoff: negatives at this distance or farther are not drawn. An anchor whose negatives are all
            that far draws uniformly among them, as in the authors' code.

    Returns:
        (N, N), rows summing to 1; NaN in the rows without a negative.
    """
    quarter = distances.clamp(cutoff, nonzero_loss_cutoff).square_().mul_(0.25)
    logits = quarter.log().mul_(1 - dimension / 2).sub_(quarter.neg_().log1p_(), alpha=(dimension - 3) / 2)
    near = negative & (distances < nonzero_loss_cutoff)
    none_near = ~near.any(dim=1, keepdim=True)
    logits.masked_fill_(none_near, 0).masked_fill_(~torch.where(none_near, negative, near), -torch.inf)
    return logits.softmax(dim=1)


class MarginLoss(nn.Module):
    """Positives nearer than ``beta - alpha``, negatives farther than ``beta + alpha``, one drawn negative per positive.

    Sum of ``max(0, alpha + D_ap - beta) + max(0, alpha - D_an + beta)`` over the batch's ordered positive pairs (a, p),
    each with a negative n drawn by `sampling_probabilities`, divided by the number of terms above zero (publication,
    section 4; its authors' code). The draws are a function of `(seed, step)` and the batch, where `step` is a persistent
    buffer that counts the training forwards: ranks that see the same batch draw the same negatives, and a checkpoint
    restores the sequence. In eval mode `step` does not change.

    Args:
        alpha: half the gap between positives and negatives.
        beta: the boundary between both, or its initial value if it is learnt.
        learn_beta: make beta a parameter. The optimizer has to include it.
        num_classes: one beta per identity, for this many identities, chosen by the anchor's label, which must be in
            0 .. num_classes - 1.
        normalize: scale embeddings to unit length first, as published. Otherwise the loss uses the embeddings as they
            are, but negatives are still drawn by distances on the unit sphere, for which alone q(d) holds.
        cutoff: smaller distances count as this one when negatives are drawn.
        nonzero_loss_cutoff: negatives at this distance or farther are drawn only by anchors that have no nearer one.
        nu: weight of the sum of the anchors' betas, which is added to the sum of the terms; with a lower beta more negatives
            and fewer positives cost nothing. Needs ``learn_beta``.
        seed: chooses the sequence of draws.

    Raises:
        ValueError: an argument out of range, or a label outside 0 .. num_classes - 1.

    >>> loss = MarginLoss(alpha=0.2, beta=1.0)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    >>> loss(x, torch.tensor([7, 7, 8]))  # (2 (0.2 + 1.41 - 1) + 0.2 - 0.63 + 1 + 0.2 - 0.89 + 1) / 4
    tensor(0.5254)
    """

    step: Tensor
    beta: float | nn.Parameter

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 1.2,
        learn_beta: bool = False,
        *,
        num_classes: int | None = None,
        normalize: bool = True,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        nu: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
            raise ValueError(f"num_classes: expected None or a whole number of at least 1, got {num_classes!r}")
        if not 0 < cutoff < nonzero_loss_cutoff <= 2:
            raise ValueError(
                f"cutoff, nonzero_loss_cutoff: expected 0 < cutoff < nonzero_loss_cutoff <= 2, the largest distance on "
                f"the unit sphere, got {cutoff!r} and {nonzero_loss_cutoff!r}"
            )
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: expected a whole number of at least 0, got {seed!r}")
        self.alpha = at_least_zero("alpha", alpha)
        self.nu = at_least_zero("nu", nu)
        if nu and not learn_beta:
            raise ValueError(f"nu: {nu!r} has no effect on a fixed beta; set learn_beta=True or nu=0")
        start = at_least_zero("beta", beta)
        # A fixed beta is the same for all classes and stays a Python number: float32 1.2 would be inexact in float64.
        self.beta = nn.Parameter(torch.full((num_classes or 1,), start)) if learn_beta else start
        self.num_classes = num_classes
        self.normalize = normalize
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels: a scalar, zero (with a graph) where no anchor has both pairs."""
        embeddings, distances = self._distances(embeddings)
        anchor, positive, negative = self._draw(embeddings, distances, labels)
        if self.training:
            self.step.add_(1)
        # Gathered from the matrix: gradients that add up in one cell are equal, so their sum does not depend on the order.
        cells = torch.cat([positive, negative]) + anchor.repeat(2) * len(labels)
        to_positive, to_negative = distances.flatten().index_select(0, cells).chunk(2)
        beta = self._boundary(labels, anchor)
        pull = F.relu(self.alpha + to_positive - beta)
        push = F.relu(self.alpha - to_negative + beta)
        total = pull.sum() + push.sum()
        if self.nu:
            total = total + self.nu * (beta + torch.zeros_like(to_positive)).sum()
        return total / ((pull > 0).sum() + (push > 0).sum()).clamp(min=1)

    @torch.no_grad()
    def triplets(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triplets of the next forward: (P,) rows of the anchors, of their positives and of the drawn negatives."""
        return self._draw(*self._distances(embeddings), labels)

    def extra_repr(self) -> str:
        beta = self.beta if isinstance(self.beta, float) else f"learnt, nu={self.nu}"
        return (
            f"alpha={self.alpha}, beta={beta}, num_classes={self.num_classes}, normalize={self.normalize}, "
            f"cutoff={self.cutoff}, nonzero_loss_cutoff={self.nonzero_loss_cutoff}, seed={self.seed}"
        )

    def _distances(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = in_full_precision(embeddings, normalize=self.normalize)
        return embeddings, pairwise_distances(embeddings)

    @torch.no_grad()
    def _draw(self, embeddings: Tensor, distances: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.normalize:
            distances = pairwise_distances(F.normalize(embeddings))
        positive, negative = pair_masks(labels)
        probabilities = sampling_probabilities(
            distances,
            negative,
            embeddings.shape[1],
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
        )
        anchors, positives = (positive & negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
        # Inverse of the distribution function, all rows in one search: row i climbs from i to exactly i + 1. The first
        # entry that reaches a point in (i, i + 1] is one that climbs, never an image of probability zero.
        climb = probabilities.cumsum(dim=1, dtype=torch.float64)
        climb = climb / climb[:, -1:] + torch.arange(len(labels), device=labels.device)[:, None]
        cells = torch.searchsorted(climb.flatten(), anchors + 1 - self._uniform(len(anchors), labels.device))
        return anchors, positives, cells - anchors * len(labels)

    def _uniform(self, amount: int, device: torch.device) -> Tensor:
        """Numbers in [0, 1), at most 1 - 2^-24, which `(seed, step)` and the amount determine."""
        # Hashed to one word, because a CPU generator uses only 32 bits of its seed.
        word = np.random.SeedSequence((self.seed, int(self.step))).generate_state(1)[0]
        generator = torch.Generator(device).manual_seed(int(word))
        return torch.rand(amount, generator=generator, device=device).double()

    def _boundary(self, labels: Tensor, anchor: Tensor) -> Tensor | float:
        if self.num_classes is None:
            return self.beta
        low, high = (int(label) for label in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels: expected 0 .. {self.num_classes - 1} (num_classes - 1), got {low} .. {high}")
        return self.beta.index_select(0, labels[anchor]) if isinstance(self.beta, nn.Parameter) else self.beta
