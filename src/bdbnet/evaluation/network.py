"""The network that a configuration describes, with its starting weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from bdbnet.config import ConfigError, arguments_of, check_class, instantiate, is_set, locate, without
from bdbnet.models import CheckpointError, EmbeddingNetwork, FeatureMap, initialize_from
from bdbnet.settings import is_whole

#: Groups of a configuration that a network is built from.
PARTS = ("model", "backbone", "dropping")

#: Values of `backbone.weights` that name no file.
_NO_FILES = (None, "none", "imagenet")


def build_network(
    config: DictConfig, num_classes: int, *, ours_only: bool = False
) -> tuple[EmbeddingNetwork, list[str]]:
    """The network, and the names of its parts that start from a file of weights.

    Args:
        config: groups ``model``, ``backbone`` and, for networks with branches, ``dropping``.
        num_classes: identities that the classifiers know; 0 leaves them out.
        ours_only: the config comes from a checkpoint, not from the user: only networks of bdbnet are built.

    Raises:
        ConfigError: settings that a class refuses, a class that is not allowed, or a backbone that is none.
        CheckpointError: starting weights that can't be used; a file's names the key.
    """
    weights = config.backbone.get("weights")
    with _key_named(weights):
        backbone = _build_backbone(config, ours_only=ours_only)
    # Networks with a choice of branches have a drop layer; others have no use for one.
    drop = {"dropping": instantiate(config.dropping, ours_only=ours_only)} if "branches" in config.model else {}
    network: EmbeddingNetwork = instantiate(
        config.model, ours_only=ours_only, num_classes=num_classes, backbone=backbone, **drop
    )
    if weights in _NO_FILES:
        return network, []
    with _key_named(weights):
        return network, initialize_from(network, weights)


@contextmanager
def _key_named(weights: str | None) -> Iterator[None]:
    """What is wrong with a file of starting weights, with the key that names it."""
    try:
        yield
    except CheckpointError as error:
        if weights in _NO_FILES:
            raise
        raise CheckpointError(f"backbone.weights={error}") from error


def _build_backbone(config: DictConfig, *, ours_only: bool) -> torch.nn.Module:
    settings, target = config.backbone, config.backbone.get("_target_")
    check_class(settings, "backbone", ours_only=ours_only)
    weights = settings.get("weights")
    is_own = str(target).startswith("bdbnet.")
    if not is_own and "weights" in settings and "weights" not in arguments_of(locate(target)):
        if weights == "imagenet":
            raise ConfigError(f"backbone.weights=imagenet: {target} has no argument `weights`; give none, or a file")
        settings = without(settings, ["weights"])
    backbone = instantiate(settings, ours_only=ours_only)
    if not isinstance(backbone, torch.nn.Module):
        raise ConfigError(f"backbone {target} is a {type(backbone).__name__}; expected a torch.nn.Module")
    channels = getattr(backbone, "out_channels", None)
    if not is_whole(channels, 1):
        raise ConfigError(
            f"backbone {target} has no out_channels: set self.out_channels to the number of channels of its feature map"
        )
    if not is_own and is_set(config.get("dataset"), "image_size"):
        _check_feature_map(backbone, target, list(config.dataset.image_size))
    return backbone


def _check_feature_map(backbone: torch.nn.Module, name: str, size: list[int]) -> None:
    """Try a backbone of a plugin on two blank images, before anything is written."""
    expected = f"expected a feature map (N, C, H, W), here (2, {backbone.out_channels}, H, W)"
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval()(torch.zeros(2, 3, *size))
    except Exception as error:
        raise ConfigError(
            f"backbone {name} fails on images (2, 3, {size[0]}, {size[1]}): {type(error).__name__}: {error}"
        ) from error
    finally:
        backbone.train(training)
    if isinstance(found, FeatureMap):
        if found.token is not None and found.token.shape != (2, backbone.out_channels):
            raise ConfigError(
                f"backbone {name} returned a token of shape {tuple(found.token.shape)}; expected (2, {backbone.out_channels})"
            )
        found = found.map
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"backbone {name} returned a {type(found).__name__}; {expected}")
    if found.ndim != 4 or found.shape[:2] != (2, backbone.out_channels):
        raise ConfigError(f"backbone {name} returned shape {tuple(found.shape)}; {expected}")


def count_parameters(network: EmbeddingNetwork) -> int:
    """Number of the network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
