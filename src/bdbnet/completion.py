"""Completion at the Tab key: commands, groups with their choices, keys, values and files, for bash, zsh and fish."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bdbnet.command_line import PATH_KEYS
from bdbnet.config import config_dir
from bdbnet.schema import TABLES

#: What a shell reads: it asks ``bdbnet completion words LINE`` for the words that fit. A word that is whole ends with a space.
SCRIPTS = {
    "bash": r"""_bdbnet() {
    local line="${COMP_LINE:0:COMP_POINT}"
    mapfile -t COMPREPLY < <(bdbnet completion words "$line" 2>/dev/null)
    # bash has cut the word at = and : and replaces what follows the last of them.
    local word="${line##* }"
    local kept="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}
complete -o nospace -F _bdbnet bdbnet""",
    "zsh": r"""_bdbnet() {
    local -a found
    found=("${(@f)$(bdbnet completion words "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -Q -S '' -- ${found:#* }
    compadd -Q -- ${${(M)found:#* }% }
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _bdbnet bdbnet""",
    "fish": r"""function __bdbnet
    bdbnet completion words (commandline -cp | string collect) 2>/dev/null | string trim --right
end
complete -c bdbnet -f -a '(__bdbnet)'""",
}

#: How a shell is told of it, in its start file.
START = {
    "bash": "source <(bdbnet completion bash)    # in ~/.bashrc",
    "zsh": "source <(bdbnet completion zsh)    # in ~/.zshrc",
    "fish": "bdbnet completion fish | source    # in ~/.config/fish/config.fish",
}


def fitting_words(line: str, commands: Sequence[str]) -> list[str]:
    """The words that the last word of a command line may become; those that are whole end with a space.

    Args:
        line: the command line up to the cursor, with the program's name.
        commands: names of all commands.

    >>> fitting_words("bdbnet tr", ["train", "prepare"])
    ['train ']
    >>> fitting_words("bdbnet train schedule=co", ["train"])
    ['schedule=constant ', 'schedule=cosine ']
    >>> fitting_words("bdbnet train trainer.max", ["train"])
    ['trainer.max_epochs=', 'trainer.max_time=']
    >>> fitting_words("bdbnet train trainer.pre", ["train"]), fitting_words("bdbnet evaluate evaluation.flip=", ["evaluate"])
    (['trainer.precision='], ['evaluation.flip=false ', 'evaluation.flip=true '])
    """
    _, *before, word = re.split(r"\s+", line.lstrip()) if " " in line.strip() or line.endswith(" ") else [line, ""]
    if not before:
        words = [f"{name} " for name in (*commands, "completion", "--help", "--version")]
    elif before[0] == "completion" and len(before) == 1:
        words = [f"{shell} " for shell in SCRIPTS]
    elif before[0] not in TABLES:
        words = []
    elif word.startswith("-"):
        words = ["--help ", "--multirun "]
    elif "=" in word:
        words = list(_values(word, before[0]))
    else:
        words = list(_keys(word, before))
    return sorted({each for each in words if each.startswith(word)})


def _keys(word: str, before: Sequence[str]) -> Iterator[str]:
    """Groups and keys, up to the next dot."""
    command, *typed = before
    conf = config_dir()
    groups = _groups(command, conf)
    chosen = groups | {key: value for key, _, value in (each.partition("=") for each in typed) if key in groups}
    yield from (f"{group}=" for group in groups)
    keys = {key for key in TABLES[command] if "*" not in key and key not in groups}
    keys |= set(_flat(_read(conf / f"{command}.yaml")))
    for group, choice in chosen.items():
        keys |= set(_flat(_choice(conf, group, choice), f"{group}."))
    depth = word.count(".")
    for key in keys:
        parts = key.split(".")
        yield ".".join(parts[: depth + 1]) + ("." if len(parts) > depth + 1 else "=")


def _values(word: str, command: str) -> Iterator[str]:
    """Choices of a group, words of a setting, or files; in a list those of its last item."""
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    start = f"{key}={value[: max(value.rfind('['), value.rfind(',')) + 1]}"
    folder = config_dir() / name
    if folder.is_dir() and name in _groups(command, config_dir()):
        yield from (f"{start}{path.stem}" + ("" if "[" in start else " ") for path in folder.glob("*.yaml"))
    elif name in TABLES[command]:
        yield from (f"{start}{each} " for each in TABLES[command][name].words)
    if name in PATH_KEYS:
        yield from (f"{start}{path}" for path in _files(word[len(start) :]))


def _files(begun: str) -> Iterator[str]:
    """Files, and folders with a slash, whose names begin so."""
    folder, _, name = begun.rpartition("/")
    parent = Path(f"{folder}/" if "/" in begun else ".").expanduser()
    if parent.is_dir():
        for path in parent.iterdir():
            if path.name.startswith(name) and (name or not path.name.startswith(".")):
                shown = f"{folder}/{path.name}" if "/" in begun else path.name
                yield f"{shown}/" if path.is_dir() else f"{shown} "


def _groups(command: str, conf: Path) -> dict[str, str]:
    """The groups of a command, and which choice each has unless one is typed."""
    groups: dict[str, str] = {}
    for entry in _read(conf / f"{command}.yaml").get("defaults", ()):
        if isinstance(entry, Mapping):
            groups |= {str(group): str(choice) for group, choice in entry.items() if " " not in str(group)}
    return groups


def _choice(conf: Path, group: str, choice: str) -> dict[str, Any]:
    """Settings of a choice, with those of the choices that it is made of; those of an experiment are other groups'."""
    if group == "experiment" or not re.fullmatch(r"\w+", choice):
        return {}
    own = _read(conf / group / f"{choice}.yaml")
    below = [str(entry) for entry in own.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
    return {key: value for each in below for key, value in _choice(conf, group, each).items()} | own


def _flat(settings: Mapping[str, Any], start: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if key in ("defaults", "hydra", "_target_"):
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}"


def _read(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
