"""Cross-domain tables: one training or checkpoint a row, evaluated on the data set of every column."""

import csv
import hashlib
import io
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from bdbnet.config import ConfigError, compose_settings
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.reproduction import running
from bdbnet.reproduction.budget import read_budget
from bdbnet.reproduction.cells import State, digest_of_files
from bdbnet.reproduction.claims import read_claims
from bdbnet.reproduction.cross_domain import column_metrics
from bdbnet.reproduction.cross_spec import column_dataset
from bdbnet.reproduction.data_keys import data_key
from bdbnet.reproduction.measured import jobs_of, measure
from bdbnet.reproduction.running import run_missing
from bdbnet.reproduction.spec import SpecError, read_table
from bdbnet.reproduction.writing import refuse_other_tables, reproduction_grid, write_tables
from bdbnet.results import LAST, RESULT, Protocol, Result

PEOPLE = (
    "synthetic_reid dataset.options.image_size=[32,16] dataset.options.train_identities=4 dataset.options.test_identities=3 "
    "dataset.options.cameras=2 dataset.options.images_per_camera=2 dataset.options.distractors=1 dataset.options.workers=1 "
    "dataset.image_size=[32,16]"
)
OTHERS = f"{PEOPLE} dataset.options.seed=1"
OBJECTS = (
    "synthetic_retrieval dataset.options.image_size=[32,32] dataset.options.train_classes=4 dataset.options.test_classes=3 "
    "dataset.options.images_per_class=3 dataset.options.workers=1"
)
TABLE = f"""
kind: cross_domain
title: Toys
columns:
  people: {{dataset: "{PEOPLE}", metrics: [rank1, mAP]}}
  others: {{dataset: "{OTHERS}", metrics: [rank1]}}
  objects: {{dataset: "{OBJECTS}", metrics: [recall@1]}}
  market1501: [rank1]
rows:
  - name: of people
    run: ['dataset=["{PEOPLE}"]']
  - name: of both
    run: ['dataset=["{PEOPLE}","{OTHERS}"]']
  - name: Somebody's
    paper: {{people: [90.0, 70.0]}}
"""
BUDGET = """
title: toy size
compare: nothing
datasets: {market1501: null}
overrides:
  - backbone=osnet_x0_25
  - model=baseline
  - sampler.batch_size=8
  - trainer.max_epochs=1
  - trainer.precision=32-true
  - trainer.accelerator=cpu
  - callbacks.progress=false
  - evaluation.every_n_epochs=100
  - loading.num_workers=0
keep_checkpoints: true
"""


