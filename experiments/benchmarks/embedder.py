"""Embedding crops that lie in memory as NumPy arrays, as a tracker has them, against the bare forward pass of the same network.

    python experiments/benchmarks/embedder.py --threads 1
    python experiments/benchmarks/embedder.py --images Market-1501-v15.09.15/query --weights osnet_x0_25_market1501.pth

2,000 crops (rendered people of 128 x 64 pixels, or the first images of a folder), OSNet x0.25 at 256 x 128, float32, batches of
128. The floor is the network's own pass over one normalised batch, as often as there are batches; ours resizes, normalises,
embeds and checks. Both in turn in one process; medians are compared, of the time on the clock and of the processor's time,
which other programs on the machine disturb less.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import bdbnet
from bdbnet.datasets import load_manifest
from bdbnet.datasets.images import read_image
from bdbnet.evaluation.trainer import keep_freed_memory
from bdbnet.models import BDBNetwork, OSNetBackbone

BATCH = 128
SIZE = (256, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="crops (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of image files (default: rendered people)")
    parser.add_argument("--weights", type=Path, help="torchreid's OSNet x0.25 (default: random weights)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    crops = read_crops(options.images, options.count)
    if not crops:
        parser.error(f"--images {options.images}: there is no .jpg in this folder")
    embedder = bdbnet.load(options.weights) if options.weights else random_embedder()
    floor, ours = [], []
    for _ in range(options.rounds + 1):  # the first one warms up
        floor.append(timed(lambda: bare_pass(embedder, len(crops))))
        ours.append(timed(lambda: embedder.embed(crops, batch_size=BATCH, progress=False)))
    print(f"{len(crops):,} crops on {embedder.device}, {options.threads} threads, median of {options.rounds}")
    print(f"{'':20s} {'seconds':>9s} {'processor seconds':>19s}")
    medians = [[statistics.median(seconds) for seconds in zip(*runs[1:])] for runs in (floor, ours)]
    for name, (seconds, processor) in zip(("bare forward pass", "Embedder.embed"), medians):
        print(f"{name:20s} {seconds:9.2f} {processor:19.2f}")
    ratios = [statistics.median(b[i] / a[i] for a, b in zip(floor[1:], ours[1:])) for i in (0, 1)]
    print(f"{'ratio':20s} {ratios[0]:9.3f} {ratios[1]:19.3f}")


def read_crops(folder: Path | None, count: int) -> list[np.ndarray]:
    if folder is not None:
        return [read_image(path) for path in sorted(folder.glob("*.jpg"))[:count]]
    with tempfile.TemporaryDirectory() as scratch:
        manifest = load_manifest(
            "synthetic_reid", Path(scratch) / "people", train_identities=-(-count // 12), test_identities=1
        )
        return [read_image(path) for path in manifest.paths[:count]]


def random_embedder() -> bdbnet.Embedder:
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"]).eval()
    return bdbnet.Embedder(network.to(memory_format=torch.channels_last), bdbnet.Preprocessing(SIZE))


@torch.inference_mode()
def bare_pass(embedder: bdbnet.Embedder, count: int) -> None:
    """The network alone for as many images, of which the last batch is as small as ours."""
    batch = torch.randn(BATCH, 3, *SIZE, device=embedder.device).to(memory_format=torch.channels_last)
    for first in range(0, count, BATCH):
        embeddings = embedder.network.embed(batch[: count - first])
    embeddings.cpu()  # waits for a GPU


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    before = os.times()
    call()
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:2]) - sum(before[:2])


if __name__ == "__main__":
    main()
