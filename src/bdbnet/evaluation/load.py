"""From a checkpoint, a file of weights, a saved folder or a name to an embedder that is ready to use."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import IDENTITY, ConfigError, config_dir, foreign_targets, plain
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings, Origin
from bdbnet.evaluation.network import PARTS, build_network
from bdbnet.evaluation.saved import is_saved, read_saved
from bdbnet.loading import Preprocessing
from bdbnet.models import (
    CheckpointError,
    EmbeddingNetwork,
    load_network,
    read_checkpoint,
    read_state_dict,
    recognise,
    timm_network,
    torchvision_network,
)
from bdbnet.renamed import with_todays_names

#: Names of pretrained networks as they are.
SCHEMES = ("timm", "torchvision")

Group = str | Mapping[str, Any] | DictConfig | None


@dataclass(frozen=True)
class Wanted:
    """What a caller sets for itself; None: as the source says.

    Attributes:
        model, backbone: names of choices in `conf/model` and `conf/backbone`, or the groups themselves; for weights that do
            not say what they belong to.
        image_size: height and width of the network's input, pixels.
        pad_to_square, decode_margin: see `Preprocessing`; a decode margin of None is one of its values.
        settings: scaling and views.
        distance: by which embeddings are compared.
        fallback_size: image size for a source that does not say one.
    """

    model: Group = None
    backbone: Group = None
    image_size: Any = None
    pad_to_square: bool | None = None
    decode_margin: float | None = 2.0
    settings: EmbeddingSettings | None = None
    distance: str | None = None
    fallback_size: Any = None


def load(
    source: str | Path,
    *,
    model: Group = None,
    backbone: Group = None,
    image_size: tuple[int, int] | list[int] | int | None = None,
    device: str | torch.device = "auto",
) -> Embedder:
    """An embedder from a trained network.

    Args:
        source: one of

            - a checkpoint of `bdbnet.train` (`last.ckpt`), which says everything about itself;
            - a file of bare weights: torchreid's OSNet of any width, a `BDBNetwork` on a ResNet or an OSNet (recognised by
              their keys), or another one together with `model` and `backbone`;
            - a folder that `Embedder.save` wrote;
            - `"timm:NAME"` or `"torchvision:NAME"`: a pretrained network as it is, its features pooled: the zero-shot
              baseline.
        model, backbone: for weights that do not say what they belong to: names of choices in `conf/model` and
            `conf/backbone`, such as `"baseline"` and `"osnet_x0_25"`, or such groups as mappings.
        image_size: (height, width) of the network's input in pixels, where it shall not be what the source says.
        device: `"auto"` (a GPU if there is one), `"cpu"`, `"gpu"`, or a torch device.

    Raises:
        CheckpointError: no such source; weights that can't be read safely, or whose architecture is not recognised.
        ConfigError: an argument that can't be used or that the source settles itself.
    """
    return open_embedder(source, Wanted(model, backbone, image_size), device=device)


def open_embedder(
    source: str | Path, wanted: Wanted, *, device: str | torch.device = "auto", local_rank: int = 0
) -> Embedder:
    """`load` with everything that can be set; `local_rank` chooses among several GPUs."""
    place = find_device(device, local_rank)
    embedder = _opened(str(source), wanted)
    embedder.network.eval().requires_grad_(False)
    embedder.network.to(place).to(memory_format=torch.channels_last)  # faster on CPUs, no slower elsewhere
    if place.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 is meant
    return embedder


def knows_its_network(source: str | Path) -> bool:
    """Whether a file is a checkpoint of `bdbnet.train`, rather than bare weights.  Raises CheckpointError."""
    content = read_checkpoint(source)
    return isinstance(content, dict) and "bdbnet" in content


def find_device(device: str | torch.device, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `gpu` or a torch device.  Raises ConfigError for another, or for a GPU where there is none."""
    if isinstance(device, torch.device):
        return device
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device in ("gpu", "cuda") and not gpus:
        raise ConfigError(f"accelerator={device}: PyTorch finds no GPU here; use auto or cpu")
    if device in ("auto", "gpu", "cuda"):
        return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ConfigError(f"accelerator={device}: choose one of auto, cpu, gpu, or a device such as cuda:1") from None


