"""Checks of the commands that documentation shows: composed and checked as if they were typed, nothing of them runs."""

import functools
import re
import shlex
import tomllib
from copy import deepcopy
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from bdbnet import plugins
from bdbnet.__main__ import COMMANDS, usage
from bdbnet.command_line import (
    SEVERAL_DATASETS,
    check_form,
    keys_of,
    one_dataset_each,
    one_logger_each,
    quote_paths,
    typed_plugins,
)
from bdbnet.config import check_settings, config_dir
from bdbnet.renamed import with_todays_keys
from bdbnet.run_names import NAMED

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class UnknownLineError(ValueError):
    """A line of a block that nobody checks."""


def check_line(line: str, written: set[str] = frozenset()) -> str | None:
    """Check a line of a block of bash.

    Args:
        line: one whole command.
        written: names of files that blocks of its page write.

    Returns:
        The command of bdbnet that it calls; None for another program.

    Raises:
        UnknownLineError: it is of no known form; mark its block ``<!-- not run: REASON -->``.
        Exception: what the command itself says of its settings.
    """
    line = re.sub(r"^source <\((.*)\)$", r"\1", line)
    words = [word for word in shlex.split(line) if word != "..."]  # of a command that leaves out what was said before
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["torchrun"] or words[:1] == ["srun"]:
        at = words.index("-m") if words[0] == "torchrun" else words.index("python") + 1
        words = ["python", *words[at:]]
    match words:
        case ["bdbnet", name, *arguments] if name in COMMANDS:
            check_command(name, arguments)
            return name
        case ["python", "-m", module, *arguments] if module.removeprefix("bdbnet.") in COMMANDS:
            name = module.removeprefix("bdbnet.")
            check_command(name, arguments)
            return name
        case ["bdbnet", "--help" | "--version"]:
            return None
        case ["bdbnet", word, *_] if re.search(rf"\bbdbnet {word}\b", usage()):  # what is no command of settings
            return None
        case ["python", script, *options] if script.endswith(".py"):
            _check_script(script, options, written)
        case [".venv/bin/pip" | "pip", "install", "-c", constraints, *packages]:
            assert (ROOT / constraints).is_file(), f"{line}: no such file"
            _check_packages(packages)
        case [".venv/bin/pip" | "pip", "install", *packages]:
            _check_packages(packages)
        case ["make", *targets]:
            assert {target for target in targets if "=" not in target} <= TARGETS, f"{line}: no such target"
        case _:
            raise UnknownLineError(line)
    return None


def _check_script(script: str, options: list[str], written: set[str]) -> None:
    if script in written:
        return
    source = (ROOT / script).read_text()
    for option in options:
        if option.startswith("--"):
            name = re.escape(option.partition("=")[0])
            assert re.search(rf"{name}\b", source), f"{script} has no option {option}"


def _check_packages(packages: list[str]) -> None:
    for package in packages:
        match = re.fullmatch(r"(?:bdbnet|\.)(?:\[(?P<extras>[\w,]+)\])?|-e|jupyterlab", package)
        assert match, f"pip install {package}: bdbnet alone is installed in the documentation"
        assert {*(match["extras"] or "").split(",")} - {""} <= {*EXTRAS}, f"pip install {package}: no such extra"


_checked: set[tuple[str, ...]] = set()


def check_command(name: str, arguments: list[str]) -> None:
    """Compose a command's settings as it does itself, for a sweep those of its first and last job, and check them.

    Raises:
        Exception: a former key, an unknown one, a choice that is not there, a value out of range, a command that
            refuses the arguments.
    """
    if (name, *arguments) in _checked:
        return
    several = {"-m", "--multirun"} & {*arguments}
    typed = [argument for argument in arguments if argument not in {"-m", "--multirun", "--help", "-h"}]
    if "dataset=NAME" in typed:  # whichever
        typed[typed.index("dataset=NAME")] = "dataset=market1501"
    todays, notes = with_todays_keys(typed)
    assert not notes, notes
    words = [word for word in todays if "=" not in word]
    if name == "reproduce" and words == ["all"]:
        todays.remove("all")
    spelled = quote_paths([*(["-m"] if several else []), *todays])
    if name in SEVERAL_DATASETS:
        spelled = one_dataset_each(spelled, SEVERAL_DATASETS[name])
    if name == "reproduce":
        spelled = [re.sub(r"^\+*logger=", "loggers=", argument) for argument in spelled]
    else:
        spelled = one_logger_each(spelled)
    spelled = [argument for argument in spelled if argument != "-m"]
    check_form(spelled, name, config_dir())
    plugins.load(typed_plugins(spelled))
    parsed = OverridesParser.create().parse_overrides(spelled)
    swept = [override for override in parsed if override.is_sweep_override()]
    assert bool(swept) <= bool(several), f"{name} {' '.join(arguments)}: a sweep needs -m"
    jobs = BasicSweeper.split_arguments(parsed, None)[0] if swept else [spelled]
    for job in {tuple(jobs[0]), tuple(jobs[-1])}:
        named = [] if name not in NAMED or any(each.startswith("run_name=") for each in job) else ["run_name=x"]
        check_settings(composed(name, [*job, *named]), name, keys_of(job))
    _checked.add((name, *arguments))


def composed(name: str, overrides: list[str]) -> DictConfig:
    """What Hydra's `compose` gives; commands that choose the same groups share the most of its work."""
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    parsed = OverridesParser.create().parse_overrides(overrides)
    chosen = [
        each
        for each in parsed
        if each.key_or_group.partition("/")[0] in groups or each.key_or_group.startswith("hydra.")
    ]
    config = deepcopy(_with_choices(name, tuple(str(each.input_line) for each in chosen)))
    ConfigLoaderImpl._apply_overrides_to_config([each for each in parsed if each not in chosen], config)
    return config


@functools.cache
def _with_choices(name: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, [*choices])


def check_sweep(file: Path) -> None:
    """Check a file of a W&B sweep: its command under the first value of each parameter."""
    sweep = yaml.safe_load(file.read_text())
    drawn = [f"{key}={of['values'][0]}" for key, of in sweep["parameters"].items() if "values" in of]
    fixed = [word for word in sweep["command"] if "=" in word]
    check_command(sweep["program"].removeprefix("bdbnet."), [*fixed, *drawn])
