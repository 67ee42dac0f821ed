"""Which images of a set are shown: the first of a folder or table, or queries of a data set with its gallery."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdbnet.datasets import BOX_COLUMNS, Manifest
from bdbnet.datasets.images import read_image
from bdbnet.evaluation.embedder import Embedder
from bdbnet.loading.sources import Images

_LETTERS = 20  # of a file's name in a caption


@dataclass(frozen=True, eq=False)
class ImageChoice:
    """Images of a set.

    Attributes:
        manifest: how to read them.
        labels, cameras: (N,) of each; -1 where not known.
        rows: (n,) of those that are shown, or are queries.
        gallery: rows (n,) that queries are compared with.
        of_dataset: the rows are queries of a data set, rather than the first images of a folder.
    """

    manifest: Manifest
    labels: np.ndarray
    cameras: np.ndarray
    rows: np.ndarray
    gallery: np.ndarray
    of_dataset: bool

    def picture(self, row: int) -> Any:
        """What figures draw of an image."""
        table = self.manifest.table
        path = self.manifest.paths[row]
        if BOX_COLUMNS[0] not in table.columns:
            return path
        return read_image(path, box=tuple(int(table[name].iloc[row]) for name in BOX_COLUMNS))  # type: ignore[arg-type]

    def caption(self, row: int) -> str:
        """Identity and camera, or the file's name."""
        if self.of_dataset:
            camera = f"\ncamera {self.cameras[row]}" if self.cameras[row] >= 0 else ""
            return f"{self.manifest.name_of(int(self.labels[row]))}{camera}"
        name = Path(self.manifest.paths[row]).name
        return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"

    def prepared(self, embedder: Embedder, rows: Iterable[int]) -> Tensor:
        """Images as a network's preprocessing makes them, (n, 3, H, W)."""
        wanted = [int(row) for row in rows]
        parts = [images for _, images, _ in embedder.prepared_files(self.manifest, [wanted], num_workers=0)]
        return torch.cat(parts)


def shown_images(images: Images, count: int) -> ImageChoice:
    """The first images of a folder or table; the first of them is the query of the others."""
    table = images.table
    unknown = np.full(len(table), -1, np.int64)
    labels = table["label"].to_numpy(np.int64) if "label" in table else unknown
    cameras = table["camera"].to_numpy(np.int64) if "camera" in table else unknown
    rows = np.arange(min(count, len(table)))
    return ImageChoice(images.manifest, labels, cameras, rows, np.arange(1, len(table)), False)


def drawn_queries(manifest: Manifest, test: pd.DataFrame, count: int, seed: int) -> ImageChoice:
    """Queries of a data set, of different identities where there are enough, and its gallery."""
    whole = manifest.with_rows(test)
    asked = np.flatnonzero(test["split"].isin(("query", "test")))
    # Shuffled, then an identity's first query before any second one.
    order = np.random.default_rng(seed).permutation(asked)
    labels = test["label"].to_numpy(np.int64)
    turn = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()
    rows = order[np.argsort(turn, kind="stable")][:count]
    gallery = np.flatnonzero(test["split"].isin(("gallery", "test")))
    return ImageChoice(whole, labels, test["camera"].to_numpy(np.int64), rows, gallery, True)
