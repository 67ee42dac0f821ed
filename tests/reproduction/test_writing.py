"""Tables as they are written: the paper's numbers, ours, and never one that no run produced."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bdbnet.config import ConfigError
from bdbnet.datasets import load_manifest
from bdbnet.evaluation.significance import bootstrap_interval
from bdbnet.reporting.table import as_markdown
from bdbnet.reproduction.measured import Measured, measure
from bdbnet.reproduction.spec import Axis, Row, SpecError, Table, find_tables, read_table
from bdbnet.reproduction.statistics import statistics_grid, statistics_of
from bdbnet.reproduction.writing import (
    refuse_other_summary,
    refuse_other_tables,
    reproduction_grid,
    rows_of,
    write_summary,
    write_tables,
)
from bdbnet.results import Protocol, Result

EVALUATION = {"evaluation": {"normalize": "none", "precision": "32-true", "query_pooling": "mean"}}


def finish(
    measured: Measured, row: int, seed: int, rank1: float, fingerprint: str = "f", processor: float | None = None
) -> Path:
    """A finished run of a row, as training would leave it."""
    (dataset,) = measured.datasets
    cell = measured.entries[row, dataset].cell
    assert cell is not None
    Result(
        kind="train", metrics={"rank1": rank1, "mAP": rank1 / 2}, protocol=Protocol("reid", "synthetic_reid", (32, 16)),
        checkpoint="last", data={"fingerprint": fingerprint}, config=EVALUATION, seed=seed, epochs=2,
        seconds={"train": 60.0}, hardware={"processor": "abacus", "gpus": []}, processor_seconds=processor,
    ).write(cell.folder / f"seed={seed}" / "result.json")  # fmt: skip
    return cell.folder / f"seed={seed}"


@pytest.fixture
def look(table, toy_budget, tmp_path):
    return lambda *overrides, of=table: measure(of, toy_budget(*overrides), tmp_path / "runs", [1])


def test_what_was_not_measured_has_no_number(look):
    grid = reproduction_grid(look())
    assert grid.rows == [
        ["Baseline", "paper", "90.0", "70.0"], ["", "ours", "not measured", "not measured"],
        ["BDB", "paper", "95.0", "80.0"], ["", "ours", "not measured", "not measured"],
        ["Elsewhere", "paper", "96.0", "-"],
    ]  # fmt: skip
    assert not any(digit in "".join(text for row in rows_of(look()) for text in row[8:14]) for digit in "0123456789")


def test_ours_stands_beside_the_papers_with_difference_and_spread(look):
    for seed, rank1 in ((1, 0.90), (2, 0.92)):
        finish(look(), 0, seed, rank1)
    finish(look(), 1, 1, 0.9)
    grid = reproduction_grid(look())
    assert grid.rows[:6] == [
        ["Baseline", "paper", "90.0", "70.0"], ["", "ours, 2 seeds", "91.0 ± 1.4", "45.5 ± 0.7"],
        ["", "difference", "+1.0", "\u221224.5"],
        ["BDB", "paper", "95.0", "80.0"], ["", "ours", "90.0", "45.0"], ["", "difference", "\u22125.0", "\u221235.0"],
    ]  # fmt: skip
    notes = " ".join(grid.notes)
    assert "0 of 1 pairs of rows are in the paper's order; not: BDB is not above Baseline." in notes
    assert "3 trainings, 3 min 0 s in all, on abacus." in notes


def test_processor_time_is_summed_over_the_trainings_that_recorded_it(look, tmp_path):
    finish(look(), 0, 1, 0.5, processor=100.0)
    finish(look(), 0, 2, 0.5, processor=50.25)
    assert any(
        "2 min 0 s in all (processor time: 2 min 30 s), on abacus." in n for n in reproduction_grid(look()).notes
    )
    finish(look(), 1, 1, 0.5)
    said = "3 trainings, 3 min 0 s in all (processor time of 2 of them: 2 min 30 s), on abacus."
    assert said in reproduction_grid(look()).notes
    page, *_ = write_tables([look()], tmp_path / "out")
    assert said in page.read_text()
    lines = csv.DictReader(io.StringIO((tmp_path / "out" / "two.csv").read_text()))
    found = {line["row"]: line["processor_seconds"] for line in lines}
    assert found == {"Baseline": "150.25", "BDB": "", "Elsewhere": ""}
    finish(look(), 0, 3, 0.5)  # one seed has none: what the cell took is not known
    assert look().entries[0, "market1501"].processor_seconds is None


def test_an_interval_is_over_identities_of_values_averaged_over_seeds(look, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(150), 3)
    hits = rng.integers(0, 2, (2, 450))
    for seed, hit in enumerate(hits, start=1):
        folder = finish(look(), 0, seed, float(hit.mean()))
        rows = {
            "query_index": np.arange(450),
            "label": labels,
            "matches": 1,
            "first_match_rank": 2 - hit,
            "ap": hit / 2,
        }
        pd.DataFrame(rows).to_parquet(folder / "per_query.parquet", index=False)
    finish(look(), 1, 1, 0.5)  # without values per query
    grid = reproduction_grid(look())
    low, high = bootstrap_interval(hits.mean(axis=0), labels, limits=(0.0, 1.0))
    assert grid.rows[2][:3] == ["", "95 % interval", f"{100 * low:.1f} to {100 * high:.1f}"]
    assert low < hits.mean() < high
    assert [row[1] for row in grid.rows[4:7]] == ["paper", "ours", "difference"]
    assert any("over the identities of the test set" in note for note in grid.notes)
    lines = [line for line in rows_of(look()) if line[6] == "rank1"]
    assert [line[11:13] for line in lines[:2]] == [[f"{100 * low:.4f}", f"{100 * high:.4f}"], ["", ""]]


def test_numbers_of_another_training_than_the_papers_are_not_subtracted(look):
    finish(look("optimizer.lr=0.1"), 0, 1, 0.9)
    grid = reproduction_grid(look("optimizer.lr=0.1"))
    assert [row[1] for row in grid.rows[:3]] == ["paper", "ours", "paper"]
    assert any("only the order of these numbers is comparable" in note for note in grid.notes)
    assert any("optimizer.lr=0.1" in note for note in grid.notes)


def test_seeds_measured_on_other_data_are_not_averaged_in(look):
    for seed, fingerprint in ((1, "a"), (2, "a"), (3, "b")):
        finish(look(), 0, seed, 0.5, fingerprint)
    grid = reproduction_grid(look())
    assert grid.rows[1][1] == "ours, 2 seeds"
    assert "Baseline, seed 3: measured on other data than the other seeds, not counted" in grid.notes


def test_every_form_holds_the_same_numbers(look, tmp_path):
    finish(look(), 0, 1, 0.875)
    page, *files = write_tables([look()], tmp_path / "out")
    assert sorted(path.name for path in files) == ["two.csv", "two.md", "two.tex"]
    for path in (page, tmp_path / "out" / "two.md", tmp_path / "out" / "two.tex"):
        assert "87.5" in path.read_text(), path
        assert "not measured" in path.read_text(), path
    (line,) = [line for line in csv.DictReader(io.StringIO((tmp_path / "out" / "two.csv").read_text()))
               if line["row"] == "Baseline" and line["metric"] == "rank1"]  # fmt: skip
    assert (line["paper"], line["ours"], line["difference"], line["seeds"]) == ("90", "87.5000", "-2.5000", "1")
    assert (line["dataset"], line["measured_on"], line["state"]) == ("market1501", "synthetic_reid", "done")


def test_a_figure_is_drawn_with_the_papers_points(look, tmp_path):
    rows = tuple(
        Row("BDB", ("model=bdb", f"dropping.height_ratio={x}"), {"market1501": (72.8,)} if x == 0.3 else {}, "", x)
        for x in (0.1, 0.3)
    )
    axis = Axis("dropping.height_ratio", "Erased height ratio", (0.1, 0.3))
    figure = Table("figure9", "Ratios", "", {"market1501": ("rank1",), "cuhk03_detect": ("rank1",)}, rows, axis)
    assert "<img" not in write_tables([look(of=figure)], tmp_path / "out")[0].read_text()
    for number, rank1 in enumerate((0.25, 0.5)):
        finish(look(of=figure), number, 1, rank1)
    text = write_tables([look(of=figure)], tmp_path / "out")[0].read_text()
    assert text.count("<img") == 1
    assert "BDB: 0.1 25.0, 0.3 50.0; BDB, paper: 0.3 72.8" in text
    assert "Not part of this budget: cuhk03_detect" in text


def test_a_table_of_drop_layers_shows_what_they_drop(look, tmp_path):
    rows = tuple(Row(name, (f"dropping={name}",)) for name in ("none", "batch_dropblock", "dropblock", "dropout"))
    layers = Table("table9", "Layers", "", {"market1501": ("rank1",)}, rows)
    text = write_tables([look(of=layers)], tmp_path / "out")[0].read_text()
    assert "What is dropped in two images of a batch (Figure 6): batch_dropblock 29%, dropblock 29%, dropout " in text
    assert "Figure 6" not in write_tables([look()], tmp_path / "out")[0].read_text()


def test_a_summary_says_how_it_was_made(look, tmp_path):
    path = write_summary([look()], tmp_path / "RESULTS.md", "python -m bdbnet.reproduce all list=true")
    text = path.read_text()
    assert text.startswith("# ")
    assert "`python -m bdbnet.reproduce all list=true`" in text
    assert "## Budget toy\n\n### two: Two networks" in text
    assert as_markdown(reproduction_grid(look(), portable=True)).strip() in text


def test_tables_of_other_settings_are_not_replaced(look, table, tmp_path):
    place = (tmp_path / "out", tmp_path / "runs")
    refuse_other_tables([look()], *place)
    write_tables([look()], *place)
    refuse_other_tables([look()], *place)
    finish(look(), 0, 1, 0.5)  # more numbers are no other settings
    refuse_other_tables([look()], *place)
    other_row = replace(table, rows=(replace(table.rows[0], run=("model=mgn",)),))
    for measured, runs, version, message in (
        (look("optimizer.lr=0.1"), place[1], None, r"overrides was \[.*\], is \[.*optimizer.lr=0.1"),
        (look(of=other_row), place[1], None, "table was"),
        (look(), tmp_path / "elsewhere", None, "runs_root was ../runs, is ../elsewhere"),
        (look(), place[1], "0.0.1", "version was .*, is 0.0.1"),
    ):
        with pytest.raises(
            ConfigError, match=rf"two.md holds .*{message}.*output_root=<another folder>.*overwrite=true"
        ):
            refuse_other_tables([measured], place[0], runs, version)
    with pytest.raises(ConfigError, match="two tables are called two"):
        refuse_other_tables([look(), look(of=other_row)], tmp_path / "new", place[1])
    (tmp_path / "out" / "two.settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"two.settings.json can't be read.*overwrite=true"):
        refuse_other_tables([look()], *place)


def test_a_summary_replaces_no_other_file(look, tmp_path):
    path = tmp_path / "RESULTS.md"
    refuse_other_summary(path, "this")
    write_summary([look()], path, "this")
    refuse_other_summary(path, "this")
    with pytest.raises(ConfigError, match=r"summary=.*RESULTS.md.*`that`.*overwrite=true"):
        refuse_other_summary(path, "that")


def test_statistics_are_counted_from_the_data(tmp_path):
    manifest = load_manifest(
        "synthetic_retrieval",
        tmp_path,
        train_classes=3,
        test_classes=2,
        images_per_class=2,
        image_size=[16, 16],
        workers=1,
    )
    counts = statistics_of(manifest)
    assert counts["images"] == 10
    assert counts["training_images"] == 6
    assert (counts["classes"], counts["training_classes"], counts["testing_classes"]) == (5, 3, 2)
    (table,) = find_tables(6)
    grid = statistics_grid(table, {"sop": counts, "cub200": "no such folder"})
    assert grid.rows[:3] == [
        ["Images", "paper", "16,185", "11,788", "120,053", "52,712"],
        ["", "ours", "data absent", "data absent", "10", "data absent"],
        ["", "difference", "", "", "\u2212120,043", ""],
    ]
    assert "cub200: no such folder" in grid.notes


def test_the_measured_results_in_the_repository_are_what_its_summary_says(tmp_path):
    """RESULTS.md is generated; a number that no kept record holds cannot stand in it."""
    from omegaconf import OmegaConf

    from bdbnet.reproduction.budget import read_budget

    experiments = Path(__file__).resolve().parents[2] / "experiments"
    settings = OmegaConf.create({"data_root": "data", "weights_root": "weights", "overrides": []})
    # Of the budgets that have few numbers a few tables: composing every cell takes half a minute.
    asked = [
        ("random", find_tables([2, 3])),
        ("cpu", find_tables("all", ["7a", "7b"])),
        ("cpu_long", find_tables([2, 3])),
    ]
    tables = [
        measure(table, read_budget(name, settings), experiments / "measured", [1])
        for name, tables_of in asked
        for table in tables_of
        if not table.statistics
    ]
    kept = (experiments / "RESULTS.md").read_text()
    for measured in tables:
        for line in as_markdown(reproduction_grid(measured, portable=True)).splitlines():
            shown = any(entry.counted for entry in measured)
            if shown and measured.datasets and line.startswith("|") and "ours" in line:
                assert line in kept


MAP = """
title: Sizes
columns: {market1501: [rank1, mAP]}
x: {key: dropping.height_ratio, title: Height, values: [0.1, 0.3]}
y: {key: dropping.width_ratio, title: Width, values: [0.5, 1.0]}
lines:
  - {name: BDB, run: [experiment=bdb]}
