"""Talking to other ranks: the only file that does."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_gradient(values: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (N, ...) -> (world_size * N, ...), through which gradients flow back to every rank.

    A loss computed from the gathered rows is the loss of the global batch, the same on all ranks. The backward pass sums
    the gradients of all ranks' copies of that loss, which is world_size times the true gradient; the averaging of
    ``DistributedDataParallel`` takes the factor out again.
    """
    if world_size() == 1:
        return values
    return torch.cat(tuple(all_gather(values.contiguous())))


def gather(values: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without a gradient (labels)."""
    size = world_size()
    if size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
