"""What was searched for and where, when a test set was evaluated last."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdbnet.evaluation.test_set import TestSet
from bdbnet.retrieval import ReIDMetrics, pool_queries


class Searched(NamedTuple):
    """Embeddings (Q, D) and (G, D), one object where a set is searched in itself, and their rows in the test table.

    A query of several images stands under its first one.
    """

    query: Tensor
    gallery: Tensor
    query_rows: np.ndarray
    gallery_rows: np.ndarray


def searched(test: TestSet) -> Searched:
    """Queries and gallery as the metric of ``test`` compared them."""
    assert test.outcome is not None
    embeddings, is_query = test.outcome.embeddings, test.outcome.is_query
    split = test.table["split"].to_numpy()
    queries, gallery = np.flatnonzero(split != "gallery"), np.flatnonzero(split != "query")
    if is_query is None:
        return Searched(embeddings, embeddings, queries, gallery)
    asked = embeddings[is_query]
    pooling = test.metric.query_pooling if isinstance(test.metric, ReIDMetrics) else None
    if pooling is not None:
        labels, cameras = (torch.from_numpy(test.table[name].to_numpy()[queries]) for name in ("label", "camera"))
        pooled = pool_queries(asked, labels, cameras, pooling)
        asked, queries = pooled.embeddings, queries[pooled.first.numpy()]
    return Searched(asked, embeddings[~is_query], queries, gallery)
