"""What a training minimises and how, from a configuration: metric loss, optimizer, schedule."""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, arguments_of, check_class, instantiate, is_set, locate, without
from bdbnet.losses.center import CenterLoss
from bdbnet.models import EmbeddingNetwork
from bdbnet.training.criterion import MetricLoss
from bdbnet.training.schedules import LearningRate

#: Parameters alone, or groups of them with settings of their own.
ParameterGroups = list[torch.nn.Parameter] | list[dict[str, Any]]

#: Names under which losses ask for the length of the embeddings.
EMBEDDING_DIM = ("embedding_dim", "embedding_size")

#: Optimizers whose steps are not those of a training here.
_OTHER_STEPS = {
    "LBFGS": "evaluates the loss of a batch several times for one step",
    "SparseAdam": "takes sparse gradients, which no network here has",
}


def build_metric_loss(
    config: DictConfig, network: EmbeddingNetwork, num_classes: int
) -> MetricLoss | dict[str, MetricLoss] | None:
    """The metric loss of ``config.loss``: one for all branches, or one for each where it depends on the length of the embedding.

    A function of (embeddings, labels) is a loss as it is. Of a class, or a function that makes a loss, ``embedding_dim`` or
    ``embedding_size``, and ``num_classes`` where it has no default, are filled in unless they are set.

    Raises:
        ConfigError: a class that is not allowed, or settings that it refuses.
    """
    group = config.loss
    if group.metric is None:
        return None
    check_class(group.metric, "loss.metric")
    asked = {
        name: default
        for name, default in arguments_of(locate(group.metric._target_)).items()
        if not is_set(group.metric, name)
    }
    settings = without(group.metric, asked)
    made = locate(group.metric._target_)
    if not isinstance(made, type) and [*arguments_of(made)][:2] == ["embeddings", "labels"]:
        return cast(MetricLoss, instantiate(OmegaConf.merge(settings, {"_partial_": True})))  # it is the loss
    known: dict[str, Any] = {}
    # A loss that may keep numbers for every identity has a switch for it.
    if "num_classes" in asked and group.get("per_class", not asked["num_classes"]):
        known["num_classes"] = num_classes
    lengths = [name for name in EMBEDDING_DIM if name in asked]
    if not lengths:
        return cast(MetricLoss, instantiate(settings, **known))
    dims = _embedding_dims(network, list(config.dataset.image_size))
    return {branch: instantiate(settings, **{**known, **dict.fromkeys(lengths, dim)}) for branch, dim in dims.items()}


def build_center_loss(config: DictConfig, network: EmbeddingNetwork, num_classes: int) -> dict[str, torch.nn.Module]:
    """The centre loss of every branch that has a metric loss; empty without ``loss.center_weight``.  Raises
    ConfigError for a network without a metric loss."""
    if not config.loss.get("center_weight"):
        return {}
    rate = config.loss.get("center_rate")
    dims = _embedding_dims(network, list(config.dataset.image_size))
    if not dims:
        raise ConfigError(
            f"loss.center_weight={config.loss.center_weight}: this network has no branch with a metric loss; leave it out"
        )
    return {branch: CenterLoss(num_classes, dim, 0.5 if rate is None else rate) for branch, dim in dims.items()}


def _embedding_dims(network: EmbeddingNetwork, size: list[int]) -> dict[str, int]:
    """Length of the embedding of every branch that has a metric loss."""
    training = network.training
    with torch.no_grad():
        outputs = network.eval()(torch.zeros(2, 3, *size))
    network.train(training)
    return {branch: out.embedding.shape[1] for branch, out in outputs.items() if out.embedding is not None}


def build_schedule(config: DictConfig) -> LearningRate:
    """How the learning rate changes, from ``config.schedule``.  Raises ConfigError that names the key."""
    group = config.schedule
    interval = group.get("interval", "epoch")
    check_class(group, "schedule")
    made = locate(group._target_)
    own = arguments_of(made)
    follows = isinstance(made, type) and issubclass(made, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if group._target_.rpartition(".")[2] in ("ChainedScheduler", "SequentialLR"):
        raise ConfigError(
            f"schedule._target_: {group._target_} is made of other schedulers, which settings can't describe. Use schedule=cosine "
            "for a warm-up, or a function of your own, epoch -> factor, in a plugin"
        )
    # null: to be filled in, or the class's own default.
    settings = without(group, {"interval", "monitor", *(key for key in own if not is_set(group, key))})
    return LearningRate(
        functools.partial(instantiate, settings),
        arguments=own.keys() - {*settings},
        max_epochs=config.trainer.max_epochs,
        interval=interval,
        monitor=(group.get("monitor") or "loss") if follows else None,
        evaluated_every=config.evaluation.every_n_epochs,
    )


def optimizer_factory(config: DictConfig) -> Callable[[ParameterGroups], torch.optim.Optimizer]:
    """What makes the optimizer of ``config`` for parameters.  It raises ConfigError for settings that the optimizer refuses."""

    def build(parameters: ParameterGroups) -> torch.optim.Optimizer:
        check_class(config, "optimizer")
        name = config._target_.rpartition(".")[2]
        if name in _OTHER_STEPS:
            raise ConfigError(
                f"optimizer._target_: {config._target_} {_OTHER_STEPS[name]}; choose another, such as torch.optim.AdamW"
            )
        # How the arithmetic is done, not which: not every optimizer has a choice.
        settings = without(config, {"fused"} - arguments_of(locate(config._target_)).keys())
        optimizer: torch.optim.Optimizer = instantiate(settings, params=parameters)
        return optimizer

    return build
