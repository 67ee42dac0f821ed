"""Learning-rate schedules: the paper's, a cosine, and all of ``torch.optim.lr_scheduler``, by epoch or by step."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


class PaperSchedule:
    """Factor on the base learning rate at a given epoch (paper section 4.1.2).

    Linear warm-up over the first 50 of 400 epochs, a tenth after 200 and a hundredth after 300. A run of another length keeps
    the shape: every boundary is scaled by ``max_epochs / epochs``, so 40 epochs warm up for 5 and decay at 20 and 30.

    Args:
        max_epochs: length of this run.
        epochs: length for which the boundaries are given.
        warmup_epochs: epochs of rising rate; epoch e (from 0) of w runs at (e + 1) / w.
        decay_epochs: after how many epochs the rate is multiplied by ``decay_factor``.
        decay_factor: see above.
        staircase: the released code's rates: the warm-up rises in ten equal steps instead of once per epoch, and that code counts
            epochs from 1, so that the first step is one epoch (of the ``epochs``) shorter and every decay comes one epoch earlier.

    Raises:
        ValueError: a length that is not positive, or decays that are not in ascending order.

    >>> rate = PaperSchedule(400)
    >>> [round(1e-3 * rate(epoch), 7) for epoch in (0, 24, 49, 199, 200, 300)]
    [2e-05, 0.0005, 0.001, 0.001, 0.0001, 1e-05]
    >>> rate = PaperSchedule(400, staircase=True)
    >>> [round(1e-3 * rate(epoch), 7) for epoch in (3, 4, 43, 44, 198, 199, 299)]
    [0.0001, 0.0002, 0.0009, 0.001, 0.001, 0.0001, 1e-05]
    """

    def __init__(
        self,
        max_epochs: int,
        *,
        epochs: int = 400,
        warmup_epochs: int = 50,
        decay_epochs: Sequence[int] = (200, 300),
        decay_factor: float = 0.1,
        staircase: bool = False,
    ) -> None:
        if max_epochs < 1 or epochs < 1:
            raise ValueError(f"max_epochs and epochs must be at least 1, got {max_epochs} and {epochs}")
        if list(decay_epochs) != sorted(decay_epochs) or warmup_epochs < 0:
            raise ValueError(
                f"decay_epochs must ascend and warmup_epochs be at least 0, got {decay_epochs}, {warmup_epochs}"
            )
        scale = max_epochs / epochs
        self.warmup = warmup_epochs * scale
        self.decays = [epoch * scale for epoch in decay_epochs]
        self.decay_factor = decay_factor
        self.staircase = staircase
        self.first = scale if staircase else 0.0  # the number of the first epoch

    def __call__(self, epoch: float) -> float:
        """Factor for ``epoch``, counted from 0."""
        number = epoch + self.first
        if number < self.warmup:
            if self.staircase:
                return min(1.0, (int(10 * number / self.warmup) + 1) / 10)
            return min(1.0, (epoch + 1) / self.warmup)
        return self.decay_factor ** sum(number >= boundary for boundary in self.decays)


class CosineSchedule:
    """Factor on the base learning rate: a linear rise, then half a cosine down to ``min_factor``.

    (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.) Epoch e (from 0) of w warm-up epochs runs at (e + 1) / w.

    Args:
        max_epochs: length of the run.
        epochs: length for which ``warmup_epochs`` is given, which a run of another length scales; None: that of the run.
        warmup_epochs: epochs of rising rate; parts of an epoch count where the rate changes by step.
        min_factor: where the cosine ends.

    Raises:
        ValueError: a warm-up that is not shorter than the run, or a factor outside [0, 1].

    >>> rate = CosineSchedule(12, warmup_epochs=2)
    >>> [round(rate(epoch), 3) for epoch in (0, 1, 2, 7, 11)]
    [0.5, 1.0, 1.0, 0.5, 0.024]
    """

    def __init__(
        self, max_epochs: int, *, warmup_epochs: float = 0.0, min_factor: float = 0.0, epochs: int | None = None
    ) -> None:
        if epochs is not None:
            if epochs < 1:
                raise ValueError(f"epochs={epochs}: give a whole number of at least 1, or null")
            warmup_epochs = warmup_epochs * max_epochs / epochs
        if not 0 <= warmup_epochs < max_epochs:
            raise ValueError(
                f"warmup_epochs={warmup_epochs}: give at least 0 and less than the {max_epochs} epochs of the run"
            )
        if not 0 <= min_factor <= 1:
            raise ValueError(f"min_factor={min_factor}: give a number from 0 to 1")
        self.max_epochs = max_epochs
        self.warmup = warmup_epochs
        self.min_factor = min_factor

    def __call__(self, epoch: float, step: float = 1.0) -> float:
        """Factor at ``epoch``, counted from 0; ``step`` is the part of an epoch for which it holds."""
        if epoch < self.warmup:
            return min(1.0, (epoch + step) / self.warmup)
        share = (epoch - self.warmup) / (self.max_epochs - self.warmup)
        return self.min_factor + (1 - self.min_factor) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate of an optimizer changes during a run; called with the optimizer, it gives Lightning's ``lr_scheduler``.

    Args:
        make: builds a function ``epoch -> factor on the learning rate``, or, given ``optimizer``, a scheduler of
            ``torch.optim.lr_scheduler``.
        arguments: names of the arguments that ``make`` still takes. ``total_steps`` and ``T_max`` are filled in with the length of
            the run in epochs or steps, ``max_lr`` with the optimizer's rates, ``mode`` with what is better for the metric.
        max_epochs: length of the run.
        interval: whether the rate changes with every ``epoch`` or every ``step`` of the optimizer.
        monitor: the number that ``ReduceLROnPlateau`` follows: ``loss`` (also ``loss/<part>``), or a metric such as ``mAP``; None
            for all others.
        evaluated_every: epochs between two values of a metric.
    """

    make: Callable[..., Any]
    arguments: Collection[str]
    max_epochs: int
    interval: str = "epoch"
    monitor: str | None = None
    evaluated_every: int = 1

    def __call__(self, optimizer: torch.optim.Optimizer, steps: Callable[[], int]) -> dict[str, Any]:
        """Lightning's ``lr_scheduler`` entry; ``steps`` tells the number of optimizer steps of the run."""
        if "optimizer" not in self.arguments:
            schedule = self.make()
            factor = schedule if self.interval == "epoch" else by_step(schedule, steps() / self.max_epochs)
            return {"scheduler": LambdaLR(optimizer, factor), "interval": self.interval}
        of_a_loss = self.monitor is not None and self.monitor.startswith("loss")
        values: dict[str, Callable[[], Any]] = {
            "total_steps": lambda: steps() if self.interval == "step" else self.max_epochs,
            "max_lr": lambda: [group["lr"] for group in optimizer.param_groups],
        }
        values["T_max"] = values["total_steps"]
        if self.monitor is not None:
            values["mode"] = lambda: "min" if of_a_loss else "max"
        filled = {name: value() for name, value in values.items() if name in self.arguments}
        scheduler = self.make(optimizer=optimizer, **filled)
        entry = {"scheduler": scheduler, "interval": self.interval}
        if self.monitor is not None:
            entry |= {"monitor": self.monitor, "frequency": 1 if of_a_loss else self.evaluated_every}
        return entry


def by_step(schedule: Callable[..., float], steps_per_epoch: float) -> Callable[[int], float]:
    """A function of epochs as one of optimizer steps, which counts parts of epochs."""
    if isinstance(schedule, CosineSchedule):
        return lambda step: schedule(step / steps_per_epoch, 1 / steps_per_epoch)
    return lambda step: schedule(step / steps_per_epoch)
