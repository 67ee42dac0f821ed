"""The further data sets of a union: read, and of one kind with the first one."""

from typing import NamedTuple

from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.datasets.union import TrainingSets, names_apart
from bdbnet.loading.entries import dataset_of
from bdbnet.loading.from_config import build_manifest, is_reid, read_manifest, settle_protocol

#: Settings of training images, of which a union has one value.
_OF_IMAGES = ("image_size", "resize", "pad_train")


class Member(NamedTuple):
    """A further data set of a union: the training's settings with this set as theirs, its content, and what it is called."""

    config: DictConfig
    manifest: Manifest
    name: str

    @property
    def is_tested(self) -> bool:
        """Whether it has a test part."""
        return bool((self.manifest.table["split"] != "train").any())


def read_members(config: DictConfig, first: Manifest) -> list[Member]:
    """The data sets that ``config.union`` lists, in its order.

    Args:
        config: of the training, whose own data set is the first of the union.
        first: content of that.

    Raises:
        ConfigError: an entry that names no data set, or one of another kind (re-ID and retrieval) or with other sizes of
            training images than the first.
        DatasetError: a data set that can't be used.
    """
    read = []
    for entry in config.union:
        own = config.copy()
        own.dataset = dataset_of(entry, str(config.data_root), "dataset")
        manifest = read_manifest(own.dataset)
        if (manifest.table["split"] != "train").any():
            manifest = build_manifest(own)
        else:
            settle_protocol(own.dataset, manifest)
        _check_kind(config, first.name, own, manifest.name)
        read.append((own, manifest))
    names = names_apart([first.name, *(manifest.name for _, manifest in read)])[1:]
    return [Member(own, manifest, name) for (own, manifest), name in zip(read, names)]


def training_sets(first: Manifest, members: list[Member]) -> TrainingSets:
    """What is trained on.  Raises DatasetError where two of the sets have something in common."""
    if not members:
        return TrainingSets((first,))
    return TrainingSets((first, *(member.manifest for member in members)))


def _check_kind(config: DictConfig, name: str, own: DictConfig, other: str) -> None:
    if is_reid(config) != is_reid(own):
        raise ConfigError(
            f"dataset=[...]: {name} has dataset.protocol={config.dataset.protocol} and {other} {own.dataset.protocol}: a union is "
            "of re-ID sets or of retrieval sets. Leave one of the two out"
        )
    for key in _OF_IMAGES:
        mine, theirs = config.dataset.get(key), own.dataset.get(key)
        if mine != theirs:
            shown = str(mine).replace(" ", "").replace("None", "null")
            raise ConfigError(
                f"dataset=[...]: {name} has dataset.{key}={mine} and {other} {theirs}, but a batch has one: write "
                f"dataset.{key}={shown} beside the list, where it holds for all its sets"
            )
