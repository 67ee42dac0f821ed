"""A sweep as a table and a plot: in the terminal, as Markdown, CSV and LaTeX, and as one page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from bdbnet.figures import (
    ConfigurationDot,
    ParameterCurve,
    configuration_dots,
    label_of,
    parameter_curves,
)
from bdbnet.reporting.page import html_row, html_table, page
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reporting.settings import ABSENT, heads_of, is_numeric, shown, sort_key
from bdbnet.reporting.sweep import Configuration, Sweep, SweepTable, read_sweep, seeds_of
from bdbnet.reporting.table import Grid, as_csv, as_html, as_latex, as_markdown, as_text, percent_spread
from bdbnet.reporting.wording import duration, protocol_line
from bdbnet.results import REPORT, write_atomically

#: More lines than these cannot be told apart in one plot.
_MOST_LINES = 8


def write_sweep_report(folder: str | Path) -> tuple[str, list[Path]]:
    """Write `report.html`, `sweep.csv`, `sweep.md` and `sweep.tex` into a sweep's folder.

    Returns the table for the terminal and the paths of the files, the page first. The page needs no other file, no network
    and no JavaScript; its links lead to the folders of the runs.

    Raises:
        ReportError: no run with a readable result.
    """
    sweep = read_sweep(folder)
    grids = [grid_of(sweep, table) for table in sweep.tables]
    missing = [f"{name}: {reason}." for name, reason in (*sweep.unfinished, *sweep.unreadable)]
    name = sweep.path.resolve().name
    markdown = [f"# Sweep {name}\n", *(f"## {as_markdown(grid)}" for grid in grids)]
    if missing:
        markdown.append("## Runs without a result\n\n" + "".join(f"- `{text}`\n" for text in missing))
    texts = {
        REPORT: render(sweep, grids),
        "sweep.csv": as_csv(numbers_of(sweep)),
        "sweep.md": "\n".join(markdown),
        "sweep.tex": "\n".join(map(as_latex, grids)),
    }
    paths = [
        write_atomically(sweep.path / file, text.encode("utf-8", "xmlcharrefreplace")) for file, text in texts.items()
    ]
    missing = [f"without a result: {text}" for text in missing]
    return "\n".join(["", "\n\n".join(map(as_text, grids)), *missing, ""]), paths


def grid_of(sweep: Sweep, table: SweepTable) -> Grid:
    """The table to read: settings that vary, metrics in percent with their best in bold, seeds and time."""
    heads = heads_of(table.settings) or ["settings"]
    kind = table.runs[0].result.kind
    metrics = table.metrics
    rows = []
    for configuration in table.configurations:
        spreads = [configuration.metric(name) for name in metrics]
        seconds = configuration.seconds
        rows.append(
            [
                *([shown(value) for value in configuration.values] or ["equal in all runs"]),
                *("-" if spread is None else percent_spread(spread) for spread in spreads),
                str(len(set(seeds_of(configuration)))),
                "-" if seconds is None else duration(seconds),
            ]
        )
    heads += [*map(label_of, metrics), "seeds", "train time" if kind == "train" else "time"]
    protocol = table.runs[0].result.protocol
    notes = [f"{protocol_line(protocol)}.", f"In percent.{_about_spread(table)}", *table.remarks]
    name = sweep.path.resolve().name
    title = f"{name}: {table.differs}" if table.differs else f"{protocol.dataset}: {name}"
    return Grid(title, heads, rows, notes, _best(table, max(1, len(table.settings))))


def _about_spread(table: SweepTable) -> str:
    several = any(len(configuration.runs) > 1 for configuration in table.configurations)
    mean = " Mean ± sample standard deviation over the seeds." if several else ""
    if any(run.result.checkpoint == "last" for run in table.runs):
        mean += " Weights evaluated: the last epoch."
    return mean


def _best(table: SweepTable, first: int) -> frozenset[tuple[int, int]]:
    """Cells with the best mean of their column, as far as it is shown; none where all are equal."""
    strong = set()
    for column, name in enumerate(table.metrics, start=first):
        spreads = [configuration.metric(name) for configuration in table.configurations]
        means = {row: round(100 * spread.mean, 1) for row, spread in enumerate(spreads) if spread is not None}
        if len(set(means.values())) > 1:
            strong |= {(row, column) for row, mean in means.items() if mean == max(means.values())}
    return frozenset(strong)


def numbers_of(sweep: Sweep) -> Grid:
    """All tables as one for other programs: a line per configuration, percentages and seconds with four decimals."""
    keys = list(dict.fromkeys(key for table in sweep.tables for key in table.settings))
    metrics = list(dict.fromkeys(name for table in sweep.tables for name in table.metrics))
    rows = []
    for table in sweep.tables:
        for configuration in table.configurations:
            values = dict(zip(table.settings, configuration.values))
            cells = [table.differs, *(shown(values[key]) if key in values else "" for key in keys)]
            for spread in map(configuration.metric, metrics):
                cells += [_number(None if spread is None else 100 * spread.mean)]
                cells += [_number(None if spread is None or spread.std is None else 100 * spread.std)]
            rows.append([*cells, str(len(set(seeds_of(configuration)))), _number(configuration.seconds)])
    heads = [
        "table",
        *heads_of(keys),
        *(f"{name}{part}" for name in metrics for part in ("", "_std")),
        "seeds",
        "seconds",
    ]
    return Grid("", heads, rows, [])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def render(sweep: Sweep, grids: Sequence[Grid]) -> str:
    """The HTML text of a sweep's page; `grids` belong to its tables."""
    sections = []
    for table, grid in zip(sweep.tables, grids):
        notes = "".join(f'<p class="soft">{escape(note)}</p>\n' for note in grid.notes)
        heading = table.differs or "Results"
        sections.append(f"<section>\n<h2>{escape(heading)}</h2>\n{_plots(table)}{as_html(grid)}\n{notes}</section>")
    sections += [_runs(sweep), _missing(sweep)]
    runs = sum(len(table.runs) for table in sweep.tables)
    facts = [
        f"{runs} run{'s' * (runs != 1)}",
        f"{sum(len(table.configurations) for table in sweep.tables)} configurations",
    ]
    if missing := len(sweep.unfinished) + len(sweep.unreadable):
        facts.append(f"{missing} without a result")
    datasets = dict.fromkeys(table.runs[0].result.protocol.dataset for table in sweep.tables)
    return page(", ".join(datasets), "Sweep", " · ".join(facts), sections, name=sweep.path.resolve().name)


