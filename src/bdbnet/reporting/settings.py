"""The settings by which runs differ, as columns of a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdbnet.config import flatten
from bdbnet.settings import setting_of

#: Of an evaluated checkpoint, the settings of its training stand below this key.
_TRAINED_WITH = "trained_with."

#: Where a run does not have a setting that others have.
ABSENT = "-"


class Varying(NamedTuple):
    """Settings that vary, and a row of their values for each run."""

    keys: list[str]
    rows: list[list[Any]]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of the settings that a table of runs may show; classes without their module.

    Of an evaluated checkpoint the file's name alone counts where the settings of its training are known.
    """
    flat = dict(flatten(config))
    found = {}
    for key, value in flat.items():
        prefix, bare = _split(key)
        setting = setting_of(bare)
        follows = setting.report == "own" and value == flat.get(f"{prefix}{setting.follows}")
        if setting.report != "no" and not follows:
            found[key] = str(value).rpartition(".")[2] if key.endswith("._target_") else value
            if bare == "trainer.devices" and isinstance(value, list):
                found[key] = len(value)  # how many, not which
    if "checkpoint" in found and any(key.startswith(_TRAINED_WITH) for key in found):
        found["checkpoint"] = str(found["checkpoint"]).replace("\\", "/").rpartition("/")[2]
    return found


def varying_settings(settings: Sequence[Mapping[str, Any]]) -> Varying:
    """The settings by which runs differ. Those that come and go with a choice are left out: a drop layer's ratio, where one
    run has no drop layer.

    >>> none, block = {"dropping._target_": "Identity"}, {"dropping._target_": "DropBlock", "dropping.height_ratio": 0.3}
    >>> varying_settings([none, block])
    Varying(keys=['dropping._target_'], rows=[['Identity'], ['DropBlock']])
    """
    keys = list(dict.fromkeys(key for row in settings for key in row))
    # A setting that runs of earlier versions lack had its first value there.
    absent = {key: ABSENT if (first := setting_of(_split(key)[1]).first) is None else first for key in keys}
    columns = {key: [row.get(key, absent[key]) for row in settings] for key in keys}
    varied = [key for key in keys if len(set(map(key_of, columns[key]))) > 1]
    kept: list[str] = []
    for key in sorted(varied, key=lambda key: (not _is_choice(key), key.count("."))):
        if not any(_comes_with(key, other, columns) for other in kept):
            kept.append(key)
    kept.sort(key=keys.index)
    return Varying(kept, [[columns[key][run] for key in kept] for run in range(len(settings))])


def _split(key: str) -> tuple[str, str]:
    """Whose setting it is, and its key: of a checkpoint's training, or of the run itself."""
    bare = key.removeprefix(_TRAINED_WITH)
    return key[: len(key) - len(bare)], bare


def _is_choice(key: str) -> bool:
    return key.endswith(("._target_", ".name"))


def _comes_with(key: str, choice: str, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a setting is part of a choice: the class behind it, or a setting of one value that not every choice has."""
    if not _is_choice(choice) or _group(key) != _group(choice):
        return False
    values = columns[key]
    if not _is_choice(key) and len({key_of(value) for value in values if value != ABSENT}) > 1:
        return False
    decided: dict[str, str] = {}
    return all(decided.setdefault(key_of(b), key_of(a)) == key_of(a) for a, b in zip(values, columns[choice]))


def _group(key: str) -> str:
    prefix, bare = _split(key)
    return prefix + bare.partition(".")[0]


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether a setting has at least two numbers as values, and nothing else where it exists."""
    present = [value for value in values if value != ABSENT]
    return all(_is_number(value) for value in present) and len(set(present)) > 1


def shown(value: Any) -> str:
    """A value as it would be typed; objects by their class and arguments.

    >>> shown("paper"), shown(0.30), shown(None), shown([{"_target_": "bdbnet.loading.RandomErasing", "p": 0.5}])
    ('paper', '0.3', 'null', '[RandomErasing(p=0.5)]')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        name = str(value.get("_target_", "")).rpartition(".")[2]
        arguments = ", ".join(f"{key}={shown(item)}" for key, item in value.items() if key != "_target_")
        return f"{name}({arguments})" if arguments or not name else name
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value, default=str)


def heads_of(keys: Sequence[str]) -> list[str]:
    """Names of settings as they are typed: a group's choice by the group's name, where that is not ambiguous.

    >>> heads_of(["dropping._target_", "loss.name", "optimizer.lr"])
    ['dropping', 'loss', 'optimizer.lr']
    """
    short = [key.removesuffix("._target_").removesuffix(".name").removeprefix(_TRAINED_WITH) for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys)]


def sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by their size, then texts, then runs without the setting."""
    if value == ABSENT:
        return 2, 0.0, ""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, shown(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def key_of(value: Any) -> str:
    """Equal for equal values, also of kinds that cannot be hashed."""
    return json.dumps(float(value) if _is_number(value) else value, sort_keys=True, default=str)
