"""Search settings: the distance of queries to a gallery, and what may be done to it before ranks are taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bdbnet.retrieval.distances import DISTANCES, Block, native_blocks
from bdbnet.retrieval.matrices import Array, Prepared, compared, unit_rows
from bdbnet.retrieval.query_expansion import QueryExpansion, expanded
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
    given: dict[str, Any] = {"lambda_value" if key == "lambda" else key: number for key, number in value.items()}
    if unknown := sorted(given.keys() - {"k1", "k2", "lambda_value"}):
        raise ValueError(f"rerank has no setting {', '.join(unknown)}: choose from k1, k2 and lambda")
    return KReciprocal(**given)


@dataclass(frozen=True)
class Search:
    """Distances of queries to a gallery, a block of queries at a time.

    Attributes:
        distance: `euclidean` or `cosine`.
        query_expansion: queries, and the gallery where its `gallery` says so, are replaced by a mean of themselves and their
            neighbours; None: they are not.
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

    @property
    def reranking(self) -> KReciprocal | None:
        """The settings of re-ranking."""
        return as_reranking(self.rerank)

    def asked(self, query: Prepared, gallery: Prepared) -> tuple[Prepared, Prepared]:
        """Queries and gallery that are compared: the expanded ones, where there is query expansion.

        Raises:
            ValueError: see `QueryExpansion`; re-ranking of expanded queries where a set is searched in itself, whose images
                would have to be both expanded and not.
        """
        if self.query_expansion is None:
            return query, gallery
        same_set = query is gallery
        if same_set and self.reranking is not None and not self.query_expansion.gallery:
            raise ValueError(
                "a set that is searched in itself can have its queries expanded or be re-ranked, not both, unless the gallery "
                "is expanded too (gallery: true)"
            )
        return expanded(
            query, gallery, self.query_expansion, distance=self.distance, same_set=same_set,
            chunk_memory_mb=self.chunk_memory_mb,
        )  # fmt: skip

    def order(self, asked: Prepared, gallery: Prepared) -> Iterator[tuple[int, Block]]:
        """`(first query, block (queries, G))`, smaller for nearer images, as `positive_ranks` takes them.

        Args:
            asked, gallery: what `asked` gave; one object where a set is searched in itself.

        Raises:
            ValueError: see `distance_blocks` and `KReciprocal`.
        """
        memory = self.chunk_memory_mb
        if self.reranking is None:
            return native_blocks(asked, gallery, self.distance, chunk_memory_mb=memory)
        if self.distance == "cosine":
            # Between unit vectors the squared Euclidean distance, which the method scales anyway, is twice the cosine one.
            unit = unit_rows(asked, "query")
            asked, gallery = unit, unit if asked is gallery else unit_rows(gallery, "gallery")
        return reranked_blocks(asked, gallery, self.reranking, chunk_memory_mb=memory, progress=self.progress)

    def blocks(self, query: Array | Prepared, gallery: Array | Prepared) -> Iterator[tuple[int, Block]]:
        """`order` of queries as they come. Give the same object twice to search a set in itself. Labels are not used."""
        query, gallery = compared(query, gallery)
        return self.order(*self.asked(query, gallery))

    @property
    def reorders(self) -> bool:
        """Whether there is query expansion or re-ranking."""
        return self.query_expansion is not None or self.reranking is not None

    @property
    def plain(self) -> "Search":
        """The same without query expansion and re-ranking."""
        return replace(self, query_expansion=None, rerank=None)
