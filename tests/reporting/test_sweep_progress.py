"""What a sweep prints beside its jobs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import config_dir
from bdbnet.reporting.sweep_progress import SweepProgress, differs
from bdbnet.results import Protocol, Result

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DictConfig]:
    def build(*typed: str, job: int = 0, params: dict[str, str] | None = None, sweeper: str = BASIC) -> DictConfig:
        hydra = {"sweeper": {"_target_": sweeper, "params": params}, "overrides": {"task": list(typed)}}
        return OmegaConf.create({"hydra": hydra | {"job": {"num": job}, "sweep": {"dir": str(tmp_path / "sweep")}}})

    return build


def announced(settings, capsys, *typed: str, jobs: list[list[str]], **options: object) -> list[str]:
    progress = SweepProgress()
    progress.on_multirun_start(settings(*typed, **options))
    for number, overrides in enumerate(jobs):
        progress.on_job_start(settings(*overrides, job=number))
    return capsys.readouterr().out.split("\n")[1::2]


def test_a_job_is_announced_by_its_number_and_what_is_swept(settings, capsys):
    jobs = [["dataset=market1501", f"dropping.height_ratio={ratio}", "seed=1"] for ratio in (0.1, 0.3)]
    typed = ["dataset=market1501", "dropping.height_ratio=0.1,0.3", "seed=1"]
    assert announced(settings, capsys, *typed, jobs=jobs) == ["[1/2] height_ratio=0.1", "[2/2] height_ratio=0.3"]


def test_what_a_preset_sweeps_counts_too_unless_it_is_typed(settings, capsys):
    params = {"dropping.height_ratio": "0.1,0.3", "seed": "1,2,3"}
    jobs = [["dropping.height_ratio=0.1", "seed=7"]]
    assert announced(settings, capsys, "seed=7", params=params, jobs=jobs) == ["[1/2] height_ratio=0.1"]


def test_keys_with_one_end_keep_their_groups(settings, capsys):
    job = ["loss.name=a", "model.name=b", "+trainer.x=[1,2]"]
    typed = ["loss.name=a,c", "model.name=range(3)", "+trainer.x=[1,2],[3]"]
    assert announced(settings, capsys, *typed, jobs=[job]) == ["[1/12] loss.name=a model.name=b x=[1, 2]"]


def test_the_number_of_jobs_is_left_out_where_nobody_knows_it(settings, capsys):
    assert announced(settings, capsys, "dataset=glob(*)", jobs=[["dataset=cub200"]]) == ["[1] dataset=cub200"]
    of_optuna = announced(
        settings, capsys, "optimizer.lr=interval(0,1)", sweeper="optuna.Sweeper", jobs=[["optimizer.lr=0.5"]]
    )
    assert of_optuna == ["[1] lr=0.5"]


def test_a_job_that_is_no_part_of_a_sweep_is_not_announced(settings, capsys):
    SweepProgress().on_job_start(settings("seed=1"))
    assert capsys.readouterr().out == ""


def test_paths_are_shown_without_the_quotes_of_the_command_line():
    assert differs(['checkpoint="runs/a b,c.ckpt"'], fixed=set()) == "checkpoint=runs/a b,c.ckpt"


def test_the_end_shows_a_table_of_the_jobs_of_this_sweep_alone(settings, tmp_path, capsys):
    folder = tmp_path / "sweep"
    for name, ratio, minutes in (("of an earlier sweep", 0.9, -5), ("a", 0.1, 1), ("b", 0.3, 2)):
        config = {"seed": 1, "dropping": {"_target_": "bdbnet.models.BatchDropBlock", "height_ratio": ratio}}
        metrics = {"rank1": ratio, "mAP": 0.5, "valid_queries": 9.0}
        path = Result("train", metrics, Protocol("reid", "drawn", (32, 16)), "last", {}, config, seed=1).write(
            folder / name / "result.json"
        )
        os.utime(path, (1_000_000 + 60 * minutes,) * 2)
    (folder / "multirun.yaml").touch()
    os.utime(folder / "multirun.yaml", (1_000_000, 1_000_000))
    SweepProgress().on_multirun_end(settings())
    printed = capsys.readouterr().out
    rows = [line.split()[:3] for line in printed.splitlines() if line.startswith("0.")]
    assert rows == [["0.1", "10.0", "50.0"], ["0.3", "30.0", "50.0"]]
    assert f"python -m bdbnet.report run={folder}" in printed


def test_a_sweep_without_a_result_ends_with_a_sentence(settings, tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    SweepProgress().on_multirun_end(settings())
    assert "an empty sweep without runs" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_commands_have_it(command):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(command, return_hydra_config=True)
    assert config.hydra.callbacks.progress._target_.endswith(SweepProgress.__name__)
