"""Cells of a table: trainings keyed by their resolved settings, and the state of their folders."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.checked import read_json
from bdbnet.command_line import one_dataset_each
from bdbnet.config import ConfigError, check_settings, compose_settings, flatten, quote_paths, shown_path
from bdbnet.evaluation.load import require_source
from bdbnet.files import LOCK as LOCK
from bdbnet.files import is_locked
from bdbnet.loading.entries import dataset_of, without_places
from bdbnet.renamed import TARGETS, first_key, first_name, rename_keys, todays_key, with_todays_keys
from bdbnet.results import LAST, RESULT, Result, ResultError, read_result
from bdbnet.run_names import shortened
from bdbnet.settings import setting_of

CELL, FAILURE = "cell.json", "failure.json"

#: Groups and keys that matter to a dropping branch only.
_OF_THE_DROPPING_BRANCH = ("dropping.", "model.pooling")


class State(StrEnum):
    """State of one training with one seed; the value is what a table shows."""

    DONE = "done"
    FAILED = "failed"
    RUNNING = "running"
    STARTED = "started"
    OTHER = "other protocol or version"
    ABSENT = "data absent"
    OPEN = "not measured"


@dataclass(frozen=True)
class Run:
    """One training with one seed: its state, its record where it is done, and a remark for the reader."""

    folder: Path
    seed: int
    state: State
    result: Result | None = None
    remark: str = ""


@dataclass(frozen=True)
class Cell:
    """One training, whatever its seed.

    Attributes:
        overrides: of ``bdbnet.train``.
        settings: what decides its numbers, as flat keys; two cells with equal settings are one.
        folder: of all its seeds.
        absent: what is missing before it can be run, "" where nothing is.
        code: version of bdbnet whose results count.
    """

    overrides: tuple[str, ...]
    settings: Mapping[str, Any]
    folder: Path
    absent: str
    code: str

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """How the cell is evaluated."""
        return _evaluation(self.settings)

    def inspect(self, seed: int) -> Run:
        """The state of the folder of ``seed`` now."""
        folder = self.folder / f"seed={seed}"
        checked = self.check(folder, seed) if (folder / RESULT).is_file() else None
        if checked is not None and checked.state is State.DONE:
            return checked
        if is_locked(folder):
            return Run(folder, seed, State.RUNNING, remark="another process trains it")
        if checked is not None:
            return checked
        if (folder / FAILURE).is_file():
            return Run(folder, seed, State.FAILED, remark=_reason(folder / FAILURE))
        if (folder / LAST).is_file():
            return Run(folder, seed, State.STARTED, remark="stopped before its end; resumes when run again")
        if self.absent:
            return Run(folder, seed, State.ABSENT, remark=self.absent)
        return Run(folder, seed, State.OPEN)

    def check(self, folder: Path, seed: int) -> Run:
        """Whether the record in ``folder`` counts: same version, protocol and seed, and trained to the end."""
        try:
            result = read_result(folder / RESULT)
        except ResultError as error:
            return Run(folder, seed, State.STARTED, remark=str(error))
        code, epochs = result.versions.get("bdbnet"), self.settings.get("trainer.max_epochs", 0)
        measured = self.measured_under(result)
        if code != self.code:
            return Run(folder, seed, State.OTHER, remark=f"measured with bdbnet {code}, not {self.code}")
        if measured != self.evaluation:
            what = ", ".join(f"{key}={measured.get(key)}" for key in _differing(measured, self.evaluation))
            return Run(folder, seed, State.OTHER, remark=f"measured under another protocol ({what})")
        if result.seed != seed:
            return Run(folder, seed, State.OTHER, remark=f"measured with seed {result.seed}")
        if (result.epochs or 0) < epochs:
            return Run(folder, seed, State.STARTED, remark=f"stopped after epoch {result.epochs} of {epochs}")
        return Run(folder, seed, State.DONE, result)

    def measured_under(self, result: Result) -> dict[str, Any]:
        """The settings of a record's evaluation, to be compared with the cell's."""
        return _evaluation(dict(flatten(result.config)))

    def seeds(self) -> list[int]:
        """Seeds that have a folder, finished or not."""
        numbers = (folder.name.removeprefix("seed=") for folder in self.folder.glob("seed=*"))
        return [int(number) for number in numbers if number.isdecimal()]

    def elsewhere(self) -> list[str]:
        """Results of the same training under another protocol or version: listed, never counted."""
        found = []
        for path in sorted(self.folder.parent.glob(f"*/{CELL}")):
            if path.parent == self.folder or not (results := sorted(path.parent.glob(f"seed=*/{RESULT}"))):
                continue
            record = _read_record(path)
            differing = _differing(record.get("settings", {}), self.settings)
            if record.get("bdbnet") != self.code and not differing:
                found.append(f"{shown_path(path.parent)}: {len(results)} measured with bdbnet {record.get('bdbnet')}")
            elif differing and all(key.startswith("evaluation.") for key in differing):
                what = ", ".join(f"{key}={record['settings'].get(key)}" for key in differing)
                found.append(f"{shown_path(path.parent)}: {len(results)} measured under another protocol ({what})")
        return found

    def record(self) -> bytes:
        """Content of ``cell.json``."""
        content = {"settings": self.settings, "bdbnet": self.code, "overrides": self.overrides}
        return (json.dumps(content, indent=2, sort_keys=True, default=str) + "\n").encode()


class EvaluationCell(Cell):
    """One network on one data set, which is evaluated and not trained; `overrides` are of ``bdbnet.evaluate``."""

    def measured_under(self, result: Result) -> dict[str, Any]:
        measured = super().measured_under(result)
        if "evaluation.distance" not in self.evaluation:  # it is the network's own
            measured.pop("evaluation.distance", None)
        return measured


def build_evaluation(overrides: Sequence[str], root: Path, *, code: str | None = None) -> EvaluationCell:
    """The cell of an evaluation with ``overrides``, which name a checkpoint and a data set, in a folder below ``root``.

    Raises:
        ConfigError: a key is wrong.
        CheckpointError: the checkpoint is no file, and no name of a network.
    """
    config = compose_evaluation(tuple(overrides))
    source = str(config.checkpoint)
    require_source(source)
    settings = settings_of(config) | {"checkpoint": f"{Path(source).name} {digest_of_files(Path(source).expanduser())}"}
    code = code or version("bdbnet")
    folder = root / _data_label(config) / f"{Path(source).stem}-{_key(settings, code)}"
    return EvaluationCell(tuple(overrides), dict(sorted(settings.items())), folder, absent_data(config.dataset), code)


def digest_of_files(path: Path) -> str:
    """SHA-256 of a file, or of the files in a folder; "" where there is neither."""
    if not path.is_dir():
        if not path.is_file():
            return ""
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    found = {each.name: digest_of_files(each) for each in sorted(path.iterdir()) if each.is_file()}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


@lru_cache(maxsize=256)
def _digest(file: Path, *_: int) -> str:
    """Of a file of this size and time of change."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def build_cell(overrides: Sequence[str], root: Path, *, code: str | None = None) -> Cell:
    """The cell of a training with ``overrides``, in a folder below ``root`` that its settings name.

    Raises:
        ConfigError: the overrides set a seed, which is the command's to set, or a key is wrong.
    """
    if any(override.lstrip("+").startswith(("seed=", "run_name=", "ckpt_path=")) for override in overrides):
        raise ConfigError(f"{' '.join(overrides)}: seed, run_name and ckpt_path are set by the command itself")
    config = compose_training(tuple(overrides))
    settings = settings_of(config)
    code = code or version("bdbnet")
    folder = root / _data_label(config) / f"{_label(config)}-{_key(settings, code)}"
    return Cell(tuple(overrides), settings, folder, _absent(config), code)


