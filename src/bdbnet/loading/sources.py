"""What is to be embedded: a folder, a table, one file, or a part of a dataset of the suite."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from omegaconf import DictConfig

from bdbnet.datasets import BOX_COLUMNS, DatasetError, Manifest, Role
from bdbnet.datasets.class_folders import require_utf8, warn_of_files
from bdbnet.datasets.columns import OTHER_NAMES, choose_columns, remark
from bdbnet.datasets.images import image_suffixes, unread_images
from bdbnet.datasets.layout import missing_files
from bdbnet.datasets.manifest import expanded
from bdbnet.datasets.numbering import number_cameras, number_sequences
from bdbnet.datasets.open_metric_learning import drop_empty, fill_boxes, with_whole_images
from bdbnet.datasets.paths import plain_paths
from bdbnet.loading.from_config import read_manifest, settle_protocol
from bdbnet.missing import no_images
from bdbnet.regular_files import special_kind

SPLITS = ("query", "gallery", "train", "test", "all")

_OPTIONAL = ("label", "camera", "time")
_COLUMNS = ("path", *_OPTIONAL, *BOX_COLUMNS)
_TABLES = (".csv", ".parquet", ".pq")


@dataclass(frozen=True, eq=False)
class Images:
    """Images to embed.

    Attributes:
        manifest: a row per image, for reading them; its labels and cameras are made up where none are known.
        table: the same rows with what is known: `path`, and `label`, `camera`, `time`, `x1 y1 x2 y2` where given.
        source: what was named, as given.
    """

    manifest: Manifest
    table: pd.DataFrame
    source: str

    @property
    def root(self) -> Path:
        """Folder that the paths are relative to."""
        return self.manifest.root

    def __len__(self) -> int:
        return len(self.table)


def find_images(images: str | Path, *, root: str | Path | None = None) -> Images:
    """The images that `images` names.

    - A folder: every image file in it and in the folders below, sorted by path. Names with a leading dot are left out. Warns
      of images whose format Pillow can't read here.
    - A CSV file (UTF-8, commas, column names in the first line) or Parquet file with a row per image and the columns
      `path` (relative to `root`; default: the table's folder), and optional `label` (a whole number), `camera` (0 or
      more, or names), `time` (seconds since 1970, or an ISO 8601 date and time, in UTC where it has no zone; may be empty) and
      `x1 y1 x2 y2` (a box in pixels, right and lower edge excluded; the part of it beyond them is cut off), or the names that
      other tools give them. Warns of columns that are not used.
    - One image file.

    Raises DatasetError that names table, row (the first row of data is 1) and column, or the folder without images.
    """
    place = expanded(images).absolute()
    require_utf8(str(place))
    if not place.exists():
        raise DatasetError(no_images(images))
    if (kind := special_kind(place)) is not None:
        raise DatasetError(f"images={images} is {kind}: name a folder, a table or an image")
    if not place.is_dir() and place.suffix.lower() in _TABLES:
        base = place.parent if root is None else expanded(root).absolute()
        return _from_table(place, base, str(images))
    if root is not None:
        raise DatasetError(
            f"root={root} is what the paths of a table are relative to, and {images} is no table: leave root= out"
        )
    if place.is_dir():
        paths, others, special = _image_files(place)
        if not paths:
            unread = f"; there are {said}: convert them to JPEG or PNG" if (said := unread_images(others)) else ""
            raise DatasetError(
                f"images={images}: there is no image ({' '.join(image_suffixes())}) in this folder or below{unread}"
            )
        warn_of_files(place, others, special)
        return _known(pd.DataFrame({"path": paths}), place, str(images), place)
    if place.suffix.lower() not in image_suffixes():
        raise DatasetError(
            f"images={images}: neither a folder, a table ({' '.join(_TABLES)}) nor an image ({' '.join(image_suffixes())})"
        )
    return _known(pd.DataFrame({"path": [place.name]}), place.parent, str(images), place)


def dataset_images(dataset: DictConfig, split: str) -> Images:
    """The images of one part of a dataset: `query`, `gallery`, `train`, `test` (queries, then the rest of the gallery, as
    they are evaluated) or `all`.  Settles the dataset's protocol and image size as evaluation does.

    Raises DatasetError for an unknown part or one without images.
    """
    if split not in SPLITS:
        raise DatasetError(f"split={split}: choose one of {', '.join(SPLITS)}")
    manifest = read_manifest(dataset)
    settle_protocol(dataset, manifest, trained=True)
    table = manifest.table
    if split == "test":
        manifest.require("query", "gallery")
        table = pd.concat([table[table["split"].isin(("query", "test"))], table[table["split"] == "gallery"]])
    elif split != "all":
        manifest.require(cast(Role, split))
        table = manifest.subset(cast(Role, split)).table
    part = manifest.with_rows(table.reset_index(drop=True))
    return Images(part, part.table.drop(columns="split"), f"{manifest.name}, {split}")


def _image_files(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths of the image files in and below `folder`, relative to it, sorted, of other files, and of what are no regular files.

    Folders that are links are not entered.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"can't look into {error.filename}: {error.strerror}. Make it readable, or move it away.")

    found: list[str] = []
    others: list[str] = []
    special: list[str] = []
    suffixes = image_suffixes()
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            path = Path(place, name).relative_to(folder).as_posix()
            if not name.lower().endswith(suffixes):
                others.append(path)
            elif _is_special(place, name):
                special.append(path)
            else:
                require_utf8(path)
                found.append(path)
    return sorted(found), others, special


def _is_special(folder: str, name: str) -> bool:
    try:
        return special_kind(os.path.join(folder, name)) is not None  # noqa: PTH118  (of a million files)
    except OSError:  # a broken link: reading it gives the error
        return False


def _from_table(file: Path, base: Path, source: str) -> Images:
    table = _read(file)
    names = list(map(str, table.columns))
    needed = "Needed is path, optional are {}, and {} together.".format(", ".join(_OPTIONAL), " ".join(BOX_COLUMNS))
    columns = choose_columns(file, names, wanted=_COLUMNS, needed=("path",), advice=needed)
    cells = {
        column: [None if value is None or value != value else value for value in table[name].tolist()]
        for column, name in columns.used.items()
        if column != "time"
    }
    remarks = [remark(columns, _COLUMNS, empty=drop_empty(columns, cells))]
    if "camera" in cells:
        cells["camera"], said = _cameras(cells["camera"], sequence=columns.used["camera"] == "sequence")
        remarks.append(said)
    whole = fill_boxes(file, columns, cells)
    if said := "; ".join(filter(None, remarks)):
        warnings.warn(f"{file}: {said}.", stacklevel=3)
    cells["path"] = plain_paths(file, cells["path"], base, "the folder of the table, or root=", key="root")
    if "time" in columns.used:
        cells["time"] = _seconds(table[columns.used["time"]], file).tolist()
    images = _known(pd.DataFrame(cells), base, source, file)
    try:
        missing = missing_files(base, images.table["path"])
    except OSError as error:
        raise DatasetError(f"{file}: can't look for its images: {error.filename}: {error.strerror}.") from None
    if missing:
        row = cells["path"].index(missing[0]) + 1
        raise DatasetError(
            f"{file}: {len(missing):,} of the {len(table):,} listed images are not there, the first is {missing[0]!r} in row "
            f"{row}. Paths are relative to {base} (the folder of the table, or root=)."
        )
    if whole:
        part = with_whole_images(file, images.manifest, whole)
        known = images.table.assign(**{column: part.table[column] for column in BOX_COLUMNS})
        images = Images(part, known, source)
    return images


def _cameras(written: list[object], *, sequence: bool) -> tuple[list[object], str]:
    """Cameras as numbers, and what a user should know."""
    if sequence and not all(isinstance(value, int | float) for value in written):
        return number_sequences(written), ""
    numbered = number_cameras(written)
    return numbered.numbers, numbered.remark


def _read(file: Path) -> pd.DataFrame:
    """A table with the values of a CSV file as text, those of a Parquet file as they are."""
    try:
        if file.suffix.lower() != ".csv":
            return pd.read_parquet(file)
        names = (*_COLUMNS, *(name for others in OTHER_NAMES.values() for name in others))
        text = {column: pa.string() for column in names}
        parsing = pa.csv.ParseOptions(newlines_in_values=True)
        options = pa.csv.ConvertOptions(column_types=text)
        table: pd.DataFrame = pa.csv.read_csv(file, parse_options=parsing, convert_options=options).to_pandas()
        return table
    except Exception as error:  # pyarrow and pandas raise exceptions of many kinds on damaged content
        raise DatasetError(
            f"{file} can't be read as a table ({error}). Write it again as UTF-8 CSV or Parquet."
        ) from error


def _seconds(times: pd.Series, file: Path) -> np.ndarray:
    """Seconds since 1970, NaN where nothing is given."""
    empty = times.isna() | (times.astype(str).str.strip() == "")
    numbers = pd.to_numeric(times, errors="coerce") if times.dtype.kind != "M" else pd.Series(np.nan, times.index)
    dates = pd.to_datetime(times.where(numbers.isna() & ~empty), utc=True, format="ISO8601", errors="coerce")
    seconds = numbers.astype(float).fillna((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1))
    bad = np.flatnonzero(~empty & ~np.isfinite(seconds))
    if len(bad):
        raise DatasetError(
            f"{file}, row {bad[0] + 1}, column time: {times.iloc[bad[0]]!r} is no time: write seconds since 1970, or date and "
            "time as in 2024-05-31T18:30:00+02:00, or leave it empty"
        )
    return seconds.to_numpy(np.float64)


def _known(table: pd.DataFrame, root: Path, source: str, place: Path) -> Images:
    """The images of a checked table."""
    # An image without a label, a camera or a split is an ordinary one here, which a dataset has none of.
    filled = table.drop(columns="time", errors="ignore").assign(split="gallery")
    for column, value in (("label", 0), ("camera", -1)):
        if column not in filled.columns:
            filled[column] = value
    manifest = Manifest.from_table(filled, root, place.stem, source=place)
    known = manifest.table[[column for column in manifest.table.columns if column in table.columns]]
    if "time" in table.columns:
        known = known.assign(time=table["time"].to_numpy())
    return Images(manifest, known, source)
