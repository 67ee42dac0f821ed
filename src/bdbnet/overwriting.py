"""Results that lie in a folder already: those of other settings are not replaced unless the user says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdbnet.config import ConfigError, flatten
from bdbnet.settings import setting_of

#: Places of the same data, and what reads them: by these a result does not change. Other data have another fingerprint.
_NO_DIFFERENCE = frozenset({"dataset.root", "dataset.options.workers"})
_SHOWN = 6


def settings_that_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a command by dotted key, without those that change no result, as JSON reads them back.

    >>> settings_that_count({"seed": 1, "data_root": "/data", "evaluation": {"ranks": (1, 5)}})
    {'seed': 1, 'evaluation.ranks': [1, 5]}
    """
    named = {key: value for key, value in flatten(config) if setting_of(key).name and key not in _NO_DIFFERENCE}
    plain: dict[str, Any] = json.loads(json.dumps(named, default=str))
    return plain


def refuse_other_settings(
    place: str | Path, then: Mapping[str, Any], now: Mapping[str, Any], *, keep: str = "run_name=<another name>"
) -> None:
    """Refuse to replace results whose settings were others.

    A key that only one side has, as after an update of bdbnet, differs if it is set there.

    Args:
        place: folder or file that holds the results.
        then, now: settings by key.
        keep: what to type to keep both.

    Raises:
        ConfigError: names the place, what differs and what to type.
    """
    changed = [key for key in dict.fromkeys([*then, *now]) if _value(then, key) != _value(now, key)]
    if not changed:
        return
    shown = [f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed[:_SHOWN]]
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise ConfigError(
        f"{place} holds results of other settings: {'; '.join(shown)}{more}. Keep both: {keep}. Replace them: overwrite=true."
    )


def _value(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return None if value in (False, "", [], {}) else value
