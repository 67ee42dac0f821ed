"""Ranking lists of an evaluated test set as a Parquet file, for pictures and for looking at errors."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdbnet.datasets import BOX_COLUMNS
from bdbnet.evaluation.searched import searched
from bdbnet.evaluation.test_set import TestSet
from bdbnet.results import TOP_K, write_atomically
from bdbnet.retrieval import top_k


def write_ranking_lists(test: TestSet, folder: Path, *, k: int) -> Path | None:
    """Write each query's k nearest gallery images, in the order and under the rule by which the metrics were computed; of a
    single gallery shot from the whole gallery.

    Columns: ``query_index``, ``rank`` (from 1), ``gallery_index`` (both rows of the test set), ``distance`` (Euclidean or cosine),
    ``query_path``, ``gallery_path`` (relative to the dataset's root), ``query_label``, ``gallery_label``, ``query_camera``,
    ``gallery_camera``, ``correct``;
    ``query_x1`` ... ``gallery_y2`` where images have boxes. A multi-query stands under its first image. For rank 0 alone.

    Returns:
        The file, or None for k = 0.
    """
    if k == 0 or test.outcome is None:
        return None
    table = test.table
    labels, cameras = table["label"].to_numpy(), table["camera"].to_numpy()
    query, gallery_embeddings, queries, gallery = searched(test)
    options: dict[str, Any] = {"search": test.metric.search}
    if test.by_camera:
        options |= {"query_labels": labels[queries], "query_cameras": cameras[queries]}
        options |= {"gallery_labels": labels[gallery], "gallery_cameras": cameras[gallery]}
    same_set = query is gallery_embeddings
    nearest, distances = top_k(query, None if same_set else gallery_embeddings, k, **options)
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
