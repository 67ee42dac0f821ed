"""`python -m bdbnet.embed` as a user types it, in processes of its own: killed, in company, and mistyped."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bdbnet.embed import main
from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.embedding import build_embedder
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images

SOURCE = Path(__file__).resolve().parents[2] / "src"
SIZES = ["image_size=[128,64]", "shard_size=8", "loading.test_batch_size=8", "loading.num_workers=0", "accelerator=cpu"]

pytestmark = pytest.mark.end_to_end


def start(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BDBNET", "HYDRA", "PYTHON"))}
    environment = kept | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "bdbnet.embed", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], *, status: int = 0) -> str:
    said, complained = process.communicate(timeout=120)
    assert process.returncode == status, complained
    return said if status == 0 else complained


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four times the photos: about a second of work."""
    root = tmp_path_factory.mktemp("many")
    for number in range(4):
        shutil.copytree(photos, root / str(number))
    return root


@pytest.fixture(scope="module")
def arguments(weights: Path, many: Path) -> list[str]:
    return [f"checkpoint={weights}", "model=baseline", "backbone=osnet_x0_25", f"images={many}", *SIZES]


@pytest.fixture(scope="module")
def uninterrupted(make_config, many: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("uninterrupted")
    embedder = build_embedder(make_config(*SIZES))
    embed_into(folder, embedder, find_images(many), shard_size=8, batch_size=8, num_workers=0)
    return EmbeddingStore.open(folder)


def assert_same(store: EmbeddingStore, other: EmbeddingStore) -> None:
    assert store.table["path"].is_unique
    assert store.table["path"].tolist() == other.table["path"].tolist()
    assert np.array_equal(store.embeddings, other.embeddings)
    assert store.model == other.model


def test_killed_in_the_middle_it_goes_on_without_a_duplicate(arguments, uninterrupted, tmp_path):
    output = tmp_path / "store"
    process = start(*arguments, f"output={output}", folder=tmp_path)
    limit = time.monotonic() + 60
    while len([*output.glob("shards/0*")]) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (output / "meta.json").exists()
    there = {path.name: path.stat().st_mtime_ns for path in (output / "shards").iterdir() if path.name[0] == "0"}
    assert 3 <= len(there) < 26
    said = ended(start(*arguments, f"output={output}", folder=tmp_path))
    assert f"embedded {204 - 8 * len(there)} images in" in said
    assert "images/s" in said
    assert f"204 embeddings of 512 numbers in {output.name}" in said
    assert f"python -m bdbnet.search index={output.name}" in said
    assert_same(EmbeddingStore.open(output), uninterrupted)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}  # nothing is written elsewhere


def test_two_processes_share_the_work_and_one_ends_it(arguments, uninterrupted, tmp_path, monkeypatch, capsys):
    processes = [
        start(*arguments, "output=store", folder=tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)
    ]
    said = [ended(process) for process in processes]
    assert sorted(int(line.partition("embedded ")[2].split()[0]) for line in said) == [100, 104]
    assert any("204 embeddings of 512 numbers" in line for line in said)
    assert_same(EmbeddingStore.open(tmp_path / "store"), uninterrupted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embed", *arguments, "output=store"])
    main()
    assert "nothing to do: store was complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["checkpoint=null"], "checkpoint= is missing"),
        (["images=null"], "set exactly one of images=FOLDER_OR_TABLE or dataset=NAME"),
        (["dataset=synthetic_reid"], "set exactly one of images=FOLDER_OR_TABLE or dataset=NAME"),
        (["split=query"], "split= is a part of a dataset"),
        (["on_error=ignore"], "on_error=ignore: choose one of raise, skip"),
    ],
)
def test_a_mistake_is_named_in_one_line(more, message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [argument for argument in arguments if argument.split("=")[0] not in {new.split("=")[0] for new in more}]
    monkeypatch.setattr(sys, "argv", ["embed", *given, *more])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"\nerror: {message}")
    assert [*tmp_path.iterdir()] == []


def test_help_says_what_the_command_does_and_how_to_use_it(tmp_path):
    said = ended(start("--help", folder=tmp_path))
    assert "python -m bdbnet.embed checkpoint=" in said
    assert "on_error: raise" in said
    assert [*tmp_path.iterdir()] == []
