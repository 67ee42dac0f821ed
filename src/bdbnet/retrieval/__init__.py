"""Ranking and its metrics: from query and gallery embeddings to CMC, mAP, mINP, Recall@K and lists of neighbours."""

from bdbnet.retrieval.distance_blocks import MEASURES, distance_blocks
from bdbnet.retrieval.evaluators import ReIDMetrics, RetrievalRecall
from bdbnet.retrieval.exact_index import ExactIndex, Filter, GalleryIndex, GalleryIndexError
from bdbnet.retrieval.faiss_index import FaissIndex
from bdbnet.retrieval.index_quality import measure_index, recall_against_exact
from bdbnet.retrieval.matrices import prepared
from bdbnet.retrieval.metrics import recall_at_k, reid_metrics, retrieval_metrics, summarize_reid
from bdbnet.retrieval.milvus_index import MilvusIndex
from bdbnet.retrieval.multi_query import POOLINGS, PooledQueries, pool_queries
from bdbnet.retrieval.neighbours import top_k
from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries
from bdbnet.retrieval.ranking import Matches, PositiveRanks, positive_ranks
from bdbnet.retrieval.reranking import (
    KReciprocal,
    k_reciprocal_rerank,
    k_reciprocal_rerank_distances,
    reranked_blocks,
)
from bdbnet.retrieval.searching import Search, as_reranking
from bdbnet.retrieval.single_shot import single_shot_cmc

__all__ = [
    "MEASURES",
    "POOLINGS",
    "ExactIndex",
    "FaissIndex",
    "Filter",
    "GalleryIndex",
    "GalleryIndexError",
    "KReciprocal",
    "Matches",
    "MilvusIndex",
    "PooledQueries",
    "PositiveRanks",
    "QueryExpansion",
    "ReIDMetrics",
    "RetrievalRecall",
    "Search",
    "as_reranking",
    "distance_blocks",
    "expand_queries",
    "k_reciprocal_rerank",
    "k_reciprocal_rerank_distances",
    "measure_index",
    "pool_queries",
    "positive_ranks",
    "prepared",
    "recall_against_exact",
    "recall_at_k",
    "reid_metrics",
    "reranked_blocks",
    "retrieval_metrics",
    "single_shot_cmc",
    "summarize_reid",
    "top_k",
]
