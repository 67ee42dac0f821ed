"""Embeddings from a file as a test set: queries and gallery that say their own labels, or the images of a data set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from bdbnet.datasets import DatasetError, Manifest
from bdbnet.datasets.numbering import number_names
from bdbnet.evaluation.features import NAMES, FeatureError, Side
from bdbnet.wording import counted

#: Name of the data set that stands for a file of embeddings, see `conf/dataset/features.yaml`.
FEATURES = "features"

_JUNK = -1  # label of junk images in Market-1501 and what descends from it: no gallery is searched for them


@dataclass(frozen=True)
class Features:
    """Embeddings of a test set in the order of its rows.

    Attributes:
        embeddings: (N, D), queries first, then the gallery, as `manifest.table`.
        manifest: a row per image, whose paths are made up where the source has none.
        notes: what a user should know: which array was read as what, what was left out.
        root: folder of the images, where the source says it.
    """

    embeddings: np.ndarray
    manifest: Manifest
    notes: list[str] = field(default_factory=list)
    root: Path | None = None


# Images without a data set


def assemble(sides: Mapping[str, Side], *, cameras: bool, root: str | Path | None = None) -> Features:
    """Queries and gallery of embeddings that say their own labels.

    Args:
        sides: `query` and `gallery`, or "" for all images together: divided as `is_query`, `is_gallery` or `split` say, else each
            is searched among all others.
        cameras: they are needed.
        root: folder that paths are relative to; None: the one that absolute paths have in common, else the working folder.

    Raises:
        FeatureError: labels or cameras are missing or no numbers or names, or the two sides have other dimensions.
    """
    _require_both(sides)
    ordered = [sides[name] for name in ("query", "gallery", "") if name in sides]
    dimensions = {of.embeddings.shape[1] for of in ordered}
    if len(dimensions) > 1:
        a, b = ordered
        raise FeatureError(
            f"{a.name_of('embeddings')} has {a.embeddings.shape[1]} dimensions, {b.name_of('embeddings')} "
            f"{b.embeddings.shape[1]}: both must come from the same network"
        )
    for of in ordered:
        _require(
            of,
            "labels",
            f"add them, or name the data set that the images are of: dataset=market1501, for example. {_HINT}",
        )
        if cameras:
            _require(of, "cameras", f"re-ID leaves out the images of a query's own camera. {WITHOUT_CAMERAS}")
    notes: list[str] = []
    labels, names = _numbered([(of.known["labels"], of.name_of("labels")) for of in ordered], notes, "labels")
    numbered_cameras = np.full(len(labels), -1, np.int64)
    if all("cameras" in of.known for of in ordered):
        numbered_cameras, _ = _numbered(
            [(of.known["cameras"], of.name_of("cameras")) for of in ordered], notes, "cameras"
        )
        if numbered_cameras.min() < 0:
            if cameras:
                raise FeatureError(
                    f"{ordered[0].name_of('cameras')}: camera {numbered_cameras.min()} is negative, so some images have none. "
                    f"{WITHOUT_CAMERAS}"
                )
            numbered_cameras[:] = -1
    embeddings = np.concatenate([of.embeddings for of in ordered]) if len(ordered) > 1 else ordered[0].embeddings
    split = _split(sides, notes)
    paths, base = _paths(ordered, split, root)
    table = pd.DataFrame({"path": paths, "label": labels, "camera": numbered_cameras, "split": split})
    return _without_junk(embeddings, table, base, names, ordered[0].source, notes)


_HINT = f"The names are {NAMES}"
WITHOUT_CAMERAS = (
    "Where there are none, evaluate by Recall@K, which needs none: dataset=features dataset.protocol=retrieval"
)


def _require_both(sides: Mapping[str, Side]) -> None:
    if "" not in sides and len(sides) == 1:
        side = next(iter(sides))
        other = {"query": "gallery", "gallery": "query"}[side]
        raise FeatureError(
            f"{sides[side].name_of('embeddings')}: embeddings of the {side} alone; {other}_embeddings are missing. "
            "Where they are in a file of their own: features=<the gallery's> queries=<the queries'>"
            f"{sides[side].unused()}"
        )


def _require(of: Side, kind: str, advice: str) -> None:
    if kind not in of.known:
        raise FeatureError(f"{of.name_of('embeddings')}: {kind} are missing; {advice}{of.unused()}")


def _numbered(
    parts: Sequence[tuple[np.ndarray, str]], notes: list[str], kind: str
) -> tuple[np.ndarray, dict[int, str]]:
    """Labels or cameras of all sides as whole numbers, and their names where they are written otherwise."""
    texts = [values.dtype.kind in "UO" and all(isinstance(value, str) for value in values) for values, _ in parts]
    if any(texts) and not all(texts):
        raise FeatureError(f"{parts[0][1]} and {parts[1][1]}: {kind} are names on one side and numbers on the other")
    if all(texts):
        written = [str(value).strip() for values, _ in parts for value in values]
        if all(re.fullmatch(r"-?\d{1,18}", value) for value in written):
            return np.array([int(value) for value in written], np.int64), {}
        numbered = number_names(written)
        if kind == "cameras":
            notes.append(f"the {len(numbered.names)} cameras are numbered in the order of their names")
        return np.array(numbered.numbers, np.int64), dict(numbered.names)
    return np.concatenate([_whole(values, name) for values, name in parts]), {}


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind in "iu":
        if values.dtype == np.uint64 and len(values) and values.max() >= 2**63:
            raise FeatureError(f"{name}: {values.max()} is too large; expected whole numbers below 2^63")
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise FeatureError(f"{name} is {values.dtype}; expected whole numbers or names")
    wrong = np.flatnonzero(~np.isfinite(values) | (np.floor(values) != values) | (np.abs(values) > 2**53))
    if len(wrong):
        raise FeatureError(f"{name}, row {wrong[0] + 1}: {values[wrong[0]]} is not a whole number")
    return values.astype(np.int64)


_QUERY_WORDS, _GALLERY_WORDS = ("query", "queries", "probe", "q"), ("gallery", "reference", "g")


def _split(sides: Mapping[str, Side], notes: list[str]) -> np.ndarray:
    """`query`, `gallery`, `test` for an image that is both, or "" for one that is neither."""
    if "" not in sides:
        return np.repeat(["query", "gallery"], [len(sides[name].embeddings) for name in ("query", "gallery")]).astype(
            object
        )
    of = sides[""]
    count = len(of.embeddings)
    if "is_query" in of.known or "is_gallery" in of.known:
        query, gallery = (_truth(of, name) if name in of.known else None for name in ("is_query", "is_gallery"))
        query = ~gallery if query is None and gallery is not None else query
        gallery = ~query if gallery is None and query is not None else gallery
        assert query is not None
        assert gallery is not None
        split = np.select([query & gallery, query, gallery], ["test", "query", "gallery"], "").astype(object)
    elif "split" in of.known:
        words = np.array([str(word).strip().lower() for word in of.known["split"]], object)
        split = np.select(
            [np.isin(words, _QUERY_WORDS), np.isin(words, _GALLERY_WORDS), np.isin(words, ("test", "validation", "val"))],
            ["query", "gallery", "test"], "",
        ).astype(object)  # fmt: skip
        odd = {str(word) for word in words[split == ""]} - {"train", "training"}
        if odd:
            raise FeatureError(
                f"{of.name_of('split')}: {', '.join(sorted(odd)[:4])}: give query, gallery, test (both) or train"
            )
    else:
        notes.append("nothing says which images are queries: each is searched for among all others")
        return np.full(count, "test", object)
    if (split == "test").any() and not np.isin(split, ("test", "")).all():
        raise FeatureError(
            f"{of.source}: some images are query and gallery at once and others one of them: give all the same, "
            "either both or one of them"
        )
    if not len(split[np.isin(split, ("query", "test"))]) or not len(split[np.isin(split, ("gallery", "test"))]):
        raise FeatureError(f"{of.source}: no image is a {'query' if (split == 'gallery').any() else 'gallery image'}")
    return split


def _truth(of: Side, name: str) -> np.ndarray:
    values = of.known[name]
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind in "iuf" and np.isin(values, (0, 1)).all():
        return values.astype(bool)
    raise FeatureError(f"{of.name_of(name)} must be true or false (or 1 and 0) for each image")


def _paths(sides: Sequence[Side], split: np.ndarray, root: str | Path | None) -> tuple[list[str], Path | None]:
    """Path of every image relative to a folder, and the folder; made-up ones where a side has none."""
    if not all("paths" in of.known for of in sides):
        role = np.where(split == "", "unused", split)
        numbers = pd.Series(role).groupby(role).cumcount()
        return [f"{of}/{number + 1:06d}" for of, number in zip(role, numbers)], None
    paths = [str(path).strip().replace("\\", "/") for of in sides for path in of.known["paths"]]
    absolute = [PurePosixPath(path).is_absolute() or re.match(r"[A-Za-z]:/", path) is not None for path in paths]
    if not any(absolute):
        return [str(PurePosixPath(path)) for path in paths], None if root is None else Path(root)
    if not all(absolute):
        raise FeatureError(f"{sides[0].name_of('paths')}: some paths are absolute and others are not")
    if root is not None:
        base = PurePosixPath(Path(root).expanduser().absolute().as_posix())
        outside = next((path for path in paths if not PurePosixPath(path).is_relative_to(base)), None)
        if outside is not None:
            raise FeatureError(
                f"dataset.root={root}: {sides[0].name_of('paths')}: {outside} is not below it. Give a folder that holds all "
                "images, or leave dataset.root= out"
            )
    else:
        base = PurePosixPath(paths[0]).parent
        while outside := next((path for path in paths if not PurePosixPath(path).is_relative_to(base)), None):
            if base == base.parent:
                raise FeatureError(
                    f"{sides[0].name_of('paths')}: {paths[0]} and {outside} have no folder in common: give paths relative to "
                    "one folder, and dataset=features dataset.root=<the folder>"
                )
            base = base.parent
    return [str(PurePosixPath(path).relative_to(base)) for path in paths], Path(str(base))


def _without_junk(
    embeddings: np.ndarray, table: pd.DataFrame, root: Path | None, names: dict[int, str], source: str, notes: list[str]
) -> Features:
    """Queries first; images that are neither query nor gallery, and junk in the gallery, are left out."""
    junk = (table["label"] == _JUNK) & (table["split"] == "gallery") & (not names)
    if junk.any():
        notes.append(f"{int(junk.sum()):,} gallery images have the label -1, junk, and are left out")
    unused = table["split"] == ""
    if unused.any():
        notes.append(f"{counted(int(unused.sum()), 'image')} left out: neither query nor gallery")
    kept = np.flatnonzero(~(junk | unused))
    order = kept[np.argsort(table["split"].to_numpy()[kept] == "gallery", kind="stable")]
    ordered = table.iloc[order].reset_index(drop=True)
    try:
        manifest = Manifest.from_table(ordered, root or ".", FEATURES, source=source, label_names=names)
    except DatasetError as error:
        raise FeatureError(f"{error}") from error
    own = embeddings if np.array_equal(order, np.arange(len(embeddings))) else embeddings[order]
    return Features(own, manifest, notes, root)


# Images of a data set


def align(sides: Mapping[str, Side], manifest: Manifest, table: pd.DataFrame) -> Features:
    """Embeddings of the images of a data set, by their paths, else in the data set's order.

    Args:
        sides: as for `assemble`; one array may hold the images of `table`, or of the whole data set.
        manifest: the data set.
        table: its test images in the order in which they are evaluated, see `test_rows`.

    Raises:
        FeatureError: images are missing, or the numbers of rows or the labels are not those of the data set.
    """
    if "" not in sides and table["split"].isin(("query", "test")).all():
        raise FeatureError(
            f"{manifest.name}: its images are queries and gallery at once: give embeddings of all together"
        )
    _require_both(sides)
    notes: list[str] = []
    if all("paths" in of.known for of in sides.values()) and table["path"].is_unique:
        embeddings, given = _by_path(sides, manifest, table, notes)
    else:
        embeddings, given = _in_order(sides, manifest, table)
    for kind, column in (("labels", "label"), ("cameras", "camera")):
        if kind not in given or (kind == "cameras" and (not manifest.has_cameras or _some_negative(given[kind][0]))):
            continue
        _check_same(given[kind], table, column, manifest)
    return Features(embeddings, manifest, notes)


def _some_negative(cameras: np.ndarray) -> bool:
    """Whether some images have no camera: then the data set's own count."""
    return bool((pd.to_numeric(pd.Series(cameras), errors="coerce") < 0).any())


