"""What an `analysis.json` holds: types that a reader checks the file against."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from bdbnet.checked import Range, UnfitError, checked, read_json
from bdbnet.results import ANALYSIS_SCHEMA

Count = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0, 1)]


class Average(TypedDict):
    """A metric's mean over the queries, with its 95 % interval."""

    value: float
    interval: tuple[float, float] | None


class CameraPairs(TypedDict):
    """A row for each query camera, with a number for each gallery camera."""

    query_cameras: list[int]
    gallery_cameras: list[int]
    queries: list[list[Count]]
    rank1: list[list[float | None]]
    mAP: list[list[float | None]]


class Bin(TypedDict):
    """Queries with about the same number of matches."""

    images: str
    queries: Count
    rank1: float
    mAP: float


class Nearest(TypedDict):
    """The image at rank 1."""

    path: str
    label: int
    camera: int
    distance: float


class WorstQuery(TypedDict):
    """A query with a low average precision."""

    path: str
    label: int
    camera: int
    ap: float
    first_match_rank: int
    nearest: Nearest


class Confusion(TypedDict):
    """How many queries of an identity have an image of another one at rank 1."""

    label: int
    taken_for: int
    queries: Count


class Point(TypedDict):
    """A threshold with its rates, or the reason why there is none."""

    reason: str | None
    threshold: float | None
    true_positive_rate: Rate | None
    false_positive_rate: Rate | None


class PointAtRate(Point):
    """The threshold of a false positive rate."""

    rate: float


class HeldOut(Point):
    """A threshold that was selected on one half of the identities and evaluated on the other."""

    criterion: str


class Roc(TypedDict):
    """A curve, point by point."""

    false_positive_rate: list[Rate]
    true_positive_rate: list[Rate]


class Histogram(TypedDict):
    """Pairs by their distance, between edges."""

    edges: list[float]
    positives: list[float]
    negatives: list[float]


class Pairs(TypedDict):
    """Distances of pairs; where no pair shows two identities, the counts alone."""

    positives: Count
    negatives: Count
    equal_error_rate: NotRequired[Rate]
    equal_error_threshold: NotRequired[float]
    at_false_positive_rate: NotRequired[list[PointAtRate]]
    held_out: NotRequired[list[HeldOut]]
    roc: NotRequired[Roc]
    histogram: NotRequired[Histogram]


class Evaluated(TypedDict):
    """The data that were evaluated on."""

    name: str
    fingerprint: str


class Measured(TypedDict):
    """What is read of the protocol."""

    task: str
    single_shot: NotRequired[int | None]


class Compared(TypedDict):
    """What a comparison reads of the record."""

    schema: int
    data: Evaluated
    protocol: Measured
    metrics: Mapping[str, Average]


class Analysis(Compared, total=False):
    """The record."""

    queries: Count
    valid_queries: Count
    camera_pairs: CameraPairs | None
    by_gallery_images: list[Bin]
    worst_queries: list[WorstQuery]
    confused_identities: list[Confusion]
    distractors_at_rank_1: Count
    average_precision: list[Count]
    pairs: Pairs


def read_record(path: Path) -> Mapping[str, Any]:
    """Read an `analysis.json`.

    Raises:
        OSError: it can't be read.
        ValueError: it is no JSON.
        UnfitError: it is of another schema, or a key does not fit; names the key.
    """
    record = read_json(path)
    found = record.get("schema") if isinstance(record, dict) else None
    if found != ANALYSIS_SCHEMA:
        raise UnfitError(f"schema {found}, this version reads schema {ANALYSIS_SCHEMA}")
    analysis: Mapping[str, Any] = checked(record, Analysis)
    _check_lengths(analysis)
    return analysis


def check_complete(record: Mapping[str, Any]) -> None:
    """Raise UnfitError, which names the key, where the record lacks a part that its page shows."""
    for name in (*Analysis.__required_keys__, *Analysis.__optional_keys__):
        if name not in record:
            raise UnfitError(f"{name} is missing")


def _check_lengths(record: Mapping[str, Any]) -> None:
    """Raise UnfitError where lists that belong together differ in length, or values that belong together are not all there."""
    if record.get("average_precision") == []:
        raise UnfitError("average_precision is a list of 0; expected a number for each bin")
    cameras, pairs = record.get("camera_pairs"), record.get("pairs")
    if cameras is not None:
        _check_cameras(cameras)
    if pairs is not None and "equal_error_rate" in pairs:
        _check_pairs(pairs)


def _check_cameras(cameras: Mapping[str, Any]) -> None:
    rows, columns = len(cameras["query_cameras"]), len(cameras["gallery_cameras"])
    for name in ("queries", "rank1", "mAP"):
        if not rows or not columns or [len(row) for row in cameras[name]] != [columns] * rows:
            raise UnfitError(f"camera_pairs.{name} is not a table of {rows} query and {columns} gallery cameras")


def _check_pairs(pairs: Mapping[str, Any]) -> None:
    for name in Pairs.__optional_keys__:
        if name not in pairs:
            raise UnfitError(f"pairs.{name} is missing")
    for name in ("at_false_positive_rate", "held_out"):
        for number, point in enumerate(pairs[name]):
            rates = point["threshold"], point["true_positive_rate"], point["false_positive_rate"]
            if point["reason"] is None and None in rates:
                raise UnfitError(f"pairs.{name}[{number}] has neither a threshold with its rates nor a reason")
    roc, histogram = pairs["roc"], pairs["histogram"]
    if not roc["false_positive_rate"] or len(roc["false_positive_rate"]) != len(roc["true_positive_rate"]):
        raise UnfitError("pairs.roc has not as many false as true positive rates")
    bins = len(histogram["edges"]) - 1
    if bins < 1 or not len(histogram["positives"]) == len(histogram["negatives"]) == bins:
        raise UnfitError(
            f"pairs.histogram has not {max(bins, 1)} numbers of positives and of negatives between its edges"
        )
