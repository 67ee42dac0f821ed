"""Time and memory of k-reciprocal re-ranking, from embeddings to metrics, beside torchreid's `re_ranking`.

    python experiments/benchmarks/reranking.py --torchreid FOLDER
    python experiments/benchmarks/reranking.py --device cuda
    python experiments/benchmarks/reranking.py --query 20000 --gallery 100000 --dimensions 512

FOLDER is where the package `torchreid` lies, for instance what `pip install --no-deps --target FOLDER torchreid` wrote.
Only its file `rerank.py` is loaded, so nothing that it depends on is needed. Its `re_ranking` squares the distances it
is given, so it gets Euclidean ones here. Both are evaluated by the same metrics, which should agree to four digits.

The embeddings are clusters that overlap, so that Rank-1 and mAP are neither perfect nor nought: identities and cameras
are points in a space of 32 dimensions, images scatter around them, and a random projection blows all up to the wanted
size. A sixth of the gallery are distractors. Each side runs in a process of its own; memory is the peak of its resident
set (Linux only), given as a whole and less what was resident, embeddings included, before the measured call.
"""

import argparse
import importlib.util
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bdbnet.retrieval.metrics import summarize_reid
from bdbnet.retrieval.ranks import Matches, positive_ranks
from bdbnet.retrieval.rerank import KReciprocal, reranked_blocks

LATENT, CAMERAS, IMAGES_OF_IDENTITY, DISTRACTORS = 32, 6, 20, 1 / 6
IMAGE_SPREAD, CAMERA_SPREAD, NOISE = 0.75, 0.5, 0.05


class Case(NamedTuple):
    query: int
    gallery: int
    dimensions: int
    threads: int
    torchreid: Path | None
    device: str = "cpu"


class Measured(NamedTuple):
    seconds: float
    peak_mb: float
    beyond_mb: float
    metrics: dict[str, float | int]


def embeddings(case: Case) -> tuple[np.ndarray, np.ndarray, Matches]:
    rng = np.random.default_rng(0)
    identities = max(2, round(case.gallery * (1 - DISTRACTORS) / IMAGES_OF_IDENTITY))
    centres = rng.standard_normal((identities, LATENT), dtype=np.float32)
    views = CAMERA_SPREAD * rng.standard_normal((CAMERAS, LATENT), dtype=np.float32)
    projection = rng.standard_normal((LATENT, case.dimensions), dtype=np.float32) / np.float32(LATENT**0.5)
    sets, tags = [], []
    for count, distractors in ((case.query, 0.0), (case.gallery, DISTRACTORS)):
        labels = np.sort(rng.integers(0, identities, count))
        cameras = rng.integers(0, CAMERAS, count)
        latent = centres[labels] + views[cameras]
        strangers = rng.random(count) < distractors
        latent[strangers] = rng.standard_normal((int(strangers.sum()), LATENT), dtype=np.float32)
        labels[strangers] = -1
        latent += IMAGE_SPREAD * rng.standard_normal(latent.shape, dtype=np.float32)
        images = rng.standard_normal((count, case.dimensions), dtype=np.float32)
        images *= NOISE
        images += latent @ projection
        sets.append(images)
        tags.append((labels, cameras))
    (query_labels, query_cameras), (gallery_labels, gallery_cameras) = tags
    return sets[0], sets[1], Matches(query_labels, gallery_labels, query_cameras, gallery_cameras)


def ours(
    query: np.ndarray | torch.Tensor, gallery: np.ndarray | torch.Tensor, matches: Matches
) -> dict[str, float | int]:
    return summarize_reid(positive_ranks(reranked_blocks(query, gallery, KReciprocal()), matches))


def torchreids(query: np.ndarray, gallery: np.ndarray, matches: Matches, folder: Path) -> dict[str, float | int]:
    files = sorted(folder.glob("torchreid/**/rerank.py"))
    if not files:
        raise SystemExit(f"{folder} has no torchreid/**/rerank.py: give the folder that holds the package torchreid")
    spec = importlib.util.spec_from_file_location("torchreid_rerank", files[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pairs = ((query, gallery), (query, query), (gallery, gallery))
    distances = module.re_ranking(*(euclidean(left, right) for left, right in pairs))
    return summarize_reid(positive_ranks([(0, distances)], matches))


def euclidean(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    squared = left @ right.T
    squared *= -2
    squared += np.einsum("ij,ij->i", left, left)[:, None]
    squared += np.einsum("ij,ij->i", right, right)
    np.maximum(squared, 0, out=squared)
    return np.sqrt(squared, out=squared)


def measured(case: Case) -> Measured:
    torch.set_num_threads(case.threads)
    query, gallery, matches = embeddings(case)
    sides: tuple[np.ndarray, np.ndarray] | tuple[torch.Tensor, torch.Tensor] = query, gallery
    if case.device != "cpu":
        sides = torch.from_numpy(query).to(case.device), torch.from_numpy(gallery).to(case.device)
        ours(
            sides[0][:256], sides[1][:256], Matches(matches.query_labels[:256], matches.query_labels[:256])
        )  # loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_mb("VmRSS")
    begin = time.perf_counter()
    if case.torchreid is None:
        metrics = ours(*sides, matches)
    else:
        metrics = torchreids(query, gallery, matches, case.torchreid)
    seconds = time.perf_counter() - begin
    peak = resident_mb("VmHWM")
    return Measured(seconds, peak, peak - before, metrics)


def resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def main() -> None:
    parser = argparse.ArgumentParser(description="k-reciprocal re-ranking beside torchreid's.")
    parser.add_argument("--query", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15913)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--torchreid", type=Path, metavar="FOLDER", help="where the package torchreid lies; none: left out"
    )
    parser.add_argument("--device", default="cpu", help="cuda: embeddings on the GPU, memory that of the host")
    arguments = parser.parse_args()

    # The libraries' own thread pools read this as they are imported in the new processes.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads))
    case = Case(arguments.query, arguments.gallery, arguments.dimensions, arguments.threads, None, arguments.device)
    cases = {"bdbnet": case}
    if arguments.torchreid is not None:
        cases["torchreid"] = case._replace(torchreid=arguments.torchreid, device="cpu")
    print(f"{case.query} x {case.gallery} x {case.dimensions} float32, k1=20, k2=6, lambda=0.3, {case.threads} threads")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    found = {}
    for name, side in cases.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[name] = result = process.submit(measured, side).result()
        print(
            f"{name:10s} {result.seconds:8.2f} s   peak {result.peak_mb:6.0f} MiB, {result.beyond_mb:6.0f} MiB beyond "
            f"the embeddings   Rank-1 {result.metrics['rank1']:.4f}   mAP {result.metrics['mAP']:.4f}",
            flush=True,
        )
    if "torchreid" in found:
        here, peer = found["bdbnet"], found["torchreid"]
        print(
            f"torchreid takes {peer.seconds / here.seconds:.1f} times the time and "
            f"{peer.beyond_mb / here.beyond_mb:.1f} times the memory beyond the embeddings"
        )


if __name__ == "__main__":
    main()
