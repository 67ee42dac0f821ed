"""A result as a table for the terminal."""

from collections.abc import Mapping

from bdbnet.reporting.table import Grid, as_text
from bdbnet.results import Result, metric_heads, metric_names, metric_of
from bdbnet.wording import BEST_CHECKPOINT, extras, further_lines

_TASKS = {
    "reid": "re-ID protocol, single query",
    "reid_multi_query": "re-ID protocol, multi-query",
    "reid_single_shot": "re-ID protocol, single gallery shot",
    "reid_reassociation": "re-association with the next frame that is used",
    "retrieval": "retrieval protocol, cameras not used",
}


def metrics_table(result: Result) -> str:
    """The metrics of a result, one line per moment at which the network was evaluated.

    "As embedded" is without re-ranking and query expansion. The best checkpoint's line says that it was selected on the test
    set.
    """
    names = metric_names(result.metrics)
    lines = [["", *metric_heads(names), metric_of("valid_queries").title]]
    if result.before is not None:
        lines.append(["before training", *_row(result.before, names)])
    if result.plain is not None:
        lines.append(["as embedded", *_row(result.plain, names)])
    label = "after training" if result.kind == "train" else result.protocol.dataset
    lines.append([label, *_row(result.metrics, names)])
    if result.best is not None:
        lines.append([f"best: epoch {result.best['epoch']}*", *_row(result.best["metrics"], names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    ]
    rows.insert(1, "-" * len(rows[0]))
    note = [] if result.best is None else [f"* {BEST_CHECKPOINT}"]
    protocol = result.protocol
    of_images = []
    if protocol.image_size is not None:
        size = "{} x {}".format(*protocol.image_size) + (" padded" if protocol.pad_to_square else "")
        of_images = [size, protocol.precision]
    facts = [
        protocol.dataset,
        _TASKS.get(protocol.task, protocol.task),
        *of_images,
        f"normalize {protocol.normalize}",
        *extras(protocol),
    ]
    return "\n".join(["", *rows, *further_lines(result), *note, ", ".join(facts)])


def several_table(results: Mapping[str, Result]) -> str:
    """One network on several data sets: a line each, by what the set is called; a metric that a protocol lacks is a dash."""
    names = list(dict.fromkeys(name for result in results.values() for name in metric_names(result.metrics)))
    heads = ["", *metric_heads(names), metric_of("valid_queries").title]
    rows = [[called, *_row(result.metrics, names)] for called, result in results.items()]
    return "\n" + as_text(Grid("", heads, rows, [])).strip("\n")


def _row(metrics: Mapping[str, float], names: list[str]) -> list[str]:
    return [metric_of(name).number(metrics.get(name)) for name in (*names, "valid_queries")]
