"""The network that a configuration describes, with its starting weights."""

from omegaconf import DictConfig

from bdbnet.config import instantiate
from bdbnet.models import EmbeddingNetwork, initialize_from

#: Groups of a configuration that a network is built from.
PARTS = ("model", "backbone", "dropping")


def build_network(
    config: DictConfig, num_classes: int, *, ours_only: bool = False
) -> tuple[EmbeddingNetwork, list[str]]:
    """The network, and the names of its parts that start from a file of weights.

    Args:
        config: groups `model`, `backbone` and `dropping`.
        num_classes: identities of the training set; 0: no classifiers.
        ours_only: build nothing outside of bdbnet's own names: for configurations that a file brings.

    Raises:
        ConfigError: a `_target_` that is not allowed, or an argument that its class refuses.
        CheckpointError: the file of weights can't be used.
    """
    backbone = instantiate(config.backbone)
    # Networks with a choice of branches have a drop layer; others have no use for one.
    drop = {"dropping": instantiate(config.dropping)} if "branches" in config.model else {}
    network: EmbeddingNetwork = instantiate(config.model, num_classes=num_classes, backbone=backbone, **drop)
    weights = config.backbone.get("weights")
    if weights in (None, "none", "imagenet"):
        return network, []
    return network, initialize_from(network, weights)


def count_parameters(network: EmbeddingNetwork) -> int:
    """Number of the network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
