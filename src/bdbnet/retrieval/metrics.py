"""Rank-based metrics of person re-identification and image retrieval, as fractions from 0 to 1."""

from collections.abc import Sequence

import numpy as np

from bdbnet.renamed import accepts_former
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.matrices import Array, compared
from bdbnet.retrieval.query_expansion import QueryExpansion
from bdbnet.retrieval.rankings import rank_queries
from bdbnet.retrieval.ranks import PositiveRanks
from bdbnet.retrieval.search import Reranking, Search


@accepts_former(measure="distance")
def reid_metrics(
    query: Array,
    gallery: Array,
    query_labels: Array,
    gallery_labels: Array,
    query_cameras: Array | None,
    gallery_cameras: Array | None,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    ap_at: int | None = None,
    distance: str = "euclidean",
    query_expansion: QueryExpansion | None = None,
    rerank: Reranking = None,
    chunk_memory_mb: float | None = None,
    progress: bool = False,
) -> dict[str, float | int]:
    """Metrics of person re-identification (protocol of Zheng et al. 2015, Market-1501).

    Gallery images with the query's identity and camera are left out. Equal distances are ranked in gallery order.
    Queries without a match in what remains are left out of all means.

    Args:
        query: (Q, D) embeddings, NumPy or torch, on the CPU or a GPU.
        gallery: (G, D) embeddings, on the same device. Give the very object that is `query` to search a set in itself:
            then each query itself is left out too.
        query_labels, gallery_labels: integer identities (Q,) and (G,).
        query_cameras, gallery_cameras: integer cameras (Q,) and (G,), or None for both: then every image of the query's
            identity is a match.
        ranks: the k of the CMC values.
        ap_at: count only matches within the first `ap_at` ranks in AP, but still divide by all matches. This is what
            the code released with the BDB paper does; it understates mAP. None: full AP.
        distance: `euclidean` or `cosine`.
        query_expansion: replace queries, and on request gallery images, by a mean of themselves and their nearest images, see
            `QueryExpansion`.
        rerank: k-reciprocal re-ranking, see `k_reciprocal_rerank`: a `KReciprocal`, a mapping with any of `k1`, `k2` and
            `lambda`, or True for the published values. No matrix of queries and gallery is held.
        chunk_memory_mb: MiB for one block of distances, see `distance_blocks`.
        progress: show a progress bar while re-ranking.

    Returns:
        `rank{k}` for each of `ranks`: share of queries with a match among the first k;
        `mAP`: mean over queries of AP, the mean over a query's matches of (matches up to it) / (its rank), without the
        interpolation of Market-1501's first evaluation script, as is usual in the field;
        `mINP`: mean of (number of matches) / (rank of the last match) (Ye et al. 2021);
        `valid_queries`: number of queries with a match.

    Raises:
        ValueError: NaN or infinite embeddings, or with the cosine distance zeros (named by row), sets that are empty or do
            not fit together, `chunk_memory_mb` below one query's distances, or no query with a match.

    >>> gallery = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> reid_metrics(np.array([[0.2]]), gallery, [7], [7, 8, 7, 7], [0], [0, 1, 1, 1], ranks=(1, 2))
    {'rank1': 0.0, 'rank2': 1.0, 'mAP': 0.5833333333333333, 'mINP': 0.6666666666666666, 'valid_queries': 1}
    """
    cutoffs = checked_cutoffs(ranks, "ranks")
    check_ap_at(ap_at)
    search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)
    sides = compared(query, gallery)
    sizes = len(sides[0]), len(sides[1])
    tags = (query_labels, gallery_labels, query_cameras, gallery_cameras)
    matches = Matches.of_labels(*tags, sizes=sizes, same_set=query is gallery)
    return summarize_reid(rank_queries(*sides, matches, search).ranks, ranks=cutoffs, ap_at=ap_at)


def summarize_reid(
    found: PositiveRanks, *, ranks: Sequence[int] = (1, 5, 10), ap_at: int | None = None
) -> dict[str, float | int]:
    """The values of `reid_metrics` from the ranks of the positives, whatever distance gave them."""
    valid = found.counts > 0
    if not valid.any():
        raise ValueError(
            "no query has a match: every gallery image of its identity is missing or from the query's own camera "
            "(pass None as cameras where the data have none)"
        )
    nearest = found.nearest[valid]
    result: dict[str, float | int] = {f"rank{k}": float(np.mean(nearest <= k)) for k in ranks}
    result["mAP"] = float(found.average_precision(ap_at)[valid].mean())
    result["mINP"] = float(found.inverse_penalty()[valid].mean())
    result["valid_queries"] = int(valid.sum())
    return result


