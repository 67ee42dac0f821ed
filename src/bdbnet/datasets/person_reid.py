"""Person re-identification datasets in the layout of their authors."""

import os
import re
import warnings
from pathlib import Path

import pandas as pd

from bdbnet.datasets.manifest import CountWarning, DatasetError, Manifest, Role, SplitCounts

# As the authors publish them, without junk images; identity 0 (distractors) counts as one of the gallery's.
PUBLISHED_COUNTS: dict[str, dict[Role, SplitCounts]] = {
    "market1501": {
        "train": SplitCounts(identities=751, images=12_936, cameras=6),
        "query": SplitCounts(identities=750, images=3_368, cameras=6),
        "gallery": SplitCounts(identities=751, images=15_913, cameras=6),
    },
}

_MARKET_FOLDERS: dict[str, Role] = {
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}
# identity, camera, sequence, frame, box; some names of the original end with .jpg.jpg
_MARKET_NAME = re.compile(r"(-1|\d{4})_c([1-6])s\d+_\d+_\d+(?:\.jpg)+", re.IGNORECASE)


def read_market1501(root: Path, *, check_counts: bool = True) -> Manifest:
    """Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

    `root` holds `bounding_box_train`, `query` and `bounding_box_test`, directly or in one folder below.
    Junk images (identity -1) are left out; distractors (identity 0) stay in the gallery.  Rows are sorted by
    file name within train, query, gallery.  `check_counts` warns (CountWarning) where the number of images,
    identities or cameras is not the published one.
    Raises DatasetError for a missing, incomplete or wrong folder, and for a .jpg whose name can't be parsed.
    """
    return _read_folders("market1501", Path(root), _MARKET_FOLDERS, _MARKET_NAME, check_counts)


def _read_folders(
    name: str, root: Path, folders: dict[str, Role], pattern: re.Pattern[str], check_counts: bool
) -> Manifest:
    base = _find_base(name, root, tuple(folders))
    rows: list[tuple[str, int, int, str]] = []
    for folder, role in folders.items():
        images = _parse_names(base / folder, pattern)
        if not images:
            raise DatasetError(
                f"{base / folder} holds no images, so half of {name} is missing. {_how_to_prepare(name, root)}"
            )
        rows += [(f"{folder}/{file}", identity, camera, role) for file, identity, camera in images]
    table = pd.DataFrame(rows, columns=["path", "label", "camera", "split"])
    manifest = Manifest.from_table(table, base, name, source=base)
    differences = manifest.differences(PUBLISHED_COUNTS[name]) if check_counts else []
    if differences:
        warnings.warn(
            f"{base} is not the complete {name}: {'; '.join(differences)}. Results are not comparable with published "
            "ones. Set dataset.options.check_counts=false if this is intended.",
            CountWarning,
            stacklevel=3,
        )
    return manifest


def _find_base(name: str, root: Path, folders: tuple[str, ...]) -> Path:
    """`root` or the one folder in it that holds `folders`."""
    wanted = ", ".join(folders)
    try:
        entries = _list_folder(root)
        candidates = [(root, entries)] + [
            (root / entry, _list_folder(root / entry)) for entry, is_folder in entries.items() if is_folder
        ]
    except FileNotFoundError:
        raise DatasetError(f"{name}: there is no folder {root}. {_how_to_prepare(name, root)}") from None
    except NotADirectoryError:
        raise DatasetError(
            f"{name}: {root} is not a folder. Give a folder that holds {wanted}. {_how_to_prepare(name, root)}"
        ) from None
    present = {path: [folder for folder in folders if content.get(folder, False)] for path, content in candidates}
    complete = [path for path, found in present.items() if len(found) == len(folders)]
    if len(complete) > 1:
        raise DatasetError(
            f"{name}: more than one folder holds {wanted}: {', '.join(map(str, complete))}. "
            f"Set dataset.root to one of them."
        )
    if complete:
        return complete[0]
    best = max(present, key=lambda path: len(present[path]))
    if present[best]:
        missing = ", ".join(folder for folder in folders if folder not in present[best])
        raise DatasetError(
            f"{name}: {best} holds {', '.join(present[best])} but not {missing}. {_how_to_prepare(name, root)}"
        )
    found = ", ".join(sorted(entries)[:8]) + (", ..." if len(entries) > 8 else "") if entries else "nothing"
    raise DatasetError(
        f"{name}: {root} has another layout: looked for the folders {wanted} there and one level down, "
        f"found {found}. {_how_to_prepare(name, root)}"
    )


def _list_folder(folder: Path) -> dict[str, bool]:
    """Name -> whether it is a folder, for everything in `folder`."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_dir() for entry in entries}


def _parse_names(folder: Path, pattern: re.Pattern[str]) -> list[tuple[str, int, int]]:
    """File name, identity and camera of each image in `folder` that is not junk, sorted by file name."""
    images = []
    with os.scandir(folder) as entries:
        # Names with a leading dot are shadow files that some systems put into archives.
        names = sorted(e.name for e in entries if e.name.lower().endswith(".jpg") and not e.name.startswith("."))
    for file in names:
        match = pattern.fullmatch(file)
        if match is None:
            raise DatasetError(
                f"{folder}: can't read identity and camera from the file name {file!r}; a name looks like "
                "0002_c1s1_000451_03.jpg. Remove or rename this file, or extract the original archive again."
            )
        identity = int(match[1])
        if identity >= 0:
            images.append((file, identity, int(match[2])))
    return images


def _how_to_prepare(name: str, root: Path) -> str:
    return (
        f"To extract the authors' archive: python -m bdbnet.prepare dataset={name} archive=<file> "
        f"dataset.root={root}; if the data are elsewhere, set dataset.root to their folder."
    )
