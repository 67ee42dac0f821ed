"""A test set in an evaluation: its table of images, its metric, and what was measured last."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from torchmetrics import Metric

from bdbnet.retrieval import ReIDMetrics


class EvaluationError(RuntimeError):
    """Embeddings that no metric can be computed from; the message says why."""


class Outcome(NamedTuple):
    """What was measured of a test set.

    Attributes:
        metrics: fractions in 0..1, and `valid_queries`.
        plain: the same without re-ranking and query expansion, where there was either.
        embeddings: (N, D) float32 on the CPU, gallery before queries.
        is_query: bool (N,), None where every image is both.
        zeros: bool (N,), embeddings of zeros.
    """

    metrics: dict[str, float]
    plain: dict[str, float] | None
    embeddings: Tensor
    is_query: Tensor | None
    zeros: np.ndarray


class TestSet:
    """Images to evaluate on.

    Args:
        metric: `ReIDMetrics` or `RetrievalRecall`.
        table: of all test images, see `ReIDDataModule.test_table`.
        has_cameras: whether cameras are known.
        name: empty for the run's own test set.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, metric: Metric, table: pd.DataFrame, *, has_cameras: bool, name: str = "") -> None:
        self.metric = metric
        self.table = table
        self.name = name
        self.outcome: Outcome | None = None
        #: Whether gallery images of a query's own identity and camera are left out.
        self.by_camera = isinstance(metric, ReIDMetrics) and has_cameras
        # Images that are query and gallery at once have no role to tell apart.
        self._one_set = bool((table["split"] == "test").all())

    def begin(self) -> None:
        """Forget what was added."""
        self.metric.reset()

    def add(self, embeddings: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a batch of embeddings (N, D) with `label`, `camera`, `is_query` and `index` (N,)."""
        is_query = None if self._one_set else batch["is_query"]
        self.metric.update(embeddings, batch["label"], batch["camera"], is_query, batch["index"])

    def evaluate(self) -> Outcome:
        """Compute the metrics of everything that was added, on all ranks.

        Raises:
            EvaluationError: embeddings that no metric can be computed from.
        """
        try:
            metrics, plain = self.metric.compute(), self.metric.compute_plain()  # type: ignore[operator]
        except ValueError as error:
            raise EvaluationError(f"the embeddings can't be evaluated: {error}") from error
        # Kept now, while the ranks are still together and on their devices: afterwards nothing can be gathered.
        embeddings, _, _, is_query = self.metric.collected()  # type: ignore[operator]
        embeddings = embeddings.cpu()
        self.outcome = Outcome(
            {name: float(value) for name, value in metrics.items()},
            None if plain is None else {name: float(value) for name, value in plain.items()},
            embeddings,
            None if is_query is None else is_query.cpu(),
            (embeddings == 0).all(1).numpy(),
        )
        return self.outcome
