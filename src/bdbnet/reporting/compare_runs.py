"""Comparison of two runs by a paired test over the queries that both answered."""

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bdbnet.checked import UnfitError, read_json, read_parquet
from bdbnet.evaluation.per_query import SURE, metric_difference, query_values, read_queries
from bdbnet.evaluation.significance import PairedDifference
from bdbnet.overwriting import refuse_other_settings
from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run
from bdbnet.reporting.table import MINUS, Grid, as_text
from bdbnet.results import (
    PER_QUERY,
    Metric,
    Result,
    headline_metrics,
    in_percent,
    metric_heads,
    metric_of,
    write_atomically,
)
from bdbnet.run_names import shortened

_LISTED = 10
_LONGEST = 220  # bytes of the other run's name in the file's, which gets more around it


class _Analysed(NamedTuple):
    run: RunFolder
    record: Mapping[str, Any]
    queries: pd.DataFrame


def compare_runs(folder: str | Path, other: str | Path, *, seed: int = 0, overwrite: bool = True) -> tuple[str, Path]:
    """Compare two runs on the same queries and write `compare-<name of the other>.json` into the first.

    Args:
        folder, other: of `bdbnet.train`, or of `bdbnet.evaluate` with `analysis=true`.
        seed: of the bootstrap and of the test.
        overwrite: replace a comparison that was made with another seed.

    Returns:
        Tables and a verdict for the terminal, and the file.

    Raises:
        ReportError: a folder without a row per query, another dataset, or other queries.
        ConfigError: a comparison with another seed is there, and may not be replaced.
    """
    a, b = _read(folder, "run"), _read(other, "compare")
    path = _record_path(a.run.path, b.run.path)
    if not overwrite and (earlier := _record(path).get("seed")) is not None:
        refuse_other_settings(path, {"seed": earlier}, {"seed": seed}, keep="move that file away")
    _check_comparable(a, b)
    _check_common_metrics(a, b)
    names = a.run.path.resolve().name, b.run.path.resolve().name
    if names[0] == names[1]:
        names = str(folder), str(other)
    differences = _differences(a, b, seed)
    means = {name: (_mean(a, b, name), _mean(b, a, name)) for name in differences}
    changed = changed_settings(a.record["protocol"], b.record["protocol"])
    apart = _most_different(a.queries, b.queries)
    record = {
        "a": str(a.run.path),
        "b": str(b.run.path),
        "seed": seed,
        "fingerprint": a.record["data"]["fingerprint"],
        "protocol_differs_in": changed,
        "metrics": {
            name: {
                "a": means[name][0], "b": means[name][1], "difference": of.difference, "interval": list(of.interval),
                "p_value": of.p_value, "queries": of.queries, "identities": of.identities,
            }
            for name, of in differences.items()
        },
        "queries_that_differ_most": apart,
    }  # fmt: skip
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    verdicts = [verdict(metric_of(name), differences[name], *names) for name in headline_metrics(differences)]
    return "\n\n".join([_table(differences, means, names, changed), "\n".join(verdicts), _list(apart)]), path


def _record_path(folder: Path, other: Path) -> Path:
    """File of the comparison; with a suffix where that of another run of the same name exists."""
    path = folder / f"compare-{shortened(other.resolve().name, _LONGEST)}.json"
    mine = _record(path).get("b") in (None, str(other))
    return path if mine else path.with_stem(f"{path.stem}-{sha256(str(other.resolve()).encode()).hexdigest()[:6]}")


