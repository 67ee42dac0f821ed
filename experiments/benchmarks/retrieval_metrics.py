"""Time and memory of `reid_metrics` beside the bare matrix product of the same size.

    python experiments/benchmarks/retrieval_metrics.py
    python experiments/benchmarks/retrieval_metrics.py --gallery 515913 --repeats 1
    python experiments/benchmarks/retrieval_metrics.py --noise

float32 embeddings with identities and cameras spread as in Market-1501, scattered around their identities about as widely
as a trained network's (mAP about 0.75); `--noise` draws them at random, which is the worst case: matches may then stand
anywhere in the order. Bare products and metrics take turns, so
that other load on the machine hits all of them alike; medians are given. The product is written in blocks of
`--product-memory-mb`, by default as much as `reid_metrics` takes at most by itself: the whole Q x G matrix at
Market-1501's size. With more memory it need not read a large gallery as often, and is faster. Memory is the peak of the
resident set during the first call of `reid_metrics`, before any product was run, less what was resident before it (Linux
only).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bdbnet.retrieval import recall_at_k, reid_metrics

IDENTITIES, CAMERAS, DISTRACTORS = 750, 6, 0.16
SIGNAL = 3.0  # spread of identities to that within one: mAP about 0.75


def market_like(images: int, rng: np.random.Generator, distractors: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and cameras; at most Market-1501's 13,115 images show a query's identity, the rest are distractors (0)."""
    matching = min(int(images * (1 - distractors)), 13_115)
    labels = np.zeros(images, np.int64)
    labels[:matching] = np.sort(rng.integers(1, IDENTITIES + 1, matching))
    return labels, rng.integers(0, CAMERAS, images)


def clustered(labels: np.ndarray, centres: np.ndarray, rng: np.random.Generator, signal: float = SIGNAL) -> np.ndarray:
    """Embeddings (N, D): noise around each label's centre; label 0 are distractors, each a person of its own."""
    embeddings = rng.standard_normal((len(labels), centres.shape[1]), dtype=np.float32)
    embeddings += np.float32(signal / centres.shape[1] ** 0.25) * np.where(labels[:, None] > 0, centres[labels], 0)
    return embeddings


def resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def peak_beyond(call: Callable[[], object]) -> float:
    """MiB that the resident set grows at most during the call."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_mb("VmRSS")
    call()
    return resident_mb("VmHWM") - before


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of reid_metrics beside the bare matrix product.")
    parser.add_argument("--query", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15913)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chunk-memory-mb", type=float)
    parser.add_argument("--product-memory-mb", type=float, default=256)
    parser.add_argument("--device", default="cpu", help="cuda: embeddings and the bare product on the GPU")
    parser.add_argument("--noise", action="store_true", help="embeddings without any order")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    query_labels, query_cameras = market_like(arguments.query, rng, 0.0)
    gallery_labels, gallery_cameras = market_like(arguments.gallery, rng, DISTRACTORS)
    centres = rng.standard_normal((IDENTITIES + 1, arguments.dimensions), dtype=np.float32)
    signal = 0.0 if arguments.noise else SIGNAL
    query = clustered(query_labels, centres, rng, signal)
    gallery = clustered(gallery_labels, centres, rng, signal)

    device = torch.device(arguments.device)
    torch_query, torch_gallery = (torch.from_numpy(rows).to(device) for rows in (query, gallery))
    sides = (query, gallery) if device.type == "cpu" else (torch_query, torch_gallery)

    def metrics() -> dict[str, float | int]:
        return reid_metrics(
            *sides,
            query_labels,
            gallery_labels,
            query_cameras,
            gallery_cameras,
            chunk_memory_mb=arguments.chunk_memory_mb,
        )

    def recall() -> dict[str, float | int]:
        return recall_at_k(
            sides[0],
            query_labels,
            gallery=sides[1],
            gallery_labels=gallery_labels,
            chunk_memory_mb=arguments.chunk_memory_mb,
        )

    if device.type == "cuda":  # what its libraries take on the host is no memory of a metric
        some = slice(None, 64)
        recall_at_k(sides[0][some], query_labels[some], gallery=sides[0][some], gallery_labels=query_labels[some])
    found: dict[str, float | int] = {}
    memory = peak_beyond(lambda: found.update(metrics()))

    rows = max(1, min(arguments.query, int(arguments.product_memory_mb * 2**20 / (4 * arguments.gallery))))
    product = np.zeros((rows, arguments.gallery), np.float32)
    parts = [slice(begin, begin + rows) for begin in range(0, arguments.query, rows)]
    torch_product = torch.from_numpy(product).to(device)

    def numpy_product() -> None:
        for part in parts:
            np.matmul(query[part], gallery.T, out=product[: len(query[part])])

    def torch_mm() -> None:
        for part in parts:
            torch.mm(torch_query[part], torch_gallery.T, out=torch_product[: len(query[part])])
        if device.type == "cuda":
            torch.cuda.synchronize()

    products: dict[str, Callable[[], object]] = {"torch.mm": torch_mm}
    if device.type == "cpu":
        products["numpy.matmul"] = numpy_product
    calls = {**products, "reid_metrics": metrics, "recall_at_k": recall}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    bare = min(medians[name] for name in products)

    print(f"{arguments.query} x {arguments.gallery} x {arguments.dimensions} float32, mAP {found['mAP']:.3f}")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, values in taken.items():
        print(
            f"{name:14s} median {medians[name]:7.3f} s   best {min(values):7.3f} s   "
            f"{medians[name] / bare:5.2f} times the faster product"
        )
    best = min(taken["reid_metrics"]) / min(min(taken[name]) for name in products)
    print(f"reid_metrics to the faster product, best times: {best:.2f}")
    print(f"peak memory of reid_metrics beyond its inputs: {memory:.0f} MiB" + " on the host" * (device.type != "cpu"))


if __name__ == "__main__":
    main()
