"""Modules of a training without its data."""

from omegaconf import DictConfig

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.load import settings_of
from bdbnet.evaluation.network import build_network
from bdbnet.loading import Preprocessing
from bdbnet.training.module import TrainingModule
from bdbnet.training.setup import build_module


def training_module(config: DictConfig, num_classes: int = 4) -> TrainingModule:
    """The module that a configuration trains; it has no test set."""
    network, _ = build_network(config, num_classes)
    embedder = Embedder(network, Preprocessing((64, 32)), settings_of(config.evaluation))
    return build_module(config, embedder, [], num_classes)
