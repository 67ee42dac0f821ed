"""Sections of a run's page with pictures: training curves and ranking lists."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from PIL import Image

from bdbnet.datasets import BOX_COLUMNS
from bdbnet.datasets.images import Box, ImageError, read_image
from bdbnet.figures import read_thumbnail
from bdbnet.reporting.run_folder import RunFolder, choose_queries, file_below
from bdbnet.results import metric_names, metric_of
from bdbnet.wording import distance, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bdbnet.evaluation.embedder import Embedder
    from bdbnet.figures import Theme


class Images(NamedTuple):
    """Folder that the images' paths are relative to, None where it is not to be found, and a remark for the reader."""

    root: Path | None
    remark: str


def curves(run: RunFolder) -> str:
    """Section with the training curves, drawn for light and for dark screens; empty for a run without history."""
    history = run.history
    if history is None or history.empty:
        return ""
    from bdbnet import figures as vis

    pictures = []
    metrics = dict.fromkeys([*vis.metric_columns(history), *metric_names(run.result.metrics)])
    evaluated = [name for name in metrics if name in history and history[name].notna().any()]
    for unit in dict.fromkeys(metric_of(name).unit for name in evaluated):
        names = [name for name in evaluated if metric_of(name).unit == unit]
        words = ", ".join(_first_and_last(history[name], metric_of(name).title, metric_of(name).text) for name in names)
        pictures.append(themed_picture(partial(_metric_curves, run, names), "Metrics by epoch", words))
    if losses := vis.loss_columns(history):
        words = ", ".join(_first_and_last(history[column], vis.loss_label(column), _three_digits) for column in losses)
        pictures.append(themed_picture(lambda theme: vis.loss_curves(history, theme=theme), "Loss by epoch", words))
    if "learning_rate" in history and history["learning_rate"].notna().any():
        words = _first_and_last(history["learning_rate"], "learning rate", _three_digits)
        pictures.append(
            themed_picture(lambda theme: vis.learning_rate_curve(history, theme=theme), "Learning rate by epoch", words)
        )
    return f'<section>\n<h2>Training</h2>\n<div class="curves">\n{"".join(pictures)}</div>\n</section>'


def _metric_curves(run: RunFolder, names: Sequence[str], theme: "Theme") -> "Figure":
    from bdbnet.figures import metric_curves

    assert run.history is not None
    return metric_curves(run.history, names, before=run.result.before, theme=theme)


def _first_and_last(column: "pd.Series[float]", title: str, text: Callable[[float], str]) -> str:
    """A curve in words, for those who can't see it."""
    values = column.dropna()
    return f"{title} from {text(values.iloc[0])} to {text(values.iloc[-1])}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def themed_picture(draw: "Callable[[Theme], Figure]", title: str, words: str) -> str:
    """A figure for light and for dark screens.

    Args:
        draw: theme -> figure.
        title: short.
        words: what the figure shows, for those who can't see it.
    """
    from bdbnet.figures import DARK, LIGHT

    alt = escape(f"{title}: {words}")
    return (
        f'<picture>\n<source media="screen and (prefers-color-scheme: dark)" srcset="{_svg(draw(DARK))}">\n'
        f'<img src="{_svg(draw(LIGHT))}" alt="{alt}" title="{alt}">\n</picture>\n'
    )


def _svg(figure: "Figure") -> str:
    return _data_uri("image/svg+xml", svg(figure))


