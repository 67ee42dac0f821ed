"""Indexes over a gallery's embeddings: exact, FAISS and Milvus."""

from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndex, GalleryIndexError
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.milvus import MilvusIndex
from bdbnet.gallery.indexes.quality import measure_index, recall_against_exact

__all__ = [
    "ExactIndex",
    "FaissIndex",
    "Filter",
    "GalleryIndex",
    "GalleryIndexError",
    "MilvusIndex",
    "measure_index",
    "recall_against_exact",
]
