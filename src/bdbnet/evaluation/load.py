"""From a checkpoint, a file of weights, a saved folder or a name to an embedder that is ready to use."""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet import plugins
from bdbnet.checked import Holds, Plain, UnfitError, checked
from bdbnet.config import IDENTITY, ConfigError, config_dir, foreign_targets, is_ours, plain
from bdbnet.evaluation import hub
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings, Origin
from bdbnet.evaluation.network import PARTS, build_network
from bdbnet.evaluation.saved import check_weights, is_saved, read_saved
from bdbnet.loading import Preprocessing
from bdbnet.missing import no_source
from bdbnet.models import (
    Architecture,
    CheckpointError,
    EmbeddingNetwork,
    load_network,
    read_checkpoint,
    read_state_dict,
    recognise,
    timm_format,
    timm_network,
    timm_weights_in,
    torchvision_network,
)
from bdbnet.models.weights import training_identities
from bdbnet.models.zoo import zoo_path
from bdbnet.renamed import with_todays_names
from bdbnet.results import ResultError, RunSettings, read_result
from bdbnet.settings import is_whole
from bdbnet.zoo_entries import ENTRIES, HUB, SCHEMES, is_named

Group = str | Mapping[str, Any] | DictConfig | None


@dataclass(frozen=True)
class Wanted:
    """What a caller sets for itself; None, and of the decode margin `"source"`: as the source says.

    Attributes:
        model, backbone: names of choices in `conf/model` and `conf/backbone`, or the groups themselves; for weights that do
            not say what they belong to.
        image_size: height and width of the network's input, pixels.
        pad_to_square, decode_margin: see `Preprocessing`.
        typed: model and backbone are what the user typed, and may be of a plugin; otherwise a file says them.
        settings: scaling and views.
        distance: by which embeddings are compared.
        fallback_size: image size for a source that does not say one.
        classifiers: keep those of the training identities, where the source has them; no embedding needs them.
    """

    model: Group = None
    backbone: Group = None
    image_size: Any = None
    pad_to_square: bool | None = None
    decode_margin: float | Literal["source"] | None = "source"
    typed: bool = True
    settings: EmbeddingSettings | None = None
    distance: str | None = None
    fallback_size: Any = None
    classifiers: bool = False


def load(
    source: str | Path,
    *,
    model: Group = None,
    backbone: Group = None,
    image_size: tuple[int, int] | list[int] | int | None = None,
    device: str | torch.device = "auto",
    classifiers: bool = False,
) -> Embedder:
    """An embedder from a trained network.

    Args:
        source: one of

            - a checkpoint of `bdbnet.train` (`last.ckpt`), which says everything about itself;
            - a file of bare weights that is recognised by its keys: a model of the released BDB code, torchreid's ResNets and
              OSNets, fast-reid's BoT, SBS and AGW, extractors of open-metric-learning, a `BDBNetwork` on a ResNet or an OSNet;
              timm's, with its `config.json` beside it or with `model="timm:NAME"`; or another one together with `model` and
              `backbone`;
            - a folder that `Embedder.save` wrote, or `"hub:USER/NAME"` for one on a model hub;
            - the name of a network of the zoo, see `bdbnet.zoo`: `"bdb_osnet_x0_25_synthetic"` travels with bdbnet, others are
              downloaded once into the folder that BDBNET_CACHE names, `~/.cache/bdbnet` by default;
            - `"timm:NAME"` or `"torchvision:NAME"`: a pretrained network as it is, its features pooled: the zero-shot
              baseline.
        model, backbone: for weights that do not say what they belong to: names of choices in `conf/model` and
            `conf/backbone`, such as `"baseline"` and `"osnet_x0_25"`, or such groups as mappings.
        image_size: (height, width) of the network's input in pixels, where it shall not be what the source says.
        device: `"auto"` (a GPU if there is one), `"cpu"`, `"gpu"`, or a torch device.
        classifiers: keep the classifiers of the training identities, for `Embedder.maps(images, "class")`.

    Raises:
        CheckpointError: no such source; weights that can't be read safely, or whose architecture is not recognised.
        ConfigError: an argument that can't be used or that the source settles itself.
    """
    return open_embedder(source, Wanted(model, backbone, image_size, classifiers=classifiers), device=device)


