"""Person re-identification datasets in the layout of their authors."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bdbnet.datasets.class_folders import warn_of_files
from bdbnet.datasets.images import image_suffixes
from bdbnet.datasets.layout import (
    build_manifest,
    find_base,
    how_to_prepare,
    is_there,
    list_folder,
    nearest_base,
    require_files,
)
from bdbnet.datasets.manifest import DatasetError, Manifest, Role

Row = tuple[str, int, int, str]
"""Path, label, camera and split of one image."""


class FileNames(NamedTuple):
    """Pattern of a dataset's file names without suffix: its first group is the identity, its second the camera."""

    pattern: re.Pattern[str]
    example: str


FOLDERS: dict[str, Role] = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}

# identity, camera, sequence, frame, box; some names of the original end with .jpg.jpg
_MARKET_NAMES = FileNames(re.compile(r"(-1|\d{4})_c([1-6])s\d+_\d+_\d+", re.IGNORECASE), "0002_c1s1_000451_03.jpg")
# identity, camera, frame
DUKE_NAMES = FileNames(re.compile(r"(\d{4})_c([1-8])_f\d+", re.IGNORECASE), "0001_c2_f0046182.jpg")
# Identity and camera in data of a user's own: any numbers, and anything after them.
OWN_NAMES = re.compile(r"(-1|\d{1,9})_c(\d{1,4})(?!\d).*", re.ASCII | re.DOTALL | re.IGNORECASE)
_COPY = re.compile(r" ?\(\d+\)$| - copy|_copy", re.IGNORECASE)
_DISTRACTOR_FOLDERS = ("distractors_500k", "images")
_DISTRACTOR_CAMERA = re.compile(r"_c([1-6])(?!\d)")
_MSMT17_LISTS: dict[str, Role] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
_MSMT17_FOLDERS = {1: ("train", "test"), 2: ("mask_train_v2", "mask_test_v2")}
# folder / identity, number, camera, time, ...; then the identity's number
_MSMT17_LINE = re.compile(
    r"([^\s/]+/[^\s/_]+_[^\s/_]+_(0[1-9]|1[0-5])_[^\s/]+\.jpg)\s+(\d{1,9})", re.IGNORECASE | re.ASCII
)


def read_market1501(root: Path, *, check_counts: bool = True, own_names: bool = False) -> Manifest:
    """Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

    `root` holds `bounding_box_train`, `query` and `bounding_box_test`, directly or in one folder below.
    Junk images (identity -1) are left out; distractors (identity 0) stay in the gallery.  Rows are sorted by
    file name within train, query, gallery.  `check_counts` warns (CountWarning) where the number of images,
    identities or cameras is not the published one.  `own_names` is for data of one's own in this naming: identities and
    cameras may be any numbers, with anything after them, and no counts are checked.
    Raises DatasetError for a missing, incomplete or wrong folder, and for an image whose name can't be parsed.
    """
    return _read_three_folders("market1501", Path(root), _MARKET_NAMES, check_counts, own_names)


def read_market1501_500k(root: Path, *, check_counts: bool = True) -> Manifest:
    """Market-1501 with the 500,000 distractors of the same authors added to its gallery, as identity 0.

    In addition to the folders of `read_market1501` it needs a folder `distractors_500k` or `images` of .jpg files: in
    `root`, in a folder of it, or (`distractors_500k` alone) next to `root`.  The camera is 1 if the name has none.
    Raises DatasetError as `read_market1501` does, and if there is no such folder or more than one.
    """
    name, root = "market1501_500k", Path(root).absolute()
    base = find_base(name, root, tuple(FOLDERS))
    rows = read_folders(name, base, FOLDERS, _MARKET_NAMES)
    folder, files = _find_distractors(name, root)
    top = Path(os.path.commonpath([base, folder]))
    if top != base:
        inside = base.relative_to(top).as_posix()
        rows = [(f"{inside}/{path}", label, camera, split) for path, label, camera, split in rows]
    inside = folder.relative_to(top).as_posix()
    for file in files:
        camera = _DISTRACTOR_CAMERA.search(file)
        # The camera only decides which matches of a query are left out, and distractors match no query: any number works.
        rows.append((f"{inside}/{file}", 0, int(camera[1]) if camera else 1, "gallery"))
    return build_manifest(name, top, rows, check_counts=check_counts)