def svg(figure: "Figure") -> bytes:
    """A figure as an SVG file, the same bytes every time."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bdbnet", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def ranking_lists(
    run: RunFolder, images: Images, queries: int, top: int, seed: int, embedder: "Embedder | None" = None
) -> str:
    """Section with ranking lists, in words and borders that need no colour; empty for a run without them.

    With the network each list has maps beneath it: where its images agree with the query.
    """
    ranking = run.ranking
    if ranking is None or ranking.empty or queries == 0:
        return ""
    root, remark = images
    total, kept = ranking["query_index"].nunique(), int(ranking["rank"].max())
    remarks = [remark] if remark else []
    evaluated = run.result.metrics.get("valid_queries", total)
    if evaluated < total:
        remarks.append(
            f"{total - evaluated:,.0f} queries have no correct image in the gallery. They count in no metric."
        )
    chosen = choose_queries(ranking, queries, seed)
    groups = (
        (f"{len(chosen.random)} at random", f"Drawn from all {total:,} queries, seed {seed}.", chosen.random),
        (
            f"{len(chosen.worst)} of the worst",
            f"Of the other queries, those whose first correct image comes latest in the list of {kept}, "
            "drawn at random among equals, an identity at most once where there are enough.",
            chosen.worst,
        ),
    )
    parts = [
        "<section>\n<h2>Ranking lists</h2>\n<p>The query at the left, then the gallery images nearest to it with "
        "rank and distance. <b>✓</b> solid green border: correct. <b>✗</b> dashed red border: wrong.</p>\n",
        *(f'<p class="note">{escape(text)}</p>\n' for text in remarks),
    ]
    if embedder is not None and root is not None:
        words = (
            "Beneath each list: where its images agree with the query, that is each place's contribution to the inner product "
            "of the two embeddings. The query's own map is that for rank 1."
        )
        parts.append(f'<p class="soft">{words}</p>\n')
    for heading, explanation, members in groups:
        if members:
            parts.append(f'<h3>{heading}</h3>\n<p class="soft">{escape(explanation)}</p>\n')
        for query in members:
            rows = ranking[ranking["query_index"] == query]
            maps = "" if embedder is None or root is None else _maps_of(embedder, root, rows.head(top))
            parts.append(_ranking_list(rows, root, top, run.result.protocol.task, maps))
    return "".join(parts) + "</section>"


def _maps_of(embedder: "Embedder", root: Path, rows: pd.DataFrame) -> str:
    """A row of maps beneath a ranking list; empty where an image can't be read."""
    from bdbnet.reporting.list_maps import overlays

    found = overlays(embedder, root, rows)
    if found is None:
        return ""
    words = [
        "where the query agrees with rank 1",
        *(f"where rank {rank} agrees with the query" for rank in rows["rank"]),
    ]
    items = []
    for number, (pixels, alt) in enumerate(zip(found, words, strict=True)):
        uri, size = _jpeg(Image.fromarray(pixels))
        kind = ' class="asked"' if number == 0 else ""
        items.append(f'<li{kind}><img src="{uri}" {size} alt="{alt}"></li>')
    return '<ol class="ranks maps">\n' + "\n".join(items) + "\n</ol>\n"


