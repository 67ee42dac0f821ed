"""Folder layouts of datasets: finding the parts, errors that name the missing ones, atomic writing of a folder."""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from bdbnet.datasets.catalogue import FACTS, PUBLISHED_COUNTS, UNTRIED, DatasetFacts
from bdbnet.datasets.manifest import COLUMNS, CountWarning, DatasetError, Manifest
from bdbnet.regular_files import special_kind

# How far below the folders of its root a dataset is looked for, and up to how many folders a level.
_LEVELS = 2
_MOST_FOLDERS = 500


class LayoutError(DatasetError):
    """A folder whose layout is not that of the dataset's authors."""


def find_base(name: str, root: Path, wanted: Sequence[str]) -> Path:
    """`root`, or the one folder in it, that holds all files and folders of `wanted`.

    Raises LayoutError with what was looked for and found, the expected layout, and how to get the dataset; DatasetError
    that says where it is, if it is further down.
    """
    best, present = nearest_base(name, root, wanted)
    missing = [entry for entry in wanted if entry not in present]
    if not missing:
        return best
    if present:
        raise LayoutError(
            f"{name}: {best} holds {', '.join(present)} but not {', '.join(missing)}.\n{how_to_prepare(name, root)}"
        )
    entries = sorted(list_folder(root))
    found = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") if entries else "nothing"
    problem = f"{name}: {root} has an unexpected layout: looked for {', '.join(wanted)} there and one level down, found {found}."
    below = _complete_below(root, wanted)
    if below:
        places = " and ".join(map(str, below))
        raise DatasetError(f"{problem} They are in {places}: set dataset.root={below[0]}.")
    raise LayoutError(f"{problem}\n{how_to_prepare(name, root)}")


def find_layout(name: str, root: Path, layouts: Sequence[tuple[str, ...]]) -> tuple[Path, tuple[str, ...]]:
    """The folder that has one of `layouts`, and this layout.  DatasetError names what the most complete one lacks."""
    found = {layout: len(nearest_base(name, root, layout)[1]) for layout in layouts}
    nearest = max(layouts, key=lambda layout: (found[layout] == len(layout), found[layout]))
    return find_base(name, root, nearest), nearest


def nearest_base(name: str, root: Path, wanted: Sequence[str]) -> tuple[Path, list[str]]:
    """`root` or the folder in it that holds most of `wanted`, and what it holds of them.

    A `root` that holds everything takes precedence over its folders.
    Raises DatasetError where `root` is not a readable folder, where two folders in it hold everything, and for a named pipe,
    a socket or a device among `wanted`.
    """
    entries = list_root(name, root)
    places = [root, *(root / entry for entry, is_folder in sorted(entries.items()) if is_folder)]
    present = {place: [entry for entry in wanted if is_there(place / entry)] for place in places}
    complete = [place for place in places if len(present[place]) == len(wanted)]
    if len(complete) > 1 and complete[0] != root:
        raise DatasetError(
            f"{name}: more than one folder holds {', '.join(wanted)}: {', '.join(map(str, complete))}. "
            "Set dataset.root to one of them."
        )
    best = max(places, key=lambda place: len(present[place]))
    for entry in present[best]:
        if (kind := special_kind(best / entry)) is not None:
            raise DatasetError(
                f"{name}: {best / entry} is {kind}, not a regular file. Put the authors' file in its place."
            )
    return best, present[best]


def list_root(name: str, root: Path) -> dict[str, bool]:
    """`list_folder` of a dataset's folder.  Raises DatasetError where it is not a readable folder."""
    try:
        return list_folder(root)
    except FileNotFoundError:
        raise DatasetError(f"{name}: there is no folder {root}.\n{how_to_prepare(name, root)}") from None
    except NotADirectoryError:
        raise DatasetError(f"{name}: {root} is not a folder.\n{how_to_prepare(name, root)}") from None
    except OSError as error:
        raise DatasetError(f"{name}: can't read the folder {root}: {error.strerror}. Make it readable.") from None


