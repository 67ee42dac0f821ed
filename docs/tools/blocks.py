"""The fenced blocks of the README and of the site's pages: what each is, and what its tests do with it.

python docs/tools/blocks.py       prints how many of each kind there are

A block of Python runs, after those before it on its page. Commands of a block of bash are composed and checked; under the mark
``<!-- run -->`` they run too. ``<!-- file: NAME -->`` writes a block into a file. A block that can't run stands under
``<!-- not run: REASON -->``. Blocks of data are parsed or only shown.
"""

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
PARSERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
#: Languages of blocks that are neither code of ours nor a format that is parsed here; "" has no language.
SHOWN = frozenset({"", "text", "csv", "nginx"})

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>run|file: (?P<file>\S+)|not run: (?P<reason>.+?)) -->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>[\w-]*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(
    r"(?<!`)`((?:[A-Z_]+=\S+ )*(?:python -m bdbnet\.(?=[a-z])|bdbnet (?=[a-z]+ \S*=)|torchrun )[^`]+)`(?!`)"
)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: file that it is in.
        line: of its first line of code.
        language: as its fence says.
        file: name of the file that it is written to.
        run: its commands are run, not only checked.
        reason: why it does not run.
    """

    page: Path
    line: int
    language: str
    code: str
    file: str | None = None
    run: bool = False
    reason: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def kind(self) -> str:
        """What is done with it; ``unknown`` where nobody would notice that it is wrong."""
        if self.reason is not None:
            return "not run"
        if self.file is not None:
            return "written to a file and run"
        if self.language == "python":
            return "python, run"
        if self.language == "bash":
            return "bash, checked and run" if self.run or is_typed_out(self.page) else "bash, checked"
        if self.language in PARSERS:
            return "data, parsed"
        return "shown" if self.language in SHOWN else "unknown"


def is_typed_out(page: Path) -> bool:
    """Whether all commands of a page run, at toy size: those for people who extend bdbnet."""
    return page.parent.name == "extend" and page.stem != "README"


def pages() -> list[Path]:
    """README and the pages that are written by hand."""
    below = sorted(path for path in (ROOT / "docs").rglob("*.md") if "tools" not in path.parts)
    return [ROOT / "README.md", *below]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("code")) + 1,
            match["language"],
            match["code"],
            match["file"],
            match["mark"] == "run",
            match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]


def inline_commands(page: Path) -> list[str]:
    """The commands in the running text and the tables of a page."""
    return [
        " ".join(match[1].replace(r"\|", "|").split()) for match in _INLINE.finditer(_BLOCK.sub("", page.read_text()))
    ]


def commands(block: Block) -> Iterator[str]:
    """The lines of a block of bash, those that a backslash continues put together, without comments."""
    for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
        if bare := re.sub(r"(^|\s)#.*", "", line).strip():
            yield bare


def main() -> None:
    """Print the counts."""
    found = [block for page in pages() for block in blocks_of(page)]
    counts = Counter(block.kind for block in found)
    run = sum(count for kind, count in counts.items() if kind.endswith("run") and kind != "not run")
    others = ", ".join(f"{counts[kind]} {kind}" for kind in ("bash, checked", "data, parsed", "shown", "not run"))
    print(f"{len(found)} fenced blocks on {len(pages())} pages: {run} run, {others}")
    for kind, count in sorted(counts.items()):
        print(f"{count:5} {kind}")
    inline = sum(len(inline_commands(page)) for page in pages())
    print(f"{inline:5} commands in running text and tables, checked")
    for block in found:
        if block.reason is not None:
            print(f"      {block.place} is not run: {block.reason}")
    sys.exit(1 if counts["unknown"] else 0)


if __name__ == "__main__":
    main()
