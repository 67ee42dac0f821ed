"""Ranking lists of a judged test set as a Parquet file, for pictures and for looking at errors."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bdbnet.datasets import BOX_COLUMNS
from bdbnet.loading import ReIDDataModule
from bdbnet.results import TOP_K, write_atomically
from bdbnet.retrieval import ReIDMetrics, pool_queries, top_k
from bdbnet.training.module import ReIDModule


def write_ranking_lists(module: ReIDModule, data: ReIDDataModule, folder: Path, *, k: int) -> Path | None:
    """Write each query's k nearest gallery images, under the rule by which the metrics were computed.

    Columns: ``query_index``, ``rank`` (from 1), ``gallery_index`` (both rows of the test set), ``distance`` (Euclidean),
    ``query_path``, ``gallery_path`` (relative to the dataset's root), ``query_label``, ``gallery_label``, ``query_camera``,
    ``gallery_camera``, ``correct``;
    ``query_x1`` ... ``gallery_y2`` where images have boxes. A multi-query stands under its first image. For rank 0 alone.

    Returns:
        The file, or None for k = 0.
    """
    if k == 0 or module.judged is None:
        return None
    embeddings, is_query = module.judged
    table = data.test_table
    labels, cameras, split = (table[name].to_numpy() for name in ("label", "camera", "split"))
    queries, gallery = np.flatnonzero(split != "gallery"), np.flatnonzero(split != "query")
    filters: dict[str, Any] = {}
    if isinstance(module.metric, ReIDMetrics) and data.manifest.has_cameras:
        if is_query is not None and module.metric.query_pooling is not None:
            of_images = torch.from_numpy(labels[queries]), torch.from_numpy(cameras[queries])
            pooled = pool_queries(embeddings[is_query], *of_images, module.metric.query_pooling)
            embeddings = torch.cat([embeddings[~is_query], pooled.embeddings])
            is_query = torch.arange(len(embeddings)) >= len(gallery)
            queries = queries[pooled.first.numpy()]
        filters = {"query_labels": labels[queries], "query_cameras": cameras[queries]}
        filters |= {"gallery_labels": labels[gallery], "gallery_cameras": cameras[gallery]}
    if is_query is None:
        nearest, distances = top_k(embeddings, None, k, **filters)
    else:
        nearest, distances = top_k(embeddings[is_query], embeddings[~is_query], k, **filters)
    row, place = np.nonzero(nearest >= 0)  # a query may have fewer than k gallery images to be compared with
    q, g = queries[row], gallery[nearest[row, place]]
    paths = table["path"].to_numpy()
    lists = pd.DataFrame(
        {
            "query_index": q, "rank": place + 1, "gallery_index": g, "distance": distances[row, place].astype(np.float32),
            "query_path": paths[q], "gallery_path": paths[g], "query_label": labels[q], "gallery_label": labels[g],
            "query_camera": cameras[q], "gallery_camera": cameras[g], "correct": labels[q] == labels[g],
        }
    )  # fmt: skip
    for column in [column for column in BOX_COLUMNS if column in table.columns]:
        lists[f"query_{column}"], lists[f"gallery_{column}"] = table[column].to_numpy()[q], table[column].to_numpy()[g]
    buffer = io.BytesIO()
    lists.to_parquet(buffer, index=False)
    return write_atomically(folder / TOP_K, buffer.getvalue())
