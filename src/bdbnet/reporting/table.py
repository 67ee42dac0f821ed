"""A table of ready texts in five notations, and the mean and spread of a metric over seeds."""

import csv
import io
import re
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape

from bdbnet.reporting.page import html_row, html_table
from bdbnet.results import Metric

#: Minus sign of the width of a plus, for signed differences in a table.
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Spread:
    """Several measurements of one number. `std` is the sample standard deviation, None where there is one value."""

    mean: float
    std: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation (n - 1) and number of the values.

    >>> spread([0.5])
    Spread(mean=0.5, std=None, count=1)
    """
    if not values:
        raise ValueError("values: give at least one")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def spread_text(metric: Metric, spread: Spread | None) -> str:
    """A metric's mean and standard deviation as a table shows them, "-" for None.

    >>> from bdbnet.results import metric_of
    >>> spread_text(metric_of("mAP"), Spread(0.728, None, 1)), spread_text(metric_of("mAP"), Spread(0.728, 0.0042, 3))
    ('72.8', '72.8 ± 0.4')
    """
    if spread is None or spread.std is None:
        return metric.number(None if spread is None else spread.mean)
    return f"{metric.number(spread.mean)} ± {metric.number(spread.std)}"


def scaled(metric: Metric, spread: Spread | None) -> Spread | None:
    """The numbers that are shown of a metric: percentages of fractions."""
    if spread is None:
        return None
    std = None if spread.std is None else metric.scale * spread.std
    return Spread(metric.scale * spread.mean, std, spread.count)


@dataclass(frozen=True)
class Grid:
    """A table of ready texts. The first column is set to the left, all others to the right.

    Attributes:
        title: one line; may be empty.
        heads: names of the columns.
        rows: as many texts in each as there are heads.
        notes: lines below the table.
        strong: row and column of the cells to be set in bold, counted from 0 without the heads.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]
    strong: Collection[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.heads):
                raise ValueError(f"rows[{number}]: {len(row)} texts for {len(self.heads)} heads; give one for each")


def as_text(grid: Grid) -> str:
    """For a terminal: title, columns in line, notes."""
    lines = _aligned([_plain(head) for head in grid.heads], [[_plain(text) for text in row] for row in grid.rows])
    rows = ["  ".join(line).rstrip() for line in lines]
    rows.insert(1, "-" * max(map(len, rows)))
    return "\n".join([*filter(None, [_plain(grid.title)]), *rows, *map(_plain, grid.notes)])


def as_markdown(grid: Grid) -> str:
    """The title as a plain line, so that the caller chooses the rank of the heading; then the table and the notes."""
    heads = [markdown_text(head) for head in grid.heads]
    head, *lines = _aligned(heads, _cells(grid, markdown_text, "**{}**"), least=4)
    rule = [
        f":{'-' * (len(text) - 1)}" if column == 0 else f"{'-' * (len(text) - 1)}:" for column, text in enumerate(head)
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
    return "\n\n".join([*filter(None, [markdown_text(grid.title)]), table, *map(markdown_text, grid.notes)]) + "\n"


def as_csv(grid: Grid) -> str:
    """Heads and rows alone, for other programs."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([grid.heads, *grid.rows])
    return buffer.getvalue()


def as_latex(grid: Grid) -> str:
    r"""A tabular of the package booktabs, to be read by \input; title and notes are comments."""
    rows = [[_latex(head) for head in grid.heads], *_cells(grid, _latex, r"\textbf{{{}}}")]
    # \\ and \midrule would take a bracket or a star that follows as their own argument.
    head, *lines = (f"{'{}' * line.startswith(('[', '*'))}{line} \\\\" for line in (" & ".join(row) for row in rows))
    comments = [f"% {_plain(text)}" for text in (grid.title, *grid.notes) if text]
    table = [f"\\begin{{tabular}}{{l{'r' * (len(grid.heads) - 1)}}}", "\\toprule", head, "\\midrule", *lines]
    return "\n".join([*comments, *table, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_html(grid: Grid) -> str:
    """The table alone, in the style of the run page; title and notes are the caller's."""
    rows = [html_row(row[0], row[1:]) for row in _cells(grid, escape, "<b>{}</b>")]
    return html_table([_plain(head) for head in grid.heads], rows)


def _cells(grid: Grid, written: Callable[[str], str], bold: str) -> list[list[str]]:
    return [
        [
            bold.format(written(text)) if (number, column) in grid.strong else written(text)
            for column, text in enumerate(row)
        ]
        for number, row in enumerate(grid.rows)
    ]


def _aligned(heads: list[str], rows: list[list[str]], least: int = 0) -> list[list[str]]:
    widths = [max(least, *map(len, column)) for column in zip(heads, *rows)]
    return [
        [text.rjust(width) if column else text.ljust(width) for column, (text, width) in enumerate(zip(line, widths))]
        for line in (heads, *rows)
    ]


def _plain(text: str) -> str:
    """One line: a break would end a comment or a row."""
    return " ".join(text.split())


def markdown_text(text: str) -> str:
    """A plain text on one line of Markdown, with what it would take for marks escaped."""
    text = re.sub(r"([\\`*|<])", r"\\\1", _plain(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside of a word they stay underscores


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "\u2212": "$-$", "\u00d7": r"$\times$", "\u2013": "--", "\u2014": "---",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _plain(text))
