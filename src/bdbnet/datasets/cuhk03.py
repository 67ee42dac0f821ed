"""CUHK03 under its new protocol: image files, or images extracted from the authors' file on first use."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from bdbnet.datasets.catalogue import PUBLISHED_COUNTS
from bdbnet.datasets.layout import (
    build_manifest,
    find_base,
    how_to_prepare,
    is_there,
    list_folder,
    nearest_base,
    whole_folder,
)
from bdbnet.datasets.manifest import DatasetError, Manifest, Role
from bdbnet.datasets.person_reid import FOLDERS, FileNames, Row, read_folders

KINDS = {"cuhk03_detect": "detected", "cuhk03_label": "labeled"}
_SIBLINGS = {"cuhk03_detect": "cuhk03_label", "cuhk03_label": "cuhk03_detect"}
# identity, camera, number
_PRECUT_NAMES = FileNames(re.compile(r"(\d{4})_c([12])_\d+", re.IGNORECASE), "0003_c1_1.png")
IMAGES_FILE = "cuhk-03.mat"
_PARTS: dict[Role, str] = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
_FIELDS = ("filelist", "labels", "camId", *_PARTS.values())
# camera pair, person, view, image
CUT_NAME = re.compile(r"(\d)_(\d{3,4})_([12])_(\d\d)\.png", re.ASCII)

logger = logging.getLogger(__name__)


def read_cuhk03_detect(root: Path, *, check_counts: bool = True) -> Manifest:
    """CUHK03 with detected boxes under the new protocol (Li et al., "DeepReID: Deep Filter Pairing Neural Network for
    Person Re-identification", CVPR 2014; Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding",
    CVPR 2017): 767 people for training, 700 for testing.

    `root`, or one folder in it, holds either the pre-cut images (CUHK03-NP), in `detected/bounding_box_train`,
    `detected/query` and `detected/bounding_box_test`, or `cuhk03_new_protocol_config_detected.mat` next to `cuhk-03.mat`
    (or `cuhk03_release/cuhk-03.mat`).  From the latter all images are extracted once, into `images_detected` next to the
    index; if that folder exists, `cuhk-03.mat` is not needed.
    `check_counts` warns (CountWarning) where the number of images, identities or cameras is not the published one.
    Raises DatasetError for missing, incomplete, damaged or mixed-up files, and if the images can't be written.
    """
    return _read("cuhk03_detect", Path(root), check_counts)


def read_cuhk03_label(root: Path, *, check_counts: bool = True) -> Manifest:
    """CUHK03 with hand-drawn boxes: as `read_cuhk03_detect`, with `labeled` in place of `detected` in all names."""
    return _read("cuhk03_label", Path(root), check_counts)


def mistaken_kind(manifest: Manifest) -> str | None:
    """What to do if `manifest` was read as one version of CUHK03 and has the published counts of the other."""
    sibling = _SIBLINGS.get(manifest.name)
    if sibling is None or manifest.differences(PUBLISHED_COUNTS[sibling]):
        return None
    return f"the counts are those of the {KINDS[sibling]} version: use dataset={sibling}"


def _read(name: str, root: Path, check_counts: bool) -> Manifest:
    kind = KINDS[name]
    folders = {f"{kind}/{folder}": role for folder, role in FOLDERS.items()}
    base, held = nearest_base(name, root, tuple(folders))
    if len(held) < len(folders):
        index = f"cuhk03_new_protocol_config_{kind}.mat"
        place, found = nearest_base(name, root, [index])
        if found:
            rows = _cut_rows(name, place, place / index)
            return build_manifest(name, place, rows, check_counts=check_counts, explain=mistaken_kind)
        if not held:
            _refuse_without_index(name, root, index)
        base = find_base(name, root, tuple(folders))  # raises an error that names what is missing
    rows = read_folders(name, base, folders, _PRECUT_NAMES)
    return build_manifest(name, base, rows, check_counts=check_counts, explain=mistaken_kind)


def _refuse_without_index(name: str, root: Path, index: str) -> None:
    """Raise DatasetError if `root` holds the images, extracted or not, but not the index with their splits."""
    for wanted in (f"cuhk03_release/{IMAGES_FILE}", IMAGES_FILE, f"images_{KINDS[name]}"):
        place, found = nearest_base(name, root, [wanted])
        if found:
            raise DatasetError(
                f"{name}: {place} holds {wanted} but not {index}. Put this index of the new protocol (its authors offer it "
                f"as part of their code for re-ranking) into {place}.\n{how_to_prepare(name, root)}"
            )


def _cut_rows(name: str, base: Path, index: Path) -> list[Row]:
    """The rows of the authors' images, which are extracted first if they are not there yet."""
    rows = _read_index(name, index)
    files = [row[0] for row in rows]
    folder = base / f"images_{KINDS[name]}"
    if not folder.is_dir():
        places = (base / IMAGES_FILE, base / "cuhk03_release" / IMAGES_FILE)
        source = next((place for place in places if is_there(place)), None)
        if source is None:
            raise DatasetError(
                f"{name}: {base} holds {index.name} but neither {folder.name} nor {IMAGES_FILE} (nor cuhk03_release/"
                f"{IMAGES_FILE}).\n{how_to_prepare(name, base)}"
            )
        cut_images(name, KINDS[name], source, folder, files)
    there = list_folder(folder)
    missing = [file for file in files if file not in there]
    if missing:
        raise DatasetError(
            f"{name}: {folder} lacks {len(missing):,} of the {len(files):,} images in {index.name}, the first is "
            f"{missing[0]}. Delete this folder to extract the images again from {IMAGES_FILE}."
        )
    return [(f"{folder.name}/{file}", label, camera, split) for file, label, camera, split in rows]


