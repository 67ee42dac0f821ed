"""torchmetrics classes that collect embeddings batch by batch, on every rank, and evaluate them together.

Each image carries its row in the test set. Rows that were seen twice, such as the padding of a distributed sampler,
count once, and everything is put in row order first: the result does not depend on batches or on the number of ranks.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bdbnet.renamed import accepts_former
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.matrices import Prepared, compared
from bdbnet.retrieval.metrics import check_ap_at, checked_cutoffs, summarize_reid, summarize_retrieval
from bdbnet.retrieval.multi_query import pool_queries
from bdbnet.retrieval.query_expansion import QueryExpansion
from bdbnet.retrieval.rankings import CameraPairs, QueryFacts, Rankings, TopK, rank_queries
from bdbnet.retrieval.search import Reranking, Search
from bdbnet.retrieval.single_shot import single_shot_ranks

_GALLERY, _QUERY, _BOTH = 0, 1, 2
_NO_CAMERA = -1
_STATES = ("embeddings", "labels", "cameras", "roles", "indices")


@dataclass(frozen=True)
class Evaluated:
    """What was compared, and what was found.

    Attributes:
        metrics: see `compute`.
        plain_metrics: see `compute_plain`.
        embeddings: (N, D) on the CPU, every image once, in row order, gallery before queries.
        is_query: bool (N,), None where every image is query and gallery.
        query, gallery: (Q, D) and (G, D) on the CPU, one object where a set is searched in itself; several images of one
            query are pooled.
        query_rows, gallery_rows: int64 (Q,) and (G,), their rows in the test set; a pooled query has that of its first image.
        matches: what each query should find.
        search: distance, query expansion and re-ranking.
        top_k, facts, camera_pairs: see `rank_queries`; None where they were not asked for.
        per_query: the value of each metric per query (Q,), NaN without a match; empty without `facts`.
    """

    metrics: dict[str, float | int]
    plain_metrics: dict[str, float | int] | None
    embeddings: Tensor
    is_query: Tensor | None
    query: Tensor
    gallery: Tensor
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    matches: Matches
    search: Search
    top_k: TopK | None
    facts: QueryFacts | None
    camera_pairs: CameraPairs | None
    per_query: dict[str, np.ndarray]


class _Images(NamedTuple):
    """Distinct images in row order, gallery before queries: embeddings (N, D), the rest (N,)."""

    embeddings: Tensor
    labels: Tensor
    cameras: Tensor
    roles: Tensor
    rows: Tensor

    def of(self, chosen: Tensor | slice) -> "_Images":
        return _Images(*(values[chosen] for values in self))


class _Sides(NamedTuple):
    """Queries, pooled where they are, and gallery: one object where a set is searched in itself."""

    query: _Images
    gallery: _Images
    prepared: tuple[Prepared, Prepared]
    matches: Matches


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
    query_pooling: str | None = None
    _by_camera: bool  # whether images of a query's own identity and camera are left out
    next_camera: bool = False  # whether all images but those of the next camera are left out

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

    def compute(self) -> dict[str, float | int]:
        """The metrics of everything given to `update`; raises the errors of the functions that compute them."""
        return self._metrics(self._sides(self._collected()), self.search)[0]

    def compute_plain(self) -> dict[str, float | int] | None:
        """The same without query expansion and re-ranking; None where there is neither."""
        if not self.search.reorders:
            return None
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._metrics(self._sides(self._collected()), self.search.plain)[0]

    def evaluate(self, *, top_k: int = 0, facts: bool = False) -> Evaluated:
        """`compute` and `compute_plain`, what was compared, and what else is asked for.

        One pass over the distances gives all of it, so that query expansion and re-ranking run once; where there is
        either, a second pass without them gives the plain metrics. Call it on every rank; other ranks may ask for less.

        Args:
            top_k: nearest images to keep for each query, 0 for none.
            facts: keep every query's facts and, where images of a query's own camera are left out, the results by pair of
                cameras. Lists and facts are of the whole gallery, also where the metrics draw one image per identity.

        Raises:
            ValueError: see the functions that compute the metrics.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            images = self._collected()
        sides = self._sides(images)
        metrics, rankings = self._metrics(sides, self.search, top_k=top_k, facts=facts)
        found = None if rankings is None else rankings.facts
        one_set = sides.query is sides.gallery
        gallery = sides.gallery.embeddings.cpu()
        return Evaluated(
            metrics=metrics,
            plain_metrics=self._metrics(sides, self.search.plain)[0] if self.search.reorders else None,
            embeddings=images.embeddings.cpu(),
            is_query=None if one_set else (images.roles == _QUERY).cpu(),
            query=gallery if one_set else sides.query.embeddings.cpu(),
            gallery=gallery,
            query_rows=sides.query.rows.cpu().numpy(),
            gallery_rows=sides.gallery.rows.cpu().numpy(),
            matches=sides.matches,
            search=self.search,
            top_k=None if rankings is None else rankings.top_k,
            facts=found,
            camera_pairs=None if rankings is None else rankings.camera_pairs,
            per_query={} if found is None else self._per_query(found),
        )

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the metrics that `compute` gives, known before anything is evaluated; `valid_queries` is left out."""

    @abstractmethod
    def _metrics(
        self, sides: _Sides, search: Search, *, top_k: int = 0, facts: bool = False
    ) -> tuple[dict[str, float | int], Rankings | None]: ...

    @abstractmethod
    def _per_query(self, facts: QueryFacts) -> dict[str, np.ndarray]: ...

    def _sides(self, images: _Images) -> _Sides:
        query = gallery = images
        one_set = bool((images.roles == _BOTH).all())
        by_camera = self._by_camera and bool((images.cameras != _NO_CAMERA).any())
        if self.query_pooling is not None and (one_set or not by_camera):
            raise ValueError("multi-query needs queries and gallery apart, and cameras")
        if not one_set:
            # The gallery comes first, so both are views.
            count = int((images.roles == _GALLERY).sum())
            gallery, query = images.of(slice(None, count)), images.of(slice(count, None))
        if self.query_pooling is not None:
            pooled = pool_queries(query.embeddings, query.labels, query.cameras, self.query_pooling)
            first = query.of(pooled.first)
            query = first._replace(embeddings=pooled.embeddings)
        prepared = compared(query.embeddings, gallery.embeddings)
        cameras = (query.cameras, gallery.cameras) if by_camera else (None, None)
        sizes = len(prepared[0]), len(prepared[1])
        matches = Matches.of_labels(
            query.labels, gallery.labels, *cameras, sizes=sizes, same_set=one_set, next_camera=self.next_camera
        )
        return _Sides(query, gallery, prepared, matches)

    def _collected(self) -> _Images:
        """The distinct images of all ranks."""
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
        return _Images(embeddings, labels, cameras, roles, indices).of(order[~repeated])


class ReIDMetrics(_EmbeddingCollector):
    """`reid_metrics` over everything given to `update`, across batches and ranks.

    Where `is_query` was None, every image is searched for among all others. Where every camera is None or -1, no image
    is left out for its camera.

    Args:
        ranks, ap_at, distance, query_expansion, rerank, chunk_memory_mb: see `reid_metrics`.
        query_pooling: `mean` or `max`: multi-query, see `pool_queries`; needs `is_query` and cameras.
        single_shot: number of random galleries with one image per identity: Rank-k is `single_shot_cmc`'s; can't be
            combined with multi-query, query expansion or re-ranking.
        leave_out_drawn: with `single_shot`, see `single_shot_cmc`.
        next_camera: a query is searched for among the images of the camera with the next number alone, see `Matches`; can't be
            combined with a single gallery shot or multi-query.
        seed: of those galleries.
        progress: show a progress bar while re-ranking.
        kwargs: options of `torchmetrics.Metric`, such as `compute_on_cpu`.
    """

    _by_camera = True

    @accepts_former(measure="distance")
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
        leave_out_drawn: bool = False,
        next_camera: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_ap_at(ap_at)
        self.ranks = tuple(checked_cutoffs(ranks, "ranks"))
        self.ap_at = ap_at
        self.search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)
        self.query_pooling = query_pooling
        self.single_shot = single_shot
        self.leave_out_drawn = leave_out_drawn
        self.next_camera = next_camera
        self.seed = seed
        if next_camera and (single_shot is not None or query_pooling is not None):
            raise ValueError("the next camera alone can't be combined with a single gallery shot or multi-query")
        if single_shot is not None and (self.search.reorders or query_pooling is not None):
            raise ValueError("a single gallery shot can't be combined with multi-query, query expansion or re-ranking")

    @property
    def names(self) -> list[str]:
        return [*(f"rank{k}" for k in self.ranks), *(["mAP", "mINP"] if self.single_shot is None else [])]

    def _metrics(
        self, sides: _Sides, search: Search, *, top_k: int = 0, facts: bool = False
    ) -> tuple[dict[str, float | int], Rankings | None]:
        drawn = None
        if self.single_shot is not None:
            drawn = single_shot_ranks(
                *sides.prepared, sides.matches, search, ranks=self.ranks, repeats=self.single_shot, seed=self.seed,
                leave_out_drawn=self.leave_out_drawn,
            )  # fmt: skip
            if not (top_k or facts):
                return drawn, None
        rankings = rank_queries(
            *sides.prepared, sides.matches, search, top_k=top_k, facts=facts, ap_at=self.ap_at,
            camera_pairs=facts and sides.matches.query_cameras is not None and not self.next_camera,
        )  # fmt: skip
        return drawn or summarize_reid(rankings.ranks, ranks=self.ranks, ap_at=self.ap_at), rankings

    def _per_query(self, facts: QueryFacts) -> dict[str, np.ndarray]:
        return {f"rank{k}": facts.hits(k) for k in self.ranks} | {"mAP": facts.ap, "mINP": facts.inp}


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

    _by_camera = False

    @accepts_former(measure="distance")
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
        self.ks = tuple(checked_cutoffs(ks, "ks"))
        self.precision = precision
        self.search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)

    @property
    def names(self) -> list[str]:
        return [*(f"recall@{k}" for k in self.ks), *(["map@r", "r_precision"] if self.precision else [])]

    def _metrics(
        self, sides: _Sides, search: Search, *, top_k: int = 0, facts: bool = False
    ) -> tuple[dict[str, float | int], Rankings | None]:
        rankings = rank_queries(
            *sides.prepared, sides.matches, search, top_k=top_k, facts=facts, nearest_only=not self.precision
        )
        return summarize_retrieval(rankings.ranks, ks=self.ks, precision=self.precision), rankings

    def _per_query(self, facts: QueryFacts) -> dict[str, np.ndarray]:
        hits = {f"recall@{k}": facts.hits(k) for k in self.ks}
        return hits | {"map@r": facts.map_at_r, "r_precision": facts.r_precision}
