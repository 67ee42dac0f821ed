"""What makes two settings of a data set the same data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bdbnet.settings import setting_of

#: Options of readers by which the data do not change.
_NO_DIFFERENCE = frozenset({"check_counts", "workers"})


def data_key(dataset: Any) -> str:
    """Stands for the images and labels that settings of the group `dataset` name, wherever they lie: equal for the same data.

    Name, reader and options count; of files their names; sizes of images and the protocol do not.

    >>> a = {"name": "table", "options": {"manifest": "/a/my.csv"}, "image_size": [64, 64]}
    >>> b = {"name": "table", "options": {"manifest": "/b/my.csv", "train_classes": None}}
    >>> data_key(a) == data_key(b), data_key(a) == data_key({"name": "table", "options": {"manifest": "other.csv"}})
    (True, False)
    """
    plain: Any = OmegaConf.to_container(dataset, resolve=True) if OmegaConf.is_config(dataset) else dataset
    options: Mapping[str, Any] = plain.get("options") or {}
    kept = {
        key: _without_folders(value) if setting_of(f"dataset.options.{key}").cell == "file" else value
        for key, value in options.items()
        if value is not None and key not in _NO_DIFFERENCE
    }
    content = {"name": plain["name"], "reader": plain.get("reader"), "options": kept}
    return json.dumps(content, sort_keys=True, default=str)


def _without_folders(value: Any) -> Any:
    return [Path(path).name for path in value] if isinstance(value, list) else Path(value).name
