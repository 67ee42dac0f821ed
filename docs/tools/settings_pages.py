"""Reference pages of the commands and of the groups of settings, from the YAML files of ``conf/`` and their comments."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from markdown_text import cell, code, table

from bdbnet.__main__ import COMMANDS
from bdbnet.config import config_dir
from bdbnet.schema import TABLES

CONF = config_dir()
#: Folders of ``conf/`` that are no group of a command line.
NO_GROUPS = {"hydra", "sweeps"}
#: Keys of a file that are Hydra's, not the command's.
OF_HYDRA = {"defaults", "hydra"}
HEAD = ("key", "default", "what", "takes")


@dataclass(frozen=True)
class Key:
    """A key of a file: its dotted name, its value as the file writes it, and the comment beside it."""

    name: str
    value: str
    comment: str


def keys_of(file: Path) -> list[Key]:
    """The keys of a file in its order, without Hydra's own."""
    text = file.read_text()
    root = yaml.compose(text, yaml.SafeLoader)
    return [] if root is None else [key for key in _keys(root, text, "") if key.name.split(".")[0] not in OF_HYDRA]


def _keys(node: yaml.Node, text: str, prefix: str) -> list[Key]:
    found = []
    for name, value in node.value:
        full = f"{prefix}{name.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            found += _keys(value, text, f"{full}.")
        else:
            written = text[value.start_mark.index : value.end_mark.index]
            found.append(Key(full, " ".join(written.split()), _comment(text.splitlines(), value.end_mark)))
    return found


def _comment(lines: list[str], end: yaml.Mark) -> str:
    """What stands behind a value, with the lines below that begin in the same column."""
    if end.line >= len(lines):
        return ""
    match = re.fullmatch(r"\s*#\s?(.*)", lines[end.line][end.column :])
    if match is None:
        return ""
    column = lines[end.line].index("#", end.column)
    parts = [match[1]]
    for line in lines[end.line + 1 :]:
        if line[:column].strip() or line[column : column + 1] != "#":
            break
        parts.append(line[column + 1 :])
    return " ".join(part.strip() for part in parts)


def heading_of(file: Path) -> list[str]:
    """The lines of comment at the top of a file."""
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def prose(lines: list[str]) -> str:
    """Comment lines as Markdown: indented ones are examples."""
    parts: list[str] = []
    for line in lines:
        if line.startswith("  ") and re.search(r"\S=\S|python ", line):
            if not parts or not parts[-1].startswith("    "):
                parts.append("")
            parts.append(f"    {line.strip()}")
        else:
            if parts and parts[-1].startswith("    "):
                parts.append("")
            shown = re.sub(r"^[a-z_]+(?=: )", r"`\g<0>`", line)
            if shown != line:  # what a key means, in a paragraph of its own
                parts.append("")
            parts.append(cell(shown.strip(), in_table=False))
    return "\n".join(parts)


def _rows(keys: list[Key], command: str | None, prefix: str = "") -> list[tuple[str, ...]]:
    kinds = TABLES[command or "train"]
    rows = []
    for key in keys:
        kind = kinds.get(prefix + key.name)
        advice = "" if kind is None else kind.advice.removeprefix("give ").removeprefix("choose ")
        rows.append((code(prefix + key.name), code(key.value), cell(key.comment), cell(advice)))
    return rows


def defaults_of(command: str) -> dict[str, str | None]:
    """The groups of a command and the choice that each has unless another is typed; None: none."""
    listed = yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"]
    groups = [entry for entry in listed if isinstance(entry, dict)]
    return {
        name: choice for entry in groups for name, choice in entry.items() if not name.startswith(("override", "hydra"))
    }


def usage(command: str) -> str:
    """What ``--help`` says before and after its lists."""
    import_module(f"bdbnet.{command}")  # which brings the resolvers of its text
    with initialize_config_dir(str(CONF), version_base="1.3"):
        template = str(compose(command, return_hydra_config=True).hydra.help.template)
    kept = [
        line
        for line in template.splitlines()
        if "$APP_CONFIG_GROUPS" not in line and "$CONFIG" not in line and not re.match(r"(Groups|Keys): ", line)
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def command_page(command: str) -> str:
    """The page of a command."""
    does = COMMANDS[command]
    parts = [
        f"# bdbnet {command}",
        f"{does[0].upper()}{does[1:]}. `bdbnet {command} ...` is the same as `python -m bdbnet.{command} ...`.",
        "```text",
        usage(command),
        "```",
        "## Keys",
        "Each is set with `KEY=VALUE`. `${...}` is filled in from another key or from the environment.\n",
        table(HEAD, _rows(keys_of(CONF / f"{command}.yaml"), command)),
    ]
    for group, choice in defaults_of(command).items():
        parts.append(f"\n## {group}\n")
        link = f"[choices of {group}](../groups/{group}.md)"
        if choice is None:
            parts.append(f"None unless you name one: `{group}=CHOICE`, {link}.")
        else:
            parts.append(f"Default: `{group}={choice}`; other {link}.\n")
            parts.append(table(HEAD, _rows(keys_of(CONF / group / f"{choice}.yaml"), command, f"{group}.")))
    return "\n".join(parts) + "\n"


def groups() -> list[str]:
    """The groups of settings."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NO_GROUPS)


def group_page(group: str) -> str:
    """The page of a group: its choices with what their files say."""
    users = [command for command in COMMANDS if group in defaults_of(command)]
    links = ", ".join(f"[{command}](../commands/{command}.md)" for command in users)
    parts = [f"# {group}", f"Choose with `{group}=CHOICE`. Used by {links}.\n"]
    for file in sorted((CONF / group).glob("*.yaml")):
        parts.append(f"\n## {group}={file.stem}\n")
        parts.append(prose(heading_of(file)) + "\n")
        prefix = "" if group == "experiment" else f"{group}."
        keys = keys_of(file)
        overrides = [
            f"{name.removeprefix('override /')}={choice}"
            for entry in (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
            if isinstance(entry, dict)
            for name, choice in entry.items()
        ]
        if overrides:
            parts.append("Chooses " + ", ".join(map(code, overrides)) + ".\n")
        if keys:
            rows = _rows(keys, None, prefix)
            kept = [column for column in range(4) if any(row[column] for row in rows)]
            parts.append(table([HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows]))
    return "\n".join(parts) + "\n"