def _jpeg(image: Image.Image) -> tuple[str, str]:
    """An image as a data URI, and its size as attributes."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return _data_uri("image/jpeg", buffer.getvalue()), f'width="{image.width}" height="{image.height}"'


def _ranking_list(rows: pd.DataFrame, root: Path | None, top: int, task: str, maps: str = "") -> str:
    noun = "identity" if task.startswith("reid") else "class"
    first = rows.iloc[0]
    who = _who(noun, first.query_label, first.query_camera)
    hits = rows.loc[rows["correct"], "rank"]
    found = f"first correct image at rank {hits.min()}" if len(hits) else f"no correct image in the first {len(rows)}"
    items = [
        f'<li class="asked">{picture(root, first.query_path, f"query: {who}", box_of(first, "query"))}'
        f"<b>query</b>{_small(noun, first.query_label, first.query_camera)}</li>"
    ]
    for row in rows.head(top).to_dict("records"):
        rank, label, camera, away = (
            row["rank"],
            row["gallery_label"],
            row["gallery_camera"],
            distance(float(row["distance"])),
        )
        word, mark = ("right", "✓") if row["correct"] else ("wrong", "✗")
        alt = f"rank {rank}, {word}: {_who(noun, label, camera)}, distance {away}"
        items.append(
            f'<li class="{word}">{picture(root, row["gallery_path"], alt, box_of(row, "gallery"))}<b>{escape(str(rank))} {mark}</b>'
            f"<span>{away}</span>{_small(noun, label, camera)}</li>"
        )
    ranks = '<ol class="ranks">\n' + "\n".join(items) + "\n</ol>"
    return f'<div class="query">\n<p>{escape(f"{who[:1].upper()}{who[1:]}: {found}")}</p>\n{ranks}\n{maps}</div>\n'


def worst_queries(run: RunFolder, images: Images) -> str:
    """Each of the queries of lowest average precision beside what stood at its rank 1; empty where no image is to be found."""
    if run.analysis is None or images.root is None:
        return ""
    noun = "identity" if run.result.protocol.task.startswith("reid") else "class"
    items = []
    for query in run.analysis["worst_queries"]:
        nearest, first = query["nearest"], query["first_match_rank"]
        own, other = _boxes(run.ranking, query)
        who = _who(noun, query["label"], query["camera"])
        at_rank_1 = f"{_who(noun, nearest['label'], nearest['camera'])}, distance {distance(nearest['distance'])}"
        word, mark = ("right", "✓") if first == 1 else ("wrong", "✗")
        asked = picture(images.root, query["path"], f"query: {who}", own)
        found = picture(images.root, nearest["path"], f"rank 1, {word}: {at_rank_1}", other)
        labels = f"{noun} {query['label']}, at rank 1: {nearest['label']}\N{NO-BREAK SPACE}{mark}"
        facts = f"AP {percent(query['ap'])}, first match at rank {first:,}"
        pair = f'<div>{asked}<span class="{word}">{found}</span></div>'
        items.append(f"<li>{pair}{escape(labels)}<br>{escape(facts)}</li>")
    words = "The query at the left, beside it the image at rank 1."
    return f'<p class="soft">{words}</p>\n<ol class="pairs">\n' + "\n".join(items) + "\n</ol>\n" if items else ""


def _boxes(ranking: pd.DataFrame | None, query: Mapping[str, Any]) -> tuple[Box | None, Box | None]:
    """The parts of the photographs that are a query and the image at its rank 1, where its ranking list knows them."""
    if ranking is None or "query_x1" not in ranking:
        return None, None
    same = (ranking["query_path"] == query["path"]) & (ranking["gallery_path"] == query["nearest"]["path"])
    rows = ranking[same & (ranking["query_label"] == query["label"]) & (ranking["rank"] == 1)]
    return (None, None) if rows.empty else (box_of(rows.iloc[0], "query"), box_of(rows.iloc[0], "gallery"))


def _who(noun: str, label: Any, camera: Any) -> str:
    return f"{noun} {label}" + (f", camera {camera}" if camera >= 0 else "")


def _small(noun: str, label: Any, camera: Any) -> str:
    short = {"identity": "id"}.get(noun, noun)
    return f"<span>{escape(f'{short} {label}')}</span>" + (
        f"<span>cam {escape(str(camera))}</span>" if camera >= 0 else ""
    )


def box_of(row: Any, of: str) -> Box | None:
    """The part of the photograph that is the image, where a row of the ranking lists has one."""
    names = [f"{of}_{column}" for column in BOX_COLUMNS]
    if names[0] not in row:
        return None
    x1, y1, x2, y2 = (int(row[name]) for name in names)
    return x1, y1, x2, y2


def picture(root: Path | None, path: str, alt: str, box: Box | None) -> str:
    """The image at `path` below `root`, or a frame that says why it is not shown; no file elsewhere is opened."""
    problem = "image not found"
    if root is not None:
        try:
            file = file_below(root, path)
            image = None if file is None else read_thumbnail(file if box is None else read_image(file, box=box))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, ImageError):  # ValueError: a name that no file has
            problem = "image not readable"
        else:
            if image is None:
                return _no_picture(path, alt, "not in the data set's folder")
            uri, size = _jpeg(image)
            return f'<img src="{uri}" {size} alt="{escape(alt)}" title="{escape(path)}">'
    return _no_picture(path, alt, problem)


def _no_picture(path: object, alt: str, problem: str) -> str:
    words = escape(f"{alt} ({problem})")
    return f'<div class="missing" role="img" aria-label="{words}" title="{escape(str(path))}">{problem}</div>'
