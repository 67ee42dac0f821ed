"""Ranking and its metrics: from query and gallery embeddings to CMC, mAP, mINP, Recall@K and lists of neighbours."""

import importlib
from typing import TYPE_CHECKING, Any

from bdbnet.renamed import former_attribute
from bdbnet.retrieval.distances import DISTANCES, distance_blocks
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.matrices import prepared
from bdbnet.retrieval.metrics import recall_at_k, reid_metrics, retrieval_metrics, summarize_reid, summarize_retrieval
from bdbnet.retrieval.multi_query import POOLINGS, PooledQueries, pool_queries
from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries, expand_sets
from bdbnet.retrieval.rankings import CameraPairs, QueryFacts, Rankings, TopK, rank_queries, top_k
from bdbnet.retrieval.ranks import PositiveRanks, positive_ranks
from bdbnet.retrieval.rerank import (
    KReciprocal,
    k_reciprocal_rerank,
    k_reciprocal_rerank_distances,
    reranked_blocks,
)
from bdbnet.retrieval.search import Search, as_reranking
from bdbnet.retrieval.single_shot import single_shot_cmc

if TYPE_CHECKING:
    from bdbnet.retrieval.metric_classes import Evaluated, ReIDMetrics, RetrievalRecall

__all__ = [
    "DISTANCES",
    "POOLINGS",
    "CameraPairs",
    "Evaluated",
    "KReciprocal",
    "Matches",
    "PooledQueries",
    "PositiveRanks",
    "QueryExpansion",
    "QueryFacts",
    "Rankings",
    "ReIDMetrics",
    "RetrievalRecall",
    "Search",
    "TopK",
    "as_reranking",
    "distance_blocks",
    "expand_queries",
    "expand_sets",
    "k_reciprocal_rerank",
    "k_reciprocal_rerank_distances",
    "pool_queries",
    "positive_ranks",
    "prepared",
    "rank_queries",
    "recall_at_k",
    "reid_metrics",
    "reranked_blocks",
    "retrieval_metrics",
    "single_shot_cmc",
    "summarize_reid",
    "summarize_retrieval",
    "top_k",
]

#: Names that other rooms took over, or that were renamed.
_MOVED = {
    name: f"bdbnet.gallery.indexes.{name}"
    for name in (
        "ExactIndex",
        "FaissIndex",
        "Filter",
        "GalleryIndex",
        "GalleryIndexError",
        "MilvusIndex",
        "measure_index",
        "recall_against_exact",
    )
} | {"MEASURES": "bdbnet.retrieval.DISTANCES"}


# Imported when first used: torchmetrics takes seconds, and who searches does not need it.
_LATER = ("Evaluated", "ReIDMetrics", "RetrievalRecall")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module("bdbnet.retrieval.metric_classes"), name)
    return former_attribute(__name__, name, _MOVED)
