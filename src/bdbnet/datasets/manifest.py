"""`Manifest`: a dataset as one table with a row per image and a checked schema."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

Role = Literal["train", "query", "gallery"]

ROLES: tuple[Role, ...] = ("train", "query", "gallery")
# A "test" image is both query and gallery: it is searched among all other test images.
SPLITS_OF_ROLE: dict[Role, tuple[str, ...]] = {
    "train": ("train",),
    "query": ("query", "test"),
    "gallery": ("gallery", "test"),
}
SPLITS = ("train", "query", "gallery", "test")
ADJECTIVES: dict[Role, str] = {"train": "training", "query": "query", "gallery": "gallery"}
"""Role -> its name before the word images, in messages."""
COLUMNS = ("path", "label", "camera", "split")
BOX_COLUMNS = ("x1", "y1", "x2", "y2")

# Empty, absolute, with a drive letter, with a backslash or NUL, or with an empty, "." or ".." part.
_BAD_PATH = re.compile(r"^$|^/|^[A-Za-z]:|[\\\0]|(?:^|/)\.{0,2}(?:/|$)")


class DatasetError(ValueError):
    """A dataset, a table or an archive that can't be used; the message names the place and the fix."""


class CountWarning(UserWarning):
    """A dataset whose number of images or identities differs from the published one."""


class OverlapWarning(UserWarning):
    """A dataset whose train and test images share identities."""


class SplitCounts(NamedTuple):
    """Size of one role of a dataset, as its authors publish it; None where they do not say how many cameras."""

    identities: int
    images: int
    cameras: int | None


