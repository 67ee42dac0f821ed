"""Person re-identification readers on generated folders, and on the real archive where it is present."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bdbnet.datasets import PUBLISHED_COUNTS, CountWarning, DatasetError, load_manifest
from bdbnet.datasets.person_reid import read_market1501

FILES = (
    "bounding_box_train/0007_c2s1_000451_03.jpg",
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/Thumbs.db",
    "bounding_box_train/._0002_c1s1_000451_03.jpg",
    "query/0001_c6s3_001051_00.jpg.jpg",
    "query/notes.txt",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c3s2_000151_01.jpg",
    "bounding_box_test/0001_c4s6_000351_00.JPG",
    "readme.txt",
)


def write(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def error_of(root: Path) -> str:
    with pytest.raises(DatasetError) as error:
        read_market1501(root, check_counts=False)
    return str(error.value)


def test_names_are_parsed_and_junk_is_left_out(tmp_path: Path) -> None:
    manifest = read_market1501(write(tmp_path, *FILES), check_counts=False)
    assert manifest.table.to_numpy().tolist() == [
        ["bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"],
        ["bounding_box_train/0007_c2s1_000451_03.jpg", 7, 2, "train"],
        ["query/0001_c6s3_001051_00.jpg.jpg", 1, 6, "query"],
        ["bounding_box_test/0000_c3s2_000151_01.jpg", 0, 3, "gallery"],
        ["bounding_box_test/0001_c4s6_000351_00.JPG", 1, 4, "gallery"],
    ]
    assert manifest.training_labels().tolist() == [0, 1]
    assert all(Path(path).is_file() for path in manifest.paths)


def test_only_the_file_name_is_parsed_and_one_folder_down_reads_the_same(tmp_path: Path) -> None:
    direct = read_market1501(write(tmp_path / "0099_c5s9_copy", *FILES), check_counts=False)
    write(tmp_path / "1111_c4s1" / "Market-1501-v15.09.15", *FILES)
    (tmp_path / "1111_c4s1" / "__MACOSX" / "Market-1501-v15.09.15" / "query").mkdir(parents=True)
    below = read_market1501(tmp_path / "1111_c4s1", check_counts=False)
    assert below.root.name == "Market-1501-v15.09.15"
    assert below.fingerprint == direct.fingerprint
    assert below.table["label"].max() == 7


def test_missing_folder(tmp_path: Path) -> None:
    message = error_of(tmp_path / "absent")
    assert str(tmp_path / "absent") in message
    assert "python -m bdbnet.prepare dataset=market1501 archive=" in message


def test_root_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, "market.zip")
    assert "market.zip is not a folder" in error_of(tmp_path / "market.zip")


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
def test_half_a_dataset(tmp_path: Path, folder: str) -> None:
    files = [file for file in FILES if not file.startswith(folder)]
    message = error_of(write(tmp_path / "data" / "market", *files).parent)
    assert f"but not {folder}." in message
    assert str(tmp_path / "data" / "market") in message
    assert "python -m bdbnet.prepare" in message


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
def test_folder_without_images(tmp_path: Path, folder: str) -> None:
    files = [file for file in FILES if not file.startswith(folder)]
    message = error_of(write(tmp_path, *files, f"{folder}/Thumbs.db"))
    assert str(tmp_path / folder) in message
    assert "no images" in message


def test_folder_with_junk_only(tmp_path: Path) -> None:
    files = [file for file in FILES if not file.startswith("bounding_box_test")]
    message = error_of(write(tmp_path, *files, "bounding_box_test/-1_c1s1_000401_03.jpg"))
    assert "no images" in message


def test_wrong_layout_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "images/train/0002_c1s1_000451_03.jpg", "labels.csv"))
    assert "bounding_box_train, query, bounding_box_test" in message
    assert "found images, labels.csv" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "found nothing" in error_of(tmp_path)


def test_two_datasets_below_one_folder(tmp_path: Path) -> None:
    write(tmp_path / "copy1", *FILES)
    write(tmp_path / "copy2", *FILES)
    message = error_of(tmp_path)
    assert "copy1" in message
    assert "copy2" in message
    assert "dataset.root" in message


@pytest.mark.parametrize(
    "name", ["cat.jpg", "0002_c7s1_000451_03.jpg", "2_c1s1_000451_03.jpg", "-2_c1s1_000451_03.jpg"]
)
def test_jpg_with_another_name_is_an_error(tmp_path: Path, name: str) -> None:
    message = error_of(write(tmp_path, *FILES, f"query/{name}"))
    assert str(tmp_path / "query") in message
    assert repr(name) in message


def test_unpublished_counts_give_a_warning_with_the_numbers(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    with pytest.warns(CountWarning, match=r"train has 2 images, published 12,936.*gallery has 2 images") as caught:
        load_manifest("market1501", tmp_path)
    assert len(caught) == 1


def test_real_market1501_has_the_published_counts(market1501_root: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = load_manifest("market1501", market1501_root)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS["market1501"]) == []
    assert manifest.counts()["images"].tolist() == [12_936, 3_368, 15_913]
    assert manifest.counts()["identities"].tolist() == [751, 750, 751]
    assert manifest.unmatched_queries() == 0
    assert np.unique(manifest.training_labels()).tolist() == list(range(751))
    assert Path(manifest.paths[0]).is_file()


def test_real_market1501_has_the_listed_names_and_identities(market1501_root: Path, shared_data: Path) -> None:
    manifest = load_manifest("market1501", market1501_root)
    for role, name in (("train", "train"), ("query", "query"), ("gallery", "test")):
        with (shared_data / "protocols" / "market1501" / f"market1501_{name}.csv").open(newline="") as file:
            listed = {(path, int(identity)) for identity, path in csv.reader(file) if identity != "-1"}
        part = manifest.table[manifest.table["split"] == role]
        assert set(zip(part["path"], part["label"])) == listed
