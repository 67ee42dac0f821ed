"""Several sources whose labels mean the same."""

from pathlib import Path

import pandas as pd
import pytest

from bdbnet.datasets import DatasetError, load_manifest
from bdbnet.datasets.tabular import read_table
from small_files import touch


@pytest.fixture
def cars(tmp_path: Path) -> list[Path]:
    touch(tmp_path / "cars", "train/audi/1.jpg", "train/bmw/1.jpg", "test/audi/2.jpg", "test/volvo/1.jpg")
    return [tmp_path / "cars" / "train", tmp_path / "cars" / "test"]


def test_a_class_name_in_two_folders_is_named_with_the_setting(cars: list[Path]) -> None:
    for options in ({"train_classes": 0.5}, {}):
        with pytest.warns(
            UserWarning, match=r"1 class name.*'audi' in .*train and .*test.*share_labels=true"
        ) as caught:
            manifest = load_manifest("table", None, manifest=[*map(str, cars)], **options)
        assert len({str(warning.message) for warning in caught}) >= 1
        assert manifest.table["label"].nunique() == 4


def test_shared_labels_are_one_class_in_all_sources(cars: list[Path]) -> None:
    manifest = read_table(None, manifest=cars, train_classes=1, share_labels=True)
    assert manifest.table.drop(columns="camera").to_numpy().tolist() == [
        ["train/audi/1.jpg", 0, "train"],
        ["train/bmw/1.jpg", 1, "test"],
        ["test/audi/2.jpg", 0, "train"],
        ["test/volvo/1.jpg", 2, "test"],
    ]
    assert [manifest.name_of(label) for label in range(3)] == ["audi", "bmw", "volvo"]


def test_saying_that_they_are_not_shared_silences_the_warning(
    cars: list[Path], recwarn: pytest.WarningsRecorder
) -> None:
    assert read_table(None, manifest=cars, train_classes=1, share_labels=False).table["label"].nunique() == 4
    assert not recwarn.list


def test_folders_named_after_splits_are_these_splits(cars: list[Path]) -> None:
    with pytest.warns(UserWarning, match="after its name"):
        manifest = read_table(None, manifest=cars, share_labels=True)
    assert manifest.table["split"].tolist() == ["train", "train", "test", "test"]
    assert manifest.shared_labels().tolist() == [0]


def test_numbers_are_shared_as_they_are_and_so_are_cameras(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    columns = ["path", "label", "camera", "split"]
    pd.DataFrame([["a.jpg", 5, "hall", "train"], ["b.jpg", 7, "door", "query"]], columns=columns).to_parquet(
        tmp_path / "a.parquet"
    )
    (tmp_path / "b.csv").write_text("path,label,camera,split\nc.jpg,0007,hall,gallery\nb.jpg,0007,door,gallery\n")
    with pytest.warns(UserWarning, match="0 = door, 1 = hall"):
        manifest = read_table(None, manifest=[tmp_path / "a.parquet", tmp_path / "b.csv"], share_labels=True)
    assert manifest.table["label"].tolist() == [5, 7, 7, 7]
    assert manifest.table["camera"].tolist() == [1, 0, 1, 0]


def test_numbers_and_names_of_several_sources_are_all_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.csv").write_text("path,label,split\na.jpg,3,train\n")
    (tmp_path / "b.csv").write_text("path,label,split\nb.jpg,cat,test\n")
    manifest = read_table(None, manifest=[tmp_path / "a.csv", tmp_path / "b.csv"], share_labels=True)
    assert [manifest.name_of(label) for label in manifest.table["label"]] == ["3", "cat"]


def test_what_cannot_be_shared_is_refused(tmp_path: Path, cars: list[Path]) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.csv").write_text("path,label,split\na.jpg,3,train\n")
    with pytest.raises(DatasetError, match="has no splits and others have"):
        read_table(None, manifest=[tmp_path / "a.csv", cars[0]], train_classes=1, share_labels=True)
    with pytest.raises(DatasetError, match="share_labels=yes: write true or false"):
        read_table(None, manifest=cars, share_labels="yes")  # type: ignore[arg-type]
    (tmp_path / "b.csv").write_text("path,label,split\na.jpg,3,train\n")
    with pytest.raises(DatasetError, match=r"b\.csv, row 1: the image a\.jpg is already in .*a\.csv, row 1"):
        read_table(None, manifest=[tmp_path / "a.csv", tmp_path / "b.csv"], share_labels=True)
