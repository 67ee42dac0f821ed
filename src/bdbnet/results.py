"""``result.json``, the record of a run's numbers with their protocol, config and data; and the table of all metrics."""

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from bdbnet.checked import Holds, Plain, Positive, Range, Size, UnfitError, checked, read_json
from bdbnet.files import write_atomically as write_atomically
from bdbnet.renamed import with_todays_names

SCHEMA = 1
ANALYSIS_SCHEMA = 1

# Files of a run folder.
RESULT = "result.json"
HISTORY = "history.csv"
TOP_K = "topk.parquet"
LABEL_NAMES = "label_names.json"
REPORT = "report.html"
ANALYSIS = "analysis.json"
CALIBRATION = "calibration.json"
CALIBRATION_FIGURE = "calibration.svg"
PER_QUERY = "per_query.parquet"
CAMERA_PAIRS = "camera_pairs.csv"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the checkpoint before last.ckpt, while a run is being trained
BEST = "best.ckpt"


class ResultError(ValueError):
    """A result file that cannot be used; the message names it."""


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`: all that tables, pages, plots and comparisons know about a metric.

    Attributes:
        name: key in ``result.json`` and ``history.csv``. A family with a cut-off has ``{k}`` in it: ``rank{k}``.
        title: what a reader sees; of a family with ``{k}``.
        unit: ``%``: the value is a fraction, shown in percent. Else the unit of a plain number, "" where it has none.
        better: whether ``higher`` or ``lower`` values are better; ``neither`` for a count, which no table of metrics shows.
        per_query: column of ``per_query.parquet`` with its value for each query, NaN where a query does not count; None: the
            column of its name. In a family's row without ``{k}`` in it the column holds a rank, see ``within``.
        headline: it is plotted for a sweep, printed while training, and a comparison states a verdict on it. Of a family: for
            k = 1.
        within: the column holds a rank, and the metric is the share of queries where that is at most this: 5 for ``rank5``.
            Set by `metric_of`; None: the column holds the metric's own values.
    """

    name: str
    title: str
    unit: str = "%"
    better: Literal["higher", "lower", "neither"] = "higher"
    per_query: str | None = None
    headline: bool = False
    within: int | None = None

    @property
    def column(self) -> str:
        """Column of ``per_query.parquet`` with its values."""
        return self.name if self.per_query is None else self.per_query

    @property
    def heading(self) -> str:
        """Title with the unit: ``Rank-1, %``."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def scale(self) -> float:
        """Factor from a value to the number that is shown."""
        return 100.0 if self.unit == "%" else 1.0

    def number(self, value: float | None) -> str:
        """A value as a table shows it, without the unit; "-" for None.

        >>> metric_of("mAP").number(0.9121), Metric("mean_rank", "Mean rank", "").number(12.345)
        ('91.2', '12.35')
        """
        return self.printed(None if value is None else self.scale * value)

    def text(self, value: float | None) -> str:
        """A value with its unit; "-" for None.

        >>> metric_of("rank1").text(0.9121)
        '91.2 %'
        """
        return self.number(value) if value is None or not self.unit else f"{self.number(value)} {self.unit}"

    def change(self, difference: float) -> str:
        """A difference of two values with its sign, without the unit.

        >>> metric_of("rank1").change(0.0123), metric_of("rank1").change(-0.0004)
        ('+1.2', '0.0')
        """
        return self.signed(self.scale * difference)

    def printed(self, number: float | None) -> str:
        """A number in the metric's unit: percentages with one decimal, other numbers with four digits or more."""
        if number is None:
            return "-"
        return f"{number:.1f}" if self.unit == "%" else f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"

    def signed(self, number: float) -> str:
        """A difference in the metric's unit with its sign."""
        text = self.printed(number)
        if float(text) == 0:
            return text.removeprefix("-")
        return f"+{text}" if number > 0 else text.replace("-", "\N{MINUS SIGN}")

    @property
    def change_unit(self) -> str:
        """Unit of a difference: of percentages it is points."""
        return "points" if self.unit == "%" else self.unit

    def improves(self, difference: float) -> bool:
        """Whether a value that changed by ``difference`` is better than before."""
        return difference < 0 if self.better == "lower" else difference > 0

    def best(self, values: Iterable[float]) -> float:
        """The best of the values."""
        return min(values) if self.better == "lower" else max(values)


#: Every metric of bdbnet by its name; `add_metric` adds those of plugins.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("rank{k}", "Rank-{k}", per_query="first_match_rank", headline=True),
        Metric("mAP", "mAP", per_query="ap", headline=True),
        Metric("mINP", "mINP", per_query="inp"),
        Metric("recall@{k}", "Recall@{k}", per_query="first_match_rank", headline=True),
        Metric("map@r", "MAP@R", per_query="map_at_r", headline=True),
        Metric("r_precision", "R-precision", per_query="r_precision"),
        Metric("valid_queries", "valid queries", unit="", better="neither"),
    )
}


def add_metric(metric: Metric) -> None:
    """Add a row to `METRICS`, so that every table, page and plot shows the metric by its title.

    Raises:
        ValueError: there is a metric of this name already, or it is a member of a family that there is.
    """
    taken = METRICS.get(metric.name) or _member(metric.name)
    if taken is not None:
        raise ValueError(f"metric {metric.name}: the name is taken by {taken.title}; choose another")
    METRICS[metric.name] = metric


def metric_of(name: str) -> Metric:
    """The row of a metric, of a family the member: ``rank5`` has the title ``Rank-5``.

    A name that is not in the table, such as one of a plugin that is not installed here, gets a plain row: its name as title,
    a fraction, higher is better.

    >>> metric_of("recall@4").title, metric_of("f1").title
    ('Recall@4', 'f1')
    """
    return METRICS.get(name) or _member(name) or Metric(name, name)


def is_metric(name: str) -> bool:
    """Whether a name is in the table, or a member of a family there, and no mere count."""
    found = METRICS.get(name) or _member(name)
    return found is not None and found.better != "neither"


def metric_names(values: Iterable[str]) -> list[str]:
    """The names of a record's metrics in their order, without counts such as ``valid_queries``."""
    return [name for name in values if metric_of(name).better != "neither"]


def headline_metrics(names: Iterable[str]) -> list[str]:
    """The few metrics that stand for all: those of the table's headlines, else the first.

    >>> headline_metrics(["rank1", "rank5", "mAP", "mINP"]), headline_metrics(["f1", "f2"])
    (['rank1', 'mAP'], ['f1'])
    """
    names = metric_names(names)
    return [name for name in names if metric_of(name).headline] or names[:1]


def in_percent(names: Iterable[str]) -> bool:
    """Whether all metrics are in percent: a table says so once and heads its columns by the titles alone."""
    return all(metric_of(name).unit == "%" for name in names)


def metric_heads(names: Sequence[str]) -> list[str]:
    """Heads of a table: titles where all metrics are in percent, else titles with their units.

    >>> metric_heads(["rank1", "mAP"])
    ['Rank-1', 'mAP']
    """
    together = in_percent(names)
    return [metric_of(name).title if together else metric_of(name).heading for name in names]


def cutoff(family: str, name: str) -> int | None:
    """The k of a member of a family, None for any other name.

    >>> cutoff("rank{k}", "rank5"), cutoff("rank{k}", "mAP")
    (5, None)
    """
    match = re.fullmatch(re.escape(family).replace(r"\{k\}", r"([1-9]\d*)"), name)
    return int(match[1]) if match else None


def _member(name: str) -> Metric | None:
    for family, row in METRICS.items():
        if "{k}" in family and (k := cutoff(family, name)) is not None:
            within = None if "{k}" in row.column else k
            title, column = row.title.replace("{k}", str(k)), row.column.replace("{k}", str(k))
            return replace(
                row, name=name, title=title, per_query=column, headline=row.headline and k == 1, within=within
            )
    return None


@dataclass(frozen=True)
class Protocol:
    """How a number was measured. Results under different protocols are never mixed.

    Attributes:
        task: ``reid`` (single query, cameras), ``reid_multi_query``, ``reid_single_shot``, ``reid_reassociation``
            (gallery: the next camera, which is a frame) or ``retrieval`` (Recall@K).
        dataset: key of the dataset evaluated on.
        image_size: height and width of the network's input, pixels; None where the preprocessing is unknown.
        precision: arithmetic of the embedding, ``32-true`` or ``bf16-mixed``.
        normalize: scaling of the embedding before distances: ``none``, ``joint`` or ``per_branch``.
        ap_at: rank at which average precision is cut, None for the full list.
        flip: embeddings of an image and its mirror image are averaged.
        rerank: k1, k2 and lambda of k-reciprocal re-ranking, None where there is none.
        pad_to_square: the shorter side of every image is padded before it is resized.
        decode_margin: how many times as large as needed JPEGs stayed that were decoded to a part of their size; None: all
            were decoded in full.
        query_pooling: multi-query: ``mean`` or ``max`` over the embeddings of a query's images; None for single queries.
        measure: ``euclidean`` or ``cosine``.
        scales: factors by which every image is resized; the embeddings are averaged; empty: the image as it is.
        query_expansion: k and alpha of query expansion, and gallery where the gallery is expanded too; None where there is none.
        single_shot: random galleries with one image per identity, over which Rank-k is averaged; None: the whole gallery.
        preprocessing: what a network of another program needs otherwise than one of bdbnet (mean, standard deviation, order of
            the channels, interpolation); None where it needs nothing else; ``unknown`` where embeddings were read from a file: what
            ``image_size``, ``precision``, ``pad_to_square``, ``decode_margin``, ``flip`` and ``scales`` say means nothing then.
    """

    task: str
    dataset: str
    image_size: Size | None
    precision: str = "32-true"
    normalize: str = "none"
    ap_at: Positive | None = None
    flip: bool = False
    rerank: Mapping[str, float] | None = None
    pad_to_square: bool = False
    decode_margin: float | None = 2.0
    query_pooling: str | None = None
    measure: str = "euclidean"
    scales: tuple[float, ...] = ()
    query_expansion: Mapping[str, float | bool] | None = None
    single_shot: Positive | None = None
    preprocessing: Mapping[str, str | float | bool | list[float] | None] | Literal["unknown"] | None = None

    @property
    def from_features(self) -> bool:
        """Whether embeddings were read from a file, so that nobody knows how they were made."""
        return self.preprocessing == "unknown"

    def record(self) -> dict[str, Any]:
        """The protocol as it stands in files."""
        record = asdict(self)
        if self.preprocessing is None:  # as it is for nearly all
            del record["preprocessing"]
        return record


class DatasetOptions(TypedDict, total=False):
    """What is read of the options of a data set's reader in a file."""

    manifest: str | list[str] | None


class DatasetSettings(TypedDict, total=False):
    """What is read of a data set's settings in a file."""

    name: str
    root: str | None
    options: DatasetOptions | None
    image_size: Size | Positive | None
    test_size: Size | Positive | None
    pad_test: bool | None


class TrainerSettings(TypedDict, total=False):
    """What is read of a trainer's settings in a file."""

    max_epochs: int | None


class EvaluationSettings(TypedDict, total=False):
    """What is read of an evaluation's settings in a file."""

    distance: Literal["euclidean", "cosine"]


class RunSettings(TypedDict, total=False):
    """What is read of the settings of a training or an evaluation that a file says: a result, a checkpoint, a saved folder."""

    dataset: Annotated[DatasetSettings | None, Holds(Plain)]
    trainer: TrainerSettings | None
    evaluation: EvaluationSettings | None
    seed: int
    trained_with: "RunSettings | None"


class Best(TypedDict):
    """The best checkpoint of a training."""

    metrics: Mapping[str, float]
    epoch: int | str


class DataFacts(TypedDict, total=False):
    """What was evaluated on; `counts` has a number for each role and what is counted."""

    name: str
    fingerprint: str
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Result:
    """One run's record.

    Attributes:
        kind: ``train`` or ``evaluate``.
        metrics: values by their names in `METRICS`, fractions in 0..1 where the unit is ``%``; of the checkpoint that
            ``checkpoint`` names.
        protocol: how the metrics were measured.
        checkpoint: ``last``, or the path of the file that was evaluated.
        data: name, fingerprint and counts of the dataset evaluated on; ``train`` adds those of the training rows.
        config: the resolved settings of the command.
        seed: of the run.
        plain: the same metrics without re-ranking and query expansion, where there was either.
        further: metrics on further data sets, by their names, where there are any.
        before: the same metrics of the network before training, where they were asked for.
        best: metrics and epoch of the best checkpoint. It was selected on the test set, which its ``note`` says.
        epochs: that were trained.
        parameters: number of the network's parameters.
        embedding_dim: length of an embedding.
        seconds: wall-clock seconds per phase.
        processor_seconds: user and system seconds of all processes of the run, from reading its data to its last evaluation: of
            every rank and of the workers that load images, over all parts of a run that was resumed. None in older records.
        images_per_second: of each phase.
        versions: of Python and of the packages that decide a number.
        hardware: processor, usable cores and GPUs.
        created: date and time of the record, UTC.
        schema: version of this record's form; others are refused.
    """

    kind: str
    metrics: Mapping[str, float]
    protocol: Protocol
    checkpoint: str
    data: Annotated[Mapping[str, Any], Holds(DataFacts)]
    config: Annotated[Mapping[str, Any], Holds(RunSettings)]
    seed: int
    plain: Mapping[str, float] | None = None
    further: Mapping[str, Mapping[str, float]] | None = None
    before: Mapping[str, float] | None = None
    best: Annotated[Mapping[str, Any], Holds(Best)] | None = None
    epochs: Annotated[int, Range(0)] | None = None
    parameters: Annotated[int, Range(0)] | None = None
    embedding_dim: Positive | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    processor_seconds: Annotated[float, Range(0)] | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    hardware: Mapping[str, Any] = field(default_factory=lambda: hardware())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def write(self, path: str | Path) -> Path:
        """Write the record; a reader sees the old file or the whole new one, never a part."""
        record = asdict(self) | {"protocol": self.protocol.record()}
        if self.further is None:  # most runs evaluate on one data set
            del record["further"]
        if self.processor_seconds is None:
            del record["processor_seconds"]
        text = json.dumps(record, indent=2, allow_nan=False, default=str) + "\n"
        return write_atomically(Path(path), text.encode())


def read_result(path: str | Path) -> Result:
    """Read a ``result.json``.

    Raises:
        ResultError: the file is missing, half-written, or of another schema; the message names it.
    """
    path = Path(path)
    try:
        record = read_json(path)
    except OSError as error:
        raise ResultError(f"{path}: no result there ({error.strerror}); a run writes it when it ends") from error
    except ValueError as error:
        raise ResultError(f"{path}: not a complete result ({error}); run the training or evaluation again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise ResultError(f"{path}: schema {found}, this version reads schema {SCHEMA}; measure again")
    try:
        result = checked(record, Result)
    except UnfitError as error:
        raise ResultError(f"{path}: {error}; measure again") from error
    return replace(result, config=with_todays_names(result.config))


def versions(*further: str) -> dict[str, str]:
    """Versions of Python, of the packages that decide a number, and of `further` ones, as far as they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in (
        "bdbnet",
        "torch",
        "torchvision",
        "pytorch-lightning",
        "torchmetrics",
        "numpy",
        "pillow",
        "simplejpeg",
        *further,
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, usable cores and GPUs of this machine."""
    import torch

    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"processor": processor, "cores": cores, "gpus": gpus}
