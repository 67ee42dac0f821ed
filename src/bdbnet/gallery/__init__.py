"""Sets of embeddings on disk: made from images by a trained network, searched by another image."""

import importlib
from typing import TYPE_CHECKING, Any

from bdbnet.gallery.store import EmbeddingStore, ModelStamp, StoreError, check_same_model, write_store

if TYPE_CHECKING:
    from bdbnet.gallery.shards import embed_into

__all__ = ["EmbeddingStore", "ModelStamp", "StoreError", "check_same_model", "embed_into", "write_store"]


def __getattr__(name: str) -> Any:
    if name != "embed_into":  # imported when first used: it needs torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bdbnet.gallery.shards"), name)
