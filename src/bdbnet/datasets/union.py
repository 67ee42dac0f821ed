"""`TrainingSets`: the training images of one data set, or of several as one: their union."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdbnet.datasets.manifest import BOX_COLUMNS, COLUMNS, DatasetError, Manifest

#: Data sets that are made of the same people or vehicles: their identities can't be kept apart.
SAME_IDENTITIES = (
    frozenset({"market1501", "market1501_500k", "market1501_multi_query"}),
    frozenset({"dukemtmc_reid", "occluded_duke"}),
    frozenset({"cuhk03_detect", "cuhk03_label", "cuhk03_detect_old", "cuhk03_label_old"}),
    frozenset({"msmt17_v1", "msmt17_v2"}),
    frozenset({"vehicleid_small", "vehicleid_medium", "vehicleid_large"}),
    frozenset({"veri_wild_small", "veri_wild_medium", "veri_wild_large"}),
)


@dataclass(frozen=True, eq=False)
class TrainingSets:
    """The training images of one data set or of several.

    Several are one training set without a common identity or camera: labels and cameras of each set follow those of the set
    before it, and the name of an identity begins with the name of its set (``msmt17_v2:0001``). Each set keeps its folder.
    The order of the sets is part of the content.

    Attributes:
        members: the data sets, whole, in the order in which they were named.
        names: what each is called, see `names_apart`; empty: their own names.

    Raises:
        DatasetError: of several, one without training images, one twice, or an image or identity that two have in common.
    """

    members: tuple[Manifest, ...]
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", self.names or names_apart(member.name for member in self.members))
        if len(self.members) > 1:
            for member in self.members:
                member.require("train")
            _check_apart(self.names, self.members)

    @property
    def name(self) -> str:
        """The names of the sets, joined: ``market1501+msmt17_v2``."""
        return "+".join(self.names)

    @cached_property
    def parts(self) -> tuple[Manifest, ...]:
        """The training rows of each set."""
        return tuple(member.subset("train") for member in self.members)

    @cached_property
    def sets(self) -> np.ndarray:
        """Number of the set of every training row, from 0: (N,) int64."""
        return np.repeat(np.arange(len(self.parts)), [len(part.table) for part in self.parts])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the sets' fingerprints in their order; of one set, its own."""
        if len(self.members) == 1:
            return self.members[0].fingerprint
        return hashlib.sha256("\n".join(member.fingerprint for member in self.members).encode()).hexdigest()

    @cached_property
    def paths(self) -> list[str]:
        """Absolute paths of all images, those for testing too."""
        return [path for member in self.members for path in member.paths]

    @cached_property
    def train(self) -> Manifest:
        """All training rows, the sets one after the other. Where some sets have boxes, whole images have a box of -1s."""
        if len(self.members) == 1:
            return self.parts[0]
        root = os.path.commonpath([part.root for part in self.parts])
        boxes = [BOX_COLUMNS for part in self.parts if BOX_COLUMNS[0] in part.table.columns][:1]
        tables: list[pd.DataFrame] = []
        label_names: dict[int, str] = {}
        labels = cameras = 0
        for name, part in zip(self.names, self.parts):
            table = part.table.reindex(
                columns=[*COLUMNS, *(column for group in boxes for column in group)], fill_value=-1
            )
            below = os.path.relpath(part.root, root)
            if below != ".":
                table["path"] = below + "/" + table["path"]
            label_names |= {labels + int(own): f"{name}:{part.name_of(own)}" for own in table["label"].unique()}
            table["label"] += labels
            table.loc[table["camera"] >= 0, "camera"] += cameras
            labels = max(labels, int(table["label"].max()) + 1)
            cameras = max(cameras, int(table["camera"].max()) + 1)
            tables.append(table)
        # Not checked again: the rows were, and whole images beside boxes would be refused.
        return Manifest._trusted(pd.concat(tables, ignore_index=True), Path(root), self.name, label_names)

    def record(self) -> list[dict[str, Any]] | None:
        """For ``result.json``: name, fingerprint and size of each training part; None of a single set."""
        if len(self.members) == 1:
            return None
        return [
            {
                "name": name,
                "fingerprint": member.fingerprint,
                "identities": int(part.table["label"].nunique()),
                "images": len(part.table),
            }
            for name, member, part in zip(self.names, self.members, self.parts)
        ]


