"""Lists of images as authors write them: a text file with a line per image."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.datasets.manifest import DatasetError

GET_AGAIN = "Get the authors' original file again."
NUMBER = "[0-9]{1,9}"
_DECIMAL = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"
_NAME = r"[^\s/\\\0.][^\s/\\\0]*"
PATH = f"{_NAME}(?:/{_NAME})*"
# Column of a list -> what it must match, and that in words.
FORMS = {
    **dict.fromkeys(("image_id", "class_id", "super_class_id", "camera_id"), (NUMBER, "a whole number")),
    **dict.fromkeys(("x", "y", "width", "height"), (_DECIMAL, "a number")),
    **dict.fromkeys(("path", "image_name"), (PATH, "a plain relative path")),
    "item_id": ("id_[0-9]{8}", "an item such as id_00000002"),
    "evaluation_status": ("train|query|gallery", "one of train, query, gallery"),
}


def read_list(file: Path, columns: tuple[str, ...], *, header: bool = False, counted: bool = False) -> pd.DataFrame:
    """The rows of a text file with one image per line; the index holds the numbers of the lines, from 1.

    `header`: a line names the columns first. `counted`: a line before that gives the number of images.

    Raises DatasetError for a file that can't be read as text or lists no images, and for a line that does not fit.
    """
    try:
        # Some editors write a byte order mark, which does not belong to the first value.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8 text ({error.reason}). {GET_AGAIN}") from None
    except OSError as error:
        raise DatasetError(f"can't read {file}: {error.strerror}.") from None
    if header:
        line = lines[counted] if len(lines) > counted else ""
        if line.split() != list(columns):
            raise DatasetError(
                f"{file}, line {counted + 1}: expected the header {' '.join(columns)!r}, found {line[:80]!r}. {GET_AGAIN}"
            )
    match = re.compile(r"\s+".join(f"({FORMS[column][0]})" for column in columns)).fullmatch
    numbers, rows = [], []
    for number, line in enumerate(lines[header + counted :], header + counted + 1):
        found = match(line.strip())
        if found:
            numbers.append(number)
            rows.append(found.groups())
        elif line.strip():
            raise DatasetError(f"{file}, line {number}: {_fault(line, columns)}. {GET_AGAIN}")
    if counted and lines[0].strip() != str(len(rows)):
        raise DatasetError(
            f"{file}, line 1: expected the number of images, {len(rows)} by the lines below, found {lines[0][:80]!r}. "
            f"The list is incomplete or was changed. {GET_AGAIN}"
        )
    if not rows:
        raise DatasetError(f"{file} lists no images. {GET_AGAIN}")
    table = pd.DataFrame(rows, index=numbers, columns=list(columns))
    if "path" in columns:
        refuse(table["path"].duplicated(), table["path"], file, "line", "is listed a second time")
    return table.astype({column: np.int64 for column in columns if FORMS[column][0] == NUMBER})


def _fault(line: str, columns: tuple[str, ...]) -> str:
    """What is wrong with a line that doesn't match."""
    values = line.split()
    if len(values) != len(columns):
        return f"expected the {len(columns)} columns {' '.join(columns)}, found {line.strip()[:80]!r}"
    return next(
        f"{column} {value[:80]!r} is not {FORMS[column][1]}"
        for column, value in zip(columns, values)
        if not re.fullmatch(FORMS[column][0], value)
    )


def refuse(bad: pd.Series, values: pd.Series, file: Path, place: str, reason: str) -> None:
    """Raise DatasetError at the first true value of `bad`, whose index is the line or row (`place`) of `file`."""
    if bad.any():
        first = np.flatnonzero(bad)[0]
        value = values.iloc[first]
        shown = repr(value) if isinstance(value, str) else str(value)
        raise DatasetError(f"{file}, {place} {values.index[first]}: {shown} {reason}. {GET_AGAIN}")
