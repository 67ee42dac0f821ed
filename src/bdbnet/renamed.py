"""Names of earlier versions: files that bear them still load, and who types one is told today's name."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from omegaconf import DictConfig, OmegaConf, flag_override

#: Classes that a configuration builds.
TARGETS = {
    f"bdbnet.models.{name}Trunk": f"bdbnet.models.{name}Backbone" for name in ("ResNet", "OSNet", "Torchvision", "Timm")
}
#: Keys of configurations and command lines.
KEYS = {"evaluation.measure": "evaluation.distance", "measure": "distance", "against": "compare"}
#: Keys that had to be added with `+` before configurations had them.
ONCE_ADDED = {"trainer.benchmark", "trainer.sync_batchnorm"}
#: Modules of networks, as the keys of weights begin. Exporters write a module's name as Python code, where global is a keyword.
MODULES = {"branches.global.": "branches.global_."}
#: What a class did before it had these arguments: configurations of then do not name them.
FORMER_VALUES: dict[str, dict[str, Any]] = {
    "bdbnet.models.TimmBackbone": {"map": "last_stage", "output_stride": None},
}

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def with_todays_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration of an earlier version under the names of this one.

    >>> with_todays_names({"backbone": {"_target_": "bdbnet.models.OSNetTrunk"}, "evaluation": {"measure": "cosine"}})
    {'backbone': {'_target_': 'bdbnet.models.OSNetBackbone'}, 'evaluation': {'distance': 'cosine'}}

    An argument that came later is given the value that the class had before.

    >>> with_todays_names({"backbone": {"_target_": "bdbnet.models.TimmBackbone", "name": "resnet18"}})["backbone"]["map"]
    'last_stage'
    """
    return {key: _renamed(value, key) for key, value in config.items()}


def _renamed(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            name = f"{path}.{key}"
            today = todays_key(name).rpartition(".")[2]
            found[today] = (
                TARGETS.get(item, item) if key == "_target_" and isinstance(item, str) else _renamed(item, name)
            )
        return found | {key: was for key, was in _former_values(found).items() if key not in found}
    if isinstance(value, list):
        return [_renamed(item, path) for item in value]
    return value


def todays_key(key: str) -> str:
    """A dotted key under today's name, also where a whole configuration stands below another key.

    >>> todays_key("trained_with.evaluation.measure"), todays_key("evaluation.measure"), todays_key("seed")
    ('trained_with.evaluation.distance', 'evaluation.distance', 'seed')
    """
    for former, today in KEYS.items():
        if key == former or ("." in former and key.endswith(f".{former}")):
            return key[: len(key) - len(former)] + today
    return key


def as_first_written(part: Mapping[str, Any]) -> dict[str, Any]:
    """A class's configuration as the first version that knew the class wrote it, for identities that must outlive a change.

    >>> as_first_written({"_target_": "bdbnet.models.TimmBackbone", "name": "resnet18", "map": "last_stage"})
    {'_target_': 'bdbnet.models.TimmTrunk', 'name': 'resnet18'}
    """
    former = _former_values(part)
    kept = {key: value for key, value in part.items() if key not in former or value != former[key]}
    return kept | {"_target_": first_name(part.get("_target_"))}


def _former_values(part: Mapping[str, Any]) -> Mapping[str, Any]:
    target = part.get("_target_")
    return FORMER_VALUES.get(target, {}) if isinstance(target, str) else {}


def first_name(target: Any) -> Any:
    """The name under which a class was first known, for identities that must outlive a renaming."""
    return next((old for old, new in TARGETS.items() if new == target), target)


def first_key(key: str) -> str:
    """The name under which a key of a training's settings was first known.

    >>> first_key("evaluation.distance")
    'evaluation.measure'
    """
    return next((old for old, new in KEYS.items() if new == key), key)


def todays_module(key: str) -> str:
    """A key of a network's weights under today's name.

    >>> todays_module("branches.global.reduction.0.weight"), todays_module("backbone.conv1.weight")
    ('branches.global_.reduction.0.weight', 'backbone.conv1.weight')
    """
    return next((today + key.removeprefix(old) for old, today in MODULES.items() if key.startswith(old)), key)


def first_module(key: str) -> str:
    """The name under which a key of a network's weights was first known, for identities that must outlive a renaming.

    >>> first_module("branches.global_.reduction.0.weight")
    'branches.global.reduction.0.weight'
    """
    return next((old + key.removeprefix(today) for old, today in MODULES.items() if key.startswith(today)), key)


def with_todays_keys(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with today's keys, and a note for each that was renamed.

    >>> with_todays_keys(["run=a", "against=b"])
    (['run=a', 'compare=b'], ['against= is now called compare=; the old name works for one more version'])
    >>> with_todays_keys(["+trainer.benchmark=true", "++trainer.benchmark=true"])
    (['trainer.benchmark=true', '++trainer.benchmark=true'], [])
    """
    renamed, notes = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        bare = key.lstrip("+~")
        if key == f"+{bare}" and bare in ONCE_ADDED:
            key, argument = bare, argument[1:]
        if equals and bare in KEYS:
            notes.append(_note(bare))
            argument = f"{key[: len(key) - len(bare)]}{KEYS[bare]}={value}"
        renamed.append(argument)
    return renamed, notes


def rename_keys(config: DictConfig) -> list[str]:
    """Give the keys of a composed configuration that bear a former name today's, in place; a note for each.

    A file of a user's own may still set them.
    """
    notes = []
    for former, today in KEYS.items():
        parent, _, key = former.rpartition(".")
        group = OmegaConf.select(config, parent) if parent else config
        name = today.rpartition(".")[2]
        if OmegaConf.is_dict(group) and key in group and name in group:
            with flag_override(group, ["struct", "readonly"], False):
                group[name] = group.pop(key)
            notes.append(_note(former))
    return notes


def _note(former: str) -> str:
    return f"{former}= is now called {KEYS[former]}=; the old name works for one more version"


def former_attribute(module: str, name: str, moved: Mapping[str, str]) -> Any:
    """What a package once exported as ``name``, with a DeprecationWarning; for its ``__getattr__``.

    Args:
        module: the package.
        moved: former name -> dotted path of today.

    Raises:
        AttributeError: the package never had it.
    """
    if name not in moved:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    where, _, today = moved[name].rpartition(".")
    warnings.warn(f"{module}.{name} is now {moved[name]}", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(where), today)


def accepts_former(**names: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function take keyword arguments by their former names (`former="today"`), with a DeprecationWarning."""

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def call(*arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Result:
            for former, today in names.items():
                if former in keywords:
                    warnings.warn(f"{former}= is now called {today}=", DeprecationWarning, stacklevel=2)
                    keywords[today] = keywords.pop(former)
            return function(*arguments, **keywords)

        return call

    return decorate
