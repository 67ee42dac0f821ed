"""Several custom datasets as one: their labels and cameras side by side, or shared."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bdbnet.datasets.manifest import BOX_COLUMNS, SPLITS_OF_ROLE, DatasetError, Manifest

# Number of sources that the name of a joined dataset lists.
_NAMED = 4


def joined(sources: list[Path], parts: list[Manifest], *, shared: bool) -> Manifest:
    """One manifest of all sources, which share no identities and no cameras, or, with `shared`, the numbers of both.

    Raises DatasetError where only some sources have boxes or cameras, and for an image in two of them.
    """
    _check_alike(sources, parts, shared)
    root = Path(os.path.commonpath([part.root for part in parts]))
    any_cameras = any(part.has_cameras for part in parts)
    tables = []
    names: dict[int, str] = {}
    next_label = next_camera = 0
    for source, part in zip(sources, parts):
        folder = part.root.relative_to(root).as_posix()
        table = part.table.assign(
            path=part.table["path"] if folder == "." else f"{folder}/" + part.table["path"],
            label=_shifted(source, part.table["label"], next_label),
        )
        names |= {next_label + label: name for label, name in part.label_names.items()}
        if part.has_cameras:
            table["camera"] = _shifted(source, part.table["camera"], next_camera)
        elif any_cameras:
            # Every row or none needs a camera number; that of a training row is never used.
            table["camera"] = next_camera
        if not shared:
            next_label, next_camera = int(table["label"].max()) + 1, int(table["camera"].max()) + 1
        tables.append(table)
    _check_disjoint(sources, tables, shared)
    titles = [part.name for part in parts]
    title = "+".join(titles if len(titles) <= _NAMED else [*titles[:_NAMED], f"{len(titles) - _NAMED} more"])
    whole = pd.concat(tables, ignore_index=True)
    return Manifest.from_table(whole, root, title, source=listed(sources), label_names=names)


def _shifted(source: Path, numbers: pd.Series, start: int) -> pd.Series:
    if start + int(numbers.max()) >= 2**63:
        raise DatasetError(
            f"{source}: {numbers.name} {numbers.max()} is too large to number several sources one after another. Write smaller "
            "numbers, or names."
        )
    return numbers + start


def _check_alike(sources: list[Path], parts: list[Manifest], shared: bool) -> None:
    """Raise DatasetError where only some sources have boxes, cameras or a gallery."""
    boxed = [BOX_COLUMNS[0] in part.table.columns for part in parts]
    if any(boxed) and not all(boxed):
        raise DatasetError(
            f"{sources[boxed.index(True)]} has boxes ({' '.join(BOX_COLUMNS)}) and {sources[boxed.index(False)]} has none: "
            "either all sources have boxes or none. Add the box of each whole image (0, 0, width, height) to one, or cut "
            "the other's images."
        )
    seeing = [part.has_cameras for part in parts]
    for source, part in zip(sources, parts):
        splits = set(part.table["split"])
        if any(seeing) and not part.has_cameras and splits != {"train"}:
            raise DatasetError(
                f"{source} has query, gallery or test images without cameras, but {sources[seeing.index(True)]} has "
                "cameras: all or none of the sources with query, gallery or test images need cameras. Add the column camera "
                "to one, or remove it from the other."
            )
        if not shared and "query" in splits and not splits & {"gallery", "test"}:
            raise DatasetError(
                f"{source} has queries but no gallery: sources share no identities, so these queries "
                "have no match. Put queries and gallery into one table, or set dataset.options.share_labels=true if the same "
                "label is the same identity in all sources."
            )


def _check_disjoint(sources: list[Path], tables: list[pd.DataFrame], shared: bool) -> None:
    """Raise DatasetError where two sources list the same file and box: an image has one identity.

    Where sources share their identities, an image may be a query in one and in the gallery of another.
    """
    seen: dict[tuple[Any, ...], tuple[int, int]] = {}
    reason = "Remove one of the two rows."
    if not shared:
        reason = "Sources share no identities, so an image belongs to one of them: remove one of the two rows."
    for number, table in enumerate(tables):
        images = table[["split", *(column for column in ("path", *BOX_COLUMNS) if column in table.columns)]]
        for row, (split, path, *box) in enumerate(images.itertuples(index=False), 1):
            for role in _roles(split) if shared else ("",):
                other, other_row = seen.setdefault((role, path, *box), (number, row))
                if other != number:
                    raise DatasetError(
                        f"{sources[number]}, row {row}: the image {path} is already in {sources[other]}, row {other_row}. "
                        f"{reason}"
                    )


def _roles(split: str) -> Iterable[str]:
    return (role for role, splits in SPLITS_OF_ROLE.items() if split in splits)


def listed(sources: Iterable[Path]) -> str:
    """Sources for a message."""
    return " and ".join(map(str, sources))
