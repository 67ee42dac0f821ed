"""A self-contained HTML page, its tables and notes."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from importlib import resources
from pathlib import Path

#: Name of what a page says of itself, for lists of pages.
ABOUT = "bdbnet-page"


def page(
    heading: str,
    kind: str,
    subtitle: str,
    sections: Sequence[str],
    *,
    headline: Sequence[tuple[str, str]] = (),
    date: str = "",
    name: str = "",
    footer: str = "Made by bdbnet.",
    settings: str = "",
    navigation: str = "",
    script: str = "",
) -> str:
    """The HTML text of a page that needs no other file.

    Args:
        heading, kind, subtitle: plain texts at its top; the kind of page is above the heading.
        sections: HTML already.
        headline: names and values of the main numbers, in large letters below the heading; plain texts.
        date: beside the kind of page.
        name: of the folder that the page is about.
        footer: plain text.
        settings: what the page was made with, for `settings_of_page`; plain text.
        navigation: links at its top; HTML already.
        script: the hash of the only script that may run, as a content security policy has it; none runs without.
    """
    style = resources.files("bdbnet.reporting").joinpath("report.css").read_text(encoding="utf-8")
    title = f"{heading}: {name}" if name else heading
    code = f"<p><code>{escape(name)}</code></p>\n" if name else ""
    numbers = "".join(f"<span>{escape(what)} <b>{escape(value)}</b></span> " for what, value in headline)
    main = f'<p class="headline">{numbers.strip()}</p>\n' if numbers else ""
    about = json.dumps({"heading": heading, "kind": kind, "date": date, "headline": [[*pair] for pair in headline]})
    scripts = f"; script-src {script}" if script else ""
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # The browser itself then refuses whatever is not in this file.
            '<meta http-equiv="Content-Security-Policy" '
            f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{scripts}\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="{ABOUT}" content="{escape(about)}">',
            *([f'<meta name="bdbnet-settings" content="{escape(settings)}">'] if settings else []),
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f"{navigation}<header>",
            f'<p class="kind">{escape(" · ".join(filter(None, [kind, date])))}</p>\n<h1>{escape(heading)}</h1>',
            f'{main}{code}<p class="soft">{escape(subtitle)}</p>\n</header>',
            "<main>",
            *sections,
            "</main>",
            f"<footer>{escape(footer)}</footer>\n</body>\n</html>\n",
        )
    )


def settings_of_page(file: Path) -> str:
    """The settings that a page was made with; empty where there is no such page or it says none."""
    try:
        with file.open(encoding="utf-8", errors="replace") as text:
            found = re.search(r'<meta name="bdbnet-settings" content="([^"]*)">', text.read(16_384))
    except FileNotFoundError:
        return ""
    return unescape(found[1]) if found else ""


def html_table(heads: Sequence[str], rows: Sequence[str], name: str = "plain") -> str:
    """A table that scrolls by itself where it is too wide; the rows are HTML already."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(rows)
    table = f'<table class="{name}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    return f'<div class="scroll">\n{table}\n</div>'


def note_paragraphs(notes: Iterable[str]) -> str:
    """A small paragraph for each plain text."""
    return "".join(f'<p class="soft">{escape(note)}</p>\n' for note in notes)


def html_row(head: str, cells: Sequence[str]) -> str:
    """A row with its name; name and cells are HTML already."""
    return f'<tr><th scope="row">{head}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
