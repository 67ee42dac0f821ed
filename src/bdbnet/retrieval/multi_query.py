"""Multi-query person re-identification: several images of a person under one camera make one query."""

from typing import NamedTuple

import torch
from torch import Tensor

POOLINGS = ("mean", "max")


class PooledQueries(NamedTuple):
    """Queries after pooling, in the order in which each (identity, camera) first occurs.

    `embeddings` (P, D), `labels` and `cameras` (P,), and `first` (P,): the row of each query's first image.
    """

    embeddings: Tensor
    labels: Tensor
    cameras: Tensor
    first: Tensor


def pool_queries(embeddings: Tensor, labels: Tensor, cameras: Tensor, pooling: str) -> PooledQueries:
    """Pool the embeddings of all query images of one identity and camera (Zheng et al. 2015, multiple queries).

    Args:
        embeddings: (Q, D).
        labels, cameras: integers (Q,).
        pooling: `mean` or `max`, element by element.

    Raises:
        ValueError: an unknown pooling.

    >>> rows = torch.tensor([[1.0, 0.0], [5.0, 5.0], [3.0, 2.0]])
    >>> pool_queries(rows, torch.tensor([7, 8, 7]), torch.tensor([1, 1, 1]), "mean").embeddings
    tensor([[2., 1.],
            [5., 5.]])
    """
    if pooling not in POOLINGS:
        raise ValueError(f"query_pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    pairs, group = torch.unique(torch.stack([labels, cameras], dim=1), dim=0, return_inverse=True)
    rows = torch.arange(len(labels), device=labels.device)
    first = torch.full((len(pairs),), len(labels), device=labels.device).scatter_reduce(0, group, rows, "amin")
    order = torch.argsort(first)
    target = embeddings.new_empty((len(pairs), embeddings.shape[1]))
    index = group[:, None].expand_as(embeddings)
    pooled = target.scatter_reduce(0, index, embeddings, "mean" if pooling == "mean" else "amax", include_self=False)
    return PooledQueries(pooled[order], pairs[order, 0], pairs[order, 1], first[order])
