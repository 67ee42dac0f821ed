"""Sweeps of W&B: what its agent starts, emulated with the functions that it uses itself."""

import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

import wandb_files
from bdbnet.command_line import of_agent
from bdbnet.config import ConfigError, check_settings, compose_settings, config_dir
from bdbnet.reporting.wandb import _mode
from bdbnet.results import read_result
from bdbnet.train import main

SWEEPS = sorted((config_dir() / "sweeps").glob("*.yaml"))
TINY = [
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}",
    "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "loading.num_workers=0", "trainer.max_epochs=1",
    "trainer.accelerator=cpu", "callbacks.progress=false", "logger=wandb",
    *(f"logger.logger.{key}" for key in ("ranking_lists=0", "worst_queries=0", "distances=false", "masks=false", "model=false")),
]  # fmt: skip


class Agent:
    """Draws values as `wandb agent` does: a file with them, variables, and arguments in the form that a sweep asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, identity: str, values: dict[str, Any], macro: str | None) -> tuple[list[str], dict[str, str]]:
        arguments = {name: {"value": value} for name, value in values.items()}
        path = self.folder / "wandb" / "sweep-s1" / f"config-{identity}.yaml"
        save_config_file_from_dict(str(path), arguments)
        typed = create_sweep_command_args({"args": arguments})[macro] if macro else []
        return typed, {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": identity, "WANDB_SWEEP_PARAM_PATH": str(path)}


VALUES = {"dropping.height_ratio": 0.5, "seed": 2, "loss": "margin", "trainer.deterministic": True}
TYPED = ["dropping.height_ratio=0.5", "seed=2", "loss=margin", "trainer.deterministic=True"]


@pytest.mark.parametrize("macro", [None, "args", "args_no_hyphens", "args_override_hydra"])
def test_drawn_values_come_by_arguments_or_by_the_environment(macro, tmp_path):
    typed, environment = Agent(tmp_path).start("r1", VALUES, macro)
    found = of_agent(["dataset=market1501", *typed], environment)
    assert found[0] == "dataset=market1501"
    assert [argument.lstrip("+").lower() for argument in found[1:5]] == [argument.lower() for argument in TYPED]
    assert found[5:] == ["run_name=dropping.height_ratio=0.5,seed=2,loss=margin,trainer.deterministic=True-r1"]


def test_a_draw_that_is_repeated_has_a_folder_of_its_own(tmp_path):
    names = {of_agent(*Agent(tmp_path).start(identity, VALUES, None))[-1] for identity in ("r1", "r2")}
    assert len(names) == 2


def test_without_an_agent_nothing_changes(tmp_path):
    _, environment = Agent(tmp_path).start("r1", VALUES, None)
    assert of_agent(["seed=1"], {}) == of_agent(["seed=1"], environment | {"WANDB_SWEEP_ID": ""}) == ["seed=1"]
    typed = of_agent(["run_name=mine", "seed=1"], environment)
    assert [each for each in typed if each.startswith(("run_name=", "seed="))] == ["run_name=mine", "seed=1"]


def test_an_agent_s_file_that_is_not_there_is_named(tmp_path):
    environment = {"WANDB_SWEEP_ID": "s1", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "none.yaml")}
    with pytest.raises(ConfigError, match=r"WANDB_SWEEP_PARAM_PATH=.*none\.yaml: the agent's values can't be read"):
        of_agent([], environment)


def test_an_agent_s_runs_are_sent_unless_w_b_is_told_otherwise(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert (_mode(None), _mode(True)) == ("online", "offline")


def test_a_drawn_training_is_the_agent_s_run(tmp_path, monkeypatch, tiny_data):
    monkeypatch.chdir(tmp_path)
    for macro, identity in ((None, "r1abcdef"), ("args", "r2abcdef")):  # the same values twice
        typed, environment = Agent(tmp_path).start(identity, {"dropping.height_ratio": 0.5}, macro)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # it reads them once in a process, and an agent starts one for each run
        monkeypatch.setattr(sys, "argv", ["train", *TINY, f"data_root={tiny_data}", "sweep_name=ratios", *typed])
        main()
    monkeypatch.undo()
    wandb.teardown()
    first, second = wandb_files.runs(tmp_path)
    assert (first.id, second.id) == ("r1abcdef", "r2abcdef")
    for run in (first, second):
        folder = run.folder.parents[1]
        assert folder == tmp_path / "outputs" / "train" / f"dropping.height_ratio=0.5-{run.id}"
        assert (run.group, run.exit_code, run.name) == ("ratios", 0, folder.name)
        assert read_result(folder / "result.json").config["dropping"]["height_ratio"] == 0.5
        assert run.config["dropping"]["height_ratio"] == 0.5
    assert first.config["settings"] == second.config["settings"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_commands_of_our_sweeps_are_commands_of_ours(path, tmp_path):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["project"] == "bdbnet"
    values = {name: row["values"][0] if "values" in row else row["max"] for name, row in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    line: list[str] = []
    for part in create_sweep_command(list(sweep["command"])):
        filled = {"${env}": ["env"], "${interpreter}": ["python"], "${args_no_hyphens}": arguments["args_no_hyphens"]}
        line += filled.get(part, [part])
    assert line[:4] == ["env", "python", "-m", "bdbnet.train"]
    config = compose_settings("train", [*line[4:], "run_name=x"])
    check_settings(config, "train", [argument.partition("=")[0] for argument in line[4:]])
    assert config.dropping.height_ratio == values["dropping.height_ratio"]
    assert config.sweep_name == sweep["name"]
    # what a sweep is steered by is logged
    assert sweep["metric"]["name"].removeprefix("test/") in ("rank1", "mAP")
