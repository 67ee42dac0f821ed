"""Which settings differ between runs, and which of those merely follow another."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdbnet.config import WITHOUT_EFFECT, flatten

#: Seeds of a training, and of that which an evaluated checkpoint came from.
SEEDS = ("seed", "trained_with.seed")

_TRAINED_WITH = "trained_with."

#: What a table of runs need not show.
_IGNORED = WITHOUT_EFFECT | {"callbacks.progress", "dataset.manifest", "dataset.options.manifest"}
_IGNORED_GROUPS = ("logger.",)

#: Where a run does not have a setting that others have.
ABSENT = "-"


class Varying(NamedTuple):
    """Settings that vary, a row of their values for each run, and remarks on others that follow them."""

    keys: list[str]
    rows: list[list[Any]]
    remarks: list[str]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of all settings that may change a number; classes without their module.

    Of an evaluated checkpoint the file's name alone counts where the settings of its training are known.
    """
    found = {}
    for key, value in flatten(config):
        bare = key.removeprefix(_TRAINED_WITH)
        if bare not in _IGNORED and not bare.startswith(_IGNORED_GROUPS):
            found[key] = value.rpartition(".")[2] if key.endswith("._target_") else value
    if "checkpoint" in found and any(key.startswith(_TRAINED_WITH) for key in found):
        found["checkpoint"] = str(found["checkpoint"]).replace("\\", "/").rpartition("/")[2]
    return found


def varying_settings(settings: Sequence[Mapping[str, Any]]) -> Varying:
    """The settings by which runs differ, apart from their seeds.

    Left out are settings that say nothing new: those with the values of another, which a remark names, and those that come
    and go with a choice (a drop layer's ratio, where one run has no drop layer).
    """
    keys = list(dict.fromkeys(key for row in settings for key in row))
    columns = {key: [row.get(key, ABSENT) for row in settings] for key in keys}
    varied = [key for key in keys if key not in SEEDS and len(set(map(key_of, columns[key]))) > 1]
    for key in [key for key in varied if key.endswith("._target_")]:
        name = key.removesuffix("_target_") + "name"
        if name in varied:  # a group's choice is told by both: the class, and which of its kind
            columns[name] = [" ".join(str(v) for v in pair if v != ABSENT) for pair in zip(columns[key], columns[name])]
            varied.remove(key)
    kept: list[str] = []
    remarks = []
    for key in sorted(varied, key=_rank):
        values = columns[key]
        copied = key.endswith(".seed") and any(_copies(values, columns[seed]) for seed in SEEDS if seed in columns)
        if copied or any(_comes_with(key, other, columns) for other in kept):
            continue
        several = len({key_of(value) for value in values if value != ABSENT}) > 1
        if original := next((other for other in kept if several and _copies(values, columns[other])), None):
            remarks.append(f"{key} has the same values as {original}.")
        else:
            kept.append(key)
    kept.sort(key=keys.index)
    return Varying(kept, [[columns[key][run] for key in kept] for run in range(len(settings))], remarks)


def _rank(key: str) -> tuple[bool, bool, int]:
    """Which of two equal settings stands for both: choices first, then what the user sets before what copies it."""
    return not _is_choice(key), key.startswith("schedule."), key.count(".")


def _is_choice(key: str) -> bool:
    return key.endswith(("._target_", ".name"))


def _copies(values: Sequence[Any], originals: Sequence[Any]) -> bool:
    """Whether a setting, where a run has it, is equal to another, or to the same element of another that is a list."""
    pairs = [(value, original) for value, original in zip(values, originals) if value != ABSENT]
    if all(value == original for value, original in pairs):
        return True
    lists = [original for _, original in pairs if isinstance(original, list)]
    shortest = min(map(len, lists)) if lists and len(lists) == len(pairs) else 0
    return any(all(value == original[place] for value, original in pairs) for place in range(shortest))


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
    bare = key.removeprefix(_TRAINED_WITH)
    return key[: len(key) - len(bare)] + bare.partition(".")[0]


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
