"""Measured tables as text, Markdown, CSV, LaTeX and one page, with the paper's numbers beside ours."""

import json
import os
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from bdbnet.config import ConfigError
from bdbnet.figures import ParameterCurve, parameter_curves, parameter_map
from bdbnet.overwriting import refuse_other_settings
from bdbnet.reporting.heading import date_of
from bdbnet.reporting.index_page import links_of, navigation, relative, update_index
from bdbnet.reporting.page import note_paragraphs, page
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reporting.table import Grid, Spread, as_csv, as_html, as_latex, as_markdown, scaled
from bdbnet.reporting.visualizing import section_html, write_figure
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.cells import State
from bdbnet.reproduction.cross_matrix import OWN, matrix_heads, matrix_rows
from bdbnet.reproduction.masks import drop_masks, masks_of
from bdbnet.reproduction.measured import Entry, Measured
from bdbnet.reproduction.pictures import DPI, FORMATS, Drawn, pictures_of
from bdbnet.reproduction.spec import Axis
from bdbnet.reproduction.statistics import statistics_grid
from bdbnet.results import REPORT, Metric, Result, metric_heads, metric_of, versions, write_atomically
from bdbnet.wording import duration

_HEADS = [
    "table", "budget", "row", "x", "dataset", "measured_on", "metric", "paper", "ours", "std", "seeds", "low", "high",
    "difference",
    "state", "folder", "processor_seconds", "own_domain",
]  # fmt: skip

_RUNS = {"train": "training", "evaluate": "evaluation"}


def reproduction_grid(measured: Measured, *, portable: bool = False) -> Grid:
    """The table to read: for each row the paper's line, ours, and the difference where the two are comparable.

    With ``portable`` the table does not depend on the data of this machine.
    """
    table = measured.table
    if table.statistics:
        return statistics_grid(table, measured.counts)
    if table.picture is not None and table.picture.kind == "masks":
        shares = [[name, f"{100 * mask.mean():.1f} %"] for name, mask in masks_of(measured).items()]
        return Grid(f"{table.heading}: {table.title}", ["Drop layer", "dropped"], shares, [f"Paper: {table.source}."])
    if table.y is not None:
        return _map_grid(measured, portable)
    if table.cross:
        heads, rows = ["Network", *matrix_heads(measured)], matrix_rows(measured, portable=portable)
        return Grid(f"{table.heading}: {table.title}", heads, rows, _notes(measured, portable))
    columns = [(dataset, metric) for dataset in measured.datasets for metric in table.columns[dataset]]
    heads = [table.x.title if table.x else "Method", ""]
    titles = metric_heads([metric for _, metric in columns])
    heads += [f"{d} {title}" if len(measured.datasets) > 1 else title for (d, _), title in zip(columns, titles)]
    rows = []
    for number, row in enumerate(table.rows):
        entries = {dataset: measured.entries[number, dataset] for dataset in measured.datasets}
        lines = []
        if row.paper:
            lines.append(["paper", *(metric_of(m).printed(entries[d].paper(m)) for d, m in columns)])
        if any(entry.cell is not None for entry in entries.values()):
            seeds = sorted({len(entry.counted) for entry in entries.values() if entry.counted}) or [1]
            count = f", {seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f", {seeds[0]} seeds"
            lines.append(
                ["ours" + count * (seeds[-1] > 1), *(entries[d].text(m, portable=portable) for d, m in columns)]
            )
            intervals = [_interval(entries[d], m) for d, m in columns]
            if any(intervals):
                lines.append(["95 % interval", *intervals])
        differences = [_difference(measured, entries[d], m) for d, m in columns]
        if any(difference is not None for difference in differences):
            signed = [
                "" if apart is None else metric_of(metric).signed(apart)
                for apart, (_, metric) in zip(differences, columns)
            ]
            lines.append(["difference", *signed])
        rows += [[row.label if place == 0 else "", *line] for place, line in enumerate(lines)]
    return Grid(f"{table.heading}: {table.title}", heads, rows, _notes(measured, portable))


