"""The page of a sweep with its table and plots, and the table as text, Markdown, CSV and LaTeX."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from bdbnet.figures import ConfigurationDot, ParameterCurve, configuration_dots, parameter_curves
from bdbnet.reporting.heading import date_of, title_of
from bdbnet.reporting.index_page import links_of, navigation, update_index
from bdbnet.reporting.page import html_row, html_table, note_paragraphs, page
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reporting.settings import ABSENT, heads_of, is_numeric, shown, sort_key
from bdbnet.reporting.sweep import (
    Configuration,
    Sweep,
    SweepTable,
    read_sweep,
    seeds_of,
    split_of,
    splits_of,
)
from bdbnet.reporting.table import Grid, as_csv, as_html, as_latex, as_markdown, as_text, scaled, spread_text
from bdbnet.results import REPORT, Metric, headline_metrics, in_percent, metric_heads, metric_of, write_atomically
from bdbnet.wording import duration, protocol_line

#: One plot has at most this many lines, so that they can be distinguished.
_MOST_LINES = 8


def write_sweep_report(folder: str | Path) -> tuple[str, list[Path]]:
    """Write `report.html`, `sweep.csv`, `sweep.md` and `sweep.tex` into a sweep's folder.

    Returns the table for the terminal and the paths of the files, the page first. The page needs no other file, no network
    and no JavaScript; its links lead to the folders of the runs.

    Raises:
        ReportError: no run with a readable result.
    """
    sweep = read_sweep(folder)
    grids = [sweep_grid(sweep, table) for table in sweep.tables]
    missing = _without_result(sweep)
    name = sweep.path.resolve().name
    markdown = [f"# Sweep {name}\n", *(f"## {as_markdown(grid)}" for grid in grids)]
    if missing:
        markdown.append("## Runs without a result\n\n" + "".join(f"- `{text}`\n" for text in missing))
    texts = {
        REPORT: sweep_page(sweep, grids),
        "sweep.csv": as_csv(numbers_of(sweep)),
        "sweep.md": "\n".join(markdown),
        "sweep.tex": "\n".join(map(as_latex, grids)),
    }
    paths = [
        write_atomically(sweep.path / file, text.encode("utf-8", "xmlcharrefreplace")) for file, text in texts.items()
    ]
    update_index(sweep.path)
    return sweep_text(sweep), paths


def sweep_text(sweep: Sweep) -> str:
    """All tables of a sweep for the terminal, and what has no result."""
    tables = "\n\n".join(as_text(sweep_grid(sweep, table)) for table in sweep.tables)
    return "\n".join(["", tables, *(f"without a result: {text}" for text in _without_result(sweep)), ""])


def _without_result(sweep: Sweep) -> list[str]:
    return [f"{name}: {reason}." for name, reason in (*sweep.unfinished, *sweep.unreadable)]


def sweep_grid(sweep: Sweep, table: SweepTable) -> Grid:
    """The table to read: settings that vary, metrics with their best in bold, seeds and time."""
    heads = heads_of(table.settings) or ["settings"]
    kind = table.runs[0].result.kind
    metrics = table.metrics
    whole = 0 if split_of(table.runs[0].result) is None else splits_of(table.runs[0].result)
    has_processor_time = any(run.result.processor_seconds is not None for run in table.runs)
    rows = []
    for configuration in table.configurations:
        times = [configuration.seconds, *[configuration.processor_seconds] * has_processor_time]
        rows.append(
            [
                *([shown(value) for value in configuration.values] or ["equal in all runs"]),
                *(spread_text(metric_of(name), configuration.metric(name)) for name in metrics),
                *[f"{len(configuration.splits)} of {whole}"] * bool(whole),
                str(len(set(seeds_of(configuration)))),
                *("-" if seconds is None else duration(seconds) for seconds in times),
            ]
        )
    heads += [*metric_heads(metrics), *["splits"] * bool(whole), "seeds", "train time" if kind == "train" else "time"]
    heads += ["processor time"] * has_processor_time
    protocol = table.runs[0].result.protocol
    notes = [f"{protocol_line(protocol)}.", _about_numbers(table), *table.remarks]
    name = sweep.path.resolve().name
    title = f"{name}: {table.differs}" if table.differs else f"{protocol.dataset}: {name}"
    return Grid(title, heads, rows, notes, _best(table, max(1, len(table.settings))))


def _about_numbers(table: SweepTable) -> str:
    over_splits = any(len(configuration.splits) > 1 for configuration in table.configurations)
    several = any(len(configuration.runs) > 1 for configuration in table.configurations) and not over_splits
    last = any(run.result.checkpoint == "last" for run in table.runs)
    notes = {
        "In percent.": in_percent(table.metrics),
        "Mean ± sample standard deviation over the seeds.": several,
        "Mean ± sample standard deviation over the splits.": over_splits,
        "Weights evaluated: the last epoch.": last,
    }
    return " ".join(note for note, applies in notes.items() if applies)


def _best(table: SweepTable, first: int) -> frozenset[tuple[int, int]]:
    """Cells with the best mean of their column, as far as it is shown; none where all are equal."""
    strong = set()
    for column, name in enumerate(table.metrics, start=first):
        metric, spreads = metric_of(name), [configuration.metric(name) for configuration in table.configurations]
        means = {row: float(metric.number(spread.mean)) for row, spread in enumerate(spreads) if spread is not None}
        if len(set(means.values())) > 1:
            best = metric.best(means.values())
            strong |= {(row, column) for row, mean in means.items() if mean == best}
    return frozenset(strong)


def numbers_of(sweep: Sweep) -> Grid:
    """All tables as one for other programs: a line per configuration, metrics and seconds with four decimals."""
    keys = list(dict.fromkeys(key for table in sweep.tables for key in table.settings))
    metrics = list(dict.fromkeys(name for table in sweep.tables for name in table.metrics))
    has_splits = any(configuration.splits for table in sweep.tables for configuration in table.configurations)
    rows = []
    for table in sweep.tables:
        for configuration in table.configurations:
            values = dict(zip(table.settings, configuration.values))
            cells = [table.differs, *(shown(values[key]) if key in values else "" for key in keys)]
            for name in metrics:
                spread = scaled(metric_of(name), configuration.metric(name))
                cells += ["", ""] if spread is None else [_number(spread.mean), _number(spread.std)]
            splits = [str(len(configuration.splits) or "")] * has_splits
            times = [_number(configuration.seconds), _number(configuration.processor_seconds)]
            rows.append([*cells, *splits, str(len(set(seeds_of(configuration)))), *times])
    heads = [
        "table",
        *heads_of(keys),
        *(f"{name}{part}" for name in metrics for part in ("", "_std")),
        *["splits"] * has_splits,
        "seeds",
        "seconds",
        "processor_seconds",
    ]
    return Grid("", heads, rows, [])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def sweep_page(sweep: Sweep, grids: Sequence[Grid]) -> str:
    """The HTML text of a sweep's page; `grids` belong to its tables."""
    sections = []
    for table, grid in zip(sweep.tables, grids):
        heading, body = escape(table.differs or "Results"), f"{_plots(table)}{as_html(grid)}"
        sections.append(f"<section>\n<h2>{heading}</h2>\n{body}\n{note_paragraphs(grid.notes)}</section>")
    sections += [_runs(sweep), _missing(sweep)]
    runs = sum(len(table.runs) for table in sweep.tables)
    facts = [
        f"{runs} run{'s' * (runs != 1)}",
        f"{sum(len(table.configurations) for table in sweep.tables)} configurations",
    ]
    if missing := len(sweep.unfinished) + len(sweep.unreadable):
        facts.append(f"{missing} without a result")
    results = [run.result for table in sweep.tables for run in table.runs]
    settings = heads_of(list(dict.fromkeys(key for table in sweep.tables for key in table.settings)))
    kind = f"Sweep over {', '.join(settings)}" if settings else "Sweep"
    main = _headline(sweep.tables[0]) if len(sweep.tables) == 1 else []
    return page(
        title_of(results), kind, " · ".join(facts), sections,
        headline=main, date=date_of(results), name=sweep.path.resolve().name,
        navigation=navigation(links_of(sweep.path)),
    )  # fmt: skip


