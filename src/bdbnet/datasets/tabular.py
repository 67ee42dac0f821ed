"""Custom datasets: a CSV or Parquet table with a row per image, a folder of class folders, or several of these."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bdbnet.datasets.class_folders import LAYOUT, list_class_folders, require_utf8
from bdbnet.datasets.layout import missing_files
from bdbnet.datasets.manifest import BOX_COLUMNS, COLUMNS, SPLITS, DatasetError, Manifest

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")
_SPLIT_ADVICE = (
    f"Add a column split with one of {', '.join(SPLITS)} for every image (test = both query and gallery), or use folders "
    "of these names. Or set dataset.train_classes: the first classes, in the order of their numbers or names, are the "
    "training set and the others the test set. dataset.train_classes=100 counts classes, dataset.train_classes=0.5 is a "
    "share of all"
)

# Number of sources that the name of a joined dataset lists.
_NAMED = 4


def read_table(
    root: Path | None,
    *,
    manifest: str | Path | Sequence[str | Path] | None = None,
    train_classes: int | float | None = None,
) -> Manifest:
    """The images that `manifest` lists: a table, a folder of class folders, or a list of these.

    A table is a CSV file (UTF-8, commas, column names in the first line) or a Parquet file with the columns

    - `path`: image file relative to `root` (default: the folder of the table), with forward slashes,
    - `label`: identity or class, as whole numbers, or as names, which are numbered 0, 1, ... in sorted order,
    - `split`: `train`, `query`, `gallery`, or `test` for an image that is query and gallery,
    - optional `camera`: 0 or more,
    - optional `x1 y1 x2 y2`: box in pixels, right and lower edge excluded.

    Other columns are ignored. A folder holds `train/`, and `test/` or `query/` and `gallery/`, each with one folder of
    images per class; or the folders of the classes directly. Their names are numbered 0, 1, ... in sorted order.

    Data without splits needs `train_classes`: the first classes are the training set and the others the test set, so
    that no class is in both (zero-shot retrieval). An int counts the classes, a float between 0 and 1 is their share.

    Several sources share no identities, classes or cameras: the numbers of each are shifted past those of the sources
    before. A source without cameras may be combined with one with cameras if it is for training only. The manifest's
    root is then the common parent folder of all sources, and its name theirs, joined by "+".

    Raises DatasetError that names source, row (the first row of data is 1) and column, or the setting to change.
    """
    sources = _sources(manifest)
    _check_train_classes(train_classes)
    tables = [_read(source) for source in sources]
    if train_classes is not None and all("split" in table.columns for table in tables):
        raise DatasetError(
            f"dataset.train_classes={train_classes} is set, but {_listed(sources)} has splits already. Leave out "
            "dataset.train_classes to use them, or remove the splits."
        )
    if root is not None and all(source.is_dir() for source in sources):
        raise DatasetError(
            f"dataset.root={root} is set, but only paths in a table are relative to it, and {_listed(sources)} is a "
            "folder. Leave out dataset.root."
        )
    parts = [_checked(source, table, root, train_classes) for source, table in zip(sources, tables)]
    return parts[0] if len(parts) == 1 else _joined(sources, parts)


def _sources(manifest: object) -> list[Path]:
    """The files and folders that dataset.manifest names, as absolute paths."""
    given = list(manifest) if isinstance(manifest, Sequence) and not isinstance(manifest, str) else [manifest]
    if not given or any(entry is None or entry == "" for entry in given):
        raise DatasetError(
            "dataset.manifest names no data: set it to a CSV or Parquet table with a row per image, such as "
            "dataset.manifest=my.csv, to a folder of class folders, such as dataset.manifest=my_images, or to several of "
            "them, such as dataset.manifest=[my.csv,my_images]"
        )
    sources = []
    for entry in given:
        if not isinstance(entry, str | Path):
            raise DatasetError(
                f"dataset.manifest={entry!r} is not the name of a file or folder: give one or a list of them"
            )
        sources.append(_absolute(entry))
    return sources


def _absolute(path: str | Path) -> Path:
    """An absolute path without "..", so that common folders can be found."""
    try:
        place = Path(os.path.normpath(Path(path).expanduser().absolute()))
    except RuntimeError:
        raise DatasetError(f"can't find the folder {path}: there is no such user. Write the full path.") from None
    require_utf8(str(place))
    return place


def _check_train_classes(train_classes: object) -> None:
    if train_classes is None:
        return
    is_count = isinstance(train_classes, int) and not isinstance(train_classes, bool) and train_classes >= 1
    if not is_count and not (isinstance(train_classes, float) and 0 < train_classes < 1):
        raise DatasetError(
            f"dataset.train_classes={train_classes!r} is neither a number of classes (1, 2, ...) nor a share of them (a "
            "number between 0 and 1, such as 0.5)."
        )


def _read(source: Path) -> pd.DataFrame:
    """The rows of one source with numbered labels; the column split is there if the source has splits."""
    try:
        if source.is_dir():
            return list_class_folders(source)
        data = source.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"can't read {error.filename or source}: {error.strerror}. dataset.manifest must name a CSV or Parquet table "
            "or a folder of class folders."
        ) from None
    is_parquet = source.suffix.lower() in (".parquet", ".pq") or data.startswith(b"PAR1")
    cells = _parquet_cells(source, data) if is_parquet else _csv_cells(source, data)
    for column, values in cells.items():
        empty = next((row for row, value in enumerate(values, 1) if value is None or value == ""), None)
        if empty is not None:
            raise DatasetError(f"{source}, row {empty}, column {column}: is empty. Fill it in, or leave out the row.")
    cells["label"] = _label_numbers(source, cells["label"])
    return pd.DataFrame({"camera": -1} | cells, index=range(len(cells["path"])))


def _csv_cells(source: Path, data: bytes) -> dict[str, list[Any]]:
    """Text of the columns that a manifest has."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{source}, line {line}: is not UTF-8 text. Save the table again as CSV with the encoding UTF-8."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise DatasetError(
            f"{source}, line {reader.line_num}: is not CSV ({error}). Put values that contain commas, quotes or line breaks "
            'in quotes and double the quotes in them: "a ""b"", c.jpg".'
        ) from None
    if not lines:
        raise DatasetError(f"{source} is empty. {_needed_columns()} The first line holds their names.")
    header, *rows = lines
    columns = _known_columns(source, header)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DatasetError(
                f"{source}, row {number}: has {len(row)} values for the {len(header)} columns. Write one value per column, "
                "and put values that contain a comma in quotes."
            )
    places = {column: header.index(column) for column in columns}
    return {column: [row[place] for row in rows] for column, place in places.items()}


