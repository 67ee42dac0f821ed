"""The runs of a sweep: the settings that vary, and the configurations that differ in more than their seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdbnet.datasets import FACTS
from bdbnet.reporting.run_folder import ReportError
from bdbnet.reporting.settings import key_of, settings_of, shown, sort_key, varying_settings
from bdbnet.reporting.table import Spread, spread
from bdbnet.results import HISTORY, LAST, RESULT, Result, ResultError, metric_names, read_result
from bdbnet.settings import is_whole
from bdbnet.wording import numbers, preprocessing_text

#: Hydra's file in the folder of a sweep, and its folder in that of each job.
MULTIRUN, JOB = "multirun.yaml", ".hydra"

#: Any of these makes a folder that of a run.
_MARKS = (RESULT, LAST, HISTORY, JOB)

#: The split, and that of the training of an evaluated checkpoint.
_SPLIT = ("dataset.options.split", "trained_with.dataset.options.split")


@dataclass(frozen=True)
class Run:
    """A finished run of a sweep; `name` is its folder relative to the sweep's."""

    name: str
    result: Result


@dataclass(frozen=True)
class Configuration:
    """Runs that are equal in all but their seed, and their split where results are published as the mean over splits; `values`
    belong to the settings of the table.
    """

    values: tuple[Any, ...]
    runs: list[Run]

    def metric(self, name: str) -> Spread | None:
        """A metric over the runs, as fractions; None where no run has it. Of several splits it is over the splits' means."""
        found: dict[int | None, list[float]] = {}
        for run in self.runs:
            if name in run.result.metrics:
                found.setdefault(split_of(run.result), []).append(run.result.metrics[name])
        if len(found) > 1:
            return spread([spread(values).mean for values in found.values()])
        return spread(*found.values()) if found else None

    @property
    def splits(self) -> list[int]:
        """The splits that were run, of a data set whose results are published as the mean over splits; else none."""
        return sorted({split for run in self.runs if (split := split_of(run.result)) is not None})

    @property
    def seconds(self) -> float | None:
        """Mean time of the training, or of the evaluation where nothing was trained."""
        measured = [t for run in self.runs if (t := run.result.seconds.get(run.result.kind)) is not None]
        return spread(measured).mean if measured else None

    @property
    def processor_seconds(self) -> float | None:
        """Mean processor time of a run, of those that have recorded it."""
        measured = [t for run in self.runs if (t := run.result.processor_seconds) is not None]
        return spread(measured).mean if measured else None


@dataclass(frozen=True)
class SweepTable:
    """Configurations with comparable numbers: one protocol, one dataset, one version of bdbnet.

    Attributes:
        differs: in what these runs differ from those of the other tables; empty where there is one table.
        settings: dotted keys of the settings that vary.
        configurations: sorted by their values.
        remarks: what a reader should know about the runs.
    """

    differs: str
    settings: list[str]
    configurations: list[Configuration]
    remarks: list[str]

    @property
    def runs(self) -> list[Run]:
        """All runs of the table."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any run was evaluated by, in their order."""
        return metric_names(dict.fromkeys(name for run in self.runs for name in run.result.metrics))


@dataclass(frozen=True)
class Sweep:
    """A folder of runs. `unfinished` and `unreadable` hold a folder or file of each, with the reason."""

    path: Path
    tables: list[SweepTable]
    unfinished: list[tuple[str, str]]
    unreadable: list[tuple[str, str]]


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder holds runs, finished or not, instead of being a run's own."""
    path = Path(folder).expanduser()
    if not path.is_dir() or any((path / name).exists() for name in _MARKS):
        return False
    return (path / MULTIRUN).is_file() or next(_run_folders(path), None) is not None


