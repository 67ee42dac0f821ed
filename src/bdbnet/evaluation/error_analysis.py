"""Error analysis: every query's outcome, breakdowns with confidence intervals, and distances of pairs.

Two files hold tables, ``per_query.parquet`` and (with cameras) ``camera_pairs.csv``; ``analysis.json`` holds everything that is
printed or drawn.
"""

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdbnet.evaluation.significance import bootstrap_interval
from bdbnet.evaluation.test_set import TestSet
from bdbnet.evaluation.verification import (
    OperatingPoint,
    PairCounts,
    PairDistances,
    at_false_positive_rate,
    coarse_histogram,
    equal_error,
    pair_distances,
    roc_points,
)
from bdbnet.results import ANALYSIS, ANALYSIS_SCHEMA, CAMERA_PAIRS, PER_QUERY, Result, metric_of, write_atomically
from bdbnet.retrieval import CameraPairs, Evaluated, QueryFacts, distance_blocks

_GALLERY_IMAGES = (1, 2, 4, 8, 16, 32)  # lower ends of the bins of a query's number of matches
_FALSE_POSITIVE_RATES = (1e-3, 1e-4)
_LISTED = 10


def analyse(test: TestSet, folder: Path, result: Result) -> Path:
    """Analyse what was evaluated last, with facts of every query, and write the files into ``folder``.

    Columns of ``per_query.parquet``: ``query_index`` (row of the test set), ``path``, ``label``, ``camera``, ``matches`` (in
    the gallery), ``first_match_rank``, ``last_match_rank``, ``ap``, ``inp``, ``map_at_r``, ``r_precision``; ``match_`` (nearest
    match) and ``negative_`` (hardest negative: nearest wrong image) each with ``index``, ``path``, ``label``, ``camera``,
    ``distance``; ``margin`` (their difference, positive where rank 1 is right). Without a match ranks are -1 and values are
    missing.

    A metric of a plugin that has a value per query has a column of its name.

    Ranks are those of the metrics, with query expansion and re-ranking where the metrics have them. Distances are those by
    which was ranked; the statistics of pairs are always of the embeddings' own. All images of the gallery are searched, also
    where the metrics draw one per identity.

    Args:
        test: evaluated with ``facts``.
        folder: for the files.
        result: record of the evaluation: what was evaluated, how, and the seed of the draws.

    Returns:
        ``analysis.json``.
    """
    evaluated, values = test.evaluated, test.per_query
    assert evaluated is not None
    assert evaluated.facts is not None
    facts, search, matches = evaluated.facts, evaluated.search, evaluated.matches
    plain = distance_blocks(
        evaluated.query, evaluated.gallery, distance=search.distance, absolute=True,
        chunk_memory_mb=search.chunk_memory_mb,
    )  # fmt: skip
    pairs = pair_distances(plain, matches, seed=result.seed)
    cameras = evaluated.camera_pairs
    queries = query_table(test.table, evaluated, facts, test.plugin_values)
    record = {
        "schema": ANALYSIS_SCHEMA,
        "data": {name: result.data[name] for name in ("name", "fingerprint")},
        "protocol": result.protocol.record(),
        "checkpoint": result.checkpoint,
        "seed": result.seed,
        "distance": "re-ranked" if search.rerank else search.distance,
        "queries": len(queries),
        "valid_queries": int((facts.matches > 0).sum()),
        "metrics": _intervals(values, matches.query_labels, result.seed),
        "camera_pairs": None if cameras is None else _camera_record(cameras),
        "by_gallery_images": _by_gallery_images(facts),
        "worst_queries": worst_queries(queries),
        "confused_identities": _confused(queries),
        "distractors_at_rank_1": int(
            ((queries["first_match_rank"] > 1) & ~queries["negative_label"].isin(queries["label"])).sum()
        ),
        "average_precision": np.histogram(facts.ap[facts.matches > 0], 20, (0, 1))[0].tolist(),
        "pairs": pair_record(pairs),
    }
    write_queries(queries, folder)
    if cameras is not None:
        write_atomically(folder / CAMERA_PAIRS, _camera_table(cameras).to_csv(index=False).encode())
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    return write_atomically(folder / ANALYSIS, text.encode())


