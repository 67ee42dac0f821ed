"""Operations and memory traffic of a training step per image, counted without a device, and the two ceilings that follow.

    python experiments/benchmarks/roofline.py
    python experiments/benchmarks/roofline.py --tflops 798 --terabytes 3.0 --measured 2910

Forward and backward pass of the network run on tensors without data, in bfloat16. Floating-point operations are those of
convolutions and matrix products (`torch.utils.flop_counter`: a multiplication and an addition are two). Traffic is that of
eager execution: every operation reads its inputs and writes its results once, in memory. Fusing removes traffic between
operations; the last row is what remains if all but convolutions, products and poolings were fused into their neighbours.
"""

import argparse
import collections
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bdbnet.models import BDBNetwork

KINDS = {
    "convolution": "convolutions", "mm": "matrix products", "bmm": "matrix products", "batch_norm": "batch normalisation",
    "relu": "ReLU", "threshold": "ReLU", "add": "sums", "pool": "pooling", "mean": "pooling", "amax": "pooling",
}  # fmt: skip
#: Operations that only look at memory.
VIEWS = (
    "view",
    "expand",
    "transpose",
    "t.default",
    "permute",
    "slice",
    "select",
    "detach",
    "unsqueeze",
    "as_strided",
    "alias",
)


class Traffic(TorchDispatchMode):
    """Sums up the bytes of the inputs and results of every operation, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.")
        if not name.startswith(VIEWS):
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
            kind = next((kind for part, kind in KINDS.items() if part in name), "others")
            self.bytes[kind] += sum(leaf.numel() * leaf.element_size() for leaf in tensors.values())
            self.calls[kind] += 1
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument(
        "--tflops", type=float, default=798, help="of the card, measured by a large product (default: an H100's)"
    )
    parser.add_argument(
        "--terabytes", type=float, default=3.0, help="a second to and from memory (default: %(default)s)"
    )
    parser.add_argument("--measured", type=float, nargs="*", default=(2910, 3181), help="images/s to compare with")
    options = parser.parse_args()

    with torch.device("meta"):
        network = BDBNetwork(751, options.backbone).to(torch.bfloat16).train()
        images = torch.zeros(options.batch, 3, *options.size, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        outputs = network(images)
        sum(part.float().sum() for output in outputs.values() for part in output).backward()
    work = flops.get_total_flops() / options.batch
    print(
        f"{options.backbone} BDB, batch {options.batch}, {options.size[0]} x {options.size[1]}, bfloat16, forward and backward"
    )
    print(f"{'':24}{'MB an image':>12}{'calls':>8}")
    for kind, amount in traffic.bytes.most_common():
        print(f"{kind:24}{amount / options.batch / 1e6:12.1f}{traffic.calls[kind]:8}")
    whole = sum(traffic.bytes.values()) / options.batch
    fused = sum(traffic.bytes[kind] for kind in ("convolutions", "matrix products", "pooling")) / options.batch
    rows = {
        f"arithmetic: {work / 1e9:.1f} GFLOP at {options.tflops:.0f} TFLOP/s": work / options.tflops / 1e12,
        f"memory, eager: {whole / 1e6:.0f} MB at {options.terabytes:.1f} TB/s": whole / options.terabytes / 1e12,
        f"memory, all fused: {fused / 1e6:.0f} MB at {options.terabytes:.1f} TB/s": fused / options.terabytes / 1e12,
    } | {f"measured, {rate:,.0f} images/s": 1 / rate for rate in options.measured}
    print(f"\n{'':44}{'microseconds an image':>24}{'images/s':>10}")
    for name, seconds in rows.items():
        print(f"{name:44}{seconds * 1e6:24.0f}{1 / seconds:10,.0f}")


if __name__ == "__main__":
    main()