def _headline(table: SweepTable) -> list[tuple[str, str]]:
    """The range of each main metric over the configurations, or its value where there is one configuration."""
    found = []
    for metric in map(metric_of, headline_metrics(table.metrics)):
        means = [
            of.mean for configuration in table.configurations if (of := configuration.metric(metric.name)) is not None
        ]
        ends = dict.fromkeys((metric.number(min(means)), metric.number(max(means))))
        found.append((metric.title, " ".join(filter(None, [" to ".join(ends), metric.unit]))))
    return found


def _plots(table: SweepTable) -> str:
    if len(table.configurations) < 2:
        return ""
    axis = _axis(table)
    metrics = map(metric_of, headline_metrics(table.metrics))
    pictures = [_dots(table, metric) if axis is None else _curves(table, axis, metric) for metric in metrics]
    left = [] if axis is None else [c for c in table.configurations if c.values[axis] == ABSENT]
    heads = heads_of(table.settings)
    names = "; ".join(_name(configuration, heads, without=axis) for configuration in left)
    notes = [f"Not in the plot, because it has no {heads[axis or 0]}: {names}."] if left else []
    return f'<div class="curves">\n{"".join(pictures)}</div>\n{note_paragraphs(notes)}'


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


def _curves(table: SweepTable, axis: int, metric: Metric) -> str:
    lines, words = [], []
    for name, configurations in _by_line(table, axis).items():
        measured = [configuration.metric(metric.name) for configuration in configurations]
        spreads = [scaled(metric, spread) for spread in measured]
        x = [float(configuration.values[axis]) for configuration in configurations]
        y = [None if spread is None else spread.mean for spread in spreads]
        error = [None if spread is None else spread.std for spread in spreads]
        lines.append(ParameterCurve(name, x, y, error if any(bar is not None for bar in error) else None))
        points = ", ".join(f"{at:g} {metric.number(of.mean)}" for at, of in zip(x, measured) if of is not None)
        words.append(f"{name}: {points}" if name else points)
    head = heads_of(table.settings)[axis]
    return themed_picture(
        lambda theme: parameter_curves(metric.heading, head, "", lines, theme=theme),
        f"{metric.title} by {head}",
        "; ".join(words),
    )


