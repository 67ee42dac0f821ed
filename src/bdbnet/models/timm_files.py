"""Files of timm, as its users and the Hugging Face Hub keep them: weights, and a `config.json` beside them that names the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bdbnet.checked import read_json
from bdbnet.models.backbones.timm import TimmBackbone
from bdbnet.models.formats import Format
from bdbnet.models.weights import CheckpointError

#: Names of weights in a folder of the Hub.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CARD = "config.json"


def timm_weights_in(folder: Path) -> Path | None:
    """The weights in a folder that timm wrote; None for another folder."""
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    return there[0] if there and (folder / CARD).is_file() else None


def timm_format(path: Path, state: Mapping[str, Tensor], name: str | None = None) -> Format | None:
    """What a file of timm holds; None where neither `name` nor a `config.json` beside it says which model it is.

    Args:
        state: tensors by timm's keys.
        name: of the model; None: as `config.json` says.

    Raises:
        ValueError: timm is not installed or does not know the name.
        CheckpointError: a `config.json` that can't be read or that changes the architecture in a way that is not supported.
    """
    card = _card(path.parent / CARD) if (path.parent / CARD).is_file() else {}
    named = card.get("architecture")
    if name is None and not isinstance(named, str):
        return None
    chosen = name or str(named)
    TimmBackbone.check_name(chosen)
    import timm

    built_in: Any = timm.get_pretrained_cfg(chosen)
    if name is not None and named != name.partition(".")[0]:
        card = {}  # the card is of another model
    settings = {**card, **(card.get("pretrained_cfg") or {})}
    arguments = card.get("model_args") or {}
    if extra := sorted({*arguments} - {"img_size"}):
        raise CheckpointError(
            f"{path.parent / CARD}: model_args sets {', '.join(extra)}, which is not supported: load the model with timm itself"
        )
    size = tuple(settings.get("input_size") or built_in.input_size)[-2:]
    classifier = built_in.classifier or ()
    heads = tuple(f"{part}." for part in ((classifier,) if isinstance(classifier, str) else classifier))
    keys = {key: f"backbone.model.{key}" for key in state if not key.startswith(heads)}
    backbone: dict[str, Any] = {"_target_": "bdbnet.models.TimmEncoder", "name": chosen, "weights": "none"}
    if "img_size" in arguments:
        trained = arguments["img_size"]
        backbone["image_size"] = [trained, trained] if isinstance(trained, int) else list(trained)
        size = tuple(backbone["image_size"])
    if isinstance(card.get("global_pool"), str) and card["global_pool"]:
        backbone["global_pool"] = card["global_pool"]
    said = "images are resized to {} x {} pixels, without timm's crop of the middle".format(*size)
    where = f"{CARD} beside the file" if settings else f"timm's own card of {chosen}"
    return Format(
        program="timm",
        keys=keys,
        left_out={key: "classifier of timm's training, which no embedding needs" for key in state if key not in keys},
        model={"_target_": "bdbnet.models.PooledNetwork", "pooling": "none"},
        backbone=backbone,
        preprocessing={
            "image_size": size,
            "mean": tuple(settings.get("mean") or built_in.mean),
            "std": tuple(settings.get("std") or built_in.std),
            "interpolation": settings.get("interpolation") or built_in.interpolation,
        },
        distance="cosine",
        assumed=(said, f"mean, deviation and interpolation are those of {where}"),
    )


def _card(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): download it again, or move it away") from error
    return content if isinstance(content, dict) else {}