def _map_grid(measured: Measured, portable: bool) -> Grid:
    """A row for each y, a column for each x; of several metrics the first of each data set."""
    table = measured.table
    assert table.x is not None
    assert table.y is not None
    several = len(measured.datasets) > 1
    cells = {(dataset, row.name, row.x, row.y): measured.entries[number, dataset]
             for dataset in measured.datasets for number, row in enumerate(table.rows)}  # fmt: skip
    rows = []
    for dataset in measured.datasets:
        metric = table.columns[dataset][0]
        for line in dict.fromkeys(row.name for row in table.rows):
            title = f"{line}: {dataset} {metric_of(metric).title}" if several else f"{line}: {metric_of(metric).title}"
            for y in table.y.values:
                numbers = [cells[dataset, line, x, y].text(metric, portable=portable) for x in table.x.values]
                rows.append([title if y == table.y.values[0] else "", f"{y:g}", *numbers])
    heads = [f"across: {table.x.title}", table.y.title, *(f"{x:g}" for x in table.x.values)]
    return Grid(f"{table.heading}: {table.title}", heads, rows, _notes(measured, portable))


def _interval(entry: Entry, metric: str) -> str:
    found = entry.intervals.get(metric)
    return "" if found is None else " to ".join(map(metric_of(metric).number, found))


def _difference(measured: Measured, entry: Entry, metric: str) -> float | None:
    ours, paper = scaled(metric_of(metric), entry.ours(metric)), entry.paper(metric)
    return None if ours is None or paper is None or measured.budget.compare != "numbers" else ours.mean - paper


def _notes(measured: Measured, portable: bool) -> list[str]:
    budget, table = measured.budget, measured.table
    notes = [f"Paper: {table.source}."] if table.source else []
    if table.cross:
        notes += [OWN] * any(entry.own and entry.counted for entry in measured)
        notes += [f"Budget {budget.name}: {budget.title}."] * bool(budget.settings)
    else:
        notes += budget_notes([measured])
    if left_out := [dataset for dataset in table.columns if dataset not in measured.datasets]:
        notes.append(f"Not part of this budget: {', '.join(left_out)}.")
    notes += [
        f"{row.name} is left out: it needs a backbone of its own kind, which this budget does not name (backbones: {row.backbone})."
        for row in table.rows
        if any(budget.lacks_backbone(row, dataset) for dataset in measured.datasets)
    ]
    if any(len(entry.counted) > 1 for entry in measured):
        notes.append("± is the standard deviation over seeds.")
    if any(entry.intervals for entry in measured):
        notes.append(
            "The 95 % interval is over the identities of the test set, of values per query that are averaged over the seeds: it "
            "does not cover what another seed would change."
        )
    if budget.compare != "nothing":
        metric = metric_of(next(iter(table.columns.values()))[0])
        notes += [f"Order by {metric.title}: {line}." for line in measured.order()]
    if results := _results(measured):
        notes.append(effort(results))
    notes += [
        f"{row.name}: {row.note}."
        for row in table.rows
        if row.note and (row.x in (None, table.rows[0].x)) and row.y == table.rows[0].y
    ]
    shown = (entry for entry in measured if not (portable and entry.state is State.ABSENT))
    return notes + list(dict.fromkeys(remark for entry in shown for remark in entry.remarks()))


def budget_notes(tables: Sequence[Measured]) -> list[str]:
    """What the trainings of some tables are, and what of them is comparable with the paper's."""
    budget = tables[0].budget
    notes = [f"Budget {budget.name}: {budget.title}."]
    if budget.compare != "numbers":
        replaced = {entry.dataset: measured.stand_in(entry.dataset) for measured in tables for entry in measured}
        replaced = {theirs: ours for theirs, ours in replaced.items() if theirs != ours}
        instead = "".join(
            f" {ours} replaces {', '.join(name for name in replaced if replaced[name] == ours)}."
            for ours in dict.fromkeys(replaced.values())
        )
        what = {
            "order": "only the order of these numbers is comparable with the paper's",
            "nothing": "these numbers are not comparable with the paper's",
        }
        notes.append(f"Not the paper's training: {what[budget.compare]}.{instead}")
    return notes


def _results(measured: Measured) -> list[Result]:
    runs = {run.folder: run.result for entry in measured for run in entry.counted if run.result is not None}
    return list(runs.values())


