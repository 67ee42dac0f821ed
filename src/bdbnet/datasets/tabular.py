"""Custom datasets: a table with a row per image, a folder of class folders, or several of these."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdbnet.datasets.class_folders import LAYOUT, list_class_folders, require_utf8
from bdbnet.datasets.columns import FLAGS, TABLE_COLUMNS, Columns, choose_columns, remark
from bdbnet.datasets.layout import is_there, missing_files
from bdbnet.datasets.manifest import BOX_COLUMNS, SPLITS, DatasetError, Manifest
from bdbnet.datasets.numbering import Numbered, is_number, number_cameras, number_labels, number_sequences
from bdbnet.datasets.open_metric_learning import drop_empty, fill_boxes, is_empty, read_flags, with_whole_images
from bdbnet.datasets.paths import plain_paths
from bdbnet.datasets.sources import joined, listed
from bdbnet.datasets.table_files import Cells, read_table_file

_SPLIT_ADVICE = (
    f"Add a column split with one of {', '.join(SPLITS)} for every image (test = both query and gallery), or use folders "
    "of these names. Or set dataset.train_classes: the first classes, in the order of their numbers or names, are the "
    "training set and the others the test set. dataset.train_classes=100 counts classes, dataset.train_classes=0.5 is a "
    "share of all, and with dataset.train_classes=0 all are the test set"
)
_COLUMN_ADVICE = (
    "Required columns are path, label and, unless dataset.train_classes is set, split; optional are camera, "
    f"and {' '.join(BOX_COLUMNS)} together."
)


@dataclass
class _Rows:
    """The rows of one source: `cells` by column; `names`: labels are names, as those of folders; `flags`: splits are made of
    is_query and is_gallery;
    `whole`: rows without a box in a table with boxes."""

    source: Path
    cells: Cells
    names: bool = False
    flags: bool = False
    whole: list[int] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def has_split(self) -> bool:
        return "split" in self.cells

    def warn(self) -> None:
        if self.remarks:
            warnings.warn(f"{self.source}: {'; '.join(self.remarks)}.", stacklevel=4)


def read_table(
    root: Path | None,
    *,
    manifest: str | Path | Sequence[str | Path] | None = None,
    train_classes: int | float | None = None,
    share_labels: bool | None = None,
) -> Manifest:
    """The images that `manifest` lists: a table, a folder of class folders, or a list of these.

    A table is a CSV file (UTF-8, commas, column names in the first line) or a Parquet file with the columns

    - `path`: image file relative to `root` (default: the folder of the table), or an absolute path below it,
    - `label`: identity or class, as whole numbers, or as names, which are numbered 0, 1, ... in sorted order,
    - `split`: `train`, `query`, `gallery`, or `test` for an image that is query and gallery,
    - optional `camera`: 0 or more, or names,
    - optional `x1 y1 x2 y2`: box in pixels, right and lower edge excluded.

    The same columns are read under the names of torchreid and fast-reid (`img_path pid camid`) and of open-metric-learning
    (`x_1 y_1 x_2 y_2`, where empty is the whole image; `sequence` as camera; split `validation` with `is_query` and
    `is_gallery`). Warns of columns that are read under another name or not used. A .txt or .json file is a list of
    path, label and perhaps camera, as torchreid and fast-reid have them.

    A folder holds `train/`, and `test/` or `query/` and `gallery/`, each with one folder of images per class; or the
    folders of the classes directly. Their names are numbered 0, 1, ... in sorted order.

    Data without splits needs `train_classes`: the first classes are the training set and the others the test set, so
    that no class is in both (zero-shot retrieval). An int counts the classes, 0 for a test set alone, a float between 0 and 1
    is their share.
    Without it, a source that is called train, query, gallery or test is that split.

    Several sources share no identities, classes or cameras: the numbers of each are shifted past those of the sources
    before. With `share_labels` the same label, or camera, is the same one in all of them; None warns of class names that
    several sources have. A source without cameras may be combined with one with cameras if it is for training only. The
    manifest's root is then the common parent folder of all sources, and its name theirs, joined by "+".

    Raises DatasetError that names source, row (the first row of data is 1) and column, or the setting to change.
    """
    sources = require_sources(manifest)
    _check_train_classes(train_classes)
    if share_labels is not None and not isinstance(share_labels, bool):
        raise DatasetError(f"dataset.options.share_labels={share_labels}: write true or false")
    tables = [_read(source) for source in sources]
    if train_classes is not None and all(table.has_split for table in tables):
        raise DatasetError(
            f"dataset.train_classes={train_classes} is set, but {listed(sources)} has splits already. Leave out "
            "dataset.train_classes to use them, or remove the splits."
        )
    if root is not None and all(source.is_dir() for source in sources):
        raise DatasetError(
            f"dataset.root={root} is set, but only paths in a table are relative to it, and {listed(sources)} is a "
            "folder. Leave out dataset.root."
        )
    for table in tables if train_classes is None else ():
        _take_own_split(table)
    shared = bool(share_labels) and len(tables) > 1
    _require_splits(tables, train_classes, shared)
    if share_labels is None:
        _warn_of_common_names(tables)
    numbered = _numbered(tables, shared)
    for table in tables:
        table.warn()
    parts = [_checked(*rows, root, None if shared else train_classes) for rows in zip(tables, numbered)]
    if len(parts) == 1:
        return parts[0]
    whole = joined(sources, parts, shared=shared)
    return whole if tables[0].has_split or not shared else _split_by_class(listed(sources), whole, train_classes)


def require_sources(manifest: object) -> list[Path]:
    """The files and folders that dataset.manifest names, as absolute paths.  Raises DatasetError where one is not there."""
    sources = _sources(manifest)
    for source in sources:
        try:
            source.stat()
        except OSError as error:
            raise _unread(source, error) from None
    return sources


def _unread(source: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"can't read {error.filename or source}: {error.strerror}. dataset.manifest must name a CSV or Parquet table "
        "or a folder of class folders."
    )


def _sources(manifest: object) -> list[Path]:
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
    is_count = isinstance(train_classes, int) and not isinstance(train_classes, bool) and train_classes >= 0
    if not is_count and not (isinstance(train_classes, float) and 0 < train_classes < 1):
        raise DatasetError(
            f"dataset.train_classes={train_classes!r} is neither a number of classes (0, 1, 2, ...) nor a share of them (a "
            "number between 0 and 1, such as 0.5)."
        )


def _read(source: Path) -> _Rows:
    """The rows of one source as they are written; the column split is there if the source has splits."""

    def choose(found: list[str]) -> Columns:
        wanted = (*TABLE_COLUMNS, *FLAGS)
        return choose_columns(source, found, wanted=wanted, needed=("path", "label"), advice=_COLUMN_ADVICE)

    try:
        if source.is_dir():
            listing = list_class_folders(source)
            return _Rows(source, {str(column): listing[column].tolist() for column in listing}, names=True)
        cells, columns = read_table_file(source, choose, _COLUMN_ADVICE)
    except OSError as error:
        raise _unread(source, error) from None
    empty = drop_empty(columns, cells)
    rows = _Rows(source, cells)
    said = remark(columns, TABLE_COLUMNS, empty=empty)
    if said:
        rows.remarks.append(said)
    rows.flags = FLAGS[0] in cells
    left_out = read_flags(source, cells)
    if left_out:
        rows.remarks.append(
            f"{left_out:,} row(s) are left out, which are neither query nor gallery, and not counted below"
        )
    rows.whole = fill_boxes(source, columns, cells)
    for column, values in cells.items():
        row = next((row for row, value in enumerate(values, 1) if is_empty(value)), None)
        if row is None:
            continue
        if columns.used.get(column) == "sequence" and "split" in cells:
            row = next(
                (row for row, v in enumerate(values, 1) if is_empty(v) and cells["split"][row - 1] != "train"), None
            )
        if row is not None:
            name = columns.used.get(column, column)
            raise DatasetError(f"{source}, row {row}, column {name}: is empty. Fill it in, or leave out the row.")
    if columns.used.get("camera") == "sequence" and "camera" in cells:
        cells["camera"] = number_sequences(cells["camera"])
        rows.remarks.append("images of a query's own sequence and label are left out, as those of one camera are")
    rows.names = any(isinstance(label, str) and not is_number(label) for label in cells["label"])
    return rows


def _take_own_split(rows: _Rows) -> None:
    """A source without splits whose own name is one, as train.csv, list_query.txt or a folder test, has that split."""
    if rows.has_split:
        return
    name = rows.source.name if rows.source.is_dir() else rows.source.stem
    words = [word for word in re.split(r"[\s_.-]+", name.lower()) if word != "list"]
    if len(words) == 1 and words[0] in SPLITS:
        rows.cells["split"] = [words[0]] * len(rows.cells["path"])
        rows.remarks.append(f"all its images have split {words[0]}, after its name")


def _require_splits(tables: list[_Rows], train_classes: int | float | None, shared: bool) -> None:
    """Raise DatasetError for sources without splits, and for shared labels where only some have splits."""
    without = next((table.source for table in tables if not table.has_split), None)
    if without is not None and train_classes is None:
        layout = f" {LAYOUT}." if without.is_dir() else ""
        raise DatasetError(f"{without} has no splits. {_SPLIT_ADVICE}.{layout}")
    if without is not None and shared and any(table.has_split for table in tables):
        raise DatasetError(
            f"{without} has no splits and others have: with dataset.options.share_labels=true all sources need splits, or none."
        )


def _numbered(tables: list[_Rows], shared: bool) -> list[Numbered]:
    """The labels of each source as numbers, and its cameras in place; `shared`: the same label is the same number."""
    alone = []
    for table in tables:
        labels = table.cells["label"]
        if "name" in table.cells:
            names = table.cells.pop("name")
            alone.append(Numbered(labels, dict(zip(labels, names))))
            table.cells["label"] = names
        else:
            alone.append(number_labels(table.source, labels))
            if alone[-1].remark:
                table.remarks.append(alone[-1].remark)
    together = shared and len(tables) > 1
    _number_cameras(tables, together)
    if not together:
        return alone
    written = [label for table in tables for label in table.cells["label"]]
    if any(table.names for table in tables):
        written = [str(label) for label in written]
    whole = number_labels(listed([table.source for table in tables]), written)
    return [Numbered(part, whole.names) for part in _portions(whole.numbers, tables)]


def _number_cameras(tables: list[_Rows], together: bool) -> None:
    with_cameras = [table for table in tables if "camera" in table.cells and not table.source.is_dir()]
    groups = [with_cameras] if together and with_cameras else [[table] for table in with_cameras]
    for group in groups:
        found = number_cameras([camera for table in group for camera in table.cells["camera"]])
        for table, part in zip(group, _portions(found.numbers, group)):
            table.cells["camera"] = part
        if found.remark:
            group[0].remarks.append(found.remark)


def _portions(values: list[Any], tables: list[_Rows]) -> list[list[Any]]:
    """`values` of all rows, cut into those of each table."""
    ends = np.cumsum([len(table.cells["path"]) for table in tables]).tolist()
    return [values[begin:end] for begin, end in zip([0, *ends], ends)]


def _warn_of_common_names(tables: list[_Rows]) -> None:
    """Warn of names of classes that several sources have."""
    first: dict[str, Path] = {}
    common: dict[str, tuple[Path, Path]] = {}
    for table in tables:
        for name in dict.fromkeys(
            map(str, table.cells["name" if table.source.is_dir() else "label"] if table.names else ())
        ):
            if first.setdefault(name, table.source) != table.source:
                common.setdefault(name, (first[name], table.source))
    if common:
        name, places = next(iter(common.items()))
        warnings.warn(
            f"{len(common):,} class name(s) are in more than one source, such as {name!r} in {listed(places)}: they are taken "
            "for different classes. Set dataset.options.share_labels=true if a name is the same class in all sources, "
            "dataset.options.share_labels=false if it is not.",
            stacklevel=4,
        )


def _checked(rows: _Rows, labels: Numbered, root: Path | None, train_classes: int | float | None) -> Manifest:
    """The manifest of one source, whose files are all there; without splits and `train_classes`, all rows are for training."""
    source, cells = rows.source, rows.cells
    place = "the folder of the table; set dataset.root if it is another" if root is None else "dataset.root"
    if source.is_dir():
        base, name = source, source.name
    else:
        base, name = source.parent if root is None else _absolute(root), source.stem
        cells["path"] = plain_paths(source, cells["path"], base, place)
    table = pd.DataFrame({"camera": -1} | cells | {"label": labels.numbers}, index=range(len(cells["path"])))
    if not rows.has_split:
        table["split"] = "train"
    part = Manifest.from_table(table, base, name, source=source, label_names=labels.names)
    if not rows.has_split and train_classes is not None:
        part = _split_by_class(str(source), part, train_classes)
    if not source.is_dir():
        _require_images(source, part, place)
    if rows.whole:
        part = with_whole_images(source, part, rows.whole)
    return _apart(part) if rows.flags else part


def _apart(part: Manifest) -> Manifest:
    """Where some images are query and gallery at once and some gallery alone, the former as two rows.

    With cameras, a query is not compared with itself: that is an image of its own identity and camera.
    """
    split = part.table["split"]
    if not part.has_cameras or not {"test", "gallery"} <= {*split}:
        return part
    both = part.table[split == "test"].assign(split="gallery")
    return part.with_rows(pd.concat([part.table.assign(split=split.replace("test", "query")), both], ignore_index=True))


def _require_images(source: Path, part: Manifest, place: str) -> None:
    """Raise DatasetError unless all listed images are there."""
    base, paths = part.root, part.table["path"]
    try:
        missing = missing_files(base, paths)
    except OSError as error:
        raise DatasetError(f"{source}: can't look for its images: {error.filename}: {error.strerror}.") from None
    if not missing:
        return
    row = paths.tolist().index(missing[0]) + 1
    elsewhere = next((folder for folder in [*base.parents][:3] if is_there(folder / missing[0])), None)
    hint = f" It is in {elsewhere}: set dataset.root={elsewhere}." if elsewhere is not None else ""
    raise DatasetError(
        f"{source}: {len(missing):,} of the {len(part.table):,} listed images are not there, the first is "
        f"{missing[0]!r} in row {row}. Paths are relative to {base} ({place}).{hint}"
    )


def _split_by_class(source: str, part: Manifest, train_classes: int | float | None) -> Manifest:
    """The first classes train, the others are the test set (section 4.2 of the paper)."""
    assert train_classes is not None
    classes = np.unique(part.table["label"])
    count = train_classes if isinstance(train_classes, int) else int(train_classes * len(classes) + 0.5)
    if not (count or train_classes == 0) or count >= len(classes):
        raise DatasetError(
            f"dataset.train_classes={train_classes} leaves no class to {'train' if count < 1 else 'test'}: {source} has "
            f"{len(classes):,} in all, and train and test need at least one each."
        )
    split = np.where(part.table["label"] < classes[count], "train", "test")
    return part.with_rows(part.table.assign(split=split))