def read_sweep(folder: str | Path, *, since: float = 0.0) -> Sweep:
    """Read all runs below a folder, at any depth; those that ended or began after `since`, in seconds since 1970.

    Raises:
        ReportError: there is no run in it, or none with a readable result; the message lists them and says why.
    """
    path = Path(folder).expanduser()
    runs, unfinished, unreadable = [], [], []
    for place in _run_folders(path):
        name, file = str(place.relative_to(path)), place / RESULT
        if next(at for at in (file, place / JOB, place) if at.exists()).stat().st_mtime < since:
            continue
        if not file.exists():
            unfinished.append((name, _progress(place / HISTORY)))
            continue
        try:
            runs.append(Run(name, read_result(file)))
        except ResultError as error:
            unreadable.append((str(file.relative_to(path)), str(error).removeprefix(f"{file}: ")))
    if not runs:
        reasons = [f"{name}: {reason}" for name, reason in (*unreadable, *unfinished)]
        if not reasons:
            raise ReportError(f"run={folder}: an empty sweep without runs. Start it with bdbnet.train -m.")
        listed = [*reasons[:5], *([f"and {len(reasons) - 5} more"] if len(reasons) > 5 else [])]
        raise ReportError(
            f"run={folder}: none of the {len(reasons)} runs of this sweep has a result:\n  "
            + "\n  ".join(listed)
            + "\n"
            "Run the sweep's command again with ckpt_path=last to resume each of them."
        )
    return Sweep(path, _tables(runs), unfinished, unreadable)


def _run_folders(path: Path) -> Iterator[Path]:
    """Run folders below a folder, in the order of their names; folders within a run are part of it."""
    for place in sorted(path.iterdir()):
        if not place.is_dir() or place.is_symlink() or place.name.startswith("."):
            continue
        if any((place / name).exists() for name in _MARKS):
            yield place
        else:
            yield from _run_folders(place)


def _progress(history: Path) -> str:
    epochs = len(history.read_bytes().splitlines()) - 1 if history.is_file() else 0
    return f"running, or stopped after epoch {epochs}" if epochs > 0 else "no epoch finished"


def _tables(runs: Sequence[Run]) -> list[SweepTable]:
    groups: dict[str, list[Run]] = {}
    conditions: dict[str, dict[str, Any]] = {}
    for run in runs:
        condition = _conditions(run.result)
        key = key_of(condition)
        conditions[key] = condition
        groups.setdefault(key, []).append(run)
    names = dict.fromkeys(name for condition in conditions.values() for name in condition)
    apart = [name for name in names if len({key_of(c.get(name)) for c in conditions.values()}) > 1]
    data = {(condition["dataset"], condition["data"]) for condition in conditions.values()}
    if "data" in apart and len({dataset for dataset, _ in data}) == len(data):
        apart.remove("data")  # the dataset's name tells them apart
    tables = [_table(", ".join(f"{name} {conditions[key].get(name)}" for name in apart), groups[key]) for key in groups]
    if "data" in apart and "dataset" not in apart:
        _tell_data_apart(tables)
    return tables


def _tell_data_apart(tables: Sequence[SweepTable]) -> None:
    """Add remarks with the settings by which the tables' data differ: a fingerprint alone is not readable."""
    varying = varying_settings([settings_of(run.result.config) for table in tables for run in table.runs])
    rows = iter(varying.rows)
    for table in tables:
        own = [next(rows) for _ in table.runs]
        same = [
            f"{key}={shown(column[0])}"
            for key, column in zip(varying.keys, zip(*own))
            if key.startswith("dataset.") and len(set(map(key_of, column))) == 1
        ]
        if same:
            table.remarks.append(f"Data of this table: {', '.join(same)}.")


def _conditions(result: Result) -> dict[str, Any]:
    """The protocol, data and version that all numbers of one table share."""
    protocol = asdict(result.protocol)
    size = protocol.pop("image_size")
    protocol["preprocessing"] = preprocessing_text(result.protocol) or "usual"
    steps = {"query expansion": protocol.pop("query_expansion"), "re-ranking": protocol.pop("rerank")}
    fingerprint = str(result.data.get("fingerprint", "unknown"))[:12]
    return {
        "kind": result.kind,
        "dataset": protocol.pop("dataset"),
        "data": fingerprint if split_of(result) is None else f"{splits_of(result)} splits",
        "image size": "unknown" if size is None else f"{size[0]} x {size[1]}",
        **{name.replace("_", " "): value for name, value in protocol.items()},
        **{name: numbers(settings) or "none" for name, settings in steps.items()},
        "bdbnet": result.versions.get("bdbnet", "unknown"),
    }


