"""`python -m bdbnet.embed` as a user types it, in processes of its own: killed, in company, and mistyped."""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from bdbnet.embed import main
from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.embedding import build_embedder
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from forked_commands import Command

SIZES = ["image_size=[128,64]", "shard_size=8", "loading.test_batch_size=8", "loading.num_workers=0", "accelerator=cpu"]

pytestmark = pytest.mark.end_to_end


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
    (folder := tmp_path / "here").mkdir()
    process = Command("embed", *arguments, f"output={output}", folder=folder, log=tmp_path / "first")
    limit = time.monotonic() + 60
    while len([*output.glob("shards/0*")]) < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    assert not (output / "meta.json").exists()
    there = {path.name: path.stat().st_mtime_ns for path in (output / "shards").iterdir() if path.name[0] == "0"}
    assert 3 <= len(there) < 26
    said = Command("embed", *arguments, f"output={output}", folder=folder, log=tmp_path / "second").ended()
    assert f"embedded {204 - 8 * len(there)} images in" in said
    assert "images/s" in said
    assert f"204 embeddings of 512 numbers in {output}" in said
    assert f"python -m bdbnet.search index={output}" in said
    assert_same(EmbeddingStore.open(output), uninterrupted)
    assert [*folder.iterdir()] == []  # nothing is written elsewhere


def test_two_processes_share_the_work_and_one_ends_it(arguments, uninterrupted, tmp_path, monkeypatch, capsys):
    processes = [
        Command(
            "embed",
            *arguments,
            "output=store",
            folder=tmp_path,
            log=tmp_path / f"{rank}",
            RANK=f"{rank}",
            WORLD_SIZE="2",
        )
        for rank in range(2)
    ]
    said = [process.ended() for process in processes]
    assert sorted(int(line.partition("embedded ")[2].split()[0]) for line in said) == [100, 104]
    assert any("204 embeddings of 512 numbers" in line for line in said)
    assert_same(EmbeddingStore.open(tmp_path / "store"), uninterrupted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embed", *arguments, "output=store"])
    main()
    assert "nothing to do: store was complete" in capsys.readouterr().out


@pytest.fixture
def typed(weights, tmp_path, monkeypatch, capsys):
    """``typed("mode=add", ...)``: runs the command on `people`.  Returns what it said, or the error with `status`."""

    def run(*more: str, status: int = 0) -> str:
        given = [
            f"checkpoint={weights}",
            "model=baseline",
            "backbone=osnet_x0_25",
            "images=people",
            "output=gallery",
            *SIZES,
        ]
        given = [argument for argument in given if argument.split("=")[0] not in {new.split("=")[0] for new in more}]
        monkeypatch.setattr(sys, "argv", ["embed", *given, *more])
        if not status:
            main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == status
        return capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    return run


def people(*names: str, seed: int = 0) -> None:
    for name in names:
        pixels = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (16, 8, 3), np.uint8)
        Path("people").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(Path("people", name))


def test_a_gallery_is_made_added_to_and_synced_by_the_same_command(typed):
    people("a.png", "b.png", "c.png")
    said = typed("mode=add")
    assert "gallery was not there: mode=add makes a new gallery" in said
    assert "3 embeddings of 512 numbers in gallery" in said
    people("d.png")
    people("b.png", seed=1)
    Path("people/a.png").unlink()
    said = typed("mode=add")
    assert "embedded 1 image in" in said
    assert "added 1 image, replaced 0, removed 0\n4 embeddings" in said
    assert "added 0 images, replaced 1, removed 1\n3 embeddings" in typed("mode=sync")
    assert EmbeddingStore.open("gallery").table["path"].tolist() == ["c.png", "d.png", "b.png"]
    assert "added 0 images, replaced 0, removed 0\n3 embeddings" in typed("mode=sync")
    fingerprint = EmbeddingStore.open("gallery").fingerprint
    Path("twice.csv").write_text("path\npeople/e.png\npeople/e.png\n")
    people("e.png")
    for more, message in (
        (["mode=add", "images=twice.csv"], "twice.csv, row 2, column path: 'people/e.png'"),
        (["mode=add", "image_size=[64,32]"], "gallery can't be extended by this network: "),
        (
            ["mode=sync", "images=people/e.png"],
            "mode=sync removes all images but those named: images=people/e.png is one image",
        ),
        (["mode=add", "images=nobody"], "nobody"),
        (["mode=add", "overwrite=true"], "overwrite=true deletes the gallery: leave it out with mode=add"),
        (["mode=append"], "mode=append: "),
        (["output=twice.csv"], "output=twice.csv is a file: name a folder"),
        (["mode=add", "format=parquet"], "format=parquet: gallery holds safetensors, and what is added has its format"),
        ([], "a gallery that was extended or changed since it was made: mode=add"),
    ):
        assert message in typed(*more, status=1)
    assert EmbeddingStore.open("gallery").fingerprint == fingerprint
    with FileLock("gallery/.lock"):
        assert "gallery: another process extends this gallery now. Wait" in typed("mode=add", status=1)
    assert "added 1 image" in typed("mode=add", "images=people/e.png")
    assert "4 embeddings" in typed("mode=new", "overwrite=true")


def test_a_photo_that_cannot_be_read_is_named_with_the_key_that_leaves_it_out(typed):
    people("a.png", "b.png")
    Path("people/b.png").write_bytes(Path("people/b.png").read_bytes()[:50])
    said = typed(status=1)
    assert "b.png can't be read (" in said
    assert "on_error=skip leaves out all such images and lists them in skipped.csv" in said
    assert "left out 1 image that can't be read: gallery/skipped.csv\n1 embedding " in typed("on_error=skip")
    people("c.png")
    said = typed("mode=add", status=1)
    assert "b.png can't be read (" in said
    assert "on_error=skip" in said
    assert "2 embeddings" in typed("mode=add", "on_error=skip")


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
