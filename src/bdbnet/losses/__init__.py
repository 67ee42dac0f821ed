"""Metric losses: ``loss(embeddings (N, D), labels (N,)) -> scalar``, and the distances they share."""

from bdbnet.losses.distances import pair_masks, pairwise_distances, row_distances
from bdbnet.losses.hard_triplet import BatchHardTripletLoss

__all__ = ["BatchHardTripletLoss", "pair_masks", "pairwise_distances", "row_distances"]
