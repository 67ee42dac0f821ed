"""What was searched for and where, when a test set was evaluated last."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdbnet.loading import ReIDDataModule
from bdbnet.retrieval import ReIDMetrics, pool_queries
from bdbnet.training.module import ReIDModule


class Searched(NamedTuple):
    """Embeddings (Q, D) and (G, D), one object where a set is searched in itself, and their rows in the test table.

    A query of several images stands under its first one.
    """

    query: Tensor
    gallery: Tensor
    query_rows: np.ndarray
    gallery_rows: np.ndarray


def by_camera(module: ReIDModule, data: ReIDDataModule) -> bool:
    """Whether images of a query's own identity and camera are left out."""
    return isinstance(module.metric, ReIDMetrics) and data.manifest.has_cameras


def searched(module: ReIDModule, data: ReIDDataModule) -> Searched:
    """Queries and gallery as the metric of ``module`` compared them."""
    assert module.evaluated is not None
    embeddings, is_query = module.evaluated
    split = data.test_table["split"].to_numpy()
    queries, gallery = np.flatnonzero(split != "gallery"), np.flatnonzero(split != "query")
    if is_query is None:
        return Searched(embeddings, embeddings, queries, gallery)
    asked = embeddings[is_query]
    pooling = module.metric.query_pooling if isinstance(module.metric, ReIDMetrics) else None
    if pooling is not None:
        labels, cameras = (torch.from_numpy(data.test_table[name].to_numpy()[queries]) for name in ("label", "camera"))
        pooled = pool_queries(asked, labels, cameras, pooling)
        asked, queries = pooled.embeddings, queries[pooled.first.numpy()]
    return Searched(asked, embeddings[~is_query], queries, gallery)
