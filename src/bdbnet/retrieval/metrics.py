"""Rank-based metrics of person re-identification and image retrieval, as fractions from 0 to 1."""

from collections.abc import Sequence

import numpy as np

from bdbnet.retrieval.distance_blocks import Array, distance_blocks
from bdbnet.retrieval.ranking import Matches, PositiveRanks, label_array, positive_ranks


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
    chunk_memory_mb: float | None = None,
) -> dict[str, float | int]:
    """Metrics of person re-identification by Euclidean distance (protocol of Zheng et al. 2015, Market-1501).

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
        chunk_memory_mb: MiB for one block of distances, see `distance_blocks`.

    Returns:
        `rank{k}` for each of `ranks`: share of queries with a match among the first k;
        `mAP`: mean over queries of AP, the mean over a query's matches of (matches up to it) / (its rank), without the
        interpolation of Market-1501's first evaluation script, as is usual in the field;
        `mINP`: mean of (number of matches) / (rank of the last match) (Ye et al. 2021);
        `valid_queries`: number of queries with a match.

    Raises:
        ValueError: NaN or infinite embeddings (named by row), sets that are empty or do not fit together, or no query
            with a match.

    >>> gallery = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> reid_metrics(np.array([[0.2]]), gallery, [7], [7, 8, 7, 7], [0], [0, 1, 1, 1], ranks=(1, 2))
    {'rank1': 0.0, 'rank2': 1.0, 'mAP': 0.5833333333333333, 'mINP': 0.6666666666666666, 'valid_queries': 1}
    """
    cutoffs = _cutoffs(ranks, "ranks")
    if ap_at is not None and ap_at < 1:
        raise ValueError(f"ap_at must be at least 1 or None, got {ap_at}")
    blocks = distance_blocks(query, gallery, chunk_memory_mb=chunk_memory_mb)
    matches = Matches(
        label_array(query_labels, len(query), "query labels"),
        label_array(gallery_labels, len(gallery), "gallery labels"),
        None if query_cameras is None else label_array(query_cameras, len(query), "query cameras"),
        None if gallery_cameras is None else label_array(gallery_cameras, len(gallery), "gallery cameras"),
        same_set=query is gallery,
    )
    return summarize_reid(positive_ranks(blocks, matches), ranks=cutoffs, ap_at=ap_at)


def summarize_reid(
    found: PositiveRanks, *, ranks: Sequence[int] = (1, 5, 10), ap_at: int | None = None
) -> dict[str, float | int]:
    """The values of `reid_metrics` from the ranks of the positives, whatever distance gave them."""
    counts = np.diff(found.offsets)
    valid = counts > 0
    if not valid.any():
        raise ValueError(
            "no query has a match: every gallery image of its identity is missing or from the query's own camera "
            "(pass None as cameras where the data have none)"
        )
    owner = np.repeat(np.arange(len(counts)), counts)
    precision = (np.arange(len(owner)) - found.offsets[owner] + 1) / found.ranks
    if ap_at is not None:
        precision[found.ranks > ap_at] = 0
    average_precision = np.bincount(owner, precision, minlength=len(counts))[valid] / counts[valid]
    nearest = found.ranks[found.offsets[:-1][valid]]
    hardest = found.ranks[found.offsets[1:][valid] - 1]
    result: dict[str, float | int] = {f"rank{k}": float(np.mean(nearest <= k)) for k in ranks}
    result["mAP"] = float(average_precision.mean())
    result["mINP"] = float(np.mean(counts[valid] / hardest))
    result["valid_queries"] = int(valid.sum())
    return result


def recall_at_k(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    gallery: Array | None = None,
    gallery_labels: Array | None = None,
    chunk_memory_mb: float | None = None,
) -> dict[str, float | int]:
    """Recall@K of image retrieval: share of queries with an image of their class among the K nearest (Jegou et al.
    2011).

    Euclidean; equal distances are ranked in gallery order. Without a separate gallery every image is a query against
    all others. A query whose class has no other image (or none in the gallery) can't be answered and is left out.

    Args:
        embeddings: (Q, D) embeddings of the queries, NumPy or torch, on the CPU or a GPU.
        labels: integer classes (Q,).
        ks: the values of K.
        gallery: (G, D) embeddings of a separate gallery (as in In-Shop), or None.
        gallery_labels: integer classes (G,) of the separate gallery.
        chunk_memory_mb: MiB for one block of distances, see `distance_blocks`.

    Returns:
        `recall@{k}` for each of `ks`, and `valid_queries`, the number of queries that count.

    Raises:
        ValueError: NaN or infinite embeddings (named by row), sets that are empty or do not fit together, or no query
            with a match.

    >>> recall_at_k(np.array([[0.0], [1.0], [1.5], [9.0]]), [3, 3, 4, 4], ks=(1, 2))
    {'recall@1': 0.5, 'recall@2': 0.75, 'valid_queries': 4}
    """
    cutoffs = _cutoffs(ks, "ks")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("a separate gallery needs both gallery and gallery_labels")
    same_set = gallery is None
    target = embeddings if gallery is None else gallery
    target_labels = labels if gallery_labels is None else gallery_labels
    blocks = distance_blocks(embeddings, target, chunk_memory_mb=chunk_memory_mb)
    matches = Matches(
        label_array(labels, len(embeddings), "labels"),
        label_array(target_labels, len(target), "gallery labels"),
        same_set=same_set,
    )
    nearest = positive_ranks(blocks, matches, nearest_only=True).ranks
    if len(nearest) == 0:
        raise ValueError("no query has a match: no class has a second image" if same_set else "no query has a match")
    result: dict[str, float | int] = {f"recall@{k}": float(np.mean(nearest <= k)) for k in cutoffs}
    result["valid_queries"] = len(nearest)
    return result


def _cutoffs(values: Sequence[int], name: str) -> list[int]:
    cutoffs = [int(value) for value in values]
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"{name} must be one or more whole numbers from 1, got {tuple(values)}")
    return cutoffs