def table_of(tmp_path: Path, text: str = TABLE, name: str = "toys"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return read_table(path)


@pytest.fixture
def budget(toy_data, tmp_path):
    (tmp_path / "toy.yaml").write_text(BUDGET)
    places = {"data_root": str(toy_data), "weights_root": str(tmp_path / "weights"), "overrides": []}
    return read_budget(str(tmp_path / "toy.yaml"), OmegaConf.create(places))


@pytest.fixture
def look(budget, tmp_path):
    return lambda table, seeds=(1,): measure(table, budget, tmp_path / "runs", seeds)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def trained(look, tmp_path, kept):
    """The table whose two trainings are done: trained once for the tests of one process, and copied for each."""
    table = table_of(tmp_path)
    if kept.exists():
        shutil.copytree(kept, tmp_path / "runs")
    else:
        runs = run_missing(jobs_of([look(table)], [1]), say=lambda _: None)
        assert [run.state for run in runs] == [State.DONE] * 2
        shutil.copytree(tmp_path / "runs", kept)
    return table


def on(entry: str, checkpoint: Path, budget, folder: Path) -> Result:
    """What ``bdbnet.evaluate`` finds."""
    first, *words = shlex.split(entry)
    config = compose_settings(
        "evaluate",
        [f'checkpoint="{checkpoint}"', f'data_root="{budget.places["data_root"]}"', f"dataset={first}", *words,
         "evaluation.top_k=0", "trainer.accelerator=cpu", "loading.num_workers=0", "run_name=test"],
    )  # fmt: skip
    return evaluate(config, folder)


def test_a_row_is_one_training_with_the_numbers_of_every_column(trained, look, budget, tmp_path):
    measured = look(trained)
    assert [job.cell.folder for job in jobs_of([measured], [1])] == [
        measured.entries[row, "people"].cell.folder for row in (0, 1)
    ]
    assert [job.places for job in jobs_of([measured], [1])] == [("toys: of people",), ("toys: of both",)]
    for row in (0, 1):
        checkpoint = measured.entries[row, "people"].counted[0].folder / LAST
        for column, entry in (("people", PEOPLE), ("others", OTHERS), ("objects", OBJECTS)):
            alone = on(entry, checkpoint, budget, tmp_path / f"{row}{column}").metrics
            for metric in trained.columns[column]:
                assert measured.entries[row, column].ours(metric).mean == pytest.approx(alone[metric])
    own = {(row, column): entry.own for (row, column), entry in measured.entries.items()}
    assert [own[0, column] for column in trained.columns] == [True, False, False, False]
    assert [own[1, column] for column in trained.columns] == [True, True, False, False]
    assert own[2, "people"] is None


def test_the_matrix_in_every_form(trained, look, tmp_path):
    measured = look(trained)
    grid = reproduction_grid(measured)
    assert grid.heads == [
        "Network",
        "people Rank-1",
        "people mAP",
        "others Rank-1",
        "objects Recall@1",
        "market1501 Rank-1",
    ]
    first, both, stated = grid.rows
    assert re.fullmatch(r"[\d.]+ \*", first[1])
    assert re.fullmatch(r"[\d.]+", first[3])
    assert re.fullmatch(r"[\d.]+ \*", both[3])
    assert first[5] == both[5] == "data absent"
    assert stated == ["Somebody's, published", "90.0", "70.0", "-", "-", "-"]
    assert "* own domain: the network was trained on this data set." in grid.notes
    assert "Budget toy: toy size." in grid.notes
    assert any(note.startswith("2 trainings, ") for note in grid.notes)
    assert any(
        note.endswith("python -m bdbnet.prepare dataset=market1501 --help explains how to get it")
        for note in grid.notes
    )
    refuse_other_tables([measured], tmp_path / "out", tmp_path / "runs")
    page, *files = write_tables([measured], tmp_path / "out", tmp_path / "runs")
    assert {file.name for file in files} == {"toys.md", "toys.csv", "toys.tex", "toys.pdf", "toys.png"}
    text = page.read_text()
    assert text.count("<picture>") == 1
    shown = first[1].removesuffix(" *")
    assert f"A frame: trained on this data set. of people: people Rank-1 {shown}, others Rank-1" in text
    for form in ("toys.md", "toys.tex"):
        assert shown in (tmp_path / "out" / form).read_text()
    lines = [*csv.DictReader(io.StringIO((tmp_path / "out" / "toys.csv").read_text()))]
    found = {(line["row"], line["dataset"], line["metric"]): line for line in lines}
    line = found["of people", "people", "rank1"]
    assert (f"{float(line['ours']):.1f}", line["own_domain"], line["state"], line["measured_on"]) == (
        shown,
        "yes",
        "done",
        "people",
    )
    assert float(line["processor_seconds"]) > 0
    assert found["of both", "objects", "recall@1"]["own_domain"] == "no"
    assert found["of people", "market1501", "rank1"]["state"] == "data absent"
    other = replace(trained, cross=dict(trained.cross) | {"others": f"{PEOPLE} dataset.options.seed=2"})
    with pytest.raises(ConfigError, match=r"toys\.md holds .* table was"):
        refuse_other_tables([look(other)], tmp_path / "out", tmp_path / "runs")


def test_a_column_that_is_added_is_evaluated_from_the_last_checkpoint(trained, look, budget, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "train", None)  # nothing is trained again
    third = f"{PEOPLE} dataset.options.seed=2"
    more = table_of(
        tmp_path, TABLE.replace("  market1501: [rank1]\n", f'  third: {{dataset: "{third}", metrics: [mAP]}}\n')
    )
    jobs = jobs_of([look(more)], [1])
    assert [job.places for job in jobs] == [
        (f"toys: {row}{what}",) for row in ("of people", "of both") for what in ("", ", evaluated on third")
    ]
    assert [run.state for run in run_missing(jobs)] == [State.DONE] * 4
    measured = look(more)
    checkpoint = measured.entries[0, "people"].counted[0].folder / LAST
    alone = on(third, checkpoint, budget, tmp_path / "alone").metrics
    assert measured.entries[0, "third"].ours("mAP").mean == pytest.approx(alone["mAP"])
    notes = reproduction_grid(measured).notes
    assert any(note.startswith("2 trainings and 2 evaluations, ") for note in notes)
    for path in tmp_path.glob(f"runs/*/*/*/{LAST}"):
        path.unlink()
    assert look(more).entries[0, "third"].state is State.OPEN
    assert any(
        "trained before third was there to be evaluated on" in note for note in reproduction_grid(look(more)).notes
    )
    assert len(jobs_of([look(more)], [1])) == 2


CHECKPOINTS = f"""
kind: cross_domain
title: Weights
columns:
  people: {{dataset: "{PEOPLE}", metrics: [rank1]}}
  objects: {{dataset: "{OBJECTS}", metrics: [recall@1, r_precision]}}
rows:
  - name: a network
    checkpoint: ${{weights_root}}/network.ckpt
    trained_on: [people]
"""


def test_a_checkpoint_is_evaluated_once_on_every_column(trained, look, budget, tmp_path, capsys):
    checkpoint = tmp_path / "weights" / "network.ckpt"
    checkpoint.parent.mkdir()
    shutil.copy(look(trained).entries[0, "people"].counted[0].folder / LAST, checkpoint)
    table = table_of(tmp_path, CHECKPOINTS, "weights")
    jobs = jobs_of([look(table, (1, 2))], [1, 2])
    assert [(job.seed, job.places) for job in jobs] == [
        (1, ("weights: a network, evaluated on people",)), (1, ("weights: a network, evaluated on objects",)),
    ]  # fmt: skip
    runs = run_missing(jobs)
    assert [run.state for run in runs] == [State.DONE] * 2
    measured = look(table)
    assert [measured.entries[0, column].own for column in table.columns] == [True, False]
    for column, entry in (("people", PEOPLE), ("objects", OBJECTS)):
        alone = on(entry, checkpoint, budget, tmp_path / column).metrics
        for metric in table.columns[column]:
            assert measured.entries[0, column].ours(metric).mean == pytest.approx(alone[metric])
    before = [(run.folder / RESULT).stat().st_mtime_ns for run in runs]
    assert [run.state for run in run_missing(jobs_of([measured], [1]))] == [State.DONE] * 2
    assert [(run.folder / RESULT).stat().st_mtime_ns for run in runs] == before
    (runs[0].folder / RESULT).write_text("{")  # by half
    assert look(table).entries[0, "people"].state is State.STARTED
    assert [run.state for run in run_missing(jobs_of([look(table)], [1]))] == [State.DONE] * 2
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"another": 1}, checkpoint)
    assert {entry.state for entry in look(table)} == {State.OPEN}  # another file under the same name


