"""A test set in an evaluation: its table of images, its metric, and what was found last."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from bdbnet import plugins
from bdbnet.retrieval import Evaluated, ReIDMetrics, RetrievalRecall


class EvaluationError(RuntimeError):
    """Embeddings that no metric can be computed from; the message says why."""


class TestSet:
    """Images to evaluate on.

    Args:
        metric: of its protocol.
        table: of all test images, see `ReIDDataModule.test_table`.
        name: empty for the run's own test set.
        top_k: nearest images to keep for each query, for the ranking lists.
        facts: keep what happened to each query, for the error analysis.

    Attributes:
        evaluated: what was found last; None before the first evaluation. Lists and facts are those of rank 0.
        metrics: every metric of it, those of plugins too; fractions in 0..1, and `valid_queries`.
        per_query: values of the metrics per query (Q,), NaN without a match; empty without facts.
        plugin_values: those of plugins alone.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self,
        metric: ReIDMetrics | RetrievalRecall,
        table: pd.DataFrame,
        *,
        name: str = "",
        top_k: int = 0,
        facts: bool = False,
    ) -> None:
        self.metric = metric
        self.table = table
        self.name = name
        self.top_k = top_k
        self.facts = facts
        self.evaluated: Evaluated | None = None
        self.metrics: dict[str, float] = {}
        self.per_query: dict[str, np.ndarray] = {}
        self.plugin_values: dict[str, np.ndarray] = {}
        # Images that are query and gallery at once have no role to tell apart.
        self._one_set = bool((table["split"] == "test").all())

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics of an evaluation, known before the first; `valid_queries` is left out."""
        return [*self.metric.names, *plugins.metrics()]

    def begin(self) -> None:
        """Forget what was added."""
        self.metric.reset()

    def add(self, embeddings: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a batch of embeddings (N, D) with `label`, `camera`, `is_query` and `index` (N,)."""
        is_query = None if self._one_set else batch["is_query"]
        self.metric.update(embeddings, batch["label"], batch["camera"], is_query, batch["index"])

    def evaluate(self, *, writes: bool = True) -> Evaluated:
        """Rank everything that was added on all ranks, once. Ranks that write no files need no lists.

        Raises:
            EvaluationError: embeddings that no metric can be computed from.
            PluginError: a metric of a plugin fails.
        """
        # A metric of a plugin is a function of the facts, and every rank logs it.
        of_plugins = bool(plugins.metrics())
        try:
            found = self.metric.evaluate(top_k=self.top_k if writes else 0, facts=of_plugins or (self.facts and writes))
        except ValueError as error:
            raise EvaluationError(f"the embeddings can't be evaluated: {error}") from error
        self.metrics = {name: float(value) for name, value in found.metrics.items()}
        self.plugin_values = {}
        if of_plugins and found.facts is not None:
            values, counted = plugins.metric_values(found.facts), found.facts.matches > 0
            valid = self.metrics.pop("valid_queries")  # stands last
            self.metrics |= plugins.means(values, counted) | {"valid_queries": valid}
            self.plugin_values = {name: np.where(counted, of, np.nan) for name, of in values.items() if of.ndim == 1}
        self.per_query = {**found.per_query, **self.plugin_values}
        self.evaluated = None if self.name else found  # of a further test set the numbers are enough
        return found
