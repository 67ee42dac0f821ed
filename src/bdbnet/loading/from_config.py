"""From a configuration to the dataset, its protocol and its batches."""

import warnings
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, instantiate, is_ours
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.datasets.inspection import match_advice, seen_once, seen_once_advice
from bdbnet.loading.transforms import transforms_for

if TYPE_CHECKING:
    from bdbnet.datasets.union import TrainingSets
    from bdbnet.loading.datamodule import ReIDDataModule

# What `dataset=table` leaves open follows from its protocol: the settings of section 4.1 and of section 4.2.1.
_REID: dict[str, Any] = {
    "image_size": [384, 128], "resize": None, "pad_train": False, "pad_test": False, "drop_ratio": [0.3, 1.0],
    "erasing": [],
}  # fmt: skip
_RETRIEVAL: dict[str, Any] = {
    "image_size": [224, 224], "resize": [256, 256], "pad_train": True, "pad_test": True, "drop_ratio": [0.5, 0.5],
    "erasing": [{"_target_": "bdbnet.loading.RandomErasing"}],
}  # fmt: skip


def read_manifest(dataset: DictConfig) -> Manifest:
    """The dataset that a `dataset` group names.  Raises DatasetError, and ConfigError where the group names no reader."""
    if OmegaConf.is_missing(dataset, "reader"):
        raise ConfigError("dataset.reader= is missing: give the dotted path of a function, such as mypkg.read_mine")
    options: Any = OmegaConf.to_container(dataset.options, resolve=True)
    reader = {} if dataset.get("reader") is None else {"reader": dataset.reader}
    return load_manifest(dataset.name, dataset.root, **reader, **options)


def build_manifest(config: DictConfig, *, trained: bool = False) -> Manifest:
    """The dataset that ``config.dataset`` names, with its protocol settled in ``config.dataset``, see `settle_protocol`.

    Warns of queries that can never be answered.  Raises DatasetError, or ConfigError where nothing could be evaluated.
    """
    manifest = read_manifest(config.dataset)
    manifest.require("query", "gallery")
    settle_protocol(config.dataset, manifest, trained=trained)
    gallery = manifest.subset("gallery").table["split"]
    if (gallery == "test").any() and not (gallery == "test").all():
        raise ConfigError(
            f"{manifest.name}: some gallery images have split test (query and gallery at once) and some gallery. Give either "
            "query and gallery, or test alone."
        )
    require_matches(manifest, manifest.name, by_camera=is_reid(config) and manifest.has_cameras)
    return manifest


def require_matches(
    manifest: Manifest, source: str, *, by_camera: bool, noun: str = "identity", error: type[Exception] = ConfigError
) -> None:
    """Warn of queries that can never be answered; raise `error` where no query can be."""
    queries = len(manifest.subset("query").table)
    if (unmatched := manifest.unmatched_queries(by_camera=by_camera)) == queries:
        raise error(
            f"{source}: none of the {queries} queries has a true match in the gallery (the same {noun}, in another "
            f"image{' and under another camera' if by_camera else ''}), so nothing can be evaluated. "
            f"{match_advice(manifest, by_camera=by_camera)}"
        )
    if unmatched:
        warnings.warn(
            f"{source}: {unmatched} queries have no true match in the gallery; they are left out of every metric",
            stacklevel=3,
        )


def settle_protocol(dataset: DictConfig, manifest: Manifest, *, trained: bool = False) -> None:
    """Replace ``protocol: auto`` by the one that the images allow, and settings left open by those of the protocol.

    Args:
        trained: it is for a network that is trained already. Where neither settings nor protocol pad test images, ``pad_test``
            stays null: the network's own word counts.

    Raises:
        ConfigError: a protocol that needs cameras for images without.
    """
    if dataset.protocol == "auto":
        dataset.protocol = "reid" if manifest.has_cameras else "retrieval"
    if dataset.protocol == "reid_multi_query" and not manifest.has_cameras:
        raise ConfigError("dataset.protocol=reid_multi_query: the images have no cameras to group queries by")
    if dataset.protocol == "reid_reassociation" and not manifest.has_cameras:
        raise ConfigError(
            "dataset.protocol=reid_reassociation: the images have no cameras, which are the numbers of their frames"
        )
    if dataset.protocol == "reid_multi_query" and (manifest.table["split"] == "test").any():
        raise ConfigError(
            f"dataset.protocol={dataset.protocol}: images of split test are queries and gallery at once; give both"
        )
    if dataset.protocol == "reid_single_shot" and len(alone := seen_once(manifest)):
        raise ConfigError(f"{manifest.name}: dataset.protocol=reid_single_shot: {seen_once_advice(manifest, alone)}.")
    preset = _RETRIEVAL if dataset.protocol == "retrieval" else _REID
    own_size = dataset.get("image_size") is not None
    for key, value in preset.items():
        if key == "pad_test" and trained and not value:
            continue
        # A size of the user's own is not cut out of the preset's larger one.
        if dataset.get(key) in (None, [None, None]) and not (key == "resize" and own_size):
            dataset[key] = value
    if dataset.get("test_size") is None:
        dataset.test_size = dataset.resize or dataset.image_size


def is_reid(config: DictConfig) -> bool:
    """Whether the dataset is evaluated by Rank-k and mAP (re-ID) rather than by Recall@K."""
    return str(config.dataset.protocol).startswith("reid")


def build_data(
    config: DictConfig,
    manifest: Manifest,
    *,
    test_size: Any = None,
    channels_last: bool = False,
    sets: "TrainingSets | None" = None,
) -> "ReIDDataModule":
    """Data module for ``manifest`` with the transforms of its protocol; ``sets`` are trained on, where it is one of several.

    ``test_size`` (evaluation alone) is the size of a checkpoint's test images, to which the training settings need not fit.

    Raises ConfigError for settings that do not fit each other or the data set.
    """
    # Here, so that who only reads a manifest need not wait for Lightning.
    from bdbnet.loading.datamodule import Reading, ReIDDataModule, Sampling

    dataset = config.dataset
    evaluation = test_size is not None
    augmentation = config.get("augmentation") or OmegaConf.create({"flip": 0.0, "erasing": []})
    sizes: dict[str, Any] = {
        "image_size": test_size if evaluation else dataset.image_size,
        "resize": None if evaluation else dataset.resize,
        "test_size": test_size if evaluation else dataset.test_size,
    }
    given: dict[str, Any] = {key: None if size is None else list(size) for key, size in sizes.items()}
    try:
        train, test = transforms_for(
            dataset.protocol,
            **given,
            flip=augmentation.flip,
            erasing=instantiate(augmentation.erasing),
            pad_train=dataset.pad_train,
            pad_test=dataset.pad_test,
        )
        sampling, reading = Sampling(**(config.get("sampler") or {})), Reading(**config.loading)
        return ReIDDataModule(
            manifest,
            train,
            test,
            sets=sets,
            sampling=sampling,
            reading=reading,
            seed=config.seed,
            channels_last=channels_last,
        )
    except (TypeError, ValueError) as error:
        if is_ours(error):
            raise
        raise ConfigError(f"dataset, augmentation, sampler or loading: {error}") from error
