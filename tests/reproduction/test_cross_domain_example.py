"""The example of a cross-domain table: its page says what its records say."""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from bdbnet.reproduction.budget import read_budget
from bdbnet.reproduction.cross_spec import column_dataset
from bdbnet.reproduction.data_keys import data_key
from bdbnet.reproduction.measured import measure
from bdbnet.reproduction.spec import read_table
from bdbnet.reproduction.writing import reproduction_grid
from bdbnet.results import RESULT, metric_of, read_result

EXAMPLE = Path(__file__).resolve().parents[2] / "experiments" / "cross_domain"


def test_the_matrix_of_the_example_is_that_of_its_records():
    """Weight files may be absent: the rows of checkpoints are compared by the records' own words, those of trainings as a table."""
    table = read_table(EXAMPLE / "people_and_objects.yaml")
    places = {"data_root": "data", "weights_root": "weights", "overrides": []}
    budget = read_budget(str(EXAMPLE / "small.yaml"), OmegaConf.create(places))
    text = (EXAMPLE / "README.md").read_text().replace(r"\*", "*")
    written = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    shown = {name: cells for name, *cells in written}
    trained = replace(table, rows=tuple(row for row in table.rows if row.checkpoint is None))
    for name, *cells in reproduction_grid(measure(trained, budget, EXAMPLE / "runs", [1])).rows:
        assert shown[name] == cells
    records = [read_result(path) for path in sorted((EXAMPLE / "runs").rglob(RESULT))]
    keys = {name: data_key(column_dataset(entry, "data")) for name, entry in table.cross.items()}
    checkpoints = [row for row in table.rows if row.checkpoint is not None]
    for row in checkpoints:
        cells = []
        for column, metrics in table.columns.items():
            (found,) = [
                record for record in records
                if Path(record.checkpoint).name == Path(row.checkpoint).name and data_key(record.config["dataset"]) == keys[column]
            ]  # fmt: skip
            own = " *" * (column in row.trained_on)
            cells += [f"{metric_of(metric).number(found.metrics[metric])}{own}" for metric in metrics]
        assert shown[row.name] == cells
    assert len(records) == len(table.columns) * len(checkpoints) + len(trained.rows)
