"""Person re-identification readers on generated folders, real lists, and the real archive where it is present."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bdbnet.datasets import PUBLISHED_COUNTS, CountWarning, DatasetError, Manifest, load_manifest
from bdbnet.datasets.person_reid import (
    read_dukemtmc_reid,
    read_market1501,
    read_market1501_500k,
    read_market1501_multi_query,
)
from small_files import link_images

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


def listed_in(file: Path) -> list[tuple[str, int]]:
    """Path and identity of each row."""
    with file.open(newline="") as rows:
        return [(path, int(identity)) for identity, path in csv.reader(rows)]


def error_of(root: Path, reader: Callable[..., Manifest] = read_market1501) -> str:
    with pytest.raises(DatasetError) as error:
        reader(root, check_counts=False)
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
        rows = listed_in(shared_data / "protocols" / "market1501" / f"market1501_{name}.csv")
        part = manifest.table[manifest.table["split"] == role]
        assert set(zip(part["path"], part["label"])) == {(path, identity) for path, identity in rows if identity != -1}


@pytest.fixture(scope="module")
def listed_market1501(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images under all names of Market-1501, junk included, with two boxes per query and one of a stranger."""
    lists = shared_data / "protocols" / "market1501"
    files = [path for part in ("train", "query", "test") for path, _ in listed_in(lists / f"market1501_{part}.csv")]
    queries = [path.removeprefix("query/") for path in files if path.startswith("query/")]
    boxes = [f"gt_bbox/{name.partition('.')[0]}{number}.jpg" for name in queries for number in (1, 2)]
    strangers = ["gt_bbox/0002_c1s1_000451_00.jpg", "gt_bbox/-1_c1s1_000451_00.jpg", "gt_bbox/0000_c1s1_000451_00.jpg"]
    return link_images(tmp_path_factory.mktemp("market") / "root", [*files, *boxes, *strangers])


def test_listed_market1501_has_the_published_counts(listed_market1501: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = load_manifest("market1501", listed_market1501)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS["market1501"]) == []


def test_every_query_of_listed_market1501_gets_its_boxes(
    listed_market1501: Path, recwarn: pytest.WarningsRecorder
) -> None:
    single = load_manifest("market1501", listed_market1501)
    manifest = load_manifest("market1501_multi_query", listed_market1501)
    assert not recwarn.list
    for role in ("train", "gallery"):
        assert manifest.subset(role).fingerprint == single.subset(role).fingerprint
    queries, pairs = manifest.subset("query").table, ["label", "camera"]
    assert len(queries) == 2 * 3_368
    assert queries["path"].str.startswith("gt_bbox/").all()
    assert queries.groupby(pairs).size().eq(2).all()
    assert set(map(tuple, queries[pairs].to_numpy())) == set(map(tuple, single.subset("query").table[pairs].to_numpy()))
    assert queries["path"].is_monotonic_increasing


def test_multi_query_without_drawn_boxes(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, *FILES), read_market1501_multi_query)
    assert f"{tmp_path} has no folder gt_bbox" in message
    assert "An archive without gt_bbox can't be used for multi-query" in message
    assert "dataset=market1501 " in message


def test_multi_query_with_boxes_of_other_cameras(tmp_path: Path) -> None:
    write(tmp_path, *FILES, "query/0001_c2s3_001051_00.jpg", "gt_bbox/0001_c2s3_001051_00.jpg")
    write(tmp_path, "gt_bbox/0001_c3s3_001051_00.jpg")
    message = error_of(tmp_path, read_market1501_multi_query)
    assert f"{tmp_path / 'gt_bbox'} has no image of 1 of the 2 (identity, camera) pairs" in message
    assert "the first is identity 0001 under camera 6" in message


def test_multi_query_with_a_box_of_another_name(tmp_path: Path) -> None:
    write(tmp_path, *FILES, "gt_bbox/0001_c6s3_001051_00.jpg", "gt_bbox/1.jpg")
    assert f"{tmp_path / 'gt_bbox'}: can't read identity and camera" in error_of(tmp_path, read_market1501_multi_query)


@pytest.mark.parametrize(
    "place",
    [
        "data/market/distractors_500k",
        "data/market/images",
        "data/distractors_500k",
        "data/images",
        "data/other/images",
        "distractors_500k",
        "distractors_500k/images",
    ],
)
def test_distractors_join_the_gallery(tmp_path: Path, place: str) -> None:
    write(tmp_path / "data" / "market", *FILES)
    write(tmp_path / place, "b_c5s1_1.jpg", "a.jpg", "c_c7.jpg", "d_c45.JPG", "0000_c6s3_000001_02.jpg", "notes.txt")
    single = read_market1501(tmp_path / "data", check_counts=False)
    manifest = read_market1501_500k(tmp_path / "data", check_counts=False)
    assert all(Path(path).is_file() for path in manifest.paths)
    assert manifest.paths[: len(single.paths)] == single.paths
    added = manifest.table[len(single.table) :]
    assert [Path(path).name for path in added["path"]] == [
        "0000_c6s3_000001_02.jpg", "a.jpg", "b_c5s1_1.jpg", "c_c7.jpg", "d_c45.JPG",
    ]  # fmt: skip
    assert added["camera"].tolist() == [6, 1, 5, 1, 1]
    assert set(added["label"]) == {0}
    assert set(added["split"]) == {"gallery"}
    columns = ["label", "camera", "split"]
    assert manifest.table[columns][: len(single.table)].equals(single.table[columns])


