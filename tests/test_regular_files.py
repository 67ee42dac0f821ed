"""Named pipes, sockets and devices are refused, wherever a file is read."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdbnet.datasets import DatasetError, load_manifest
from bdbnet.datasets.archives import ArchiveError, extract_archives
from bdbnet.datasets.images import ImageError, image_size, read_image
from bdbnet.datasets.layout import find_base
from bdbnet.datasets.tabular import read_table
from bdbnet.figures import read_thumbnail
from bdbnet.gallery.store import META, EmbeddingStore, StoreError
from bdbnet.loading.sources import find_images
from bdbnet.models import CheckpointError, read_checkpoint
from bdbnet.regular_files import regular, require_regular, special_kind
from bdbnet.results import ResultError, read_result
from small_files import touch

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture(autouse=True)
def _no_endless_wait() -> Iterator[None]:
    """A test that waits for a pipe fails instead."""
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture(params=["a named pipe", "a socket", "a device"])
def special(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A file of each kind, called a.jpg, and what it is."""
    path = tmp_path / "a.jpg"
    if request.param == "a device":
        path.symlink_to("/dev/zero")
        yield path, request.param
    elif request.param == "a named pipe":
        os.mkfifo(path)
        yield path, request.param
    else:
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.jpg")
            yield path, request.param


def test_what_it_is_is_told(special: tuple[Path, str]) -> None:
    path, kind = special
    assert special_kind(path) == kind
    for attempt in (lambda: require_regular(path), lambda: open(path, "rb", opener=regular)):  # noqa: SIM115
        with pytest.raises(OSError, match=f"is {kind}, not a regular file"):
            attempt()


def test_regular_files_folders_and_missing_ones_behave_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open(tmp_path / "a", "rb", opener=regular) as file:
        assert file.read() == b"abc"
    require_regular(tmp_path / "a")
    require_regular(tmp_path)
    require_regular(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        open(tmp_path / "missing", "rb", opener=regular)  # noqa: SIM115
    with pytest.raises(IsADirectoryError):
        open(tmp_path, "rb", opener=regular)  # noqa: SIM115


def test_as_an_image(special: tuple[Path, str]) -> None:
    path, kind = special
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=f"{kind}, not a regular file"):
            read(path)
    with pytest.raises(OSError, match=f"{kind}, not a regular file"):
        read_thumbnail(path)


def test_as_a_manifest_an_archive_a_checkpoint_or_a_source(special: tuple[Path, str], tmp_path: Path) -> None:
    path, kind = special
    with pytest.raises(DatasetError, match=f"is {kind}, not a regular file"):
        read_table(None, manifest=path)
    with pytest.raises(ArchiveError, match=f"is {kind}, not a regular file"):
        extract_archives([path], tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"is {kind}, not a regular file"):
        read_checkpoint(path)
    with pytest.raises(DatasetError, match=f"is {kind}"):
        find_images(path)
    table = tmp_path / "a.csv"
    path.rename(table)
    with pytest.raises(DatasetError, match=f"is {kind}"):
        find_images(table)


def test_as_a_result_or_the_record_of_a_gallery(special: tuple[Path, str], tmp_path: Path) -> None:
    path, kind = special
    with pytest.raises(ResultError, match=f"is {kind}, not a regular file"):
        read_result(path)
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    path.rename(gallery / META)
    with pytest.raises(StoreError, match=f"is {kind}, not a regular file"):
        EmbeddingStore.open(gallery)


def test_among_the_images_of_a_folder_it_is_left_out_and_named(special: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = special
    root = touch(tmp_path / "birds", "train/robin/1.jpg", "test/wren/1.jpg")
    path.rename(root / "train" / "robin" / "2.jpg")
    with pytest.warns(UserWarning, match=r"left out are 1 named pipe\(s\).*such as train/robin/2.jpg"):
        assert len(load_manifest("table", None, manifest=root).table) == 2
    with pytest.warns(UserWarning, match=r"left out are 1 named pipe\(s\).*such as train/robin/2.jpg"):
        assert len(find_images(root)) == 2


def test_among_the_files_of_a_dataset(special: tuple[Path, str], tmp_path: Path) -> None:
    path, kind = special
    root = touch(tmp_path / "root", "images/1.jpg")
    path.rename(root / "images.txt")
    with pytest.raises(DatasetError, match=f"images.txt is {kind}, not a regular file"):
        find_base("cub200", root, ["images", "images.txt"])
