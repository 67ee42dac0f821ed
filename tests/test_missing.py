"""Files and folders that are not there: refused before torch is imported, in the words of whoever would have read them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdbnet.config import compose_settings
from bdbnet.datasets import FACTS, DatasetError, load_manifest, require_given
from bdbnet.evaluation.feature_files import read_arrays
from bdbnet.evaluation.features import FeatureError
from bdbnet.evaluation.load import require_source
from bdbnet.gallery.store import StoreError, read_meta
from bdbnet.loading.sources import find_images
from bdbnet.missing import check_given
from bdbnet.models import CheckpointError
from bdbnet.reporting import ReportError, read_run
from bdbnet.settings import ConfigError
from bdbnet.training.resuming import prepare_folder


def refusal(command: str, *typed: str) -> str:
    config = compose_settings(command, [*typed, *(["run_name=x"] if command in ("train", "evaluate") else [])])
    with pytest.raises((ConfigError, DatasetError)) as refused:
        check_given(config, command)
    return str(refused.value)


def test_a_wrong_folder_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys\ntry:\n  from bdbnet.train import main; main()\n"
        "except SystemExit as end: sys.exit(end.code if 'torch' not in sys.modules else 3)"
    )
    typed = ["dataset=market1501", "data_root=nowhere"]
    python = [sys.executable, "-c", code, *typed]
    source = Path(sys.modules["bdbnet"].__file__).parents[1]
    done = subprocess.run(
        python, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("\nerror: market1501: there is no folder nowhere/market1501.\n")
    assert [*tmp_path.iterdir()] == []


SAID_BY = {
    "calibrate checkpoint=nope.ckpt": (CheckpointError, lambda: require_source("nope.ckpt")),
    "convert checkpoint=osnet_x0_25_market": (CheckpointError, lambda: require_source("osnet_x0_25_market")),
    "embed images=nope": (DatasetError, lambda: find_images("nope")),
    "embed checkpoint=nope": (CheckpointError, lambda: require_source("nope")),
    "evaluate checkpoint=nope.ckpt": (CheckpointError, lambda: require_source("nope.ckpt")),
    "evaluate features=nope.pt": (FeatureError, lambda: read_arrays("nope.pt")),
    "evaluate features=. queries=nope.pt": (FeatureError, lambda: read_arrays("nope.pt")),
    "export checkpoint=nope.ckpt": (CheckpointError, lambda: require_source("nope.ckpt")),
    "report run=nope": (ReportError, lambda: read_run("nope")),
    "report run=. compare=nope": (ReportError, lambda: read_run("nope", key="compare")),
    "search index=nope": (StoreError, lambda: read_meta(Path("nope"))),
    "search index=. images=nope": (DatasetError, lambda: find_images("nope")),
    "search index=. queries=nope": (StoreError, lambda: read_meta(Path("nope"))),
    "serve index=nope": (StoreError, lambda: read_meta(Path("nope"))),
    "train ckpt_path=nope.ckpt": (ConfigError, lambda: prepare_folder(Path(), "nope.ckpt", overwrite=False)),
    "train dataset=table dataset.manifest=nope.csv": (DatasetError, lambda: load_manifest("table", None, manifest="nope.csv")),
    "train dataset=table dataset.manifest=[.,nope]": (DatasetError, lambda: load_manifest("table", None, manifest=[".", "nope"])),
    "visualize checkpoint=[timm:resnet18,nope]": (CheckpointError, lambda: require_source("nope")),
}  # fmt: skip


@pytest.mark.parametrize("line", SAID_BY)
def test_the_words_are_those_of_the_reader(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error, read = SAID_BY[line]
    with pytest.raises(error) as later:
        read()
    assert refusal(*line.split()) == str(later.value)


@pytest.mark.parametrize("name", FACTS)
def test_of_a_dataset_too(name, tmp_path):
    root = tmp_path / name
    with pytest.raises(DatasetError) as later:
        load_manifest(name, root)
    with pytest.raises(DatasetError, match=re.escape(f"there is no folder {root}.\n")) as now:
        require_given(name, root)
    assert str(now.value) == str(later.value)


@pytest.mark.parametrize(
    "line",
    [
        "train",  # the toy data is rendered on first use
        "train ckpt_path=last backbone.weights=none",
        "train backbone.weights=imagenet",
        "train dataset=custom dataset.reader=mypkg.read_mine",
        "prepare dataset=market1501 data_root=nope",
        "evaluate checkpoint=bdb_osnet_x0_25_synthetic",
        "embed checkpoint=hub:somebody/model images=.",
    ],
)
def test_what_is_a_name_or_made_by_the_command_is_not_looked_for(line):
    command, *typed = line.split()
    check_given(compose_settings(command, [*typed, "run_name=x"] if command != "prepare" else typed), command)


def test_a_name_of_the_zoo_is_told_from_a_file_of_starting_weights():
    assert "give its file" in refusal("train", "dataset=synthetic_reid", "backbone.weights=osnet_x0_25_msmt17").lower()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("dataset.manifest=5", "5"),
        ("dataset.manifest=[]", "names no data"),
        ("dataset.manifest=[nope.csv,5]", "dataset.manifest=5 is not the name of a file or folder"),
    ],
)
def test_a_manifest_that_is_no_text_is_answered_by_its_reader(typed, said):
    assert said in refusal("train", "dataset=table", typed)


def test_what_an_unset_variable_would_name_is_left_to_whoever_reads_it():
    check_given(
        compose_settings("train", ["dataset=table", "dataset.manifest=${oc.env:NOT_SET}/a.csv", "run_name=x"]), "train"
    )


def test_a_list_without_brackets_is_answered_with_a_folder_or_a_table():
    assert refusal("embed", "images='a.jpg,b.jpg'") == (
        "images=a.jpg,b.jpg: there is no such file or folder; of several images name their folder, or a table with a column path"
    )


@pytest.mark.end_to_end
@pytest.mark.parametrize("content", [[], ["history.csv"]], ids=["empty", "of a run"])
def test_a_refused_run_leaves_no_folder_behind_and_removes_none_that_holds_something(content, tmp_path):
    folder = tmp_path / "evaluate" / "mine"
    for name in content:
        folder.mkdir(parents=True)
        (folder / name).write_text("kept")
    source = Path(sys.modules["bdbnet"].__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bdbnet.evaluate", f"output_root={tmp_path}", "run_name=mine"],
        env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "checkpoint= is missing" in done.stderr
    assert folder.exists() == bool(content)
    assert all((folder / name).read_text() == "kept" for name in content)