def main_metrics(table: SweepTable) -> list[str]:
    """What is plotted: Rank-1 and mAP, or Recall@1; else the first metric."""
    wanted: list[str] = [name for name in ("rank1", "mAP", "recall@1") if name in table.metrics]
    return wanted or table.metrics[:1]


def _plots(table: SweepTable) -> str:
    if len(table.configurations) < 2:
        return ""
    axis = _axis(table)
    pictures = [_dots(table, name) if axis is None else _curves(table, axis, name) for name in main_metrics(table)]
    left = [] if axis is None else [c for c in table.configurations if c.values[axis] == ABSENT]
    heads = heads_of(table.settings)
    names = "; ".join(_name(configuration, heads, without=axis) for configuration in left)
    note = (
        f'<p class="soft">Not in the plot, without {escape(heads[axis or 0])}: {escape(names)}.</p>\n' if left else ""
    )
    return f'<div class="curves">\n{"".join(pictures)}</div>\n{note}'


def _axis(table: SweepTable) -> int | None:
    """Column of the numeric setting with the most values; None where there is none, or too many lines would be drawn."""
    columns = list(zip(*(configuration.values for configuration in table.configurations)))
    numeric = [column for column, values in enumerate(columns) if is_numeric(values)]
    if not numeric:
        return None
    axis = max(numeric, key=lambda column: len({value for value in columns[column] if value != ABSENT}))
    return axis if len(_by_line(table, axis)) <= _MOST_LINES else None


def _by_line(table: SweepTable, axis: int) -> dict[str, list[Configuration]]:
    """Configurations that have the setting, by the name of their line."""
    heads = heads_of(table.settings)
    lines: dict[str, list[Configuration]] = {}
    for configuration in table.configurations:
        if configuration.values[axis] != ABSENT:
            lines.setdefault(_name(configuration, heads, without=axis), []).append(configuration)
    return {
        name: sorted(line, key=lambda configuration: sort_key(configuration.values[axis]))
        for name, line in lines.items()
    }


