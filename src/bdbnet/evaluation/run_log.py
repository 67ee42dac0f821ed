"""What a run tells its loggers: who it is when it begins, a row per epoch, and its result when it ends.

Any logger of Lightning gets the numbers that the modules log, and the final ones. A `Dashboard` gets each epoch's row of
the history instead, under the names of `section`, and the rest too: name, group, tags, pictures, and the run's exit status.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from bdbnet.command_line import PATH_KEYS
from bdbnet.config import flatten
from bdbnet.evaluation.test_set import TestSet
from bdbnet.overwriting import settings_that_count
from bdbnet.results import Result, is_metric
from bdbnet.run_names import without_hash
from bdbnet.settings import setting_of
from bdbnet.stopping import Stopped

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

#: Columns of ``history.csv`` -> names in a logger. Parts of the loss and waits stay below
#: ``train/``, other columns are metrics: ``test/``.
SECTIONS = {
    "loss": "train/loss/sum",
    "learning_rate": "train/lr",
    "images_per_second": "train/images_per_second",
    "seconds": "train/seconds",
    "replaced_images": "train/replaced_images",
    "epoch": "epoch",
    "images_seen": "images_seen",
}

#: Settings that are places on this machine, or that say where is logged.
_PLACES = frozenset(
    {"data_root", "output_root", "weights_root", "runs_root", "dataset.root", "loading.cache_root", "logger", "loggers"}
)


@dataclass(frozen=True)
class RunFacts:
    """Who a run is, for a dashboard.

    Attributes:
        command: ``train``, ``evaluate`` or ``reproduce``.
        folder: of the run.
        config: its settings, nested and plain.
        data: name, fingerprint and counts of the data set.
        protocol: record of the protocol.
        name: what a table of runs calls it; of a job of a sweep what was swept.
        group: of runs that belong together: the sweep; None for a run of its own.
        tags: data set, loss, experiment.
        anew: it replaces an earlier run in its folder.
    """

    command: str
    folder: Path
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    protocol: Mapping[str, Any]
    name: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    anew: bool = False

    @property
    def synthetic(self) -> bool:
        """Whether the images are rendered, so that no real person is in them."""
        dataset = self.config.get("dataset") or {}
        return dataset.get("name") in ("synthetic_reid", "synthetic_retrieval") and dataset.get("reader") is None

    def flat(self) -> dict[str, Any]:
        """Protocol, fingerprint and counts as keys of one level: ``protocol_task``, ``data_fingerprint``, ``data_query_images``.

        ``settings`` is the same for runs that differ in the seed alone.
        """
        data = {"name": self.data.get("name"), "fingerprint": self.data.get("fingerprint")}
        if trained_on := self.data.get("trained_on"):
            data["trained_on"] = "+".join(each["name"] for each in trained_on)
        counts = self.data.get("counts") or {}
        data |= {f"{role}_{what}": number for role, row in counts.items() for what, number in row.items()}
        flat = [(f"data_{key}", value) for key, value in data.items()]
        counted = settings_that_count(self.settings())
        of_seed = [
            "run_name",
            "sweep_name",
            *(key for key in counted if key == "seed" or setting_of(key).follows == "seed"),
        ]
        same = {key: value for key, value in counted.items() if key not in of_seed}
        flat.append(("settings", hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:10]))
        flat += [(f"protocol_{key.replace('.', '_')}", value) for key, value in flatten(self.protocol)]
        return {key: "x".join(map(str, value)) if isinstance(value, list | tuple) else value for key, value in flat}

    def settings(self) -> dict[str, Any]:
        """The settings without places on this machine: of a file the name is kept."""
        return dict(_without_places(self.config))


@dataclass(frozen=True)
class Place:
    """What a run belongs to, where a command trains for another purpose than itself; see `RunFacts`."""

    command: str
    name: str
    group: str | None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to show.

    Attributes:
        result: its record.
        folder: with its files.
        test: its own test set, as evaluated last.
        images: folder that the paths of the test set's images are relative to; None where it is not known.
        network: that was trained or evaluated; None where only embeddings were.
        image_size: height and width of its input, pixels.
        pairs: distances of pairs as an error analysis holds them, where there was one.
    """

    result: Result
    folder: Path
    test: TestSet
    images: Path | None = None
    network: nn.Module | None = None
    image_size: tuple[int, int] | None = None
    pairs: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Picture:
    """A picture for a logger: what to draw, uint8 (H, W, 3), an image of Pillow or a figure, and the line under it."""

    content: "np.ndarray | Image.Image | Figure"
    caption: str = ""


