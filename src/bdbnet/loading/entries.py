"""Entries of a list of data sets: the name of a choice in the group `dataset`, and after it settings of that group."""

import shlex
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, check_settings, compose_settings, quote_paths
from bdbnet.settings import setting_of


def dataset_of(entry: str, data_root: str, key: str) -> DictConfig:
    """The settings of the group `dataset` that an entry means, such as ``table dataset.manifest=mine.csv``.

    Args:
        entry: as typed.
        data_root: folder of all data sets.
        key: whose entry it is, for messages.

    Raises:
        ConfigError: the entry names no data set, or a setting that it does not have.
    """
    words = dataset_words(entry, key)
    overrides = quote_paths([f"dataset={words[0]}", f"data_root={data_root}", *words[1:]])
    try:
        composed = compose_settings("evaluate", overrides)
    except HydraException as error:
        raise ConfigError(f"{key}: {entry}: {str(error).partition(chr(10))[0]}") from error
    check_settings(composed, "evaluate")
    dataset: DictConfig = composed.dataset
    OmegaConf.resolve(dataset)  # its folder depends on data_root, which it leaves behind
    return dataset


def dataset_words(entry: str, key: str) -> list[str]:
    """The parts of an entry: the choice of the group `dataset`, and settings.  Raises ConfigError that names the key."""
    try:
        return shlex.split(entry)
    except ValueError as error:
        raise ConfigError(f"{key}: {entry}: {error}") from error


def without_places(entry: str) -> str:
    """An entry without the folder of its data set; of files the names: what decides a number.

    >>> without_places("table dataset.root=/a dataset.manifest=/a/my.csv")
    'table dataset.manifest=my.csv'
    """
    name, *words = shlex.split(entry)
    kept = []
    for word in sorted(words):
        key, _, value = word.partition("=")
        setting = setting_of(key.lstrip("+"))
        if key.lstrip("+") != "dataset.root" and setting.cell != "no":
            kept.append(f"{key}={Path(value).name if setting.cell == 'file' else value}")
    return " ".join([name, *kept])
