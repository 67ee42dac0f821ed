"""Recall@1, 10, 100 and 1000 of image retrieval: `recall_at_k` beside other packages, at the size of Stanford Online
Products.

    python experiments/benchmarks/recall_sop.py --oml FOLDER
    python experiments/benchmarks/recall_sop.py --query 500 --gallery 2000 --dimensions 256

The gallery has the test set's 60,502 images and classes of its size; 6,000 queries stand for all of them. They are
further images of the same classes and not in the gallery: nothing is left out of a ranking, in any row. Processes,
memory and times as in retrieval_peers.py, which says what FOLDER is.

torchmetrics has the metric as RetrievalHitRate, but keeps and sorts all pairs: at the 90 bytes a pair or more that
its row of retrieval_peers.py takes, 33 GB here.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from retrieval_metrics import clustered
from retrieval_peers import Row, Values, compare, parser, tensors

from bdbnet.retrieval import recall_at_k

KS = (1, 10, 100, 1000)
CLASSES, IMAGES = 11_316, 60_502  # of the test set
QUERIES_AT_ONCE = 500


class Inputs(NamedTuple):
    query: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray


def sop_inputs(options: argparse.Namespace) -> Inputs:
    rng = np.random.default_rng(options.seed)
    classes = max(1, options.gallery * CLASSES // IMAGES)
    gallery_labels = np.sort(rng.integers(0, classes, options.gallery))
    query_labels = rng.choice(gallery_labels, options.query)
    centres = rng.standard_normal((classes, options.dimensions), dtype=np.float32)
    return Inputs(
        clustered(query_labels, centres, rng), clustered(gallery_labels, centres, rng), query_labels, gallery_labels
    )


def ours(inputs: Inputs) -> Callable[[], Values]:
    query, gallery, query_labels, gallery_labels = inputs
    return lambda: recall_at_k(query, query_labels, KS, gallery=gallery, gallery_labels=gallery_labels)


def pytorch_metric_learning(inputs: Inputs) -> Callable[[], Values]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    class Recall(AccuracyCalculator):
        """Has recall@1 alone; its documentation tells to add a method for every further metric."""

        def calculate_recall(self, knn_labels: torch.Tensor, query_labels: torch.Tensor, **_: object) -> Values:
            return recall(knn_labels == query_labels[:, None])

        def requires_knn(self) -> list[str]:
            return [*super().requires_knn(), "recall"]

    query, gallery, query_labels, gallery_labels = tensors(inputs)
    calculator = Recall(("recall",), k=min(max(KS), len(gallery)), device=torch.device("cpu"))
    return lambda: calculator.get_accuracy(query, query_labels, gallery, gallery_labels)["recall"]


def faiss(inputs: Inputs) -> Callable[[], Values]:
    import faiss

    query, gallery, query_labels, gallery_labels = inputs

    def call() -> Values:
        index = faiss.IndexFlatL2(gallery.shape[1])
        index.add(gallery)
        _, nearest = index.search(query, min(max(KS), len(gallery)))
        return recall(torch.from_numpy(gallery_labels[nearest] == query_labels[:, None]))

    return call


def open_metric_learning(inputs: Inputs) -> Callable[[], Values]:
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    query, gallery, query_labels, gallery_labels = tensors(inputs)

    def call() -> Values:
        _, retrieved, relevant = batched_knn_qg(query, gallery, max(KS), query_labels, gallery_labels)
        found = calc_retrieval_metrics(
            retrieved, relevant, cmc_top_k=KS, precision_top_k=(), map_top_k=(), verbose=False
        )
        return {f"recall@{k}": float(found["cmc"][k]) for k in KS}

    return call


def torch_topk(inputs: Inputs) -> Callable[[], Values]:
    query, gallery, query_labels, gallery_labels = tensors(inputs)
    k = min(max(KS), len(gallery))

    def call() -> Values:
        matches = []
        for begin in range(0, len(query), QUERIES_AT_ONCE):
            part = slice(begin, begin + QUERIES_AT_ONCE)
            nearest = torch.cdist(query[part], gallery).topk(k, largest=False).indices
            matches.append(gallery_labels[nearest] == query_labels[part, None])
        return recall(torch.cat(matches))

    return call


def recall(matches: torch.Tensor) -> Values:
    """From bool (Q, k), nearest first."""
    return {f"recall@{k}": float(matches[:, :k].any(1).double().mean()) for k in KS}


ROWS = {
    "bdbnet": Row(ours, "bdbnet"),
    "pytorch-metric-learning": Row(
        pytorch_metric_learning, "pytorch-metric-learning", note="AccuracyCalculator, neighbours by faiss"
    ),
    "faiss": Row(faiss, "faiss-cpu", note=f"IndexFlatL2, k = {max(KS)}"),
    "open-metric-learning": Row(open_metric_learning, "open-metric-learning"),
    "torch": Row(torch_topk, "torch", note=f"cdist and topk, {QUERIES_AT_ONCE} queries at a time"),
}


def main() -> None:
    options = parser("Time and memory of Recall@K beside other packages.", ROWS, 6000, IMAGES).parse_args()
    compare(ROWS, sop_inputs, options)


if __name__ == "__main__":
    main()