def open_embedder(
    source: str | Path, wanted: Wanted, *, device: str | torch.device = "auto", local_rank: int = 0
) -> Embedder:
    """`load` with everything that can be set; `local_rank` chooses among several GPUs."""
    place = find_device(device, local_rank)
    embedder = _opened(str(source), wanted)
    embedder.network.eval().requires_grad_(False)
    embedder.network.to(memory_format=torch.channels_last)  # faster on CPUs, no slower elsewhere
    return embedder.to(place)


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
        raise ConfigError(f"accelerator={device} (device= in Python): PyTorch finds no GPU here; use auto or cpu")
    if device in ("auto", "gpu", "cuda"):
        return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"accelerator={device} (device= in Python): choose one of auto, cpu, gpu, or a device such as cuda:1"
        ) from None
    if place.type == "cuda" and (place.index or 0) >= gpus:
        raise ConfigError(f"accelerator={device} (device= in Python): PyTorch finds {gpus} GPUs here; use auto or cpu")
    return place


def _opened(source: str, wanted: Wanted) -> Embedder:
    scheme, _, name = source.partition(":")
    if scheme in SCHEMES and name:
        return _pretrained(source, scheme, name, wanted)
    path = _place(source)
    if path.is_dir() and is_saved(path):
        return _from_folder(path, source, wanted)
    if path.is_dir() and timm_weights_in(path) is None:
        raise CheckpointError(
            f"{source}: a folder without bdbnet.json, so none that Embedder.save wrote. Give a file in it, such as last.ckpt"
        )
    require_source(source)
    path = weights_of(source) or path
    content = read_checkpoint(path)
    saved = content.get("bdbnet") if isinstance(content, dict) else None
    if saved is not None:
        return _from_checkpoint(path, source, saved, wanted)
    return _from_weights(path, source, wanted)


def weights_of(source: str) -> Path | None:
    """The file that holds a source's weights; None for a pretrained network that is known by its name."""
    path = _place(source)
    if path.is_dir():
        return read_saved(path)[1] if is_saved(path) else timm_weights_in(path)
    return path if path.exists() else None


def _place(source: str) -> Path:
    """The file or folder of a source; a network of the zoo or of a hub is downloaded if it is not here yet."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.startswith(f"{HUB}:"):
        return hub.downloaded(source)
    return zoo_path(source) if source in ENTRIES else path


def require_source(source: str) -> None:
    """Raise CheckpointError where a source is neither a file or folder nor the name of a pretrained network."""
    if not is_named(source) and not Path(source).expanduser().exists():
        raise CheckpointError(no_source(source))


def training_of(source: str) -> dict[str, Any] | None:
    """The configuration of a network's training, as a checkpoint or a saved folder says; None where the source does not."""
    path = _place(source)
    if path.is_dir() and is_saved(path):
        trained = read_saved(path)[0]["trained_with"]
        return None if trained is None else with_todays_names(trained)
    content = read_checkpoint(path) if path.is_file() else None
    saved = content.get("bdbnet") if isinstance(content, dict) else None
    return None if saved is None else trained_with(saved, source)


class _TrainedWith(RunSettings):
    """The settings of a training, of which the network's groups are needed."""

    model: Mapping[str, Any]
    backbone: Mapping[str, Any]


class _Entry(TypedDict):
    """What `bdbnet.train` says of itself in a checkpoint."""

    config: Annotated[Mapping[str, Any], Holds(Plain)]


def trained_with(saved: Any, source: str) -> dict[str, Any]:
    """The configuration in a checkpoint's entry `bdbnet`.  Raises CheckpointError, which names the key, where it is not one
    that `bdbnet.train` wrote."""
    try:
        config = with_todays_names(checked(saved, _Entry, "bdbnet")["config"])
        checked(config, _TrainedWith, "bdbnet.config")
    except UnfitError as error:
        raise CheckpointError(
            f"{source}: damaged, its entry {error}. Copy the file again, or give its weights as "
            "torch.save(model.state_dict(), path) writes them"
        ) from error
    return config


def from_file(parts: Mapping[str, Any], source: str) -> DictConfig:
    """Settings that a file says, as a configuration.  Raises CheckpointError for interpolations, which files do not have."""
    if "${" in json.dumps(parts, default=str):
        raise CheckpointError(
            f"{source}: refused, its settings hold an interpolation (${{...}}), which no file of ours has"
        )
    return OmegaConf.create(dict(parts))


def _refuse_architecture(source: str, wanted: Wanted) -> None:
    given = [name for name in ("model", "backbone") if getattr(wanted, name) is not None]
    if given:
        raise ConfigError(f"{' and '.join(f'{name}=' for name in given)}: leave out, {source} knows its own network")


def _from_checkpoint(path: Path, source: str, saved: Mapping[str, Any], wanted: Wanted) -> Embedder:
    training = trained_with(saved, source)
    config, network = _known_network({name: training[name] for name in PARTS if name in training}, path, source, wanted)
    dataset, evaluation = training.get("dataset") or {}, training.get("evaluation") or {}
    size = wanted.image_size or dataset.get("test_size") or dataset.get("image_size") or wanted.fallback_size
    padded = bool(dataset.get("pad_test")) if wanted.pad_to_square is None else wanted.pad_to_square
    return Embedder(
        network,
        _preprocessing(size, padded, _margin(wanted)),
        wanted.settings,
        distance=wanted.distance or evaluation.get("distance", "euclidean"),
        origin=_origin_beside(path, Origin(source, _parts(config), training)),
    )


