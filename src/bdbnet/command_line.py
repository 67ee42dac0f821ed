"""A command line before Hydra reads it: paths in quotes, plugins, lists of loggers."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from bdbnet.plugins import PluginError

#: Keys whose values are files or folders, which may have any name.
PATH_KEYS = frozenset(
    {
        "archive",
        "backbone.weights",
        "checkpoint",
        "ckpt_path",
        "images",
        "index",
        "index_folder",
        "output",
        "queries",
        "root",
        "data_root",
        "output_root",
        "run",
        "summary",
        "weights_root",
        "compare",
    }
    | {"dataset.manifest", "dataset.root", "loading.cache_root"}
    | {"run_name", "sweep_name"}
)


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Put paths into quotes: Hydra's grammar would take a name like ``loss=none,seed=2`` or one with a space apart.

    >>> quote_paths(["run=outputs/train/loss=none,seed=2", "seed=2"])
    ['run="outputs/train/loss=none,seed=2"', 'seed=2']

    A number stays one: some keys are a folder to one command and a number to another.

    >>> quote_paths(["queries=20"])
    ['queries=20']
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") in PATH_KEYS and value and value[0] not in "\"'[" and not is_no_path(value):
            argument = f'{key}="' + value.replace('"', '\\"') + '"'
        quoted.append(argument)
    return quoted


def is_no_path(value: str) -> bool:
    """Whether a value of `PATH_KEYS` is a word or a number of its own."""
    return value.isdigit() or value in ("null", "last", "none", "imagenet")


def typed_plugins(arguments: Sequence[str]) -> list[str]:
    """The modules in ``plugins=[...]`` of a command line.

    >>> typed_plugins(["seed=2", "plugins=[mypkg,other.part]"])
    ['mypkg', 'other.part']
    """
    typed = [argument for argument in arguments if argument.lstrip("+").startswith("plugins=")]
    values = (override.value() for override in OverridesParser.create().parse_overrides(typed))
    return [name for value in values for name in list_of_plugins(value)]


def list_of_plugins(value: Any) -> list[str]:
    """The modules that the key ``plugins`` names.  Raises PluginError."""
    if value is None:
        return []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PluginError(f"plugins={value}: give a list of modules, such as plugins=[mypkg]")
    return list(names)


def one_logger_each(arguments: Sequence[str]) -> list[str]:
    """Spell a list of loggers out for Hydra, which would merge them: the first is ``logger``, others are ``loggers.<name>``.

    >>> one_logger_each(["logger=[wandb,tensorboard]", "seed=2"])
    ['logger=wandb', '+logger@loggers.tensorboard=tensorboard', 'seed=2']
    """
    spelled: list[str] = []
    for argument in arguments:
        match = re.fullmatch(r"logger=\[([\w, ]*)\]", argument)
        names = list(dict.fromkeys(re.findall(r"\w+", match[1]))) if match else []
        spelled += [f"logger={names[0]}", *(f"+logger@loggers.{n}={n}" for n in names[1:])] if names else [argument]
    return spelled