def _opened(source: str, wanted: Wanted) -> Embedder:
    scheme, _, name = source.partition(":")
    if scheme in SCHEMES and name:
        return _pretrained(source, scheme, name, wanted)
    path = Path(source).expanduser()
    if path.is_dir():
        if not is_saved(path):
            raise CheckpointError(
                f"{source}: a folder without bdbnet.json, so none that Embedder.save wrote. Give a file in it, such as last.ckpt"
            )
        return _from_folder(path, source, wanted)
    if not path.is_file():
        near = _similar(source)
        raise CheckpointError(
            f"{source}: no such file of weights. A source is a checkpoint, a file of weights, a folder that Embedder.save wrote, "
            f"or timm:NAME or torchvision:NAME for a pretrained network{near}"
        )
    content = read_checkpoint(path)
    saved = content.get("bdbnet") if isinstance(content, dict) else None
    if saved is not None:
        return _from_checkpoint(path, source, saved, wanted)
    return _from_weights(path, source, wanted)


def _similar(source: str) -> str:
    folder = Path(source).expanduser().parent
    names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    close = difflib.get_close_matches(Path(source).name, names, n=1)
    return f". Did you mean {folder / close[0]}?" if close else ""


def _refuse_architecture(source: str, wanted: Wanted) -> None:
    given = [name for name in ("model", "backbone") if getattr(wanted, name) is not None]
    if given:
        raise ConfigError(f"{' and '.join(f'{name}=' for name in given)}: leave out, {source} knows its own network")


def _from_checkpoint(path: Path, source: str, saved: Mapping[str, Any], wanted: Wanted) -> Embedder:
    trained_with = with_todays_names(saved["config"])
    config = OmegaConf.create(trained_with)
    typed = wanted.model is not None and wanted.backbone is not None
    if typed and foreign_targets({name: trained_with.get(name) for name in PARTS}):
        # A network of a plugin is what the user says it is; the drop layer has no part in an embedding.
        config.model, config.backbone = _group("model", wanted.model), _group("backbone", wanted.backbone)
        config.dropping = {"_target_": IDENTITY}
    else:
        _refuse_architecture(source, wanted)
        typed = False
    config.backbone.weights = "none"
    network = _built(config, path, ours_only=not typed)
    dataset, evaluation = trained_with.get("dataset") or {}, trained_with.get("evaluation") or {}
    size = wanted.image_size or dataset.get("test_size") or dataset.get("image_size") or wanted.fallback_size
    padded = bool(dataset.get("pad_test")) if wanted.pad_to_square is None else wanted.pad_to_square
    settings = wanted.settings or EmbeddingSettings(
        normalize=evaluation.get("normalize", "none"),
        flip=bool(evaluation.get("flip", False)),
        scales=tuple(evaluation.get("scales") or (1.0,)),
    )
    return Embedder(
        network,
        _preprocessing(size, padded, wanted.decode_margin),
        settings,
        distance=wanted.distance or evaluation.get("distance", "euclidean"),
        origin=Origin(source, _parts(config), trained_with),
    )


def _from_weights(path: Path, source: str, wanted: Wanted) -> Embedder:
    size = None
    if wanted.model is not None and wanted.backbone is not None:
        model, backbone = _group("model", wanted.model), _group("backbone", wanted.backbone)
        ours_only = False
    else:
        if wanted.model is not None or wanted.backbone is not None:
            other = "backbone" if wanted.backbone is None else "model"
            raise ConfigError(f"{source}: give {other}= too, for example model=baseline backbone=osnet_x0_25")
        architecture = recognise(read_state_dict(path), source)
        model, backbone, size = architecture
        ours_only = True
    size = wanted.image_size or size or wanted.fallback_size
    if size is None:
        raise ConfigError(
            f"image_size= is missing: {source} is a file of bare weights, which do not say for which images they are. Give "
            "image_size=[height,width] in pixels, such as image_size=[256,128]"
        )
    parts = {"model": model, "backbone": {**backbone, "weights": "none"}, "dropping": {"_target_": "torch.nn.Identity"}}
    config = OmegaConf.create(parts)
    network = _built(config, path, ours_only=ours_only)
    return Embedder(
        network,
        _preprocessing(size, bool(wanted.pad_to_square), wanted.decode_margin),
        wanted.settings,
        distance=wanted.distance or "euclidean",
        origin=Origin(source, _parts(config, but="dropping")),
    )