def _read_index(name: str, file: Path) -> list[Row]:
    """File name, label, camera and split of every image in the new protocol's index."""
    try:
        content = loadmat(file)
    except Exception as error:  # SciPy raises exceptions of many kinds on damaged content
        _refuse_index(name, file, f"can't be read as a MATLAB file of version 4 to 7.2 ({error})")
    missing = [field for field in _FIELDS if field not in content]
    if missing:
        held = ", ".join(field for field in content if not field.startswith("__")) or "nothing"
        _refuse_index(name, file, f"lacks the field(s) {', '.join(missing)} of the new protocol, it holds {held}")
    try:
        files = [str(cell.item()) for cell in content["filelist"].ravel()]
        labels, cameras = ([int(number) for number in content[field].ravel()] for field in ("labels", "camId"))
        parts = {role: [int(number) for number in content[field].ravel()] for role, field in _PARTS.items()}
    except (AttributeError, TypeError, ValueError) as error:
        _refuse_index(name, file, f"has fields {', '.join(_FIELDS)} of another form ({error})")
    _check_index(name, file, files, labels, cameras, parts)
    return [(files[i - 1], labels[i - 1], cameras[i - 1], role) for role, numbers in parts.items() for i in numbers]


def _check_index(
    name: str, file: Path, files: list[str], labels: list[int], cameras: list[int], parts: dict[Role, list[int]]
) -> None:
    sibling = _SIBLINGS[name]
    if all(len(parts[role]) == counts.images for role, counts in PUBLISHED_COUNTS[sibling].items()):
        sizes = ", ".join(f"{len(numbers):,} in {_PARTS[role]}" for role, numbers in parts.items())
        _refuse_index(
            name, file, f"is the index of the {KINDS[sibling]} version ({sizes}), which dataset={sibling} reads"
        )
    if not len(files) == len(labels) == len(cameras):
        sizes = f"{len(files):,}, {len(labels):,} and {len(cameras):,}"
        _refuse_index(name, file, f"has fields filelist, labels and camId of different lengths ({sizes})")
    wrong = next((entry for entry in files if not CUT_NAME.fullmatch(entry)), None)
    if wrong is not None:
        _refuse_index(name, file, f"has {wrong!r} in its field filelist, where a name looks like 1_001_1_01.png")
    for role, numbers in parts.items():
        outside = next((number for number in numbers if not 1 <= number <= len(files)), None)
        if outside is not None:
            _refuse_index(name, file, f"has {outside} in its field {_PARTS[role]}, but {len(files):,} images")


def _refuse_index(name: str, file: Path, problem: str) -> NoReturn:
    raise DatasetError(f"{file} {problem}. Put the new protocol's index for the {KINDS[name]} images in its place.")


def cut_images(name: str, kind: str, source: Path, folder: Path, files: Sequence[str]) -> None:
    """Write the images as PNG into `folder`, which is complete or absent.  Raises DatasetError for a source that can't be read,
    or a folder that can't be written."""
    logger.info("cutting %d images of %s from %s into %s (once)", len(files), name, source, folder)
    try:
        with whole_folder(folder) as temporary:
            images = _stored_images(source, kind, files)
            for file, image in tqdm(images, f"cutting {name}", len(files), unit="image", disable=None):
                Image.fromarray(image).save(temporary / file)
    except OSError as error:
        raise DatasetError(
            f"{name}: can't write the images of {source} into {folder}: {error.strerror or error}. Free or make writable "
            f"{folder.parent}, or copy {IMAGES_FILE} and the index to another folder and set dataset.root to it."
        ) from error


def _stored_images(source: Path, kind: str, files: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels, (height, width, 3) uint8, of each listed image in the authors' MATLAB 7.3 file."""
    try:
        with h5py.File(source, "r") as content:
            # MATLAB stores columns first: pairs are (1, 5), the images of a pair (10, people), an image (3, width, height).
            pairs = [content[pair][()] for pair in content[kind][()].ravel()]
            for file in files:
                yield file, _stored_image(content, pairs, source, file)
    except DatasetError:
        raise
    except Exception as error:  # h5py raises exceptions of many kinds on damaged content
        raise DatasetError(
            f"{source} can't be read as the MATLAB 7.3 (HDF5) file of CUHK03 with the field {kind} ({error}). Extract the "
            "authors' archive again."
        ) from error


def _stored_image(content: h5py.File, pairs: list[Any], source: Path, file: str) -> np.ndarray:
    match = CUT_NAME.fullmatch(file)
    assert match is not None
    pair, person, number = int(match[1]), int(match[2]), int(match[4])
    if pair <= len(pairs) and number <= pairs[pair - 1].shape[0] and person <= pairs[pair - 1].shape[1]:
        image = content[pairs[pair - 1][number - 1, person - 1]][()]
        # An empty cell is stored as its size, (0, 0).
        if image.ndim == 3:
            return np.ascontiguousarray(image.transpose(2, 1, 0))
    raise DatasetError(
        f"{source} lacks the image {file} (camera pair {pair}, person {person}, image {number}), which the index lists. "
        "Extract the authors' archive again."
    )
