"""CMC and mAP of person re-identification: `reid_metrics` beside other packages, at Market-1501's size.

    python experiments/benchmarks/retrieval_peers.py --torchreid FOLDER --oml FOLDER
    python experiments/benchmarks/retrieval_peers.py --query 500 --gallery 2000 --dimensions 256

Clustered random float32 embeddings with identities and cameras spread as in Market-1501; queries without a match are
not generated, since the packages count them differently. Every row runs in a process of its own, which makes the same
inputs from the seed. Memory is the peak of the resident set during the row's first call, less what was resident before
it: inputs and imports (Linux only). Then the call and the bare matrix product take turns; times are medians, the ratio
to the product is to the faster of numpy.matmul and torch.mm in the same process. Values that differ from bdbnet's by a
query or two in thousands are rounding: the packages' float32 distances order nearly equal ones differently.

The two folders hold torchreid 0.2.5 and open-metric-learning 4.0.0, which ask for older libraries than bdbnet does:
`pip install --no-deps --target FOLDER PACKAGE`, likewise what they import and bdbnet's environment may lack (torchreid:
future, gdown, opencv-python-headless, six, yacs; open-metric-learning: gdown, validators; gdown: beautifulsoup4,
soupsieve).
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from retrieval_metrics import CAMERAS, DISTRACTORS, IDENTITIES, clustered, market_like, peak_beyond, seconds

from bdbnet.retrieval import Matches, reid_metrics

PRODUCT_MB = 256  # of the bare product are written at a time
PAIRS_AT_ONCE = 2**22  # of the scores that torchmetrics is given


class Inputs(NamedTuple):
    query: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray


Values = dict[str, float | int]


class Row(NamedTuple):
    build: Callable[[Any], Callable[[], Values]]  # from the inputs to the call that is measured
    package: str
    like: str = "bdbnet"  # the row that measures by the same definition
    note: str = ""


class Measurement(NamedTuple):
    version: str
    seconds: list[float]
    products: dict[str, list[float]]
    memory_mb: float
    values: Values

    @property
    def bare(self) -> float:
        return min(statistics.median(times) for times in self.products.values())


def market_inputs(options: argparse.Namespace) -> Inputs:
    rng = np.random.default_rng(options.seed)
    query_labels, query_cameras = market_like(options.query, rng, 0.0)
    gallery_labels, gallery_cameras = market_like(options.gallery, rng, DISTRACTORS)
    matches = Matches(query_labels, gallery_labels, query_cameras, gallery_cameras)
    matched = [number for number in range(options.query) if len(matches.of(number)[0])]
    query_labels, query_cameras = query_labels[matched], query_cameras[matched]
    centres = rng.standard_normal((IDENTITIES + 1, options.dimensions), dtype=np.float32)
    query, gallery = clustered(query_labels, centres, rng), clustered(gallery_labels, centres, rng)
    return Inputs(query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras)


def tensors(inputs: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in inputs]


def ours(inputs: Inputs) -> Callable[[], Values]:
    return lambda: reid_metrics(*inputs, ranks=(1,))


def ours_without_cameras(inputs: Inputs) -> Callable[[], Values]:
    return lambda: reid_metrics(*inputs[:4], None, None, ranks=(1,))


def torchreid(inputs: Inputs) -> Callable[[], Values]:
    from torchreid.reid.metrics import compute_distance_matrix, evaluate_rank
    from torchreid.reid.metrics.rank import IS_CYTHON_AVAI

    print(f"torchreid evaluates in {'Cython' if IS_CYTHON_AVAI else 'Python: its Cython extension is not there'}")
    query, gallery = tensors(inputs)[:2]

    def call() -> Values:
        distances = compute_distance_matrix(query, gallery).numpy()
        cmc, mean_ap = evaluate_rank(distances, *inputs[2:])
        return {"rank1": float(cmc[0]), "mAP": float(mean_ap)}

    return call


def open_metric_learning(inputs: Inputs) -> Callable[[], Values]:
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras = tensors(inputs)
    count = len(gallery)

    def call() -> Values:
        _, retrieved, relevant = batched_knn_qg(
            query,
            gallery,
            count,
            query_labels,
            gallery_labels,
            sequence_ids_query=query_labels * CAMERAS + query_cameras,
            sequence_ids_gallery=gallery_labels * CAMERAS + gallery_cameras,
        )
        found = calc_retrieval_metrics(
            retrieved, relevant, cmc_top_k=(1,), precision_top_k=(), map_top_k=(count,), verbose=False
        )
        return {"rank1": float(found["cmc"][1]), "mAP": float(found["map"][count])}

    return call


def pytorch_metric_learning(inputs: Inputs) -> Callable[[], Values]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    query, gallery, query_labels, gallery_labels = tensors(inputs)[:4]
    calculator = AccuracyCalculator(("precision_at_1", "mean_average_precision"), device=torch.device("cpu"))

    def call() -> Values:
        found = calculator.get_accuracy(query, query_labels, gallery, gallery_labels)
        return {"rank1": found["precision_at_1"], "mAP": found["mean_average_precision"]}

    return call


def torchmetrics(inputs: Inputs) -> Callable[[], Values]:
    from torchmetrics import MetricCollection
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

    query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras = tensors(inputs)
    rows = max(1, PAIRS_AT_ONCE // len(gallery))

    def call() -> Values:
        hits = RetrievalHitRate(empty_target_action="skip", ignore_index=-1, top_k=1)
        precision = RetrievalMAP(empty_target_action="skip", ignore_index=-1)
        metrics = MetricCollection({"rank1": hits, "mAP": precision})  # the two share what they keep
        for begin in range(0, len(query), rows):
            part = slice(begin, begin + rows)
            # Only a positive score counts as retrieved.
            scores = 1 / (1 + torch.cdist(query[part], gallery))
            target = (query_labels[part, None] == gallery_labels).long()
            target[(target == 1) & (query_cameras[part, None] == gallery_cameras)] = -1
            number = torch.arange(begin, begin + len(scores))[:, None].expand_as(scores)
            metrics.update(scores, target, indexes=number)
        return {name: float(value) for name, value in metrics.compute().items()}

    return call


def faiss(inputs: Inputs) -> Callable[[], Values]:
    import faiss

    query, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras = inputs

    def call() -> Values:
        index = faiss.IndexFlatL2(gallery.shape[1])
        index.add(gallery)
        _, ranking = index.search(query, len(gallery))
        first, precisions = [], []
        for order, label, camera in zip(ranking, query_labels, query_cameras, strict=True):
            match = gallery_labels[order] == label
            counts = ~(match & (gallery_cameras[order] == camera))
            ranks = np.flatnonzero(match[counts]) + 1
            first.append(ranks[0] == 1)
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        return {"rank1": float(np.mean(first)), "mAP": float(np.mean(precisions))}

    return call


ROWS = {
    "bdbnet": Row(ours, "bdbnet"),
    "bdbnet, no cameras": Row(ours_without_cameras, "bdbnet", "bdbnet, no cameras", "every image of the identity"),
    "torchreid": Row(torchreid, "torchreid"),
    "open-metric-learning": Row(open_metric_learning, "open-metric-learning", note="identity and camera as sequence"),
    "pytorch-metric-learning": Row(
        pytorch_metric_learning,
        "pytorch-metric-learning",
        "bdbnet, no cameras",
        "knows no cameras, so compared with the row without; ranking by faiss",
    ),
    "torchmetrics": Row(torchmetrics, "torchmetrics", note="keeps a score, a target and a query number for every pair"),
    "faiss": Row(faiss, "faiss-cpu", note="IndexFlatL2, k = gallery; metrics from the ranking in NumPy"),
}


def products(query: np.ndarray, gallery: np.ndarray) -> dict[str, Callable[[], None]]:
    """The bare matrix product by NumPy and by torch, written into one buffer of at most PRODUCT_MB."""
    rows = max(1, min(len(query), PRODUCT_MB * 2**20 // (len(gallery) * query.itemsize)))
    product = np.zeros((rows, len(gallery)), np.float32)
    parts = [slice(begin, begin + rows) for begin in range(0, len(query), rows)]
    torch_query, torch_gallery, torch_product = map(torch.from_numpy, (query, gallery, product))

    def numpy_product() -> None:
        for part in parts:
            np.matmul(query[part], gallery.T, out=product[: len(query[part])])

    def torch_mm() -> None:
        for part in parts:
            torch.mm(torch_query[part], torch_gallery.T, out=torch_product[: len(query[part])])

    return {"numpy.matmul": numpy_product, "torch.mm": torch_mm}


def measure(row: Row, make_inputs: Callable[[argparse.Namespace], Any], options: argparse.Namespace) -> Measurement:
    """Runs in the row's own process."""
    # Last, so that the folders of peers give nothing that bdbnet's environment has itself.
    sys.path.extend(folder for folder in (options.torchreid, options.oml) if folder)
    warnings.filterwarnings("ignore")
    inputs = make_inputs(options)
    call = row.build(inputs)
    values: Values = {}
    memory = peak_beyond(lambda: values.update(call()))
    bare = products(inputs.query, inputs.gallery)
    taken: list[float] = []
    products_taken: dict[str, list[float]] = {name: [] for name in bare}
    for _ in range(options.repeats):
        for name, product in bare.items():
            products_taken[name].append(seconds(product))
        taken.append(seconds(call))
    return Measurement(version(row.package), taken, products_taken, memory, values)