def read_market1501_multi_query(root: Path, *, check_counts: bool = True) -> Manifest:
    """Market-1501 for the multi-query protocol, in which one query is all images of an identity under one camera.

    Train and gallery are those of `read_market1501`.  The query rows are the hand-drawn boxes in `gt_bbox`, of every
    (identity, camera) that occurs in `query`; evaluation pools the embeddings of each (identity, camera).
    Raises DatasetError as `read_market1501` does, if `gt_bbox` is missing, and if it has no image for a query.
    """
    name = "market1501_multi_query"
    base = find_base(name, Path(root), tuple(FOLDERS))
    boxes = base / "gt_bbox"
    if not boxes.is_dir():
        raise DatasetError(
            f"{name}: {base} has no folder gt_bbox (hand-drawn boxes, the further images of every query). An archive "
            "without gt_bbox can't be used for multi-query: get the complete one from the authors, or use "
            f"dataset=market1501 for single queries.\n{how_to_prepare(name, Path(root))}"
        )
    rows = read_folders(name, base, FOLDERS, _MARKET_NAMES)
    wanted = {(label, camera) for _, label, camera, split in rows if split == "query"}
    images = [image for image in _parse_names(boxes, _MARKET_NAMES) if image[1:] in wanted]
    missing = sorted(wanted - {image[1:] for image in images})
    if missing:
        identity, camera = missing[0]
        raise DatasetError(
            f"{name}: {boxes} has no image of {len(missing):,} of the {len(wanted):,} (identity, camera) pairs in query, "
            f"the first is identity {identity:04d} under camera {camera}. Extract the authors' archive again."
        )
    queries: list[Row] = [(f"gt_bbox/{file}", label, camera, "query") for file, label, camera in images]
    parts = {split: [row for row in rows if row[3] == split] for split in ("train", "gallery")}
    return build_manifest(name, base, [*parts["train"], *queries, *parts["gallery"]], check_counts=check_counts)


def read_dukemtmc_reid(root: Path, *, check_counts: bool = True, own_names: bool = False) -> Manifest:
    """DukeMTMC-reID (Zheng et al., "Unlabeled Samples Generated by GAN Improve the Person Re-identification Baseline
    in vitro", ICCV 2017), which its authors have withdrawn.

    The layout is that of Market-1501, with names such as 0001_c2_f0046182.jpg and 8 cameras; `own_names` as there.
    Raises DatasetError for a missing, incomplete or wrong folder, and for an image whose name can't be parsed.
    """
    return _read_three_folders("dukemtmc_reid", Path(root), DUKE_NAMES, check_counts, own_names)


def read_msmt17_v1(root: Path, *, check_counts: bool = True) -> Manifest:
    """MSMT17 V1 (Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018).

    `root`, or one folder in it, holds the folders `train` and `test` and the four lists; the training images are those
    of `list_train.txt` and `list_val.txt`.  Rows come in the order of the lists.  The lists number the people of train
    and of test from 0 each; here the test people follow the train people (1,041 in the complete dataset).
    Raises DatasetError for a missing, incomplete or wrong folder, for V2, and for a line that can't be parsed.
    """
    return _read_msmt17(1, Path(root), check_counts)


def read_msmt17_v2(root: Path, *, check_counts: bool = True) -> Manifest:
    """MSMT17 V2, the same images as V1 with faces masked, in the folders `mask_train_v2` and `mask_test_v2`.

    Otherwise as `read_msmt17_v1`.
    """
    return _read_msmt17(2, Path(root), check_counts)


def read_folders(name: str, base: Path, folders: Mapping[str, Role], names: FileNames) -> list[Row]:
    """The rows of all images in `folders` of `base` except junk, sorted by file name within each folder.

    Raises DatasetError for a folder without images, and for an image whose name can't be parsed.
    """
    rows: list[Row] = []
    for folder, role in folders.items():
        images = _parse_names(base / folder, names)
        if not images:
            deeper = _images_below(base / folder)
            raise DatasetError(
                f"{base / folder} holds no images, but {name} needs them.{deeper}\n{how_to_prepare(name, base)}"
            )
        rows += [(f"{folder}/{file}", identity, camera, role) for file, identity, camera in images]
    return rows


def _images_below(folder: Path) -> str:
    """Where the images are, if they lie in folders of `folder`."""
    inside = (
        [folder / entry for entry, is_folder in sorted(list_folder(folder).items()) if is_folder]
        if folder.is_dir()
        else []
    )
    found = next((place for place in inside if image_files(place)), None)
    return "" if found is None else f" There are some in {found}: move them into {folder} itself."


def _read_three_folders(name: str, root: Path, names: FileNames, check_counts: bool, own_names: bool) -> Manifest:
    base = find_base(name, root, tuple(FOLDERS))
    if own_names:
        names = names._replace(pattern=OWN_NAMES)
    rows = read_folders(name, base, FOLDERS, names)
    return build_manifest(name, base, rows, check_counts=check_counts and not own_names)


def _parse_names(folder: Path, names: FileNames) -> list[tuple[str, int, int]]:
    """File name, identity and camera of each image in `folder` that is not junk, sorted by file name."""
    images = []
    for file in image_files(folder):
        match = names.pattern.fullmatch(without_suffix(file))
        if match is None:
            raise DatasetError(
                f"{folder}: can't read identity and camera from the file name {file!r}; a name looks like "
                f"{names.example}. {_name_advice(file)}"
            )
        identity = int(match[1])
        if identity >= 0:
            images.append((file, identity, int(match[2])))
    return images


