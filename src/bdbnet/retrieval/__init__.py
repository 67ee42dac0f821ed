"""Ranking and its metrics: from query and gallery embeddings to CMC, mAP, mINP, Recall@K and lists of neighbours."""

from bdbnet.retrieval.distance_blocks import distance_blocks
from bdbnet.retrieval.evaluators import ReIDMetrics, RetrievalRecall
from bdbnet.retrieval.metrics import recall_at_k, reid_metrics, summarize_reid
from bdbnet.retrieval.multi_query import POOLINGS, PooledQueries, pool_queries
from bdbnet.retrieval.ranking import Matches, PositiveRanks, positive_ranks, top_k

__all__ = [
    "POOLINGS",
    "Matches",
    "PooledQueries",
    "PositiveRanks",
    "ReIDMetrics",
    "RetrievalRecall",
    "distance_blocks",
    "pool_queries",
    "positive_ranks",
    "recall_at_k",
    "reid_metrics",
    "summarize_reid",
    "top_k",
]
