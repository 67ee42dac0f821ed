"""torchmetrics classes that collect embeddings batch by batch, on every rank, and evaluate them together.

Each image carries its row in the test set. Rows that were seen twice, such as the padding of a distributed sampler,
count once, and everything is put in row order first: the result does not depend on batches or on the number of ranks.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bdbnet.retrieval.metrics import recall_at_k, reid_metrics, retrieval_metrics
from bdbnet.retrieval.multi_query import pool_queries
from bdbnet.retrieval.query_expansion import QueryExpansion
from bdbnet.retrieval.search import Reranking, Search
from bdbnet.retrieval.single_shot import single_shot_cmc

_GALLERY, _QUERY, _BOTH = 0, 1, 2
_NO_CAMERA = -1
_STATES = ("embeddings", "labels", "cameras", "roles", "indices")


class _EmbeddingCollector(Metric):
    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    embeddings: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    cameras: list[Tensor] | Tensor
    roles: list[Tensor] | Tensor
    indices: list[Tensor] | Tensor
    search: Search

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, embeddings: Tensor, labels: Tensor, cameras: Tensor | None, is_query: Tensor | None, index: Tensor
    ) -> None:
        """Add one batch.

        Args:
            embeddings: (N, D); half precision is stored as float32.
            labels: integers (N,).
            cameras: integers (N,), or None where the data have none.
            is_query: bool (N,), True for queries, False for gallery images; None where every image is both.
            index: integers (N,), the images' rows in the test set (queries and gallery may be numbered separately).
        """
        count = len(embeddings)
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings must have shape (images, dimensions), got {tuple(embeddings.shape)}")
        if cameras is None:
            cameras = labels.new_full((count,), _NO_CAMERA)
        roles = labels.new_full((count,), _BOTH) if is_query is None else is_query.to(torch.int64)
        batch = {"labels": labels, "cameras": cameras, "is_query": roles, "index": index}
        for name, values in batch.items():
            if values.shape != (count,):
                raise ValueError(f"{name} must have shape ({count},), got {tuple(values.shape)}")
        embeddings = embeddings.detach()
        embeddings = embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
        for name, values in zip(_STATES, (embeddings, *batch.values()), strict=True):
            stored = getattr(self, name)
            stored.append(values if values is embeddings else values.to(embeddings.device, torch.int64))

    def collected(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Everything given to `update` on all ranks, once per image and in row order, gallery before queries.

        Returns embeddings (N, D), labels (N,), cameras (N,; -1 for none) and `is_query` bool (N,), None where every
        image is both.
        """
        with self.sync_context():
            embeddings, labels, cameras, roles = self._collected()
        return embeddings, labels, cameras, None if bool((roles == _BOTH).all()) else roles == _QUERY

    def compute(self) -> dict[str, float | int]:
        """The metrics of everything given to `update`; raises the errors of the functions that compute them."""
        return self._evaluate(self.search)

    def compute_plain(self) -> dict[str, float | int] | None:
        """The same without query expansion and re-ranking; None where there is neither."""
        if self.search.query_expansion is None and self.search.rerank is None:
            return None
        with self.sync_context():
            return self._evaluate(Search(self.search.distance, chunk_memory_mb=self.search.chunk_memory_mb))

    @abstractmethod
    def _evaluate(self, search: Search) -> dict[str, float | int]: ...

    def _collected(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, labels, cameras and roles of the distinct images, in row order."""
        if len(self.indices) == 0:
            raise ValueError("no images were given: call update before compute")
        embeddings, labels, cameras, roles, indices = (dim_zero_cat(getattr(self, name)) for name in _STATES)
        if bool((roles == _BOTH).any()) and not bool((roles == _BOTH).all()):
            raise ValueError("is_query was given for some batches and None for others")
        # Stable sorts, last key first: by role, then by row.
        order = torch.argsort(indices, stable=True)
        order = order[torch.argsort(roles[order], stable=True)]
        repeated = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        repeated[1:] = (roles[order].diff() == 0) & (indices[order].diff() == 0)
        previous = order.roll(1)
        conflict = repeated & ((labels[order] != labels[previous]) | (cameras[order] != cameras[previous]))
        if bool(conflict.any()):
            row = int(indices[order[conflict]][0])
            raise ValueError(
                f"row {row} was given twice with different labels or cameras: index must be the image's row"
            )
        kept = order[~repeated]
        return embeddings[kept], labels[kept], cameras[kept], roles[kept]


class ReIDMetrics(_EmbeddingCollector):
    """`reid_metrics` over everything given to `update`, across batches and ranks.

    Where `is_query` was None, every image is searched for among all others. Where every camera is None or -1, no image
    is left out for its camera.

    Args:
        ranks, ap_at, distance, query_expansion, rerank, chunk_memory_mb: see `reid_metrics`.
        query_pooling: `mean` or `max`: multi-query, see `pool_queries`; needs `is_query` and cameras.
        single_shot: number of random galleries with one image per identity: Rank-k is `single_shot_cmc`'s; can't be
            combined with multi-query, query expansion or re-ranking.
        seed: of those galleries.
        progress: show a progress bar while re-ranking.
        kwargs: options of `torchmetrics.Metric`, such as `compute_on_cpu`.
    """

    def __init__(
        self,
        ranks: Sequence[int] = (1, 5, 10),
        *,
        ap_at: int | None = None,
        distance: str = "euclidean",
        query_expansion: QueryExpansion | None = None,
        rerank: Reranking = None,
        chunk_memory_mb: float | None = None,
        progress: bool = False,
        query_pooling: str | None = None,
        single_shot: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ranks = tuple(ranks)
        self.ap_at = ap_at
        self.search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)
        self.query_pooling = query_pooling
        self.single_shot = single_shot
        self.seed = seed
        if single_shot is not None and not (query_expansion is self.search.rerank is query_pooling is None):
            raise ValueError("a single gallery shot can't be combined with multi-query, query expansion or re-ranking")

    def _evaluate(self, search: Search) -> dict[str, float | int]:
        embeddings, labels, cameras, roles = self._collected()
        views = cameras if bool((cameras != _NO_CAMERA).any()) else None
        one_set = bool((roles == _BOTH).all())
        if self.query_pooling is not None and (views is None or one_set):
            raise ValueError("multi-query needs queries and gallery apart, and cameras")
        queries = gallery = (embeddings, labels, views)
        if not one_set:
            queries, gallery = (
                (embeddings[part], labels[part], None if views is None else views[part])
                for part in (roles == _QUERY, roles == _GALLERY)
            )
        if self.query_pooling is not None:
            own_embeddings, own_labels, own_views = queries
            assert own_views is not None
            queries = pool_queries(own_embeddings, own_labels, own_views, self.query_pooling)[:3]
        sides = (queries[0], gallery[0], queries[1], gallery[1], queries[2], gallery[2])
        if self.single_shot is not None:
            return single_shot_cmc(
                *sides,
                ranks=self.ranks,
                repeats=self.single_shot,
                seed=self.seed,
                distance=search.distance,
                chunk_memory_mb=search.chunk_memory_mb,
            )
        return reid_metrics(*sides, ranks=self.ranks, ap_at=self.ap_at, **_options(search))


class RetrievalRecall(_EmbeddingCollector):
    """`recall_at_k` over everything given to `update`, across batches and ranks.

    Where `is_query` was None, every image is a query against all others, else queries are searched for in the gallery.
    Cameras are not used.

    Args:
        ks, distance, query_expansion, rerank, chunk_memory_mb: see `recall_at_k`.
        precision: MAP@R and R-precision too, see `retrieval_metrics`.
        progress: show a progress bar while re-ranking.
        kwargs: options of `torchmetrics.Metric`, such as `compute_on_cpu`.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        precision: bool = False,
        distance: str = "euclidean",
        query_expansion: QueryExpansion | None = None,
        rerank: Reranking = None,
        chunk_memory_mb: float | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        self.precision = precision
        self.search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)

    def _evaluate(self, search: Search) -> dict[str, float | int]:
        embeddings, labels, _, roles = self._collected()
        metrics = retrieval_metrics if self.precision else recall_at_k
        if bool((roles == _BOTH).all()):
            return metrics(embeddings, labels, self.ks, **_options(search))
        query, gallery = roles == _QUERY, roles == _GALLERY
        return metrics(
            embeddings[query],
            labels[query],
            self.ks,
            gallery=embeddings[gallery],
            gallery_labels=labels[gallery],
            **_options(search),
        )


def _options(search: Search) -> dict[str, Any]:
    return {
        "distance": search.distance,
        "query_expansion": search.query_expansion,
        "rerank": search.rerank,
        "chunk_memory_mb": search.chunk_memory_mb,
        "progress": search.progress,
    }
