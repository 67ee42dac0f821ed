"""LightningModule that evaluates: every test image to its embedding, all embeddings to metrics."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.test_set import TestSet


def most_alike(embeddings: Tensor) -> int:
    """How many of (N, D) embeddings equal the first, the middle or the last one, whichever has the most.

    A vector that nearly all images share is among these three.
    """
    count = len(embeddings)
    return max(
        (int((embeddings == embeddings[row]).all(1).sum()) for row in {0, count // 2, count - 1} if count), default=0
    )


class EvaluationModule(pl.LightningModule):
    """Embeds the images of one or several test sets and computes their metrics.

    Training derives from it, so that every number of every command comes through the same code.

    Args:
        embedder: whose network is evaluated.
        tests: what it is evaluated on, in the order of the data module's test batches; the first is the run's own.

    Attributes:
        metrics: of the own test set as evaluated last, and of further ones under `<name>/<metric>`.
        plain_metrics: of the own one without re-ranking and query expansion, where there was either.
        metrics_epoch: the epoch that they belong to.
        evaluation_seconds: what the last evaluation took.
    """

    def __init__(self, embedder: Embedder, tests: Sequence[TestSet]) -> None:
        super().__init__()
        self.network = embedder.network
        self.embedder = embedder
        self.tests = list(tests)
        self.test_metrics = nn.ModuleList([test.metric for test in tests])  # moved along to the device
        self.metrics: dict[str, float] = {}
        self.plain_metrics: dict[str, float] | None = None
        self.metrics_epoch: int | None = None
        self.evaluation_seconds = 0.0

    def on_validation_epoch_start(self) -> None:
        self._evaluation_began = time.perf_counter()
        for test in self.tests:
            test.begin()

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        self.tests[dataloader_idx].add(self.embedder.embed_prepared(batch["image"]), batch)

    def on_validation_epoch_end(self) -> None:
        self.metrics, self.plain_metrics = {}, None
        for test in self.tests:
            found = test.evaluate(writes=self.trainer.is_global_zero)
            zeros = (found.embeddings == 0).all(1)
            if zeros.any():
                rank_zero_warn(
                    f"{int(zeros.sum())} of {len(zeros)} test images{f' of {test.name}' if test.name else ''} have "
                    f"an embedding of zeros, which says nothing about them; the first is row {int(zeros.int().argmax())} "
                    "(gallery before queries)"
                )
            same = most_alike(found.embeddings)
            if same > len(zeros) / 2 and not zeros.all():
                rank_zero_warn(
                    f"{same} of {len(zeros)} test images{f' of {test.name}' if test.name else ''} have the same embedding: the "
                    "network has collapsed, and its metrics say nothing. After a training try a lower optimizer.lr, a longer "
                    "schedule.warmup_epochs, or with model.head=bnneck a backbone with batch normalisation"
                )
            prefix = f"{test.name}/" if test.name else ""
            self.metrics |= {f"{prefix}{name}": value for name, value in test.metrics.items()}
            if test is self.tests[0]:
                plain = found.plain_metrics
                self.plain_metrics = None if plain is None else {name: float(value) for name, value in plain.items()}
        self.metrics_epoch = self.current_epoch
        self.evaluation_seconds = time.perf_counter() - self._evaluation_began
        self.log_dict(self.metrics, sync_dist=True)  # the same on every rank, which Lightning cannot know

    def own_metrics(self) -> dict[str, float]:
        """The metrics of the run's own test set."""
        return {name: value for name, value in self.metrics.items() if "/" not in name}

    def further_metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each further test set, by its name."""
        found: dict[str, dict[str, Any]] = {test.name: {} for test in self.tests[1:]}
        for name, value in self.metrics.items():
            test, slash, metric = name.partition("/")
            if slash:
                found[test][metric] = value
        return found