@accepts_former(measure="distance")
def recall_at_k(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    distance: str = "euclidean",
    query_expansion: QueryExpansion | None = None,
    rerank: Reranking = None,
    chunk_memory_mb: float | None = None,
    progress: bool = False,
) -> dict[str, float | int]:
    """Recall@K of image retrieval: share of queries with an image of their class among the K nearest (Jegou et al.
    2011).

    Equal distances are ranked in gallery order. Without a separate gallery every image is a query against
    all others. A query whose class has no other image (or none in the gallery) can't be answered and is left out.

    Args:
        embeddings: (Q, D) embeddings of the queries, NumPy or torch, on the CPU or a GPU.
        labels: integer classes (Q,).
        ks: the values of K.
        gallery: (G, D) embeddings of a separate gallery (as in In-Shop), or None.
        gallery_labels: integer classes (G,) of the separate gallery.
        distance, query_expansion, rerank, chunk_memory_mb, progress: see `reid_metrics`.

    Returns:
        `recall@{k}` for each of `ks`, and `valid_queries`, the number of queries that count.

    Raises:
        ValueError: NaN or infinite embeddings (named by row), sets that are empty or do not fit together, or no query
            with a match.

    >>> recall_at_k(np.array([[0.0], [1.0], [1.5], [9.0]]), [3, 3, 4, 4], ks=(1, 2))
    {'recall@1': 0.5, 'recall@2': 0.75, 'valid_queries': 4}
    """
    search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)
    return _retrieval(embeddings, labels, ks, gallery, gallery_labels, search, precision=False)


@accepts_former(measure="distance")
def retrieval_metrics(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    distance: str = "euclidean",
    query_expansion: QueryExpansion | None = None,
    rerank: Reranking = None,
    chunk_memory_mb: float | None = None,
    progress: bool = False,
) -> dict[str, float | int]:
    """Recall@K, MAP@R and R-precision of image retrieval.

    R is the number of a query's matches. R-precision is the share of matches among its R nearest images; MAP@R is the
    mean over queries of the sum, over the matches within those R, of (matches up to it) / (its rank), divided by R
    (Musgrave et al. 2020).

    Args:
        embeddings, labels, ks, gallery, gallery_labels: see `recall_at_k`.
        distance, query_expansion, rerank, chunk_memory_mb, progress: see `reid_metrics`.

    Returns:
        `recall@{k}` for each of `ks`, `map@r`, `r_precision` and `valid_queries`.

    Raises:
        ValueError: see `recall_at_k` and `reid_metrics`.

    >>> retrieval_metrics(np.array([[0.0], [1.0], [1.5], [9.0]]), [3, 3, 4, 3], ks=(1,))
    {'recall@1': 0.3333333333333333, 'map@r': 0.3333333333333333, 'r_precision': 0.5, 'valid_queries': 3}
    """
    search = Search(distance, query_expansion, rerank, chunk_memory_mb, progress)
    return _retrieval(embeddings, labels, ks, gallery, gallery_labels, search, precision=True)


def _retrieval(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int],
    gallery: Array | None,
    gallery_labels: Array | None,
    search: Search,
    *,
    precision: bool,
) -> dict[str, float | int]:
    cutoffs = checked_cutoffs(ks, "ks")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a separate gallery needs both gallery and gallery_labels")
    sides = compared(embeddings, embeddings if gallery is None else gallery)
    sizes = len(sides[0]), len(sides[1])
    shown = labels if gallery_labels is None else gallery_labels
    matches = Matches.of_labels(labels, shown, sizes=sizes, same_set=gallery is None)
    found = rank_queries(*sides, matches, search, nearest_only=not precision).ranks
    return summarize_retrieval(found, ks=cutoffs, precision=precision)


def summarize_retrieval(
    found: PositiveRanks, *, ks: Sequence[int] = (1, 2, 4, 8), precision: bool = True
) -> dict[str, float | int]:
    """The values of `retrieval_metrics` from the ranks of the positives; without `precision` those of `recall_at_k`."""
    valid = found.counts > 0
    if not valid.any():
        raise ValueError("no query has a match: no class has a second image, or no query's class is in the gallery")
    nearest = found.nearest[valid]
    result: dict[str, float | int] = {f"recall@{k}": float(np.mean(nearest <= k)) for k in ks}
    if precision:
        within, shares = found.precision_at_r()
        result |= {"map@r": float(within[valid].mean()), "r_precision": float(shares[valid].mean())}
    return {**result, "valid_queries": int(valid.sum())}


def checked_cutoffs(values: Sequence[int], name: str) -> list[int]:
    """Values of K as whole numbers; raises `ValueError` where there are none or one is below 1."""
    cutoffs = [int(value) for value in values]
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"{name} must be one or more whole numbers from 1, got {tuple(values)}")
    return cutoffs


def check_ap_at(ap_at: int | None) -> None:
    """Raise ValueError for a rank below 1."""
    if ap_at is not None and ap_at < 1:
        raise ValueError(f"ap_at must be at least 1 or None, got {ap_at}")
