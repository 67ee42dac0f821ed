"""A whole training step against forward + backward of backbone and branches alone.

    python experiments/benchmarks/training_step.py
    python experiments/benchmarks/training_step.py --device cuda --batch 128 --compile
    python experiments/benchmarks/training_step.py --device cuda --batch 128 --compile reduce-overhead --benchmark

The step normalises 8-bit images, erases, draws the mask, computes triplet and softmax on both branches and steps Adam; the
floor runs the same network forward and backward with ready-made gradients. Both alternate in one process; medians are
compared. With `--compile` both are compiled, the step as the training does it, all of it one graph. The time of the first call
of each is what compiling costs (from the cache of an earlier run it is less: `TORCHINDUCTOR_CACHE_DIR`). Then one profiled step
of either kind says how many operations it launches and how often the host waits; on a CPU it is fused Adam that reads a
number, the step, for every parameter. `--plain-malloc` shows what both cost without the
setting of the C library that training makes on a CPU, `--contiguous` what the same step costs with channels first.
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
from bdbnet.training.step import TrainingStep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=32, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plain-malloc", action="store_true", help="leave glibc as it is (CPU)")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 autocast")
    parser.add_argument("--compile", nargs="?", const=True, default=False, help="torch.compile both; or its mode")
    parser.add_argument("--benchmark", action="store_true", help="let cuDNN try its algorithms out")
    parser.add_argument(
        "--contiguous", action="store_true", help="the step with channels first (trainer.channels_last=false), too"
    )
    options = parser.parse_args()
    if options.contiguous and options.compile:
        parser.error("--contiguous goes without --compile: it moves the parameters between steps")

    if not options.plain_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = options.benchmark
    device = torch.device(options.device)
    network = BDBNetwork(751, options.backbone, dropping=BatchDropBlock(0.3, 1.0))
    network = network.to(device, memory_format=torch.channels_last).train()
    mode = options.compile if isinstance(options.compile, str) else None
    forward = torch.compile(network.forward, mode=mode, dynamic=False) if options.compile else network.forward
    compute = TrainingStep(network, BranchLosses(BatchHardTripletLoss(), name="triplet"), options.compile)
    # One for each memory format, in which its moments are.
    optimizers = {
        order: torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
        for order in (torch.channels_last, torch.contiguous_format)
    }
    stored = torch.randint(0, 256, (options.batch, 3, *options.size), dtype=torch.uint8, device=device)
    stored = stored.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch, device=device) // 4
    erased = torch.tensor([[0, 0, 0, 0], [20, 30, 90, 40]], device=device).repeat(-(-options.batch // 2), 1)
    batch = {"image": stored, "erased": erased[: options.batch, None], "label": labels}
    images = normalize(stored)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=not options.float32)

    def run(inputs: torch.Tensor):
        if options.compile:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast():
            return forward(inputs)

    gradients = [torch.ones_like(tensor) * 1e-3 for output in run(images).values() for tensor in output]

    def floor() -> None:
        outputs = run(images)
        torch.autograd.backward([tensor for output in outputs.values() for tensor in output], gradients)
        network.zero_grad(set_to_none=True)

    def step(order: torch.memory_format = torch.channels_last) -> None:
        optimizer = optimizers[order]
        with autocast():
            loss, _ = compute(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def seconds(call) -> float:
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - began

    def channels_first() -> None:
        step(torch.contiguous_format)

    def arrange(call) -> None:
        """Give network and images the memory format of a call."""
        order = torch.contiguous_format if call is channels_first else torch.channels_last
        network.to(memory_format=order)
        batch["image"] = stored.contiguous(memory_format=order)

    calls = (floor, step, channels_first) if options.contiguous else (floor, step)
    first, times = {}, {call: [] for call in calls}
    for call in calls:
        arrange(call)
        first[call] = seconds(call)
    for _ in range(options.rounds):
        for call in calls:
            arrange(call)
            times[call].append(seconds(call))
    arrange(step)
    bare, whole = statistics.median(times[floor]), statistics.median(times[step])
    precision = "float32" if options.float32 else "bfloat16 autocast"
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.backbone} BDB, batch {options.batch}, {options.size[0]} x {options.size[1]}, {precision}, {where}")
    print(f"forward + backward  {bare:8.3f} s   {options.batch / bare:8.1f} images/s")
    print(f"training step       {whole:8.3f} s   {options.batch / whole:8.1f} images/s")
    if options.contiguous:
        other = statistics.median(times[channels_first])
        print(f"  channels first    {other:8.3f} s   {options.batch / other:8.1f} images/s")
        print(f"  channels last takes {whole / other:.3f} of it")
    print(
        f"first call: forward + backward {first[floor]:.1f} s, training step {first[step]:.1f} s; compiled: {compute.plan}"
    )
    for call in (floor, step):
        print(f"{call.__name__:5} {launched(call, device)}")
    print(
        f"ratio {whole / bare:.3f}   (pairwise median {statistics.median(w / b for w, b in zip(times[step], times[floor])):.3f})"
    )


def launched(call, device: torch.device) -> str:
    """What a call launches on the device and how often the host waits; on a CPU, the operations that are not parts of others."""
    _wait(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    events = profile.events()
    waits = sum(event.name in WAITS for event in events)
    if device.type == "cuda":
        kernels = sum("LaunchKernel" in event.name for event in events)
        graphs = sum(event.name == "cudaGraphLaunch" for event in events)
        return f"launches {kernels} kernels and {graphs} graphs, the host waits {waits} times"
    outer = sum(event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::") for event in events
                if event.name.startswith("aten::"))  # fmt: skip
    return f"launches {outer} operations, the host reads {waits} numbers"


#: Events at which the host waits for the device: it reads a number, or asks for all work to be done.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize"}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
