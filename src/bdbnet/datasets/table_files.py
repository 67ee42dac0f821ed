"""Files with a row per image: CSV, Parquet, and the lists of torchreid and fast-reid as text or JSON."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bdbnet.datasets.columns import Columns
from bdbnet.datasets.images import known_suffixes
from bdbnet.datasets.manifest import DatasetError
from bdbnet.regular_files import regular

Choose = Callable[[list[str]], Columns]
"""Which of the columns found are used; raises DatasetError where that leaves something out."""
Cells = dict[str, list[Any]]
"""Column -> value of each row: text, a number, or None or "" where nothing is given."""

_LISTS = (".txt", ".lst", ".list")
# Path, label and perhaps camera, as on a line of a list or as a tuple of Python; the path ends with the suffix of an image.
_LINE = re.compile(
    rf"""[(\[]?\s*(["']?)(?P<path>\S.*?(?:{"|".join(map(re.escape, known_suffixes()))}))\1
    [\s,;]+(?P<label>[^\s,;()\[\]]+)(?:[\s,;]+(?P<camera>[^\s,;()\[\]]+))?(?:[\s,;]+(?P<fourth>[^\s,;()\[\]]+))?\s*[)\]]?,?""",
    re.IGNORECASE | re.VERBOSE,
)
_PARTS = ("train", "query", "gallery")


def read_table_file(source: Path, choose: Choose, advice: str) -> tuple[Cells, Columns]:
    """The used columns of a file under bdbnet's names, and what was chosen.

    Text that is no CSV has no column names: each line of a .txt, .lst or .list file, and each entry of a .json file, is
    path, label and perhaps camera.  Raises DatasetError that names source, row or line, OSError.
    """
    with open(source, "rb", opener=regular) as file:
        data = file.read()
    suffix = source.suffix.lower()
    if suffix in (".parquet", ".pq") or data.startswith(b"PAR1"):
        return _parquet_cells(source, data, choose)
    text = _text(source, data)
    if suffix == ".json":
        return _json_cells(source, text)
    first = text.lstrip("\r\n").split("\n", 1)[0].strip()
    if suffix in _LISTS and not {"path", "img_path"} & set(re.split(r"[,;\t]", first)):
        return _list_cells(source, text)
    return _csv_cells(source, text, choose, advice)


def _text(source: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{source}, line {line}: is not UTF-8 text. Save the table again as CSV with the encoding UTF-8."
        ) from None


def _csv_cells(source: Path, text: str, choose: Choose, advice: str) -> tuple[Cells, Columns]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise DatasetError(
            f"{source}, line {reader.line_num}: is not CSV ({error}). Put values that contain commas, quotes or line breaks "
            'in quotes and double the quotes in them: "a ""b"", c.jpg".'
        ) from None
    if not lines:
        raise DatasetError(f"{source} is empty. {advice} The first line holds their names.")
    header, *rows = lines
    columns = choose(header)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DatasetError(
                f"{source}, row {number}: has {len(row)} values for the {len(header)} columns. Write one value per column, "
                "and put values that contain a comma in quotes."
            )
    places = {column: header.index(name) for column, name in columns.used.items()}
    return {column: [row[place] for row in rows] for column, place in places.items()}, columns


def _parquet_cells(source: Path, data: bytes, choose: Choose) -> tuple[Cells, Columns]:
    """Values as Python objects."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        columns = choose(file.schema_arrow.names)
        read = file.read(columns=list(columns.used.values()))
        cells: Cells = {column: read.column(name).to_pylist() for column, name in columns.used.items()}
    except DatasetError:
        raise
    except Exception as error:  # pyarrow raises exceptions of many kinds on damaged content
        raise DatasetError(f"{source} is not a complete Parquet file ({error}). Write it again.") from error
    for column, name in columns.used.items():
        cells[column] = [None if value != value else value for value in cells[column]]
        kinds = {type(value).__name__ for value in cells[column]} - {"NoneType"}
        if not kinds <= {"str", "int", "float", *(("bool",) if column.startswith("is_") else ())}:
            raise DatasetError(
                f"{source}, column {name}: holds {', '.join(sorted(kinds))} where text or numbers are needed."
            )
    return cells, columns


def _list_cells(source: Path, text: str) -> tuple[Cells, Columns]:
    """The lines of a list: path, label and perhaps camera, separated by spaces, tabs or commas."""
    rows, fourth = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DatasetError(
                f"{source}, line {number}: {line.strip()[:80]!r} is not an image's path, its label and perhaps its camera, as in "
                "'people/a_1.jpg 7 2'. A table with column names is a .csv file."
            )
        rows.append((match["path"], match["label"], match["camera"]))
        fourth |= match["fourth"] is not None
    return _triples(source, rows, fourth)


def _json_cells(source: Path, text: str) -> tuple[Cells, Columns]:
    """The lists that torchreid keeps: {"train": [[path, pid, camid], ...], "query": ..., "gallery": ...}, or one list."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not JSON ({error}). Write it again, or save a CSV table.") from None
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if len(content) > 1:
            raise DatasetError(
                f"{source} holds {len(content)} splits of a data set. Save one of them in a file of its own."
            )
        content = content[0]
    parts = {part: content[part] for part in _PARTS if part in content} if isinstance(content, dict) else {"": content}
    if not parts or not all(isinstance(part, list) for part in parts.values()):
        raise DatasetError(
            f'{source} holds no lists of images: write {{"train": [[path, label, camera], ...], "query": ..., "gallery": ...}}.'
        )
    rows, splits = [], []
    for part, entries in parts.items():
        for number, entry in enumerate(entries, 1):
            good = isinstance(entry, list) and 2 <= len(entry) <= 4 and isinstance(entry[0], str)
            if not good or not all(
                isinstance(value, str) or (type(value) is int and abs(value) < 2**63) for value in entry[1:3]
            ):
                raise DatasetError(
                    f"{source}, entry {number}{f' of {part}' if part else ''}: {str(entry)[:80]} is not [path, label] or [path, "
                    "label, camera]."
                )
            rows.append((entry[0], entry[1], entry[2] if len(entry) > 2 else None))
            splits.append(part)
    fourth = any(len(entry) > 3 for part in parts.values() for entry in part)
    cells, columns = _triples(source, rows, fourth)
    if "" not in parts:
        cells["split"] = splits
        columns.used["split"] = "split"
    return cells, columns


def _triples(source: Path, rows: Sequence[tuple[Any, Any, Any]], fourth: bool) -> tuple[Cells, Columns]:
    """The columns of rows path, label, camera, of which all or none give the camera; `fourth`: there was one more value."""
    if not rows:
        raise DatasetError(
            f"{source} lists no images. Write one image a line: its path, its label and perhaps its camera."
        )
    seen = [row[2] is not None for row in rows]
    names = ("path", "label", *(("camera",) if seen[0] else ()))
    if any(seen) != all(seen):
        row = seen.index(not seen[0]) + 1
        raise DatasetError(
            f"{source}, row {row}: some images have a camera and some have none. Give it for all, or for none."
        )
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}, Columns(
        {name: name for name in names}, ["the fourth value"] if fourth else []
    )
