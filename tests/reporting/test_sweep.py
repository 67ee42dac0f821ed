import csv
import json
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bdbnet.reporting import ReportError
from bdbnet.reporting.settings import settings_of, shown, varying_settings
from bdbnet.reporting.sweep import Sweep, is_sweep, read_sweep
from bdbnet.reporting.sweep_page import write_sweep_report
from bdbnet.results import Protocol, Result, read_result

PROTOCOL = Protocol("reid", "drawn", (32, 16))
VERSIONS = {"bdbnet": "1.0"}
MACHINE = {"processor": "P", "cores": 2, "gpus": []}


def config_of(seed: int, height: float | None = 0.3, layer: str = "BatchDropBlock", **groups: object) -> dict:
    dropping: dict = {"_target_": "torch.nn.Identity"}
    if height is not None:
        dropping = {"_target_": f"bdbnet.models.{layer}", "height_ratio": height, "width_ratio": 1.0, "seed": seed}
    return {
        "seed": seed,
        "run_name": f"anything{seed}{height}",
        "loading": {"num_workers": seed},
        "dropping": dropping,
        "schedule": {"max_epochs": 2},
        "trainer": {"max_epochs": 2},
    } | groups


def add(sweep: Path, name: str, config: dict, rank1: float = 0.5, **fields: object) -> Path:
    metrics = {"rank1": rank1, "mAP": rank1 / 2, "valid_queries": 9.0}
    made = {"kind": "train", "metrics": metrics, "protocol": PROTOCOL, "checkpoint": "last", "epochs": 2}
    made |= {"data": {"fingerprint": "f" * 64}, "config": config, "seed": config["seed"], "seconds": {"train": 90.0}}
    made |= {"versions": VERSIONS, "hardware": MACHINE} | fields
    return Result(**made).write(sweep / name / "result.json")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three ratios of two seeds each, the middle one best."""
    folder = tmp_path / "ratios"
    for height, rank1 in ((0.1, 0.6), (0.5, 0.8), (1.0, 0.7)):
        for seed in (1, 2):
            add(folder, f"height={height},seed={seed}", config_of(seed, height), rank1 + 0.01 * seed)
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    return folder


def values(sweep: Sweep) -> list[list[tuple]]:
    return [[configuration.values for configuration in table.configurations] for table in sweep.tables]


class Links(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict] = []
        self.text = ""
        self.source = page.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data + " "


def page_of(folder: Path) -> Links:
    return Links(write_sweep_report(folder)[1][0])


def test_runs_equal_in_all_but_their_seed_are_one_configuration(sweep):
    read = read_sweep(sweep)
    (table,) = read.tables
    assert table.settings == ["dropping.height_ratio"]
    assert values(read) == [[(0.1,), (0.5,), (1.0,)]]
    found = table.configurations[1].metric("rank1")
    assert (found.mean, found.std, found.count) == (pytest.approx(0.815), pytest.approx(0.00707, abs=1e-5), 2)
    assert (table.differs, table.remarks, read.unfinished, read.unreadable) == ("", [], [], [])


def test_numbers_are_sorted_as_numbers_and_equal_ones_are_one(tmp_path):
    for name, lr in (("a", 10.0), ("b", 9), ("c", 9.0), ("d", 1e-4)):
        add(tmp_path, name, config_of(1, optimizer={"lr": lr}))
    assert [float(lr) for ((lr,),) in zip(*values(read_sweep(tmp_path)))] == [1e-4, 9, 10]


def test_a_choice_is_told_once_with_what_comes_and_goes_with_it(tmp_path):
    for seed in (1, 2):
        add(tmp_path, f"none{seed}", config_of(seed, None))
        for layer in ("Dropout", "BatchDropBlock"):
            add(tmp_path, f"{layer}{seed}", config_of(seed, layer=layer))
    (table,) = read_sweep(tmp_path).tables
    assert table.settings == ["dropping._target_"]
    assert [c.values for c in table.configurations] == [("BatchDropBlock",), ("Dropout",), ("Identity",)]
    assert table.remarks == []


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        # the schedule's epochs follow the trainer's, unless they are set
        ([{"schedule.max_epochs": n, "trainer.max_epochs": n} for n in (1, 2)], ["trainer.max_epochs"]),
        ([{"schedule.max_epochs": n, "trainer.max_epochs": 1} for n in (1, 2)], ["schedule.max_epochs"]),
        # the dataset's ratio counts in the drop layer
        ([{"dataset.drop_ratio": [h, 1.0], "dropping.height_ratio": h} for h in (0.1, 0.2)], ["dropping.height_ratio"]),
        # seeds, also of a loss that one run lacks
        ([{"seed": 1, "loss.metric.seed": 1}, {"seed": 2, "loss.metric.seed": 2}, {"seed": 3}], []),
        # a seed that is set apart is a setting
        ([{"seed": 1, "dropping.seed": s} for s in (1, 2)], ["dropping.seed"]),
        # two settings that change together stay two
        (
            [{"optimizer.lr": 0.1, "loss.margin": 1}, {"optimizer.lr": 0.2, "loss.margin": 2}],
            ["optimizer.lr", "loss.margin"],
        ),
        # an added setting next to another that varies
        ([{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2, "loss.extra": 1}], ["optimizer.lr", "loss.extra"]),
        # what one class has and the other lacks comes with the class; what both have is a setting
        ([{"loss._target_": "A", "loss.bins": 5}, {"loss._target_": "B"}], ["loss._target_"]),
        (
            [{"loss._target_": "A", "loss.margin": 1}, {"loss._target_": "B", "loss.margin": 2}],
            ["loss._target_", "loss.margin"],
        ),
        ([{"a": True}, {"a": 1}, {"a": None}, {"a": "1"}], ["a"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "trained_with."])
def test_settings_that_say_nothing_new_are_left_out(rows, keys, prefix):
    told = [settings_of({f"{prefix}{key}": value for key, value in row.items()}) for row in rows]
    assert varying_settings(told).keys == [f"{prefix}{key}" for key in keys]


def test_a_backbone_of_several_sizes_is_told_by_class_and_name():
    backbones = [
        ("ResNetBackbone", "resnet18"),
        ("TimmBackbone", "resnet18"),
        ("ResNetBackbone", "resnet50"),
        ("OSNetBackbone", None),
    ]
    rows = [{"backbone._target_": kind} | ({"backbone.name": name} if name else {}) for kind, name in backbones]
    varying = varying_settings(rows)
    assert varying.keys == ["backbone._target_", "backbone.name"]
    assert varying.rows[-1] == ["OSNetBackbone", "-"]
    assert varying_settings(rows[::3]).keys == ["backbone._target_"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (1e-5, "1e-05"), ([64, 32], "[64, 32]"), ({}, "()"), ({"_target_": "a.B"}, "B"), (0.123456789, "0.123456789")],
)  # fmt: skip
def test_values_are_shown_as_they_are_typed(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("fields", "differs"),
    [
        ({"protocol": replace(PROTOCOL, image_size=(64, 32))}, "image size 64 x 32"),
        ({"protocol": replace(PROTOCOL, rerank={"k1": 20, "k2": 6})}, "re-ranking k1 20, k2 6"),
        ({"data": {"fingerprint": "e" * 64}}, "data eeeeeeeeeeee"),
        ({"protocol": replace(PROTOCOL, dataset="other"), "data": {"fingerprint": "e" * 64}}, "dataset other"),
        ({"versions": {"bdbnet": "2.0"}}, "bdbnet 2.0"),
        ({"kind": "evaluate"}, "kind evaluate"),
    ],
)
def test_what_may_not_be_compared_stands_in_tables_of_its_own(sweep, fields, differs):
    add(sweep, "other", config_of(1, 0.1), **fields)
    tables = read_sweep(sweep).tables
    assert [len(table.runs) for table in tables] == [6, 1]
    assert tables[1].differs == differs
    text, _ = write_sweep_report(sweep)
    assert f"ratios: {differs}" in text


def test_other_data_are_told_by_their_settings(tmp_path):
    for name in "ab":
        config = config_of(1, dataset={"name": "synthetic_reid", "options": {"occlusion": ord(name) / 100}})
        add(tmp_path, name, config, data={"fingerprint": name * 64})
    remarks = [table.remarks for table in read_sweep(tmp_path).tables]
    assert remarks == [[f"Data of this table: dataset.options.occlusion=0.{n}."] for n in (97, 98)]


def test_evaluated_checkpoints_are_grouped_by_their_training(tmp_path):
    for height in (0.1, 0.3):
        for seed in (1, 2):
            config = {"seed": 1, "checkpoint": f"x/{height}{seed}/last.ckpt", "trained_with": config_of(seed, height)}
            add(tmp_path, f"{height}{seed}", config, kind="evaluate", checkpoint="last.ckpt", seconds={"evaluate": 3.0})
    (table,) = read_sweep(tmp_path).tables
    assert table.settings == ["trained_with.dropping.height_ratio"]
    assert [c.metric("rank1").count for c in table.configurations] == [2, 2]
    assert table.configurations[0].seconds == 3.0
    assert re.search(r"dropping\.height_ratio +Rank-1 +mAP +seeds +time\n", write_sweep_report(tmp_path)[0])


def test_repeats_early_ends_and_machines_are_remarked(sweep):
    add(sweep, "again", config_of(1, 0.1), epochs=1, hardware={"gpus": ["G"]})
    (table,) = read_sweep(sweep).tables
    assert "Seed 1 was run 2 times with equal settings, all count: again, height=0.1,seed=1." in table.remarks
    assert "again stopped after epoch 1 of 2." in table.remarks
    assert "Times are of different machines: G; P, 2 cores." in table.remarks


def test_runs_without_a_result_are_named_with_their_reason(sweep):
    (sweep / "half").mkdir()
    (sweep / "half/result.json").write_text('{"schema"')
    (sweep / "stopped").mkdir()
    (sweep / "stopped/history.csv").write_text("epoch,loss\n1,3\n2,2\n")
    (sweep / "deep/failed/.hydra").mkdir(parents=True)
    (sweep / "notes").mkdir()
    read = read_sweep(sweep)
    assert read.unfinished == [
        ("deep/failed", "no epoch finished"), ("stopped", "running, or stopped after epoch 2"),
    ]  # fmt: skip
    ((file, reason),) = read.unreadable
    assert file == "half/result.json"
    assert reason.startswith("not a complete result")
    text, (page, _, markdown, _) = write_sweep_report(sweep)
    assert "without a result: stopped: running, or stopped after epoch 2." in text
    assert "- `deep/failed: no epoch finished.`" in markdown.read_text()
    assert "6 runs · 3 configurations · 3 without a result" in Links(page).text


def test_an_empty_sweep_and_one_in_which_all_failed_are_told_apart(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(ReportError, match="an empty sweep"):
        read_sweep(tmp_path)
    for name in "abcdefg":
        (tmp_path / name / ".hydra").mkdir(parents=True)
    with pytest.raises(
        ReportError, match=r"none of the 7 runs.*\n  a: no epoch finished\n(.*\n){4}  and 2 more\n.*last"
    ):
        read_sweep(tmp_path)


def test_a_sweep_is_told_from_a_run(sweep, tmp_path):
    assert is_sweep(sweep)
    assert is_sweep(tmp_path)
    assert not is_sweep(sweep / "height=0.1,seed=1")
    assert not is_sweep(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert not is_sweep(tmp_path / "empty")


def test_files_hold_the_table(sweep):
    text, paths = write_sweep_report(sweep)
    assert [path.name for path in paths] == ["report.html", "sweep.csv", "sweep.md", "sweep.tex"]
    assert re.search(r"\n0\.5 +81\.5 ± 0\.7 +40\.8 ± 0\.4 +2 +1 min 30 s\n", text)
    rows = list(csv.DictReader(paths[1].open()))
    assert [row["dropping.height_ratio"] for row in rows] == ["0.1", "0.5", "1"]
    assert (rows[1]["rank1"], rows[1]["rank1_std"], rows[1]["seeds"]) == ("81.5000", "0.7071", "2")
    assert "| 0.5                   | **81.5 ± 0.7** |" in paths[2].read_text()
    assert r"0.5 & \textbf{81.5 $\pm$ 0.7} &" in paths[3].read_text()
    assert sorted(p.name for p in sweep.iterdir() if p.is_file()) == sorted([*(p.name for p in paths), "multirun.yaml"])


def test_page_has_plots_and_links_to_the_runs_alone(sweep):
    (sweep / "height=0.5,seed=2/report.html").touch()
    page = page_of(sweep)
    assert "default-src 'none'" in page.source
    assert len(page.images) == 2
    assert page.images[0]["alt"] == "Rank-1 by dropping.height_ratio: 0.1 61.5, 0.5 81.5, 1 71.5"
    assert len(page.links) == 6
    assert "./height%3D0.1%2Cseed%3D1" in page.links
    assert "./height%3D0.5%2Cseed%3D2/report.html" in page.links
    assert "http" not in page.source.replace("http-equiv", "")


def test_a_second_report_is_the_same(sweep):
    before = [path.read_bytes() for path in write_sweep_report(sweep)[1]]
    assert [path.read_bytes() for path in write_sweep_report(sweep)[1]] == before


def test_lines_are_the_other_settings_and_what_lacks_the_setting_is_named(tmp_path):
    for height in (0.1, 0.3):
        for layer in ("DropBlock", "BatchDropBlock"):
            add(tmp_path, f"{layer}{height}", config_of(1, height, layer))
    add(tmp_path, "none", config_of(1, None))
    page = page_of(tmp_path)
    assert page.images[0]["alt"].endswith("BatchDropBlock: 0.1 50.0, 0.3 50.0; DropBlock: 0.1 50.0, 0.3 50.0")
    assert "Not in the plot, because it has no dropping.height_ratio: Identity." in page.text


def test_settings_that_are_names_are_drawn_as_dots_and_one_configuration_not_at_all(tmp_path):
    add(tmp_path, "a", config_of(1))
    assert not page_of(tmp_path).images
    add(tmp_path, "b", config_of(1, layer="Dropout"), 0.25)
    images = page_of(tmp_path).images
    assert [image["alt"] for image in images] == [
        "Rank-1 by configuration: BatchDropBlock 50.0, Dropout 25.0",
        "mAP by configuration: BatchDropBlock 25.0, Dropout 12.5",
    ]


def test_many_lines_become_dots(tmp_path):
    for margin in range(9):
        for lr in range(10):
            add(tmp_path, f"{margin}{lr}", config_of(1, optimizer={"lr": lr}, loss={"margin": margin}))
    assert page_of(tmp_path).images[0]["alt"].startswith("Rank-1 by configuration: optimizer.lr=0, loss.margin=0 50.0")


def test_retrieval_shows_recall_at_1(sweep):
    for file in sweep.rglob("result.json"):
        metrics = {"recall@1": 0.5, "recall@2": 0.6, "valid_queries": 9.0}
        replace(read_result(file), protocol=replace(PROTOCOL, task="retrieval"), metrics=metrics).write(file)
    page = page_of(sweep)
    assert [image["alt"].partition(":")[0] for image in page.images] == ["Recall@1 by dropping.height_ratio"]
    assert "Recall@2" in page.text


def test_a_metric_that_only_some_runs_have_leaves_cells_empty(sweep):
    record = json.loads((sweep / "height=0.1,seed=1/result.json").read_text())
    record["metrics"]["rank20"] = 0.9
    (sweep / "height=0.1,seed=1/result.json").write_text(json.dumps(record))
    text, paths = write_sweep_report(sweep)
    assert re.search(r"\n0\.5 .* 40\.8 ± 0\.4 +- +2", text)
    assert [row["rank20"] for row in csv.DictReader(paths[1].open())] == ["90.0000", "", ""]


def test_texts_are_escaped(tmp_path):
    evil = '<script>alert("1")</script>'
    for number in (1, 2):
        folder = f"javascript:alert({number})"
        add(tmp_path, folder, config_of(1, loss={"name": f"{evil}{number}"}), protocol=replace(PROTOCOL, dataset=evil))
    page = page_of(tmp_path)
    assert "<script" not in page.source
    assert evil in page.text
    assert all(link.startswith("./javascript%3Aalert") for link in page.links)


def test_processor_time_has_a_column_where_runs_have_recorded_it(tmp_path):
    add(tmp_path, "a", config_of(1, 0.1), processor_seconds=100.0)
    add(tmp_path, "b", config_of(2, 0.1), processor_seconds=300.0)
    add(tmp_path, "c", config_of(1, 0.3))
    text, _ = write_sweep_report(tmp_path)
    assert re.search(r"seeds +train time +processor time\n", text)
    assert re.search(r" 2 +1 min 30 s +3 min 20 s\n", text)
    assert re.search(r" 1 +1 min 30 s +-\n", text)
    lines = [*csv.DictReader((tmp_path / "sweep.csv").open())]
    assert [line["processor_seconds"] for line in lines] == ["200.0000", ""]


def add_split(sweep: Path, name: str, split: int, seed: int, rank1: float, **fields: object) -> None:
    data = {"name": "cuhk03_label_old", "options": {"split": split}}
    protocol = replace(PROTOCOL, task="reid_single_shot", dataset="cuhk03_label_old", single_shot=100)
    made = {"protocol": protocol, "data": {"fingerprint": f"{split:02d}" * 32}} | fields
    add(sweep, name, made.pop("config", config_of(seed, dataset=data)), rank1, **made)


def test_splits_of_the_first_protocol_of_cuhk03_are_averaged(tmp_path):
    values = [0.5 + 0.01 * split for split in range(1, 21)]
    for split, value in enumerate(values, start=1):
        add_split(tmp_path, f"split={split}", split, 1, value)
    (table,) = read_sweep(tmp_path).tables
    (configuration,) = table.configurations
    measured = configuration.metric("rank1")
    assert measured.mean == pytest.approx(statistics.fmean(values))
    assert measured.std == pytest.approx(statistics.stdev(values))
    assert table.remarks == []
    text, _ = write_sweep_report(tmp_path)
    assert re.search(r"splits +seeds", text)
    assert re.search(r"60\.5 ± 5\.9 .* 20 of 20 +1 ", text)
    assert "Mean ± sample standard deviation over the splits." in text
    assert "over the seeds" not in text
    (line,) = csv.DictReader((tmp_path / "sweep.csv").open())
    assert (line["rank1"], line["splits"], line["seeds"]) == ("60.5000", "20", "1")
    assert ">Split</th>" in (tmp_path / "report.html").read_text()


def test_missing_repeated_and_changed_splits_are_told(tmp_path):
    add_split(tmp_path, "a", 1, 1, 0.4)
    add_split(tmp_path, "b", 1, 2, 0.6)
    add_split(tmp_path, "c", 2, 1, 0.7)
    add_split(tmp_path, "d", 2, 1, 0.9, data={"fingerprint": "f" * 64})
    (table,) = read_sweep(tmp_path).tables
    (configuration,) = table.configurations
    assert configuration.metric("rank1").mean == pytest.approx((0.5 + 0.8) / 2)  # of the splits' means
    first, second, third = table.remarks
    assert first == "Seed 1 of split 2 was run 2 times with equal settings, all count: c, d."
    assert second.startswith("Not the published protocol, which is the mean over all 20 splits: without split 3, 4, ")
    assert third == "Split 2 was measured on different data: c, d."


def test_checkpoints_that_are_evaluated_each_on_its_split_are_one_line(tmp_path):
    for split in (1, 2):
        data = {"name": "cuhk03_label_old", "options": {"split": split}}
        config = {"dataset": data, "seed": 1, "trained_with": config_of(1, dataset=data)}
        add_split(tmp_path, f"{split}", split, 1, split / 10, kind="evaluate", config=config)
    (table,) = read_sweep(tmp_path).tables
    (configuration,) = table.configurations
    assert configuration.splits == [1, 2]


def test_the_seeds_of_one_split_are_seeds(tmp_path):
    add_split(tmp_path, "a", 7, 1, 0.4)
    add_split(tmp_path, "b", 7, 2, 0.6)
    (table,) = read_sweep(tmp_path).tables
    assert table.configurations[0].metric("rank1").std == pytest.approx(statistics.stdev([0.4, 0.6]))
    assert "over the seeds" in write_sweep_report(tmp_path)[0]


def test_another_data_set_with_an_option_split_is_not_averaged(tmp_path):
    for split in (1, 2):
        data = {"name": "mine", "options": {"split": split}}
        add(tmp_path, f"{split}", config_of(1, dataset=data), data={"fingerprint": f"{split}" * 64})
    assert len(read_sweep(tmp_path).tables) == 2