def _record(path: Path) -> dict[str, Any]:
    """An earlier comparison; empty where there is none that is worth keeping."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def verdict(metric: Metric, found: PairedDifference, a: str, b: str) -> str:
    """What a comparison shows, in a sentence.

    >>> from bdbnet.evaluation.significance import Interval
    >>> verdict(metric_of("mAP"), PairedDifference(-0.012, Interval(-0.02, -0.004), 0.001, 90, 30), "bdb", "mgn")
    'mgn is better in mAP by 1.2 points (0.4 to 2.0), p = 0.001'
    """
    unit = f" {metric.change_unit}" if metric.change_unit else ""
    if found.p_value >= SURE or found.difference == 0:
        ends = " to ".join(metric.change(end) for end in found.interval)
        difference = f"{metric.change(found.difference)}{unit} ({ends})"
        return f"no difference in {metric.title} can be shown: {difference}, p = {found.p_value:.2g}"
    better = a if metric.improves(found.difference) else b
    low, high = found.interval if found.difference > 0 else (-found.interval.high, -found.interval.low)
    points = " to ".join(metric.number(end).replace("-", MINUS) for end in (low, high))
    size = f"{metric.number(abs(found.difference))}{unit} ({points})"
    return f"{better} is better in {metric.title} by {size}, p = {found.p_value:.2g}"


def _read(folder: str | Path, key: str) -> _Analysed:
    run = read_run(folder, key=key)
    path = run.path / PER_QUERY
    if not path.is_file() or (run.analysis is None and run.result.kind != "train"):
        checkpoint = run.path / "last.ckpt" if run.result.kind == "train" else run.result.checkpoint
        raise ReportError(
            f"{key}={folder}: no {PER_QUERY} there. Run python -m bdbnet.evaluate checkpoint={checkpoint} "
            f"dataset={run.result.protocol.dataset} analysis=true and give the folder that it names"
        )
    if run.analysis is None and run.result.protocol.single_shot is not None:
        raise ReportError(
            f"{key}={folder}: its Rank-k is a mean over galleries drawn at random, and {PER_QUERY} has ranks in the whole gallery: "
            "compare evaluations with analysis=true"
        )
    try:
        record = run.analysis or _record_of_training(run.result, read_parquet(path, {}).columns)
        queries = read_queries(path, record["metrics"], details=True)
    except (UnfitError, OSError) as error:
        raise ReportError(f"{path}: {error}. Analyse again") from error
    return _Analysed(run, record, queries)


def _record_of_training(result: Result, columns: Collection[str]) -> dict[str, Any]:
    """What a comparison asks of an analysis, for a training, which writes a row per query and analyses nothing."""
    # A plugin's metric may have one value for all queries, and no column.
    metrics = {
        name: value for name, value in result.metrics.items()
        if metric_of(name).better != "neither" and metric_of(name).column in columns
    }  # fmt: skip
    return {"data": result.data, "protocol": result.protocol.record(), "metrics": metrics}


def _check_comparable(a: _Analysed, b: _Analysed) -> None:
    if a.run.path.resolve() == b.run.path.resolve():
        raise ReportError(f"compare={b.run.path}: the same folder as run=; give another one")
    here, there = a.record["data"], b.record["data"]
    if here["fingerprint"] != there["fingerprint"]:
        raise ReportError(
            f"run={a.run.path} was evaluated on {here['name']}, compare={b.run.path} on {there['name']} with other content: "
            "only results on the same images can be compared"
        )
    columns = ["query_index", "path", "label"]
    if not a.queries[columns].equals(b.queries[columns]):
        raise ReportError(
            f"run={a.run.path} has {len(a.queries):,} queries, compare={b.run.path} {len(b.queries):,}, and they are not the "
            f"same ones (protocols {a.record['protocol']['task']} and {b.record['protocol']['task']})"
        )


def _check_common_metrics(a: _Analysed, b: _Analysed) -> None:
    if not a.record["metrics"].keys() & b.record["metrics"].keys():
        raise ReportError(
            f"run={a.run.path} and compare={b.run.path} have no metric in common ({', '.join(a.record['metrics'])}; "
            f"{', '.join(b.record['metrics'])}): evaluate both by the same dataset.protocol"
        )


def _differences(a: _Analysed, b: _Analysed, seed: int) -> dict[str, PairedDifference]:
    names = [name for name in a.record["metrics"] if name in b.record["metrics"]]
    identities = a.queries["label"].to_numpy()
    try:
        return {
            name: metric_difference(
                name, query_values(a.queries, name), query_values(b.queries, name), identities, seed=seed
            )
            for name in names
        }
    except ValueError as error:
        raise ReportError(f"run={a.run.path} compare={b.run.path}: {error}") from error


def _mean(of: _Analysed, other: _Analysed, name: str) -> float:
    """Over the queries that count in both."""
    values = query_values(of.queries, name)
    return float(values[~np.isnan(values) & ~np.isnan(query_values(other.queries, name))].mean())


def changed_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key -> both values of what differs; None where one lacks it."""
    return {key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _most_different(a: pd.DataFrame, b: pd.DataFrame) -> list[dict[str, Any]]:
    change = (a["ap"] - b["ap"]).abs()
    order = change[change > 0].sort_values(ascending=False, kind="stable").index[:_LISTED]
    return [
        {
            "path": str(a["path"][row]), "label": int(a["label"][row]), "ap": [float(a["ap"][row]), float(b["ap"][row])],
            "first_match_rank": [int(a["first_match_rank"][row]), int(b["first_match_rank"][row])],
        }
        for row in order
    ]  # fmt: skip


def _table(
    differences: Mapping[str, PairedDifference],
    means: Mapping[str, tuple[float, float]],
    names: tuple[str, str],
    changed: Mapping[str, list[Any]],
) -> str:
    rows = [
        [head, *(metric_of(name).number(mean) for mean in means[name]), metric_of(name).change(of.difference),
         " to ".join(metric_of(name).change(end) for end in of.interval), f"{of.p_value:.2g}"]
        for head, (name, of) in zip(metric_heads(list(differences)), differences.items())
    ]  # fmt: skip
    some = next(iter(differences.values()))
    notes = [
        f"{some.queries:,} queries of {some.identities:,} identities; sign-flip test and bootstrap over identities."
    ]
    if changed:
        settings = ", ".join(f"{key} {one} and {other}" for key, (one, other) in changed.items())
        notes.append(f"The protocols differ: {settings}.")
    percent = in_percent(differences)
    difference = "A \N{MINUS SIGN} B" + ", points" * percent
    heads = ["%" * percent, "A", "B", difference, "95 % interval", "p"]
    return as_text(Grid(f"A: {names[0]}; B: {names[1]}", heads, rows, notes))


def _list(queries: list[dict[str, Any]]) -> str:
    rows = [
        [
            of["path"],
            str(of["label"]),
            *(metric_of("mAP").number(ap) for ap in of["ap"]),
            *(f"{r:,}" for r in of["first_match_rank"]),
        ]
        for of in queries
    ]
    heads = ["query", "identity", "AP of A, %", "AP of B, %", "first match of A", "of B"]
    return (
        as_text(Grid("Queries that differ most", heads, rows, [])) if rows else "Every query has the same AP in both."
    )