def write_queries(queries: pd.DataFrame, folder: Path) -> Path:
    """Write ``per_query.parquet``."""
    buffer = io.BytesIO()
    queries.to_parquet(buffer, index=False)
    return write_atomically(folder / PER_QUERY, buffer.getvalue())


def clear_analysis(folder: Path) -> list[str]:
    """Remove the files of an earlier analysis, which would not be one of what is evaluated now; their names."""
    found = [name for name in (ANALYSIS, PER_QUERY, CAMERA_PAIRS) if (folder / name).is_file()]
    for name in found:
        (folder / name).unlink()
    return found


def query_table(
    table: pd.DataFrame, evaluated: Evaluated, facts: QueryFacts, of_plugins: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """A row per query with what happened to it; the columns are those of ``per_query.parquet``, see `analyse`."""
    rows, paths = table.iloc[evaluated.query_rows], table["path"].to_numpy()
    columns: dict[str, Any] = {
        "query_index": evaluated.query_rows, "path": rows["path"].to_numpy(), "label": rows["label"].to_numpy(),
        "camera": rows["camera"].to_numpy(), "matches": facts.matches, "first_match_rank": facts.first_rank,
        "last_match_rank": facts.last_rank, "ap": facts.ap, "inp": facts.inp, "map_at_r": facts.map_at_r,
        "r_precision": facts.r_precision,
    }  # fmt: skip
    for name, index, away in (
        ("match", facts.match, facts.match_distance),
        ("negative", facts.negative, facts.negative_distance),
    ):
        there = index >= 0
        found = np.where(there, evaluated.gallery_rows[index], -1)
        columns[f"{name}_index"] = found
        columns[f"{name}_path"] = [paths[row] if row >= 0 else None for row in found]
        for column in ("label", "camera"):
            columns[f"{name}_{column}"] = np.where(there, table[column].to_numpy()[found], -1)
        columns[f"{name}_distance"] = away
    return pd.DataFrame({**columns, "margin": facts.margin, **of_plugins})


def _intervals(values: dict[str, np.ndarray], identities: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean of each value with its interval; without one where all queries that count are of one identity."""
    counted = ~np.isnan(next(iter(values.values())))
    several = len(np.unique(identities[counted])) > 1
    return {
        name: {"value": float(of[counted].mean()),
               "interval": list(bootstrap_interval(of, identities, seed=seed, limits=_limits(name))) if several else None}
        for name, of in values.items()
    }  # fmt: skip


def _limits(name: str) -> tuple[float, float]:
    """Least and largest value that a metric can have."""
    return (0.0, 1.0) if metric_of(name).unit == "%" else (-np.inf, np.inf)


def _camera_record(pairs: CameraPairs) -> dict[str, Any]:
    def matrix(values: np.ndarray) -> list[list[float | None]]:
        return [[None if np.isnan(value) else float(value) for value in row] for row in values]

    return {
        "query_cameras": pairs.query_cameras.tolist(),
        "gallery_cameras": pairs.gallery_cameras.tolist(),
        "queries": pairs.queries.tolist(),
        "rank1": matrix(pairs.rank1),
        "mAP": matrix(pairs.mean_ap),
    }


def _camera_table(pairs: CameraPairs) -> pd.DataFrame:
    a, b = np.meshgrid(pairs.query_cameras, pairs.gallery_cameras, indexing="ij")
    return pd.DataFrame(
        {
            "query_camera": a.ravel(),
            "gallery_camera": b.ravel(),
            "queries": pairs.queries.ravel(),
            "rank1": pairs.rank1.ravel(),
            "mAP": pairs.mean_ap.ravel(),
        }
    )


def _by_gallery_images(facts: QueryFacts) -> list[dict[str, Any]]:
    rows = []
    for low, high in zip(_GALLERY_IMAGES, (*_GALLERY_IMAGES[1:], None), strict=True):
        inside = (facts.matches >= low) & (high is None or facts.matches < high)
        if inside.any():
            name = f"{low}+" if high is None else f"{low}" if high == low + 1 else f"{low}-{high - 1}"
            rank1, mean_ap = float(np.mean(facts.first_rank[inside] == 1)), float(facts.ap[inside].mean())
            rows.append({"images": name, "queries": int(inside.sum()), "rank1": rank1, "mAP": mean_ap})
    return rows


def worst_queries(queries: pd.DataFrame, listed: int = _LISTED) -> list[dict[str, Any]]:
    """Queries of the lowest AP, and what stood at rank 1 instead."""
    worst = queries[queries["matches"] > 0].sort_values(["ap", "query_index"]).head(listed)
    found = []
    for row in worst.to_dict("records"):
        nearest = "match" if row["first_match_rank"] == 1 else "negative"
        found.append(
            {name: row[name] for name in ("path", "label", "camera", "matches", "ap", "first_match_rank")}
            | {"nearest": {name: row[f"{nearest}_{name}"] for name in ("path", "label", "camera", "distance")}}
        )
    return found


def _confused(queries: pd.DataFrame) -> list[dict[str, int]]:
    """How often queries of one identity have another one at rank 1; the most frequent pairs.

    Distractors are no identity here: many people often share one label.
    """
    wrong = queries[(queries["first_match_rank"] > 1) & queries["negative_label"].isin(queries["label"])]
    pairs = wrong.groupby(["label", "negative_label"]).size().reset_index(name="queries")
    pairs = pairs.sort_values(["queries", "label", "negative_label"], ascending=[False, True, True]).head(_LISTED)
    return [
        {"label": int(label), "taken_for": int(other), "queries": int(count)}
        for label, other, count in pairs.itertuples(index=False)
    ]


def pair_record(pairs: PairDistances) -> dict[str, Any]:
    """Distances of pairs as `analysis.json` holds them: rates, thresholds, ROC and histogram."""
    everything = pairs.everything
    positives, negatives = int(everything.positives.sum()), int(everything.negatives.sum())
    if not negatives:  # nobody to be mistaken for
        return {"positives": positives, "negatives": 0}
    rate, point = equal_error(everything)
    false, true = roc_points(everything)
    edges, right, wrong = coarse_histogram(everything)
    criteria: dict[str, Callable[[PairCounts], OperatingPoint]] = {
        "equal error rate": lambda counts: equal_error(counts)[1],
        "false positive rate 0.001": lambda counts: at_false_positive_rate(counts, 1e-3),
    }
    return {
        "positives": positives,
        "negatives": negatives,
        "equal_error_rate": rate,
        "equal_error_threshold": point.threshold,
        "at_false_positive_rate": [
            {"rate": wanted, **_chosen(partial(at_false_positive_rate, everything, wanted))}
            for wanted in _FALSE_POSITIVE_RATES
        ],
        "held_out": [{"criterion": name, **_held_out(pairs, choose)} for name, choose in criteria.items()],
        "roc": {"false_positive_rate": false.tolist(), "true_positive_rate": true.tolist()},
        "histogram": {"edges": edges.tolist(), "positives": right.tolist(), "negatives": wrong.tolist()},
    }


def _held_out(pairs: PairDistances, choose: Callable[[PairCounts], OperatingPoint]) -> dict[str, Any]:
    """A threshold chosen on the pairs of one half of the identities, with its rates on those of the other."""

    def evaluated() -> OperatingPoint:
        threshold = choose(pairs.first).threshold
        return OperatingPoint(threshold, *pairs.second.rates_at(threshold))

    return _chosen(evaluated)


def _chosen(choose: Callable[[], OperatingPoint]) -> dict[str, Any]:
    """A point as plain data; where there is none, the reason."""
    try:
        return {**choose()._asdict(), "reason": None}
    except ValueError as error:
        return {**dict.fromkeys(OperatingPoint._fields), "reason": str(error)}
