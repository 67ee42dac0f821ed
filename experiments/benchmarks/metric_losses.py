"""Every metric loss, forward + backward, against the distances that it is made of.

    python experiments/benchmarks/metric_losses.py
    python experiments/benchmarks/metric_losses.py --device cuda --batches 128 1024 4096
    python experiments/benchmarks/metric_losses.py --peers      # beside pytorch-metric-learning, if it is installed

The floor is `pairwise_distances(embeddings)` and its own backward pass from a ready N x N gradient. All alternate in one
process; the table has medians, their ratio to the floor's, and the most memory in use at once beyond the inputs.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # both are read when torch is imported
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from torch import Tensor, nn

import bdbnet.losses
from bdbnet.evaluation.trainer import keep_freed_memory

# Peers that list all triplets, or all pairs of pairs: tens of gigabytes beyond this batch.
LARGEST_BATCH = {"HistogramLoss": 256, "LiftedStructureLoss": 256}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=(128, 1024), help="images (default: 128 1024)")
    parser.add_argument("--dimension", type=int, default=1024, help="of the embeddings (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4, help="per identity (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="pytorch-metric-learning too")
    options = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {options.threads}"
    names = [name for name in bdbnet.losses.__all__ if isinstance(getattr(bdbnet.losses, name), type)]
    losses = {name: getattr(bdbnet.losses, name)() for name in names}
    alike = peers() if options.peers else {}

    for batch in options.batches:
        torch.manual_seed(0)
        embeddings = torch.randn(batch, options.dimension).relu().to(device).requires_grad_()  # a branch ends in a ReLU
        labels = torch.arange(batch, device=device) // options.images
        ready = torch.rand(batch, batch, device=device)

        rows = {"floor": functools.partial(floor, embeddings, ready)}
        for name, loss in losses.items():
            rows[name] = functools.partial(backward, loss.to(device), embeddings, labels)
            if name in alike and batch <= LARGEST_BATCH.get(name, batch):
                rows[f"  peer of {name}"] = functools.partial(backward, alike[name], embeddings, labels)

        times: dict[str, list[float]] = {name: [] for name in rows}
        for row in rows.values():
            seconds(row, embeddings)
        for _ in range(options.rounds):
            for name, row in rows.items():
                times[name].append(seconds(row, embeddings))
        bare = statistics.median(times["floor"])
        print(f"\n{batch} embeddings of {options.dimension} dimensions, {options.images} an identity, float32, {where}")
        print(f"{'':36}{'ms':>10}{'ratio':>8}{'MiB':>8}")
        for name, row in rows.items():
            median = statistics.median(times[name])
            print(f"{name:36}{1000 * median:10.2f}{median / bare:8.2f}{peak(row, embeddings) / 2**20:8.0f}")
        for name in sorted(alike.keys() & LARGEST_BATCH):
            if batch > LARGEST_BATCH[name]:
                print(f"{f'  peer of {name}':36}{'left out: needs too much memory':>34}")


def floor(embeddings: Tensor, ready: Tensor) -> None:
    bdbnet.losses.pairwise_distances(embeddings).backward(ready)


def backward(loss: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor) -> None:
    loss(embeddings, labels).backward()


def peers() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """pytorch-metric-learning's nearest equivalents, by the names of ours; quadruplets it does not have."""
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError:
        print("pytorch_metric_learning is not installed: no peers")
        return {}
    warnings.filterwarnings("ignore", module="pytorch_metric_learning")
    plain = distances.LpDistance(normalize_embeddings=False)

    def mined(loss: nn.Module, miner: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))

    return {
        "BatchHardTripletLoss": mined(
            losses.TripletMarginLoss(margin=0, smooth_loss=True, distance=plain), miners.BatchHardMiner(distance=plain)
        ),
        "ContrastiveLoss": losses.ContrastiveLoss(),
        "HistogramLoss": losses.HistogramLoss(n_bins=149),
        "LiftedStructureLoss": losses.LiftedStructureLoss(neg_margin=1, distance=plain),
        "MarginLoss": mined(losses.MarginLoss(), miners.DistanceWeightedMiner()),
        "NPairsLoss": losses.NPairsLoss(),
    }


def seconds(row: Callable[[], None], embeddings: Tensor) -> float:
    embeddings.grad = None
    _wait(embeddings.device)
    began = time.perf_counter()
    row()
    _wait(embeddings.device)
    return time.perf_counter() - began


def peak(row: Callable[[], None], embeddings: Tensor) -> int:
    """Bytes that torch holds at most at any moment of the call, beyond what it held before."""
    embeddings.grad = None
    if embeddings.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(embeddings.device)
        before = torch.cuda.memory_allocated(embeddings.device)
        row()
        _wait(embeddings.device)
        return torch.cuda.max_memory_allocated(embeddings.device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        row()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
