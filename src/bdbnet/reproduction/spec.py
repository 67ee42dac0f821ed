"""The paper's tables and figures as data: rows, columns, the training of each cell, the paper's numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from bdbnet.config import PACKAGE_DIR, ConfigError
from bdbnet.regular_files import require_regular
from bdbnet.results import metric_of
from bdbnet.settings import is_whole


class SpecError(ConfigError):
    """A table that does not exist or cannot be read; the message names the file and the row or key."""


#: `Row.backbone` of a row that names a backbone only for budgets that set none.
ANY_BACKBONE = "any"


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a curve.

    Attributes:
        name: as the paper writes it.
        run: overrides of ``bdbnet.train`` that make the training; None where the method is not built here.
        paper: dataset -> numbers in the order of the table's metrics, as the paper prints them (percentages), None where it has
            a dash.
        x: of a curve's point, or with `y` of a map's cell.
        backbone: kind of backbone that the method is made for, such as ``vit``, for which a budget's own can't stand; ``any``: a
            budget's own takes the place of what `run` sets; "": what `run` sets counts over the budget's choice for a dataset.
        checkpoint: of a cross-domain table: file of weights that is evaluated; `run` are then overrides of ``bdbnet.evaluate``.
        trained_on: columns or data sets on which `checkpoint` was trained.
    """

    name: str
    run: tuple[str, ...] | None = None
    paper: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    note: str = ""
    x: float | None = None
    y: float | None = None
    backbone: str = ""
    checkpoint: str | None = None
    trained_on: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of a row; of a point of a curve with its x, of a cell of a map with x and y."""
        return " ".join([self.name, *(f"{value:g}" for value in (self.x, self.y) if value is not None)])


@dataclass(frozen=True)
class Axis:
    """What a figure's curves run over, or one of the two sides of a map."""

    key: str
    title: str
    values: tuple[float, ...]


#: What a figure of pictures shows of its networks.
PICTURES = ("maps", "ranking", "masks")


@dataclass(frozen=True)
class Picture:
    """What a figure of pictures shows.

    Attributes:
        kind: `maps` (where the networks look), `ranking` (lists of each network) or `masks` (what the drop layers drop,
            for which nothing is trained).
        images: that are shown, or queries.
        top: images of a ranking list.
        branches: whose maps are shown; empty: all.
    """

    kind: str
    images: int = 4
    top: int = 5
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        name: ``table3`` or ``figure7a``; of a user's own file its stem.
        columns: dataset -> metrics, in the paper's order.
        x: of a figure; each line of the figure is a run of rows of the same name.
        y: of a figure of maps, in which each line has a cell for every pair of x and y.
        statistics: rows count images and classes (Table 6); no training.
        picture: of a figure of pictures; the columns are then what is measured of its networks.
        cross: of a cross-domain table: column -> entry of its data set, as in ``dataset=[...]``. A row is then one training, or
            one checkpoint, that is evaluated on all columns.
    """

    name: str
    title: str
    source: str
    columns: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    x: Axis | None = None
    y: Axis | None = None
    statistics: tuple[str, ...] = ()
    picture: Picture | None = None
    cross: Mapping[str, str] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """``Table 3`` or ``Figure 7a``; of a user's own file its stem."""
        for kind in ("table", "figure"):
            if self.name.startswith(kind) and self.name[len(kind) : len(kind) + 1].isdigit():
                return f"{kind.capitalize()} {self.name[len(kind) :]}"
        return self.name


def experiments_dir(kind: str) -> Path:
    """``paper`` (tables), ``budgets`` or ``claims`` in ``experiments/``: of a checkout, else the copy that the wheel carries."""
    checkout = PACKAGE_DIR.parent.parent / "experiments" / kind
    return checkout if checkout.is_dir() else PACKAGE_DIR / "experiments" / kind


