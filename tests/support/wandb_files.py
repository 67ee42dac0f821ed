"""A run of W&B read back from the file that it wrote: a log of records in the format of LevelDB's."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7
_WHOLE, _LAST = 1, 4  # kinds of pieces that end a record


def records(path: Path) -> Iterator[Any]:
    """Every whole record of a ``.wandb`` file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, record = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        if place + _HEADER + length > len(data):
            return
        record += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (_WHOLE, _LAST):
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            record = b""
            yield found


@dataclass
class WrittenRun:
    """What a process wrote of a run."""

    id: str = ""
    project: str = ""
    entity: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    resume: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None
    folder: Path = Path()

    @property
    def numbers(self) -> dict[str, Any]:
        """The summary without what W&B adds."""
        return {key: value for key, value in self.summary.items() if not key.startswith("_")}


def read(path: Path, patience: float = 20.0) -> WrittenRun:
    """One ``.wandb`` file, when W&B's own process has written all of it: the exit status comes last."""
    until = time.monotonic() + patience
    while (run := _read(path)).exit_code is None and time.monotonic() < until:
        time.sleep(0.05)
    return run


def _read(path: Path) -> WrittenRun:
    run = WrittenRun(folder=path.parent)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        of: Any = getattr(record, kind) if kind else None
        if kind == "run":
            run.id, run.project, run.entity, run.name = of.run_id, of.project, of.entity, of.display_name
            run.group, run.job_type, run.notes, run.tags = of.run_group, of.job_type, of.notes, [*of.tags]
            run.resume = of.resume
            _update(run.config, of.config.update)
        elif kind == "config":
            _update(run.config, of.update)
        elif kind == "summary":
            _update(run.summary, of.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, of.item)
            run.history.append(row)
        elif kind == "metric":
            run.axes[of.name or of.glob_name] = of.step_metric
        elif kind == "artifact":
            run.artifacts[f"{of.type}:{of.name}"] = [content.path for content in of.manifest.contents]
        elif kind == "exit":
            run.exit_code = of.exit_code
    return run


def runs(folder: Path) -> list[WrittenRun]:
    """Every run that was written below a folder, in the order of their beginnings."""
    return [read(path) for path in sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name)]


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        keys = [item.key] if item.key else [*item.nested_key]
        place = target
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                break
        else:
            place[keys[-1]] = json.loads(item.value_json)
