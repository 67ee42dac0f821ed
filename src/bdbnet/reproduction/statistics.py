"""Table 6: how many images and classes the datasets have, beside the paper's figures."""

from collections.abc import Mapping, Sequence

from bdbnet.config import ConfigError
from bdbnet.datasets import DatasetError, Manifest
from bdbnet.loading.from_config import read_manifest
from bdbnet.reporting.table import MINUS, Grid
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.cells import absent_data, compose_training
from bdbnet.reproduction.spec import SpecError, Table

Counts = Mapping[str, int] | str


def count_datasets(table: Table, budget: Budget) -> dict[str, Counts]:
    """The statistics of each dataset of a table, or why it has none; of data that a budget puts in its place likewise."""
    counted: dict[str, Counts] = {}
    for dataset in table.columns:
        stand_in = budget.datasets.get(dataset, (f"dataset={dataset}",))
        if stand_in is None:
            continue
        config = compose_training(stand_in).dataset
        try:
            counted[dataset] = absent_data(config) or statistics_of(read_manifest(config))
        except (DatasetError, ConfigError, OSError) as error:
            counted[dataset] = str(error)
    return counted


def statistics_of(manifest: Manifest) -> dict[str, int]:
    """Images and classes of a dataset under the names of Table 6."""
    table = manifest.table
    parts = {
        "": table,
        "training_": table[table["split"] == "train"],
        "testing_": table[table["split"] != "train"],
        "query_": table[table["split"] == "query"],
        "gallery_": table[table["split"] == "gallery"],
    }
    sizes = {f"{part}images": len(rows) for part, rows in parts.items()}
    return sizes | {f"{part}classes": int(rows["label"].nunique()) for part, rows in parts.items()}


def statistics_grid(table: Table, counted: Mapping[str, Counts]) -> Grid:
    """The paper's line, ours and the difference for every statistic.

    Raises:
        SpecError: a row asks for a number that is not counted.
    """
    rows = []
    for row, statistic in zip(table.rows, table.statistics):
        paper: list[str] = []
        ours: list[str] = []
        apart: list[str] = []
        for dataset in table.columns:
            stated, counts = row.paper.get(dataset, (None,))[0], counted.get(dataset, "not part of this budget")
            if not isinstance(counts, str) and statistic not in counts:
                raise SpecError(f"{table.heading}: row {row.name}: statistic: choose one of {', '.join(counts)}")
            count = None if isinstance(counts, str) else counts[statistic]
            paper.append("-" if stated is None else f"{stated:,.0f}")
            ours.append("data absent" if count is None else f"{count:,}")
            apart.append("" if count is None or stated is None else f"{count - stated:+,.0f}".replace("-", MINUS))
        rows += [[row.name, "paper", *paper], ["", "ours", *ours]]
        if any(apart):
            rows.append(["", "difference", *apart])
    return Grid(f"{table.heading}: {table.title}", ["Statistic", "", *table.columns], rows, _notes(table, counted))


def _notes(table: Table, counted: Mapping[str, Counts]) -> list[str]:
    notes: Sequence[str] = [f"{row.name}: {row.note}." for row in table.rows if row.note]
    absent = [f"{dataset}: {counts}" for dataset, counts in counted.items() if isinstance(counts, str)]
    return [f"Paper: {table.source}.", *notes, *absent]
