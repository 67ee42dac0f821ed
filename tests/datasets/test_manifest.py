"""The manifest's schema, its errors, and what it says about a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbnet.datasets import READERS, DatasetError, Manifest, SplitCounts, load_manifest


def table(**changes: Any) -> pd.DataFrame:
    rows: dict[str, Any] = {
        "path": ["train/a.jpg", "train/b.jpg", "query/a.jpg", "gallery/a.jpg", "gallery/b.jpg"],
        "label": [30, 10, 20, 20, 0],
        "camera": [1, 2, 1, 2, 2],
        "split": ["train", "train", "query", "gallery", "gallery"],
    }
    return pd.DataFrame({**rows, **changes})


def manifest(**changes: Any) -> Manifest:
    return Manifest.from_table(table(**changes), "data", "toy", source="toy.csv")


def test_table_is_copied_with_canonical_columns_and_types() -> None:
    given_table = table(label=np.array([30, 10, 20, 20, 0], dtype=np.int16), camera=[1.0, 2.0, 1.0, 2.0, 2.0])
    built = Manifest.from_table(given_table[["split", "camera", "label", "path"]], "data", "toy")
    assert list(built.table.columns) == ["path", "label", "camera", "split"]
    assert built.table["label"].dtype == built.table["camera"].dtype == np.int64
    given_table.loc[0, "label"] = 99
    assert built.table["label"].tolist() == [30, 10, 20, 20, 0]


def test_row_index_of_the_given_table_does_not_matter() -> None:
    shuffled = table().set_index(pd.Index([9, 9, 3, 1, 0]))
    assert Manifest.from_table(shuffled, "data", "toy").fingerprint == manifest().fingerprint


@pytest.mark.parametrize(
    ("column", "row", "value", "reason"),
    [
        ("path", 2, "/etc/passwd", "relative"),
        ("path", 2, "a/../../b.jpg", "relative"),
        ("path", 2, "..", "relative"),
        ("path", 2, "./a.jpg", "relative"),
        ("path", 2, "a//b.jpg", "relative"),
        ("path", 2, "folder/", "relative"),
        ("path", 2, "", "relative"),
        ("path", 2, "a\\b.jpg", "relative"),
        ("path", 2, "C:/a.jpg", "relative"),
        ("path", 2, "a\0.jpg", "relative"),
        ("path", 2, 7, "relative"),
        ("path", 2, None, "fill it in"),
        ("path", 5, "gallery/a.jpg", "already in row 4"),
        ("label", 1, None, "fill it in"),
        ("label", 3, 1.5, "whole number"),
        ("label", 3, "cat", "whole number"),
        ("label", 3, float("inf"), "whole number"),
        ("label", 3, 2.0**60, "whole number"),
        ("label", 4, -1, "negative"),
        ("camera", 4, -2, "negative"),
        ("camera", 4, -1, "no camera"),
        ("camera", 5, float("nan"), "fill it in"),
        ("split", 5, "test2", "train, query, gallery, test"),
        ("split", 5, 3, "train, query, gallery, test"),
        ("split", 5, None, "fill it in"),
    ],
)
def test_bad_value_is_named_with_source_row_and_column(column: str, row: int, value: Any, reason: str) -> None:
    values = table()[column].astype(object)
    values[row - 1] = value
    with pytest.raises(DatasetError, match=rf"^toy\.csv, row {row}, column {column}: .*{reason}"):
        manifest(**{column: values})


@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_first_bad_row_is_named_and_the_others_counted(bad: list[bool]) -> None:
    labels = [-5 if is_bad else 1 for is_bad in bad]
    if not any(bad):
        assert manifest(label=labels).table["label"].tolist() == labels
        return
    with pytest.raises(DatasetError) as error:
        manifest(label=labels)
    assert f"row {bad.index(True) + 1}," in str(error.value)
    assert (f"{sum(bad) - 1} more" in str(error.value)) == (sum(bad) > 1)


def test_wrong_columns_are_named() -> None:
    with pytest.raises(DatasetError, match=r"toy\.csv: the table lacks column\(s\) label, split"):
        Manifest.from_table(table().drop(columns=["label", "split"]), "data", "toy", source="toy.csv")
    with pytest.raises(DatasetError, match=r"unknown column.* colour"):
        manifest(colour="red")
    with pytest.raises(DatasetError, match=r"lacks .*x2, y2"):
        manifest(x1=0, y1=0)
    twice = pd.concat([table(), table()["label"]], axis=1)
    with pytest.raises(DatasetError, match=r"repeats .*label"):
        Manifest.from_table(twice, "data", "toy")


def test_empty_table_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no rows"):
        Manifest.from_table(table().iloc[:0], "data", "toy", source="toy.csv")


def test_boxes_are_checked_and_kept() -> None:
    boxes: dict[str, Any] = {"x1": [0, 1, 2, 3, 4], "y1": 0, "x2": 9.0, "y2": 5}
    built = manifest(**boxes)
    assert built.table.loc[4, ["x1", "y1", "x2", "y2"]].tolist() == [4, 0, 9, 5]
    assert built.table["x2"].dtype == np.int64
    assert built.fingerprint != manifest().fingerprint
    with pytest.raises(DatasetError, match=r"row 3, column x2.*empty box"):
        manifest(**{**boxes, "x2": [9, 9, 2, 9, 9]})
    with pytest.raises(DatasetError, match=r"row 1, column y1.*outside"):
        manifest(**{**boxes, "y1": -1})


def test_same_path_may_be_in_train_and_query_but_not_twice_in_a_role() -> None:
    assert len(manifest(path=["a", "b", "a", "c", "d"]).table) == 5
    with pytest.raises(DatasetError, match="row 4, column path: 'a' is a query image already in row 3"):
        manifest(path=["a", "b", "a", "a", "d"], split=["train", "train", "query", "test", "gallery"])


def test_several_boxes_of_one_photograph_are_several_images() -> None:
    boxes: dict[str, Any] = {"x1": [0, 4, 0, 0, 4], "y1": 0, "x2": 9, "y2": 5}
    built = manifest(path=["a", "a", "b", "c", "c"], **boxes)
    assert len(built.table) == 5
    with pytest.raises(
        DatasetError, match="row 5, column path: 'c' is a gallery image already in row 4, with the same box"
    ):
        manifest(path=["a", "a", "b", "c", "c"], **{**boxes, "x1": [0, 4, 0, 0, 0]})


def test_roles_and_subsets() -> None:
    built = manifest(split=["test", "train", "query", "gallery", "test"])
    assert built.subset("query").table["path"].tolist() == ["train/a.jpg", "query/a.jpg", "gallery/b.jpg"]
    assert built.subset("gallery").table["path"].tolist() == ["train/a.jpg", "gallery/a.jpg", "gallery/b.jpg"]
    assert built.subset("train").table.index.tolist() == [0]
    assert built.subset("query").root == built.root
    with pytest.raises(DatasetError, match="unknown role 'test'"):
        built.subset("test")  # type: ignore[arg-type]


def test_training_labels_are_mapped_in_sorted_order_of_the_train_rows() -> None:
    labels = manifest(label=[30, 10, 5, 20, 0], split=["train", "train", "query", "train", "gallery"]).training_labels()
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == np.int64


def test_paths_are_absolute(tmp_path: Path) -> None:
    built = Manifest.from_table(table(), tmp_path, "toy")
    assert built.paths[2] == str(tmp_path / "query" / "a.jpg")
    assert all(Path(path).is_absolute() for path in manifest().paths)


def test_counts_and_differences() -> None:
    built = manifest(label=[30, 30, 20, 20, 20])
    assert built.counts().loc["train"].tolist() == [1, 2, 2]
    assert built.counts().loc["gallery"].tolist() == [1, 2, 1]
    right = {"train": SplitCounts(1, 2, 2), "query": SplitCounts(1, 1, 1)}
    assert built.differences(right) == []  # type: ignore[arg-type]
    assert built.differences({"query": SplitCounts(1, 3_368, 1)}) == ["query has 1 images, published 3,368"]


def test_camera_counts_leave_out_images_without_camera() -> None:
    built = manifest(camera=-1)
    assert not built.has_cameras
    assert built.counts()["cameras"].tolist() == [0, 0, 0]
    assert manifest().has_cameras


def test_empty_role_is_an_error_where_it_is_needed() -> None:
    built = manifest(split="train")
    built.require("train")
    with pytest.raises(DatasetError, match=r"toy at .* has no query and no gallery images.*'train': 5"):
        built.require("train", "query", "gallery")


def test_unmatched_queries() -> None:
    assert manifest().unmatched_queries() == 0
    assert manifest(label=[30, 10, 30, 20, 0]).unmatched_queries() == 1
    # A test image does not match itself: 7 has a second image, 8 and 9 have none.
    assert manifest(label=[7, 7, 8, 9, 9], split=["test", "test", "test", "test", "train"]).unmatched_queries() == 2
    assert manifest(split="train").unmatched_queries() == 0
    same_camera = manifest(camera=[1, 2, 2, 2, 2])
    assert same_camera.unmatched_queries() == 1
    assert same_camera.unmatched_queries(by_camera=False) == 0


def test_fingerprint_depends_on_every_value_and_on_the_order_but_not_on_the_place() -> None:
    first = manifest()
    assert first.fingerprint == Manifest.from_table(table(), "elsewhere", "other").fingerprint
    others = [
        manifest(path=["train/a.jpg", "train/b.jpg", "query/a.jpg", "gallery/a.jpg", "gallery/c.jpg"]),
        manifest(label=[30, 10, 20, 20, 1]),
        manifest(camera=[1, 2, 1, 2, 3]),
        manifest(split=["train", "train", "query", "gallery", "query"]),
        Manifest.from_table(table().iloc[::-1], "data", "toy"),
        Manifest.from_table(table().iloc[:-1], "data", "toy"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 7


def test_fingerprint_is_stable_across_versions() -> None:
    expected = "7f1e525f78b38e3a9f6a81952f70e0aa22fdaad943be71269cf39cffa2a20eeb"
    assert manifest().fingerprint == expected


def test_unknown_dataset_or_option_is_named_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown dataset 'market'.*market1501, .*synthetic_reid"):
        load_manifest("market", tmp_path)
    with pytest.raises(DatasetError, match="market1501 has no option check: its options are check_counts"):
        load_manifest("market1501", tmp_path, check=True)
    assert {"market1501", "synthetic_reid", "synthetic_retrieval"} <= READERS.keys()