def test_an_evaluation_by_the_networks_own_distance_counts(trained, look, tmp_path):
    checkpoint = tmp_path / "weights" / "network.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    table = table_of(tmp_path, CHECKPOINTS, "weights")
    cell = look(table).entries[0, "people"].cell
    config = {
        "evaluation": {"normalize": "none", "precision": "32-true", "query_pooling": "mean", "distance": "cosine"}
    }
    made = {"kind": "evaluate", "metrics": {"rank1": 0.5}, "protocol": Protocol("reid", "people", (32, 16)), "seed": 1}
    for evaluation, state in (({}, State.DONE), ({"flip": True}, State.OTHER)):
        changed = config | {"evaluation": config["evaluation"] | evaluation}
        Result(**made, checkpoint="network.ckpt", data={}, config=changed).write(cell.folder / "seed=1" / RESULT)
        assert look(table).entries[0, "people"].state is state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("market1501: [rank1]", "no_such_set: [rank1]"), "column no_such_set: dataset: no_such_set"),
        (("market1501: [rank1]", "market1501: [recall@1]"), "column market1501: metrics: recall@1: .*protocol=reid; give rank1"),
        (("metrics: [recall@1]", "metrics: [mAP]"), "column objects: metrics: mAP: .*protocol=retrieval; give rank1"),
        (("market1501: [rank1]", "market1501: [rank]"), "column market1501: metrics: rank: there is no such metric"),
        (("market1501: [rank1]", "market1501: rank1"), "column market1501: metrics: give a list"),
        (("market1501: [rank1]", "market1501: {metric: [rank1]}"), "column market1501: give dataset"),
        (("market1501: [rank1]", "mine: {dataset: table dataset.manifest=a.csv, metrics: [mAP, recall@1]}"),
         "mAP and recall@1 are of"),
        (("market1501: [rank1]", "again: {dataset: market1501, metrics: [rank1]}\n  market1501: [mAP]"),
         "column market1501: the same data set as column again"),
        (("- name: of both", "- name: of people"), "two rows have the name of people"),
        (("title: Toys", "title: Toys\nx: {key: a}"), "x: not in a table of kind cross_domain"),
        (("kind: cross_domain", "kind: crossed"), "kind: crossed: choose statistics or cross_domain"),
        (("- name: Somebody's", "- name: Somebody's\n    colour: red"), "row Somebody's: unknown key colour"),
        (("- name: Somebody's", "- name: Somebody's\n    run: [model=bdb]"), "row Somebody's: run: name what is trained on"),
        (("- name: Somebody's", "- name: Somebody's\n    run: [dataset=market1501, 'union=[a]']"),
         "leave evaluations= and union="),
        (("- name: Somebody's", "- name: Somebody's\n    run: [dataset=market1501]\n    trained_on: [a]"), "goes with checkpoint"),
        (("- name: Somebody's", "- name: Somebody's\n    checkpoint: 3"), "row Somebody's: checkpoint: 3: give the path"),
        (("- name: Somebody's", "- name: Somebody's\n    checkpoint: a.pth\n    run: [dataset=cub200]"), "leave dataset= out"),
        (("- name: Somebody's", "- name: Somebody's\n    checkpoint: a.pth\n    trained_on: people"), "trained_on: give a list"),
        (("- name: Somebody's", "- name: Somebody's\n    checkpoint: a.pth\n    trained_on: [a, a]"), "a data set is there twice"),
        ((TABLE[TABLE.index("rows:"):], "rows: []"), "rows: give a list"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_row_or_column(tmp_path, change, message):
    assert change[0] in TABLE
    with pytest.raises(SpecError, match=message) as error:
        table_of(tmp_path, TABLE.replace(*change, 1))
    assert str(tmp_path / "toys.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("- name: Somebody's", "- name: Somebody's\n    checkpoint: ${weights_root}/a.pth"),
         "toys, row Somebody's: .*weights/a.pth: no such file"),
        ((f'"{PEOPLE}","{OTHERS}"', f'"{PEOPLE}","{PEOPLE}"'),
         r"toys, row of both: dataset=\[...\]: synthetic_reid.* is in the list twice"),
        (("- name: Somebody's", "- name: Somebody's\n    run: [dataset=market1501, colour=red]"), "toys, row Somebody's: .*colour"),
    ],
)  # fmt: skip
def test_a_row_that_can_not_be_looked_up_is_named(tmp_path, look, change, message):
    with pytest.raises(ConfigError, match=message):
        look(table_of(tmp_path, TABLE.replace(*change, 1)))


