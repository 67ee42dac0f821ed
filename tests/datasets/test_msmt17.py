"""MSMT17 readers on generated lists in the form of the authors'."""

from collections import Counter
from pathlib import Path

import pytest

from bdbnet.datasets import PUBLISHED_COUNTS, DatasetError, load_manifest
from small_files import link_images

MSMT17_SIZES = {"train": (1_041, 30_248), "val": (1_041, 2_373), "query": (3_060, 11_659), "gallery": (3_060, 82_161)}
MSMT17_FOLDERS = {"msmt17_v1": ("train", "test"), "msmt17_v2": ("mask_train_v2", "mask_test_v2")}


def error_of(root: Path, name: str) -> str:
    with pytest.raises(DatasetError) as error:
        load_manifest(name, root, check_counts=False)
    return str(error.value)


def msmt17_lists(sizes: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Lists of MSMT17 as its authors write them, for a number of people and images each."""
    lists: dict[str, list[str]] = {}
    numbers: Counter[tuple[bool, int]] = Counter()
    for part, (people, images) in sizes.items():
        lists[part] = []
        for image in range(images):
            turn, person = divmod(image, people)
            number = numbers[part in ("train", "val"), person]
            numbers[part in ("train", "val"), person] += 1
            # A person's images in query and gallery are of several cameras.
            camera = 1 + (person + turn + (part == "gallery")) % 15
            name = f"{person:04d}_{number:03d}_{camera:02d}_0303morning_{image:04d}_0_ex.jpg"
            lists[part].append(f"{person:04d}/{name} {person}")
    return lists


def write_msmt17(root: Path, name: str, lists: dict[str, list[str]]) -> Path:
    train, test = MSMT17_FOLDERS[name]
    folders = {"train": train, "val": train, "query": test, "gallery": test}
    link_images(root, (f"{folders[part]}/{line.split()[0]}" for part, lines in lists.items() for line in lines))
    for part, lines in lists.items():
        (root / f"list_{part}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


SMALL_MSMT17 = msmt17_lists({"train": (2, 4), "val": (3, 3), "query": (2, 2), "gallery": (4, 8)})


def test_msmt17_has_the_published_counts(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_msmt17(tmp_path / "MSMT17_V1", "msmt17_v1", msmt17_lists(MSMT17_SIZES))
    manifest = load_manifest("msmt17_v1", tmp_path)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS["msmt17_v1"]) == []
    assert manifest.counts()["images"].tolist() == [32_621, 11_659, 82_161]
    assert manifest.counts()["identities"].tolist() == [1_041, 3_060, 3_060]
    assert manifest.counts()["cameras"].tolist() == [15, 15, 15]
    assert manifest.unmatched_queries() == 0
    test = manifest.table[manifest.table["split"] != "train"]
    assert (test["label"].min(), test["label"].max()) == (1_041, 1_041 + 3_059)


@pytest.mark.parametrize("name", MSMT17_FOLDERS)
def test_msmt17_keeps_people_of_train_and_test_apart(tmp_path: Path, name: str) -> None:
    write_msmt17(tmp_path, name, SMALL_MSMT17)
    manifest = load_manifest(name, tmp_path, check_counts=False)
    train, test = MSMT17_FOLDERS[name]
    assert manifest.counts()["images"].tolist() == [7, 2, 8]
    assert manifest.table.iloc[[0, 5, 6, 7, -1]].to_numpy().tolist() == [
        [f"{train}/0000/0000_000_01_0303morning_0000_0_ex.jpg", 0, 1, "train"],
        [f"{train}/0001/0001_002_02_0303morning_0001_0_ex.jpg", 1, 2, "train"],
        [f"{train}/0002/0002_000_03_0303morning_0002_0_ex.jpg", 2, 3, "train"],
        [f"{test}/0000/0000_000_01_0303morning_0000_0_ex.jpg", 3, 1, "query"],
        [f"{test}/0003/0003_001_06_0303morning_0007_0_ex.jpg", 6, 6, "gallery"],
    ]
    assert len(manifest.shared_labels()) == 0
    assert all(Path(path).is_file() for path in manifest.paths)


@pytest.mark.parametrize(("name", "other"), [("msmt17_v1", "msmt17_v2"), ("msmt17_v2", "msmt17_v1")])
def test_the_other_version_of_msmt17(tmp_path: Path, name: str, other: str) -> None:
    write_msmt17(tmp_path / "MSMT17", other, SMALL_MSMT17)
    message = error_of(tmp_path, name)
    assert f"{tmp_path / 'MSMT17'} is MSMT17 V{other[-1]} (folders {', '.join(MSMT17_FOLDERS[other])})" in message
    assert f"not V{name[-1]} (folders {', '.join(MSMT17_FOLDERS[name])})" in message
    assert f"dataset={other}" in message


def test_both_versions_of_msmt17_in_one_folder(tmp_path: Path) -> None:
    for name in MSMT17_FOLDERS:
        write_msmt17(tmp_path / name, name, SMALL_MSMT17)
        assert load_manifest(name, tmp_path, check_counts=False).root == tmp_path / name


def test_folders_of_both_versions_beside_one_set_of_lists(tmp_path: Path) -> None:
    for name in MSMT17_FOLDERS:
        write_msmt17(tmp_path, name, SMALL_MSMT17)
    for name, (train, _) in MSMT17_FOLDERS.items():
        assert load_manifest(name, tmp_path, check_counts=False).table["path"][0].startswith(f"{train}/0000/")


@pytest.mark.parametrize("lost", ["train", "list_val.txt"])
def test_half_of_msmt17(tmp_path: Path, lost: str) -> None:
    write_msmt17(tmp_path, "msmt17_v1", SMALL_MSMT17)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    message = error_of(tmp_path, "msmt17_v1")
    assert f"but not {lost}." in message
    assert "with FILE = MSMT17_V1.tar.gz" in message


@pytest.mark.parametrize(
    "line",
    [
        "0000/0000_000_01_0303morning_0015_0_ex.jpg",
        "0000/0000_000_01_0303morning_0015_0_ex.jpg x",
        "0000/0000_000_01_0303morning_0015_0_ex.jpg -1",
        "0000/0000_000_01_0303morning_0015_0_ex.jpg 0 1",
        "0000/0000_000_16_0303morning_0015_0_ex.jpg 0",
        "0000/0000_000_c1_0303morning_0015_0_ex.jpg 0",
        "0000_000_01_0303morning_0015_0_ex.jpg 0",
        "0000/0002_c1s1.jpg 0",
        "<html>",
    ],
)
def test_a_malformed_line_of_msmt17(tmp_path: Path, line: str) -> None:
    lists = SMALL_MSMT17 | {"query": [SMALL_MSMT17["query"][0], "", line]}
    write_msmt17(tmp_path, "msmt17_v1", SMALL_MSMT17)
    (tmp_path / "list_query.txt").write_text("\n".join(lists["query"]))
    assert f"{tmp_path / 'list_query.txt'}, line 3: {line!r} is not a path" in error_of(tmp_path, "msmt17_v1")


def test_an_empty_list_of_msmt17(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "msmt17_v1", SMALL_MSMT17)
    (tmp_path / "list_gallery.txt").write_text("\n")
    assert f"{tmp_path / 'list_gallery.txt'} lists no images" in error_of(tmp_path, "msmt17_v1")


def test_a_listed_image_that_msmt17_lacks(tmp_path: Path) -> None:
    write_msmt17(tmp_path, "msmt17_v2", SMALL_MSMT17)
    lost = f"mask_test_v2/{SMALL_MSMT17['gallery'][2].split()[0]}"
    (tmp_path / lost).unlink()
    message = error_of(tmp_path, "msmt17_v2")
    assert f"1 of the 17 listed images are not in {tmp_path}, the first is {lost}" in message
