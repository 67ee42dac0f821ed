"""Ranking lists of an evaluated test set as a Parquet file, for pictures and for looking at errors."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.datasets import BOX_COLUMNS
from bdbnet.results import TOP_K, write_atomically
from bdbnet.retrieval import Evaluated


def write_ranking_lists(evaluated: Evaluated, table: pd.DataFrame, folder: Path) -> Path | None:
    """Write each query's nearest gallery images, in the order and under the rule by which the metrics were computed; of a
    single gallery shot from the whole gallery.

    Columns: ``query_index``, ``rank`` (from 1), ``gallery_index`` (both rows of the test set), ``distance`` (Euclidean or cosine),
    ``query_path``, ``gallery_path`` (relative to the dataset's root), ``query_label``, ``gallery_label``, ``query_camera``,
    ``gallery_camera``, ``correct``;
    ``query_x1`` ... ``gallery_y2`` where images have boxes. A multi-query stands under its first image.

    Args:
        evaluated: with the ``top_k`` that is written.
        table: the test set (``ReIDDataModule.test_table``).
        folder: for the file.

    Returns:
        The file, or None where no nearest images were kept.
    """
    if evaluated.top_k is None:
        return None
    labels, cameras = table["label"].to_numpy(), table["camera"].to_numpy()
    nearest, distances = evaluated.top_k
    row, place = np.nonzero(nearest >= 0)  # a query may have fewer than k gallery images to be compared with
    q, g = evaluated.query_rows[row], evaluated.gallery_rows[nearest[row, place]]
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
