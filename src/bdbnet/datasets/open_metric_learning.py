"""What tables of open-metric-learning have of their own: is_query and is_gallery, and columns that may be empty."""

from pathlib import Path

from bdbnet.datasets.columns import FLAGS, Columns
from bdbnet.datasets.images import ImageError, image_size
from bdbnet.datasets.manifest import BOX_COLUMNS, DatasetError, Manifest
from bdbnet.datasets.table_files import Cells

_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def is_empty(value: object) -> bool:
    """Whether nothing is written in a cell."""
    return value is None or value == ""


def drop_empty(columns: Columns, cells: Cells) -> list[str]:
    """Take out columns of other tools in which nothing is written; returns their names."""
    empty = {
        column: name
        for column, name in columns.used.items()
        if (name != column or column in FLAGS) and column not in ("path", "label") and all(map(is_empty, cells[column]))
    }
    if {*BOX_COLUMNS} & {*empty} and not {*BOX_COLUMNS} <= {*empty}:
        empty = {column: name for column, name in empty.items() if column not in BOX_COLUMNS}
    for column in empty:
        del cells[column], columns.used[column]
    return list(empty.values())


def fill_boxes(source: Path, columns: Columns, cells: Cells) -> list[int]:
    """Where a table of open-metric-learning gives no box for a row, write one that stands for the whole image.

    Returns these rows, counted from 0, for `with_whole_images`: the images' sizes are read once all are known to be there.
    Raises DatasetError for a row that gives a part of a box.
    """
    if columns.used.get("x1", "x1") == "x1":
        return []
    boxes = list(zip(*(cells[column] for column in BOX_COLUMNS)))
    whole = [row for row, box in enumerate(boxes) if all(map(is_empty, box))]
    for row, box in enumerate(boxes):
        if any(map(is_empty, box)) and not all(map(is_empty, box)):
            name = next(columns.used[column] for column, edge in zip(BOX_COLUMNS, box) if is_empty(edge))
            raise DatasetError(f"{source}, row {row + 1}, column {name}: is empty. Fill it in, or leave out the row.")
    for column, edge in zip(BOX_COLUMNS, (0, 0, 1, 1)):
        cells[column] = [edge if is_empty(value) else value for value in cells[column]]
    return whole


def with_whole_images(source: Path, part: Manifest, rows: list[int]) -> Manifest:
    """`part` with the whole image as the box of these rows.  Raises DatasetError for an image that can't be read."""
    table = part.table.copy()
    for row in rows:
        try:
            height, width = image_size(part.paths[row])
        except ImageError as error:
            raise DatasetError(
                f"{source}, row {row + 1}: the size of an image without a box is needed, but {error}."
            ) from None
        table.loc[row, ["x2", "y2"]] = (width, height)
    return part.with_rows(table)


def read_flags(source: Path, cells: Cells) -> int:
    """Turn is_query and is_gallery into splits; returns the number of rows that are neither and are taken out.

    Raises DatasetError for one of the columns without the other, and for values that are neither true nor false.
    """
    given = [flag for flag in FLAGS if flag in cells]
    if not given:
        return 0
    if len(given) < len(FLAGS):
        raise DatasetError(
            f"{source}: the table has the column {given[0]} but not {'is_gallery' if given[0] == 'is_query' else 'is_query'}. "
            "Give both, or write the split (query, gallery, or test for both) instead."
        )
    flags = [[_flag(source, name, row, value) for row, value in enumerate(cells.pop(name), 1)] for name in FLAGS]
    splits = cells.get("split", [""] * len(flags[0]))
    found: list[str] = []
    for split, query, gallery in zip(splits, *flags):
        if split not in ("", "validation"):
            found.append(split)
        elif split == "" and query is None and gallery is None:
            found.append("train")
        else:
            found.append("test" if query and gallery else "query" if query else "gallery" if gallery else "")
    cells["split"] = found
    neither = found.count("")
    if neither:
        for column, values in cells.items():
            cells[column] = [value for value, split in zip(values, found) if split]
    return neither


def _flag(source: Path, column: str, row: int, value: object) -> bool | None:
    if is_empty(value):
        return None
    text = str(value).strip().lower()
    if text in (*_TRUE, *_FALSE):
        return text in _TRUE
    raise DatasetError(f"{source}, row {row}, column {column}: {value!r} is neither True nor False.")
