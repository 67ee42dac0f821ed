"""Files in the layouts of other programs with random weights, and what those programs compute of them, in plain functions."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

State = dict[str, Tensor]


def fill(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random weights of these shapes, of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) < 2 and key.endswith("weight"):
            state[key] = torch.rand(shape, generator=generator) * 0.5 + 0.5
        elif len(shape) < 2:
            state[key] = torch.randn(shape, generator=generator) * 0.1
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[key] = torch.randn(shape, generator=generator) / fan_in**0.5
    return state


def resnet_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of torchvision's ResNet without its classifier."""
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not key.startswith("fc.")}


def norm_shapes(key: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{key}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{key}.num_batches_tracked": ()}


def batch_norm(state: State, key: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{key}.{name}"].view(1, -1, *[1] * (x.dim() - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def instance_norm(state: State, key: str, x: Tensor) -> Tensor:
    centred = x - x.mean((2, 3), keepdim=True)
    scaled = centred / (centred.pow(2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{key}.weight"].view(1, -1, 1, 1) + state[f"{key}.bias"].view(1, -1, 1, 1)


def any_norm(state: State, key: str, x: Tensor) -> Tensor:
    """Batch normalisation, IBN-a (half of the channels each) or instance normalisation, whatever the keys show."""
    if f"{key}.IN.weight" in state:
        half = len(state[f"{key}.IN.weight"])
        return torch.cat(
            [instance_norm(state, f"{key}.IN", x[:, :half]), batch_norm(state, f"{key}.BN", x[:, half:])], 1
        )
    return (batch_norm if f"{key}.running_mean" in state else instance_norm)(state, key, x)


def residual_block(state: State, key: str, x: Tensor, stride: int) -> Tensor:
    deep = f"{key}.conv3.weight" in state
    y = F.conv2d(x, state[f"{key}.conv1.weight"], stride=1 if deep else stride, padding=0 if deep else 1)
    y = F.relu(any_norm(state, f"{key}.bn1", y))
    y = batch_norm(
        state, f"{key}.bn2", F.conv2d(y, state[f"{key}.conv2.weight"], stride=stride if deep else 1, padding=1)
    )
    if deep:
        y = batch_norm(state, f"{key}.bn3", F.conv2d(F.relu(y), state[f"{key}.conv3.weight"]))
    if f"{key}.downsample.0.weight" in state:
        x = batch_norm(state, f"{key}.downsample.1", F.conv2d(x, state[f"{key}.downsample.0.weight"], stride=stride))
    return F.relu(x + y)


def non_local(state: State, key: str, x: Tensor) -> Tensor:
    def project(name: str, images: Tensor) -> Tensor:
        return F.conv2d(images, state[f"{key}.{name}.weight"], state[f"{key}.{name}.bias"]).flatten(2)

    theta, phi, g = (project(name, x) for name in ("theta", "phi", "g"))
    attention = torch.einsum("nci,ncj->nij", theta, phi) / theta.shape[2]
    mixed = torch.einsum("nij,ncj->nci", attention, g).unflatten(2, x.shape[2:])
    return x + batch_norm(state, f"{key}.W.1", F.conv2d(mixed, state[f"{key}.W.0.weight"], state[f"{key}.W.0.bias"]))


def resnet_map(state: State, images: Tensor, *, last_stride: int, ceil: bool = False) -> Tensor:
    x = F.relu(any_norm(state, "bn1", F.conv2d(images, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, ceil_mode=True) if ceil else F.max_pool2d(x, 3, 2, padding=1)
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, last_stride)):
        blocks = len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")})
        others = len({key.split(".")[1] for key in state if key.startswith(f"NL_{stage}.")})
        for block in range(blocks):
            x = residual_block(state, f"layer{stage}.{block}", x, stride if block == 0 else 1)
            if (number := block - (blocks - others)) >= 0:
                x = non_local(state, f"NL_{stage}.{number}", x)
    return x


def below(state: State, *renamed: tuple[str, str]) -> State:
    """The keys below each first prefix, under the second."""
    return {
        new + key.removeprefix(old): tensor
        for old, new in renamed
        for key, tensor in state.items()
        if key.startswith(old)
    }


# The released code of BDB

RELEASED = (
    ("backbone.0.", "conv1."), ("backbone.1.", "bn1."), ("backbone.4.", "layer1."), ("backbone.5.", "layer2."),
    ("backbone.6.", "layer3."), ("res_part.", "layer4."),
)  # fmt: skip


def released_state(name: str = "resnet50", classes: int = 751) -> State:
    """The layout of the released code's models."""
    shapes = {}
    for key, shape in resnet_shapes(name).items():
        theirs, ours = next(pair for pair in RELEASED if key.startswith(pair[1]))
        shapes[theirs + key.removeprefix(ours)] = shape
    channels = 2048 if name == "resnet50" else 512
    for number, (out, into, size) in enumerate(
        ((channels // 4, channels, 1), (channels // 4, channels // 4, 3), (channels, channels // 4, 1)), start=1
    ):
        shapes[f"res_part2.conv{number}.weight"] = (out, into, size, size)
        shapes |= norm_shapes(f"res_part2.bn{number}", out)
    shapes |= {"global_reduction.0.weight": (512, channels, 1, 1), "global_reduction.0.bias": (512,)}
    shapes |= norm_shapes("global_reduction.1", 512)
    shapes |= {"global_softmax.weight": (classes, 512), "global_softmax.bias": (classes,)}
    shapes |= {"reduction.0.weight": (1024, channels), "reduction.0.bias": (1024,), **norm_shapes("reduction.1", 1024)}
    return fill(shapes | {"softmax.weight": (classes, 1024), "softmax.bias": (classes,)})


def released_embedding(state: State, images: Tensor) -> Tensor:
    features = resnet_map(below(state, *RELEASED), images, last_stride=1)
    pooled = F.conv2d(
        features.mean((2, 3), keepdim=True), state["global_reduction.0.weight"], state["global_reduction.0.bias"]
    )
    globally = F.relu(batch_norm(state, "global_reduction.1", pooled)).flatten(1)
    y = residual_block(state, "res_part2", features, 1).amax((2, 3))
    y = F.relu(batch_norm(state, "reduction.1", F.linear(y, state["reduction.0.weight"], state["reduction.0.bias"])))
    return torch.cat([globally, y], 1)
