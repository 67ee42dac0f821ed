"""Tables of the paper at toy size, by the command that users type.

One table is trained, which holds every drop layer: `reproduce all budget=smoke` takes several minutes. Of the others the cells
are composed and listed.
"""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest

from bdbnet.reproduce import main, spelled_out
from forked_commands import Command, run

CHECKOUT = Path(__file__).resolve().parents[2]
#: Folders of pages that are written from kept records.
RESULTS = [page.parent.relative_to(CHECKOUT) for page in sorted((CHECKOUT / "experiments").rglob("RESULTS.md"))]

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def reproduce(tmp_path, tmp_path_factory):
    """`reproduce("table=3", ...)`: the command to its end, typed in `tmp_path`."""
    logs = tmp_path_factory.mktemp("logs")
    return lambda *arguments: run("reproduce", *spelled_out(arguments), folder=tmp_path, log=logs / "reproduce")


def test_every_cell_of_a_table_trains_and_is_evaluated_and_none_twice(reproduce, tmp_path):
    asked = "table=[3,6]", "budget=smoke", "overrides=[trainer.max_epochs=1]"
    first = reproduce(*asked)
    assert first.returncode == 0, first.stderr[-2000:]
    tables = sorted((tmp_path / "outputs" / "reproduce" / "smoke").glob("*.csv"))
    assert [path.stem for path in tables] == ["table3", "table6"]
    cells = [line for path in tables if path.stem != "table6" for line in csv.DictReader(path.open()) if line["folder"]]
    assert {(line["state"], line["seeds"]) for line in cells} == {("done", "1")}, first.stdout[-3000:]
    assert all(0 <= float(line["ours"]) <= 100 for line in cells)
    assert not any(line["difference"] for line in cells)  # toy numbers are not the paper's to be compared with
    begun = [line for line in first.stdout.splitlines() if line.startswith("run folder: ")]
    assert len(begun) == len(set(begun)) == len({line["folder"] for line in cells})

    again = reproduce(*asked)
    assert again.returncode == 0
    assert "run folder: " not in again.stdout


def test_every_cell_of_every_table_can_be_composed(reproduce, tmp_path):
    done = reproduce("all", "budget=smoke", "list=true")
    assert done.returncode == 0, done.stderr[-2000:]
    tables = sorted((tmp_path / "outputs" / "reproduce" / "smoke").glob("*.csv"))
    assert [path.stem for path in tables if path.stem != "table6"] == [
        *(f"figure{number}" for number in ("1", "4", "5", "6", "7a", "7b", "8", "9")),
        *(f"table{number}" for number in ("1", "2", "3", "4", "5", "7a", "7b", "7c", "7d", "8"))
    ]  # fmt: skip
    cells = [line for path in tables if path.stem != "table6" for line in csv.DictReader(path.open()) if line["folder"]]
    assert {line["state"] for line in cells} == {"not measured"}
    assert "run folder: " not in done.stdout


def test_without_data_every_cell_says_so_and_nothing_is_trained(reproduce, tmp_path):
    done = reproduce("table=[3,6]")
    assert done.returncode == 1, done.stderr[-2000:]
    assert "trainings have no result:" in done.stderr
    assert "data absent: data/cuhk03: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert "data absent" in done.stdout
    assert "data/cuhk03: no such folder; python -m bdbnet.prepare dataset=cuhk03_detect --help" in done.stdout
    assert "run folder: " not in done.stdout
    assert not list(tmp_path.rglob("result.json"))


def test_without_its_weights_nothing_looks_like_success(reproduce, tmp_path):
    budget = (CHECKOUT / "experiments" / "budgets" / "smoke.yaml").read_text()
    weights = "backbone.weights=${weights_root}/osnet.pth"
    (tmp_path / "mine.yaml").write_text(budget.replace("backbone.weights=none", weights))
    assert weights in (tmp_path / "mine.yaml").read_text()
    done = reproduce("table=5", "budget=mine.yaml", "weights_root=files")
    assert done.returncode == 1
    found = r"error: (\d+) of \1 trainings have no result:\n  \1 x data absent: files/osnet.pth: no such file"
    assert re.search(found, done.stderr), done.stderr
    assert "weights_root=files: put them there, or give weights_root=<their folder>" in done.stderr


WRONG = [
    ([], "table= and figure= are missing"),
    (["table=9"], "Choose from 1, 2, 3, 4, 5, 6, 7a, 7b, 7c, 7d, 8, or all"),
    (["figure=3"], "Choose from 1, 4, 5, 6, 7a, 7b, 8, 9, or all"),
    (["claims=mine"], "claims=mine: no such file; choose one of paper, or give a file of your own"),
    (["table=3", "budget=huge"], "choose one of cpu, cpu_long, demo, full, random, smoke"),
    (["table=3", "seeds=1"], "give a list of different whole numbers"),
    (["table=3", "seeds=[1,1]"], "give a list of different whole numbers"),
    (["table=3", "overrides=seed=2"], "set by the command itself"),
    (["table=3", "overrides=[seed=2]"], "set by the command itself"),
    (["table=3", "overrides=[colour=red]"], "colour"),
    (["table=3", "max_hours=soon"], "max_hours=soon: give a number of at least 0"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_end_with_one_clear_line(arguments, message, refusal):
    assert message in refusal(main, spelled_out(arguments))


def all_but_settings(folder: str, names: list[str]) -> list[str]:
    """What `shutil.copytree` leaves out: everything but settings, and the records, which are linked."""
    kept = [name for name in names if name.endswith(".yaml") or Path(folder, name).is_dir()]
    return sorted(set(names) - (set(kept) - {"measured"}))


@pytest.mark.parametrize("folder", RESULTS, ids=str)
def test_pages_of_kept_records_are_what_their_command_writes(folder, tmp_path):
    kept = {
        page.name: page.read_text()
        for page in (CHECKOUT / folder / name for name in ("RESULTS.md", "CLAIMS.md"))
        if page.is_file()
    }
    (command,) = {re.search(r"Generated by `python -m bdbnet\.reproduce ([^`]*)`", text)[1] for text in kept.values()}
    shutil.copytree(CHECKOUT / "experiments", tmp_path / "experiments", ignore=all_but_settings)
    (tmp_path / "experiments" / "measured").symlink_to(CHECKOUT / "experiments" / "measured")
    process = Command(
        "reproduce", *spelled_out(shlex.split(command)), folder=tmp_path, log=tmp_path / "log", OMP_NUM_THREADS="1"
    )
    done = process.wait(1800)  # every cell of every table is composed
    assert done.returncode == 0, done.stderr
    for name, text in kept.items():
        assert (tmp_path / folder / name).read_text() == text
