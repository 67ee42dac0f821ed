"""Weights of other programs: which program wrote a file, as its keys and shapes show, and our names for its keys."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
_POOLED = {"_target_": "bdbnet.models.PooledNetwork"}
# torchreid's osnet_ain lists its streams, and names the layer between stages on its own.
_AIN_STREAM = re.compile(r"(backbone\.conv[234]\.\d)\.conv2\.([0-3])\.layers\.(\d)\.(.*)")
_AIN_TRANSITION = re.compile(r"backbone\.pool([23])\.0\.")
_VITS = {384: "small", 768: "base"}  # of DINO


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
    if "conv1.conv.weight" in state and "fc.0.weight" in state:
        return _torchreid_osnet(state)
    if any(f"heads.{neck}.running_var" in state for neck in ("bottleneck.0", "bottleneck.1", "bnneck")):
        return _fast_reid(state, Path(name).name.lower())
    if {"cls_token", "patch_embed.proj.weight", "norm.weight", "blocks.11.mlp.fc2.weight"} <= {*state}:
        return _dino_vit(state)
    if resnet_name(state) is not None and "fc.weight" not in state and "fc.2.weight" not in state:
        return _torchreid_resnet(state) if "classifier.weight" in state else _bare_resnet(state)
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


def non_local_blocks(state: Mapping[str, Tensor]) -> tuple[list[int], int]:
    """Non-local blocks of a ResNet's four stages, and their inner channels (1 where there are none)."""
    blocks = [len({key.split(".")[1] for key in state if key.startswith(f"NL_{stage}.")}) for stage in (1, 2, 3, 4)]
    inner = next((rows(state, key) for key in state if key.startswith("NL_") and key.endswith(".theta.weight")), 1)
    return blocks, inner


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


def _torchreid_osnet(state: Mapping[str, Tensor]) -> Format | None:
    width = rows(state, "conv1.conv.weight") / 64
    ain = any(key.startswith("conv2.0.conv2.0.layers.") for key in state)
    variant = "ain" if ain else "ibn" if "conv2.0.IN.weight" in state else "plain"
    if width not in _WIDTHS or not (ain or "conv2.0.conv2a.conv1.weight" in state):
        return None
    roots = {"fc": "branches.global_.reduction", "classifier": "branches.global_.classifier"}
    keys = {}
    for key in state:
        root, _, rest = key.partition(".")
        keys[key] = f"{roots.get(root, f'backbone.{root}')}.{rest}"
        if ain:
            keys[key] = _AIN_TRANSITION.sub(r"backbone.conv\1.2.0.", _AIN_STREAM.sub(_stream, keys[key]))
    backbone: dict[str, Any] = {"_target_": "bdbnet.models.OSNetBackbone", "width": width, "weights": "none"}
    return Format(
        program="torchreid",
        keys=keys,
        left_out={},
        model=bdb_model({"global": rows(state, "fc.0.weight")}),
        backbone=backbone | ({} if variant == "plain" else {"variant": variant}),
        preprocessing={"image_size": (256, 128)},
        assumed=("images are resized to 256 x 128 pixels, as torchreid's models are trained",),
    )


def _stream(found: re.Match[str]) -> str:
    """A layer of one of the four streams, whose first has a single one."""
    block, stream, layer, rest = found.groups()
    return f"{block}.conv2{'abcd'[int(stream)]}." + (rest if stream == "0" else f"{layer}.{rest}")


def _torchreid_resnet(state: Mapping[str, Tensor]) -> Format:
    reduced = "fc.0.weight" in state  # resnet50_fc512
    roots = {"fc": "branches.global_.reduction", "classifier": "branches.global_.classifier"} if reduced else {}
    left_out = {} if reduced else {key: _CLASSIFIER for key in state if key.startswith("classifier.")}
    keys = {}
    for key in state:
        root, _, rest = key.partition(".")
        if key not in left_out:
            keys[key] = f"{roots.get(root, f'backbone.{root}')}.{rest}"
    stride = 1 if reduced else 2
    return Format(
        program="torchreid",
        keys=keys,
        left_out=left_out,
        model=bdb_model({"global": rows(state, "fc.0.weight")}) if reduced else dict(_POOLED),
        backbone=_torchvision_backbone(state, stride),
        preprocessing={"image_size": (256, 128)},
        assumed=(
            "images are resized to 256 x 128 pixels, as torchreid's models are trained",
            f"the last stage has stride {stride}, as torchreid's {'resnet50_fc512' if reduced else 'ResNets'} have",
        ),
    )


def _bare_resnet(state: Mapping[str, Tensor]) -> Format:
    said = (
        "a ResNet without head: taken for an extractor of open-metric-learning, its features averaged, for images of 224 x 224 "
        "pixels; set image_size= for another size"
    )
    return Format(
        program="open-metric-learning",
        keys={key: f"backbone.{key}" for key in state},
        left_out={},
        model=dict(_POOLED),
        backbone=_torchvision_backbone(state, 2),
        preprocessing={"image_size": (224, 224)},
        assumed=(said, "the last stage has stride 2, as torchvision's ResNets have"),
        uncertain=(said,),
    )


def _torchvision_backbone(state: Mapping[str, Tensor], stride: int) -> dict[str, Any]:
    name = resnet_name(state)
    return {"_target_": "bdbnet.models.ResNetBackbone", "name": name, "weights": "none", "last_stride": stride}


