"""Architectures recognised by the keys and shapes of a file of weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from bdbnet.models.backbones.osnet import WIDTHS
from bdbnet.models.bdb import EMBEDDING_DIMS, MODULES
from bdbnet.models.weights import FAST_REID_HEADS, CheckpointError

_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {  # blocks in layer1 .. layer4, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_SHOWN = 6


class Architecture(NamedTuple):
    """What a file's weights belong to.

    Attributes:
        model, backbone: groups of a configuration, for `build_network`.
        image_size: height and width of the images that the network was trained for, pixels; None where keys do not say.
    """

    model: dict[str, Any]
    backbone: dict[str, Any]
    image_size: tuple[int, int] | None


def recognise(state: Mapping[str, Tensor], source: str) -> Architecture:
    """The architecture of bare weights: torchreid's OSNet of any width, and `BDBNetwork` on an OSNet or a ResNet.

    Args:
        state: tensors by key, as `read_state_dict` gives them.
        source: what messages call the file.

    Raises:
        CheckpointError: another architecture; the message lists keys of the file and the arguments that settle it.
    """
    ours = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    branches = [name for name, module in MODULES.items() if any(key.startswith(f"branches.{module}.") for key in state)]
    backbone = _backbone(ours or state)
    if backbone is not None and not ours and "fc.0.weight" in state and "width" in backbone:  # torchreid's
        dims = {"global": _rows(state, "fc.0.weight")}
        return Architecture(_model(["global"], dims), backbone, (256, 128))
    others = {key.split(".")[1] for key in state if key.startswith("branches.")} - {*MODULES.values()}
    dims = {name: _rows(state, f"branches.{MODULES[name]}.reduction.0.weight") for name in branches}
    if backbone is not None and ours and branches and not others and all(dims.values()):
        return Architecture(_model(branches, dims), backbone, None)
    keys = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    listed = "; ".join(keys[:_SHOWN]) + (f"; ... ({len(keys)} keys)" if len(keys) > _SHOWN else "")
    advice = (
        "Say what they belong to with model= and backbone=, for example model=baseline backbone=resnet50 (the groups of conf/model "
        "and conf/backbone)"
    )
    if any(key.startswith("heads.") for key in state):
        advice = FAST_REID_HEADS
    elif backbone is not None and not branches and not others:
        advice = (
            f"They are a {backbone.get('name', 'OSNet')} without the branches that make an embedding: they can start a "
            "training, as backbone.weights=<file>"
        )
    raise CheckpointError(
        f"{source}: the architecture of these weights is not recognised. Its keys: {listed}. {advice}"
    )


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    """Rows of a weight; 0 where it is not there, or is a mere number."""
    return state[key].shape[0] if key in state and state[key].ndim else 0


def _model(branches: list[str], dims: dict[str, int]) -> dict[str, Any]:
    model = {"_target_": "bdbnet.models.BDBNetwork", "branches": branches, "pooling": "max"}
    unusual = {name: size for name, size in dims.items() if EMBEDDING_DIMS[name] != size}
    return model | ({"embedding_dims": unusual} if unusual else {})


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    first = state.get("conv1.conv.weight")
    if first is not None:
        width = _rows(state, "conv1.conv.weight") / 64
        plain = width in WIDTHS and "conv2.0.conv2a.conv1.weight" in state and "conv2.0.IN.weight" not in state
        return {"_target_": "bdbnet.models.OSNetBackbone", "width": width, "weights": "none"} if plain else None
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    name = _RESNETS.get((blocks, "layer1.0.conv3.weight" in state))
    if name is None or "conv1.weight" not in state:
        return None
    return {"_target_": "bdbnet.models.ResNetBackbone", "name": name, "weights": "none", "last_stride": 1}
