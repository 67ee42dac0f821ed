"""The paper's tables as data, and one's own."""

import csv
from pathlib import Path

import pytest

from bdbnet.reproduction.spec import SpecError, all_tables, find_tables, read_table

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"


def test_numbers_and_letters_and_lists_find_their_tables():
    assert [table.name for table in find_tables(3)] == ["table3"]
    assert [table.name for table in find_tables("7")] == ["table7a", "table7b", "table7c", "table7d"]
    assert [table.name for table in find_tables("7b", "7b")] == ["table7b", "figure7b"]
    assert [table.name for table in find_tables([2, "2", 1])] == ["table2", "table1"]
    assert len(find_tables("all", "all")) == len(all_tables()) == 19


@pytest.mark.parametrize(
    ("table", "figure"), [(9, None), ("0", None), ("", None), ("seven", None), (None, "7c"), (None, 3)]
)
def test_a_table_that_does_not_exist_is_an_error_that_lists_those_there_are(table, figure):
    with pytest.raises(SpecError, match="Choose from"):
        find_tables(table, figure)


def test_a_missing_file_of_ones_own_is_named():
    with pytest.raises(SpecError, match=r"mine\.yaml: no such file"):
        find_tables("mine.yaml")


def test_every_row_of_ours_can_be_run():
    rows = {table.name: {row.name for row in table.rows if row.run} for table in all_tables()}
    ours = {"PCB", "PCB+RPP", "MGN", "Baseline", "Baseline+Triplet", "BDB", "BDB+Cut"}
    assert rows["table1"] == ours
    for number, count in (("2", 5), ("3", 6), ("4", 4), ("5", 7), ("8", 8)):
        assert len(rows[f"table{number}"]) == count, number
    assert rows["table7d"] == {"LiftedStruct", "N-Pairs", "Margin", "BDB"}
    assert [row.x for row in find_tables(None, "7a")[0].rows] == pytest.approx([i / 10 for i in range(1, 10)])


CSV_OF = {
    "table7a": "table7a_cub200",
    "table7b": "table7b_cars196",
    "table7c": "table7c_inshop",
    "table7d": "table7d_sop",
}


@pytest.mark.parametrize("name", [table.name for table in all_tables() if table.name.startswith("table")])
def test_every_number_is_the_papers(name):
    if not PAPER.is_dir():
        pytest.skip(f"the paper's tables are not at {PAPER}")
    table = next(table for table in all_tables() if table.name == name)
    with (PAPER / f"{CSV_OF.get(name, name)}.csv").open() as file:
        lines = list(csv.DictReader(file))
    stated = [row for row in table.rows if row.paper]
    assert len(lines) == len(stated)
    for line, row in zip(lines, stated):
        first, *rest = line.values()
        assert row.name == first or table.statistics
        ours = [value for values in row.paper.values() for value in values]
        theirs = [float(value) if value else None for value in rest]
        if table.statistics or None in theirs:
            ours, theirs = ([value for value in values if value is not None] for values in (ours, theirs))
        assert ours == theirs, row.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", "not readable as YAML"),
        ("- 1", "expected the keys"),
        ("colour: red", "colour"),
        ("title: x\nrows: [{name: a}]", "columns is missing"),
        ("title: x\ncolumns: {market1501: rank1}\nrows: [{name: a}]", "columns: give dataset"),
        ("title: x\ncolumns: {market1501: [rank1]}", "rows: give a list"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{run: [model=bdb]}]", "rows: give a list"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, colour: red}]", "row a: unknown key colour"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, run: model}]", "row a: run: give a list"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, run: [model]}]", "row a: run: give a list"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, paper: {sop: [1]}}]", "row a: paper: sop"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, paper: {market1501: [1, 2]}}]", "give one number"),
        ("title: x\ncolumns: {market1501: [rank1]}\nrows: [{name: a, paper: {market1501: [101]}}]", "101 is not a percentage"),
        ("title: x\ncolumns: {market1501: [rank1]}\nx: {key: a}\nlines: [{name: a}]", "x: give key, title and values"),
        ("title: x\nkind: statistics\ncolumns: [sop]\nrows: [{name: a}]", "row a: statistic"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_row_or_key(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)
