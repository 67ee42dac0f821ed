"""A command line before Hydra reads it: its form, paths in quotes, plugins, lists of loggers."""

import argparse
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from hydra._internal import utils as hydra_utils
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bdbnet.plugins import PluginError
from bdbnet.schema import TABLES, nearest
from bdbnet.settings import ConfigError


class LenientParser(argparse.ArgumentParser):
    """A parser that takes a help text which is no string: Hydra 1.3 has one, and argparse of Python 3.14 refuses it."""

    def _check_help(self, action: argparse.Action) -> None:
        if action.help is None or isinstance(action.help, str):
            super()._check_help(action)  # type: ignore[misc]


if hasattr(argparse.ArgumentParser, "_check_help"):
    # Hydra alone sees it.
    vars(hydra_utils)["argparse"] = SimpleNamespace(**{**vars(argparse), "ArgumentParser": LenientParser})

#: Key whose value is a regular expression.
_PATTERN = "dataset.options.pattern"

#: Keys whose values are files or folders, which may have any name.
PATH_KEYS = frozenset(
    {
        "archive",
        "backbone.weights",
        "checkpoint",
        "ckpt_path",
        "features",
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
        "embeddings",
    }
    | {"dataset.manifest", "dataset.root", "loading.cache_root"}
    | {"run_name", "sweep_name"}
)


#: Values of those keys that are no paths.
_WORDS = frozenset({"null", "last", "none", "imagenet"})

#: Names that Hydra's grammar takes as they are.
_PLAIN = re.compile(r"[\w./~@:+-]+")

#: Sweeps of Hydra that are written as a call, such as ``choice(a,b)``.
_CALL = re.compile(r"(choice|glob|range|interval|shuffle|sort|tag|str)\(.*\)", re.DOTALL)


def is_first() -> bool:
    """Whether this is the first process of all, before Lightning has numbered them.

    Lightning's own launcher numbers those of a machine alone; `NODE_RANK` then tells the machines apart.
    """
    numbers = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return [*numbers, "0"][0] == "0" and ("RANK" in os.environ or os.environ.get("NODE_RANK", "0") == "0")


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether a command line runs several jobs.

    >>> is_multirun(["-m", "seed=1,2"]), is_multirun(["--multi", "seed=1,2"]), is_multirun(["seed=1"])
    (True, True, False)
    """
    return any(
        argument in ("-m", "hydra.mode=MULTIRUN") or (argument[:3] == "--m" and "--multirun".startswith(argument))
        for argument in arguments
    )


#: Groups of which a run has one choice: two would be mixed key by key.
ONE_CHOICE = frozenset({"backbone", "dataset", "dropping", "loss", "model", "optimizer", "schedule"})


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Put paths into quotes: Hydra's grammar would take a name like ``loss=none,seed=2`` or one with a space apart.

    >>> quote_paths(["run=outputs/train/loss=none,seed=2", "seed=2"])
    ['run="outputs/train/loss=none,seed=2"', 'seed=2']

    A number stays one: some keys are a folder to one command and a number to another. With ``-m`` commas separate the values of a
    sweep, but for those in the name of a file or folder that is there.

    >>> quote_paths(["queries=20", "-m", "checkpoint=a.pth,my b.pth"])
    ['queries=20', '-m', 'checkpoint="a.pth","my b.pth"']

    In a list the names that need it are quoted.

    >>> quote_paths(["checkpoint=[net.pth,train/seed=2/last.ckpt]"])
    ['checkpoint=[net.pth,"train/seed=2/last.ckpt"]']

    A regular expression is quoted whole.

    >>> quote_paths(["dataset.options.pattern=([a-z]+)-cam([0-9]+),.*"])
    ['dataset.options.pattern="([a-z]+)-cam([0-9]+),.*"']
    """
    several = is_multirun(arguments)
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") in PATH_KEYS and value and not (several and _CALL.fullmatch(value)):
            argument = f"{key}=" + ",".join(map(_quoted, _swept_paths(value) if several else [value]))
        elif key.lstrip("+") == _PATTERN and value and value[0] not in "\"'" and not is_no_path(value):
            argument = f'{key}="' + value.replace('"', '\\"') + '"'
        quoted.append(argument)
    return quoted


