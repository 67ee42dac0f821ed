"""Batch normalisation over the images of all ranks, for CPUs; on GPUs PyTorch has its own."""

from collections.abc import Callable
from typing import Any, cast

import torch
from omegaconf import DictConfig
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdbnet.config import ConfigError
from bdbnet.evaluation.trainer import on_gpu
from bdbnet.training.distributed import gather_with_gradient, world_size


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics are those of the images of all ranks, whatever each of them has.

    Every rank sends count, mean and sum of squared deviations of its own images, through which gradients flow back to it; the
    three are put together as in Chan, Golub, LeVeque 1979 ("Updating formulae and a pairwise algorithm for computing sample
    variances"). On one rank, and in eval mode, it is the ordinary layer. Keys of the state are those of the ordinary layer.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (N, C, ...): the layer that this one stands for has checked its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...); N may differ from rank to rank.  Raises ValueError where all ranks have one value a channel."""
        batch_statistics = self.training or self.running_mean is None
        if not (batch_statistics and self.training and world_size() > 1):
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        count, mean, variance = statistics_of_all_ranks(values)
        self._track(count, mean.detach(), variance.detach())
        shape = (1, -1) + (1,) * (input.dim() - 2)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        result = (values - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        factor: float | Tensor = self.momentum if self.momentum is not None else 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean of all batches so far
                factor = 1.0 / self.num_batches_tracked.to(mean.dtype)
        unbiased = variance * (count / (count - 1))
        self.running_mean.add_((mean - self.running_mean) * factor)
        self.running_var.add_((unbiased - self.running_var) * factor)


def statistics_of_all_ranks(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of values a channel, their mean (C,) and biased variance (C,), over the (N, C, ...) of all ranks.

    Raises:
        ValueError: a single value a channel, which has no variance.
    """
    channels = values.shape[1]
    own = values.transpose(0, 1).reshape(channels, -1)
    amount = own.shape[1]
    mean = own.sum(1) / max(amount, 1)
    deviations = (own - mean[:, None]).square().sum(1)
    row = torch.cat([mean, deviations, mean.new_tensor([float(amount)])])[None]
    means, squares, counts = torch.split(gather_with_gradient(row), [channels, channels, 1], dim=1)
    count = counts.detach().sum()
    if count <= 1:
        raise ValueError("batch normalisation needs more than one value per channel over all processes")
    mean = (means * counts).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return count, mean, variance


_ORDINARY = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_replaceable(network: nn.Module) -> None:
    """Refuse layers that do more than normalise: whoever replaces them, PyTorch or this module, would leave the rest out.

    Raises:
        ConfigError: there is one; the message names it.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in _ORDINARY:
            kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
            raise ConfigError(
                f"trainer.sync_batchnorm=true: the network's layer {name} is a {kind}, which may do more than normalise and "
                "can't be replaced. Leave sync_batchnorm out, or choose another backbone"
            )


class BatchNormOverRanks(LayerSync):
    """Lightning's plugin for `trainer.sync_batchnorm` on CPUs: takes the place of the layers while a network is trained."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with a `GlobalBatchNorm` for each layer; parameters and buffers are the same tensors."""
        return _replaced(model, _is_ordinary, GlobalBatchNorm)

    def revert(self, model: nn.Module) -> nn.Module:
        """The model with ordinary layers."""
        return _replaced(model, lambda layer: isinstance(layer, GlobalBatchNorm), None)


def layer_sync_of(config: DictConfig, network: nn.Module) -> LayerSync | None:
    """What `trainer.sync_batchnorm` needs beside Lightning: on CPUs `BatchNormOverRanks`.

    Raises:
        ConfigError: see `check_replaceable`.
    """
    if not config.trainer.sync_batchnorm:
        return None
    check_replaceable(network)
    return None if on_gpu(config.trainer) else BatchNormOverRanks()


def _is_ordinary(layer: nn.Module) -> bool:
    return type(layer) in _ORDINARY


def _replaced(module: nn.Module, chosen: Callable[[nn.Module], bool], kind: type[_BatchNorm] | None) -> nn.Module:
    if chosen(module):
        layer: Any = module
        made: Any = (kind or layer.stands_for)(
            layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=False
        )
        if kind is not None:
            made.stands_for = type(layer)
        made.affine, made.track_running_stats = layer.affine, layer.track_running_stats
        made._parameters.update(layer._parameters)
        made._buffers.update(layer._buffers)
        return cast(nn.Module, made.train(layer.training))
    for name, child in module.named_children():
        changed = _replaced(child, chosen, kind)
        if changed is not child:
            module.add_module(name, changed)
    return module
