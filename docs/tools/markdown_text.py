"""Plain text as Markdown: cells, code spans and tables."""

import re
from collections.abc import Iterable, Sequence


def cell(text: str, *, in_table: bool = True) -> str:
    """Text that means itself; what stands in backticks stays code.

    >>> cell("a_b | `c_d`")
    'a\\\\_b \\\\| `c_d`'
    """
    parts = re.split(r"(`[^`]+`)", text)
    shown = "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>{}`])", r"\\\1", part) for part in parts)
    return shown.replace("|", r"\|") if in_table else shown


def code(text: str) -> str:
    """A code span; nothing of an empty text."""
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