def without_suffix(file: str) -> str:
    """The name of an image without its suffix, or suffixes: some names of Market-1501 end with .jpg.jpg."""
    stem, dot, suffix = file.rpartition(".")
    while dot and f".{suffix}".lower() in image_suffixes():
        file = stem
        stem, dot, suffix = file.rpartition(".")
    return file


def _name_advice(file: str) -> str:
    if _COPY.search(without_suffix(file)):
        return "It seems to be a copy of another image: remove it."
    advice = "Remove or rename this file, or extract the original archive again."
    own = " For images of your own with other numbers: dataset=market_layout."
    return advice + own if OWN_NAMES.fullmatch(file) else advice


def image_files(folder: Path) -> list[str]:
    """Sorted names of the images; none where `folder` is a file.  Warns of images whose format is not read here.
    Raises DatasetError for a folder that can't be read."""
    try:
        entries = list_folder(folder)
    except NotADirectoryError:
        return []
    except OSError as error:
        raise DatasetError(f"can't read the folder {folder}: {error.strerror}. Make it readable.") from None
    # Names with a leading dot are shadow files that some systems put into archives.
    files = [entry for entry, is_folder in entries.items() if not is_folder and not entry.startswith(".")]
    suffixes = image_suffixes()
    warn_of_files(folder, [file for file in files if not file.lower().endswith(suffixes)], [])
    return sorted(file for file in files if file.lower().endswith(suffixes))


def _find_distractors(name: str, root: Path) -> tuple[Path, list[str]]:
    """The folder of distractors and its file names."""
    # A folder called images next to `root` may be something else.
    beside = root.parent / _DISTRACTOR_FOLDERS[0]
    inside = [root / entry for entry, is_folder in sorted(list_folder(root).items()) if is_folder]
    places = [place / folder for place in (root, *inside) for folder in _DISTRACTOR_FOLDERS]
    found = {place: image_files(place) for place in (*places, beside, beside / "images") if is_there(place)}
    found = {place: files for place, files in found.items() if files}
    if not found:
        raise DatasetError(
            f"{name}: found no distractors: looked for a folder {' or '.join(_DISTRACTOR_FOLDERS)} with .jpg files in "
            f"{root} and one level down, and for {beside}.\n{how_to_prepare(name, root)}"
        )
    if len(found) > 1:
        raise DatasetError(
            f"{name}: more than one folder may hold the distractors: {', '.join(map(str, found))}. "
            "Move all but the right one elsewhere."
        )
    return next(iter(found.items()))


def _read_msmt17(version: int, root: Path, check_counts: bool) -> Manifest:
    name, folders = f"msmt17_v{version}", _MSMT17_FOLDERS[version]
    wanted = (*folders, *_MSMT17_LISTS)
    _refuse_other_version(name, version, *nearest_base(name, root, wanted))
    base = find_base(name, root, wanted)
    people: dict[Role, list[Row]] = {"train": [], "query": [], "gallery": []}
    for file, role in _MSMT17_LISTS.items():
        people[role] += _read_list(base / file, folders[0] if role == "train" else folders[1], role)
    # Both parts number their people from 0.
    first = 1 + max(label for _, label, _, _ in people["train"])
    test = [(path, first + label, camera, split) for path, label, camera, split in people["query"] + people["gallery"]]
    rows = people["train"] + test
    require_files(name, base, [row[0] for row in rows])
    return build_manifest(name, base, rows, check_counts=check_counts)


def _refuse_other_version(name: str, version: int, base: Path, present: Sequence[str]) -> None:
    """Raise DatasetError if `base` holds the folders of the other version and lacks one of this version."""
    own, other = _MSMT17_FOLDERS[version], 3 - version
    theirs = _MSMT17_FOLDERS[other]
    if not all(folder in present for folder in own) and all((base / folder).is_dir() for folder in theirs):
        raise DatasetError(
            f"{name}: {base} is MSMT17 V{other} (folders {', '.join(theirs)}), not V{version} (folders {', '.join(own)}). "
            f"Use dataset=msmt17_v{other}, or set dataset.root to the folder of V{version}."
        )


def _read_list(file: Path, folder: str, role: Role) -> list[Row]:
    """The rows of one list of MSMT17, whose lines are a path below `folder` and the number of an identity."""
    rows: list[Row] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _MSMT17_LINE.fullmatch(line.strip())
        if match is None:
            raise DatasetError(
                f"{file}, line {number}: {line!r} is not a path and the number of an identity, such as "
                "'0000/0000_000_01_0303morning_0015_0_ex.jpg 0', with camera 01 to 15 as third part of the file name. "
                "Extract the authors' archive again."
            )
        rows.append((f"{folder}/{match[1]}", int(match[3]), int(match[2]), role))
    if not rows:
        raise DatasetError(f"{file} lists no images. Extract the authors' archive again.")
    return rows