@runtime_checkable
class Dashboard(Protocol):
    """A logger that shows a run as a whole. Its methods are called on the first rank alone."""

    def begin(self, facts: RunFacts) -> None:
        """The run begins.  Raises ConfigError where it can't be logged: nothing has been trained yet."""

    def log_row(self, row: Mapping[str, float]) -> None:
        """Log an epoch: numbers by their names with sections, among them the axes ``epoch`` (from 1) and ``images_seen``."""

    def log_pictures(self, name: str, pictures: Sequence[Picture], *, of_images: bool) -> None:
        """Show pictures under a name.

        Args:
            name: with its section, such as ``test/activation_maps``.
            pictures: one or more.
            of_images: they show images of the data set, which leave this machine only where the user lets them.
        """

    def log_outcome(self, outcome: Outcome) -> None:
        """The run is finished: its result, pictures, tables and files."""

    def close(self, status: int) -> None:
        """The run ends with an exit status: 0 where it was finished."""


class RunLog:
    """The loggers of one run.

    Args:
        loggers: none is fine.
        facts: of the run.
    """

    def __init__(self, loggers: Sequence[Logger], facts: RunFacts) -> None:
        first = not cast(Any, rank_zero_only).rank
        self.loggers = list(loggers) if first else []  # several ranks are one run
        self.facts = facts
        self.finished = False
        self._begun: list[Logger] = []

    def begin(self) -> None:
        """Tell the loggers who the run is.  Raises ConfigError where one of them can't log it."""
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.begin(self.facts)
            else:
                logger.log_hyperparams(dict(self.facts.config))
            self._begun.append(logger)

    def row(self, row: Mapping[str, Any], images_seen: int) -> None:
        """Log an epoch.

        Args:
            row: of ``history.csv``.
            images_seen: training images so far.
        """
        values = {**{section(name): value for name, value in row.items()}, "images_seen": images_seen}
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.log_row(values)

    def outcome(self, outcome: Outcome) -> None:
        """Log the result."""
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.log_outcome(outcome)
            else:
                logger.log_metrics(numbers(summary(outcome.result)), step=outcome.result.epochs or 0)
        self.finished = True

    def close(self, status: int) -> None:
        """End the run in all loggers that it has begun in."""
        for logger in self._begun:
            if isinstance(logger, Dashboard):
                logger.close(status)
            elif callable(finish := getattr(getattr(logger, "experiment", None), "finish", None)):
                finish()  # an unfinished run of W&B would swallow the next one of a sweep


@contextmanager
def logged(loggers: Sequence[Logger], facts: RunFacts) -> Iterator[RunLog]:
    """A run in its loggers, from its beginning to its end: an error or a signal inside is its exit status there."""
    log = RunLog(loggers, facts)
    try:
        log.begin()
        yield log
    except BaseException as error:
        log.close(0 if log.finished else _status(error))
        raise
    log.close(0)


def facts_of(
    command: str,
    config: DictConfig,
    folder: Path,
    *,
    data: Mapping[str, Any],
    protocol: Mapping[str, Any],
    place: Place | None = None,
    anew: bool = False,
) -> RunFacts:
    """Who a run is, from its settings and from the command line that Hydra runs."""
    settled: Any = OmegaConf.to_container(config, resolve=True)
    dataset, loss = settled.get("dataset") or {}, settled.get("loss") or {}
    hydra = HydraConfig.get() if HydraConfig.instance().cfg is not None else None
    experiment = None if hydra is None or place is not None else hydra.runtime.choices.get("experiment")
    union = [each["name"] for each in data.get("trained_on") or ()]
    tags = [
        str(tag) for tag in (dataset.get("name"), *union, loss.get("name"), experiment) if tag not in (None, "none")
    ]
    if place is not None:
        return RunFacts(place.command, folder, settled, data, protocol, place.name, place.group,
                        (*dict.fromkeys([*tags, *place.tags]),), anew)  # fmt: skip
    sweeps = (hydra is not None and hydra.mode == RunMode.MULTIRUN) or bool(os.environ.get("WANDB_SWEEP_ID"))
    return RunFacts(
        command=command,
        folder=folder,
        config=settled,
        data=data,
        protocol=protocol,
        name=_shown_name(settled),
        group=str(settled["sweep_name"]) if sweeps and settled.get("sweep_name") is not None else None,
        tags=(*dict.fromkeys(tags),),
        anew=anew,
    )


