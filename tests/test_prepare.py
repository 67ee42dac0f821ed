"""The prepare command: sets a dataset up, checks it, and says clearly what is wrong."""

import sys
import zipfile
from pathlib import Path

import pytest

from bdbnet import prepare
from bdbnet.datasets import PUBLISHED_COUNTS, SplitCounts

FILES = (
    "Market/bounding_box_train/0002_c1s1_000451_03.jpg",
    "Market/query/0001_c1s1_001051_00.jpg",
    "Market/bounding_box_test/0001_c2s1_000351_00.jpg",
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "market.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in FILES:
            file.writestr(name, b"")
    return path


@pytest.fixture
def three_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Market-1501 had been published with three images."""
    one = SplitCounts(identities=1, images=1, cameras=1)
    monkeypatch.setitem(PUBLISHED_COUNTS, "market1501", {"train": one, "query": one, "gallery": one})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of the command, empty at its start."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.delenv("BDBNET_DATA", raising=False)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `python -m bdbnet.prepare ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    try:
        prepare.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


@pytest.mark.usefixtures("three_images")
def test_archive_is_extracted_and_checked(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 0
    first = capsys.readouterr().out
    assert first.count("1 ok") == 9
    assert "fingerprint " in first
    assert (folder / "data" / "market1501" / FILES[0]).is_file()
    assert [path.name for path in folder.iterdir()] == ["data"]

    assert run(monkeypatch, "dataset=market1501") == 0
    assert capsys.readouterr().out == first


def test_unpublished_counts_are_shown_and_end_with_status_1(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 1
    captured = capsys.readouterr()
    assert "1 (published 12,936)" in captured.out
    assert "error: " in captured.err
    assert "gallery has 1 images, published 15,913" in captured.err
    assert "Warning" not in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("three_images")
def test_data_root_comes_from_the_environment(
    folder: Path, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDBNET_DATA", str(tmp_path / "all"))
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 0
    assert (tmp_path / "all" / "market1501" / "Market" / "query").is_dir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=market1501"], "there is no folder data/market1501"),
        (["dataset=market1501", "archive=absent.zip"], "can't read the archive absent.zip"),
        (["dataset=market1501", "dataset.root=.."], "another layout"),
        (["dataset=market1501", "+dataset.options.chek_counts=false"], "no option chek_counts"),
        (["dataset=market1502"], "market1501"),
        (["dataset=market1501", "archiv=x"], "archiv"),
        ([], "which dataset? Add dataset=NAME with one of market1501"),
    ],
)
def test_wrong_input_gets_one_clear_message(
    folder: Path,
    archive: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
    assert list(folder.iterdir()) == []


def test_archive_of_something_else_says_what_to_delete(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as file:
        file.writestr("birds/1.jpg", b"")
    assert run(monkeypatch, "dataset=market1501", f"archive={tmp_path / 'birds.zip'}") == 1
    message = capsys.readouterr().err
    assert "found birds" in message
    assert "was extracted to data/market1501: delete it to try another" in message


def test_second_extraction_leaves_the_data_alone(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = folder / "data" / "market1501" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 1
    assert "holds files already" in capsys.readouterr().err
    assert list(kept.parent.iterdir()) == [kept]


def test_help_names_the_command_lines_and_the_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "python -m bdbnet.prepare dataset=market1501 archive=" in text
    assert "dataset: " in text
