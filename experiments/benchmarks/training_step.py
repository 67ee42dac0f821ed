"""A whole training step against forward + backward of backbone and branches alone.

    python experiments/benchmarks/training_step.py
    python experiments/benchmarks/training_step.py --device cuda --batch 128 --compile

The step normalises 8-bit images, draws the mask, computes triplet and softmax on both branches and steps Adam; the
floor runs the same network forward and backward with ready-made gradients. Both alternate in one process; medians are
compared. `--plain-malloc` shows what both cost without the setting of the C library that training makes on a CPU.
"""

import argparse
import statistics
import time

import torch

from bdbnet.evaluation.trainer import keep_freed_memory
from bdbnet.loading import normalize
from bdbnet.losses import BatchHardTripletLoss
from bdbnet.models import BatchDropBlock, BDBNetwork
from bdbnet.training.criterion import BranchLosses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=32, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plain-malloc", action="store_true", help="leave glibc as it is (CPU)")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    options = parser.parse_args()

    if not options.plain_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = BDBNetwork(751, options.backbone, dropping=BatchDropBlock(0.3, 1.0))
    network = network.to(device, memory_format=torch.channels_last).train()
    forward = torch.compile(network.forward) if options.compile else network.forward
    criterion = BranchLosses(BatchHardTripletLoss(), name="triplet")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
    stored = torch.randint(0, 256, (options.batch, 3, *options.size), dtype=torch.uint8, device=device)
    stored = stored.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch, device=device) // 4
    images = normalize(stored)

    def run(inputs: torch.Tensor):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not options.float32):
            return forward(inputs)

    gradients = [torch.ones_like(tensor) * 1e-3 for output in run(images).values() for tensor in output]

    def floor() -> None:
        outputs = run(images)
        torch.autograd.backward([tensor for output in outputs.values() for tensor in output], gradients)
        network.zero_grad(set_to_none=True)

    def step() -> None:
        loss, _ = criterion(run(normalize(stored)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def seconds(call) -> float:
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - began

    for call in (floor, step):
        call()
    times = {floor: [], step: []}
    for _ in range(options.rounds):
        for call in (floor, step):
            times[call].append(seconds(call))
    bare, whole = statistics.median(times[floor]), statistics.median(times[step])
    precision = "float32" if options.float32 else "bfloat16 autocast"
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.backbone} BDB, batch {options.batch}, {options.size[0]} x {options.size[1]}, {precision}, {where}")
    print(f"forward + backward  {bare:8.3f} s   {options.batch / bare:8.1f} images/s")
    print(f"training step       {whole:8.3f} s   {options.batch / whole:8.1f} images/s")
    print(
        f"ratio {whole / bare:.3f}   (pairwise median {statistics.median(w / b for w, b in zip(times[step], times[floor])):.3f})"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