def _name(configuration: Configuration, heads: Sequence[str], without: int | None = None) -> str:
    """The values that set a configuration apart; with the names of the settings where there are several."""
    pairs = [(head, shown(v)) for i, (head, v) in enumerate(zip(heads, configuration.values)) if i != without]
    return pairs[0][1] if len(pairs) == 1 else ", ".join(f"{head}={value}" for head, value in pairs if value != ABSENT)


def _curves(table: SweepTable, axis: int, metric: str) -> str:
    lines, words = [], []
    for name, configurations in _by_line(table, axis).items():
        spreads = [configuration.metric(metric) for configuration in configurations]
        x = [float(configuration.values[axis]) for configuration in configurations]
        y = [None if spread is None else 100 * spread.mean for spread in spreads]
        error = [None if spread is None or spread.std is None else 100 * spread.std for spread in spreads]
        lines.append(ParameterCurve(name, x, y, error if any(bar is not None for bar in error) else None))
        points = ", ".join(f"{at:g} {value:.1f}" for at, value in zip(x, y) if value is not None)
        words.append(f"{name}: {points}" if name else points)
    head, label = heads_of(table.settings)[axis], label_of(metric)
    return themed_picture(
        lambda theme: parameter_curves(f"{label}, %", head, "", lines, theme=theme),
        f"{label} by {head}",
        "; ".join(words),
    )


def _dots(table: SweepTable, metric: str) -> str:
    heads, label = heads_of(table.settings), label_of(metric)
    dots = []
    for configuration in table.configurations:
        spread = configuration.metric(metric)
        if spread is not None:
            error = None if spread.std is None else 100 * spread.std
            dots.append(ConfigurationDot(_name(configuration, heads), 100 * spread.mean, error))
    words = ", ".join(f"{dot.name} {dot.value:.1f}" for dot in dots)
    return themed_picture(
        lambda theme: configuration_dots(f"{label}, %", "", dots, theme=theme), f"{label} by configuration", words
    )


def _runs(sweep: Sweep) -> str:
    """Every finished run with a link to its page, or else to its folder."""
    parts = []
    for table in sweep.tables:
        metrics = main_metrics(table)
        rows = []
        for configuration in table.configurations:
            for run, seed in zip(configuration.runs, seeds_of(configuration)):
                values = [escape(shown(value)) for value in configuration.values]
                measured = [run.result.metrics.get(name) for name in metrics]
                cells = [*values, *("-" if value is None else f"{100 * value:.1f}" for value in measured)]
                rows.append(html_row(str(seed), [*cells, _link(sweep, run.name)]))
        heads = ["Seed", *heads_of(table.settings), *map(label_of, metrics), "Folder"]
        parts += [f"<h3>{escape(table.differs)}</h3>" * bool(table.differs), html_table(heads, rows, "runs")]
    hint = "A page of one run: <code>python -m bdbnet.report run=&lt;its folder&gt;</code>"
    listed = "\n".join(parts)
    return f'<section>\n<h2>Runs</h2>\n{listed}\n<p class="soft">{hint}</p>\n</section>'


def _link(sweep: Sweep, name: str) -> str:
    place = Path(name) / REPORT if (sweep.path / name / REPORT).is_file() else Path(name)
    # Relative and with a dot before it, so that no name can pass for a scheme.
    return f'<a href="./{escape(quote(place.as_posix()))}"><code>{escape(name)}</code></a>'


def _missing(sweep: Sweep) -> str:
    rows = [
        f"<li><code>{escape(name)}</code>: {escape(reason)}</li>"
        for name, reason in (*sweep.unfinished, *sweep.unreadable)
    ]
    if not rows:
        return ""
    advice = "Give the sweep's command again with <code>ckpt_path=last</code>: it goes on where each run stopped."
    listed = "\n".join(rows)
    return f'<section>\n<h2>Runs without a result</h2>\n<ul>\n{listed}\n</ul>\n<p class="soft">{advice}</p>\n</section>'
