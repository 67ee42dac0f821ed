"""Readers of occluded and partial people, on generated folders in their documented layout."""

from pathlib import Path

import pytest

from bdbnet.datasets import PUBLISHED_COUNTS, CountWarning, DatasetError, Manifest, load_manifest
from bdbnet.datasets.inspection import inspect_table
from small_files import touch


def rows(manifest: Manifest) -> list[list[object]]:
    return manifest.table.to_numpy().tolist()


def test_occluded_duke(tmp_path: Path) -> None:
    touch(tmp_path / "Occluded_Duke", "bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c1_f0000001.jpg")
    touch(tmp_path / "Occluded_Duke", "bounding_box_test/0005_c8_f0000001.jpg")
    with pytest.warns(
        CountWarning, match=r"query has 1 identities, published 519.*gallery has 1 images, published 17,661"
    ):
        manifest = load_manifest("occluded_duke", tmp_path)
    assert [row[1:] for row in rows(manifest)] == [[1, 2, "train"], [5, 1, "query"], [5, 8, "gallery"]]


def test_occluded_reid_has_a_folder_for_each_person(tmp_path: Path) -> None:
    files = [
        f"{part}_body_images/{p:03d}/{p:03d}_0{i}.tif"
        for part in ("occluded", "whole")
        for p in (1, 200)
        for i in (1, 2)
    ]
    manifest = load_manifest("occluded_reid", touch(tmp_path / "Occluded_REID", *files).parent, check_counts=False)
    assert rows(manifest) == [
        *([file, person, 1, "query"] for file, person in zip(files[:4], (1, 1, 200, 200))),
        *([file, person, 2, "gallery"] for file, person in zip(files[4:], (1, 1, 200, 200))),
    ]
    assert inspect_table(manifest, {}, test_only=True) == []  # that it has no training images is no fault


def test_a_complete_occluded_reid_has_the_published_counts(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for folder in ("occluded_body_images", "whole_body_images"):
        touch(tmp_path, *(f"{folder}/{p:03d}/{p:03d}_0{i}.tif" for p in range(1, 201) for i in range(1, 6)))
    manifest = load_manifest("occluded_reid", tmp_path)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS["occluded_reid"]) == []


@pytest.mark.parametrize(
    ("query", "folder"), [("partial", "partial_body_images"), ("occluded", "occluded_body_images")]
)
def test_partial_reid(tmp_path: Path, query: str, folder: str) -> None:
    touch(tmp_path, f"{folder}/060_001.jpg", "whole_body_images/060_005.jpg")
    manifest = load_manifest("partial_reid", tmp_path, query=query, check_counts=False)
    assert manifest.name == ("partial_reid" if query == "partial" else "partial_reid_occluded")
    assert rows(manifest) == [
        [f"{folder}/060_001.jpg", 60, 1, "query"],
        ["whole_body_images/060_005.jpg", 60, 2, "gallery"],
    ]


def test_partial_ilids(tmp_path: Path) -> None:
    touch(tmp_path, "Probe/001.jpg", "Probe/119.jpg", "Gallery/001.jpg", "Gallery/119.jpg")
    manifest = load_manifest("partial_ilids", tmp_path, check_counts=False)
    assert [row[1:] for row in rows(manifest)] == [
        [1, 1, "query"],
        [119, 1, "query"],
        [1, 2, "gallery"],
        [119, 2, "gallery"],
    ]


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset.options.query=whole: choose one of partial, occluded"):
        load_manifest("partial_reid", tmp_path, query="whole")
    touch(tmp_path, "Probe/cat.jpg", "Gallery/001.jpg")
    with pytest.raises(DatasetError, match="Probe: can't read the person's number from the name 'cat'"):
        load_manifest("partial_ilids", tmp_path)
    (tmp_path / "Probe/cat.jpg").unlink()
    with pytest.raises(DatasetError, match="Probe holds no images, but partial_ilids needs them"):
        load_manifest("partial_ilids", tmp_path)