@dataclass(frozen=True, eq=False)
class Manifest:
    """All images of a dataset.  Its table is checked and copied; DatasetError names source, row and column.

    `table` has one row per image and the columns

    - `path`: image file relative to `root`, with forward slashes,
    - `label`: the dataset's own identity or class number, int64, 0 or more,
    - `camera`: int64, 0 or more; -1 in every row of a dataset without cameras,
    - `split`: `train`, `query`, `gallery`, or `test` for an image that is query and gallery,
    - optional `x1 y1 x2 y2`: box in pixels, int64, right and lower edge excluded.

    The order of the rows is part of the content: equal distances are ranked by gallery order.

    `label_names` holds the labels as their owner writes them, for people to read: names of classes, or `0001`.
    """

    table: pd.DataFrame
    root: Path
    name: str = "dataset"
    label_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _checked_table(self.table, self.name))
        object.__setattr__(self, "root", Path(self.root).absolute())

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        root: str | Path,
        name: str,
        *,
        source: str | Path | None = None,
        label_names: Mapping[int, str] | None = None,
    ) -> "Manifest":
        """A manifest whose error messages name `source`, the file or folder of the table (default: `name`).

        Raises DatasetError that names source, row (the first row is 1) and column.

        >>> rows = {"path": ["a.jpg", "b.jpg"], "label": [7, 7], "camera": [-1, -1], "split": ["test", "test"]}
        >>> manifest = Manifest.from_table(pd.DataFrame(rows), "photos", "two")
        >>> len(manifest.subset("query").table), manifest.has_cameras
        (2, False)
        """
        checked = _checked_table(table, str(name if source is None else source))
        return cls._trusted(checked, Path(root).absolute(), name, label_names or {})

    def with_rows(self, table: pd.DataFrame) -> "Manifest":
        """The same dataset with a selection of its own rows in any order, which are not checked again."""
        return self._trusted(table, self.root, self.name, self.label_names)

    @classmethod
    def _trusted(cls, table: pd.DataFrame, root: Path, name: str, label_names: Mapping[int, str]) -> "Manifest":
        manifest = object.__new__(cls)
        for key, value in (("table", table), ("root", root), ("name", name), ("label_names", label_names)):
            object.__setattr__(manifest, key, value)
        return manifest

    def name_of(self, label: int) -> str:
        """A label as its owner writes it."""
        return self.label_names.get(int(label), str(label))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of columns, values and row order, in hex.  Independent of `root` and `name`."""
        digest = hashlib.sha256("\0".join(map(str, self.table.columns)).encode())
        for column in self.table.columns:
            values = self.table[column]
            if column in ("path", "split"):
                content = "\0".join(values).encode("utf-8", "surrogateescape")
            else:
                content = values.to_numpy().astype("<i8").tobytes()
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        return digest.hexdigest()

    @property
    def has_cameras(self) -> bool:
        """Whether the images come with camera numbers (all do, or none does)."""
        return len(self.table) > 0 and bool((self.table["camera"] >= 0).all())

    @cached_property
    def paths(self) -> list[str]:
        """Absolute path of every row's image file."""
        root = self.root.as_posix().rstrip("/")
        return [f"{root}/{path}" for path in self.table["path"]]

    def subset(self, role: Role) -> "Manifest":
        """The rows of one role in manifest order, numbered from 0.  May be empty: see `require`."""
        return self.with_rows(self.table[self._has_role(role)].reset_index(drop=True))

    def training_labels(self) -> np.ndarray:
        """Labels of the train rows, (N,) int64, mapped to 0..C-1 in sorted order."""
        labels = self.table.loc[self._has_role("train"), "label"].to_numpy()
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)

    def counts(self) -> pd.DataFrame:
        """Number of identities, images and cameras of each role; the index is the role."""
        rows = [self._count(role) for role in ROLES]
        return pd.DataFrame(rows, index=pd.Index(ROLES, name="role"), columns=list(SplitCounts._fields))

    def differences(self, published: Mapping[Role, SplitCounts]) -> list[str]:
        """Where `counts()` differs from published counts, one phrase per number; empty if nowhere."""
        return [
            f"{role} has {found:,} {field}, published {expected:,}"
            for role, size in published.items()
            for field, found, expected in zip(SplitCounts._fields, self._count(role), size)
            if expected is not None and found != expected
        ]

    def require(self, *roles: Role) -> None:
        """Raise DatasetError unless each of `roles` has at least one image."""
        empty = [role for role in roles if not self._has_role(role).any()]
        if empty:
            raise DatasetError(
                f"dataset {self.name} at {self.root} has no {' and no '.join(ADJECTIVES[role] for role in empty)} images "
                f"(images per role: {self.counts()['images'].to_dict()}). "
                f"Add rows with split {' / '.join(SPLITS_OF_ROLE[empty[0]])}, or choose another dataset."
            )

    def unmatched_queries(self, *, by_camera: bool = True) -> int:
        """Number of queries without a true match in the gallery: no metric counts them.  See `unmatched`."""
        return len(self.unmatched(by_camera=by_camera))

    def unmatched(self, *, by_camera: bool = True) -> pd.DataFrame:
        """The rows of the queries without a true match in the gallery.

        A match has the query's identity and another camera; without cameras, or where these do not count
        (`by_camera=False`), it is another image of the identity.
        """
        queries, gallery = self.table[self._has_role("query")], self.table[self._has_role("gallery")]
        matches = _occurrences(queries, gallery, ["label"])
        if self.has_cameras and by_camera:
            left_out = _occurrences(queries, gallery, ["label", "camera"])
        else:
            left_out = (queries["split"] == "test").to_numpy(np.int64)
        return queries[matches <= left_out]

    def shared_labels(self) -> np.ndarray:
        """Labels (n,) that train and test rows have in common, sorted: none in re-ID and in zero-shot retrieval."""
        train = self._has_role("train")
        labels, split = self.table["label"], self.table["split"]
        return np.intersect1d(labels[train], labels[split != "train"])

    def _count(self, role: Role) -> SplitCounts:
        rows = self.table[self._has_role(role)]
        cameras = rows.loc[rows["camera"] >= 0, "camera"]
        return SplitCounts(rows["label"].nunique(), len(rows), cameras.nunique())

    def _has_role(self, role: Role) -> np.ndarray:
        if role not in SPLITS_OF_ROLE:
            raise DatasetError(f"unknown role {role!r}: choose one of {', '.join(ROLES)}")
        return self.table["split"].isin(SPLITS_OF_ROLE[role]).to_numpy()


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder.  Raises DatasetError for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DatasetError(f"{path}: there is no such user. Write the full path.") from None


