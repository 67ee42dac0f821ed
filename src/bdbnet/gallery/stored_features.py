"""A stored set of embeddings as a side of an evaluation."""

from pathlib import Path

import numpy as np

from bdbnet.evaluation.features import Side
from bdbnet.gallery.store import META, PLAN, EmbeddingStore

_COLUMNS = {"paths": "path", "labels": "label", "cameras": "camera"}


def read_stored(path: Path) -> Side | None:
    """The embeddings of a folder that `bdbnet.embed` made; None for another path.

    Raises:
        StoreError: it is damaged or not complete.
    """
    if not path.is_dir() or not ((path / META).exists() or (path / PLAN).exists()):
        return None
    store = EmbeddingStore.open(path)
    known = {kind: store.table[column].to_numpy() for kind, column in _COLUMNS.items() if column in store.table}
    if known.get("cameras") is not None and (known["cameras"] < 0).all():
        del known["cameras"]
    known["paths"] = (str(store.root) + "/" + store.table["path"]).to_numpy(object)
    return Side(np.asarray(store.embeddings), known, str(path), dict(_COLUMNS))
