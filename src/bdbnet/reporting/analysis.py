"""Error analysis: its tables for the terminal and its section of the run's page, from analysis.json."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bdbnet.reporting.page import note_paragraphs
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reporting.table import Grid, as_html, as_text
from bdbnet.results import Metric, in_percent, metric_heads, metric_of
from bdbnet.wording import distance, percent

_NONE = "-"
_WORST = "Worst queries"
_MEAN_AP = metric_of("mAP")


def analysis_text(record: Mapping[str, Any]) -> str:
    """All tables of an `analysis.json` for a terminal."""
    return "\n\n".join(as_text(grid) for grid in analysis_tables(record))


def analysis_section(record: Mapping[str, Any] | None, worst: str = "") -> str:
    """Section of the page with pictures and tables; empty for a run that was not analysed.

    Args:
        record: an `analysis.json`.
        worst: HTML above the table of the worst queries.
    """
    if record is None:
        return ""
    parts = [
        f"<h3>{escape(grid.title)}</h3>\n{worst * (grid.title == _WORST)}{as_html(grid)}\n{note_paragraphs(grid.notes)}"
        for grid in analysis_tables(record)
    ]
    return (
        f'<section>\n<h2>Analysis</h2>\n<div class="curves">\n{"".join(_pictures(record))}</div>\n'
        f"{''.join(parts)}</section>"
    )


def analysis_tables(record: Mapping[str, Any]) -> list[Grid]:
    """Tables of an `analysis.json`, those that have rows: confidence intervals, by camera, by number of images, worst
    queries, confused identities, distances of pairs."""
    noun, first = _words(record)
    tables = [
        _intervals(record, noun),
        *([] if record["camera_pairs"] is None else [_cameras(record["camera_pairs"])]),
        _by_images(record["by_gallery_images"], first),
        _worst(record["worst_queries"], noun),
        _confused(record, noun),
        _pairs(record, noun),
    ]
    return [table for table in tables if table.rows]


def _words(record: Mapping[str, Any]) -> tuple[str, str]:
    """What a label is called, and the title of the share of queries whose rank 1 is right."""
    noun, name = ("identity", "rank1") if record["protocol"]["task"].startswith("reid") else ("class", "recall@1")
    return noun, metric_of(name).title


def _intervals(record: Mapping[str, Any], noun: str) -> Grid:
    found: Mapping[str, Any] = record["metrics"]
    rows = [
        [head, metric_of(name).number(of["value"]), _interval(metric_of(name), of["interval"])]
        for head, (name, of) in zip(metric_heads(list(found)), found.items())
    ]
    notes = [
        f"Intervals over {_plural(noun)}, all queries of one together: by bootstrap, with fewer than 100 by Student's t."
    ]
    if all(of["interval"] is None for of in found.values()):
        notes = [f"No interval: all queries that count are of one {noun}."]
    if record["valid_queries"] < record["queries"]:
        notes.append(f"{record['queries'] - record['valid_queries']:,} queries have no match and do not count.")
    if record["protocol"].get("single_shot") is not None:
        notes.append(
            "Here and below the whole gallery is searched, not one image per identity: the numbers differ from those above."
        )
    title = f"Metrics over {record['valid_queries']:,} queries" + ", %" * in_percent(found)
    return Grid(title, ["", "mean", "95 % interval"], rows, notes)


def _cameras(pairs: Mapping[str, Any]) -> Grid:
    heads = ["query camera", *(f"in {camera}" for camera in pairs["gallery_cameras"])]
    rows = [
        [str(camera), *(f"{_points(a)} / {_points(b)}" if queries else _NONE for a, b, queries in zip(*cells))]
        for camera, *cells in zip(pairs["query_cameras"], pairs["rank1"], pairs["mAP"], pairs["queries"])
    ]
    title = f"Searched in the images of one camera: {metric_of('rank1').title} / {_MEAN_AP.heading}"
    return Grid(title, heads, rows, [])


def _by_images(bins: Sequence[Mapping[str, Any]], first: str) -> Grid:
    rows = [[of["images"], f"{of['queries']:,}", _points(of["rank1"]), _points(of["mAP"])] for of in bins]
    return Grid(
        "By number of matches in the gallery", ["matches", "queries", f"{first}, %", _MEAN_AP.heading], rows, []
    )


def _worst(queries: Sequence[Mapping[str, Any]], noun: str) -> Grid:
    rows = [
        [
            of["path"], str(of["label"]), _points(of["ap"]), f"{of['first_match_rank']:,}", of["nearest"]["path"],
            str(of["nearest"]["label"]), distance(of["nearest"]["distance"]),
        ]
        for of in queries
    ]  # fmt: skip
    heads = ["query", noun, "AP, %", "first match at rank", "at rank 1", noun, "distance"]
    return Grid(_WORST, heads, rows, [])


def _confused(record: Mapping[str, Any], noun: str) -> Grid:
    rows = [[str(of["label"]), str(of["taken_for"]), f"{of['queries']:,}"] for of in record["confused_identities"]]
    notes = ["Queries whose rank 1 is wrong."]
    if count := record["distractors_at_rank_1"]:
        notes.append(f"Queries with a distractor (an image that no query asks for) at rank 1: {count:,}.")
    return Grid(f"Most confused {_plural(noun)}", [noun, "taken for", "queries"], rows, notes)


def _pairs(record: Mapping[str, Any], noun: str) -> Grid:
    pairs = record["pairs"]
    title = f"Same {noun} or not: {pairs['positives']:,} pairs of one {noun}, {pairs['negatives']:,} of two"
    heads = ["", "threshold", "true positives", "false positives"]
    if "equal_error_rate" not in pairs:
        return Grid(title, heads, [], [])
    rate = percent(pairs["equal_error_rate"])
    caught = percent(1 - pairs["equal_error_rate"])
    rows = [["equal error rate", distance(pairs["equal_error_threshold"]), caught, rate]]
    notes = ["Pairs nearer than the threshold count as the same; distances are between embeddings, not re-ranked."]
    named = [(f"false positive rate {of['rate']:g}", of) for of in pairs["at_false_positive_rate"]]
    named += [(f"other half: {of['criterion']}", of) for of in pairs["held_out"]]
    for name, of in named:
        if of["reason"] is None:
            cells = (distance(of["threshold"]), percent(of["true_positive_rate"]), _fine(of["false_positive_rate"]))
            rows.append([name, *cells])
        else:
            rows.append([name, _NONE, _NONE, _NONE])
            notes.append(f"{name}: {of['reason']}.")
    notes.append(
        f'"Other half": the threshold was selected on pairs within one half of the {_plural(noun)} and evaluated on the other.'
    )
    return Grid(title, heads, rows, notes)


def _pictures(record: Mapping[str, Any]) -> list[str]:
    from bdbnet.figures import error_analysis as vis

    _, first = _words(record)
    pairs, cameras = record["pairs"], record["camera_pairs"]
    pictures = []
    if "equal_error_rate" in pairs:
        rate, threshold = pairs["equal_error_rate"], pairs["equal_error_threshold"]
        pictures.append(
            themed_picture(
                lambda theme: vis.distance_distributions(**pairs["histogram"], threshold=threshold, theme=theme),
                "Distances of pairs",
                f"threshold {distance(threshold)} at the equal error rate, {percent(rate)}",
            )
        )
        pictures.append(
            themed_picture(
                lambda theme: vis.roc_curve(**pairs["roc"], marks=[("EER", rate, 1 - rate)], theme=theme),
                "ROC",
                f"equal error rate {percent(rate)}",
            )
        )
    if cameras is not None:
        title = f"{first} in one camera's images, %"
        sides = cameras["query_cameras"], cameras["gallery_cameras"]
        pictures.append(
            themed_picture(
                lambda theme: vis.camera_matrix(title, cameras["rank1"], *sides, theme=theme), title, "see the table"
            )
        )
    counts = record["average_precision"]
    words = f"{counts[0]:,} queries below {100 / len(counts):g} %, {counts[-1]:,} from {100 - 100 / len(counts):g} % on"
    pictures.append(
        themed_picture(
            lambda theme: vis.precision_histogram(counts, theme=theme), "Queries by average precision", words
        )
    )
    return pictures


def _plural(noun: str) -> str:
    return {"identity": "identities", "class": "classes"}[noun]


def _points(fraction: float | None) -> str:
    """A fraction in percent, without the sign."""
    return _NONE if fraction is None else f"{100 * fraction:.1f}"


def _fine(fraction: float) -> str:
    """In percent, below 1 % with two significant digits."""
    return percent(fraction) if fraction >= 0.01 else f"{100 * fraction:.2g} %"


def _interval(metric: Metric, ends: Sequence[float] | None) -> str:
    return _NONE if ends is None else f"{metric.number(ends[0])} to {metric.number(ends[1])}"
