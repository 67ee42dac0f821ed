"""A cross-domain table to read: its rows, its notes and its picture."""

from bdbnet.figures import score_matrix
from bdbnet.reporting.table import scaled
from bdbnet.reporting.visualizing import Section
from bdbnet.reproduction.measured import Measured
from bdbnet.results import metric_of

OWN = "* own domain: the network was trained on this data set."


def matrix_heads(measured: Measured) -> list[str]:
    """A head for each metric of each column: ``market1501 Rank-1``."""
    table = measured.table
    return [f"{name} {metric_of(metric).title}" for name, metrics in table.columns.items() for metric in metrics]


def matrix_rows(measured: Measured, *, portable: bool) -> list[list[str]]:
    """A line for each row with our numbers, and one with those that its file states, where it does."""
    table, lines = measured.table, []
    for number, row in enumerate(table.rows):
        entries = [measured.entries[number, name] for name in table.columns]
        if any(entry.cell is not None for entry in entries):
            texts = [
                entry.text(metric, portable=portable) + " *" * (bool(entry.own) and entry.ours(metric) is not None)
                for entry in entries
                for metric in entry.metrics
            ]
            lines.append([row.name, *texts])
        if row.paper:
            stated = [metric_of(metric).printed(entry.paper(metric)) for entry in entries for metric in entry.metrics]
            lines.append([f"{row.name}, published", *stated])
    return lines


def matrix_section(measured: Measured) -> Section | None:
    """The first metric of each column as a picture; None where nothing was measured, or no metric is in percent."""
    table = measured.table
    firsts = {name: metric_of(metrics[0]) for name, metrics in table.columns.items()}
    columns = {name: metric for name, metric in firsts.items() if metric.unit == "%"}
    rows = [(number, row) for number, row in enumerate(table.rows) if row.run is not None or row.checkpoint is not None]
    values: list[list[float | None]] = []
    for number, _ in rows:
        spreads = [scaled(metric, measured.entries[number, name].ours(metric.name)) for name, metric in columns.items()]
        values.append([None if spread is None else spread.mean for spread in spreads])
    if not any(value is not None for line in values for value in line):
        return None
    framed = [
        (at, place)
        for at, (number, _) in enumerate(rows)
        for place, name in enumerate(columns)
        if measured.entries[number, name].own
    ]
    names = [row.name for _, row in rows]
    heads = [f"{name} {metric.title}" for name, metric in columns.items()]
    words = "; ".join(
        f"{name}: " + ", ".join(f"{head} {metric.printed(value)}" for head, metric, value in zip(heads, columns.values(), line))
        for name, line in zip(names, values)
    )  # fmt: skip
    return Section(
        "matrix", table.title, f"A frame: trained on this data set. {words}.",
        lambda theme: score_matrix(f"{table.title}, %", names, heads, values, framed, theme=theme), {},
    )  # fmt: skip
