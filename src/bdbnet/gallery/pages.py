"""The page of a search: pictures of the queries and of what was found."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from bdbnet.evaluation.calibration import MARKS
from bdbnet.reporting.page import html_row, html_table, page
from bdbnet.reporting.pictures import box_of, picture
from bdbnet.wording import distance

# In words, for the borders and signs say whether the label is right.
_MARKS = {mark: f'<span class="mark {mark.replace(" ", "-")}">{mark}</span>' for mark in MARKS}


def search_page(
    rows: pd.DataFrame,
    paths: Sequence[str],
    query_root: Path,
    gallery_root: Path,
    *,
    queries: int,
    facts: Mapping[str, str],
    name: str,
    date: str,
    navigation: str = "",
) -> str:
    """The HTML text of a page that needs no other file.

    Args:
        rows: of `results_table`, at least those of the queries that are shown.
        paths: of all queries.
        query_root, gallery_root: folders that the paths are relative to.
        queries: so many queries are shown, the first ones.
        facts: what was searched and how; plain text.
        name: of the gallery, its heading.
        date: of the search.
        navigation: links at its top; HTML already.
    """
    lists = []
    for number, path in enumerate(paths[:queries]):
        hits = rows[rows["query_index"] == number]
        lists.append(_ranks(hits, query_root, gallery_root) if len(hits) else _nothing(path))
    marks = (
        " <b>✓</b> solid green border: the query's label. <b>✗</b> dashed red border: another label."
        if "correct" in rows
        else ""
    )
    if "mark" in rows:
        marks += " <b>same, unsure, not same</b>: what the distance says about the identity."
    found = (
        f'<section>\n<h2>Found</h2>\n<p class="soft">{len(lists):,} of {len(paths):,} queries. The query at the left, then the '
        f"images nearest to it with rank and distance.{marks}</p>\n{''.join(lists)}</section>"
    )
    table = html_table(
        ["", ""], [html_row(escape(key.capitalize()), [escape(value)]) for key, value in facts.items()], "runs"
    )
    sections = [found, f"<section>\n<h2>Search</h2>\n{table}\n</section>"]
    return page(
        name, "Search", facts["gallery"], sections, date=date, navigation=navigation,
    )  # fmt: skip


def _nothing(path: str) -> str:
    return f'<div class="query">\n<p><code>{escape(path)}</code>: nothing found</p>\n</div>\n'


def _ranks(hits: pd.DataFrame, query_root: Path, gallery_root: Path) -> str:
    records = hits.to_dict("records")
    first = records[0]
    items = [
        f'<li class="asked">{picture(query_root, first["query_path"], "query", box_of(first, "query"))}<b>query</b>'
        f"{_known(first, 'query')}</li>"
    ]
    for row in records:
        word, mark = {True: ("right", " ✓"), False: ("wrong", " ✗"), None: ("", "")}[row.get("correct")]
        away = distance(float(row["distance"]))
        said = row.get("mark", "")
        alt = f"rank {row['rank']}{f', {word}' if word else ''}, distance {away}{f', {said}' if said else ''}"
        items.append(
            f'<li class="{word}">{picture(gallery_root, row["gallery_path"], alt, box_of(row, "gallery"))}'
            f"<b>{row['rank']}{mark}</b><span>{away}</span>{_MARKS.get(said, '')}{_known(row, 'gallery')}"
            f'<span class="file">{escape(_file_name(row["gallery_path"])).replace("/", "/<wbr>")}</span></li>'
        )
    ranks = '<ol class="ranks">\n' + "\n".join(items) + "\n</ol>"
    return f'<div class="query">\n<p><code>{escape(first["query_path"])}</code></p>\n{ranks}\n</div>\n'


def _file_name(path: str) -> str:
    """The file with its folder, which often says more than a number does.

    >>> _file_name("people/anna/1.jpg"), _file_name("1.jpg")
    ('anna/1.jpg', '1.jpg')
    """
    return "/".join(path.split("/")[-2:])


def _known(row: Mapping[Any, Any], of: str) -> str:
    """Label and camera, as far as they are known."""
    parts = []
    for column, word in (("label", "label"), ("camera", "cam")):
        value = row.get(f"{of}_{column}", -1)
        if value >= 0:
            parts.append(f"<span>{word} {escape(str(value))}</span>")
    return "".join(parts)