def _occurrences(rows: pd.DataFrame, among: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """How often the values in `columns` of each of `rows` occur in `among`."""
    counted = among.groupby(columns).size().rename("size").reset_index()
    return rows[columns].merge(counted, how="left", on=columns)["size"].fillna(0).to_numpy(np.int64)


def _checked_table(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """A copy of `table` with its columns in canonical order and type.  Raises DatasetError."""
    boxes = BOX_COLUMNS if any(column in table.columns for column in BOX_COLUMNS) else ()
    expected = (*COLUMNS, *boxes)
    _check_columns(list(map(str, table.columns)), expected, source)
    if table.empty:
        raise DatasetError(f"{source}: the table has no rows. Write one row per image.")
    checked: dict[str, object] = {}
    for column in expected:
        values = table[column].reset_index(drop=True)
        _refuse(values.isna(), values, source, column, "is not a value: fill it in")
        checked[column] = values if column in ("path", "split") else _whole_numbers(values, source, column)
    result = pd.DataFrame(checked)
    _check_paths(result["path"], source)
    known = result["split"].isin(SPLITS)
    advice = f"is not one of {', '.join(SPLITS)}: write one of them, or leave the row out"
    _refuse(~known, result["split"], source, "split", advice)
    _check_numbers(result, source, bool(boxes))
    _check_unique(result, source)
    return result


def _check_columns(found: Sequence[str], expected: Sequence[str], source: str) -> None:
    for problem, columns in (
        ("lacks", [column for column in expected if column not in found]),
        ("has unknown", [column for column in found if column not in expected]),
        ("repeats", sorted({column for column in found if found.count(column) > 1})),
    ):
        if columns:
            raise DatasetError(
                f"{source}: the table {problem} column(s) {', '.join(columns)}. Needed are {', '.join(COLUMNS)} "
                f"(camera is -1 where there is none), optional {' '.join(BOX_COLUMNS)} together."
            )


def _whole_numbers(values: pd.Series, source: str, column: str) -> np.ndarray:
    """`values` as int64.  Raises DatasetError at the first value that is not a whole number."""
    if pd.api.types.is_signed_integer_dtype(values.dtype):
        return values.to_numpy(dtype=np.int64)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    # Beyond 2**53 a float no longer tells neighbouring whole numbers apart.
    good = np.isfinite(numbers) & (np.abs(numbers) < 2**53) & (np.floor(numbers) == numbers)
    _refuse(~good, values, source, column, "is not a whole number: number them 0, 1, ...")
    return numbers.astype(np.int64)


def _check_paths(paths: pd.Series, source: str) -> None:
    bad = np.fromiter((not isinstance(path, str) or _BAD_PATH.search(path) is not None for path in paths), bool)
    advice = "is not a plain relative path: write it relative to the dataset folder, with '/', without '.' or '..'"
    _refuse(bad, paths, source, "path", advice)


def _check_numbers(table: pd.DataFrame, source: str, boxes: bool) -> None:
    _refuse(table["label"] < 0, table["label"], source, "label", "is negative: leave junk images out of the table")
    camera = table["camera"]
    _refuse(camera < -1, camera, source, "camera", "is negative: number cameras from 0, or write -1 for none")
    if (camera >= 0).any():
        _refuse(camera < 0, camera, source, "camera", "means no camera, but other rows have one: give all or none")
    if boxes:
        for column in ("x1", "y1"):
            _refuse(table[column] < 0, table[column], source, column, "lies outside of the image: count from 0")
        for low, high in (("x1", "x2"), ("y1", "y2")):
            _refuse(table[high] <= table[low], table[high], source, high, f"leaves an empty box: give more than {low}")


def _check_unique(table: pd.DataFrame, source: str) -> None:
    """No image twice in a role; several boxes of one photograph are several images."""
    columns = ["path", *(column for column in BOX_COLUMNS if column in table.columns)]
    for role, splits in SPLITS_OF_ROLE.items():
        images = table.loc[table["split"].isin(splits), columns]
        repeated = images.duplicated()
        if repeated.any():
            again = images[repeated].iloc[0]
            first, second = images.index[(images == again).all(axis=1)][:2]
            box = ", with the same box" if len(columns) > 1 else ""
            raise DatasetError(
                f"{source}, row {second + 1}, column path: {again['path']!r} is a {role} image already in row "
                f"{first + 1}{box}. Remove one of the two rows."
            )


def _refuse(bad: pd.Series | np.ndarray, values: pd.Series, source: str, column: str, reason: str) -> None:
    """Raise DatasetError at the first row where `bad` is true."""
    rows = np.flatnonzero(bad)
    if len(rows):
        value = values.iloc[rows[0]]
        shown = repr(value) if isinstance(value, str) else str(value)
        more = f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
        raise DatasetError(f"{source}, row {rows[0] + 1}, column {column}: {shown} {reason}{more}.")