def test_a_row_may_name_weights_by_their_folder(tmp_path, look):
    weights = "'backbone.weights=${weights_root}/a.pth'"
    row = f"- name: Somebody's\n    run: [dataset=market1501, {weights}]"
    measured = look(table_of(tmp_path, TABLE.replace("- name: Somebody's", row)))
    cell = measured.entries[2, "people"].cell
    assert f"backbone.weights={tmp_path}/weights/a.pth" in cell.overrides
    assert cell.absent == f"{tmp_path}/weights/a.pth: no such file"


def test_numbers_on_further_sets_are_found_by_their_order():
    metrics = {"rank1": 0.5}
    config = {
        "dataset": {"name": "market1501", "options": {}},
        "data_root": "data",
        "union": ["msmt17_v2", "dukemtmc_reid"],
        "evaluations": ["cuhk03_detect", "table dataset.manifest=a.csv"],
    }
    made = {
        "kind": "train",
        "metrics": metrics,
        "protocol": Protocol("reid", "market1501", (32, 16)),
        "checkpoint": "last",
    }
    names = ("msmt17_v2", "dukemtmc_reid", "cuhk03_detect", "a")
    result = Result(
        **made, data={}, config=config, seed=1, further={name: {"rank1": number / 10} for number, name in enumerate(names)}
    )  # fmt: skip

    def found(entry: str, of: Result = result):
        return column_metrics(of, data_key(column_dataset(entry, "elsewhere")))

    assert found("market1501") == metrics
    assert found("dukemtmc_reid dataset.image_size=[64,32]") == {"rank1": 0.1}
    assert found("table dataset.manifest=/b/a.csv") == {"rank1": 0.3}
    assert found("table dataset.manifest=b.csv") is None
    untested = replace(result, further={name: of for name, of in result.further.items() if name != "msmt17_v2"})
    assert found("cuhk03_detect", untested) == {"rank1": 0.2}
    assert found("dukemtmc_reid", untested) is None  # one of the two members has no test part


