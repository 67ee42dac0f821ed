"""`Waits`: for how long a training stood still, and for what."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LOADER, CHECKPOINT, EVALUATION = "loader", "checkpoint", "evaluation"
REASONS = (LOADER, CHECKPOINT, EVALUATION)


class Waits:
    """Seconds for which the training's process did no step, by reason, since they were last taken.

    A GPU may still have had work then: what its process has queued for it.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(REASONS, 0.0)

    @contextmanager
    def during(self, reason: str) -> Iterator[None]:
        """Add the time of a `with` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(reason, time.perf_counter() - began)

    def add(self, reason: str, seconds: float) -> None:
        """Add a time for a reason."""
        self._seconds[reason] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """What has come together so far."""
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """What has come together, which then counts from 0 again."""
        taken, self._seconds = self._seconds, dict.fromkeys(REASONS, 0.0)
        return taken

    def restore(self, seconds: Mapping[str, float]) -> None:
        """Count on from what an earlier process had."""
        self._seconds = {reason: float(seconds.get(reason, 0.0)) for reason in REASONS}
