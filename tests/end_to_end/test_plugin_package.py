"""A package outside of the checkout that brings a loss, a backbone, a data set and a metric, used from the command line."""

import json
import subprocess
import sys

import pytest
import torch

import forked_commands

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def run(tmp_path):
    """`run("train", "key=value", ..., folder=..., site=...)`: a command that finds the packages in `site`."""
    return lambda name, *arguments, **options: forked_commands.run(name, *arguments, log=tmp_path / "log", **options)


PACKAGE = '''
"""A loss, a backbone, a data set and a metric of somebody else."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bdbnet import plugins
from bdbnet.datasets import Manifest


@plugins.loss("centres")
class Centres(torch.nn.Module):
    def __init__(self, num_classes, embedding_dim):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.randn(num_classes, embedding_dim))

    def forward(self, embeddings, labels):
        return (embeddings - self.centres[labels]).square().mean()


@plugins.backbone("squares_net")
class Net(torch.nn.Sequential):
    def __init__(self, width=8):
        super().__init__(torch.nn.Conv2d(3, width, 5, 4, 2), torch.nn.BatchNorm2d(width), torch.nn.ReLU())
        self.out_channels = width


@plugins.dataset("squares")
def read_squares(root, identities=4):
    root.mkdir(parents=True, exist_ok=True)
    random, rows = np.random.default_rng(0), []
    for label in range(2 * identities):
        for image in range(4):
            Image.fromarray(random.integers(0, 255, (32, 16, 3), np.uint8)).save(root / f"{label}_{image}.png")
            split = "train" if label < identities else "gallery" if image else "query"
            rows.append((f"{label}_{image}.png", label, image % 2, split))
    return Manifest(pd.DataFrame(rows, columns=["path", "label", "camera", "split"]), root, "squares")


@plugins.metric("within3", title="Match within 3")
def within3(facts):
    return (facts.first_rank >= 1) & (facts.first_rank <= 3)
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "bdbnet-squares"
version = "1.0"

[project.entry-points."bdbnet.plugins"]
squares = "squares"

[tool.hatch.build.targets.wheel]
packages = ["squares"]
"""
SMALL = [
    "dataset.image_size=[32,16]", "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3", "trainer.max_epochs=1",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "run_name=x",
]  # fmt: skip


def test_a_package_installed_with_pip_trains_and_evaluates_from_the_command_line(tmp_path, run):
    project, site, work = (tmp_path / name for name in ("project", "site", "work"))
    (project / "squares").mkdir(parents=True)
    work.mkdir()
    (project / "squares" / "__init__.py").write_text(PACKAGE)
    (project / "pyproject.toml").write_text(PROJECT)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(project)]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr

    choices = ["loss=centres", "dataset=squares", "backbone=squares_net", "dataset.options={identities: 4}"]
    trained = run("train", *choices[:3], "+" + choices[3], *SMALL, folder=work, site=[site])
    assert trained.returncode == 0, trained.stderr
    assert "loss/centres_dropping" in (work / "outputs" / "train" / "x" / "history.csv").read_text()
    assert (work / "outputs" / "train" / "x" / "result.json").is_file()
    state = torch.load(work / "outputs" / "train" / "x" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["criterion.metric.global.centres"].shape == (4, 512)
    assert state["criterion.metric.dropping.centres"].shape == (4, 1024)

    evaluated = run(
        "evaluate", "checkpoint=outputs/train/x/last.ckpt", "dataset=squares", "model=bdb", "backbone=squares_net",
        "loading.num_workers=0", folder=work, site=[site],
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Match within 3" in evaluated.stdout
    (folder,) = (work / "outputs" / "evaluate").iterdir()
    assert 0 <= json.loads((folder / "result.json").read_text())["metrics"]["within3"] <= 1
    refused = run("evaluate", "checkpoint=outputs/train/x/last.ckpt", folder=work, site=[site])
    assert refused.returncode == 1
    assert "name both yourself, plugins=[...] and dataset=squares" in refused.stderr
    checked = run("prepare", "dataset=squares", folder=work, site=[site])
    assert "no faults found" in checked.stdout, checked.stderr


def test_a_plugin_that_fails_ends_the_command_with_its_name_and_on_request_its_trace(tmp_path, run):
    (tmp_path / "broken.py").write_text("import json\n\nsettings = json.loads('{')\n")
    short = run("prepare", "plugins=[broken]", "dataset=table", folder=tmp_path, site=[tmp_path])
    assert short.returncode == 1
    assert "plugins=[broken] can't be imported: JSONDecodeError" in short.stderr
    assert "Traceback" not in short.stderr
    full = run("prepare", "plugins=[broken]", "dataset=table", folder=tmp_path, site=[tmp_path], HYDRA_FULL_ERROR="1")
    assert "broken.py" in full.stderr
    assert "Traceback" in full.stderr