def test_distractors_beside_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "market", *FILES)
    write(tmp_path / "distractors_500k", "a.jpg")
    write(tmp_path / "images", "anything.jpg")
    monkeypatch.chdir(tmp_path / "market")
    manifest = read_market1501_500k(Path(), check_counts=False)
    assert manifest.paths[-1] == str(tmp_path / "distractors_500k" / "a.jpg")


def test_no_distractors(tmp_path: Path) -> None:
    write(tmp_path / "market", *FILES, "images/readme.txt")
    message = error_of(tmp_path / "market", read_market1501_500k)
    assert "a folder distractors_500k or images with .jpg files" in message
    assert str(tmp_path / "distractors_500k") in message
    assert "distractors_500k.zip" in message


def test_two_folders_of_distractors(tmp_path: Path) -> None:
    write(tmp_path, *FILES, "images/a.jpg", "distractors_500k/a.jpg")
    message = error_of(tmp_path, read_market1501_500k)
    assert f"{tmp_path / 'distractors_500k'}, {tmp_path / 'images'}" in message


def test_distractors_leave_the_published_counts_as_they_are(listed_market1501: Path, tmp_path: Path) -> None:
    link_images(tmp_path, [f"images/{number:08d}.jpg" for number in range(1_000)])
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (tmp_path / folder).symlink_to(listed_market1501 / folder)
    manifest = load_manifest("market1501_500k", tmp_path)
    assert manifest.differences(PUBLISHED_COUNTS["market1501_500k"]) == []
    assert manifest.counts().loc["gallery"].tolist() == [751, 15_913 + 1_000, 6]


def test_listed_dukemtmc_reid_has_the_published_counts(
    shared_data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    lists = shared_data / "protocols" / "dukemtmc_reid"
    rows = [row for part in ("train", "query", "test") for row in listed_in(lists / f"dukeMTMC_{part}.csv")]
    link_images(tmp_path / "root" / "DukeMTMC-reID", [path for path, _ in rows])
    manifest = load_manifest("dukemtmc_reid", tmp_path / "root")
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS["dukemtmc_reid"]) == []
    assert manifest.counts()["images"].tolist() == [16_522, 2_228, 17_661]
    assert manifest.counts()["identities"].tolist() == [702, 702, 1_110]
    assert manifest.unmatched_queries() == 0
    assert set(zip(manifest.table["path"], manifest.table["label"])) == set(rows)


@pytest.mark.parametrize("name", ["0001_c9_f0046182.jpg", "0002_c1s1_000451_03.jpg", "-1_c1_f0046182.jpg"])
def test_dukemtmc_reid_with_another_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, *(f"{folder}/0001_c2_f0046182.jpg" for folder in ("bounding_box_train", "bounding_box_test")))
    message = error_of(write(tmp_path, f"query/{name}"), read_dukemtmc_reid)
    assert f"{tmp_path / 'query'}: can't read identity and camera from the file name {name!r}" in message
    assert "looks like 0001_c2_f0046182.jpg" in message


def own(root: Path) -> Path:
    return write(
        root,
        *("bounding_box_train/00012_c12s1_000151_01.png", "bounding_box_train/00012_c3s1_000151_01 (1).jpeg"),
        *("query/7_c12_1.webp", "bounding_box_test/7_c1.JPG", "bounding_box_test/-1_c1.jpg"),
    )


def test_images_of_ones_own_in_the_naming_of_market1501(tmp_path: Path) -> None:
    manifest = load_manifest("market1501", own(tmp_path), own_names=True)
    assert manifest.table.to_numpy().tolist() == [
        ["bounding_box_train/00012_c12s1_000151_01.png", 12, 12, "train"],
        ["bounding_box_train/00012_c3s1_000151_01 (1).jpeg", 12, 3, "train"],
        ["query/7_c12_1.webp", 7, 12, "query"],
        ["bounding_box_test/7_c1.JPG", 7, 1, "gallery"],
    ]
    message = error_of(tmp_path)
    assert "'00012_c12s1_000151_01.png'; a name looks like 0002_c1s1_000451_03.jpg" in message
    assert "dataset=market_layout" in message


def test_other_suffixes_are_read_and_other_formats_named(tmp_path: Path) -> None:
    write(tmp_path, *FILES, "query/0003_c1s1_000451_03.png", "query/0004_c1s1_000451_03.heic")
    with pytest.warns(
        UserWarning, match=r"query: left out are 1 image\(s\) in formats that are not read here \(1 .heic\)"
    ):
        manifest = read_market1501(tmp_path)
    assert "query/0003_c1s1_000451_03.png" in set(manifest.table["path"])


def test_copies_of_images_are_told(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, *FILES, "query/0001_c6s3_001051_00 (1).jpg"))
    assert "It seems to be a copy of another image: remove it." in message


def test_where_a_dataset_some_folders_further_down_lies_is_told(tmp_path: Path) -> None:
    inner = write(tmp_path / "Market" / "archive" / "v15.09.15", *FILES)
    assert f"They are in {inner}: set dataset.root={inner}." in error_of(tmp_path)
    other = write(tmp_path / "Market" / "copy", *FILES)
    assert f"They are in {other} and {inner}: set dataset.root={other}." in error_of(tmp_path)


def test_images_one_folder_too_deep_are_found(tmp_path: Path) -> None:
    write(tmp_path, *FILES, "query/0001/0001_c6s3_001051_00.jpg")
    (tmp_path / "query" / "0001_c6s3_001051_00.jpg.jpg").unlink()
    message = error_of(tmp_path)
    assert f"There are some in {tmp_path / 'query' / '0001'}: move them into {tmp_path / 'query'} itself." in message