def test_a_folder_of_weights_is_known_by_all_its_files(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    first = digest_of_files(tmp_path)
    assert digest_of_files(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "b").write_bytes(b"b")
    assert digest_of_files(tmp_path) != first
    assert digest_of_files(tmp_path / "nothing") == ""


def test_claims_are_not_made_on_a_cross_domain_table(tmp_path):
    table_of(tmp_path)
    (tmp_path / "claims.yaml").write_text(
        "title: T\nclaims:\n- {name: N, source: S, table: toys.yaml, dataset: people, pairs: [{above: of both, below: of people}]}"
    )
    with pytest.raises(SpecError, match=r"claim N: table: .*toys\.yaml: a cross-domain table"):
        read_claims(str(tmp_path / "claims.yaml"))


def test_a_column_whose_data_give_other_metrics_says_what_was_measured(trained, look, tmp_path, budget):
    """`protocol: auto` is settled by the images: those without cameras have no Rank-1."""
    (tmp_path / "photos").mkdir()
    rows = ["path,label,split"]
    for number in range(4):
        Image.new("RGB", (8, 16), (number * 60, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
        rows.append(f"{number}.png,{number // 2},test")
    (tmp_path / "photos" / "mine.csv").write_text("\n".join(rows))
    column = f"  mine: {{dataset: table dataset.manifest={tmp_path}/photos/mine.csv, metrics: [rank1]}}\n"
    table = table_of(tmp_path, TABLE.replace("  market1501: [rank1]\n", column))
    run_missing(jobs_of([look(table)], [1]), say=lambda _: None)
    grid = reproduction_grid(look(table))
    assert grid.rows[0][-1] == "not listed"
    assert any(note.startswith("of people on mine has no rank1: measured are recall@1, ") for note in grid.notes)