def _in_order(
    sides: Mapping[str, Side], manifest: Manifest, table: pd.DataFrame
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, str]]]:
    is_query = table["split"].isin(("query", "test")).to_numpy()
    if "" not in sides:
        expected = {"query": int(is_query.sum()), "gallery": int((~is_query).sum())}
        for name, count in expected.items():
            if len(sides[name].embeddings) != count:
                raise FeatureError(
                    f"{sides[name].name_of('embeddings')} has {len(sides[name].embeddings):,} rows, but {manifest.name} has "
                    f"{count:,} {'queries' if name == 'query' else 'gallery images'}. {_ORDER}"
                )
        parts = [sides["query"], sides["gallery"]]
        shared = {*parts[0].known} & {*parts[1].known}
        given = {
            kind: (np.concatenate([part.known[kind].astype(object) for part in parts]), parts[0].name_of(kind))
            for kind in shared
        }
        return np.concatenate([part.embeddings for part in parts]), given
    of = sides[""]
    count = len(of.embeddings)
    rows = np.arange(len(table))
    if count == len(manifest.table) and count != len(table):  # training images too
        split = manifest.table["split"]
        places = np.arange(count)
        rows = np.concatenate([places[split.isin(("query", "test"))], places[split == "gallery"]])
    elif count == len(
        table
    ):  # in the order of the data set, which is that of the table unless queries stand behind the gallery
        own = manifest.table[manifest.table["split"] != "train"]["split"].reset_index(drop=True)
        places = np.arange(count)
        rows = np.concatenate([places[own.isin(("query", "test"))], places[own == "gallery"]])
    else:
        raise FeatureError(
            f"{of.name_of('embeddings')} has {count:,} rows, but {manifest.name} has {len(table):,} test images. {_ORDER}"
        )
    return of.embeddings[rows], {kind: (values[rows], of.name_of(kind)) for kind, values in of.known.items()}


