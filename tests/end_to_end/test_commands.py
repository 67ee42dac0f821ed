"""The commands as a user types them, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

import forked_commands
from bdbnet.results import read_result
from bdbnet.train import main

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = [
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}",
    "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3",
    "run_name=tiny",
]  # fmt: skip

pytestmark = pytest.mark.end_to_end


def environment(source: Path = CHECKOUT / "src") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BDBNET", "HYDRA", "PYTHON"))}
    return kept | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def from_a_shell(*arguments: str, folder: Path, source: Path = CHECKOUT / "src") -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS`, a new interpreter."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment(source), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path_factory):
    """`run("train", "key=value", ..., folder=...)`: a command to its end, in a process that need not import all anew."""
    logs = tmp_path_factory.mktemp("logs")
    return lambda name, *arguments, folder: forked_commands.run(name, *arguments, folder=folder, log=logs / name)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare", "report", "embed", "search", "serve"])
def test_help_says_what_the_command_does_and_how_to_use_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    import_module(f"bdbnet.{command}").main()
    assert f"python -m bdbnet.{command}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_train_evaluate_elsewhere_and_report(workplace, run):
    done = run("train", *TINY, "trainer.max_epochs=1", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "Rank-1" in done.stdout
    folder = workplace / "outputs" / "train" / "tiny"
    assert read_result(folder / "result.json").epochs == 1

    # Evaluated on a set that it was not trained on, at the size that it was trained at.
    evaluated = run(
        "evaluate", f"checkpoint={folder / 'last.ckpt'}", "dataset=synthetic_retrieval", "run_name=elsewhere",
        "dataset.options={train_classes:4,test_classes:4,images_per_class:3,image_size:[32,32],workers:1}",
        folder=workplace,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Recall@1" in evaluated.stdout
    result = read_result(workplace / "outputs" / "evaluate" / "elsewhere" / "result.json")
    assert result.protocol.dataset == "synthetic_retrieval"
    assert result.protocol.image_size == (64, 32)

    page = run("report", f"run={folder.relative_to(workplace)}", folder=workplace)
    assert page.returncode == 0, page.stderr
    assert (folder / "report.html").stat().st_size > 10_000

    again = run("train", *TINY, "trainer.max_epochs=1", folder=workplace)
    assert again.returncode == 1
    assert "ckpt_path=last" in again.stderr
    assert {path.name for path in workplace.iterdir()} == {"data", "outputs"}


def test_a_sweep_leaves_a_folder_per_job(workplace, run):
    tiny = [argument for argument in TINY if not argument.startswith("run_name")]
    done = run("train", "-m", *tiny, "trainer.max_epochs=1", "dropping.height_ratio=0.2,0.5", folder=workplace)
    assert done.returncode == 0, done.stderr
    results = sorted((workplace / "outputs" / "sweeps").rglob("result.json"))
    assert [read_result(path).config["dropping"]["height_ratio"] for path in results] == [0.2, 0.5]
    announced = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert announced == ["[1/2] height_ratio=0.2", "[2/2] height_ratio=0.5"]
    table = done.stdout.partition("synthetic_reid: default")[2]
    assert [line.split()[0] for line in table.splitlines()[1:5:2]] == ["dropping.height_ratio", "0.2"]
    assert "python -m bdbnet.report run=outputs/sweeps/default" in table
    drawn = run("report", "run=outputs/sweeps/default", folder=workplace)
    assert drawn.returncode == 0, drawn.stderr
    assert "dropping.height_ratio" in drawn.stdout
    assert "<img" in (workplace / "outputs" / "sweeps" / "default" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dataset=market150"], "market1501"),
        (["dropping.height_ration=0.3"], "height_ration"),
        (["lose=hard_triplet"], "lose"),
        (["dataset=market1501"], "python -m bdbnet.prepare dataset=market1501 archive="),
    ],
)
def test_wrong_arguments_are_answered_without_a_trace(arguments, said, refusal):
    assert said in refusal(main, arguments)


def test_a_wrong_argument_typed_in_a_shell(tmp_path):
    done = from_a_shell("bdbnet", "train", "lose=hard_triplet", folder=tmp_path)
    assert done.returncode == 1
    assert "lose" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_resumes(workplace, run, tmp_path):
    arguments = [*TINY[:-1], "run_name=stopped", "trainer.max_epochs=12", "callbacks.checkpoint_every_seconds=0"]
    folder = workplace / "outputs" / "train" / "stopped"
    process = forked_commands.Command("train", *arguments, folder=workplace, log=tmp_path / "stopped")
    deadline = time.monotonic() + 90
    while not (folder / "last.ckpt").is_file() and time.monotonic() < deadline and process.running:
        time.sleep(0.01)
    process.send(signal.SIGINT)
    stopped = process.wait()
    assert stopped.returncode not in (0, -signal.SIGINT), stopped.stdout
    assert "ckpt_path=last" in stopped.stdout, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (folder / "result.json").exists()

    done = run("train", *arguments, "ckpt_path=last", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert read_result(folder / "result.json").epochs == 12


def test_a_wheel_installed_elsewhere_trains(workplace, tmp_path):
    built = from_a_shell("hatchling", "build", "-t", "wheel", "-d", str(tmp_path), folder=CHECKOUT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    package = site / "bdbnet"

    def files(folder: Path, pattern: str = "*") -> set[Path]:
        found = (path for path in folder.rglob(pattern) if path.is_file() and path.suffix != ".pyc")
        return {path.relative_to(folder) for path in found}

    assert files(CHECKOUT / "src" / "bdbnet") <= files(package)  # py.typed and what is read beside the code
    assert files(CHECKOUT / "conf", "*.yaml") <= files(package / "conf")
    assert files(CHECKOUT / "src" / "hydra_plugins") == files(site / "hydra_plugins")  # where Hydra looks for launchers
    bundled = [*(package / "models" / "zoo" / "bdb_osnet_x0_25_synthetic").iterdir()]
    assert {path.name for path in bundled} == {"model.safetensors", "bdbnet.json", "README.md"}
    assert sum(path.stat().st_size for path in bundled) < 1_000_000
    scripts = ConfigParser()
    scripts.read(next(site.glob("bdbnet-*.dist-info")) / "entry_points.txt")
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    assert dict(scripts["console_scripts"]) == declared

    tiny = [*TINY, "trainer.max_epochs=1", f"data_root={workplace / 'data'}"]
    done = from_a_shell("bdbnet", "train", *tiny, folder=tmp_path, source=site)
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "outputs" / "train" / "tiny" / "result.json").epochs == 1
    tables = from_a_shell("bdbnet.reproduce", "table=8", "list=true", folder=tmp_path, source=site)
    assert "BDB + Histogram" in tables.stdout, tables.stderr


def test_two_processes_train_together_and_agree_on_the_result(workplace, run):
    done = from_a_shell(
        "bdbnet", "train", *TINY[:-1], "run_name=two", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=2",
        "trainer.strategy=ddp", "trainer.precision=32-true", folder=workplace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after training") == 1
    assert "sync_dist" not in done.stderr
    folder = workplace / "outputs" / "train" / "two"
    trained = read_result(folder / "result.json")
    evaluated = run(
        "evaluate", f"checkpoint={folder / 'last.ckpt'}", "dataset=synthetic_reid", TINY[0], "run_name=two",
        folder=workplace,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    alone = read_result(workplace / "outputs" / "evaluate" / "two" / "result.json")
    assert alone.metrics == pytest.approx(trained.metrics)
    assert trained.metrics["valid_queries"] == 8
