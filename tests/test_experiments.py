"""Presets: each opens with its command and the paper's numbers, and is what its name says."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import config_dir, instantiate
from bdbnet.reproduction.budget import Budget, read_budget
from bdbnet.reproduction.cells import compose_training
from bdbnet.reproduction.measured import measure
from bdbnet.reproduction.spec import Table, all_tables, read_table
from bdbnet.reproduction.writing import reproduction_grid
from bdbnet.results import metric_of

PRESETS = sorted((config_dir() / "experiment").glob("*.yaml"))
#: Small experiments on a CPU, described in folders of their own.
ELSEWHERE = {"cub100_squeezenet_cpu", "market1501_osnet_cpu", "demo"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*overrides, "run_name=x"])


def comment(path: Path) -> str:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_", path
    return "\n".join(line for line in lines[1:] if line.startswith("#"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_composes_and_opens_with_its_command(path):
    opening = comment(path)
    commands = re.findall(rf"python -m bdbnet\.train( -m)? experiment={path.stem}\b(.*)", opening)
    assert commands
    assert path.stem in ELSEWHERE or re.search(r"GPU.*time not measured", opening)
    dataset = re.search(r"dataset=\w+", commands[0][1])
    assert resolved(composed(f"experiment={path.stem}", *([dataset[0]] if dataset else [])))


def resolved(config: DictConfig) -> dict:
    """Everything but the logger, whose folder is known to a command alone."""
    kept = OmegaConf.masked_copy(config, [str(key) for key in config if key != "logger"])
    return OmegaConf.to_container(kept, resolve=True)


#: Of the cells that set more than their preset, one for each preset and keys; that all compose shows `reproduce all list=true`.
OVERRIDDEN = {
    (row.run[0], *(override.partition("=")[0] for override in row.run[1:])): row.run
    for table in all_tables()
    for row in table.rows
    if row.run and len(row.run) > 1
}


@pytest.mark.parametrize("run", OVERRIDDEN.values(), ids=" ".join)
def test_what_a_cell_sets_counts_over_its_preset(run):
    config = resolved(composed("dataset=market1501", *run))
    for key, value in (override.split("=") for override in run[1:]):
        group, name = key.split(".")
        assert str(config[group][name]) == value


Statement = tuple[str, str, str, tuple[float, ...]]


def stated_in_tables() -> dict[str, set[Statement]]:
    """Preset -> what the tables state for it: table, dataset, metrics, numbers."""
    found: dict[str, set[Statement]] = {}
    for table in all_tables():
        for row in table.rows if table.x is None else ():
            # A competing method's numbers belong to the network of its publication, not to the preset.
            if row.run and len(row.run) == 1 and "network" not in row.note:
                preset = row.run[0].removeprefix("experiment=")
                for dataset, values in row.paper.items():
                    metrics = " / ".join(
                        metric_of(metric).title.replace("Recall", "R") for metric in table.columns[dataset]
                    )
                    found.setdefault(preset, set()).add((table.heading, dataset, metrics, values))
    return found


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_papers_numbers_in_a_preset_are_those_of_the_tables(path):
    written = set()
    for line in re.findall(r"(\w+) ([\d./ ]+) \(([^;()]*); ([^()]*)\)", comment(path)):
        dataset, numbers, metrics, tables = line
        values = tuple(float(number) for number in numbers.split(" / "))
        written |= {(table, dataset, metrics, values) for table in tables.split(", ")}
    if path.stem.startswith("figure"):
        assert written
        assert written <= stated_in_tables()["bdb"]
    else:
        assert written == stated_in_tables().get(path.stem, set())


def test_every_training_of_the_tables_has_a_preset():
    names = {row.run[0] for table in all_tables() for row in table.rows if row.run}
    assert names <= {f"experiment={path.stem}" for path in PRESETS}


@pytest.mark.parametrize(
    ("preset", "branches", "loss", "drop", "erasing"),
    [
        ("baseline", ["global"], "none", None, []),
        ("baseline_triplet", ["global"], "triplet", None, []),
        ("baseline_dropping", ["global", "dropping"], "none", "BatchDropBlock", []),
        ("dropping_branch_cut", ["dropping"], "triplet", "BatchDropBlock", ["Cutout"]),
        ("bdb", ["global", "dropping"], "triplet", "BatchDropBlock", []),
        ("bdb_re", ["global", "dropping"], "triplet", "BatchDropBlock", ["RandomErasing"]),
        ("baseline_triplet_re_cut", ["global"], "triplet", None, ["Cutout", "RandomErasing"]),
        ("drop_none", ["global", "dropping"], "triplet", "Identity", []),
        ("drop_dropblock", ["global", "dropping"], "triplet", "DropBlock", []),
        ("bdb_histogram", ["global", "dropping"], "histogram", "BatchDropBlock", []),
        ("official_person", ["global", "dropping"], "triplet", "BatchDropBlock", ["Cutout"]),
    ],
)  # fmt: skip
def test_a_preset_is_what_its_name_says(preset, branches, loss, drop, erasing):
    config = composed(f"experiment={preset}", "dataset=market1501")
    assert config.model.branches == branches
    assert config.loss.name == loss
    assert drop is None or config.dropping._target_ == f"{'torch.nn' if drop == 'Identity' else 'bdbnet.models'}.{drop}"
    assert [part._target_.rpartition(".")[2] for part in config.augmentation.erasing] == erasing
    assert (config.trainer.max_epochs, config.sampler.batch_size) == (400, 128)


def test_the_official_presets_are_the_released_code():
    person = composed("experiment=official_person", "dataset=market1501")
    assert (person.dropping.height_ratio, person.dropping.mask_scope, person.evaluation.ap_at) == (0.33, "rank", 50)
    assert person.augmentation.erasing[0].overhang is False
    assert person.schedule.staircase is True
    market = composed("experiment=official_market1501")
    assert (market.dataset.name, market.dropping.height_ratio, market.evaluation.ap_at) == ("market1501", 0.2, 50)
    retrieval = composed("experiment=official_retrieval", "dataset=sop", "dataset.test_size=[224,224]")
    assert (retrieval.dropping.height_ratio, retrieval.dropping.width_ratio) == (0.5, 0.5)
    assert (retrieval.dropping.mask_scope, list(retrieval.dataset.test_size)) == ("rank", [224, 224])


@pytest.mark.parametrize(("preset", "runs"), [("figure7a", 9), ("figure7b", 18)])
def test_the_figures_presets_sweep(preset, runs):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [f"experiment={preset}"], return_hydra_config=True)
    params = config.hydra.sweeper.params
    assert params["dropping.height_ratio"].split(",") == [f"{i / 10:.1f}" for i in range(1, 10)]
    count = 1
    for values in params.values():
        count *= len(values.split(","))
    assert count == runs
    assert config.sweep_name == preset


@pytest.mark.parametrize(
    ("preset", "branches", "head", "pooling", "loss", "center", "epochs"),
    [
        ("bot", ["global"], "bnneck", None, "triplet", 5e-4, 120),
        ("agw", ["global"], "bnneck", "gem", "weighted_triplet", 5e-4, 160),
        ("bdb_bnneck", ["global", "dropping"], "bnneck", None, "triplet", 5e-4, 120),
        ("bdb_agw", ["global", "dropping"], "bnneck", "gem", "weighted_triplet", 5e-4, 160),
        ("vit_bnneck", ["global"], "bnneck", None, "triplet", None, 120),
        ("bdb_vit", ["global", "dropping"], "bnneck", None, "triplet", None, 120),
        ("trinet", ["global"], "linear", None, "triplet", None, 300),
    ],
)
def test_the_recipes_of_others_are_what_their_names_say(preset, branches, head, pooling, loss, center, epochs):
    config = composed(f"experiment={preset}", "dataset=market1501")
    assert (config.model.branches, config.model.head) == (branches, head)
    assert pooling in (config.model.global_pooling, config.model.pooling)
    assert (config.loss.name, config.loss.center_weight) == (loss, center)
    assert config.schedule.epochs == config.trainer.max_epochs == epochs
    assert list(config.dataset.image_size) == [256, 128]
    assert config.backbone.get("non_local") == ([0, 2, 3, 0] if preset.endswith("agw") else None)
    assert config.backbone.get("token") == ("class" if "vit" in preset else None)


def recipes_under(name: str, *overrides: str) -> tuple[Budget, Table, dict[str, DictConfig]]:
    """A budget, the table of recipes, and the configuration of each of its rows that the budget trains."""
    folder = Path(__file__).resolve().parents[1] / "experiments" / "recipes"
    budget = read_budget(
        name, OmegaConf.create({"data_root": "data", "weights_root": "weights", "overrides": [*overrides]})
    )
    table = read_table(folder / "market1501.yaml")
    cells = {row.name: budget.cell(table, row, "market1501", Path("runs")) for row in table.rows}
    assert len({cell.folder for cell in cells.values() if cell}) == len([cell for cell in cells.values() if cell])
    return budget, table, {row: compose_training(cell.overrides) for row, cell in cells.items() if cell}


def test_a_budget_shortens_a_recipe_and_changes_its_backbone():
    folder = Path(__file__).resolve().parents[1] / "experiments" / "recipes"
    budget, table, configs = recipes_under(str(folder / "cpu.yaml"))
    for config in configs.values():
        assert config.backbone.width == 0.25  # OSNet
        assert (config.trainer.max_epochs, config.schedule.max_epochs) == (8, 8)
        factor = instantiate(config.schedule)
        assert [config.optimizer.lr * factor(epoch) for epoch in range(8)] == pytest.approx([1e-3] * 6 + [1e-4] * 2)
        assert list(config.dataset.image_size) == [192, 64]
    left_out = {row.name for row in table.rows if budget.lacks_backbone(row, "market1501")}
    assert left_out == {row.name for row in table.rows} - configs.keys()
    assert left_out == {"AGW", "BDB + AGW's parts", "ViT + BNNeck (SGD, cosine)", "BDB on ViT"}
    notes = reproduction_grid(measure(table, budget, Path("runs"), [1])).notes
    assert (
        "AGW is left out: it needs a backbone of its own kind, which this budget does not name (backbones: non_local)."
        in notes
    )


def test_a_budget_gives_recipes_the_kind_of_backbone_that_they_need():
    _, table, configs = recipes_under("smoke")
    assert configs.keys() == {row.name for row in table.rows}
    backbones = {name: (config.backbone.name, config.backbone.weights) for name, config in configs.items()}
    assert {name for name, found in backbones.items() if found == ("vit_tiny_patch16_224", "none")} == {
        "ViT + BNNeck (SGD, cosine)", "BDB on ViT"
    }  # fmt: skip
    assert {*backbones.values()} == {("vit_tiny_patch16_224", "none"), ("resnet18", "none")}
    blocks = {name: config.backbone.get("non_local") for name, config in configs.items()}
    assert {name for name, found in blocks.items() if found} == {"AGW", "BDB + AGW's parts"}
    assert configs["BoT + weight averaging"].averaging.decay == 0.999


def test_a_budget_without_a_backbone_leaves_recipes_theirs():
    _, table, configs = recipes_under("full", "backbone.weights=none")
    assert configs.keys() == {row.name for row in table.rows}
    assert configs["ViT + BNNeck (SGD, cosine)"].backbone.name == "vit_base_patch16_224"
    assert configs["AGW"].backbone.non_local == [0, 2, 3, 0]
    assert configs["AGW without non-local blocks"].backbone.non_local is None
    assert {config.backbone.weights for config in configs.values()} == {"none"}
