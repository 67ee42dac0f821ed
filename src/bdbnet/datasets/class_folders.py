"""Custom datasets in folders: one folder of images per class, optionally below one folder per split."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bdbnet.datasets.images import image_suffixes, unread_images
from bdbnet.datasets.manifest import SPLITS, DatasetError

LAYOUT = (
    "A folder holds one folder per class, each with its images directly in it (CLASS/IMAGE), or such folders for each "
    "split: train/CLASS/IMAGE, and test/CLASS/IMAGE or query/CLASS/IMAGE and gallery/CLASS/IMAGE"
)


class Contents(NamedTuple):
    """Names of what a folder holds: folders, images that are read, other files, and files that are no regular ones."""

    folders: list[str]
    images: list[str]
    others: list[str]
    special: list[str]


def list_class_folders(root: Path) -> pd.DataFrame:
    """The images in `root` as rows of path, label, camera (-1), name and, where it has folders for splits, split.

    Classes are numbered 0, 1, ... in the order of their names, or of their numbers where all names are whole numbers; a
    class has the same number in every split; `name` is the name of its folder. Rows are sorted by split, class and file
    name. Images are recognised by their suffix; other files and names with a leading dot are left out. Warns of folders and
    images that are left out because they are not where classes and their images should be, because Pillow can't read
    their format here, or because they are no regular files.
    Raises DatasetError for a folder without any image and for names that are not UTF-8, OSError for folders that can't
    be listed and for broken or circular links.
    """
    folders = list_contents(root).folders
    splits = _split_folders(root, folders)
    contents = {
        (f"{split}/" if split else "", name): list_contents(root / split / name)
        for split in splits or [""]
        for name in in_order(list_contents(root / split).folders if split else folders)
    }
    images = [(start, name, file) for (start, name), inside in contents.items() for file in sorted(inside.images)]
    unread = [f"{start}{name}/{file}" for (start, name), inside in contents.items() for file in inside.others]
    special = [f"{start}{name}/{file}" for (start, name), inside in contents.items() for file in inside.special]
    if not images:
        suffixes, others = " ".join(image_suffixes()), unread_images(unread)
        found = f" It holds {others}: convert them to JPEG or PNG." if others else ""
        raise DatasetError(f"{root} holds no images ({suffixes}) in folders of classes.{found} {LAYOUT}.")
    _warn_of_rest(root, folders, splits, {f"{start}{name}" for start, name, _ in images}, unread, special)
    numbers = {name: number for number, name in enumerate(in_order({name for _, name, _ in images}))}
    table = pd.DataFrame(
        {
            "path": [f"{start}{name}/{file}" for start, name, file in images],
            "label": [numbers[name] for _, name, _ in images],
            "camera": -1,
            "name": [name for _, name, _ in images],
        }
    )
    return table.assign(split=[start.rstrip("/") for start, _, _ in images]) if splits else table


def _warn_of_rest(
    root: Path, folders: list[str], splits: list[str], used: set[str], unread: list[str], special: list[str]
) -> None:
    """Warn about possible data that is not read: unknown splits, images next to or below the class folders, other files."""
    rest = []
    if splits:
        rest += [f"{name}/ (not one of {', '.join(SPLITS)})" for name in folders if name not in splits]
        stray = list_contents(root).images
        if stray:
            rest.append(f"{len(stray):,} image(s) directly in {root.name}/")
    for split in splits or [""]:
        inside = list_contents(root / split)
        if inside.images:
            rest.append(f"{len(inside.images):,} image(s) directly in {split or root.name}/")
        classes = [f"{split}/{name}" if split else name for name in inside.folders]
        empty = [name for name in classes if name not in used]
        if empty:
            rest.append(f"{len(empty):,} folder(s) without images directly in them, such as {empty[0]}/")
        deeper = [f"{name}/{below}" for name in classes if name in used for below in list_contents(root / name).folders]
        if deeper:
            rest.append(f"{len(deeper):,} folder(s) inside classes, such as {deeper[0]}/")
    if rest:
        warnings.warn(f"{root}: left out are {'; '.join(rest)}. {LAYOUT}.", stacklevel=2)
    warn_of_files(root, unread, special)


def warn_of_files(root: Path, files: list[str], special: list[str]) -> None:
    """Warn about images among `files` whose format is not read here, and about `special`, which are no regular files."""
    rest = []
    if said := unread_images(files):
        unread = next(file for file in files if unread_images([file]))
        rest.append(f"{said}, such as {_printable(unread)}; convert them to JPEG or PNG")
    if special:
        rest.append(f"{len(special):,} named pipe(s), socket(s) or device(s), such as {_printable(special[0])}")
    if rest:
        warnings.warn(f"{root}: left out are {'; '.join(rest)}.", stacklevel=3)


def require_utf8(path: str) -> None:
    """Raise DatasetError for a name that no CSV, Parquet or JSON file could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"the name {_printable(path)} is not valid UTF-8. Rename the file or folder.") from None


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _split_folders(root: Path, folders: list[str]) -> list[str]:
    """The `folders` that are splits; none if they are classes, one of which may be called train."""
    named = [split for split in SPLITS if split in folders]
    contents = [list_contents(root / split) for split in named]
    holds_classes = any(inside.folders and not inside.images for inside in contents)
    return named if holds_classes or len(named) == len(folders) else []


def list_contents(folder: Path) -> Contents:
    """What is in `folder`; names with a leading dot are left out.  Raises OSError, DatasetError for names not in UTF-8."""
    contents = Contents([], [], [], [])
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            is_image = entry.name.lower().endswith(suffixes)
            if entry.name.startswith("."):
                continue
            if is_image or entry.is_symlink() or entry.is_dir():
                require_utf8(entry.path)
            if entry.is_symlink():
                entry.stat()  # raises an error with the link's name if it is broken or circular
            if entry.is_dir():
                contents.folders.append(entry.name)
            elif not entry.is_file():
                contents.special.append(entry.name)
            elif is_image:
                contents.images.append(entry.name)
            else:
                contents.others.append(entry.name)
    return contents


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted, by their numbers where all are whole numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names