def find_tables(table: Any = None, figure: Any = None) -> list[Table]:
    """The tables and figures that a command line names.

    Args:
        table: number, number with letter, ``all``, the path of a file of one's own, or a list of these.
        figure: likewise.

    Raises:
        SpecError: there is no such table; the message lists those there are.
    """
    found: dict[str, Table] = {}
    for kind, wanted in (("table", table), ("figure", figure)):
        for name in wanted if isinstance(wanted, list | tuple) else [wanted] if wanted is not None else []:
            for path in _files(kind, str(name)):
                found[str(path)] = read_table(path)
    return list(found.values())


@lru_cache(maxsize=1)
def all_tables() -> list[Table]:
    """Every table and figure of the paper but the drawings of networks."""
    return [read_table(path) for path in sorted(experiments_dir("paper").glob("*.yaml"))]


def _files(kind: str, name: str) -> list[Path]:
    if name.endswith((".yaml", ".yml")):
        if not (path := Path(name).expanduser()).is_file():
            raise SpecError(f"{kind}={name}: no such file")
        return [path]
    there = sorted(experiments_dir("paper").glob(f"{kind}*.yaml"))
    chosen = [path for path in there if name == "all" or path.stem.removeprefix(kind).rstrip("abcd") == name]
    chosen = [path for path in there if path.stem == f"{kind}{name}"] or chosen
    if not chosen:
        choices = ", ".join(path.stem.removeprefix(kind) for path in there)
        raise SpecError(f"{kind}={name}: the paper has none of that name, or a drawing. Choose from {choices}, or all.")
    return chosen


