"""Networks exported by format and precision: whether the file computes the same, its size, and its time against PyTorch's.

    python experiments/export/run.py --weights data/weights         # four networks, every format and precision
    python experiments/export/run.py --weights data/weights --formats onnx
    python experiments/export/run.py --backbones                    # every choice of conf/backbone, ONNX in fp32

A line for each file; the reports go into --folder. Weights are random but SqueezeNet's, which are ImageNet's. A network that can't
be exported, or whose file computes something else, is a line too, and the exit status is 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from bdbnet import Embedder, Preprocessing
from bdbnet.config import config_dir
from bdbnet.evaluation.exporting import FORMATS, PRECISIONS, ExportError, ExportSettings, export_embedder
from bdbnet.models import (
    BDBNetwork,
    OSNetBackbone,
    PooledNetwork,
    ResNetBackbone,
    TimmBackbone,
    TimmNetwork,
    TorchvisionBackbone,
)
from bdbnet.results import versions

COLUMNS = (
    "network",
    "format",
    "precision",
    "least cosine",
    "Rank-1",
    "mAP",
    "MB",
    "ms at batch 1",
    "PyTorch",
    "ms at batch 16",
    "PyTorch",
)
#: torchvision's and timm's families: one small member each.
FAMILIES = {
    "torchvision": (
        "squeezenet1_1", "mobilenet_v3_small", "densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "vgg11",
    ),
    "timm": (
        "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "efficientnet_b0", "ghostnet_100",
        "hrnet_w18_small", "convnext_atto", "resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0",
    ),
}  # fmt: skip


def networks(weights: Path) -> dict[str, Callable[[], Embedder]]:
    """The four networks of the table."""
    squeezenet = weights / "squeezenet1_1_imagenet.pth"
    return {
        "BDB, ResNet-50, 384 x 128": lambda: embedder(BDBNetwork(0, ResNetBackbone("resnet50", "none")), (384, 128)),
        "BDB, OSNet x0.25, 256 x 128": lambda: embedder(BDBNetwork(0, OSNetBackbone(0.25)), (256, 128)),
        "SqueezeNet 1.1, 224 x 224": lambda: embedder(
            PooledNetwork(TorchvisionBackbone("squeezenet1_1", str(squeezenet))), (224, 224)
        ),
        "timm vit_tiny_patch16_224": lambda: embedder(
            TimmNetwork(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)), (224, 224)
        ),
    }


def backbones() -> dict[str, Callable[[], Embedder]]:
    """Every backbone that conf/backbone offers, under the baseline's head."""
    found: dict[str, Callable[[], Embedder]] = {}
    for file in sorted((config_dir() / "backbone").glob("*.yaml")):
        name = file.stem
        if name.startswith("resnet"):
            found[name] = lambda name=name: headed(ResNetBackbone(name, "none"), (128, 64))
        elif name.startswith("osnet"):
            width = float(name.removeprefix("osnet_x").replace("_", "."))
            found[name] = lambda width=width: headed(OSNetBackbone(width), (128, 64))
    for name in FAMILIES["torchvision"]:
        found[f"torchvision {name}"] = lambda name=name: headed(TorchvisionBackbone(name, "none"), (224, 224))
    for name in FAMILIES["timm"]:
        found[f"timm {name}"] = lambda name=name: headed(TimmBackbone(name, "none"), (224, 224))
    return found


def headed(backbone: torch.nn.Module, size: tuple[int, int]) -> Embedder:
    return embedder(BDBNetwork(0, backbone, ["global"]), size)


def embedder(network: torch.nn.Module, size: tuple[int, int]) -> Embedder:
    return Embedder(network.eval().requires_grad_(False), Preprocessing(size), distance="cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of SqueezeNet's file")
    parser.add_argument("--backbones", action="store_true", help="every backbone instead")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS], help="of the four networks")
    parser.add_argument("--folder", type=Path, default=Path("outputs/export"), help="for files and reports")
    options = parser.parse_args()
    chosen = backbones() if options.backbones else networks(options.weights)
    kinds = [("onnx", "fp32")]
    if not options.backbones:
        kinds = [
            (format, precision)
            for format in options.formats
            for precision, having in PRECISIONS.items()
            if format in having
        ]
    chosen = {name: make for name, make in chosen.items() if options.only in name}
    if not chosen:
        parser.error(f"--only={options.only}: no network's name holds this")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    failed = 0
    for name, make in chosen.items():
        torch.manual_seed(0)
        network = make()
        for format, precision in kinds:
            place = options.folder / f"{name.replace(', ', '_').replace(' ', '_')}_{precision}{FORMATS[format]}"
            try:
                report = export_embedder(
                    network, place, ExportSettings(format, "floats", None, precision), overwrite=True
                )
            except ExportError as error:
                failed += 1
                print(f"| {name} | {format} | {precision} | {error} |", flush=True)
                continue
            print(row(name, report), flush=True)
    print(f"\n{torch.get_num_threads()} threads; versions: {json.dumps(versions())}")
    sys.exit(failed > 0)


def row(name: str, report: dict) -> str:
    agreement, times = report["agreement"], report["milliseconds"]
    ours, theirs = agreement["metrics"]["pytorch"], agreement["metrics"]["exported"]
    cells = [
        name, report["format"], report["settings"]["precision"], f"{agreement['least_cosine']:.7f}",
        *(f"{100 * ours[key]:.1f} -> {100 * theirs[key]:.1f}" for key in ("rank1", "mAP")),
        f"{report['bytes']['file'] / 1e6:.1f}",
        *(f"{times[batch][who]:.1f}" for batch in ("batch_1", "batch_16") for who in ("exported", "pytorch")),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