def effort(results: Sequence[Result]) -> str:
    """How many trainings and evaluations of checkpoints there are, how long they took, and on what."""
    machines = dict.fromkeys(
        ", ".join(result.hardware.get("gpus") or [f"{result.hardware.get('processor')}"]) for result in results
    )
    seconds = sum(sum(result.seconds.values()) for result in results)
    counts = ((kind, sum(result.kind == kind for result in results)) for kind in ("train", "evaluate"))
    runs = " and ".join(f"{count} {_RUNS[kind]}{'s' * (count != 1)}" for kind, count in counts if count)
    return f"{runs}, {duration(seconds)} in all{_processor_time(results)}, on {'; '.join(machines)}."


def _processor_time(results: Sequence[Result]) -> str:
    """That of all processes together, as far as it was recorded."""
    recorded = [result.processor_seconds for result in results if result.processor_seconds is not None]
    if not recorded:
        return ""
    of = f" of {len(recorded)} of them" * (len(recorded) < len(results))
    return f" (processor time{of}: {duration(sum(recorded))})"


def rows_of(measured: Measured) -> list[list[str]]:
    """One line per row, dataset and metric, for a program to read; numbers in the metric's unit with four decimals."""
    lines = []
    for entry in measured:
        for metric in entry.metrics:
            ours, paper = scaled(metric_of(metric), entry.ours(metric)), entry.paper(metric)
            difference = _difference(measured, entry, metric)
            lines.append([
                measured.table.name, measured.budget.name, entry.row.name,
                "" if entry.row.x is None else f"{entry.row.x:g}", entry.dataset, measured.stand_in(entry.dataset), metric,
                "" if paper is None else f"{paper:g}", *_spread_fields(ours), *_interval_fields(entry, metric),
                "" if difference is None else f"{difference:.4f}",
                entry.state.value if entry.cell is not None else "", "" if entry.cell is None else entry.cell.folder.name,
                "" if entry.processor_seconds is None else f"{entry.processor_seconds:.2f}",
                "" if entry.own is None else "yes" if entry.own else "no",
            ])  # fmt: skip
    return lines


def _spread_fields(ours: Spread | None) -> list[str]:
    if ours is None:
        return ["", "", ""]
    return [f"{ours.mean:.4f}", "" if ours.std is None else f"{ours.std:.4f}", str(ours.count)]


def _interval_fields(entry: Entry, metric: str) -> list[str]:
    found = entry.intervals.get(metric)
    return ["", ""] if found is None else [f"{metric_of(metric).scale * end:.4f}" for end in found]


def write_tables(
    tables: Sequence[Measured], folder: Path, runs_root: Path = Path(), version: str | None = None
) -> list[Path]:
    """Write each table as Markdown, CSV and LaTeX, and all of them as one page; returns the page and the table files.

    Args:
        runs_root: folder of the trainings, and `version` that whose results count: for `refuse_other_tables`.
    """
    written: list[Path] = []
    grids = [reproduction_grid(measured) for measured in tables]
    drawn = [[*pictures_of(measured)] for measured in tables]
    for picture in (picture for pictures in drawn for picture in pictures):
        if picture.section is not None:
            written += write_figure(picture.section, folder, FORMATS, DPI, picture.name)
    for measured, grid in zip(tables, grids):
        text = json.dumps(_settings(measured, folder, runs_root, version), indent=2) + "\n"
        write_atomically(folder / f"{measured.table.name}.settings.json", text.encode())
        texts = {
            "md": f"# {as_markdown(grid)}",
            "csv": as_csv(grid if measured.table.statistics else Grid("", _HEADS, rows_of(measured), [])),
            "tex": as_latex(grid),
        }
        for suffix, text in texts.items():
            written.append(write_atomically(folder / f"{measured.table.name}.{suffix}", text.encode()))
    names = [measured.table.name for measured in tables]
    name = "-".join(names) if len(names) <= 3 else "all"
    page = write_atomically(folder / f"{name}.html", _page(tables, grids, drawn, folder).encode())
    update_index(folder)
    return [page, *written]


def refuse_other_tables(tables: Sequence[Measured], folder: Path, runs_root: Path, version: str | None = None) -> None:
    """Refuse to replace tables of other settings.  Raises ConfigError that says what differs."""
    named: dict[str, dict[str, Any]] = {}
    for measured in tables:
        name, now = measured.table.name, _settings(measured, folder, runs_root, version)
        if named.setdefault(name, now) != now:
            raise ConfigError(f"two tables are called {name}: rename the file of one, or ask for one at a time")
        refuse_other_file(folder, name, now)