def _complete_below(root: Path, wanted: Sequence[str]) -> list[Path]:
    """The folders two and more levels below `root` that hold everything, as archives in archives leave them."""
    complete: list[Path] = []
    folders = [root]
    for level in range(1 + _LEVELS):
        inside: list[Path] = []
        for folder in folders:
            try:
                inside += [folder / entry for entry, is_folder in sorted(list_folder(folder).items()) if is_folder]
            except OSError:
                continue
            if len(inside) > _MOST_FOLDERS:
                return complete
        if level:
            complete += [place for place in inside if all(is_there(place / entry) for entry in wanted)]
        folders = inside
    return complete


def is_there(path: Path) -> bool:
    """Whether `path` exists; False where a parent folder is not accessible."""
    try:
        return path.exists()
    except OSError:
        return False


def list_folder(folder: Path) -> dict[str, bool]:
    """Name -> whether it is a folder, for everything in `folder`."""
    with os.scandir(folder) as entries:
        return {entry.name: _is_folder(entry) for entry in entries}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def require_files(name: str, base: Path, paths: Iterable[str]) -> None:
    """Raise DatasetError unless every listed file is there."""
    paths = list(paths)
    missing = missing_files(base, paths)
    if missing:
        raise DatasetError(
            f"{name}: {len(missing):,} of the {len(paths):,} listed images are not in {base}, the first is {missing[0]}.\n"
            f"{how_to_prepare(name, base)}"
        )


def missing_files(base: Path, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that do not exist below `base`, in their order.

    Lists each folder once, which is several times as fast as testing one file after another.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, file = path.rpartition("/")
        if folder not in there:
            place = base / folder
            there[folder] = set(list_folder(place)) if place.is_dir() else set()
        if file not in there[folder]:
            missing.append(path)
    return missing


def build_manifest(
    name: str,
    base: Path,
    rows: Sequence[Sequence[object]] | pd.DataFrame,
    *,
    check_counts: bool,
    explain: Callable[[Manifest], str | None] | None = None,
) -> Manifest:
    """The manifest of rows (path, label, camera, split[, x1, y1, x2, y2]) below `base`.

    `check_counts` warns (CountWarning) where the number of images, identities or cameras is not the published one,
    with the reason that `explain` gives, if any.
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), columns=list(COLUMNS))
    manifest = Manifest.from_table(table, base, name, source=base)
    differences = manifest.differences(PUBLISHED_COUNTS[name]) if check_counts else []
    if differences:
        reason = explain(manifest) if explain else None
        if reason:
            differences.append(reason)
        warnings.warn(
            f"{base} is not the complete {name}: {'; '.join(differences)}. Results are not comparable with "
            f"published ones. For details run python -m bdbnet.prepare dataset={name}; dataset.options.check_counts=false "
            "silences this warning.",
            CountWarning,
            stacklevel=4,
        )
    return manifest


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `folder` at the end, so that `folder` is complete or absent.

    If another process was faster, its folder stays. Raises OSError.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def how_to_prepare(name: str, root: Path) -> str:
    """The expected layout and the command that makes it, for the end of an error message."""
    facts = FACTS[name]
    return (
        f"{facts.title} is expected in dataset.root, or in one folder below it, as\n{layout_of(facts)}\n"
        f"To extract the authors' archive: python -m bdbnet.prepare dataset={name} archive=FILE dataset.root={root}\n"
        f"with FILE = {facts.archives}\nIf the data is elsewhere, set dataset.root to its folder."
        + (
            ""
            if facts.tried
            else f"\n{UNTRIED} If the originals differ, dataset=table reads any layout from a CSV file."
        )
    )


def layout_of(facts: DatasetFacts) -> str:
    """The expected folder as indented lines."""
    return "\n".join(f"    {line}" for line in facts.layout.splitlines())
