"""Folders of classes as a dataset, links and odd names among them."""

import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.datasets.archives import extract_archives
from bdbnet.datasets.tabular import read_table
from small_files import touch


def rows(manifest: Manifest) -> list[list[Any]]:
    return manifest.table.to_numpy().tolist()


def error_of(manifest: Any, root: Path | None = None, **options: Any) -> str:
    with pytest.raises(DatasetError) as error:
        read_table(root, manifest=manifest, **options)
    str(error.value).encode()  # can be printed and logged
    return str(error.value)


def test_folders_of_classes_in_folders_of_splits(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "birds.v2", "train/robin/2.JPG", "train/robin/10.jpeg", "train/Eagle Owl/é ü.png", "query/wren/1.webp",
        "query/robin/1.bmp", "gallery/wren/2.tif", "gallery/wren/.hidden.jpg", "gallery/wren/notes.txt", "gallery/empty/x",
        "masks/robin/2.jpg", "train/.cache/1.jpg", "train/readme.jpg.txt", "gallery/Äsche/1.TIFF", "train/robin/3.gif",
        "train/robin/4.ppm",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="1 identities have images in train and in test"):
        manifest = load_manifest("table", None, manifest=root)
    assert rows(manifest) == [
        ["train/Eagle Owl/é ü.png", 0, -1, "train"],
        ["train/robin/10.jpeg", 1, -1, "train"],
        ["train/robin/2.JPG", 1, -1, "train"],
        ["train/robin/3.gif", 1, -1, "train"],
        ["train/robin/4.ppm", 1, -1, "train"],
        ["query/robin/1.bmp", 1, -1, "query"],
        ["query/wren/1.webp", 2, -1, "query"],
        ["gallery/wren/2.tif", 2, -1, "gallery"],
        ["gallery/Äsche/1.TIFF", 3, -1, "gallery"],
    ]
    assert (manifest.name, manifest.root) == ("birds.v2", root)
    assert all(Path(path).is_file() for path in manifest.paths)


def test_folders_of_classes_directly(tmp_path: Path) -> None:
    # A class may be called train: its folder holds images, not classes.
    root = touch(tmp_path, "bus/1.jpg", "car/1.jpg", "car/2.jpg", "train/1.jpg", "empty/notes.txt", "cover.jpg")
    assert rows(read_table(None, manifest=root, train_classes=2)) == [
        ["bus/1.jpg", 0, -1, "train"],
        ["car/1.jpg", 1, -1, "train"],
        ["car/2.jpg", 1, -1, "train"],
        ["train/1.jpg", 2, -1, "test"],
    ]


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    root = touch(tmp_path, "10/a.jpg", "9/a.jpg", "1/a.jpg", "01/a.jpg")
    manifest = read_table(None, manifest=root, train_classes=3)
    assert manifest.table["path"].tolist() == ["01/a.jpg", "1/a.jpg", "9/a.jpg", "10/a.jpg"]
    assert manifest.table["label"].tolist() == [0, 1, 2, 3]
    assert manifest.table["split"].tolist() == ["train"] * 3 + ["test"]


@pytest.mark.parametrize("files", [(), ("a.jpg",), ("train/a.jpg", "test/a.jpg"), ("cat/deep/a.jpg",), ("cat/a.txt",)])
def test_a_folder_without_images_in_classes(tmp_path: Path, files: tuple[str, ...]) -> None:
    message = error_of(touch(tmp_path, *files), train_classes=1)
    assert f"{tmp_path} holds no images (.jpg .jpeg" in message
    assert "train/CLASS/IMAGE" in message


def test_links_in_a_circle_are_harmless_or_named(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "train/cat/1.jpg", "test/dog/1.jpg")
    before = read_table(None, manifest=root).fingerprint
    (root / "again").symlink_to(root)
    (root / "train" / "up").symlink_to("..")
    (root / "train" / "cat" / "upper").symlink_to("../..")
    assert read_table(None, manifest=root).fingerprint == before
    for loop in (root / "loop", root / "train" / "loop", root / "train" / "cat" / "loop.jpg"):
        loop.symlink_to(loop)
        assert f"can't read {loop}: Too many levels of symbolic links" in error_of(root)
        loop.unlink()
    lost = root / "test" / "lost"
    lost.symlink_to(tmp_path / "unmounted")
    assert f"can't read {lost}: No such file or directory" in error_of(root)


def test_linked_classes_and_images_are_read(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "cat/1.jpg", "2.jpg")
    root = touch(tmp_path / "data", "train/dog/1.jpg", "test/cow/1.jpg")
    (root / "train" / "cat").symlink_to(store / "cat")
    (root / "test" / "cow" / "2.jpg").symlink_to(store / "2.jpg")
    paths = read_table(None, manifest=root).table["path"].tolist()
    assert paths == ["train/cat/1.jpg", "train/dog/1.jpg", "test/cow/1.jpg", "test/cow/2.jpg"]