def _dino_vit(state: Mapping[str, Tensor]) -> Format | None:
    width, patch = rows(state, "norm.weight"), state["patch_embed.proj.weight"].shape[-1]
    squares = state["pos_embed"].shape[1] - 1 if "pos_embed" in state else 0
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if any(key.startswith("head.") for key in state) or any(".ls1." in key for key in state) or depth != 12:
        return None  # a classifier, so timm's own with a preprocessing that its card says; DINOv2; another depth
    if width not in _VITS or patch not in (8, 16) or squares != (224 // patch) ** 2:
        return None
    said = (
        "images are resized to 224 x 224 pixels, without the authors' crop of the middle; embeddings are not normalised"
    )
    name = f"vit_{_VITS[width]}_patch{patch}_224"
    doubt = (
        "a ViT without classifier: taken for DINO's, of open-metric-learning; for a model of timm, whose images are prepared "
        f"otherwise, say so: model='timm:NAME' in Python, timm=NAME of bdbnet.convert, such as {name}"
    )
    return Format(
        program="open-metric-learning (ViT of DINO)",
        keys={key: f"backbone.model.{key}" for key in state},
        left_out={},
        model={**_POOLED, "pooling": "none"},
        backbone={
            "_target_": "bdbnet.models.TimmEncoder",
            "name": name,
            "weights": "none",
        },
        preprocessing={"image_size": (224, 224), "interpolation": "bicubic"},
        assumed=(said, doubt),
        uncertain=(doubt,),
    )


def _fast_reid(state: Mapping[str, Tensor], name: str) -> Format | None:
    backbone = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    resnet = resnet_name(backbone)
    known = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "NL_")
    if resnet is None or any(not key.startswith(known) or ".se." in key for key in backbone):
        return None
    first = state.get("heads.bottleneck.0.weight")
    has_reduction = "heads.bottleneck.1.weight" in state and first is not None and first.ndim == 4
    necks = {f"heads.{'bottleneck.1' if has_reduction else 'bottleneck.0'}.": "neck.", "heads.bnneck.": "neck."}
    heads = {"heads.bottleneck.0.weight": "reduction.weight"} if has_reduction else {}
    keys, left_out = {}, {}
    for key in state:
        neck = next((theirs for theirs in necks if key.startswith(theirs)), None)
        if key.startswith("backbone."):
            keys[key] = key
        elif key in heads or neck is not None:
            keys[key] = heads[key] if neck is None else necks[neck] + key.removeprefix(neck)
        elif key == "heads.pool_layer.p":
            keys[key] = "pooling.p"
        else:
            said = "is in the preprocessing" if key in ("pixel_mean", "pixel_std") else _CLASSIFIER
            left_out[key] = said if key.startswith(("pixel", "heads.")) else _COUNTED
    gem = "heads.pool_layer.p" in state
    blocks, inner = non_local_blocks(backbone)
    recipe, preprocessing, assumed, uncertain = _fast_reid_preprocessing(state, name, gem and any(blocks))
    model = {**_POOLED, "pooling": "gem" if gem else "avg", "neck": True}
    return Format(
        program=f"fast-reid ({recipe})",
        keys=keys,
        left_out=left_out,
        model=model | ({"embedding_dim": rows(state, "heads.bottleneck.0.weight")} if has_reduction else {}),
        backbone={
            "_target_": "bdbnet.models.FastReIDBackbone",
            "name": resnet,
            "weights": "none",
            "last_stride": 1,
            "ibn": "layer1.0.bn1.IN.weight" in backbone,
            "non_local": blocks,
            "non_local_channels": inner,
        },
        preprocessing=preprocessing,
        distance="cosine",
        assumed=assumed,
        uncertain=uncertain,
    )


def _fast_reid_preprocessing(
    state: Mapping[str, Tensor], name: str, attends: bool
) -> tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """The recipe, how it prepares images, what was assumed, and what of it is uncertain.

    Args:
        attends: whether it pools by GeM and has non-local blocks, which SBS and AGW share.
    """
    agw = "agw" in name
    recipe = "BoT" if not attends else "AGW" if agw else "SBS"
    preprocessing: dict[str, Any] = {
        "image_size": (384, 128) if recipe == "SBS" else (256, 128),
        "interpolation": "bicubic",
    }
    for theirs, ours in (("pixel_mean", "mean"), ("pixel_std", "std")):
        values = state.get(theirs)
        if values is not None and values.numel() == 3 and (ours == "mean" or bool((values > 0).all())):
            preprocessing[ours] = tuple(round(float(value) / 255, 6) for value in values.flatten())
    size = " x ".join(map(str, preprocessing["image_size"]))
    said = f"images are resized to {size} pixels (bicubic), as {recipe}'s are"
    doubt = (
        (
            "SBS and AGW have the same keys: taken for SBS, with images of 384 x 128 pixels; AGW's have 256 x 128: "
            "image_size=[256,128]",
        )
        if recipe == "SBS" and "sbs" not in name
        else ()
    )
    more = (
        "the last stage has stride 1; the stem pools without padding; pooling has no other settings than the file shows"
    )
    return recipe, preprocessing, (said, more, *doubt), doubt


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
