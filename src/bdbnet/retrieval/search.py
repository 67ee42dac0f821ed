"""How queries are compared with a gallery: the distance, and what may be done to it before ranks are taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.distances import DISTANCES, Block, native_blocks
from bdbnet.retrieval.matrices import Array, matching_matrices, norms_and_duplicates, refuse_zeros
from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries
from bdbnet.retrieval.rerank import KReciprocal, reranked_blocks

#: Settings of re-ranking as callers may give them; `as_reranking` reads them.
Reranking = KReciprocal | Mapping[str, float] | bool | None


def as_reranking(value: Reranking) -> KReciprocal | None:
    """Settings of k-reciprocal re-ranking: True for the published ones, a mapping with any of `k1`, `k2` and `lambda`.

    None and False are none. Raises `ValueError` for other keys or values out of range.

    >>> as_reranking({"k1": 30})
    KReciprocal(k1=30, k2=6, lambda_value=0.3)
    """
    if value is None or value is False:
        return None
    if isinstance(value, KReciprocal):
        return value
    if value is True:
        return KReciprocal()
    if not isinstance(value, Mapping):
        raise ValueError(f"rerank must be true, or some of k1, k2 and lambda, got {value!r}")
    given = {"lambda_value" if key == "lambda" else key: number for key, number in value.items()}
    if unknown := sorted(given.keys() - {"k1", "k2", "lambda_value"}):
        raise ValueError(f"rerank has no setting {', '.join(unknown)}: choose from k1, k2 and lambda")
    return KReciprocal(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Search:
    """Distances of queries to a gallery, a block of queries at a time.

    Attributes:
        distance: `euclidean` or `cosine`.
        query_expansion: queries are replaced by a mean of themselves and their neighbours; None: they are not.
        rerank: k-reciprocal re-ranking, see `as_reranking`; None: none.
        chunk_memory_mb: MiB for one block, see `distance_blocks`.
        progress: show a progress bar while re-ranking.

    Raises:
        ValueError: an unknown distance, or re-ranking with an unknown setting.
    """

    distance: str = "euclidean"
    query_expansion: QueryExpansion | None = None
    rerank: Reranking = None
    chunk_memory_mb: float | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {self.distance!r}")
        object.__setattr__(self, "rerank", as_reranking(self.rerank))

    def blocks(self, query: Array, gallery: Array) -> Iterator[tuple[int, Block]]:
        """`(first query, block (queries, G))`, smaller for nearer images, as `positive_ranks` takes them.

        Give the same object twice to search a set in itself. Labels are not used.

        Raises:
            ValueError: see `distance_blocks`, `KReciprocal` and `QueryExpansion`; re-ranking of expanded queries where
                a set is searched in itself, whose images would have to be both expanded and not.
        """
        same_set = query is gallery
        reranking = as_reranking(self.rerank)
        if same_set and self.query_expansion is not None and reranking is not None:
            raise ValueError("a set that is searched in itself can have its queries expanded or be re-ranked, not both")
        memory = self.chunk_memory_mb
        if self.query_expansion is not None:
            query = expand_queries(
                query,
                gallery,
                self.query_expansion,
                distance=self.distance,
                same_set=same_set,
                chunk_memory_mb=memory,
            )
        if reranking is None:
            return native_blocks(query, gallery, distance=self.distance, chunk_memory_mb=memory)
        if self.distance == "cosine":
            # Between unit vectors the squared Euclidean distance, which the method scales anyway, is twice the cosine one.
            unit = unit_rows(query, "query")
            query, gallery = unit, unit if same_set else unit_rows(gallery, "gallery")
        return reranked_blocks(query, gallery, reranking, chunk_memory_mb=memory, progress=self.progress)


def unit_rows(embeddings: Array, name: str) -> Array:
    """(N, D) embeddings at unit length.  Raises `ValueError` for a row of zeros, NaN or infinity."""
    matrix, _ = matching_matrices(embeddings, embeddings)
    norms = norms_and_duplicates(matrix, name, duplicates=False)[0]
    refuse_zeros(norms, name)
    lengths = np.sqrt(norms)[:, None]
    return matrix / (torch.from_numpy(lengths).to(matrix.device) if isinstance(matrix, Tensor) else lengths)