def _key(settings: Mapping[str, Any], code: str) -> str:
    """Tells a folder apart from those of other settings."""
    # Under their first names, so that a renaming trains nothing again.
    named = {
        first_key(key): first_name(value) if key.endswith("_target_") else value for key, value in settings.items()
    }
    content = json.dumps({"settings": named, "bdbnet": code}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:10]


@lru_cache(maxsize=1024)
def compose_training(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of ``python -m bdbnet.train <overrides>``; not to be changed."""
    arguments = one_dataset_each(quote_paths(with_todays_keys(overrides)[0]), "union")
    config = compose_settings("train", arguments)
    rename_keys(config)
    check_settings(config, "train")
    return config


@lru_cache(maxsize=1024)
def compose_evaluation(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of ``python -m bdbnet.evaluate <overrides>``; not to be changed."""
    config = compose_settings("evaluate", quote_paths(with_todays_keys(overrides)[0]))
    rename_keys(config)
    check_settings(config, "evaluate")
    return config


def settings_of(config: DictConfig) -> dict[str, Any]:
    """What decides the numbers of a training, or of an evaluation, as sorted flat keys.

    A setting that is off (null, false, empty) counts as absent, so that a new switch does not give old results another
    identity. Of files the name counts, not the folder.
    """
    model = config.get("model")  # an evaluation may leave it to the weights
    unused: tuple[str, ...] = () if model is None or _drops(config) else _OF_THE_DROPPING_BRANCH
    if model is not None and model.get("pooling") == "gem":  # of both branches
        unused = tuple(key for key in unused if key != "model.pooling")
    # What makes no cell is left unresolved: the logger's folder and the run's name are only known to a running command.
    groups = {str(key): config[key] for key in config if setting_of(str(key)).cell != "no"}
    plain = {
        key: OmegaConf.to_container(group, resolve=True) if OmegaConf.is_config(group) else group
        for key, group in groups.items()
    }
    flat: dict[str, Any] = {}
    for key, value in flatten(plain):
        setting = setting_of(key)
        if setting.cell == "no" or key.startswith(unused) or _is_off(key, value):
            continue
        if setting.cell == "own" and value == OmegaConf.select(config, str(setting.follows)):
            continue
        if setting.cell == "file":
            value = [Path(path).name for path in value] if isinstance(value, list) else Path(value).name
        flat[key] = [without_places(entry) for entry in value] if key == "union" else value
    return dict(sorted(flat.items()))


def _is_off(key: str, value: Any) -> bool:
    """Null, false and empty, and what a setting means that older results lack; 0 is a number like any other."""
    off = value is None or value is False or (isinstance(value, str | list | dict) and not value)
    return off or value == setting_of(key).first


def _evaluation(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key.startswith("evaluation.") and setting_of(key).cell != "no" and not _is_off(key, value)
    }


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _drops(config: DictConfig) -> bool:
    return "dropping" in (config.model.get("branches") or ())


def _label(config: DictConfig) -> str:
    """The readable part of a folder's name; the key after it makes it unique."""
    branches = config.model.get("branches")
    network = "+".join(branches) if branches else str(config.model._target_).rpartition(".")[2]
    parts = [network, str(config.loss.name)]
    if _drops(config):
        parts.append(str(config.dropping._target_).rpartition(".")[2])
    return "-".join(parts)


def _data_label(config: DictConfig) -> str:
    """The names of the data sets that are trained on, as a folder."""
    further = config.get("union") or ()
    return shortened("+".join([str(config.dataset.name), *(entry.split()[0] for entry in further)]), 100)


def absent_data(dataset: DictConfig) -> str:
    """What a dataset's settings name that is not there; "" where all is, or is rendered when it is needed."""
    sources = dataset.get("manifest")
    for source in sources if OmegaConf.is_list(sources) else [sources] if sources is not None else []:
        if not Path(source).expanduser().exists():
            return f"{source}: no such file"
    renders_itself = str(dataset.name).startswith("synthetic")
    if dataset.root is not None and not renders_itself and not Path(dataset.root).expanduser().is_dir():
        return f"{dataset.root}: no such folder; python -m bdbnet.prepare dataset={dataset.name} --help explains how to get it"
    return ""


def _absent(config: DictConfig) -> str:
    weights = config.backbone.get("weights")
    if weights not in (None, "none", "imagenet") and not Path(weights).expanduser().is_file():
        return f"{weights}: no such file"
    sets = [config.dataset, *(dataset_of(entry, str(config.data_root), "dataset") for entry in config.union)]
    return next((absent for each in sets if (absent := absent_data(each))), "")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        return {}
    settings = record["settings"].items()
    return record | {"settings": {todays_key(key): TARGETS.get(str(value), value) for key, value in settings}}


def _reason(path: Path) -> str:
    try:
        return str(read_json(path)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} can't be read; retry=true runs it again"