def read_table(path: Path) -> Table:
    """Read a table's file.

    Raises:
        SpecError: the file can't be read, or a key or row in it is wrong; the message names it.
    """
    try:
        require_regular(path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not readable as YAML ({error})") from error
    known = {"title", "source", "columns", "rows", "lines", "x", "y", "kind", "picture"}
    if not isinstance(content, Mapping) or content.keys() - known:
        wrong = ", ".join(content.keys() - known) if isinstance(content, Mapping) else "no keys"
        raise SpecError(f"{path}: expected the keys {', '.join(sorted(known))}; found {wrong}")
    for key in ("title", "columns"):
        if not content.get(key):
            raise SpecError(f"{path}: {key} is missing")
    columns = content["columns"]
    if (kind := content.get("kind")) == "statistics":
        return _statistics(path, content)
    if kind == "cross_domain":
        from bdbnet.reproduction.cross_spec import read_cross_table  # which builds on this module

        return read_cross_table(path, content)
    if kind is not None:
        raise SpecError(f"{path}: kind: {kind}: choose statistics or cross_domain, or leave it out")
    if not isinstance(columns, Mapping) or not all(isinstance(metrics, list) for metrics in columns.values()):
        raise SpecError(f"{path}: columns: give dataset: [metric, ...]")
    shape = {str(dataset): tuple(map(str, metrics)) for dataset, metrics in columns.items()}
    axis, other = (_axis(path, content[key], key) if key in content else None for key in ("x", "y"))
    if other is not None and axis is None:
        raise SpecError(f"{path}: y: a map needs x, too: give key, title and values")
    picture = _picture(path, content["picture"]) if "picture" in content else None
    rows = (
        _points(path, content, shape, axis, other)
        if axis
        else tuple(_row(path, row, shape) for row in _rows(path, content))
    )
    return Table(path.stem, content["title"], content.get("source", ""), shape, rows, axis, other, picture=picture)


def _picture(path: Path, picture: Any) -> Picture:
    known = {field.name for field in fields(Picture)}
    if not isinstance(picture, Mapping) or picture.get("kind") not in PICTURES or picture.keys() - known:
        raise SpecError(f"{path}: picture: give kind ({', '.join(PICTURES)}) and, where wanted, images, top, branches")
    for key in ("images", "top"):
        if not is_whole(picture.get(key, 1), 1):
            raise SpecError(f"{path}: picture: {key}: {picture[key]}: give a whole number of at least 1")
    branches = picture.get("branches", [])
    if not isinstance(branches, list) or not all(isinstance(branch, str) for branch in branches):
        raise SpecError(f"{path}: picture: branches: give a list of names")
    return Picture(**{**picture, "branches": tuple(branches)})


def _rows(path: Path, content: Mapping[str, Any], key: str = "rows") -> Iterable[Mapping[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) and row.get("name") for row in rows):
        raise SpecError(f"{path}: {key}: give a list of entries, each with a name")
    return rows


def _row(path: Path, row: Mapping[str, Any], columns: Mapping[str, tuple[str, ...]]) -> Row:
    if wrong := row.keys() - {"name", "run", "paper", "note", "backbone"}:
        raise SpecError(f"{path}: row {row['name']}: unknown key {', '.join(map(str, wrong))}")
    return Row(
        str(row["name"]),
        run_of(path, row),
        paper_numbers(path, row["name"], row.get("paper"), columns),
        str(row.get("note", "")),
        backbone=str(row.get("backbone", "")),
    )


def run_of(path: Path, row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The overrides of a row, None where it has none.  Raises SpecError."""
    run = row.get("run")
    if run is not None and (
        not isinstance(run, list) or not all(isinstance(part, str) and "=" in part for part in run)
    ):
        raise SpecError(f"{path}: row {row['name']}: run: give a list of overrides such as experiment=bdb")
    return None if run is None else tuple(run)


def paper_numbers(
    path: Path, name: str, paper: Any, columns: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[float | None, ...]]:
    """The stated numbers of a row by column.  Raises SpecError."""
    stated = {}
    for dataset, values in (paper or {}).items():
        if dataset not in columns or not isinstance(values, list) or len(values) != len(columns[dataset]):
            raise SpecError(f"{path}: row {name}: paper: {dataset}: give one number for each metric of a column")
        for metric, value in zip(columns[dataset], values):
            if value is not None and not isinstance(value, int | float):
                raise SpecError(f"{path}: row {name}: paper: {dataset}: {metric}: {value} is not a number")
            if value is not None and metric_of(metric).unit == "%" and not 0 <= value <= 100:
                raise SpecError(
                    f"{path}: row {name}: paper: {dataset}: {metric}: {value} is not a percentage (0 to 100)"
                )
        stated[dataset] = tuple(None if value is None else float(value) for value in values)
    return stated


def _axis(path: Path, axis: Any, name: str) -> Axis:
    if not isinstance(axis, Mapping) or axis.keys() != {"key", "title", "values"}:
        raise SpecError(f"{path}: {name}: give key, title and values")
    if not all(isinstance(value, int | float) for value in axis["values"]):
        raise SpecError(f"{path}: {name}: values: give numbers")
    return Axis(axis["key"], axis["title"], tuple(map(float, axis["values"])))


def _points(
    path: Path, content: Mapping[str, Any], columns: Mapping[str, tuple[str, ...]], axis: Axis, other: Axis | None
) -> tuple[Row, ...]:
    rows = []
    for line in _rows(path, content, "lines"):
        run, stated = run_of(path, line), line.get("paper") or {}
        if other is not None and stated:
            raise SpecError(f"{path}: row {line['name']}: paper: a map has no numbers of the paper")
        for y in (None,) if other is None else other.values:
            for x in axis.values:
                values = ((axis, x), (other, y))
                settings = [f"{side.key}={value:g}" for side, value in values if side is not None]
                paper = paper_numbers(path, line["name"], stated.get(x), columns)
                point = None if run is None else (*run, *settings)
                rows.append(Row(str(line["name"]), point, paper, str(line.get("note", "")), x, y))
    return tuple(rows)


def _statistics(path: Path, content: Mapping[str, Any]) -> Table:
    datasets = tuple(map(str, content["columns"]))
    columns = dict.fromkeys(datasets, ("count",))
    rows, names = [], []
    for row in _rows(path, content):
        if not isinstance(row.get("statistic"), str):
            raise SpecError(f"{path}: row {row['name']}: statistic: say which number is counted")
        names.append(row["statistic"])
        paper = {
            str(key): (None if value is None else float(value),) for key, value in (row.get("paper") or {}).items()
        }
        rows.append(Row(str(row["name"]), None, paper, str(row.get("note", ""))))
    return Table(path.stem, content["title"], content.get("source", ""), columns, tuple(rows), statistics=tuple(names))