def _quoted(value: str) -> str:
    if re.fullmatch(r"""\[[^"'\[\]{}]+\]""", value):
        return (
            "["
            + ",".join(part if _PLAIN.fullmatch(part) else _quoted(part) for part in _swept_paths(value[1:-1]))
            + "]"
        )
    if not value or value[0] in "\"'[" or is_no_path(value):
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _swept_paths(value: str) -> list[str]:
    """The values of a sweep over paths, cut at commas: not in quotes and brackets, nor where a path that is there has one.

    >>> _swept_paths("a.csv,[b.csv,c.csv],'d,e.csv'")
    ['a.csv', '[b.csv,c.csv]', "'d,e.csv'"]
    """
    parts = re.findall(r"""((?:"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|\[[^\]]*\]|[^,])+)""", value)
    # Best cut of the first parts: letters in paths that are there, number of values, the values.
    best: list[tuple[int, int, list[str]]] = [(0, 0, [])]
    for end in range(1, len(parts) + 1):
        cuts = []
        for begin in range(end):
            path = ",".join(parts[begin:end])
            letters, count, values = best[begin]
            there = Path(path).expanduser().exists()
            if there or end - begin == 1:
                cuts.append((letters + len(path) * there, count + 1, [*values, path]))
        best.append(max(cuts, key=lambda cut: cut[:2]))
    return best[-1][2]


def with_override(arguments: Sequence[str], override: str) -> list[str]:
    """A command line with one more override, beside those that are there: argparse takes overrides side by side alone.

    >>> with_override(["seed=1,2", "-m"], "run_name=x")
    ['seed=1,2', 'run_name=x', '-m']
    """
    places = [
        number
        for number, argument in enumerate(arguments, 1)
        if argument[:1] == "~" or ("=" in argument and argument[0] != "-")
    ]
    at = places[-1] if places else len(arguments)
    return [*arguments[:at], override, *arguments[at:]]


def options_last(arguments: Sequence[str]) -> list[str]:
    """A command line with its settings side by side, as argparse needs them, and Hydra's options behind them.

    >>> options_last(["dataset=market1501", "-m", "seed=1,2", "--cfg", "job", "~trainer.compile"])
    ['dataset=market1501', 'seed=1,2', '~trainer.compile', '-m', '--cfg', 'job']
    """
    settings: list[str] = []
    options: list[str] = []
    rest = [*arguments]
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        options.append(argument)
        option = _option(argument)
        has_value = not rest[0].startswith("-") and "=" not in rest[0] if option is None and rest else bool(rest)
        if has_value and "=" not in argument and (option is None or option.nargs != 0):
            options.append(rest.pop(0))
    return [*settings, *options]


def _option(argument: str) -> argparse.Action | None:
    """The option of Hydra that an argument is, whole or abbreviated, with its value or without."""
    name = argument.partition("=")[0]
    return next(
        (
            action
            for action in get_args_parser()._actions
            for each in action.option_strings
            if each == name or (name[:2] == "--" and each.startswith(name))
        ),
        None,
    )


def keys_of(arguments: Iterable[str]) -> set[str]:
    """The keys of overrides, and those within their values.

    >>> sorted(keys_of(["+trainer.limit_train_batches=3", "~seed", "logger@loggers.b=csv", "+trainer={max_epochs:3}"]))
    ['logger', 'seed', 'trainer', 'trainer.limit_train_batches', 'trainer.max_epochs']
    """
    keys = set()
    for argument in arguments:
        name, _, value = argument.partition("=")
        key = name.lstrip("+~").partition("@")[0]
        keys.add(key)
        if value.startswith("{"):
            keys |= set(_below(key, OverridesParser.create().parse_override(argument).value()))
    return keys