def refuse_other_file(folder: Path, name: str, now: dict[str, Any]) -> None:
    """Refuse to replace ``<name>.md`` that was made with other settings.  Raises ConfigError."""
    file = folder / f"{name}.settings.json"
    try:
        then = json.loads(file.read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        then = None
    if not isinstance(then, dict):
        raise ConfigError(
            f"{file} can't be read: overwrite=true replaces the table, output_root=<another folder> keeps it"
        )
    refuse_other_settings(folder / f"{name}.md", then, now, keep="output_root=<another folder>")


def refuse_other_summary(path: Path, command: str) -> None:
    """Refuse to replace a file that another command wrote, or a user.  Raises ConfigError."""
    if path.is_file() and f"Generated by `{command}`;" not in path.read_text(errors="replace"):
        raise ConfigError(
            f"summary={path}: there is a file that `{command}` has not written. Keep both: summary=<another file>. "
            "Replace it: overwrite=true."
        )


def _settings(measured: Measured, folder: Path, runs_root: Path, version: str | None) -> dict[str, Any]:
    """What a table's numbers depend on, beside the trainings that there are."""
    table = measured.table
    content = repr([dict(table.columns), [(row.name, row.run, row.x) for row in table.rows]])  # y is in the run
    if table.cross:
        content += repr([dict(table.cross), [(row.checkpoint, row.trained_on) for row in table.rows]])
    return {"table": content_key(content), **budget_settings(measured.budget, folder, runs_root, version)}


def content_key(content: str) -> str:
    """Stands for what a file says in the settings of what was made of it."""
    return sha256(content.encode()).hexdigest()[:12]


def budget_settings(budget: Budget, folder: Path, runs_root: Path, version: str | None) -> dict[str, Any]:
    """What the trainings of a budget depend on."""
    return {
        "datasets": {name: None if value is None else list(value) for name, value in budget.datasets.items()},
        "overrides": budget.settings,
        "runs_root": os.path.relpath(runs_root, folder),
        "version": version or versions()["bdbnet"],
    }


def write_summary(tables: Sequence[Measured], path: Path, command: str) -> Path:
    """Write all tables into one Markdown file with the command that generates it.

    Of budgets other than the paper's it has the tables with a number.
    """
    parts = [
        "# Tables and figures, and what has been measured so far",
        f"Generated by `{command}`; not to be edited by hand. A cell without a number says why. Every number comes from a run "
        "whose `result.json` was kept.",
    ]
    for budget in dict.fromkeys(measured.budget.name for measured in tables):
        shown = [one for one in tables if one.budget.name == budget and one.table.picture is None]
        if shown and shown[0].budget.compare != "numbers":
            shown = [measured for measured in shown if any(entry.counted for entry in measured)]
        parts += [
            f"## Budget {budget}",
            *(f"### {as_markdown(reproduction_grid(measured, portable=True))}" for measured in shown),
        ]
    return write_atomically(path, ("\n\n".join(part.strip() for part in parts) + "\n").encode())


def _page(tables: Sequence[Measured], grids: Sequence[Grid], drawn: Sequence[Sequence[Drawn]], folder: Path) -> str:
    titles = list(dict.fromkeys(measured.table.heading for measured in tables))
    heading = titles[0] if len(titles) == 1 else "Tables and figures of the paper"
    sections = []
    for measured, grid, pictures in zip(tables, grids, drawn, strict=True):
        shown = "".join(section_html(one.section) for one in pictures if one.section is not None)
        remarks = note_paragraphs(one.remark for one in pictures if one.remark)
        body = (
            f"{shown}{remarks}{_curves(measured)}{drop_masks(measured)}{as_html(grid)}\n{note_paragraphs(grid.notes)}"
        )
        sections.append(f"<section>\n<h2>{escape(grid.title)}</h2>\n{body}{_runs(measured, folder)}</section>")
    results = [result for measured in tables for result in _results(measured)]
    return page(
        heading, "Reproduction", "Batch DropBlock Network", sections, date=date_of(results) if results else "",
        navigation=navigation(links_of(folder)),
    )  # fmt: skip


def _runs(measured: Measured, folder: Path) -> str:
    """Links to the pages of a table's trainings, where they have one."""
    links = {}
    for entry in measured:
        for run in entry.counted:
            if (run.folder / REPORT).is_file():
                where = measured.stand_in(entry.dataset)
                links[relative(run.folder / REPORT, folder)] = f"{entry.row.label}, {where}, seed {run.seed}"
    items = " · ".join(f'<a href="{escape(href)}">{escape(title)}</a>' for href, title in links.items())
    return f'<p class="soft">Pages of runs: {items}</p>\n' if links else ""


def _curves(measured: Measured) -> str:
    if measured.table.x is None:
        return ""
    columns = [(dataset, metric) for dataset in measured.datasets for metric in measured.table.columns[dataset]]
    if measured.table.y is not None:
        maps = "".join(_maps(measured, dataset, metric_of(name)) for dataset, name in columns)
        return f'<div class="curves">\n{maps}</div>\n' if maps else ""
    pictures = "".join(_curve(measured, measured.table.x, dataset, metric_of(name)) for dataset, name in columns)
    return f'<div class="curves">\n{pictures}</div>\n' if pictures else ""


def _curve(measured: Measured, axis: Axis, dataset: str, metric: Metric) -> str:
    lines = [line for line in _lines(measured, dataset, metric) if any(y is not None for y in line.y)]
    if not any(not line.dashed for line in lines):
        return ""
    title = f"{metric.title} on {measured.stand_in(dataset)}"
    heading = f"{title}, {metric.unit}" if metric.unit else title
    words = "; ".join(f"{line.name}: " + ", ".join(_points(metric, line)) for line in lines)
    return themed_picture(lambda theme: parameter_curves(heading, axis.title, "", lines, theme=theme), title, words)


def _maps(measured: Measured, dataset: str, metric: Metric) -> str:
    """A map for each line that has a number."""
    x, y = measured.table.x, measured.table.y
    assert x is not None
    assert y is not None
    found: dict[str, dict[tuple[float | None, float | None], float | None]] = {}
    for entry in (entry for entry in measured if entry.dataset == dataset):
        ours = scaled(metric, entry.ours(metric.name))
        found.setdefault(entry.row.name, {})[entry.row.x, entry.row.y] = None if ours is None else ours.mean
    pictures = []
    for name, numbers in found.items():
        if all(value is None for value in numbers.values()):
            continue
        values = [[numbers[a, b] for a in x.values] for b in y.values]
        title = f"{name}: {metric.title} on {measured.stand_in(dataset)}"
        heading = f"{title}, {metric.unit}" if metric.unit else title
        words = "; ".join(f"{a:g} x {b:g} {metric.printed(numbers[a, b])}" for a, b in product(x.values, y.values))
        draw = partial(parameter_map, heading, x.title, y.title, x.values, y.values, values)
        pictures.append(themed_picture(lambda theme, draw=draw: draw(theme=theme), title, words))  # type: ignore[misc]
    return "".join(pictures)


def _points(metric: Metric, line: ParameterCurve) -> list[str]:
    return [f"{x:g} {metric.printed(y)}" for x, y in zip(line.x, line.y) if y is not None]


def _lines(measured: Measured, dataset: str, metric: Metric) -> list[ParameterCurve]:
    """Ours with error bars, and the paper's points where they are comparable."""
    lines = []
    entries = [entry for entry in measured if entry.dataset == dataset]
    for name in dict.fromkeys(entry.row.name for entry in entries):
        points = [entry for entry in entries if entry.row.name == name]
        x = [float(entry.row.x) for entry in points if entry.row.x is not None]
        ours = [scaled(metric, entry.ours(metric.name)) for entry in points]
        y = [None if value is None else value.mean for value in ours]
        error = [None if value is None else value.std for value in ours]
        lines.append(ParameterCurve(name, x, y, error if any(e is not None for e in error) else None))
        paper = [entry.paper(metric.name) for entry in points]
        if measured.budget.compare == "numbers" and any(value is not None for value in paper):
            lines.append(ParameterCurve(f"{name}, paper", x, paper, None, dashed=True))
    return lines
