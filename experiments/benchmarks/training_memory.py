"""Memory of a training step: weights, gradients and Adam's two moments, and activations from the shapes of what is kept.

    python experiments/benchmarks/training_memory.py --help

Activations are what autograd keeps for the backward pass under a GPU's bfloat16 autocast: every storage that it saves, once,
without those of the weights, but with autocast's copies of them. The forward pass runs on tensors that have shapes and no
content, so that no GPU is needed and any batch can be counted. Attention is the fused one that PyTorch takes on a GPU for
bfloat16. Workspaces of convolutions and the rounding of a GPU's allocator are not in it.
"""

import argparse
from collections.abc import Sequence

import torch
from torch._subclasses import FakeTensorMode

from bdbnet.config import compose_settings
from bdbnet.evaluation.network import build_network

NETWORKS = {
    "ResNet-50, BDB, 384 x 128": ["backbone=resnet50", "dataset.image_size=[384,128]"],
    "ViT-B/16, BDB, 224 x 224": [
        "backbone=timm", "backbone.name=vit_base_patch16_224", "dataset.image_size=[224,224]",
    ],
}  # fmt: skip
GB = 1e9


def saved_bytes(network: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes that autograd keeps between the forward and the backward pass."""
    own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no two have one address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(images)
    assert outputs
    return sum(storage.nbytes() for storage in kept.values())


def without_content(network: torch.nn.Module) -> None:
    """Leave shapes alone of the weights and buffers, on a GPU: some networks can't be built without content."""
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = torch.nn.Parameter(empty(tensor.shape), tensor.requires_grad)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = empty(tensor.shape, tensor.dtype)


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="images of a step on one device (default: %(default)s)")
    options = parser.parse_args()
    torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses to where there is no GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention = fused_attention
    print(
        "| network | parameters | weights | gradients | Adam | activations | together |\n|---|---|---|---|---|---|---|"
    )
    for name, settings in NETWORKS.items():
        config = compose_settings("train", ["run_name=x", "backbone.weights=none", *settings])
        network, _ = build_network(config, 751)
        network.train()
        with FakeTensorMode():
            without_content(network)
            activations = saved_bytes(network, empty([options.batch, 3, *config.dataset.image_size]))
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        parts = [4 * count, 4 * count, 8 * count, activations]
        shown = " | ".join(f"{part / GB:.2f} GB" for part in [*parts, sum(parts)])
        print(f"| {name} | {count:,} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
