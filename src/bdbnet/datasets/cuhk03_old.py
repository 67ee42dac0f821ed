"""CUHK03 under its first protocol: 20 splits, each of which tests 100 people by single-shot CMC."""

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bdbnet.datasets.cuhk03 import CUT_NAME, IMAGES_FILE, KINDS, cut_images
from bdbnet.datasets.layout import build_manifest, find_layout, list_folder
from bdbnet.datasets.manifest import DatasetError, Manifest
from bdbnet.datasets.person_reid import Row

_SPLITS = 20

logger = logging.getLogger(__name__)


def read_cuhk03_detect_old(root: Path, *, split: int = 1) -> Manifest:
    """CUHK03 with detected boxes under its first protocol (Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person
    Re-identification", CVPR 2014).

    `root`, or one folder in it, holds `cuhk-03.mat` or `cuhk03_release/cuhk-03.mat`, from which all images are extracted once, into
    `images_all_detected` beside it; the file is needed further on, for its splits. `split`, 1 to 20, tests its 100 people: view 1
    is the query, view 2 the gallery; all other people are for training, those of the authors' validation sets too. The
    camera is that of the pair and view, 1 to 10. Results are published as the mean of all splits, each under `reid_single_shot`.
    Raises DatasetError for a missing or damaged file, another `split`, and if the images can't be written.
    """
    return _read("cuhk03_detect", Path(root), split)


def read_cuhk03_label_old(root: Path, *, split: int = 1) -> Manifest:
    """CUHK03 with hand-drawn boxes under its first protocol: as `read_cuhk03_detect_old`, into `images_all_labeled`."""
    return _read("cuhk03_label", Path(root), split)


def _read(kind_name: str, root: Path, split: int) -> Manifest:
    name, kind = f"{kind_name}_old", KINDS[kind_name]
    if isinstance(split, bool) or not isinstance(split, int) or not 1 <= split <= _SPLITS:
        raise DatasetError(f"dataset.options.split={split}: choose one of 1 to {_SPLITS}")
    place, (file,) = find_layout(name, root, [(IMAGES_FILE,), (f"cuhk03_release/{IMAGES_FILE}",)])
    source = place / file
    base, folder = source.parent, source.parent / f"images_all_{kind}"
    files, tested = _content(source, kind, split)
    if not folder.is_dir():
        cut_images(name, kind, source, folder, files)
    there = list_folder(folder)
    if missing := [entry for entry in files if entry not in there]:
        raise DatasetError(
            f"{name}: {folder} lacks {len(missing):,} of the {len(files):,} images in {source.name}, the first is {missing[0]}. "
            "Delete this folder to extract the images again."
        )
    rows = sorted(
        (_row(folder.name, entry, tested) for entry in files),
        key=lambda row: ("train", "query", "gallery").index(row[3]),
    )
    return build_manifest(name, base, rows, check_counts=False)


def _row(folder: str, file: str, tested: set[tuple[int, int]]) -> Row:
    match = CUT_NAME.fullmatch(file)
    assert match is not None
    pair, person, view = int(match[1]), int(match[2]), int(match[3])
    split = "train" if (pair, person) not in tested else "query" if view == 1 else "gallery"
    return f"{folder}/{file}", 10_000 * pair + person, 2 * (pair - 1) + view, split


def _content(source: Path, kind: str, split: int) -> tuple[list[str], set[tuple[int, int]]]:
    """Names of all images of the authors' file, and camera pair and person of those that `split` tests."""
    try:
        with h5py.File(source, "r") as content:
            pairs = [content[pair][()] for pair in content[kind][()].ravel()]
            files = [file for pair, cells in enumerate(pairs, 1) for file in _names(content, pair, cells)]
            splits = content["testsets"][()].ravel()
            # MATLAB stores columns first: a split is (2, 100), camera pairs and people, both from 1.
            tested = {(int(pair), int(person)) for pair, person in content[splits[split - 1]][()].T}
    except Exception as error:  # h5py raises exceptions of many kinds on damaged content
        raise DatasetError(
            f"{source} can't be read as the MATLAB 7.3 (HDF5) file of CUHK03 with the fields {kind} and testsets ({error}). "
            "Extract the authors' archive again."
        ) from error
    people = {(int(file[0]), int(file.split("_")[1])) for file in files}
    if wrong := sorted(tested - people):
        pair, person = wrong[0]
        raise DatasetError(
            f"{source}: split {split} tests person {person} of camera pair {pair}, of whom it holds no image. Extract the authors' "
            "archive again."
        )
    return files, tested


def _names(content: h5py.File, pair: int, cells: Any) -> list[str]:
    """Names of the images of one camera pair, whose cells (10, people) hold an image each or, where there is none, a size."""
    return [
        f"{pair}_{person + 1:03d}_{1 if image < 5 else 2}_{image + 1:02d}.png"
        for person in range(cells.shape[1])
        for image in range(cells.shape[0])
        if np.ndim(content[cells[image, person]]) == 3
    ]
