"""Ranking and its metrics: from query and gallery embeddings to CMC, mAP, mINP, Recall@K and lists of neighbours."""

from bdbnet.retrieval.distances import DISTANCES, distance_blocks
from bdbnet.retrieval.matrices import prepared
from bdbnet.retrieval.metric_classes import ReIDMetrics, RetrievalRecall
from bdbnet.retrieval.metrics import recall_at_k, reid_metrics, retrieval_metrics, summarize_reid
from bdbnet.retrieval.multi_query import POOLINGS, PooledQueries, pool_queries
from bdbnet.retrieval.neighbours import top_k
from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries
from bdbnet.retrieval.query_facts import QueryFacts
from bdbnet.retrieval.ranks import Matches, PositiveRanks, positive_ranks
from bdbnet.retrieval.rerank import (
    KReciprocal,
    k_reciprocal_rerank,
    k_reciprocal_rerank_distances,
    reranked_blocks,
)
from bdbnet.retrieval.search import Search, as_reranking
from bdbnet.retrieval.single_shot import single_shot_cmc

__all__ = [
    "DISTANCES",
    "POOLINGS",
    "KReciprocal",
    "Matches",
    "PooledQueries",
    "PositiveRanks",
    "QueryExpansion",
    "QueryFacts",
    "ReIDMetrics",
    "RetrievalRecall",
    "Search",
    "as_reranking",
    "distance_blocks",
    "expand_queries",
    "k_reciprocal_rerank",
    "k_reciprocal_rerank_distances",
    "pool_queries",
    "positive_ranks",
    "prepared",
    "recall_at_k",
    "reid_metrics",
    "reranked_blocks",
    "retrieval_metrics",
    "single_shot_cmc",
    "summarize_reid",
    "top_k",
]
