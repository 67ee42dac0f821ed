"""`WeightAverage`: the exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network's weights, beside the weights that are trained.

    Update t, from 1, is average = d * average + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)), so that the first
    steps, which change most, are soon forgotten. The average begins as the weights that the network has now.

    Averaged are parameters and the running statistics of batch normalisation: statistics of the last step alone would belong to
    other weights than the averaged ones. Counters (whole numbers, true and false) are the network's own.

    Args:
        network: that is trained.
        decay: d of all but the first updates; above 0 and below 1.

    Attributes:
        updates: t.

    Raises:
        ValueError: decay out of range.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: give a number above 0 and below 1")
        self._network, self._decay = network, decay
        self._kept = {*network.state_dict()}
        self.updates = 0
        self._average = {key: tensor.detach().clone() for key, tensor in self._weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in, after a step of the optimizer."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        weights = self._weights()
        torch._foreach_lerp_([*self._average.values()], [weights[key] for key in self._average], 1 - decay)

    @torch.inference_mode(False)  # in which an evaluation calls it: what is moved here is trained with later
    def swap(self) -> None:
        """Give the network the averaged weights; called again, its own.

        Tensors change places, their content does not: what holds the memory of a trained weight finds it again.
        """
        for key, tensor in self._weights().items():
            own = tensor.data
            tensor.data, self._average[key] = self._average[key].to(own.device, own.dtype), own

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def follow(self) -> None:
        """Bring the average to the device and the precision that the network has now."""
        self.swap()
        self.swap()

    def restore(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Continue from an earlier state; `average` has a tensor for every key of the averaged weights."""
        for key, tensor in self._average.items():
            self._average[key] = tensor.to(average[key].dtype).copy_(average[key])
        self.updates = updates

    def names(self) -> list[str]:
        """Keys, in the network's state, of what is averaged."""
        return [*self._average]

    def _weights(self) -> dict[str, Tensor]:
        """What is averaged: a layer may have replaced its buffers since the last call."""
        return {
            key: tensor
            for key, tensor in chain(self._network.named_parameters(), self._network.named_buffers())
            if tensor.is_floating_point() and key in self._kept
        }
