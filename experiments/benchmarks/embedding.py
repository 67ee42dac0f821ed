"""Embedding a folder of image files, against the bare forward pass of the same network on tensors that are ready.

    python experiments/benchmarks/embedding.py --identities 160 --threads 1

Rendered people (JPEG, 128 x 64 pixels) to 256 x 128, OSNet x0.25 with random weights, float32, batches of 128. The floor is
the network's own pass over one normalised batch that lies in memory, as often as there are batches; ours decodes the files
in worker processes, resizes, normalises, embeds and writes the store. Both in turn in one process; medians are compared, of
the time on the clock and of the processor's time, workers included, which other programs on the machine disturb less.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from bdbnet.config import config_dir
from bdbnet.datasets import load_manifest
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.trainer import keep_freed_memory
from bdbnet.gallery.embedding import build_embedder
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from bdbnet.models import BDBNetwork, OSNetBackbone

BATCH = 128
SIZE = (256, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=160, help="12 images each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network")
    parser.add_argument("--workers", type=int, help="processes that decode (default: as the command)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        load_manifest("synthetic_reid", root / "people", train_identities=options.identities, test_identities=1)
        images, embedder = find_images(root / "people"), random_embedder(root)
        floor, ours = [], []
        for number in range(options.rounds + 1):
            floor.append(timed(lambda: bare_pass(embedder, len(images))))
            folder = root / f"store{number}"
            ours.append(
                timed(lambda: embed_into(folder, embedder, images, num_workers=options.workers, progress=False))  # noqa: B023
            )
    print(f"{len(images):,} images on {embedder.device}, {options.threads} threads, median of {options.rounds}")
    print(f"{'':20s} {'images/s':>9s} {'images per processor second':>28s}")
    speeds = [[len(images) / statistics.median(seconds) for seconds in zip(*runs[1:])] for runs in (floor, ours)]
    for name, (speed, thrift) in zip(("bare forward pass", "files to a store"), speeds):
        print(f"{name:20s} {speed:9.0f} {thrift:28.0f}")
    print(f"{'ratio':20s} {speeds[1][0] / speeds[0][0]:9.2f} {speeds[1][1] / speeds[0][1]:28.2f}")


def random_embedder(folder: Path) -> Embedder:
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"])
    torch.save(network.state_dict(), folder / "random.pth")
    size = str([*SIZE]).replace(" ", "")
    chosen = [f"checkpoint={folder / 'random.pth'}", "model=baseline", "backbone=osnet_x0_25", f"image_size={size}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return build_embedder(compose("embed", chosen))


@torch.inference_mode()
def bare_pass(embedder: Embedder, count: int) -> None:
    """The network alone for as many images, of which the last batch is as small as ours."""
    network, device = embedder.network, embedder.device
    batch = torch.randn(BATCH, 3, *SIZE, device=device).to(memory_format=torch.channels_last)
    for first in range(0, count, BATCH):
        embeddings = network.embed(batch[: count - first])
    embeddings.cpu()  # waits for a GPU


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor in this process and those that it started."""
    before = os.times()
    call()
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
