"""The numbers that a callback or a schedule may follow, such as the metric of an early stop."""

from collections.abc import Iterable, Iterator

import pytorch_lightning as pl
import torch

from bdbnet.config import ConfigError
from bdbnet.training.module import TrainingModule


def check_monitors(callbacks: Iterable[pl.Callback], module: TrainingModule) -> None:
    """Refuse callbacks and a schedule that follow a number which the training does not have, before it starts.

    Raises:
        ConfigError: names who follows it and lists the numbers.
    """
    schedule = module.recipe.schedule
    if schedule is not None and schedule.monitor is not None:
        _is_loss(schedule.monitor, f"schedule.monitor: ReduceLROnPlateau follows {schedule.monitor}", module)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is None or not _is_loss(
            monitor, f"callbacks.extra: {type(callback).__name__} follows {monitor}", module
        ):
            continue
        # Lightning would look for it at the end of an evaluation, when the epoch's loss is not known yet.
        for when in ("_check_on_train_epoch_end", "_save_on_train_epoch_end"):
            if getattr(callback, when, False) is None:
                setattr(callback, when, True)


def _is_loss(name: str, said: str, module: TrainingModule) -> bool:
    """Whether a number is a loss rather than a metric.  Raises ConfigError where it is neither."""
    metrics = [*_metrics(module)]
    if name == "loss" or name in metrics:
        return name == "loss"
    losses = [*_losses(module)]
    if name not in losses:
        raise ConfigError(
            f"{said}, which this training does not have. After every evaluation there are {', '.join(metrics)}; after every "
            f"epoch {', '.join(losses)}"
        )
    return True


def _metrics(module: TrainingModule) -> Iterator[str]:
    for test in module.tests:
        prefix = f"{test.name}/" if test.name else ""
        yield from (f"{prefix}{name}" for name in (*test.metric_names, "valid_queries"))


def _losses(module: TrainingModule) -> Iterator[str]:
    yield "loss"
    network, criterion = module.network, module.criterion
    training = network.training
    with torch.no_grad():
        outputs = network.eval()(torch.zeros(2, 3, *module.embedder.preprocessing.image_size))
    network.train(training)
    for branch, output in outputs.items():
        if criterion.metric is not None and output.embedding is not None:
            yield f"loss/{criterion.name}_{branch}"
        if branch in criterion.center:
            yield f"loss/center_{branch}"
        if criterion.softmax_weight and output.logits is not None:
            yield f"loss/softmax_{branch}"