@pytest.mark.parametrize("name", [b"train/cat/caf\xe9.jpg", b"train/caf\xe9/1.jpg"])
def test_names_that_are_not_utf8(tmp_path: Path, name: bytes) -> None:
    touch(tmp_path, "train/cat/1.jpg", "test/dog/1.jpg", "test/dog/" + os.fsdecode(b"note\xe9.txt"))
    try:
        touch(tmp_path, os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    message = error_of(tmp_path)
    assert r"train/" in message
    assert r"caf\xe9" in message
    assert "is not valid UTF-8. Rename" in message


def test_a_backslash_in_a_file_name(tmp_path: Path) -> None:
    message = error_of(touch(tmp_path, "train/cat/a\\b.jpg", "test/dog/1.jpg"))
    assert message.startswith(f"{tmp_path}, row 1, column path: 'train/cat/a\\\\b.jpg' is not a plain relative path")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    closed = touch(tmp_path, "train/cat/1.jpg", "test/dog/1.jpg") / "train" / "cat"
    closed.chmod(0)
    try:
        assert f"can't read {closed}: Permission denied" in error_of(tmp_path)
    finally:
        closed.chmod(0o755)


def test_a_root_beside_folders_alone_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path / "birds", "train/cat/1.jpg", "test/dog/1.jpg")
    assert f"dataset.root={tmp_path} is set, but" in error_of(root, tmp_path)


@pytest.fixture(scope="module")
def birds(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = shared_data / "cub100_small.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in the folder of real data")
    return extract_archives([archive], tmp_path_factory.mktemp("birds") / "root", progress=False) / "bird_dataset"


def test_real_birds_by_their_lists(birds: Path) -> None:
    lists = [
        pd.read_csv(birds / name, header=None, sep=", ", engine="python", names=["image", column])
        for name, column in (("images.txt", "path"), ("image_class_labels.txt", "label"))
    ]
    lists[0].merge(lists[1], on="image").to_csv(birds / "birds.csv", index=False)
    manifest = read_table(birds / "images", manifest=birds / "birds.csv", train_classes=50)
    assert manifest.counts()["images"].tolist() == [2_949, 2_953, 2_953]
    assert manifest.counts()["identities"].tolist() == [50, 50, 50]


def test_real_birds_by_their_folders(birds: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest = load_manifest("table", None, manifest=birds / "images", train_classes=0.5)
    counts = manifest.counts()
    assert counts["identities"].tolist() == [50, 50, 50]
    assert counts.loc["train", "images"] + counts.loc["gallery", "images"] == 5_902
    assert manifest.name == "images"


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """train/val/test is a common layout; val is no split here."""
    for path in (
        "train/a/1.jpg",
        "train/b/deep/1.jpg",
        "val/a/1.jpg",
        "test/c/1.jpg",
        "test/c/2.jpg",
        "test/stray.jpg",
        "x.jpg",
        "test/c/inner/3.jpg",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.warns(UserWarning, match="left out are ") as caught:
        manifest = read_table(None, manifest=tmp_path)
    assert len(manifest.table) == 3
    message = str(caught[0].message)
    assert "val/ (not one of train, query, gallery, test)" in message
    assert "1 image(s) directly in test/" in message
    assert f"1 image(s) directly in {tmp_path.name}/" in message
    assert "1 folder(s) without images directly in them, such as train/b/" in message
    assert "1 folder(s) inside classes, such as test/c/inner/" in message


def test_a_complete_folder_is_read_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for path in ("train/a/1.jpg", "test/c/1.jpg", "test/c/2.jpg", "readme.txt", "test/.thumbs/1.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert len(read_table(None, manifest=tmp_path).table) == 3
    assert not recwarn.list


def test_every_format_that_pillow_reads_is_read_and_the_rest_is_counted_and_named(tmp_path: Path) -> None:
    names = ("a.jfif", "b.JPE", "c.HEIC", "d.heic", "e.tga", "f.jpg", "notes.txt")
    touch(tmp_path, *(f"train/cat/{name}" for name in names), "test/dog/1.png", "test/dog/2.CR2")
    with pytest.warns(UserWarning, match="left out") as caught:
        manifest = read_table(None, manifest=tmp_path)
    assert manifest.table["path"].tolist() == [
        "train/cat/a.jfif",
        "train/cat/b.JPE",
        "train/cat/f.jpg",
        "test/dog/1.png",
    ]
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path}: left out are 4 image(s) in formats that are not read here (2 .heic, 1 .tga, 1 .cr2), such as "
        f"{caught[0].message.args[0].partition('such as ')[2].partition(';')[0]}; convert them to JPEG or PNG."
    ]
    assert "such as train/cat/" in str(caught[0].message)


def test_a_folder_of_unread_images_alone_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.heic", "dog/2.heic")
    assert "It holds 2 image(s) in formats that are not read here (2 .heic): convert them" in error_of(tmp_path)
