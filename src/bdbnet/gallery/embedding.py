"""Embedders of galleries: from a command's settings, and from the stamp of a stored set of embeddings."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings
from bdbnet.evaluation.load import Group, Wanted, knows_its_network, open_embedder, settings_of
from bdbnet.gallery.store import EmbeddingStore, ModelStamp, StoreError, check_same_model
from bdbnet.loading import Preprocessing
from bdbnet.zoo_entries import ENTRIES


def build_embedder(config: DictConfig, *, local_rank: int = 0) -> Embedder:
    """The embedder of `config.checkpoint`, with the command's settings; `config.model` and `config.backbone` are for weights
    that do not say what they belong to.

    The size of the images is `config.image_size`, else that of the checkpoint's own test images, else the dataset's.

    Raises:
        ConfigError: a setting that can't be used or is missing; names the key.
        CheckpointError: see `bdbnet.load`.
    """
    dataset = config.get("dataset")
    padded = config.pad_to_square
    if padded is None and dataset is not None:
        padded = dataset.pad_test
    wanted = Wanted(
        model=config.get("model"),
        backbone=config.get("backbone"),
        image_size=config.image_size,
        pad_to_square=padded,
        decode_margin=config.loading.decode_margin,
        settings=settings_of(config.evaluation),
        fallback_size=None if dataset is None else dataset.test_size,
    )
    return open_embedder(config.checkpoint, wanted, device=config.accelerator, local_rank=local_rank)


def stamp_of(embedder: Embedder, folder: Path | None = None) -> ModelStamp:
    """What its embeddings are stamped with; in a folder that may be moved the weights are named from there."""
    source = embedder.origin.source
    name, place = (source, "") if folder is None else _portable(source, folder)
    preprocessing, settings = embedder.preprocessing, embedder.settings
    return ModelStamp(
        fingerprint=embedder.fingerprint,
        checkpoint=name,
        network=embedder.origin.network,
        dimensions=embedder.dimensions,
        image_size=preprocessing.image_size,
        pad_to_square=preprocessing.pad_to_square,
        decode_margin=preprocessing.decode_margin,
        precision=settings.precision,
        normalize=settings.normalize,
        flip=settings.flip,
        scales=settings.scales,
        preprocessing=preprocessing.unusual(),
        place=place,
        calibration=embedder.calibration,
        distance=cast(Any, embedder.distance_name),
    )


def _portable(source: str, folder: Path) -> tuple[str, str]:
    """The name of a source and the way to it from a folder, which hold on another machine too."""
    path = Path(source).expanduser()
    if not path.exists():  # the name of a pretrained network
        return source, ""
    place = ""
    with suppress(ValueError):  # another drive
        place = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()
    return Path(os.path.abspath(path)).name, place  # noqa: PTH100  (the name as typed: resolve() would follow a link)


def checkpoint_of(gallery: EmbeddingStore, typed: str | None = None) -> str:
    """The source of the network that made a gallery's embeddings: what the user typed, else where it was as seen from the
    gallery, else a file of its name in the gallery.

    Raises:
        ConfigError: it is at none of these places.
    """
    stamp = gallery.model
    source = stamp.checkpoint if typed is None else typed
    if source in ENTRIES or (":" in source and not Path(source).is_absolute()):  # the name of a pretrained network
        return source
    if typed is None and stamp.place:
        source = os.path.normpath(Path(os.path.realpath(gallery.folder)) / stamp.place)
    if Path(source).expanduser().exists():
        return source
    beside = gallery.folder / Path(stamp.checkpoint).name
    if typed is None and beside.exists():
        return str(beside)
    raise ConfigError(
        f"{source}: no such file, but the network in it made the embeddings of {gallery.folder} and has to "
        f"make those of the queries. Say where it is now: checkpoint=FILE ({stamp.shown})"
    )


def embedder_of(
    stamp: ModelStamp,
    *,
    checkpoint: str | Path | None = None,
    accelerator: str = "auto",
    model: Group = None,
    backbone: Group = None,
) -> Embedder:
    """The embedder that made the embeddings with this stamp, so that more images can be compared with them.

    Args:
        checkpoint: source of the weights, see `checkpoint_of`; None: the stamp's own.
        model, backbone: what the user typed, for a network of a plugin; a stamp builds networks of bdbnet alone.

    Raises:
        StoreError: the source now holds other weights.
        CheckpointError: the source is not there or can't be used.
    """
    source = str(stamp.checkpoint if checkpoint is None else checkpoint)
    own = {"image_size": stamp.image_size, "pad_to_square": stamp.pad_to_square, "decode_margin": stamp.decode_margin}
    try:
        preprocessing = Preprocessing.from_json({**stamp.preprocessing, **own})
        settings = EmbeddingSettings(stamp.precision, stamp.normalize, stamp.flip, stamp.scales)
    except (ValueError, TypeError) as error:
        raise StoreError(f"the stamp of the embeddings can't be used ({error}): embed the images again") from error
    # A file of bare weights does not say what it is of; a checkpoint, a saved folder or a name does.
    bare = Path(source).expanduser().is_file() and not knows_its_network(source)
    typed = model is not None and backbone is not None
    wanted = Wanted(
        model=model if typed or not bare else stamp.network.get("model"),
        backbone=backbone if typed or not bare else stamp.network.get("backbone"),
        typed=typed,
        image_size=stamp.image_size,
        pad_to_square=stamp.pad_to_square,
        decode_margin=stamp.decode_margin,
        settings=settings,
    )
    embedder = open_embedder(source, wanted, device=accelerator)
    embedder.preprocessing = preprocessing
    found = stamp_of(embedder)
    check_same_model(stamp, replace(found, checkpoint=source))
    return embedder