"""


def test_a_map_has_a_cell_for_every_pair(look, tmp_path):
    (tmp_path / "map.yaml").write_text(MAP)
    of = read_table(tmp_path / "map.yaml")
    assert [row.label for row in of.rows] == ["BDB 0.1 0.5", "BDB 0.3 0.5", "BDB 0.1 1", "BDB 0.3 1"]
    assert of.rows[2].run == ("experiment=bdb", "dropping.height_ratio=0.1", "dropping.width_ratio=1")
    finish(look(of=of), 1, 1, 0.9)
    grid = reproduction_grid(look(of=of))
    assert grid.heads == ["across: Height", "Width", "0.1", "0.3"]
    assert grid.rows == [
        ["BDB: Rank-1", "0.5", "not measured", "90.0"], ["", "1", "not measured", "not measured"],
    ]  # fmt: skip
    page, *_ = write_tables([look(of=of)], tmp_path / "out")
    text = page.read_text()
    assert text.count("<picture>") == 2  # Rank-1 and mAP
    assert "BDB: Rank-1 on synthetic_reid: 0.1 x 0.5 -; 0.1 x 1 -; 0.3 x 0.5 90.0; 0.3 x 1 -" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("x: {key: dropping.height_ratio, title: Height, values: [0.1, 0.3]}\n", ""), "y: a map needs x, too"),
        (("values: [0.5, 1.0]", "values: [wide]"), "y: values: give numbers"),
        (
            ("run: [experiment=bdb]", "run: [experiment=bdb], paper: {0.1: {market1501: [1, 2]}}"),
            "a map has no numbers",
        ),
    ],
)
def test_a_wrong_map_is_refused_by_name(change, message, tmp_path):
    (tmp_path / "map.yaml").write_text(MAP.replace(*change))
    with pytest.raises(SpecError, match=message):
        read_table(tmp_path / "map.yaml")
