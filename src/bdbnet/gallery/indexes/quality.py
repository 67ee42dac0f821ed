"""What an approximate index is worth: how much of the truth it finds, and how fast."""

import time
from dataclasses import dataclass

import numpy as np

from bdbnet.gallery.indexes.exact import ExactIndex, GalleryIndex
from bdbnet.retrieval.matrices import Array, as_matrix, rows_of

_SINGLE_SEARCHES = 50


@dataclass(frozen=True)
class IndexQuality:
    """Recall and speed of an index, measured together.

    Attributes:
        k: images searched for.
        recall: share of the exact `k` nearest that the index finds.
        queries: number of queries it was measured on.
        latency_ms: median milliseconds of one query searched alone.
        queries_per_second: with all queries searched in one call.
        of: what the queries were.
    """

    k: int
    recall: float
    queries: int
    latency_ms: float
    queries_per_second: float
    of: str = "queries"

    def __str__(self) -> str:
        return (
            f"recall@{self.k} {self.recall:.4f} over {self.queries:,} {self.of}, {self.latency_ms:.2f} ms a query, "
            f"{self.queries_per_second:,.0f} queries/s in one call"
        )


def recall_against_exact(index: GalleryIndex, queries: Array, k: int = 10, sample: int = 1000) -> float:
    """Share of the exact `k` nearest gallery images that the index finds, a fraction in 0..1.

    An image as near as the `k`-th nearest counts as found, whichever of several equally near ones it is.

    Args:
        index: any index; its gallery is searched exactly as well.
        queries: (Q, D) embeddings.
        k: images searched for, at least 1; no more than the gallery has are counted.
        sample: at most so many of the queries, evenly spread, are searched for.
    """
    chosen = _sampled(queries, sample)
    _, exact = ExactIndex(index.embeddings, distance=index.distance).search(chosen, min(k, len(index)))
    _, found = index.search(chosen, min(k, len(index)))
    return float((found <= exact[:, -1:]).mean())


def measure_index(index: GalleryIndex, queries: Array, k: int = 10, sample: int = 1000) -> IndexQuality:
    """Recall and speed of an index; see `recall_against_exact` for the arguments."""
    k = min(k, len(index))
    chosen = _sampled(queries, sample)
    recall = recall_against_exact(index, chosen, k)
    alone = []
    for number in range(min(_SINGLE_SEARCHES, len(chosen))):
        begin = time.perf_counter()
        index.search(chosen[number : number + 1], k)
        alone.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    index.search(chosen, k)
    together = time.perf_counter() - begin
    return IndexQuality(k, recall, len(chosen), 1000 * float(np.median(alone)), len(chosen) / together)


def _sampled(queries: Array, sample: int) -> np.ndarray:
    if sample < 1:
        raise ValueError(f"sample must be at least 1, got {sample}")
    matrix = as_matrix(queries, "query")
    return rows_of(matrix, np.unique(np.linspace(0, len(matrix) - 1, min(sample, len(matrix))).astype(np.int64)))
