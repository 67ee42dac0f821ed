"""Datasets of occluded and partial people in the layout of their authors: queries show a part, the gallery all of a person."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bdbnet.datasets.layout import build_manifest, find_base, find_layout, how_to_prepare, list_folder
from bdbnet.datasets.manifest import DatasetError, Manifest
from bdbnet.datasets.person_reid import DUKE_NAMES, FOLDERS, Row, image_files, read_folders, without_suffix

_IDENTITY = re.compile(r"(\d{1,6})(?:_.*)?", re.ASCII)
_WHOLE = "whole_body_images"
_RENAMED = ("query", "gallery")  # as copies of other projects have them
_PARTIAL_QUERIES = {"partial": "partial_body_images", "occluded": "occluded_body_images"}


def read_occluded_duke(root: Path, *, check_counts: bool = True) -> Manifest:
    """Occluded-DukeMTMC (Miao et al., "Pose-Guided Feature Alignment for Occluded Person Re-Identification", ICCV 2019).

    DukeMTMC-reID split anew, so that every query is occluded. `root`, or one folder in it, holds `bounding_box_train`, `query`
    and `bounding_box_test`, as the authors' script makes them from DukeMTMC-reID and their lists. Rows are sorted by file
    name within train, query, gallery. `check_counts` warns (CountWarning) where counts are not the published ones.
    Raises DatasetError for a missing, incomplete or wrong folder, and for an image whose name can't be parsed.
    """
    base = find_base("occluded_duke", Path(root), tuple(FOLDERS))
    return build_manifest(
        "occluded_duke", base, read_folders("occluded_duke", base, FOLDERS, DUKE_NAMES), check_counts=check_counts
    )


def read_occluded_reid(root: Path, *, check_counts: bool = True) -> Manifest:
    """Occluded-REID (Zhuo et al., "Occluded Person Re-identification", ICME 2018): 200 people, no training images.

    `root`, or one folder in it, holds `occluded_body_images` (queries) and `whole_body_images` (gallery), in each a folder for
    every person, such as `001/001_01.tif`; or `query` and `gallery`. Queries are of camera 1 and the gallery is of camera 2.
    Raises DatasetError for a missing or incomplete folder, and for a name that can't be parsed.
    """
    return _read_pair("occluded_reid", Path(root), [(_PARTIAL_QUERIES["occluded"], _WHOLE), _RENAMED], check_counts)


def read_partial_reid(root: Path, *, query: str = "partial", check_counts: bool = True) -> Manifest:
    """Partial-REID (Zheng et al., "Partial Person Re-identification", ICCV 2015): 60 people, no training images.

    `root`, or one folder in it, holds `whole_body_images` (gallery) and `partial_body_images` (queries: what is seen of the
    person, cut out) or, with `query="occluded"`, `occluded_body_images` (the uncut images). Names begin with the person:
    `001_001.jpg`. Queries are of camera 1 and the gallery is of camera 2.
    Raises DatasetError for a missing or incomplete folder, for a name that can't be parsed, and for another `query`.
    """
    if query not in _PARTIAL_QUERIES:
        raise DatasetError(f"dataset.options.query={query}: choose one of {', '.join(_PARTIAL_QUERIES)}")
    manifest = _read_pair("partial_reid", Path(root), [(_PARTIAL_QUERIES[query], _WHOLE)], check_counts)
    # Other queries are another test, so the name says which.
    return manifest if query == "partial" else replace(manifest, name=f"{manifest.name}_{query}")


def read_partial_ilids(root: Path, *, check_counts: bool = True) -> Manifest:
    """Partial-iLIDS (Zheng, Gong and Xiang, "Person Re-identification by Probabilistic Relative Distance Comparison", CVPR
    2011; its partial version: He et al., "Deep Spatial Feature Reconstruction for Partial Person Re-identification", CVPR 2018):
    119 people with one partial query and one whole image each, no training images.

    `root`, or one folder in it, holds `Probe` and `Gallery` (or `query` and `gallery`), with the person's number as name:
    `001.jpg`. Queries are of camera 1 and the gallery is of camera 2.
    Raises DatasetError for a missing or incomplete folder, and for a name that can't be parsed.
    """
    return _read_pair("partial_ilids", Path(root), [("Probe", "Gallery"), _RENAMED], check_counts)


def _read_pair(name: str, root: Path, layouts: Sequence[tuple[str, str]], check_counts: bool) -> Manifest:
    """The manifest of two folders, of queries and of gallery images, with or without a folder for each person."""
    base, (query, gallery) = find_layout(name, root, layouts)
    rows: list[Row] = []
    for camera, (folder, split) in enumerate(((query, "query"), (gallery, "gallery")), 1):
        found = _read_folder(base, folder, camera, split)
        if not found:
            raise DatasetError(f"{base / folder} holds no images, but {name} needs them.\n{how_to_prepare(name, base)}")
        rows += found
    return build_manifest(name, base, rows, check_counts=check_counts)


def _read_folder(base: Path, folder: str, camera: int, split: str) -> list[Row]:
    place = base / folder
    rows = [(f"{folder}/{file}", _identity(place, without_suffix(file)), camera, split) for file in image_files(place)]
    for entry, is_folder in sorted(list_folder(place).items()):
        if is_folder and not entry.startswith("."):
            files = image_files(place / entry)
            person = _identity(place, entry) if files else 0
            rows += [(f"{folder}/{entry}/{file}", person, camera, split) for file in files]
    return rows


def _identity(folder: Path, name: str) -> int:
    match = _IDENTITY.fullmatch(name)
    if match is None:
        raise DatasetError(
            f"{folder}: can't read the person's number from the name {name!r}; a name looks like 001 or 001_01. Remove or rename "
            "it, or extract the authors' archive again."
        )
    return int(match[1])
