"""Tables of the site that the code or a list of the repository knows: fields of result.json, metrics, data sets, what a GPU has
shown."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from markdown_text import cell, code, table

from bdbnet.datasets import FACTS
from bdbnet.datasets.catalogue import UNTRIED
from bdbnet.results import METRICS, Protocol, Result


def attributes_of(cls: type) -> dict[str, str]:
    """The attributes that a class's docstring describes."""
    _, _, listed = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        match = re.fullmatch(r" {4}(\w+): (.*)", line)
        if match:
            name = match[1]
            found[name] = match[2]
        elif line.strip() and name:
            found[name] += f" {line.strip()}"
    return {name: text.replace("``", "`") for name, text in found.items()}


def fields(cls: type) -> str:
    """The fields of a record: name, type, default and meaning."""
    said = attributes_of(cls)
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    written = {
        ast.unparse(node.target): node.annotation for node in ast.walk(definition) if isinstance(node, ast.AnnAssign)
    }
    rows = []
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else code(_shown(field.default))
        rows.append((code(field.name), cell(_as_json(written[field.name])), default, cell(said[field.name])))
    return table(("field", "type", "default", "meaning"), rows)


def _as_json(kind: ast.expr) -> str:
    """A type as a reader of JSON sees it."""
    match kind:
        case ast.BinOp(left=left, right=right):
            return f"{_as_json(left)} | {_as_json(right)}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[what, *_])):
            return _as_json(what)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=value)):
            return json.dumps(value)
        case ast.Subscript(value=ast.Name(id=name)):
            return JSON_TYPES[name]
        case ast.Name(id=name):
            return JSON_TYPES[name]
        case ast.Constant(value=None):
            return "null"
    raise ValueError(f"{ast.unparse(kind)}: give its name in JSON")


def _shown(value: object) -> str:
    return json.dumps(value, default=str)


#: Types of a record and what a reader of JSON calls them.
JSON_TYPES = {
    "str": "text", "int": "whole number", "Positive": "whole number", "float": "number", "bool": "true or false",
    "Size": "[height, width]", "Mapping": "object", "Protocol": "object, see below", "tuple": "list", "list": "list",
}  # fmt: skip


def metrics() -> str:
    """Every metric: key, title, unit, direction, column of per_query.parquet."""
    rows = [
        (
            code(row.name),
            row.title,
            row.unit or "count",
            row.better,
            code(row.column) if row.better != "neither" else "",
        )
        for row in METRICS.values()
    ]
    return table(("key", "title", "unit", "better", "column of per_query.parquet"), rows)


def catalogue() -> str:
    """Every data set that bdbnet reads: what to get, where, under which terms, and its published size."""
    parts = []
    for name, facts in FACTS.items():
        parts.append(f"### {name}\n\n{cell(facts.title, in_table=False)}. {cell(facts.paper, in_table=False)}.\n")
        if not facts.tried:
            parts.append(f"*{UNTRIED}*\n")
        lines = [("Archive", code(facts.archives)), ("Where", cell(facts.obtain, in_table=False))]
        parts.append("".join(f"- {name}: {said}\n" for name, said in lines if said))
        if facts.counts:
            rows = [
                (
                    role,
                    f"{size.identities:,}",
                    f"{size.images:,}",
                    "" if size.cameras is None else str(size.cameras or "none"),
                )
                for role, size in facts.counts.items()
            ]
            parts.append(table(("published", "identities", "images", "cameras"), rows))
        parts.append(f"```text\n{facts.layout}\n```\n")
    return "\n".join(parts)


QUEUE = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "GPU_QUEUE.md"


def gpu_queue(text: str | None = None) -> str:
    """What needs a GPU, section by section: its figure, or that there is none yet.

    Args:
        text: a list with sections whose tables have the columns what, command, figure and, if any, device; None: the
            repository's.
    """
    parts, measured, total = [], 0, 0
    for section in re.split(r"^## ", QUEUE.read_text() if text is None else text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        rows = []
        for line in re.findall(r"^\|(.+)\|$", body, re.MULTILINE):
            what, _, *found = [part.strip() for part in re.split(r"(?<!\\)\|", line)]
            if what == "what" or set(what) <= {"-", ":"}:
                continue
            figure = "; ".join(part for part in found if part)
            open_yet = any(part.startswith("unmeasured") for part in found)
            rows.append((what, figure.replace("unmeasured", "**not yet**", 1) if open_yet else figure))
            measured += not open_yet
        total += len(rows)
        parts.append(f"## {title}\n\n{table(('what', 'figure'), rows)}")
    return f"{measured} of {total} have been measured.\n\n" + "\n".join(parts)


#: What ``<!-- generated: NAME -->`` in a page becomes.
GENERATED: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "catalogue": catalogue,
    "gpu queue": gpu_queue,
    "result fields": lambda: fields(Result),
    "protocol fields": lambda: fields(Protocol),
}
