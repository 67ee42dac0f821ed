"""The page of a run: metrics, curves, error analysis, ranking lists, data, settings."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from bdbnet.checked import UnfitError
from bdbnet.config import flatten
from bdbnet.evaluation.embedder import Embedder
from bdbnet.overwriting import refuse_other_settings
from bdbnet.reporting.analysis import analysis_section
from bdbnet.reporting.analysis_record import check_complete
from bdbnet.reporting.calibration import calibration_section
from bdbnet.reporting.heading import date_of, headline, run_title
from bdbnet.reporting.index_page import Link, links_of, navigation, update_index
from bdbnet.reporting.list_maps import network_of
from bdbnet.reporting.page import html_row, html_table, note_paragraphs, page, settings_of_page
from bdbnet.reporting.pictures import Images, curves, ranking_lists, worst_queries
from bdbnet.reporting.run_folder import ReportError, RunFolder, image_root, read_run
from bdbnet.results import ANALYSIS, REPORT, Result, in_percent, metric_names, metric_of, write_atomically
from bdbnet.wording import BEST_CHECKPOINT, duration, further_lines, protocol_line


def write_report(
    run_folder: str | Path,
    *,
    queries: int = 8,
    top: int = 10,
    seed: int = 0,
    maps: bool = False,
    checkpoint: str | None = None,
    overwrite: bool = True,
) -> Path:
    """Write `report.html` into a run's folder and return its path.

    The page needs no other file, no network and no JavaScript. The same folder and arguments give the same page.

    Args:
        run_folder: of a training run or an evaluation, with `result.json` and, where there are, `history.csv`,
            `topk.parquet`, `analysis.json` and `calibration.json`.
        queries: number of ranking lists; half of them are drawn at random, the others are among the worst. 0 for none.
        top: gallery images shown per query, at least 1; no more than `topk.parquet` holds.
        seed: of the random choice of queries.
        maps: beneath each ranking list, where its images agree with the query; that needs the network.
        checkpoint: the network's file, where it is not at the place that the run remembers.
        overwrite: replace a page that was made with other arguments.

    Raises:
        ConfigError: a page with other arguments is there, and may not be replaced.
        ReportError: a bad argument, not a run folder, or an unreadable table in it.
        ResultError: an unfinished or foreign `result.json`.
    """
    for name, value, least in (("queries", queries, 0), ("top", top, 1), ("seed", seed, 0)):
        if value < least:
            raise ReportError(f"{name}={value}: give {least} or more")
    run = read_run(run_folder)
    if run.analysis is not None:
        try:
            check_complete(run.analysis)
        except UnfitError as error:
            raise ReportError(
                f"{run.path / ANALYSIS}: {error}. Move it away, or evaluate again with analysis=true."
            ) from error
    earlier = settings_of_page(run.path / REPORT)
    if earlier and not overwrite:
        then, now = (
            dict(part.split("=", 1) for part in settings.split() if "=" in part)
            for settings in (earlier, _arguments(queries, top, seed, maps))
        )
        refuse_other_settings(run.path / REPORT, then, now, keep="move that file away")
    embedder = network_of(run, checkpoint) if maps and queries else None
    text = run_page(run, queries=queries, top=top, seed=seed, embedder=embedder)
    written = write_atomically(run.path / REPORT, text.encode("utf-8", "xmlcharrefreplace"))
    update_index(run.path)
    return written


def run_page(run: RunFolder, *, queries: int, top: int, seed: int, embedder: Embedder | None = None) -> str:
    """The HTML text of a run's page; with its network the ranking lists have maps."""
    result = run.result
    kind = {"train": "Training run", "evaluate": "Evaluation"}.get(result.kind, result.kind)
    shows_images = run.analysis is not None or (run.ranking is not None and queries > 0)
    images = Images(*image_root(run)) if shows_images else Images(None, "")
    sections = (
        _metrics(result),
        curves(run),
        analysis_section(run.analysis, worst_queries(run, images)),
        calibration_section(run.calibration),
        ranking_lists(run, images, queries, top, seed, embedder),
        _data(result),
        _machine(result),
        _settings(result),
    )
    footer = f"Made by bdbnet from the run of {result.created}."
    return page(
        run_title(result), kind, _summary(result), sections, headline=headline(result), date=date_of([result]),
        name=run.path.resolve().name, footer=footer, settings=_arguments(queries, top, seed, embedder is not None),
        navigation=navigation(_links(run)),
    )  # fmt: skip


def _links(run: RunFolder) -> list[Link]:
    """To the index, the page of the run's sweep, and of an evaluation to that of the training."""
    others = [("Sweep", run.path.absolute().parent / REPORT)]
    if run.result.kind == "evaluate":
        others.append(("Training", Path(run.result.checkpoint).expanduser().absolute().parent / REPORT))
    return links_of(run.path, *others)


