"""Figures of pictures: what they ask to be trained, what they draw, and why one is not drawn."""

import re

import pytest

from bdbnet.reproduction.measured import jobs_of, measure
from bdbnet.reproduction.pictures import pictures_of
from bdbnet.reproduction.running import run_missing
from bdbnet.reproduction.spec import SpecError, find_tables, read_table
from bdbnet.reproduction.writing import reproduction_grid, write_tables
from toy_tables import TABLE

#: Without the baseline, which would have to be trained too.
ONE = re.sub(r"  - name: Baseline.*?(?=  - name: BDB)", "", TABLE, flags=re.DOTALL)


def figure(tmp_path, picture, name="figure0"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(ONE.replace("columns:", f"picture: {picture}\ncolumns:"))
    return read_table(path)


def test_a_figure_is_drawn_from_its_networks_which_are_kept(tmp_path, toy_budget):
    maps, ranking = figure(tmp_path, "{kind: maps, images: 2}"), figure(tmp_path, "{kind: ranking, top: 2}", "figure00")
    budget, runs = toy_budget(), tmp_path / "runs"

    def look(*tables):
        return [measure(table, budget, runs, [1]) for table in tables]

    (before,) = pictures_of(look(maps)[0])
    assert before.section is None
    assert "BDB: not measured" in before.remark

    jobs = jobs_of(look(maps), [1])
    assert all(job.pictured for job in jobs)
    done = run_missing(jobs, keep_checkpoints=False, say=lambda _: None)
    assert all((run.folder / "last.ckpt").is_file() for run in done)
    measured = look(maps, ranking)
    page, *files = write_tables(measured, tmp_path / "out")
    names = {file.name for file in files}
    assert {"figure0.pdf", "figure0.png", "figure00.pdf", "figure00.png"} <= names
    assert page.read_text().count("<picture>") == 2
    assert [row[0] for row in reproduction_grid(measured[0]).rows if row[0]] == ["BDB", "Elsewhere"]
    (drawn,) = pictures_of(measured[0])
    assert {*drawn.section.arrays} == {"activation/BDB/global", "activation/BDB/dropping"}

    (done[0].folder / "last.ckpt").unlink()
    (drawn,) = pictures_of(look(maps)[0])
    assert drawn.section is None
    assert "BDB: measured, but its last.ckpt was not kept; retry=true trains it again" in drawn.remark
    said = []
    run_missing(jobs, say=said.append)
    assert not any("run folder" in line for line in said)
    run_missing(jobs, retry=True, say=lambda _: None)
    assert (done[0].folder / "last.ckpt").is_file()


def test_masks_need_no_training(toy_budget, tmp_path):
    (table,) = find_tables(None, "6")
    budget = toy_budget()
    measured = measure(table, budget, tmp_path / "runs", [1])
    assert jobs_of([measured], [1]) == []


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        ("{kind: film}", r"picture: give kind \(maps, ranking, masks\)"),
        ("{kind: maps, colour: red}", "picture: give kind"),
        ("{kind: maps, images: 0}", "images: 0: give a whole number of at least 1"),
        ("{kind: maps, branches: dropping}", "branches: give a list of names"),
    ],
)
def test_a_picture_that_can_not_be_read(tmp_path, picture, said):
    with pytest.raises(SpecError, match=said):
        figure(tmp_path, picture)


def test_figures_of_the_paper():
    shown = {table.name: table.picture.kind for table in find_tables(None, "all") if table.picture}
    assert shown == {
        "figure1": "maps", "figure4": "maps", "figure5": "ranking", "figure6": "masks", "figure8": "maps", "figure9": "ranking",
    }  # fmt: skip
