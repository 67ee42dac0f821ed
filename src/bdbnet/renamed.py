"""Names of earlier versions: files that bear them still load, and who types one is told today's name."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

#: Classes that a configuration builds.
TARGETS = {
    f"bdbnet.models.{name}Trunk": f"bdbnet.models.{name}Backbone" for name in ("ResNet", "OSNet", "Torchvision", "Timm")
}
#: Keys of configurations and command lines.
KEYS = {"evaluation.measure": "evaluation.distance", "measure": "distance", "against": "compare"}

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def with_todays_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration of an earlier version under the names of this one.

    >>> with_todays_names({"backbone": {"_target_": "bdbnet.models.OSNetTrunk"}, "evaluation": {"measure": "cosine"}})
    {'backbone': {'_target_': 'bdbnet.models.OSNetBackbone'}, 'evaluation': {'distance': 'cosine'}}
    """
    return {key: _renamed(value, key) for key, value in config.items()}


def _renamed(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            name = f"{path}.{key}"
            today = KEYS.get(name, name).rpartition(".")[2] if name in KEYS else key
            found[today] = (
                TARGETS.get(item, item) if key == "_target_" and isinstance(item, str) else _renamed(item, name)
            )
        return found
    if isinstance(value, list):
        return [_renamed(item, path) for item in value]
    return value


def first_name(target: Any) -> Any:
    """The name under which a class was first known, for identities that must outlive a renaming."""
    return next((old for old, new in TARGETS.items() if new == target), target)


def with_todays_keys(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with today's keys, and a note for each that was renamed.

    >>> with_todays_keys(["run=a", "against=b"])
    (['run=a', 'compare=b'], ['against= is now called compare=; the old name works for one more version'])
    """
    renamed, notes = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        bare = key.lstrip("+~")
        if equals and bare in KEYS:
            notes.append(f"{bare}= is now called {KEYS[bare]}=; the old name works for one more version")
            argument = f"{key[: len(key) - len(bare)]}{KEYS[bare]}={value}"
        renamed.append(argument)
    return renamed, notes


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
