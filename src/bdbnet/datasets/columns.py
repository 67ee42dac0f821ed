"""Columns of a table with a row per image: bdbnet's own names, those of other tools, and names that are nearly right."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bdbnet.datasets.manifest import BOX_COLUMNS, COLUMNS, DatasetError

# Column -> what other tools call it: torchreid and fast-reid (img_path, pid, camid), open-metric-learning (the rest).
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("img_path",),
    "label": ("pid",),
    "camera": ("camid", "sequence"),
    "x1": ("x_1",),
    "y1": ("y_1",),
    "x2": ("x_2",),
    "y2": ("y_2",),
}
FLAGS = ("is_query", "is_gallery")
"""Columns of open-metric-learning that say what an image of split `validation` is."""

# Column -> names that people give to it, without capitals and punctuation; they are suggested, never read.
_ALIKE: dict[str, tuple[str, ...]] = {
    "path": ("paths", "file", "files", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("labels", "identity", "identityid", "id", "person", "personid", "pid", "class", "classid", "classname", "target",
              "name"),
    "camera": ("cameras", "cam", "camid", "kamera", "cameraid", "cameraname", "camname", "sequence"),
    "split": ("splits", "set", "subset", "partition", "part", "fold", "role"),
    "x1": ("xmin", "left", "bboxx1"),
    "y1": ("ymin", "top", "bboxy1"),
    "x2": ("xmax", "right", "bboxx2"),
    "y2": ("ymax", "bottom", "bboxy2"),
    "time": ("timestamp", "datetime", "times"),
}  # fmt: skip
# From this similarity on, names of four letters and more are taken for misspellings of each other.
_SIMILAR = 0.8
_SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))


class Columns(NamedTuple):
    """What a table's columns are: `used` maps our names to the table's, `unused` lists the others."""

    used: dict[str, str]
    unused: list[str]


def choose_columns(
    source: str | Path, found: Sequence[str], *, wanted: Sequence[str], needed: Sequence[str], advice: str
) -> Columns:
    """Which of the columns `found` are `wanted`, under their own names or those of other tools.

    Raises DatasetError where one of `needed`, or a part of a box, is missing, or a column is there twice.
    """
    used: dict[str, str] = {}
    for column in wanted:
        name = next((name for name in (column, *OTHER_NAMES.get(column, ())) if name in found), None)
        if name is not None:
            used[column] = name
    unused = [name for name in dict.fromkeys(found) if name not in used.values()]
    boxes = BOX_COLUMNS if set(BOX_COLUMNS) & set(used) else ()
    missing = [column for column in (*needed, *boxes) if column not in used]
    if missing:
        commas = " Columns are separated by commas." if any(re.search("[;\t]", name) for name in found) else ""
        near = near_misses(unused, missing)
        hint = f" Did you mean {_suggestion(near)}." if near else ""
        raise DatasetError(
            f"{source}: the table lacks column(s) {', '.join(missing)}; it has {', '.join(map(repr, found))}.{commas}{hint} "
            f"{advice} Column names must match exactly."
        )
    twice = [name for name in used.values() if found.count(name) > 1]
    if twice:
        raise DatasetError(f"{source}: the table has column(s) {', '.join(twice)} more than once. Keep one of each.")
    return Columns(used, unused)


def remark(columns: Columns, wanted: Sequence[str], *, empty: Iterable[str] = ()) -> str:
    """What a user should know about the columns of a table: those read under another name, and those not used.

    `empty` are columns that are not used because nothing is in them.  Empty text where there is nothing to say.
    """
    parts = []
    renamed = {name: column for column, name in columns.used.items() if name != column}
    if renamed:
        listed = ", ".join(f"{name} as {column}" for name, column in renamed.items())
        parts.append(f"columns of another name are read: {listed}")
    unused = [*columns.unused, *(f"{name} (empty)" for name in empty)]
    if unused:
        parts.append(f"columns that are not used: {', '.join(unused)}")
        absent = [column for column in wanted if column not in columns.used]
        if near := near_misses(columns.unused, absent):
            parts.append(f"did you mean {_suggestion(near)}")
        sizes = next((names for names in _SIZES if {*names} <= {*columns.unused}), None)
        if sizes and "x1" in absent:
            x, y, width, height = sizes
            parts.append(f"a box is written as x1={x}, y1={y}, x2={x}+{width}, y2={y}+{height}")
    return "; ".join(parts)


def near_misses(names: Iterable[str], absent: Iterable[str]) -> dict[str, str]:
    """Those of `names` that probably mean one of the `absent` columns, and which."""
    spellings = {
        spelling: column
        for column in absent
        for spelling in (column, *(_plain(name) for name in OTHER_NAMES.get(column, ())), *_ALIKE.get(column, ()))
    }
    found: dict[str, str] = {}
    for name in names:
        plain = _plain(name)
        if plain in spellings:
            found[name] = spellings[plain]
        elif (
            len(plain) >= 4
            and (close := difflib.get_close_matches(plain, spellings, 1, _SIMILAR))
            and len(close[0]) >= 4
        ):
            found[name] = spellings[close[0]]
    return found


def _suggestion(near: Mapping[str, str]) -> str:
    return f"{', '.join(f'{column} by {name!r}' for name, column in near.items())}? Then rename the column"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


TABLE_COLUMNS = (*COLUMNS, *BOX_COLUMNS)
"""Columns of a data set's table."""
