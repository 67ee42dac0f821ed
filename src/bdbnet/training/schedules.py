"""Learning-rate schedule of the paper, by epoch."""

from collections.abc import Sequence


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
        staircase: the released code's warm-up, which rises in ten equal steps instead of once per epoch.

    Raises:
        ValueError: a length that is not positive, or decays that are not in ascending order.

    >>> rate = PaperSchedule(400)
    >>> [round(1e-3 * rate(epoch), 7) for epoch in (0, 24, 49, 199, 200, 300)]
    [2e-05, 0.0005, 0.001, 0.001, 0.0001, 1e-05]
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

    def __call__(self, epoch: int) -> float:
        """Factor for ``epoch``, counted from 0."""
        if epoch < self.warmup:
            if self.staircase:
                return min(1.0, (int(10 * epoch / self.warmup) + 1) / 10)
            return min(1.0, (epoch + 1) / self.warmup)
        return self.decay_factor ** sum(epoch >= boundary for boundary in self.decays)