def names_apart(names: Iterable[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    """The same names, those that occur again with a number.

    >>> names_apart(["a", "b", "a", "a"]), names_apart(["a"], taken=["a"])
    (('a', 'b', 'a_2', 'a_3'), ('a_2',))
    """
    found, given = [], set(taken)
    for name in names:
        number, unique = 1, name
        while unique in given:
            number += 1
            unique = f"{name}_{number}"
        given.add(unique)
        found.append(unique)
    return tuple(found)


def require_different(names: Sequence[str], members: Sequence[Manifest], *, what: str = "the union") -> None:
    """Raise DatasetError where a data set is there twice: the same content, or files of the same folder.

    Args:
        names: what the sets are called.
        members: the sets.
        what: where they are together, for the message.
    """
    for (name, one), (other, two) in combinations(zip(names, members), 2):
        if one.fingerprint == two.fingerprint and _same_files(one, two):
            called = one.name if one.name == two.name else f"{name} and {other}"
            raise DatasetError(f"{called}: the same data set is in {what} twice; leave one of the two out")


def _same_files(one: Manifest, two: Manifest) -> bool:
    """Whether two sets of equal tables hold the same images: the first, middle and last file have the same bytes.

    Rendered sets of two seeds have equal tables and different images.
    """
    rows = {0, len(one.paths) // 2, len(one.paths) - 1}
    try:
        return all(Path(one.paths[row]).read_bytes() == Path(two.paths[row]).read_bytes() for row in rows)
    except OSError:  # whoever reads the images says so
        return one.root == two.root


def _check_apart(names: Sequence[str], members: Sequence[Manifest]) -> None:
    require_different(names, members)
    for one, other in combinations(members, 2):
        for group in SAME_IDENTITIES:
            if one.name != other.name and {one.name, other.name} <= group:
                raise DatasetError(
                    f"{one.name} and {other.name} are made of the same identities, which a union would take for different "
                    "ones: leave one of the two out"
                )
    files = [_files(member) for member in members]
    for (name, own), (name_of_other, theirs) in combinations(zip(names, files), 2):
        _check_images(name, own, name_of_other, theirs)
        _check_images(name_of_other, theirs, name, own)
        _check_folders(name, own, name_of_other, theirs)


def _files(manifest: Manifest) -> pd.DataFrame:
    """Real folder, file and box of every row, with its label's name and split."""
    paths = manifest.table["path"].str.rpartition("/")
    real: Mapping[str, str] = {
        folder: os.path.realpath(manifest.root / folder) for folder in paths[0].unique()
    }  # links are followed once for each folder
    found = pd.DataFrame({"folder": paths[0].map(real), "file": paths[2], "split": manifest.table["split"]})
    found["name"] = [manifest.name_of(label) for label in manifest.table["label"]]
    has_boxes = BOX_COLUMNS[0] in manifest.table.columns
    found["box"] = manifest.table[[*BOX_COLUMNS]].astype(str).agg(",".join, axis=1) if has_boxes else ""
    return found


def _check_images(name: str, one: pd.DataFrame, other: str, two: pd.DataFrame) -> None:
    """Refuse a training image of the one that the other has too, for training or for testing."""
    keys = ["folder", "file", "box"]
    both = one[one["split"] == "train"].merge(two, on=keys, suffixes=("", "_other"))
    if len(both):
        first = both.iloc[0]
        as_what = "training" if first["split_other"] == "train" else "test"
        raise DatasetError(
            f"{Path(first['folder']) / first['file']} is a training image of {name} and a {as_what} image of {other} "
            f"({len(both):,} images are): a union's sets have no image in common. Leave it out of one of the two"
        )


def _check_folders(name: str, one: pd.DataFrame, other: str, two: pd.DataFrame) -> None:
    """Refuse a folder of one identity from which both sets have images: these would be two identities."""
    mine, theirs = (_identity_folders(files) for files in (one, two))
    shared = mine.index.intersection(theirs.index)
    if len(shared):
        folder = shared[0]
        raise DatasetError(
            f"{folder} is the folder of identity {mine[folder]} in {name} and of {theirs[folder]} in {other} ({len(shared):,} "
            "folders are in both): one identity would be two. Make one table of the two sets (dataset=table "
            "'dataset.manifest=[a.csv,b.csv]' dataset.options.share_labels=true), or leave the folder out of one"
        )


def _identity_folders(files: pd.DataFrame) -> pd.Series:
    """Folder -> its identity, of the folders that hold images of one alone, where a set has several such folders."""
    folders = files.groupby("folder")["name"]
    alone = folders.first()[folders.nunique() == 1]
    return alone if len(alone) > 1 else alone.iloc[:0]
