"""Metric losses: ``loss(embeddings (N, D), labels (N,)) -> scalar``, and the distances they share."""

from bdbnet.losses.contrastive import ContrastiveLoss
from bdbnet.losses.distances import pair_masks, pairwise_distances, row_distances
from bdbnet.losses.hard_triplet import BatchHardTripletLoss
from bdbnet.losses.histogram import HistogramLoss
from bdbnet.losses.lifted_structure import LiftedStructureLoss
from bdbnet.losses.margin import MarginLoss
from bdbnet.losses.npairs import NPairsLoss
from bdbnet.losses.quadruplet import QuadrupletLoss
from bdbnet.losses.weighted_triplet import WeightedTripletLoss

__all__ = [
    "BatchHardTripletLoss",
    "ContrastiveLoss",
    "HistogramLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "NPairsLoss",
    "QuadrupletLoss",
    "WeightedTripletLoss",
    "pair_masks",
    "pairwise_distances",
    "row_distances",
]