def section(column: str) -> str:
    """The name in a logger of a column of ``history.csv``.

    >>> section("loss/triplet_global"), section("learning_rate"), section("mAP"), section("cuhk03_detect/rank1")
    ('train/loss/triplet_global', 'train/lr', 'test/mAP', 'test/cuhk03_detect/rank1')
    """
    if column.startswith(("loss/", "waited_seconds")):
        return f"train/{column}"
    return SECTIONS.get(column, f"test/{column}")


def beside_rows(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of what Lightning logs that which is in no row of the history: what other callbacks log.

    >>> beside_rows({"epoch": 0, "loss": 2.0, "loss/softmax_global": 1.0, "cuhk03_detect/mAP": 0.5, "lr-Adam": 0.1})
    {'lr-Adam': 0.1}
    """
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("epoch", "loss")
        and not name.startswith("loss/")
        and (
            name.startswith(("final/", "best/", "plain/", "before/"))
            or not (is_metric(tail := name.rpartition("/")[2]) or tail == "valid_queries")
        )
    }


def summary(result: Result) -> dict[str, Any]:
    """A result as flat values: ``final/*`` of the last epoch, ``best/*`` of the best one, which the test set selected.

    Numbers are those of ``result.json``, under the same names behind their section.
    """
    found: dict[str, Any] = {f"final/{name}": value for name, value in result.metrics.items()}
    for name, values in (result.further or {}).items():
        found |= {f"final/{name}/{metric}": value for metric, value in values.items()}
    for part, others in (("plain", result.plain), ("before", result.before)):
        found |= {f"{part}/{name}": value for name, value in (others or {}).items()}
    if result.best is not None:
        found |= {f"best/{name}": value for name, value in result.best["metrics"].items()}
        found |= {"best/epoch": result.best["epoch"], "best/note": result.best.get("note", "")}
    for name in ("epochs", "parameters", "embedding_dim"):
        found |= {name: value} if (value := getattr(result, name)) is not None else {}
    found |= {f"seconds/{phase}": value for phase, value in result.seconds.items()}
    if result.processor_seconds is not None:
        found["processor_seconds"] = result.processor_seconds
    return found | {f"images_per_second/{phase}": value for phase, value in result.images_per_second.items()}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and (isinstance(error, Stopped) or isinstance(error.code, int)):
        return int(cast(Any, error.code)) or 1
    return 1


def _shown_name(config: Mapping[str, Any]) -> str:
    """The run's name without the hash behind it; of a path in it the last part."""
    name = without_hash(str(config.get("run_name") or "run"))
    flat = dict(flatten(config))
    for key in PATH_KEYS:
        value = flat.get(key)
        if isinstance(value, str) and f"{key}=" in name:
            before, _, after = name.partition(f"{key}=")
            name = f"{before}{key}={Path(value).name}" + (f",{after.partition(',')[2]}" if "," in after else "")
    return name


def _without_places(node: Any, key: str = "") -> Any:
    if isinstance(node, Mapping):
        below = {name: f"{key}.{name}" if key else str(name) for name in node}
        return {
            name: _without_places(value, below[name].removeprefix("trained_with."))
            for name, value in node.items()
            if below[name].removeprefix("trained_with.") not in _PLACES
        }
    if isinstance(node, list):
        return [_without_places(value, key) for value in node]
    if isinstance(node, str) and (key in PATH_KEYS or key.endswith(".manifest") or _is_absolute(node)):
        return _shown_name({"run_name": node}) if key == "run_name" else node.replace("\\", "/").rpartition("/")[2]
    return node


def _is_absolute(text: str) -> bool:
    return text.startswith(("/", "~", "\\\\")) or (len(text) > 2 and text[1:3] in (":\\", ":/"))