def _origin_beside(checkpoint: Path, origin: Origin) -> Origin:
    """The origin with metrics, protocol and epochs that the record of a training says of its own last.ckpt or best.ckpt."""
    try:
        result = read_result(checkpoint.parent / "result.json")
    except (ResultError, OSError):
        return origin
    if result.kind != "train":
        return origin
    protocol = result.protocol.record()
    if checkpoint.name == "last.ckpt" and result.checkpoint == "last":
        provenance = None if result.epochs is None else {"epochs": result.epochs}
        return replace(origin, metrics=result.metrics, protocol=protocol, provenance=provenance)
    if checkpoint.name == "best.ckpt" and (best := result.best) is not None:
        protocol["note"] = best["note"]
        return replace(origin, metrics=best["metrics"], protocol=protocol, provenance={"epochs": best["epoch"]})
    return origin


def _known_network(
    parts: Mapping[str, Any], weights: Path, source: str, wanted: Wanted
) -> tuple[DictConfig, EmbeddingNetwork]:
    """The network that a file says it holds: of ours alone, unless the user typed what a plugin's is."""
    config = from_file(parts, source)
    typed = wanted.typed and wanted.model is not None and wanted.backbone is not None
    if typed and foreign_targets(dict(parts)):
        # The drop layer has no part in an embedding.
        config.model, config.backbone = _group("model", wanted.model), _group("backbone", wanted.backbone)
        config.dropping = {"_target_": IDENTITY}
    else:
        _refuse_architecture(source, wanted)
        typed = False
    if "dropping" not in config:
        config.dropping = {"_target_": IDENTITY}
    config.backbone.weights = "none"
    return config, _built(config, weights, source, ours_only=not typed, classifiers=wanted.classifiers)


def _margin(wanted: Wanted) -> float | None:
    return 2.0 if wanted.decode_margin == "source" else wanted.decode_margin


def _from_weights(path: Path, source: str, wanted: Wanted) -> Embedder:
    architecture = None
    if wanted.model is not None and wanted.backbone is not None:
        model, backbone = _group("model", wanted.model), _group("backbone", wanted.backbone)
        ours_only = not wanted.typed
    else:
        if (wanted.model is not None and _timm_name(wanted) is None) or wanted.backbone is not None:
            other = "backbone" if wanted.backbone is None else "model"
            raise ConfigError(f"{source}: give {other}= too, for example model=baseline backbone=osnet_x0_25")
        architecture = recognised(path, source, wanted)
        model, backbone = architecture.model, architecture.backbone
        ours_only = True
    preprocessing = _preprocessing_of(architecture, source, wanted)
    parts = {"model": model, "backbone": {**backbone, "weights": "none"}, "dropping": {"_target_": IDENTITY}}
    config = OmegaConf.create(parts) if wanted.typed else from_file(parts, source)
    network = _built(config, path, source, ours_only=ours_only, classifiers=wanted.classifiers)
    format = architecture and architecture.format
    return Embedder(
        network,
        preprocessing,
        wanted.settings,
        distance=wanted.distance or (format.distance if format else "euclidean"),
        origin=Origin(source, _parts(config, but="dropping"), provenance=_provenance(source, architecture)),
    )


def _provenance(source: str, architecture: Architecture | None) -> dict[str, Any] | None:
    """What a file and the zoo say of weights, for `Origin`."""
    known: dict[str, Any] = {}
    if architecture is not None and (format := architecture.format) is not None:
        known = {"program": format.program, "assumed": list(format.assumed)}
    if (entry := ENTRIES.get(source)) is not None:
        known |= {"trained_on": entry.trained_on, "terms": entry.terms, "published": dict(entry.published)}
    return known or None


def _timm_name(wanted: Wanted) -> str | None:
    """NAME, where the user typed `model=timm:NAME`."""
    scheme, _, name = str(wanted.model).partition(":")
    return name if scheme == "timm" and name else None


def recognised(path: Path, source: str, wanted: Wanted) -> Architecture:
    """The architecture of a file of weights: timm's model that the user or a card beside it names, or as its keys say.

    Raises:
        CheckpointError: none is recognised.
    """
    state = read_state_dict(path)
    try:
        found = timm_format(path, state, _timm_name(wanted))
    except ValueError as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{source}: {error}") from error
    if found is None:
        return recognise(state, source)
    return Architecture(found.model, found.backbone, found.preprocessing["image_size"], found)


