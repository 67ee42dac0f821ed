"""The paper's objective: a metric loss and a softmax loss on every branch."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdbnet.config import is_ours
from bdbnet.training.distributed import gather, gather_with_gradient, world_size

MetricLoss = Callable[[Tensor, Tensor], Tensor]


class LossError(ValueError):
    """A metric loss that can't be trained with; the message names it and says what is expected."""


class BranchLosses(nn.Module):
    """Sum over the branches of metric loss and label-smoothed softmax (paper section 3, "Loss function").

    The metric loss sees the images of all ranks, because the paper's batch of 128 is one loss calculation; the softmax is a
    mean over images, which averaging over ranks gives anyway. Both are computed in float32 under autocast.

    Args:
        metric: ``loss(embeddings (N, D), labels (N,)) -> scalar``; or branch name -> such a loss, for losses that are made for one
            length of embedding; or None for the softmax alone.
        name: of the metric loss in logs, for example ``triplet``.
        metric_weight: factor of the metric loss.
        softmax_weight: factor of the softmax loss; 0 leaves it out.
        label_smoothing: share of the target spread evenly over all identities (0.1 as in the released code).
        center: branch name -> `CenterLoss`, or another loss that is added to the metric loss; empty: none.
        center_weight: factor of these.

    Raises:
        ValueError: neither loss is left, or a weight or the smoothing is out of range.
        LossError: a metric loss does not take (embeddings, labels); in ``forward``: it fails, or returns no scalar.
    """

    def __init__(
        self,
        metric: MetricLoss | Mapping[str, MetricLoss] | None,
        *,
        name: str = "metric",
        metric_weight: float = 1.0,
        softmax_weight: float = 1.0,
        label_smoothing: float = 0.1,
        center: Mapping[str, nn.Module] | None = None,
        center_weight: float = 5e-4,
    ) -> None:
        super().__init__()
        if min(metric_weight, softmax_weight, center_weight) < 0 or not 0 <= label_smoothing < 1:
            raise ValueError(
                "metric_weight, softmax_weight and center_weight must be at least 0, label_smoothing in [0, 1)"
            )
        if (metric is None or metric_weight == 0) and softmax_weight == 0:
            raise ValueError("nothing to train with: no metric loss and softmax_weight=0")
        self._by_branch = isinstance(metric, Mapping)
        losses = dict(metric) if isinstance(metric, Mapping) else {} if metric is None else {"": metric}
        for loss in losses.values():
            _check_call(loss)
        modules = {branch: loss for branch, loss in losses.items() if isinstance(loss, nn.Module)}
        # In a ModuleDict the parameters of all are found; what is no module has none.
        self.metric: Any = metric if not self._by_branch else nn.ModuleDict(modules) if modules else losses
        self.center = nn.ModuleDict(dict(center or {}))
        self.center_weight = center_weight
        self.name = name
        self.metric_weight = metric_weight
        self.softmax_weight = softmax_weight
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Mapping[str, Any], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts.

        Args:
            outputs: branch name -> ``BranchOutput(embedding (N, D) | None, logits (N, C) | None)``.
            labels: (N,) identities numbered 0..C-1.

        Returns:
            The weighted sum, and each unweighted part under ``<name>_<branch>`` or ``softmax_<branch>``.
        """
        return self.total(outputs, labels, *self.of_all_ranks(outputs, labels))

    def of_own_rank(self, outputs: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Branch name -> embeddings (N, D) for the metric loss, in float32 at least; and their labels (N,)."""
        found = {name: output.embedding for name, output in outputs.items() if output.embedding is not None}
        if self.metric is None and not self.center:
            return {}, labels
        # Widened before the ranks' gradients are summed, not after.
        return {name: part if part.dtype == torch.float64 else part.float() for name, part in found.items()}, labels

    def of_all_ranks(self, outputs: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same over the images of all ranks, in rank order; gradients flow back to every rank."""
        embeddings, labels = self.of_own_rank(outputs, labels)
        if not embeddings or world_size() == 1:
            return embeddings, labels
        every_label = gather(labels)
        return {name: gather_with_gradient(embedding) for name, embedding in embeddings.items()}, every_label

    def total(
        self, outputs: Mapping[str, Any], labels: Tensor, embeddings: Mapping[str, Tensor], every_label: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of `forward` from outputs and labels of this rank, and embeddings and labels `of_all_ranks`."""
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        for branch, output in outputs.items():
            if branch in embeddings and self.metric is not None:
                metric = self.metric[branch] if self._by_branch else self.metric
                loss = metric_loss(metric, embeddings[branch], every_label)
                parts[f"{self.name}_{branch}"] = loss
                terms.append(self.metric_weight * loss)
            if branch in embeddings and branch in self.center:
                loss = metric_loss(self.center[branch], embeddings[branch], every_label)
                parts[f"center_{branch}"] = loss
                terms.append(self.center_weight * loss)
            if self.softmax_weight and output.logits is not None:
                logits = output.logits if output.logits.dtype == torch.float64 else output.logits.float()
                loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                parts[f"softmax_{branch}"] = loss
                terms.append(self.softmax_weight * loss)
        return torch.stack(terms).sum(), parts


def metric_loss(metric: MetricLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    """A metric loss of (N, D) embeddings with (N,) labels, in full precision whatever the autocast state.

    Raises:
        LossError: it fails, or returns something else than a scalar tensor.
    """
    try:
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = metric(embeddings, labels)
    except Exception as error:
        if is_ours(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        shapes = f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}"
        raise LossError(
            f"loss {name_of(metric)} fails on {shapes}: {type(error).__name__}: {error}. HYDRA_FULL_ERROR=1 shows where"
        ) from error
    if not isinstance(loss, Tensor) or loss.ndim:
        returned = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise LossError(
            f"loss {name_of(metric)} returned {returned}; expected a scalar tensor, such as the mean over the images"
        )
    return loss


def name_of(metric: Any) -> str:
    """A loss as messages name it: its class, or the function."""
    metric = metric.func if isinstance(metric, functools.partial) else metric
    described = metric if inspect.isroutine(metric) else type(metric)
    return f"{described.__module__}.{described.__qualname__}"


def _check_call(metric: Any) -> None:
    call = metric.forward if isinstance(metric, nn.Module) else metric
    if not callable(call):
        raise LossError(
            f"loss {name_of(metric)} can't be called; expected loss(embeddings (N, D), labels (N,)) -> scalar"
        )
    try:
        inspect.signature(call).bind(None, None)
    except (TypeError, ValueError) as error:
        raise LossError(
            f"loss {name_of(metric)} does not take (embeddings, labels) ({error}); expected loss(embeddings (N, D), "
            "labels (N,)) -> scalar"
        ) from None
