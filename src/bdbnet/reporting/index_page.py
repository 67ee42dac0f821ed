"""`index.html` of an output folder: every page below it, newest first, searchable; and the links between pages."""

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bdbnet.checked import UnfitError, checked
from bdbnet.files import WriteError
from bdbnet.regular_files import require_regular
from bdbnet.reporting.page import ABOUT, page
from bdbnet.results import write_atomically
from bdbnet.wording import date_text

INDEX = "index.html"
#: Folders of commands in an output folder.
_OF_COMMANDS = frozenset({"train", "evaluate", "embed", "calibrate", "search", "visualize", "sweeps", "reproduce"})
_DEPTH = 7  # of a page below the output folder
_WITHOUT_PAGES = frozenset({"wandb", "mlruns", "tensorboard", "parts", "shards"})
_HEAD = 16_384  # bytes of a page that hold what it says of itself; its style comes after
_SCRIPT = """
const field = document.getElementById('find'), rows = [...document.querySelectorAll('tbody tr')];
const count = document.getElementById('count');
const show = () => {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  const pages = rows.length === 1 ? '1 page' : `${rows.length} pages`;
  count.textContent = shown === rows.length ? pages : `${shown} of ${pages}`;
};
field.hidden = false;
field.addEventListener('input', show);
show();
"""


class About(NamedTuple):
    """What a page says of itself: heading, kind, date (may be empty) and main numbers."""

    heading: str
    kind: str
    date: str
    headline: list[list[str]]


class Link(NamedTuple):
    """A page to go to: what it is, and its address relative to the page that it stands on."""

    title: str
    href: str


class _Listed(NamedTuple):
    place: str
    about: About
    changed: float


def output_root(folder: Path) -> Path | None:
    """The output folder that a folder of a command's results lies in; None where the folders are not named as commands name them.

    >>> output_root(Path("/home/me/outputs/evaluate/mine")), output_root(Path("/photos/gallery"))
    (PosixPath('/home/me/outputs'), None)
    """
    for parent in list(folder.absolute().parents)[:_DEPTH]:
        if parent.name in _OF_COMMANDS:
            return parent.parent
    return None


def links_of(folder: Path, *others: tuple[str, Path]) -> list[Link]:
    """Links for a page in a folder: to the index of its output folder, and to those of some other pages that there are.

    Args:
        others: what each is, and its file.
    """
    root = output_root(folder)
    found = [] if root is None else [("All pages", root / INDEX)]
    found += [(title, file) for title, file in others if file.is_file()]
    return [Link(title, relative(file, folder)) for title, file in found]


def relative(file: Path, folder: Path) -> str:
    """A file's address, seen from a page in a folder."""
    # With a dot before it, so that no name can pass for a scheme.
    way = Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()
    return quote(way if way.startswith("..") else f"./{way}")


def update_index(folder: Path) -> Path | None:
    """List all pages of the output folder that a folder lies in, anew, in its `index.html`.

    Returns:
        The file; None where the folder lies in no output folder, or that can't be written to.
    """
    root = output_root(folder)
    if root is None:
        return None
    try:
        return write_atomically(root / INDEX, index_page(root).encode("utf-8", "xmlcharrefreplace"))
    except WriteError:  # the page itself is there: that its list is not is no reason to fail
        return None


def index_page(root: Path) -> str:
    """The HTML text of the index of an output folder."""
    pages = sorted(_pages(root), key=lambda one: (one.about.date or _written(one.changed), one.place), reverse=True)
    rows = []
    for one in pages:
        numbers = " ".join(f"<span>{escape(what)} <b>{escape(value)}</b></span>" for what, value in one.about.headline)
        rows.append(
            f'<tr><th scope="row"><a href="{escape(relative(root / one.place, root))}">{escape(one.about.heading)}</a></th>'
            f'<td>{escape(one.about.kind)}</td><td class="headline-cell">{numbers}</td>'
            f"<td>{escape(one.about.date or _written(one.changed))}</td>"
            f"<td><code>{escape(one.place.rpartition('/')[0])}</code></td></tr>"
        )
    heads = "".join(f'<th scope="col">{text}</th>' for text in ("Page", "Kind", "Main numbers", "Date", "Folder"))
    listed, count = "\n".join(rows), f"{len(rows)} page" + "s" * (len(rows) != 1)
    body = (
        '<section>\n<p><input id="find" type="search" placeholder="find by words" aria-label="find pages by words" hidden '
        f'autofocus> <span id="count" class="soft">{count}</span></p>\n<div class="scroll">\n<table class="index">\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{listed}\n</tbody>\n</table>\n</div>\n"
        f"<script>{_SCRIPT}</script>\n</section>"
    )
    digest = base64.b64encode(sha256(_SCRIPT.encode()).digest()).decode()
    return page(
        "Results",
        "Index",
        f"All pages in {root.name}, newest first",
        [body],
        name=root.name,
        script=f"'sha256-{digest}'",
    )


def _written(seconds: float) -> str:
    return date_text(datetime.fromtimestamp(seconds, UTC))


def _pages(root: Path) -> Iterator[_Listed]:
    for folder, names, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        names[:] = sorted(
            name for name in names if depth < _DEPTH and name not in _WITHOUT_PAGES and not name.startswith(".")
        )
        for name in sorted(files):
            if not name.endswith(".html") or (name == INDEX and depth == 0):
                continue
            file = Path(folder) / name
            try:
                about, changed = about_of(file), file.stat().st_mtime
            except OSError:  # removed meanwhile
                continue
            if about is not None:
                yield _Listed(file.relative_to(root).as_posix(), about, changed)


def about_of(file: Path) -> About | None:
    """What a page says of itself; None where it is none of ours.  Raises OSError."""
    require_regular(file)  # not a pipe, which would be waited for
    with file.open("rb") as content:
        head = content.read(_HEAD).decode("utf-8", "replace")
    found = re.search(rf'<meta name="{ABOUT}" content="([^"]*)">', head)
    if found is None:
        return None
    try:
        said = checked(json.loads(unescape(found[1])), dict[str, object])
        headline = checked(said.get("headline", []), list[list[str]])
    except (ValueError, UnfitError):
        return None
    rows = [row for row in headline if len(row) == 2]
    heading, kind, date = (str(said.get(key, "")) for key in ("heading", "kind", "date"))
    return About(heading, kind, date, rows)


def navigation(links: Sequence[Link]) -> str:
    """Links at the top of a page."""
    items = " ".join(f'<a href="{escape(link.href)}">{escape(link.title)}</a>' for link in links)
    return f"<nav>{items}</nav>\n" if links else ""
