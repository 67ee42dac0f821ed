"""Sets of embeddings on disk: made from images by a trained network, searched by another image."""

from bdbnet.gallery.store import EmbeddingStore, ModelStamp, StoreError, check_same_model, write_store

__all__ = ["EmbeddingStore", "ModelStamp", "StoreError", "check_same_model", "write_store"]
