"""Finding a dataset's parts in a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bdbnet.datasets import CountWarning, DatasetError
from bdbnet.datasets.layout import build_manifest, find_base, list_folder, nearest_base, require_files

WANTED = ("images", "images.txt")
ROWS = [("a.jpg", 1, 1, "train"), ("b.jpg", 2, 1, "query"), ("c.jpg", 2, 2, "gallery")]


def write(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def error_of(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(DatasetError) as error:
        call(*arguments)
    return str(error.value)


def test_the_folder_itself_or_one_in_it_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a" / "CUB_200_2011", "images/1.jpg", "images.txt")
    assert find_base("cub200", tmp_path / "a" / "CUB_200_2011", WANTED) == tmp_path / "a" / "CUB_200_2011"
    assert find_base("cub200", tmp_path / "a", WANTED) == tmp_path / "a" / "CUB_200_2011"
    message = error_of(find_base, "cub200", tmp_path, WANTED)
    assert (
        f"{tmp_path} has an unexpected layout: looked for images, images.txt there and one level down, found a."
        in message
    )
    assert (
        f"They are in {tmp_path / 'a' / 'CUB_200_2011'}: set dataset.root={tmp_path / 'a' / 'CUB_200_2011'}." in message
    )


def test_a_part_of_a_dataset_is_named(tmp_path: Path) -> None:
    write(tmp_path / "birds", "images.txt")
    assert nearest_base("cub200", tmp_path, WANTED) == (tmp_path / "birds", ["images.txt"])
    message = error_of(find_base, "cub200", tmp_path, WANTED)
    assert f"{tmp_path / 'birds'} holds images.txt but not images.\n" in message
    assert f"archive=FILE dataset.root={tmp_path}" in message


def test_two_complete_folders(tmp_path: Path) -> None:
    for copy in ("copy1", "copy2"):
        write(tmp_path / copy, "images/1.jpg", "images.txt")
    message = error_of(find_base, "cub200", tmp_path, WANTED)
    assert f"more than one folder holds images, images.txt: {tmp_path / 'copy1'}, {tmp_path / 'copy2'}." in message
    assert "Set dataset.root to one of them." in message


def test_a_complete_folder_is_taken_before_a_copy_in_it(tmp_path: Path) -> None:
    write(tmp_path, "images/1.jpg", "images.txt", "copy/images/1.jpg", "copy/images.txt")
    assert find_base("cub200", tmp_path, WANTED) == tmp_path


def test_links_that_lead_in_a_circle_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "birds", "images/1.jpg", "images.txt")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "up").symlink_to(tmp_path)
    assert find_base("cub200", tmp_path, WANTED) == tmp_path / "birds"
    assert list_folder(tmp_path) == {"birds": True, "circle": False, "up": True}


def test_a_folder_that_may_not_be_searched_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "birds/images/1.jpg", "birds/images.txt", "lost+found/secret")
    exists = Path.exists

    def guarded(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", guarded)
    assert find_base("cub200", tmp_path, WANTED) == tmp_path / "birds"


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (PermissionError(13, "Permission denied"), "can't read the folder {root}: Permission denied"),
        (NotADirectoryError(20, "Not a directory"), "{root} is not a folder"),
        (FileNotFoundError(2, "No such file"), "there is no folder {root}"),
    ],
)
def test_an_unreadable_root(tmp_path: Path, failure: OSError, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise failure

    monkeypatch.setattr("bdbnet.datasets.layout.os.scandir", refuse)
    assert f"cub200: {problem.format(root=tmp_path)}" in error_of(find_base, "cub200", tmp_path, WANTED)


def test_missing_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    listed = ["images/1/a.jpg", "images/1/b.jpg", "images/2/c.jpg", "images.txt", "images/1/d.jpg"]
    write(tmp_path, "images/1/a.jpg", "images/1/d.jpg", "images.txt")
    message = error_of(require_files, "cub200", tmp_path, iter(listed))
    assert f"cub200: 2 of the 5 listed images are not in {tmp_path}, the first is images/1/b.jpg." in message
    write(tmp_path, *listed)
    require_files("cub200", tmp_path, listed)


def test_a_file_in_place_of_a_folder_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, "images")
    assert "the first is images/a.jpg" in error_of(require_files, "cub200", tmp_path, ["images/a.jpg"])


def test_counts_are_compared_and_a_known_reason_is_added(tmp_path: Path) -> None:
    expected = (
        r"train has 1 images, published 12,936.*; gallery has 1 images, .*; a crop of it\. Results are not comparable"
    )
    with pytest.warns(CountWarning, match=expected) as caught:
        build_manifest("market1501", tmp_path, ROWS, check_counts=True, explain=lambda _: "a crop of it")
    assert len(caught) == 1
    with pytest.warns(CountWarning, match=r"gallery has 2 images"):
        build_manifest(
            "market1501", tmp_path, [*ROWS, ("d.jpg", 3, 1, "gallery")], check_counts=True, explain=lambda _: None
        )


def test_counts_are_not_compared_unless_asked_for(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = build_manifest("market1501", tmp_path, ROWS, check_counts=False, explain=lambda _: "never asked")
    assert not recwarn.list
    assert manifest.root == tmp_path
    assert manifest.table.to_numpy().tolist() == [list(row) for row in ROWS]
