"""Files in the layouts of other programs with random weights, and what those programs compute of them, in plain functions."""

import itertools

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


# torchreid


def torchreid_osnet(variant: str, width: float = 0.25, classes: int = 9) -> State:
    """The layout of torchreid's OSNet: "plain", "ibn" or "ain"."""
    sizes = [int(channels * width) for channels in (64, 256, 384, 512)]
    shapes: dict[str, tuple[int, ...]] = {"conv1.conv.weight": (sizes[0], 3, 7, 7)}

    def norm(key: str, channels: int, instance: bool = False) -> None:
        shapes.update(
            {f"{key}.{n}": (channels,) for n in ("weight", "bias")} if instance else norm_shapes(key, channels)
        )

    norm("conv1.bn", sizes[0], variant != "plain")
    for stage, (into, out) in enumerate(itertools.pairwise(sizes), start=2):
        middle = out // 4
        for block in (0, 1):
            key, inputs = f"conv{stage}.{block}", out if block else into
            inside = variant == "ain" and (stage, block) in ((2, 0), (2, 1), (3, 1), (4, 0))
            shapes[f"{key}.conv1.conv.weight"] = (middle, inputs, 1, 1)
            norm(f"{key}.conv1.bn", middle)
            for stream in range(4):
                for layer in range(stream + 1):
                    light = f"{key}.conv2{'abcd'[stream]}" + (f".{layer}" if stream else "")
                    light = f"{key}.conv2.{stream}.layers.{layer}" if variant == "ain" else light
                    shapes[f"{light}.conv1.weight"] = (middle, middle, 1, 1)
                    shapes[f"{light}.conv2.weight"] = (middle, 1, 3, 3)
                    norm(f"{light}.bn", middle)
            for name, (rows, columns) in (("fc1", (middle // 16, middle)), ("fc2", (middle, middle // 16))):
                shapes[f"{key}.gate.{name}.weight"] = (rows, columns, 1, 1)
                shapes[f"{key}.gate.{name}.bias"] = (rows,)
            shapes[f"{key}.conv3.conv.weight"] = (out, middle, 1, 1)
            if not inside:
                norm(f"{key}.conv3.bn", out)
            if inputs != out:
                shapes[f"{key}.downsample.conv.weight"] = (out, inputs, 1, 1)
                norm(f"{key}.downsample.bn", out)
            if inside or (variant == "ibn" and stage == 2):
                norm(f"{key}.IN", out, True)
        if stage < 4:
            pool = f"pool{stage}.0" if variant == "ain" else f"conv{stage}.2.0"
            shapes[f"{pool}.conv.weight"] = (out, out, 1, 1)
            norm(f"{pool}.bn", out)
    shapes["conv5.conv.weight"] = (sizes[3], sizes[3], 1, 1)
    norm("conv5.bn", sizes[3])
    return fill(shapes | fc_shapes(sizes[3]) | {"classifier.weight": (classes, 512), "classifier.bias": (classes,)})


def fc_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    return {"fc.0.weight": (512, channels), "fc.0.bias": (512,), **norm_shapes("fc.1", 512)}


def fc(state: State, pooled: Tensor) -> Tensor:
    return F.relu(batch_norm(state, "fc.1", F.linear(pooled, state["fc.0.weight"], state["fc.0.bias"])))


def osnet_embedding(state: State, images: Tensor) -> Tensor:
    def layer(key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{key}.conv.weight"]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return any_norm(state, f"{key}.bn", y) if f"{key}.bn.weight" in state else y

    def light(key: str, x: Tensor) -> Tensor:
        y = F.conv2d(x, state[f"{key}.conv1.weight"])
        return F.relu(
            batch_norm(state, f"{key}.bn", F.conv2d(y, state[f"{key}.conv2.weight"], padding=1, groups=len(y[0])))
        )

    def block(key: str, x: Tensor) -> Tensor:
        first, total = F.relu(layer(f"{key}.conv1", x)), 0
        for stream in range(4):
            y = first
            for number in range(stream + 1):
                name = f"{key}.conv2.{stream}.layers.{number}"
                if f"{name}.bn.weight" not in state:
                    name = f"{key}.conv2{'abcd'[stream]}" + (f".{number}" if stream else "")
                y = light(name, y)
            gate = y.mean((2, 3), keepdim=True)
            for name, activation in (("fc1", F.relu), ("fc2", torch.sigmoid)):
                gate = activation(F.conv2d(gate, state[f"{key}.gate.{name}.weight"], state[f"{key}.gate.{name}.bias"]))
            total = total + y * gate
        y = layer(f"{key}.conv3", total)
        own = f"{key}.IN.weight" in state
        inside = own and f"{key}.conv3.bn.weight" not in state
        y = instance_norm(state, f"{key}.IN", y) if inside else y
        y = y + (layer(f"{key}.downsample", x) if f"{key}.downsample.conv.weight" in state else x)
        return F.relu(instance_norm(state, f"{key}.IN", y) if own and not inside else y)

    x = F.max_pool2d(F.relu(layer("conv1", images, 2)), 3, 2, padding=1)
    for stage in (2, 3, 4):
        x = block(f"conv{stage}.1", block(f"conv{stage}.0", x))
        pool = f"pool{stage}.0" if f"pool{stage}.0.conv.weight" in state else f"conv{stage}.2.0"
        x = F.avg_pool2d(F.relu(layer(pool, x)), 2) if stage < 4 else x
    return fc(state, F.relu(layer("conv5", x)).mean((2, 3)))


def torchreid_resnet(name: str, reduced: bool, classes: int = 9) -> State:
    """The layout of torchreid's resnet50 or, reduced, resnet50_fc512."""
    shapes = resnet_shapes(name)
    channels = shapes["layer4.1.bn2.weight"][0] * (4 if "layer4.1.conv3.weight" in shapes else 1)
    length = 512 if reduced else channels
    shapes |= fc_shapes(channels) if reduced else {}
    return fill(shapes | {"classifier.weight": (classes, length), "classifier.bias": (classes,)})


def torchreid_resnet_embedding(state: State, images: Tensor) -> Tensor:
    reduced = "fc.0.weight" in state
    pooled = resnet_map(state, images, last_stride=1 if reduced else 2).mean((2, 3))
    return fc(state, pooled) if reduced else pooled


# fast-reid


def fast_reid_state(name: str, *, attends: bool = False, ibn: bool = False, reduced: int = 0, inner: int = 1) -> State:
    """The layout of fast-reid's `model`: BoT or, with GeM and non-local blocks, SBS and AGW."""
    shapes = resnet_shapes(name)
    length = shapes["layer4.0.downsample.1.weight"][0]
    for key in [key for key in shapes if ibn and ".bn1." in key and not key.startswith("layer4")]:
        half, last = shapes.pop(key), key.rpartition(".")[2]
        stem = key.removesuffix(f".{last}")
        shapes[f"{stem}.BN.{last}"] = tuple(size // 2 for size in half)
        if last in ("weight", "bias"):
            shapes[f"{stem}.IN.{last}"] = (half[0] // 2,)
    for stage, count in ((2, 2), (3, 3)) if attends else ():
        channels = length // 2 ** (4 - stage)
        for key in (f"NL_{stage}.{number}" for number in range(count)):
            for layer in ("g", "theta", "phi"):
                shapes |= {f"{key}.{layer}.weight": (inner, channels, 1, 1), f"{key}.{layer}.bias": (inner,)}
            shapes |= {f"{key}.W.0.weight": (channels, inner, 1, 1), f"{key}.W.0.bias": (channels,)}
            shapes |= norm_shapes(f"{key}.W.1", channels)
    shapes = {f"backbone.{key}": shape for key, shape in shapes.items()}
    if reduced:
        shapes["heads.bottleneck.0.weight"] = (reduced, length, 1, 1)
    shapes |= norm_shapes("heads.bottleneck.1" if reduced else "heads.bottleneck.0", reduced or length)
    state = fill(shapes | {"heads.weight": (9, reduced or length)})
    if attends:
        state["heads.pool_layer.p"] = torch.tensor([2.7])
    mean, std = ([value * 255 for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return state | {"pixel_mean": torch.tensor(mean).view(1, 3, 1, 1), "pixel_std": torch.tensor(std).view(1, 3, 1, 1)}


def fast_reid_embedding(state: State, images: Tensor) -> Tensor:
    x = resnet_map(below(state, ("backbone.", "")), images, last_stride=1, ceil=True)
    if (p := state.get("heads.pool_layer.p")) is not None:
        x = (x.clamp(min=1e-6) ** p).mean((2, 3), keepdim=True) ** (1 / p)
    else:
        x = x.mean((2, 3), keepdim=True)
    if "heads.bottleneck.1.weight" in state:
        return batch_norm(state, "heads.bottleneck.1", F.conv2d(x, state["heads.bottleneck.0.weight"])).flatten(1)
    return batch_norm(state, "heads.bottleneck.0", x).flatten(1)


# Vision transformers of DINO, as open-metric-learning has them, and timm


def vit_state(width: int = 192, patch: int = 16, depth: int = 12) -> State:
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, (224 // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for key in (f"blocks.{number}" for number in range(depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{key}.{norm}.weight": (width,), f"{key}.{norm}.bias": (width,)}
        for layer, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {f"{key}.{layer}.weight": (rows * width, columns * width), f"{key}.{layer}.bias": (rows * width,)}
    return fill(shapes)


def vit_embedding(state: State, images: Tensor) -> Tensor:
    width, patch = state["norm.weight"].numel(), state["patch_embed.proj.weight"].shape[2]
    heads = width // 64

    def norm(key: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{key}.weight"], state[f"{key}.bias"], 1e-6)

    def linear(key: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{key}.weight"], state[f"{key}.bias"])

    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), 1, width), x], 1) + state["pos_embed"]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for key in (f"blocks.{number}" for number in range(depth)):
        q, k, v = linear(f"{key}.attn.qkv", norm(f"{key}.norm1", x)).unflatten(2, (3, heads, 64)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(2, 3) / 8).softmax(3) @ v
        x = x + linear(f"{key}.attn.proj", attention.transpose(1, 2).flatten(2))
        x = x + linear(f"{key}.mlp.fc2", F.gelu(linear(f"{key}.mlp.fc1", norm(f"{key}.norm2", x))))
    return norm("norm", x)[:, 0]