def _below(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{key}.{name}"
            yield from _below(f"{key}.{name}", inner)


def check_form(arguments: Sequence[str], command: str, conf: Path) -> None:
    """Refuse what is neither an option of Hydra nor KEY=VALUE, with how to write it.

    Args:
        arguments: a command line.
        command: whose it is.
        conf: folder of the groups.

    Raises:
        ConfigError: names the argument.
    """
    groups = sorted(path.name for path in conf.iterdir() if path.is_dir())
    values = iter([*arguments, ""])
    before = ""
    for argument in values:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            option = _option(argument)
            if option is None:
                raise ConfigError(_as_a_setting(argument, next(values), [*TABLES[command], *groups], conf))
            if option.dest in ("cfg", "info") and is_multirun(arguments):
                raise ConfigError(f"{name} shows the settings of one run: leave -m out, and give each key one value")
            if option.nargs != 0 and not equals:
                next(values)
        elif argument and not equals and not argument.startswith("~"):
            if before.endswith(","):
                raise ConfigError(f"{before} {argument}: write it without a space: {before}{argument}")
            raise ConfigError(_as_a_word(argument, [*TABLES[command], *groups], conf))
        elif name.lstrip("+") in groups:
            _check_choice(argument, conf)
        before = argument


def _check_choice(argument: str, conf: Path) -> None:
    """Refuse what names no choice of a group, or several of one that has one. Whether the choice is there, Hydra says."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return
    if override.is_sweep_override():
        return
    value, group = override.value(), override.key_or_group
    names = value if isinstance(value, list) else [value]
    if any(name is None or isinstance(name, dict) for name in names):
        choices = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        raise ConfigError(f"{argument}: give the name of a choice, or leave {group}= out. Choices: {choices}")
    if len(names) > 1 and group in ONE_CHOICE:
        each = ",".join(map(str, names))
        raise ConfigError(f"{argument}: a run has one {group}; for a run with each of them: -m {group}={each}")


def _as_a_setting(option: str, following: str, known: Sequence[str], conf: Path) -> str:
    """What to write in place of ``--key value``."""
    name, _, value = option.lstrip("-").partition("=")
    key = name.replace("-", "_")
    value = value or ("VALUE" if not following or following.startswith("-") or "=" in following else following)
    keys = [key] if key in known else nearest(key, known)
    side = {"height": f"[{value},WIDTH]", "width": f"[HEIGHT,{value}]"}.get(key)  # other programs have a key for each
    written = [f"{each}={side if side and each.endswith('image_size') else value}" for each in keys] or _choices_named(
        value, conf
    )[:1]
    advice = f"write {' or '.join(written)}" if written else "settings are written KEY=VALUE"
    return f"{option}{'' if value in (option, 'VALUE') or '=' in option else f' {value}'}: {advice}"


def _as_a_word(word: str, known: Sequence[str], conf: Path) -> str:
    """What to write in place of a word alone."""
    if word in known:
        return f"{word}: write {word}=VALUE"
    choices = _choices_named(word, conf)
    return f"{word}: {f'write {choices[0]}' if choices else 'settings are written KEY=VALUE'}"


def _choices_named(name: str, conf: Path) -> list[str]:
    """Every ``GROUP=CHOICE`` whose choice has this name."""
    return [f"{path.parent.name}={path.stem}" for path in sorted(conf.glob("*/*.yaml")) if path.stem == name.lower()]


def is_no_path(value: str) -> bool:
    """Whether a value of `PATH_KEYS` is a word or a number of its own."""
    return value.isdigit() or value in _WORDS


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
        match = re.fullmatch(r"\+*logger=\[([\w, \"']*)\]", argument)
        names = list(dict.fromkeys(re.findall(r"\w+", match[1]))) if match else []
        spelled += [f"logger={names[0]}", *(f"+logger@loggers.{n}={n}" for n in names[1:])] if names else [argument]
    return spelled


#: Commands that take a list of data sets -> the key that has all but the first of it.
SEVERAL_DATASETS = {"train": "union", "prepare": "union", "evaluate": "evaluations"}

#: Settings of the group `dataset` that, typed beside a list of data sets, hold for each of them.
_FOR_EACH_DATASET = frozenset(
    {"image_size", "resize", "test_size", "pad_train", "pad_test", "protocol", "drop_ratio", "erasing"}
)


def one_dataset_each(arguments: Sequence[str], key: str) -> list[str]:
    """Spell a list of data sets out for Hydra, which would merge them: the first is ``dataset``, others are entries of ``key``.

    >>> one_dataset_each(["dataset=[market1501,'table dataset.manifest=my.csv']", "seed=2"], "union")
    ['dataset=market1501', 'union=["table dataset.manifest=my.csv"]', 'seed=2']

    Settings of an entry are its own; sizes, padding and protocol that are typed beside the list hold for each entry.

    >>> one_dataset_each(["dataset=[a,b]", "dataset.pad_test=true"], "union")
    ['dataset=a', 'union=["b dataset.pad_test=true"]', 'dataset.pad_test=true']

    Raises:
        ConfigError: a list that can't be read, one of a sweep, or a setting beside it that is of one data set alone.
    """
    typed = [argument for argument in arguments if re.match(r"dataset=.*[\[\]]", argument)]
    if not typed:
        return [*arguments]
    entries = _entries(typed[0])
    if len(typed) > 1:
        raise ConfigError(f"{' '.join(typed)}: write one list of data sets")
    if any(argument.lstrip("+").startswith(f"{key}=") for argument in arguments):
        raise ConfigError(f"{key}= and {typed[0]}: the list says it; leave {key}= out")
    words = [shlex.split(entry) for entry in entries]
    beside = {argument: argument.partition("=")[0].lstrip("+") for argument in arguments}
    shared = {argument: name for argument, name in beside.items() if name.startswith("dataset.")}
    for argument, name in shared.items() if len(entries) > 1 else ():
        if name.removeprefix("dataset.") not in _FOR_EACH_DATASET:
            bare = re.sub(r'="(.*)"$', r"=\1", argument)  # paths have been quoted for Hydra
            raise ConfigError(
                f"{bare}: of which data set? Write it into its entry of the list: 'dataset=[\"{words[0][0]} {bare}\",...]'"
            )
    full = []
    for name, *own in words:
        keys = {each.partition("=")[0].lstrip("+") for each in own}
        full.append([name, *(argument for argument, key_ in shared.items() if key_ not in keys), *own])
    own_keys = {each.partition("=")[0].lstrip("+") for each in words[0][1:]}
    further = [shlex.join(entry).replace("\\", "\\\\").replace('"', '\\"') for entry in full[1:]]
    spelled: list[str] = []
    for argument in arguments:
        if argument == typed[0]:
            spelled += [f"dataset={words[0][0]}", *quote_paths(words[0][1:])]
            spelled += [f"{key}=[" + ",".join(f'"{entry}"' for entry in further) + "]"] if further else []
        elif shared.get(argument) not in own_keys:
            spelled.append(argument)
    return spelled


def _entries(argument: str) -> list[str]:
    """The entries of a typed list of data sets.  Raises ConfigError."""
    try:
        override = OverridesParser.create().parse_override(argument)
        value, sweeps = override.value(), override.is_sweep_override()
    except HydraException:
        value, sweeps = None, False
    if sweeps:
        raise ConfigError(
            f"{argument}: a sweep over lists of data sets; write -m dataset=a union=[],[b] for a alone and for the union"
        )
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        raise ConfigError(
            f"{argument}: give names of data sets, an entry with settings in quotes: "
            "'dataset=[market1501,\"table dataset.manifest=my.csv\"]'"
        )
    for entry in value:
        try:
            shlex.split(entry)
        except ValueError as error:
            raise ConfigError(f"{argument}: {entry}: {error}") from error
    return value


def of_agent(arguments: Sequence[str], environment: Mapping[str, str], *, named: bool = True) -> list[str]:
    """The arguments of a command that an agent of a W&B sweep started, with the values that it drew; others as they are.

    The agent writes them as ``key=value`` or ``--key=value``, or leaves them to a file that ``WANDB_SWEEP_PARAM_PATH`` names. Every
    draw has a run folder of its own, whose name ends with the id that the agent gave the run: the same values may be drawn again.

    Args:
        named: whether the command names its folder by its settings.

    Raises:
        ConfigError: the file can't be read.
    """
    path = environment.get("WANDB_SWEEP_PARAM_PATH")
    if not environment.get("WANDB_SWEEP_ID") or not path:
        return [*arguments]
    drawn = _drawn(Path(path))
    given = [_without_hyphens(argument, drawn) for argument in arguments]
    typed = {argument.partition("=")[0].lstrip("+") for argument in given}
    given += [f"{key}={_typed_value(value)}" for key, value in drawn.items() if key not in typed]
    identity = environment.get("WANDB_RUN_ID")
    if named and identity and "run_name" not in typed:
        shown = ",".join(f"{key}={value}" for key, value in drawn.items())
        given.append(f"run_name={re.sub(r'[^=,.+-]', _safe, shown)[:100]}-{identity}")
    return given


def _safe(match: re.Match[str]) -> str:
    return match[0] if match[0].isalnum() or match[0] == "_" else "_"


def _drawn(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"WANDB_SWEEP_PARAM_PATH={path}: the agent's values can't be read ({error}); start `wandb agent` again"
        ) from error
    entries = content.items() if isinstance(content, dict) else ()
    return {str(key): entry["value"] for key, entry in entries if isinstance(entry, dict) and "value" in entry}


def _without_hyphens(argument: str, drawn: Mapping[str, Any]) -> str:
    bare = argument.removeprefix("--")
    return bare if bare.partition("=")[0] in drawn and "=" in bare else argument


def _typed_value(value: Any) -> str:
    """A drawn value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_typed_value, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