def compare(
    rows: dict[str, Row], make_inputs: Callable[[argparse.Namespace], Any], options: argparse.Namespace
) -> None:
    """Measures the rows one after the other and prints a line for each."""
    print(f"{options.query} x {options.gallery} x {options.dimensions} float32, seed {options.seed}")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}, {os.cpu_count()} cores,"
        f" load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'':24}{'version':>9}{'median s':>10}{'best s':>9}{'MiB':>7}{'/product':>10}{'/ours':>8}  values",
        flush=True,
    )
    done: dict[str, Measurement] = {}
    folders = {"torchreid": options.torchreid, "open-metric-learning": options.oml}
    for name, row in rows.items():
        if options.only and name not in options.only:
            continue
        if folders.get(name, "installed") is None:
            print(f"{name:24}not given")
            continue
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found = done[name] = process.submit(measure, row, make_inputs, options).result()
        except ImportError as error:
            print(f"{name:24}left out: {error}")
            continue
        except (BrokenProcessPool, MemoryError) as error:
            print(f"{name:24}failed, probably for want of memory: {error}")
            continue
        median = statistics.median(found.seconds)
        to_ours = f"{median / statistics.median(done['bdbnet'].seconds):8.2f}" if "bdbnet" in done else f"{'-':>8}"
        print(
            f"{name:24}{found.version:>9}{median:10.3f}{min(found.seconds):9.3f}{found.memory_mb:7.0f}"
            f"{median / found.bare:10.2f}{to_ours}  {agreement(found.values, done.get(row.like))}"
            + (f" ({row.note})" if row.note else ""),
            flush=True,
        )
    for product in ("numpy.matmul", "torch.mm"):
        times = [one for found in done.values() for one in found.products[product]]
        print(f"{product:24}{'':9}{statistics.median(times):10.3f}{min(times):9.3f}")


