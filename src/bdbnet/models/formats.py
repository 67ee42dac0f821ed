"""Weights of other programs: which program wrote a file, as its keys and shapes show, and our names for its keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {  # blocks in layer1 .. layer4, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_WIDTHS = (1.0, 0.75, 0.5, 0.25)
_EMBEDDING_DIMS = {"global": 512, "dropping": 1024}
_CLASSIFIER = "classifier of the training identities, which no embedding needs"
_COUNTED = "of the training, changes no embedding"
#: Files of the released BDB code: part of the network -> ours.
_RELEASED = {
    "backbone.0": "backbone.conv1",
    "backbone.1": "backbone.bn1",
    "backbone.4": "backbone.layer1",
    "backbone.5": "backbone.layer2",
    "backbone.6": "backbone.layer3",
    "res_part": "backbone.layer4",
    "global_reduction": "branches.global_.reduction",
    "global_softmax": "branches.global_.classifier",
    "res_part2": "branches.dropping.bottleneck",
    "reduction": "branches.dropping.reduction",
    "softmax": "branches.dropping.classifier",
}
#: Training classes of the released models for retrieval -> data set, and whether test images are padded to a square.
_RETRIEVAL = {100: ("cub200", True), 98: ("cars196", False), 3997: ("inshop", True), 11318: ("sop", True)}
_PERSONS = (751, 702, 767)  # Market-1501, DukeMTMC-reID, CUHK03 (new protocol)
_VITS = {192: "tiny", 384: "small", 768: "base"}


@dataclass(frozen=True)
class Format:
    """What a file of another program holds.

    Attributes:
        program: who wrote it, for people.
        keys: key in the file -> ours, of every weight that is used.
        left_out: key in the file -> why it is not used.
        model, backbone: groups of a configuration, for `build_network`.
        preprocessing: arguments of `Preprocessing` that the authors use.
        distance: by which the authors compare embeddings.
        assumed: what keys and shapes do not say, and was taken from what the authors do; sentences.
        uncertain: of `assumed`, what may well be otherwise in this file.
    """

    program: str
    keys: Mapping[str, str]
    left_out: Mapping[str, str]
    model: dict[str, Any]
    backbone: dict[str, Any]
    preprocessing: Mapping[str, Any]
    distance: str = "euclidean"
    assumed: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = field(default=())

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by our keys. A 1 x 1 convolution of a pooled vector becomes the linear layer that it is."""
        translated = {}
        for key, ours in self.keys.items():
            tensor = state[key]
            pooled = ours.endswith(("reduction.0.weight", "reduction.weight")) and tensor.ndim == 4
            translated[ours] = tensor.flatten(1) if pooled else tensor
        return translated


def known_format(state: Mapping[str, Tensor], name: str = "") -> Format | None:
    """The format of bare weights, or None where no other program is known to write such keys.

    Args:
        state: tensors by key, as `read_state_dict` gives them.
        name: of the file, which may say what keys do not.
    """
    if "global_reduction.0.weight" in state and "res_part2.conv1.weight" in state:
        return _released_bdb(state)
    return None


def resnet_name(state: Mapping[str, Tensor]) -> str | None:
    """torchvision's name of the ResNet with these keys; None for another network."""
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    inner = state.get("layer1.0.conv2.weight")
    if "conv1.weight" not in state or inner is None or inner.ndim != 4 or inner.shape[1] != 64:  # ResNeXt, wide ResNet
        return None
    return _RESNETS.get((blocks, "layer1.0.conv3.weight" in state))


def rows(state: Mapping[str, Tensor], key: str) -> int:
    """Rows of a weight; 0 where it is not there, or is a mere number."""
    return state[key].shape[0] if key in state and state[key].ndim else 0


def bdb_model(dims: Mapping[str, int]) -> dict[str, Any]:
    """The group `model` of a `BDBNetwork` whose branches have embeddings of these lengths."""
    model = {"_target_": "bdbnet.models.BDBNetwork", "branches": [*dims], "pooling": "max"}
    unusual = {name: size for name, size in dims.items() if _EMBEDDING_DIMS[name] != size}
    return model | ({"embedding_dims": unusual} if unusual else {})


def _released_bdb(state: Mapping[str, Tensor]) -> Format | None:
    keys = {}
    for key in state:
        part = next((part for part in _RELEASED if key.startswith(f"{part}.")), None)
        if part is not None:
            keys[key] = _RELEASED[part] + key.removeprefix(part)
    backbone = {
        ours.removeprefix("backbone."): state[key] for key, ours in keys.items() if ours.startswith("backbone.")
    }
    name = resnet_name(backbone)
    dims = {"global": rows(state, "global_reduction.0.weight"), "dropping": rows(state, "reduction.0.weight")}
    if name is None or not all(dims.values()):
        return None
    classes = rows(state, "softmax.weight")
    preprocessing, assumed, uncertain = _released_preprocessing(classes)
    return Format(
        program="the released code of the Batch DropBlock Network",
        keys=keys,
        left_out={key: "no part of the embedding" for key in state if key not in keys},
        model=bdb_model(dims),
        backbone={"_target_": "bdbnet.models.ResNetBackbone", "name": name, "weights": "none", "last_stride": 1},
        preprocessing=preprocessing,
        assumed=assumed,
        uncertain=uncertain,
    )


def _released_preprocessing(classes: int) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """How test images are prepared for a released model with so many training classes, and what was assumed."""
    if classes in _RETRIEVAL:
        dataset, padded = _RETRIEVAL[classes]
        how = "padded to a square, then resized to 256 x 256" if padded else "resized to 256 x 256"
        said = f"its {classes:,} training classes are those of {dataset}, whose test images are {how} (paper)"
        more = ("the released code tests sop at 224 x 224: image_size=224",) if dataset == "sop" else ()
        return {"image_size": (256, 256), "pad_to_square": padded}, (said, *more), ()
    size = {"image_size": (384, 128)}
    if classes in _PERSONS:
        return size, (f"its {classes} training identities are of a data set of persons, at 384 x 128 pixels",), ()
    said = (
        f"its {classes:,} training classes are of no data set of the paper: taken for persons at 384 x 128 pixels; "
        "set image_size= for another size"
    )
    return size, (said,), (said,)
