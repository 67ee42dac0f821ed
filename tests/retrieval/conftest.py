"""Re-ID and retrieval metrics by double loop and explicit sort, straight from their definitions."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest


def order(query: np.ndarray, gallery: np.ndarray, keep: Sequence[bool]) -> list[int]:
    """Indices of the kept gallery rows by (distance, index)."""
    keys = []
    for j, row in enumerate(gallery):
        if keep[j]:
            keys.append((sum((float(a) - float(b)) ** 2 for a, b in zip(query, row, strict=True)), j))
    return [j for _, j in sorted(keys)]


def reid(query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras, ranks=(1, 5, 10), ap_at=None):
    hits: dict[int, list[bool]] = {k: [] for k in ranks}
    precisions, penalties = [], []
    for i, row in enumerate(query):
        keep = [
            not (gallery_labels[j] == query_labels[i] and gallery_cameras[j] == query_cameras[i])
            for j in range(len(gallery))
        ]
        right = [gallery_labels[j] == query_labels[i] for j in order(row, gallery, keep)]
        if not any(right):
            continue
        for k in ranks:
            hits[k].append(any(right[:k]))
        total, precision, last = 0, 0.0, 0
        for place, hit in enumerate(right, 1):
            if hit:
                total, last = total + 1, place
                if ap_at is None or place <= ap_at:
                    precision += total / place
        precisions.append(precision / total)
        penalties.append(total / last)
    if not precisions:
        return None
    values = {f"rank{k}": np.mean(hits[k]) for k in ranks}
    return {**values, "mAP": np.mean(precisions), "mINP": np.mean(penalties), "valid_queries": len(precisions)}


def recall(embeddings, labels, ks, gallery=None, gallery_labels=None):
    hits: dict[int, list[bool]] = {k: [] for k in ks}
    valid = 0
    for i, row in enumerate(embeddings):
        if gallery is None:
            found = order(row, embeddings, [j != i for j in range(len(embeddings))])
            right = [labels[j] == labels[i] for j in found]
        else:
            right = [gallery_labels[j] == labels[i] for j in order(row, gallery, [True] * len(gallery))]
        if any(right):
            valid += 1
            for k in ks:
                hits[k].append(any(right[:k]))
    if not valid:
        return None
    return {**{f"recall@{k}": np.mean(hits[k]) for k in ks}, "valid_queries": valid}


def precision(embeddings, labels, gallery=None, gallery_labels=None):
    """MAP@R and R-precision (Musgrave et al. 2020)."""
    maps, shares = [], []
    for i, row in enumerate(embeddings):
        if gallery is None:
            right = [labels[j] == labels[i] for j in order(row, embeddings, [j != i for j in range(len(embeddings))])]
        else:
            right = [gallery_labels[j] == labels[i] for j in order(row, gallery, [True] * len(gallery))]
        if any(right):
            r = sum(right)
            maps.append(sum(sum(right[:place]) / place for place in range(1, r + 1) if right[place - 1]) / r)
            shares.append(sum(right[:r]) / r)
    return {"map@r": np.mean(maps), "r_precision": np.mean(shares)} if maps else None


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    return SimpleNamespace(order=order, reid=reid, recall=recall, precision=precision)
