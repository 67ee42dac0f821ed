"""For the Python reference: an argument section that describes two arguments in one entry, `a, b: text`, has a row for each."""

import re
from typing import Any

import griffe

_ENTRY = re.compile(
    r"^(?P<indent> +)(?P<first>\w+)(?P<others>(?:,\s+\w+)+):\s+(?P<text>.*(?:\n(?P=indent) +.*)*)$", re.MULTILINE
)


def with_separate_entries(docstring: str) -> str:
    """A docstring in Google's style whose joint entries are divided: the first has the text, the others refer to it.

    >>> print(with_separate_entries("Args:\\n    a, b: both\\n        of them.\\n    c: one."))
    Args:
        a: both
            of them.
        b: see `a`.
        c: one.
    """

    def divided(match: re.Match[str]) -> str:
        indent, first = match["indent"], match["first"]
        others = re.findall(r"\w+", match["others"])
        return "\n".join(
            [f"{indent}{first}: {match['text']}", *(f"{indent}{other}: see `{first}`." for other in others)]
        )

    return _ENTRY.sub(divided, docstring)


class JointArguments(griffe.Extension):
    """Divides the entries of every docstring when its object is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe."""
        if obj.docstring is not None:
            obj.docstring.value = with_separate_entries(obj.docstring.value)
