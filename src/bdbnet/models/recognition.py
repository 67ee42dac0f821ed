"""Architectures recognised by the keys and shapes of a file of weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from bdbnet.models.backbones.osnet import WIDTHS
from bdbnet.models.bdb import MODULES
from bdbnet.models.formats import Format, bdb_model, known_format, non_local_blocks, resnet_name, rows
from bdbnet.models.weights import FAST_REID_HEADS, CheckpointError

_SHOWN = 6


class Architecture(NamedTuple):
    """What a file's weights belong to.

    Attributes:
        model, backbone: groups of a configuration, for `build_network`.
        image_size: height and width of the images that the network was trained for, pixels; None where keys do not say.
        format: what the file is where another program wrote it.
    """

    model: dict[str, Any]
    backbone: dict[str, Any]
    image_size: tuple[int, int] | None
    format: Format | None = None


def recognise(state: Mapping[str, Tensor], source: str) -> Architecture:
    """The architecture of bare weights: those of other programs, see `known_format`, and `BDBNetwork` on an OSNet or a ResNet.

    Args:
        state: tensors by key, as `read_state_dict` gives them.
        source: what messages call the file.

    Raises:
        CheckpointError: another architecture; the message lists keys of the file and the arguments that settle it.
    """
    if (found := known_format(state, source)) is not None:
        return Architecture(found.model, found.backbone, found.preprocessing["image_size"], found)
    ours = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    branches = [name for name, module in MODULES.items() if any(key.startswith(f"branches.{module}.") for key in state)]
    backbone = _backbone(ours or state)
    others = {key.split(".")[1] for key in state if key.startswith("branches.")} - {*MODULES.values()}
    dims = {name: rows(state, f"branches.{MODULES[name]}.reduction.0.weight") for name in branches}
    if backbone is not None and ours and branches and not others and all(dims.values()):
        return Architecture(bdb_model(dims), backbone, None)
    keys = [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]
    listed = "; ".join(keys[:_SHOWN]) + (f"; ... ({len(keys)} keys)" if len(keys) > _SHOWN else "")
    advice = (
        "Say what they belong to with model= and backbone=, for example model=baseline backbone=resnet50 (the groups of conf/model "
        "and conf/backbone); for a model of timm put its config.json beside the file, or give its name: bdbnet.load(file, "
        "model='timm:NAME') or python -m bdbnet.convert timm=NAME"
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


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    first = state.get("conv1.conv.weight")
    if first is not None:
        width = rows(state, "conv1.conv.weight") / 64
        plain = width in WIDTHS and "conv2.0.conv2a.conv1.weight" in state and "conv2.0.IN.weight" not in state
        return {"_target_": "bdbnet.models.OSNetBackbone", "width": width, "weights": "none"} if plain else None
    name = resnet_name(state)
    if name is None:
        return None
    blocks, inner = non_local_blocks(state)
    attention = {"non_local": blocks, "non_local_channels": inner} if any(blocks) else {}
    return {"_target_": "bdbnet.models.ResNetBackbone", "name": name, "weights": "none", "last_stride": 1, **attention}
