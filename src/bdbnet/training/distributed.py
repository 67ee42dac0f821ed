"""Talking to other ranks: the only file that does."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bdbnet.training.host_copy import HostCopy


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_about_others(error: Exception) -> bool:
    """Whether an error says that another process can't be reached any more."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(sign in str(error) for sign in ("gloo", "closed by peer", "NCCL"))
    )


def all_agree(own: bool, device: torch.device) -> bool:
    """Whether it holds on every rank.  All of them have to ask, and wait for one another."""
    if world_size() == 1:
        return own
    holds = torch.tensor(int(own), device=device)
    dist.all_reduce(holds, dist.ReduceOp.MIN)
    return bool(holds.item())


def largest_of_ranks(values: Tensor) -> Tensor:
    """The largest of all ranks' numbers, of any shape, in place, without waiting for the device."""
    if world_size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def texts_of_ranks(own: str) -> list[str]:
    """A text of every rank, in rank order."""
    texts: list[Any] = [own] * world_size()
    if world_size() > 1:
        dist.all_gather_object(texts, own)
    return texts


class AnyRank:
    """The largest of all ranks' numbers: what only one rank may have noticed.

    With several ranks the answer is that of the call before, and of zeros at the first one, so that the host never waits for work
    that it has just queued. It is the same on all ranks, which have to call equally often.
    """

    def __init__(self) -> None:
        self._pending: HostCopy | None = None

    def __call__(self, values: Sequence[int], device: torch.device) -> list[int]:
        if world_size() == 1:
            return list(values)
        largest = torch.tensor(values, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        before, self._pending = self._pending, HostCopy(largest)
        return [0] * len(values) if before is None else [int(value) for value in before.value.tolist()]


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backward gives each rank the sum of all ranks' gradients for its own rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(values: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (N, ...) -> (world_size * N, ...), through which gradients flow back to every rank.

    A loss computed from the gathered rows is the loss of the global batch, the same on all ranks. The backward pass sums
    the gradients of all ranks' copies of that loss, which is world_size times the true gradient; the averaging of
    ``DistributedDataParallel`` takes the factor out again.
    """
    return values if world_size() == 1 else _GatherRows.apply(values)


def gather(values: Tensor) -> Tensor:
    """Rows (N, ...) of all ranks in rank order, without a gradient (labels)."""
    size = world_size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
