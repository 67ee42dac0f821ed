"""The file of a cross-domain table: rows are networks, columns are data sets that every one of them is evaluated on."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.loading.entries import dataset_of
from bdbnet.reproduction.data_keys import data_key
from bdbnet.reproduction.spec import Row, SpecError, Table, paper_numbers, run_of
from bdbnet.results import cutoff, is_metric

_ROW = ("name", "run", "checkpoint", "trained_on", "paper", "note")
_REID, _RETRIEVAL = ("rank{k}", "mAP", "mINP"), ("recall@{k}", "map@r", "r_precision")


def read_cross_table(path: Path, content: Mapping[str, Any]) -> Table:
    """A table of ``kind: cross_domain``.

    Raises:
        SpecError: a column that is no data set, has metrics of another protocol or is there twice; or a wrong row. The message
            names file and column or row.
    """
    if wrong := content.keys() - {"kind", "title", "source", "columns", "rows"}:
        raise SpecError(f"{path}: {', '.join(sorted(wrong))}: not in a table of kind cross_domain")
    columns = _columns(path, content["columns"])
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) and row.get("name") for row in rows):
        raise SpecError(f"{path}: rows: give a list of entries, each with a name")
    shape = {name: metrics for name, (_, metrics) in columns.items()}
    found = tuple(_row(path, row, shape) for row in rows)
    names = [row.name for row in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"{path}: two rows have the name {twice[0]}; rename one")
    entries = {name: entry for name, (entry, _) in columns.items()}
    return Table(path.stem, content["title"], content.get("source", ""), shape, found, cross=entries)


@lru_cache(maxsize=1024)
def column_dataset(entry: str, data_root: str) -> DictConfig:
    """The settings of the group `dataset` of an entry; not to be changed.  Raises ConfigError."""
    return dataset_of(entry, data_root, "dataset")


def _columns(path: Path, columns: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Column -> entry of its data set and its metrics."""
    if not isinstance(columns, Mapping):
        raise SpecError(
            f"{path}: columns: give name: [metric, ...], or name: {{dataset: entry, metrics: [metric, ...]}}"
        )
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    keys: dict[str, str] = {}
    for name, column in columns.items():
        name, where = str(name), f"{path}: column {name}"
        given = column if isinstance(column, Mapping) else {"metrics": column}
        entry, metrics = given.get("dataset", name), given.get("metrics")
        if given.keys() - {"dataset", "metrics"} or not isinstance(entry, str) or not entry.strip():
            raise SpecError(f"{where}: give dataset (as in dataset=[...]) and metrics (a list)")
        if not isinstance(metrics, list) or not metrics:
            raise SpecError(f"{where}: metrics: give a list such as [rank1, mAP] or, of a retrieval set, [recall@1]")
        try:
            dataset = column_dataset(entry, "data")
        except ConfigError as error:
            raise SpecError(f"{where}: {error}") from error
        _check_metrics(where, list(map(str, metrics)), str(dataset.protocol))
        if (other := keys.setdefault(data_key(dataset), name)) != name:
            raise SpecError(f"{where}: the same data set as column {other}; leave one out")
        found[name] = entry, tuple(map(str, metrics))
    return found


def _check_metrics(where: str, metrics: Sequence[str], protocol: str) -> None:
    """Refuse metrics that the protocol does not have; ``auto`` has those of one of the two kinds."""
    if unknown := [name for name in metrics if not is_metric(name)]:
        raise SpecError(f"{where}: metrics: {unknown[0]}: there is no such metric; {_choices()}")
    reid, retrieval = (
        [name for name in metrics if name in family or any(cutoff(each, name) is not None for each in family)]
        for family in (_REID, _RETRIEVAL)
    )
    if protocol == "auto":
        if reid and retrieval:
            raise SpecError(f"{where}: metrics: {reid[0]} and {retrieval[0]} are of two protocols; {_choices()}")
        return
    if wrong := retrieval if protocol.startswith("reid") else reid:
        raise SpecError(f"{where}: metrics: {wrong[0]}: its data set has dataset.protocol={protocol}; {_choices()}")


def _choices() -> str:
    return "give rank1, rank5, ..., mAP or mINP for re-ID, recall@1, ..., map@r or r_precision for retrieval"


def _row(path: Path, row: Mapping[str, Any], columns: Mapping[str, tuple[str, ...]]) -> Row:
    where = f"{path}: row {row['name']}"
    if wrong := row.keys() - {*_ROW}:
        raise SpecError(f"{where}: unknown key {', '.join(map(str, wrong))}; a row has {', '.join(_ROW)}")
    run, checkpoint = run_of(path, row), row.get("checkpoint")
    keys = {override.partition("=")[0].lstrip("+") for override in run or ()}
    if "evaluations" in keys or "union" in keys:
        raise SpecError(f"{where}: run: leave evaluations= and union= out: columns and dataset=[...] say them")
    if checkpoint is None:
        if run is not None and "dataset" not in keys:
            raise SpecError(
                f"{where}: run: name what is trained on: dataset=market1501, or dataset=[market1501,msmt17_v2]"
            )
        if "trained_on" in row:
            raise SpecError(f"{where}: trained_on: goes with checkpoint; run says what is trained on")
    elif not isinstance(checkpoint, str) or not checkpoint.strip():
        raise SpecError(f"{where}: checkpoint: {checkpoint}: give the path of a file of weights")
    elif any(key.partition(".")[0] == "dataset" for key in keys):
        raise SpecError(f"{where}: run: leave dataset= out: a checkpoint is evaluated on the columns")
    trained_on = row.get("trained_on", [])
    if not isinstance(trained_on, list) or not all(isinstance(name, str) and name.strip() for name in trained_on):
        raise SpecError(f"{where}: trained_on: give a list of columns or data sets")
    if len({*trained_on}) != len(trained_on):
        raise SpecError(f"{where}: trained_on: a data set is there twice")
    return Row(
        str(row["name"]), run, paper_numbers(path, row["name"], row.get("paper"), columns), str(row.get("note", "")),
        checkpoint=checkpoint, trained_on=tuple(trained_on),
    )  # fmt: skip
