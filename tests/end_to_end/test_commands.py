"""The commands as a user types them, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bdbnet.results import read_result
from bdbnet.train import main

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = [
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}",
    "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "loading.num_workers=0", "evaluation.top_k=3",
    "run_name=tiny",
]  # fmt: skip

pytestmark = pytest.mark.end_to_end


def environment(source: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BDBNET", "HYDRA", "PYTHON"))}
    return kept | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(
    command: str, *arguments: str, folder: Path, source: Path = CHECKOUT / "src"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"bdbnet.{command}", *arguments],
        cwd=folder, env=environment(source), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.mark.parametrize("command", ["train", "evaluate", "prepare", "report", "embed", "search", "serve"])
def test_help_says_what_the_command_does_and_how_to_use_it(command, tmp_path):
    done = run(command, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"python -m bdbnet.{command}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_train_evaluate_elsewhere_and_report(workplace):
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


def test_a_sweep_leaves_a_folder_per_job(workplace):
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
    done = run("train", "lose=hard_triplet", folder=tmp_path)
    assert done.returncode == 1
    assert "lose" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_resumes(workplace):
    arguments = [*TINY[:-1], "run_name=stopped", "trainer.max_epochs=20", "callbacks.checkpoint_every_seconds=0"]
    folder = workplace / "outputs" / "train" / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "bdbnet.train", *arguments], cwd=workplace, env=environment(CHECKOUT / "src"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (folder / "last.ckpt").is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGINT), said
    assert "ckpt_path=last" in said, errors
    assert "Traceback" not in errors
    assert not (folder / "result.json").exists()

    done = run("train", *arguments, "ckpt_path=last", folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert read_result(folder / "result.json").epochs == 20


def test_a_wheel_installed_elsewhere_trains(workplace, tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "bdbnet" / "conf" / "train.yaml").is_file()
    assert (site / "bdbnet" / "py.typed").is_file()
    package = site / "bdbnet"
    for folder in ("models/zoo", "serving"):  # what is read beside the code
        source = CHECKOUT / "src" / "bdbnet" / folder
        files = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert files <= {path.relative_to(package / folder) for path in (package / folder).rglob("*")}
    bundled = [*(package / "models" / "zoo" / "bdb_osnet_x0_25_synthetic").iterdir()]
    assert {path.name for path in bundled} == {"model.safetensors", "bdbnet.json", "README.md"}
    assert sum(path.stat().st_size for path in bundled) < 1_000_000
    conf = {path.relative_to(CHECKOUT / "conf") for path in (CHECKOUT / "conf").rglob("*.yaml")}
    assert conf <= {path.relative_to(package / "conf") for path in (package / "conf").rglob("*.yaml")}
    done = run("train", *TINY, "trainer.max_epochs=1", f"data_root={workplace / 'data'}", folder=tmp_path, source=site)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "train" / "tiny"
    page = run("report", f"run={folder}", folder=tmp_path, source=site)
    assert page.returncode == 0, page.stderr
    tables = run("reproduce", "table=8", "list=true", folder=tmp_path, source=site)
    assert "BDB + Histogram" in tables.stdout, tables.stderr


def test_two_processes_train_together_and_agree_on_the_result(workplace):
    done = run(
        "train", *TINY[:-1], "run_name=two", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=2",
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