def split_of(result: Result) -> int | None:
    """The split of a data set whose results are published as the mean over splits; None of any other."""
    options = (result.config.get("dataset") or {}).get("options") or {}
    split = options.get("split")
    return split if splits_of(result) and is_whole(split) else None


def splits_of(result: Result) -> int:
    """Over how many splits of the data set results are published as the mean; 0 where it has none."""
    facts = FACTS.get(str((result.config.get("dataset") or {}).get("name")))
    return 0 if facts is None else facts.splits


def _table(differs: str, runs: Sequence[Run]) -> SweepTable:
    settings = [settings_of(run.result.config) for run in runs]
    for run, own in zip(runs, settings):
        if split_of(run.result) is not None:
            for key in _SPLIT:
                own.pop(key, None)
    varying = varying_settings(settings)
    groups: dict[tuple[str, ...], Configuration] = {}
    for run, row in sorted(zip(runs, varying.rows), key=lambda pair: _seed(pair[0].result)):
        groups.setdefault(tuple(map(key_of, row)), Configuration(tuple(row), [])).runs.append(run)
    configurations = list(groups.values())
    configurations.sort(key=lambda configuration: [sort_key(value) for value in configuration.values])
    remarks = [remark for group in configurations for remark in _remarks(group)]
    machines = dict.fromkeys(_machine(run.result.hardware) for run in runs)
    if len(machines) > 1:
        remarks.append(f"Times are of different machines: {'; '.join(machines)}.")
    return SweepTable(differs, varying.keys, configurations, remarks)


def _seed(result: Result) -> int:
    """Of the training, also where a checkpoint was evaluated."""
    trained = result.config.get("trained_with")
    return int(trained.get("seed", result.seed)) if isinstance(trained, Mapping) else result.seed


def seeds_of(configuration: Configuration) -> list[int]:
    """The seeds of its runs, in ascending order."""
    return [_seed(run.result) for run in configuration.runs]


def _remarks(configuration: Configuration) -> list[str]:
    remarks = []
    groups: dict[tuple[int, int | None], list[Run]] = {}
    for run, seed in zip(configuration.runs, seeds_of(configuration)):
        groups.setdefault((seed, split_of(run.result)), []).append(run)
    for (seed, split), runs in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        if len(runs) > 1:
            of = "" if split is None else f" of split {split}"
            names = ", ".join(run.name for run in runs)
            remarks.append(f"Seed {seed}{of} was run {len(runs)} times with equal settings, all count: {names}.")
    if configuration.splits:
        remarks += _remarks_on_splits(configuration)
    for run in configuration.runs:
        epochs, planned = run.result.epochs, (run.result.config.get("trainer") or {}).get("max_epochs")
        if epochs is not None and planned is not None and epochs < planned:
            remarks.append(f"{run.name} stopped after epoch {epochs} of {planned}.")
    return remarks


def _remarks_on_splits(configuration: Configuration) -> Iterator[str]:
    whole = splits_of(configuration.runs[0].result)
    if missing := sorted({*range(1, whole + 1)} - {*configuration.splits}):
        shown = ", ".join(map(str, missing))
        yield f"Not the published protocol, which is the mean over all {whole} splits: without split {shown}."
    for split in configuration.splits:
        runs = [run for run in configuration.runs if split_of(run.result) == split]
        if len({str(run.result.data.get("fingerprint")) for run in runs}) > 1:
            yield f"Split {split} was measured on different data: {', '.join(run.name for run in runs)}."


def _machine(hardware: Mapping[str, Any]) -> str:
    return ", ".join(hardware.get("gpus") or []) or f"{hardware.get('processor')}, {hardware.get('cores')} cores"