_ORDER = "Give the embeddings of all of them, in the data set's order or with their paths, or leave dataset= out"


def _by_path(
    sides: Mapping[str, Side], manifest: Manifest, table: pd.DataFrame, notes: list[str]
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, str]]]:
    """By path below the data set's folder, else by file name where each is there once."""
    is_query = table["split"].isin(("query", "test")).to_numpy()
    embeddings = None
    kept: dict[str, np.ndarray] = {}
    for name, of in sides.items():
        wanted = np.ones(len(table), bool) if name == "" else is_query if name == "query" else ~is_query
        paths = [str(path).strip().replace("\\", "/") for path in of.known["paths"]]
        keys = table["path"][wanted].tolist()
        place = {path: row for row, path in enumerate(paths)}
        if f"{manifest.root}/{keys[0]}" in place:
            keys = [f"{manifest.root}/{key}" for key in keys]
        elif not any(key in place for key in keys):
            names = [path.rpartition("/")[2] for path in paths]
            keys = [key.rpartition("/")[2] for key in keys]
            if len({*names}) == len(names) and len({*keys}) == len(keys):
                place = {path: row for row, path in enumerate(names)}
        rows = np.array([place.get(key, -1) for key in keys])
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise FeatureError(
                f"{of.name_of('paths')}: {len(missing):,} of the {len(keys):,} images of {manifest.name} are not there, the first "
                f"is {table['path'][wanted].iloc[missing[0]]}"
            )
        if embeddings is None:
            embeddings = np.empty((len(table), of.embeddings.shape[1]), of.embeddings.dtype)
        elif embeddings.shape[1] != of.embeddings.shape[1]:
            raise FeatureError(
                f"{of.name_of('embeddings')}: has other dimensions than the other side's {embeddings.shape[1]}"
            )
        embeddings[wanted] = of.embeddings[rows]
        if (extra := len(paths) - len(keys)) > 0:
            notes.append(f"{counted(extra, 'image')} of {of.source} left out: not among those of {manifest.name}")
        for kind in ("labels", "cameras"):
            if kind in of.known:
                kept.setdefault(kind, np.full(len(table), None, object))[wanted] = of.known[kind][rows]
    assert embeddings is not None
    first = next(iter(sides.values()))
    complete = {kind: values for kind, values in kept.items() if not any(value is None for value in values)}
    return embeddings, {kind: (values, first.name_of(kind)) for kind, values in complete.items()}


def _check_same(given: tuple[np.ndarray, str], table: pd.DataFrame, column: str, manifest: Manifest) -> None:
    """Raise FeatureError where labels group the images otherwise than the data set's do: numbers themselves may differ."""
    values, name = given
    own = table[column].to_numpy()
    codes, _ = pd.factorize(np.array([str(value) for value in values], object))
    pairs = pd.DataFrame({"given": codes, "own": own}).drop_duplicates()
    if len(pairs) == pairs["given"].nunique() == pairs["own"].nunique():
        return
    odd = pairs[pairs["given"].duplicated() | pairs["own"].duplicated()].index[0]
    raise FeatureError(
        f"{name}, row {odd + 1}: {values[odd]!s} is not the {column} of {table['path'].iloc[odd]} of {manifest.name} ({own[odd]}), "
        "as the rows before it show: the embeddings are in another order. Give the images' paths too, or leave dataset= out"
    )
