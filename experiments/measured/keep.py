"""Keep the records of trainings here: python experiments/measured/keep.py outputs/runs --data data --weights weights

Copies cell.json, history.csv, result.json and, of per_query.parquet, the columns that metrics and tests of claims read, for
every training that is finished and not here yet. Folders of data and weights are written as `data` and `weights`, wherever
they lie.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
COLUMNS = ("query_index", "label", "matches", "first_match_rank", "ap", "inp", "map_at_r", "r_precision")
RETRIEVAL = ("map_at_r", "r_precision")


def is_finished(folder: Path) -> bool:
    """Whether the record is of the last epoch, with its values per query."""
    record = json.loads((folder / "result.json").read_text())
    return record["epochs"] >= record["config"]["trainer"]["max_epochs"] and (folder / "per_query.parquet").is_file()


def keep(folder: Path, target: Path, places: dict[str, str]) -> None:
    """Copy the records of one training, a folder seed=N, and its cell."""
    queries = pd.read_parquet(folder / "per_query.parquet", columns=list(COLUMNS))
    target.mkdir(parents=True)
    for source in (folder.parent / "cell.json", folder / "result.json", folder / "history.csv"):
        text = source.read_text()
        for place, name in places.items():
            text = text.replace(place, name)
        (target.parent / source.name if source.name == "cell.json" else target / source.name).write_text(text)
    if '"protocol": "reid' in (folder / "result.json").read_text():
        queries = queries.drop(columns=list(RETRIEVAL))
    narrow = {name: "float32" if kind.kind == "f" else "int32" for name, kind in queries.dtypes.items()}
    queries.astype(narrow).to_parquet(target / "per_query.parquet", index=False, compression="zstd")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the trainings: runs_root of bdbnet.reproduce")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data_root of the trainings")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="weights_root of the trainings")
    arguments = parser.parse_args()
    places = {str(arguments.data.resolve()): "data", str(arguments.weights.resolve()): "weights"}
    for result in sorted(arguments.runs.glob("*/*/seed=*/result.json")):
        target = HERE / result.parent.relative_to(arguments.runs)
        if not target.exists() and is_finished(result.parent):
            keep(result.parent, target, places)
            print(target.relative_to(HERE))
