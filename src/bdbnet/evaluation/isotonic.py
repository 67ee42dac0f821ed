"""Isotonic regression: the falling steps that are nearest to given values, by pooling adjacent violators."""

import numpy as np


def falling_fit(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values (N,) that never rise and have the least weighted squared distance to the given ones (Barlow et al. 1972).

    Args:
        values: (N,).
        weights: (N,), above 0.

    Raises:
        ValueError: arrays of different lengths, none at all, or a weight of 0 or less.

    >>> falling_fit(np.array([3.0, 1.0, 2.0, 0.0]), np.ones(4)).tolist()
    [3.0, 1.5, 1.5, 0.0]
    """
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if values.ndim != 1 or values.shape != weights.shape or not len(values):
        raise ValueError(f"values and weights must be of one length, got shapes {values.shape} and {weights.shape}")
    if not (weights > 0).all():
        raise ValueError("weights must be above 0")
    means: list[float] = []
    sizes: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist()):
        length = 1
        while means and means[-1] <= value:  # equal steps are one
            before, size = means.pop(), sizes.pop()
            value = (before * size + value * weight) / (size + weight)
            weight += size
            length += lengths.pop()
        means.append(value)
        sizes.append(weight)
        lengths.append(length)
    return np.repeat(means, lengths)