def _dots(table: SweepTable, metric: Metric) -> str:
    heads = heads_of(table.settings)
    dots, words = [], []
    for configuration in table.configurations:
        measured = configuration.metric(metric.name)
        spread = scaled(metric, measured)
        if measured is not None and spread is not None:
            name = _name(configuration, heads)
            dots.append(ConfigurationDot(name, spread.mean, spread.std))
            words.append(f"{name} {metric.number(measured.mean)}")
    return themed_picture(
        lambda theme: configuration_dots(metric.heading, "", dots, theme=theme),
        f"{metric.title} by configuration",
        ", ".join(words),
    )


def _runs(sweep: Sweep) -> str:
    """Every finished run with a link to its page, or else to its folder."""
    parts = []
    for table in sweep.tables:
        metrics = headline_metrics(table.metrics)
        has_splits = any(configuration.splits for configuration in table.configurations)
        rows = []
        for configuration in table.configurations:
            for run, seed in zip(configuration.runs, seeds_of(configuration)):
                values = [escape(shown(value)) for value in configuration.values]
                numbers = [metric_of(name).number(run.result.metrics.get(name)) for name in metrics]
                split = split_of(run.result)
                cells = [*["" if split is None else str(split)] * has_splits, *values, *numbers]
                rows.append(html_row(escape(str(seed)), [*cells, _link(sweep, run.name)]))
        heads = ["Seed", *["Split"] * has_splits, *heads_of(table.settings), *metric_heads(metrics), "Folder"]
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
    advice = "Run the sweep's command again with <code>ckpt_path=last</code> to resume each of them."
    listed = "\n".join(rows)
    return f'<section>\n<h2>Runs without a result</h2>\n<ul>\n{listed}\n</ul>\n<p class="soft">{advice}</p>\n</section>'
