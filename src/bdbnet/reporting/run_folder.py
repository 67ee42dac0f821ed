"""A finished run's folder, read and checked: result, history, ranking lists, error analysis."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bdbnet import plugins
from bdbnet.checked import Column, UnfitError, checked, read_json, read_parquet
from bdbnet.datasets import BOX_COLUMNS, DatasetError, load_manifest
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.feature_sets import FEATURES
from bdbnet.missing import no_run
from bdbnet.reporting.analysis_record import read_record
from bdbnet.results import ANALYSIS, CALIBRATION, HISTORY, LABEL_NAMES, RESULT, TOP_K, Result, read_result

_SIDES = ("query", "gallery")
_BOXES = tuple(f"{side}_{column}" for side in _SIDES for column in BOX_COLUMNS)
TOP_K_COLUMNS = {
    "query_index": Column("whole", least=0), "rank": Column("whole", least=1), "distance": Column("number"),
    "correct": Column("truth"),
    **{f"{side}_path": Column("text") for side in _SIDES},
    **{f"{side}_label": Column("label") for side in _SIDES},
    **{f"{side}_camera": Column("whole") for side in _SIDES},
    **{name: Column("whole") for name in _BOXES},
}  # fmt: skip
"""Columns of the ranking lists; those of the boxes are there where images have them."""


class ReportError(ValueError):
    """A run folder that cannot be reported on; the message names the file or key and says what to do."""


@dataclass(frozen=True)
class RunFolder:
    """A finished run. `history`, `ranking`, `analysis` and `calibration` are None where the run wrote none."""

    path: Path
    result: Result
    history: pd.DataFrame | None
    ranking: pd.DataFrame | None
    analysis: Mapping[str, Any] | None = None
    calibration: Calibration | None = None


class Selection(NamedTuple):
    """Query indices selected for a page: some at random, and some of the worst."""

    random: list[int]
    worst: list[int]


def read_run(folder: str | Path, *, key: str = "run") -> RunFolder:
    """Read the folder of a training run or an evaluation; `key` is what errors call it.

    Raises:
        ReportError: the folder is missing, is not a run's, or one of its tables cannot be read.
        ResultError: its `result.json` is half-written or of another schema.
    """
    path = Path(folder).expanduser()
    if path.name == RESULT:
        path = path.parent
    if not path.is_dir():
        raise ReportError(no_run(folder, key))
    if not (path / RESULT).is_file():
        runs = sorted(str(found.parent) for found in path.glob(f"*/{RESULT}"))[:5]
        below = f"Runs below it: {'; '.join(runs)}" if runs else "No run is below it. A run writes the file at its end."
        raise ReportError(f"{key}={folder}: not a run folder, it has no {RESULT}. {below}")
    result, history = read_result(path / RESULT), _read_history(path / HISTORY)
    ranking, analysis = _read_ranking(path / TOP_K), read_analysis(path / ANALYSIS)
    names = _read_label_names(path / LABEL_NAMES)
    calibration = read_calibration(path / CALIBRATION)
    return RunFolder(
        path, result, history, _named_ranking(ranking, names), _named_analysis(analysis, names), calibration
    )


def _read_history(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    advice = "Move it away to get a page without curves, or train again."
    try:
        history = pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise ReportError(f"{path}: not a readable table ({error}). {advice}") from error
    if "epoch" not in history:
        raise ReportError(f"{path}: no column `epoch`; its columns are {', '.join(map(str, history))}. {advice}")
    for column in history:
        if not pd.api.types.is_numeric_dtype(history[column]):
            raise ReportError(f"{path}: column {column} holds something that is not a number. {advice}")
    return history


def _read_ranking(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    advice = "Move it away to get a page without ranking lists, or evaluate again."
    try:
        ranking = read_parquet(path, TOP_K_COLUMNS, optional=_BOXES)
    except (UnfitError, OSError) as error:
        raise ReportError(f"{path}: {error}. {advice}") from error
    for side in _SIDES:
        boxes = [name for name in _BOXES if name.startswith(side)]
        if 0 < sum(name in ranking for name in boxes) < len(boxes):
            raise ReportError(f"{path}: has some of the columns {', '.join(boxes)}, not all. {advice}")
    return ranking.sort_values(["query_index", "rank"], kind="stable", ignore_index=True)


def _read_label_names(path: Path) -> dict[int, str]:
    """Label -> how its owner writes it; empty where the labels are plain numbers."""
    if not path.is_file():
        return {}
    try:
        return {int(label): name for label, name in checked(read_json(path), dict[str, str]).items()}
    except (ValueError, UnfitError, OSError) as error:
        raise ReportError(f"{path}: not the names of labels ({error}). Move it away to get plain numbers.") from error


def _named_ranking(ranking: pd.DataFrame | None, names: Mapping[int, str]) -> pd.DataFrame | None:
    if ranking is None or not names:
        return ranking
    columns = ("query_label", "gallery_label")
    return ranking.assign(**{column: [names.get(label, label) for label in ranking[column]] for column in columns})


def _named_analysis(record: Mapping[str, Any] | None, names: Mapping[int, str]) -> Mapping[str, Any] | None:
    """The record with the names of labels in its tables."""
    if record is None or not names:
        return record

    def named(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: names.get(of, of) if key in ("label", "taken_for") else of for key, of in row.items()}

    worst = [{**named(row), "nearest": named(row["nearest"])} for row in record["worst_queries"]]
    return {**record, "worst_queries": worst, "confused_identities": [*map(named, record["confused_identities"])]}


def read_analysis(path: Path) -> Mapping[str, Any] | None:
    """Read an `analysis.json`; None where there is none.  Raises ReportError."""
    if not path.is_file():
        return None
    advice = "Move it away, or evaluate again with analysis=true."
    try:
        return read_record(path)
    except UnfitError as error:
        raise ReportError(f"{path}: {error}. {advice}") from error
    except (ValueError, OSError) as error:
        raise ReportError(f"{path}: not a complete analysis ({error}). {advice}") from error


def read_calibration(path: Path) -> Calibration | None:
    """Read a `calibration.json`; None where there is none.  Raises ReportError."""
    if not path.is_file():
        return None
    try:
        return Calibration.from_json(read_json(path))
    except (ValueError, OSError) as error:
        raise ReportError(
            f"{path}: not a complete calibration ({error}). Move it away, or evaluate again with calibrate=true."
        ) from error


def choose_queries(ranking: pd.DataFrame, count: int, seed: int) -> Selection:
    """Choose `count` queries: half of them (rounded up) at random, the rest from the worst of the others.

    Worst are those whose first correct image has the largest rank; those without a correct image in their list come
    first. Ties are broken at random, and an identity comes a second time only after all others. The same table and
    seed always give the same choice.
    """
    queries = ranking.drop_duplicates("query_index").set_index("query_index")["query_label"].sort_index()
    first_correct = ranking[ranking["correct"]].groupby("query_index")["rank"].min()
    order = np.random.default_rng(seed).permutation(queries.index.to_numpy())
    drawn = [int(query) for query in order[: count - count // 2]]
    rest = pd.DataFrame({"query": order[len(drawn) :]})
    rest["label"] = queries.reindex(rest["query"]).to_numpy()
    rest["first"] = first_correct.reindex(rest["query"]).fillna(np.inf).to_numpy()
    rest = rest.sort_values("first", ascending=False, kind="stable")
    rest["again"] = rest.groupby("label").cumcount()
    worst = rest.sort_values("again", kind="stable")["query"].head(count // 2)
    return Selection(drawn, [int(query) for query in worst])


def image_root(run: RunFolder) -> tuple[Path | None, str]:
    """Folder that the ranking lists' paths are relative to, and a remark for the reader ("" where all is well).

    The dataset is read as the run read it; relative paths are tried in the working folder, then in the folders above
    the run's. None where it cannot be found now; the remark says why.
    """
    result, dataset = run.result, run.result.config.get("dataset")
    if isinstance(dataset, Mapping) and dataset.get("name") == FEATURES:
        return _image_root_of_features(dataset, run)
    if (
        not isinstance(dataset, Mapping)
        or not dataset.get("name")
        or not (dataset.get("root") or dataset.get("manifest"))
    ):
        return None, "The images are not shown: the run's settings do not name the folder of its dataset."
    if plugins.reader(dataset["name"]) is not None or dataset.get("reader") is not None:
        return (
            None,
            "The images are not shown: a plugin read the dataset, and what a result says runs no code but bdbnet's own.",
        )
    root, options = dataset.get("root"), dict(dataset.get("options") or {})
    sources = options.get("manifest")
    if sources is not None:
        listed = [sources] if isinstance(sources, str) else sources
        options["manifest"] = [_found(source, run.path) for source in listed]
    if str(dataset["name"]).startswith("synthetic"):
        options["stored_only"] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader's warnings were printed when the run read the data
            manifest = load_manifest(dataset["name"], None if root is None else _found(root, run.path), **options)
    except (DatasetError, OSError) as error:
        return None, f"The images are not shown, because the dataset was not found where the run had it: {error}"
    except Exception as error:  # options from a file may be of any type
        return (
            None,
            f"The images are not shown: the settings of the run's dataset can't be used ({type(error).__name__}: {error})",
        )
    if manifest.fingerprint != result.data.get("fingerprint", manifest.fingerprint):
        return manifest.root, f"The dataset at {manifest.root} has changed since this run: pictures may be wrong ones."
    return manifest.root, ""


def _image_root_of_features(dataset: Mapping[str, Any], run: RunFolder) -> tuple[Path | None, str]:
    """The same of embeddings from a file that says the paths of its images, where it does."""
    if dataset.get("root") is None:
        return None, "The images are not shown: the file of embeddings does not say where they are (dataset.root=)."
    root = Path(_found(str(dataset["root"]), run.path))
    return (root, "") if root.is_dir() else (None, f"The images are not shown: {root} is not there.")


def file_below(root: Path, path: object) -> Path | None:
    """The regular file at a path of a table, seen from a folder; None where it is absolute or leads out of the folder.

    A table may come from somebody else, and must not put any file of this machine on a page. Links that lie in the folder are
    the folder owner's own, and are followed.

    Raises:
        FileNotFoundError: no regular file is there.
    """
    if not isinstance(path, str) or "\0" in path or os.path.isabs(path):  # noqa: PTH117
        return None
    inside = os.path.normpath(path)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        return None
    if not (root / inside).is_file():
        raise FileNotFoundError(root / inside)
    return root / inside


def _found(path: str, folder: Path) -> str:
    """A relative path that leads nowhere from here, from the nearest folder above the run's from which it does."""
    if Path(path).exists():
        return path
    return next((str(above / path) for above in folder.resolve().parents if (above / path).exists()), path)
