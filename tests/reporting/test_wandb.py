"""Loggers of whole runs: offline, inside the run folder, closed at the end."""

import sys
from pathlib import Path

import pytest
import wandb


@pytest.fixture
def in_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.end_to_end
def test_wandb_stays_offline_inside_the_run_folder_and_is_closed(in_run_folder):
    from bdbnet.reporting import wandb_logger

    logger = wandb_logger(
        save_dir=in_run_folder / "run", project="test", name="a", group="market1501", job_type="train"
    )
    run = logger.experiment
    assert run.settings.mode in ("offline", "dryrun")
    assert run.settings._offline
    logger.log_hyperparams({"seed": 1, "dataset": {"name": "market1501"}})
    for step, value in enumerate((0.1, 0.9, 0.5)):
        logger.log_metrics({"rank1": value, "loss/triplet_global": 1 - value}, step=step)
    assert dict(run.config)["dataset"] == {"name": "market1501"}
    run.finish()
    assert wandb.run is None
    written = [path for path in in_run_folder.rglob("*") if path.is_file()]
    assert written
    assert all((in_run_folder / "run") in path.parents for path in written)


def test_importing_the_reports_does_not_load_wandb():
    import subprocess

    code = "import sys, bdbnet.reporting.run_page; sys.exit('wandb' in sys.modules)"
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source), "PATH": ""}, check=False)
    assert done.returncode == 0
