"""Custom datasets in folders: one folder of images per class, optionally below one folder per split."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bdbnet.datasets.manifest import SPLITS, DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
LAYOUT = (
    "A folder holds one folder per class, each with its images directly in it (CLASS/IMAGE), or such folders for each "
    "split: train/CLASS/IMAGE, and test/CLASS/IMAGE or query/CLASS/IMAGE and gallery/CLASS/IMAGE"
)


def list_class_folders(root: Path) -> pd.DataFrame:
    """The images in `root` as rows of path, label, camera (-1) and, where it has folders for splits, split.

    Classes are numbered 0, 1, ... in the order of their names, or of their numbers where all names are whole numbers; a
    class has the same number in every split. Rows are sorted by split, class and file name. Images are recognised by their
    suffix; other files and names with a leading dot are left out. Warns of folders and images that are left out because
    they are not where classes and their images should be.
    Raises DatasetError for a folder without any image and for names that are not UTF-8, OSError for folders that can't
    be listed and for broken or circular links.
    """
    folders = _contents(root)[0]
    splits = _split_folders(root, folders)
    images = [
        (f"{split}/" if split else "", name, file)
        for split in splits or [""]
        for name in _in_order(_contents(root / split)[0] if split else folders)
        for file in sorted(_contents(root / split / name)[1])
    ]
    if not images:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise DatasetError(f"{root} holds no images ({suffixes}) in folders of classes. {LAYOUT}.")
    _warn_of_rest(root, folders, splits, {f"{start}{name}" for start, name, _ in images})
    numbers = {name: number for number, name in enumerate(_in_order({name for _, name, _ in images}))}
    table = pd.DataFrame(
        {
            "path": [f"{start}{name}/{file}" for start, name, file in images],
            "label": [numbers[name] for _, name, _ in images],
            "camera": -1,
        }
    )
    return table.assign(split=[start.rstrip("/") for start, _, _ in images]) if splits else table


def _warn_of_rest(root: Path, folders: list[str], splits: list[str], used: set[str]) -> None:
    """Warn about possible data that is not read: unknown splits, images next to or below the class folders."""
    rest = []
    if splits:
        rest += [f"{name}/ (not one of {', '.join(SPLITS)})" for name in folders if name not in splits]
        stray = _contents(root)[1]
        if stray:
            rest.append(f"{len(stray):,} image(s) directly in {root.name}/")
    for split in splits or [""]:
        inner, images = _contents(root / split)
        if images:
            rest.append(f"{len(images):,} image(s) directly in {split or root.name}/")
        classes = [f"{split}/{name}" if split else name for name in inner]
        empty = [name for name in classes if name not in used]
        if empty:
            rest.append(f"{len(empty):,} folder(s) without images directly in them, such as {empty[0]}/")
        deeper = [f"{name}/{below}" for name in classes if name in used for below in _contents(root / name)[0]]
        if deeper:
            rest.append(f"{len(deeper):,} folder(s) inside classes, such as {deeper[0]}/")
    if rest:
        warnings.warn(f"{root}: left out are {'; '.join(rest)}. {LAYOUT}.", stacklevel=2)


def require_utf8(path: str) -> None:
    """Raise DatasetError for a name that no CSV, Parquet or JSON file could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DatasetError(f"the name {shown} is not valid UTF-8. Rename the file or folder.") from None


def _split_folders(root: Path, folders: list[str]) -> list[str]:
    """The `folders` that are splits; none if they are classes, one of which may be called train."""
    named = [split for split in SPLITS if split in folders]
    contents = [_contents(root / split) for split in named]
    holds_classes = any(inner and not images for inner, images in contents)
    return named if holds_classes or len(named) == len(folders) else []


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images in `folder`."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
            if entry.name.startswith(".") or not (is_image or entry.is_symlink() or entry.is_dir()):
                continue
            require_utf8(entry.path)
            if entry.is_symlink():
                entry.stat()  # raises an error with the link's name if it is broken or circular
            if entry.is_dir():
                folders.append(entry.name)
            elif is_image:
                images.append(entry.name)
    return folders, images


def _in_order(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names