def agreement(values: Values, reference: Measurement | None) -> str:
    shown = " ".join(
        f"{name} {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in values.items()
    )
    if reference is None or reference.values is values:
        return shown
    away = max(abs(value - reference.values[name]) for name, value in values.items())
    return f"{shown}, {'agrees' if away < 5e-5 else f'differs by {away:.1e}'}"


def parser(description: str, rows: dict[str, Row], query: int, gallery: int) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--query", type=int, default=query, help="images (default: %(default)s)")
    result.add_argument("--gallery", type=int, default=gallery, help="images (default: %(default)s)")
    result.add_argument("--dimensions", type=int, default=1536, help="of the embeddings (default: %(default)s)")
    result.add_argument("--repeats", type=int, default=3, help="timed calls after the first (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0)
    result.set_defaults(torchreid=None)
    if "torchreid" in rows:
        result.add_argument("--torchreid", metavar="FOLDER", help="with torchreid 0.2.5")
    result.add_argument("--oml", metavar="FOLDER", help="with open-metric-learning 4.0.0")
    result.add_argument("--only", nargs="+", choices=list(rows), metavar="ROW", help=", ".join(rows))
    return result


def main() -> None:
    options = parser("Time and memory of re-ID evaluation beside other packages.", ROWS, 3368, 15913).parse_args()
    compare(ROWS, market_inputs, options)


if __name__ == "__main__":
    main()
