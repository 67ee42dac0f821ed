"""Files of the repository that pages link to, as pages of the site; and the links between all of them."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_text import cell

ROOT = Path(__file__).resolve().parents[2]
#: Where files from outside of ``docs/`` are on the site.
PLACE = "repository"
LANGUAGES = {
    ".py": "python",
    ".sh": "bash",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".toml": "toml",
    ".css": "css",
}
PICTURES = {".png", ".svg", ".jpg"}
LARGEST = 200_000  # bytes of a file that becomes a page

_FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[ \t]*$", re.MULTILINE | re.DOTALL)
#: A code span, or a link or picture, whose text may hold code.
_SPAN = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<picture>!?)\[(?P<text>(?:`[^`]*`|[^\[\]`])*)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL,
)


def links(markdown: str) -> Iterator[str]:
    """The targets of the links and pictures of a page, without those in code."""
    for match in _SPAN.finditer(_FENCE.sub("", markdown)):
        if match["target"]:
            yield match["target"]


def is_outside(target: str) -> bool:
    """Whether a link leads to another site."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*:", target))


def linked_file(source: Path, target: str) -> Path | None:
    """The file or folder of the repository that a link of ``source`` leads to; None: elsewhere, or within the page."""
    path = unquote(target.partition("#")[0])
    return None if is_outside(target) or not path else Path(os.path.normpath(source.parent / path))


def page_of(file: Path) -> str | None:
    """The page or picture of the site that shows a file or folder of the repository; None: there is none."""
    if file.is_dir():
        return page_of(file / "README.md")
    if not file.is_file() or not file.is_relative_to(ROOT):
        return None
    inside = file.relative_to(ROOT)
    if inside.parts[0] == "docs":
        return inside.relative_to("docs").as_posix()
    if file.suffix in PICTURES or file.suffix == ".md":
        return f"{PLACE}/{inside.as_posix()}"
    if file.suffix == ".ipynb" or (file.suffix in LANGUAGES and file.stat().st_size <= LARGEST):
        return f"{PLACE}/{inside.as_posix()}.md"
    return None


def source_of(uri: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if not uri.startswith(f"{PLACE}/"):
        return ROOT / "docs" / uri
    file = ROOT / uri.removeprefix(f"{PLACE}/")
    return file if file.is_file() else file.with_suffix("")


def text_of(file: Path) -> str:
    """A file of the repository as Markdown."""
    if file.suffix == ".md":
        return file.read_text()
    if file.suffix == ".ipynb":
        return notebook(json.loads(file.read_text()))
    code = f"````{LANGUAGES[file.suffix]}\n{file.read_text().rstrip()}\n````\n"
    return f"---\nsearch:\n  exclude: true\n---\n# {cell(file.relative_to(ROOT).as_posix())}\n\n{code}"


def notebook(content: dict) -> str:
    """A notebook with its outputs as Markdown."""
    parts = []
    for each in content["cells"]:
        source = "".join(each["source"])
        if each["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"````python\n{source}\n````")
        for output in each["outputs"]:
            shown = output.get("data", {})
            kind = next((kind for kind in shown if kind.startswith("image/")), None)
            if kind is not None:
                pixels = "".join(shown[kind]).strip()
                parts.append(f'<img alt="What the cell above draws" src="data:{kind};base64,{pixels}">')
            elif text := "".join(output.get("text") or shown.get("text/plain", [])).rstrip():
                parts.append(f"````text\n{text}\n````")
    return "\n\n".join(parts) + "\n"


def linked_pages(pages: Iterable[Path]) -> dict[str, Path]:
    """Pages and pictures of files outside of ``docs/`` to which pages lead, and to which those lead: page -> file."""
    found: dict[str, Path] = {}
    waiting = list(pages)
    while waiting:
        source = waiting.pop()
        for target in links(text_of(source)):
            file = linked_file(source, target)
            page = None if file is None else page_of(file)
            if file is None or page is None or not page.startswith(f"{PLACE}/") or page in found:
                continue
            found[page] = source_of(page)
            if found[page].suffix not in PICTURES:
                waiting.append(found[page])
    return found


def with_site_links(markdown: str, source: Path, page: str) -> str:
    """A page whose links to files of the repository lead to pages of the site; where there is none the text alone stays.

    Args:
        markdown: the text of ``source``.
        page: place on the site.
    """

    def rewritten(target: str) -> str | None:
        file = linked_file(source, target)
        if file is None:
            return target
        to = page_of(file)
        if to is None:
            return None
        anchor = target.partition("#")[1:]
        return os.path.relpath(to, Path(page).parent) + "".join(anchor)

    def shown(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        to = rewritten(match["target"])
        return match["text"] if to is None else f"{match['picture']}[{match['text']}]({to})"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_SPAN.sub(shown, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _SPAN.sub(shown, markdown[end:])])