def _preprocessing_of(architecture: Architecture | None, source: str, wanted: Wanted) -> Preprocessing:
    """What the caller wants, else what the authors of the program that wrote the file do, else the dataset's size."""
    format = architecture and architecture.format
    theirs = {} if format is None else dict(format.preprocessing)
    size = wanted.image_size or theirs.pop("image_size", None) or (architecture and architecture.image_size)
    size = size or wanted.fallback_size
    if size is None:
        raise ConfigError(
            f"image_size= is missing: {source} is a file of bare weights, which do not say for which images they are. Give "
            "image_size=[height,width] in pixels, such as image_size=[256,128]"
        )
    theirs.pop("image_size", None)
    padded = theirs.pop("pad_to_square", False) if wanted.pad_to_square is None else wanted.pad_to_square
    if format is not None and wanted.image_size is None:
        for said in format.uncertain:
            warnings.warn(f"{source}: {said}", stacklevel=2)
    return replace(_preprocessing(size, bool(padded), _margin(wanted)), **theirs)


def _from_folder(folder: Path, source: str, wanted: Wanted) -> Embedder:
    record, weights = read_saved(folder)
    check_weights(record, weights)
    _, network = _known_network(record["network"], weights, source, wanted)
    preprocessing: Preprocessing = record["preprocessing"]
    changes: dict[str, Any] = {} if wanted.image_size is None else {"image_size": _size(wanted.image_size)}
    if wanted.pad_to_square is not None:
        changes["pad_to_square"] = wanted.pad_to_square
    if wanted.decode_margin != "source":
        changes["decode_margin"] = wanted.decode_margin
    try:
        saved = EmbeddingSettings(**record["settings"])
    except (ConfigError, TypeError) as error:  # TypeError: a setting that there is not
        raise CheckpointError(f"{source}: its settings can't be used ({error}): save it again") from error
    if wanted.settings is not None and wanted.settings != saved:
        apart = [name for name, value in asdict(saved).items() if value != getattr(wanted.settings, name)]
        shown = ", ".join(f"{name}={getattr(saved, name)}" for name in apart)
        warnings.warn(f"{source} was saved with {shown}; the command's own settings are used", stacklevel=2)
    threshold = record["threshold"]
    if threshold is not None and record["calibration"] is None:  # which would know what it holds for
        distance, settings = wanted.distance or record["distance"], wanted.settings or saved
        if changes or distance != record["distance"] or settings != saved:
            warnings.warn(f"{source}: its threshold {threshold:g} is for other settings and is left out", stacklevel=2)
            threshold = None
    return Embedder(
        network,
        replace(preprocessing, **changes),
        wanted.settings or saved,
        distance=wanted.distance or record["distance"],
        threshold=threshold,
        calibration=record["calibration"],
        origin=Origin(
            source,
            record["network"],
            record["trained_with"],
            record["metrics"],
            record["protocol"],
            record.get("provenance"),
        ),
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
    preprocessing = Preprocessing(pad_to_square=bool(wanted.pad_to_square), decode_margin=_margin(wanted), **made_for)
    return Embedder(
        network, preprocessing, wanted.settings, distance=wanted.distance or "cosine", origin=Origin(source)
    )


def _built(config: DictConfig, weights: Path, source: str, *, ours_only: bool, classifiers: bool) -> EmbeddingNetwork:
    known = training_identities(weights) if classifiers else 0
    try:
        network, _ = build_network(config, num_classes=known, ours_only=ours_only)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except Exception as error:  # arguments from a damaged file can fail anywhere in a constructor
        if is_ours(error) or not ours_only:
            raise
        raise CheckpointError(
            f"{source}: damaged, its settings build no network ({type(error).__name__}: {error}). Copy the file again"
        ) from error
    load_network(network, weights, classifiers="keep" if known else "drop")
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
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Iterable) else ()
    if len(sides) != 2 or not all(is_whole(side, 1) for side in sides):
        raise ConfigError(f"image_size={size}: give [height,width] in pixels")
    return sides


def _group(group: str, choice: Group) -> dict[str, Any]:
    """A group of the configuration by the name of one of its choices, or as it is."""
    if isinstance(choice, DictConfig):
        return plain(choice)
    if isinstance(choice, Mapping):
        return dict(choice)
    file = config_dir() / group / f"{choice}.yaml"
    if isinstance(choice, str) and file.is_file():
        return plain(cast(DictConfig, OmegaConf.load(file)))
    if isinstance(choice, str) and (registered := plugins.choice(group, choice)) is not None:
        return registered
    there = ", ".join(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))
    raise ConfigError(
        f"{group}={choice}: choose one of {there}, or give the group as a mapping. The name of a plugin is known once "
        'bdbnet.plugins.load(["package"]) has read it'
    )


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