def _from_folder(folder: Path, source: str, wanted: Wanted) -> Embedder:
    _refuse_architecture(source, wanted)
    record, weights = read_saved(folder)
    config = OmegaConf.create({**record["network"]}) if record["network"] else None
    if config is None:
        scheme, _, name = str(record["source"]).partition(":")
        raise CheckpointError(f"{source}: saved from {scheme}:{name}, which this version can't rebuild from a folder")
    if "dropping" not in config:
        config.dropping = {"_target_": "torch.nn.Identity"}
    network = _built(config, weights, ours_only=True)
    preprocessing = Preprocessing.from_json(record["preprocessing"])
    if wanted.image_size is not None:
        preprocessing = replace(preprocessing, image_size=_size(wanted.image_size))
    settings = {**record["settings"], "scales": tuple(record["settings"]["scales"])}
    return Embedder(
        network,
        preprocessing,
        wanted.settings or EmbeddingSettings(**settings),
        distance=wanted.distance or record["distance"],
        threshold=record["threshold"],
        origin=Origin(source, record["network"], record["trained_with"], record["metrics"], record["protocol"]),
    )


def _pretrained(source: str, scheme: str, name: str, wanted: Wanted) -> Embedder:
    _refuse_architecture(source, wanted)
    size = None if wanted.image_size is None else _size(wanted.image_size)
    try:
        network, made_for = timm_network(name, size) if scheme == "timm" else torchvision_network(name)
    except ValueError as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{source}: {error}") from error
    if size is not None:
        made_for["image_size"] = size
    preprocessing = Preprocessing(
        pad_to_square=bool(wanted.pad_to_square),
        decode_margin=wanted.decode_margin,
        **made_for,
    )
    return Embedder(
        network, preprocessing, wanted.settings, distance=wanted.distance or "cosine", origin=Origin(source)
    )


def _built(config: DictConfig, weights: Path, *, ours_only: bool) -> EmbeddingNetwork:
    network, _ = build_network(config, num_classes=0, ours_only=ours_only)
    load_network(network, weights, classifiers="drop")
    return network


def _parts(config: DictConfig, but: str = "") -> dict[str, Any]:
    return {
        name: OmegaConf.to_container(config[name], resolve=True) for name in PARTS if name in config and name != but
    }


def _preprocessing(size: Any, padded: bool, margin: float | None) -> Preprocessing:
    try:
        return Preprocessing(_size(size), padded, None if margin is None else float(margin))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def _size(size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size) if not isinstance(size, str) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        raise ConfigError(f"image_size={size}: give [height,width] in pixels")
    return sides


def _group(group: str, choice: Group) -> dict[str, Any]:
    """A group of the configuration by the name of one of its choices, or as it is."""
    if isinstance(choice, DictConfig):
        return plain(choice)
    if isinstance(choice, Mapping):
        return dict(choice)
    file = config_dir() / group / f"{choice}.yaml"
    if not isinstance(choice, str) or not file.is_file():
        there = ", ".join(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))
        raise ConfigError(f"{group}={choice}: choose one of {there}, or give the group as a mapping")
    return plain(cast(DictConfig, OmegaConf.load(file)))


def settings_of(evaluation: DictConfig) -> EmbeddingSettings:
    """The settings in a group `evaluation`.  Raises ConfigError that names the key."""
    scales: Any = (
        OmegaConf.to_container(evaluation.scales) if OmegaConf.is_list(evaluation.scales) else evaluation.scales
    )
    return EmbeddingSettings(
        precision=evaluation.precision,
        normalize=evaluation.normalize,
        flip=evaluation.flip,
        scales=(1.0,) if scales in (None, []) else tuple(scales) if isinstance(scales, list) else scales,
    )