def _arguments(queries: int, top: int, seed: int, maps: bool) -> str:
    return f"queries={queries} top={top} seed={seed}" + " maps=true" * maps


def _summary(result: Result) -> str:
    facts = [f"seed {result.seed}"]
    if result.epochs is not None:
        facts.insert(0, f"{result.epochs} epoch{'s' * (result.epochs != 1)}")
    if result.parameters is not None:
        facts.append(f"{result.parameters / 1e6:.2f} M parameters")
    if result.embedding_dim is not None:
        facts.append(f"embedding of {result.embedding_dim} numbers")
    return " · ".join(facts)


def _metrics(result: Result) -> str:
    before, best, plain = result.before, result.best, result.plain
    heads = ["Metric"]
    if plain is not None:
        heads += ["As embedded"]
    if before is not None:
        heads += ["Before training"]
    heads += ["After training" if result.kind == "train" else "Result"]
    if before is not None:
        heads += ["Change, points" if in_percent(metric_names(result.metrics)) else "Change"]
    if best is not None:
        heads += [f"Best checkpoint, epoch {best['epoch']}, selected on the test set"]
    rows = []
    for name in metric_names(result.metrics):
        metric, value = metric_of(name), result.metrics[name]
        cells = [f'<th scope="row">{escape(metric.title)}</th>']
        if plain is not None:
            cells.append(f"<td>{escape(metric.text(plain.get(name)))}</td>")
        if before is not None:
            cells.append(f"<td>{escape(metric.text(before.get(name)))}</td>")
        cells.append(f'<td class="main">{escape(metric.text(value))}</td>')
        if before is not None:
            change = value - before[name] if name in before else None
            up = ' class="up"' if change is not None and metric.improves(change) else ""
            cells.append(f"<td{up}>{'-' if change is None else metric.change(change)}</td>")
        if best is not None:
            cells.append(f"<td>{escape(metric.text(best['metrics'].get(name)))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    checkpoint = "the last epoch" if result.checkpoint == "last" else result.checkpoint
    lines = [*further_lines(result), f"{protocol_line(result.protocol)}."]
    if "valid_queries" in result.metrics:
        lines.append(f"{result.metrics['valid_queries']:,.0f} valid queries. Weights evaluated: {checkpoint}.")
    else:
        lines.append(f"Weights evaluated: {checkpoint}.")
    if plain is not None:
        lines.append('"As embedded" is without re-ranking and query expansion.')
    if best is not None:
        lines.append(f"Best checkpoint: {BEST_CHECKPOINT}. Quote the other column.")
    return f"<section>\n<h2>Results</h2>\n{html_table(heads, rows, 'metrics')}\n{note_paragraphs(lines)}</section>"


def _data(result: Result) -> str:
    data = result.data
    parts = []
    counts = data.get("counts")
    if isinstance(counts, Mapping) and counts:
        columns = list(next(iter(counts.values())))
        rows = [
            html_row(escape(str(role)), [f"{row.get(column, 0):,}" for column in columns])
            for role, row in counts.items()
        ]
        parts.append(html_table(["", *(str(column).capitalize() for column in columns)], rows))
    facts = {"Fingerprint": f"<code>{escape(str(data.get('fingerprint', 'unknown')))}</code>"}
    return f"<section>\n<h2>Data</h2>\n{''.join(parts)}\n{_facts(facts)}</section>"


def _machine(result: Result) -> str:
    phases = list(dict.fromkeys([*result.seconds, *result.images_per_second]))
    rows = []
    for phase in phases:
        seconds, rate = result.seconds.get(phase), result.images_per_second.get(phase)
        cells = ("-" if seconds is None else duration(seconds), "-" if rate is None else f"{rate:,.1f}")
        rows.append(html_row(escape(phase), cells))
    hardware = {k: ", ".join(map(str, v)) or "none" if isinstance(v, list) else v for k, v in result.hardware.items()}
    facts = {str(k).capitalize().replace("Gpus", "GPUs"): escape(str(v)) for k, v in hardware.items()}
    if result.processor_seconds is not None:
        facts = {"Processor time": f"{duration(result.processor_seconds)}, user and system, of all processes"} | facts
    facts["Versions"] = escape(", ".join(f"{k} {v}" for k, v in result.versions.items()))
    table = html_table(["Phase", "Time", "Images/s"], rows) if rows else ""
    return f"<section>\n<h2>Speed and machine</h2>\n{table}\n{_facts(facts)}</section>"


def _settings(result: Result) -> str:
    lines = "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flatten(result.config))
    return (
        "<section>\n<h2>Settings</h2>\n<details>\n<summary>All settings of this run</summary>\n"
        f"<pre>{escape(lines)}</pre>\n</details>\n</section>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    """A list of terms; the values are HTML already."""
    return "<dl>\n" + "\n".join(f"<dt>{escape(key)}</dt><dd>{value}</dd>" for key, value in facts.items()) + "\n</dl>\n"