def _parquet_cells(source: Path, data: bytes) -> dict[str, list[Any]]:
    """Values of the columns that a manifest has, as Python objects."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        columns = _known_columns(source, file.schema_arrow.names)
        cells: dict[str, list[Any]] = file.read(columns=columns).to_pydict()
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{source} is not a complete Parquet file ({error}). Write it again.") from error
    for column, values in cells.items():
        kinds = {type(value).__name__ for value in values} - {"NoneType"}
        if not kinds <= {"str", "int", "float"}:
            raise DatasetError(f"{source}, column {column}: holds {', '.join(kinds)} where text or numbers are needed.")
    return cells


def _known_columns(source: Path, found: list[str]) -> list[str]:
    """Those of the columns found that a manifest has.  Raises DatasetError where one is missing or there twice."""
    known = [column for column in (*COLUMNS, *BOX_COLUMNS) if column in found]
    needed = ("path", "label", *(BOX_COLUMNS if set(BOX_COLUMNS) & set(known) else ()))
    missing = [column for column in needed if column not in known]
    if missing:
        commas = " Columns are separated by commas." if any(re.search("[;\t]", name) for name in found) else ""
        raise DatasetError(
            f"{source}: the table lacks column(s) {', '.join(missing)}; it has {', '.join(map(repr, found))}.{commas} "
            f"{_needed_columns()} Column names must match exactly."
        )
    twice = [column for column in known if found.count(column) > 1]
    if twice:
        raise DatasetError(f"{source}: the table has column(s) {', '.join(twice)} more than once. Keep one of each.")
    return known


def _needed_columns() -> str:
    return (
        f"Required columns are path, label and, unless dataset.train_classes is set, split; optional are camera, "
        f"and {' '.join(BOX_COLUMNS)} together."
    )


def _label_numbers(source: Path, labels: list[Any]) -> list[Any]:
    """Labels as numbers: text of whole numbers is converted, other text numbered in sorted order, numbers are kept."""
    texts = sorted({label for label in labels if isinstance(label, str)})
    numbers = {text for text in texts if _NUMBER.fullmatch(text)}
    if not numbers:
        rank = {text: number for number, text in enumerate(texts)}
        return [rank.get(label, label) for label in labels]
    numeric = sum(label in numbers for label in labels)
    if numeric < len(labels):
        few_numbers = numeric <= len(labels) - numeric
        row = next(row for row, label in enumerate(labels, 1) if (label in numbers) == few_numbers)
        kinds = ("number", "names") if few_numbers else ("name", "whole numbers")
        raise DatasetError(
            f"{source}, row {row}, column label: {labels[row - 1]!r} is a {kinds[0]}, but other rows have {kinds[1]}. Write "
            "all labels as whole numbers, or all as names."
        )
    whole = {text: _whole(text) for text in texts}
    row = next((row for row, label in enumerate(labels, 1) if whole[label] is None), 0)
    if row:
        raise DatasetError(
            f"{source}, row {row}, column label: {labels[row - 1]!r} is not a whole number below 2**63. Write labels as "
            "whole numbers or as names."
        )
    spelled: dict[int | None, str] = {}
    for row, label in enumerate(labels, 1):
        if spelled.setdefault(whole[label], label) != label:
            raise DatasetError(
                f"{source}, row {row}, column label: {label!r} and {spelled[whole[label]]!r} are the same number. Write the "
                "labels of one identity alike; for other identities, write names (a7, a007)."
            )
    return [whole[label] for label in labels]


def _whole(text: str) -> int | None:
    digits, _, fraction = text.partition(".")
    if fraction.strip("0") or len(digits) > 40:  # Python refuses to convert thousands of digits
        return None
    number = int(digits)
    return number if abs(number) < 2**63 else None


def _checked(source: Path, table: pd.DataFrame, root: Path | None, train_classes: int | float | None) -> Manifest:
    """The manifest of one source, whose files are all there."""
    if source.is_dir():
        base, name = source, source.name
    else:
        base, name = source.parent if root is None else _absolute(root), source.stem
    # Until the classes are checked, all rows are training rows.
    has_split = "split" in table.columns
    part = Manifest.from_table(table if has_split else table.assign(split="train"), base, name, source=source)
    if not has_split:
        part = _split_by_class(source, part, train_classes)
    try:
        missing = [] if source.is_dir() else missing_files(base, part.table["path"])
    except OSError as error:
        raise DatasetError(f"{source}: can't look for its images: {error.filename}: {error.strerror}.") from None
    if missing:
        row = part.table["path"].tolist().index(missing[0]) + 1
        place = "the folder of the table; set dataset.root if it is another" if root is None else "dataset.root"
        raise DatasetError(
            f"{source}: {len(missing):,} of the {len(part.table):,} listed images are not there, the first is "
            f"{missing[0]!r} in row {row}. Paths are relative to {base} ({place})."
        )
    return part


def _split_by_class(source: Path, part: Manifest, train_classes: int | float | None) -> Manifest:
    """The first classes train, the others are the test set (section 4.2 of the paper)."""
    if train_classes is None:
        layout = f" {LAYOUT}." if source.is_dir() else ""
        raise DatasetError(f"{source} has no splits. {_SPLIT_ADVICE}.{layout}")
    classes = np.unique(part.table["label"])
    count = train_classes if isinstance(train_classes, int) else int(train_classes * len(classes) + 0.5)
    if not 1 <= count < len(classes):
        raise DatasetError(
            f"dataset.train_classes={train_classes} leaves no class to {'train' if count < 1 else 'test'}: {source} has "
            f"{len(classes):,} in all, and train and test need at least one each."
        )
    split = np.where(part.table["label"] < classes[count], "train", "test")
    return part.with_rows(part.table.assign(split=split))


def _joined(sources: list[Path], parts: list[Manifest]) -> Manifest:
    """One manifest of all sources, which share no identities and no cameras."""
    _check_alike(sources, parts)
    root = Path(os.path.commonpath([part.root for part in parts]))
    any_cameras = any(part.has_cameras for part in parts)
    tables = []
    next_label = next_camera = 0
    for source, part in zip(sources, parts):
        folder = part.root.relative_to(root).as_posix()
        table = part.table.assign(
            path=part.table["path"] if folder == "." else f"{folder}/" + part.table["path"],
            label=_shifted(source, part.table["label"], next_label),
        )
        if part.has_cameras:
            table["camera"] = _shifted(source, part.table["camera"], next_camera)
        elif any_cameras:
            # Every row or none needs a camera number; that of a training row is never used.
            table["camera"] = next_camera
        next_label, next_camera = int(table["label"].max()) + 1, int(table["camera"].max()) + 1
        tables.append(table)
    _check_disjoint(sources, tables)
    names = [part.name for part in parts]
    name = "+".join(names if len(names) <= _NAMED else [*names[:_NAMED], f"{len(names) - _NAMED} more"])
    return Manifest.from_table(pd.concat(tables, ignore_index=True), root, name, source=_listed(sources))


def _shifted(source: Path, numbers: pd.Series, start: int) -> pd.Series:
    if start + int(numbers.max()) >= 2**63:
        raise DatasetError(
            f"{source}: {numbers.name} {numbers.max()} is too large to number several sources one after another. Write smaller "
            "numbers, or names."
        )
    return numbers + start


def _check_alike(sources: list[Path], parts: list[Manifest]) -> None:
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
        if "query" in splits and not splits & {"gallery", "test"}:
            raise DatasetError(
                f"{source} has queries but no gallery: sources share no identities, so these queries "
                "have no match. Put queries and gallery into one table."
            )


def _check_disjoint(sources: list[Path], tables: list[pd.DataFrame]) -> None:
    """Raise DatasetError where two sources list the same file and box: an image has one identity."""
    seen: dict[tuple[Any, ...], tuple[int, int]] = {}
    for number, table in enumerate(tables):
        images = table[[column for column in ("path", *BOX_COLUMNS) if column in table.columns]]
        for row, (path, *box) in enumerate(images.itertuples(index=False), 1):
            other, other_row = seen.setdefault((path, *box), (number, row))
            if other != number:
                raise DatasetError(
                    f"{sources[number]}, row {row}: the image {path} is already in {sources[other]}, row {other_row}. Sources "
                    "share no identities, so an image belongs to one of them: remove one of the two rows."
                )


def _listed(sources: list[Path]) -> str:
    return " and ".join(map(str, sources))
