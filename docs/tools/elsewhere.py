"""What a page of HTML loads from other sites: pictures, scripts, styles, fonts, frames. Links that a reader clicks are fine."""

import re
from html.parser import HTMLParser

_ADDRESS = re.compile(r"^(?:[a-z]+:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""url\(\s*['"]?(?P<url>[^'")]+)|@import\s+['"](?P<imported>[^'"]+)""")
#: Relations of <link> that name other pages, and load nothing.
_NAMED = frozenset({"canonical", "next", "prev", "alternate", "author", "license"})


def loaded_from_elsewhere(html: str) -> list[str]:
    """The addresses of other sites from which a page loads something.

    >>> loaded_from_elsewhere('<a href="https://a.org">a</a><img src="https://b.org/b.png"><link rel="next" href="//c">')
    ['https://b.org/b.png']
    """
    reader = _Reader()
    reader.feed(html)
    return [address for address in reader.loaded if _ADDRESS.match(address)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loaded += [given[name] for name in ("src", "poster", "data") if name in given]
        self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        if tag == "link" and not _NAMED & {*given.get("rel", "").split()}:
            self.loaded.append(given.get("href", ""))
        self._of_style(given.get("style", ""))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._of_style(data)

    def _of_style(self, style: str) -> None:
        self.loaded += [match["url"] or match["imported"] for match in _IN_STYLE.finditer(style)]
