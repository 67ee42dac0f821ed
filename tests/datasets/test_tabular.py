"""Anyone's own data: tables, train and test by class, and several sources in one training."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.datasets.tabular import read_table
from small_files import touch

IMAGES = ("a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg")
PEOPLE = """\
path,label,camera,split
a.jpg,7,1,train
b.jpg,9,2,train
sub/c.jpg,3,1,query
sub/d.jpg,3,2,gallery
"""


def write(root: Path, text: str | bytes, name: str = "my.csv") -> Path:
    """A table beside its images."""
    touch(root, *IMAGES)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root / name


def rows(manifest: Manifest) -> list[list[Any]]:
    return manifest.table.to_numpy().tolist()


def error_of(manifest: Any, root: Path | None = None, **options: Any) -> str:
    with pytest.raises(DatasetError) as error:
        read_table(root, manifest=manifest, **options)
    str(error.value).encode()  # can be printed and logged
    return str(error.value)


def test_a_csv_table(tmp_path: Path) -> None:
    manifest = load_manifest("table", None, manifest=str(write(tmp_path, PEOPLE)))
    assert rows(manifest) == [
        ["a.jpg", 7, 1, "train"],
        ["b.jpg", 9, 2, "train"],
        ["sub/c.jpg", 3, 1, "query"],
        ["sub/d.jpg", 3, 2, "gallery"],
    ]
    assert (manifest.name, manifest.root, manifest.has_cameras) == ("my", tmp_path, True)
    assert all(Path(path).is_file() for path in manifest.paths)


def test_byte_order_mark_line_ends_blank_lines_and_further_columns(tmp_path: Path) -> None:
    plain = read_table(None, manifest=write(tmp_path, PEOPLE))
    lines = [f'{line},"some, ""more""\nwords"' for line in PEOPLE.splitlines()]
    text = "\ufeff" + "\r\n\r\n".join(lines) + "\r\n\r\n"
    assert read_table(None, manifest=write(tmp_path, text)).fingerprint == plain.fingerprint


def test_camera_and_split_may_be_absent_and_boxes_present(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,x1,y1,x2,y2\na.jpg,5,0,1,10,20\nb.jpg,6,2,0,3.0,4\n")
    manifest = read_table(None, manifest=table, train_classes=1)
    assert rows(manifest) == [["a.jpg", 5, -1, "train", 0, 1, 10, 20], ["b.jpg", 6, -1, "test", 2, 0, 3, 4]]
    assert not manifest.has_cameras


def test_names_are_numbered_in_sorted_order_and_never_taken_for_missing_values(tmp_path: Path) -> None:
    table = write(
        tmp_path, "path,label,split\na.jpg,null,train\nb.jpg,NA,train\nsub/c.jpg,nan,test\nsub/d.jpg,NA,train\n"
    )
    assert read_table(None, manifest=table).table["label"].tolist() == [2, 0, 1, 0]


def test_numbers_are_read_exactly(tmp_path: Path) -> None:
    table = write(tmp_path, f"path,label,split\na.jpg,0002,train\nb.jpg,{2**63 - 1},train\nsub/c.jpg,3.0,test\n")
    assert read_table(None, manifest=table).table["label"].tolist() == [2, 2**63 - 1, 3]


def test_paths_are_relative_to_the_root_where_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "images", *IMAGES)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "my.csv").write_text(PEOPLE)
    monkeypatch.chdir(tmp_path / "tables")
    manifest = load_manifest("table", "../images", manifest="my.csv")
    assert manifest.root == tmp_path / "images"
    assert manifest.paths[2] == str(tmp_path / "images" / "sub" / "c.jpg")


@pytest.mark.parametrize("name", ["my.parquet", "my.PQ", "my.table"])
def test_a_parquet_table_is_told_by_suffix_or_content(tmp_path: Path, name: str) -> None:
    text = read_table(None, manifest=write(tmp_path, PEOPLE))
    extended = text.table.assign(label=text.table["label"].astype("uint8"), note=1.5)
    extended["split"] = extended["split"].astype("category")
    extended.to_parquet(tmp_path / name)
    assert read_table(None, manifest=tmp_path / name).fingerprint == text.fingerprint


def test_a_folder_name_with_an_equals_sign_adds_no_column(tmp_path: Path) -> None:
    folder = touch(tmp_path / "label=8", "a.jpg")
    pd.DataFrame({"path": ["a.jpg"], "label": [3], "split": ["test"]}).to_parquet(folder / "my.parquet")
    assert read_table(None, manifest=folder / "my.parquet").table["label"].tolist() == [3]


FILE_NAMES = st.lists(
    st.sampled_from(["ä ü", "a,b", '"q"', "it's", "NA", "1", "line\nbreak", "日本"]), min_size=1, max_size=3
)
LABELS = st.one_of(
    st.lists(st.integers(0, 2**63 - 1), min_size=6, max_size=6),
    st.lists(
        st.sampled_from(["cat", "NA", "Öl, roh", "", "1e3", '"', "nan", " 7"]).filter(bool), min_size=6, max_size=6
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=FILE_NAMES,
    count=st.integers(1, 6),
    labels=LABELS,
    splits=st.lists(st.sampled_from(["train", "query", "gallery", "test"]), min_size=6, max_size=6),
    camera=st.booleans(),
    boxes=st.booleans(),
    data=st.data(),
)
def test_csv_and_parquet_read_alike_and_the_order_of_columns_does_not_matter(
    tmp_path: Path, names: list[str], count: int, labels: list, splits: list[str], camera: bool, boxes: bool, data: Any
) -> None:
    paths = [f"{'/'.join(names)}{number}.jpg" for number in range(count)]
    touch(tmp_path, *paths)
    table = pd.DataFrame({"path": paths, "label": labels[:count], "split": splits[:count]})
    if camera:
        table["camera"] = range(count)
    if boxes:
        table[["x1", "y1", "x2", "y2"]] = [[number, 0, 100 + number, 2**40] for number in range(count)]
    shuffled = table[data.draw(st.permutations(list(table.columns)))]
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    shuffled.to_csv(tmp_path / "s.csv", index=False)
    shuffled.to_parquet(tmp_path / "s.parquet")
    manifests = [read_table(None, manifest=tmp_path / name) for name in ("t.csv", "t.parquet", "s.csv", "s.parquet")]
    assert len({manifest.fingerprint for manifest in manifests}) == 1
    assert manifests[0].table["path"].tolist() == paths
    values = labels[:count]
    expected = values if isinstance(values[0], int) else [sorted(set(values)).index(value) for value in values]
    assert manifests[0].table["label"].tolist() == expected


@pytest.mark.parametrize(
    ("train_classes", "expected"), [(0, set()), (1, {5}), (2, {5, 10}), (0.5, {5, 10}), (0.3, {5}), (0.66, {5, 10, 11})]
)
def test_the_first_classes_train_and_the_others_are_the_test_set(
    tmp_path: Path, train_classes: float, expected: set[int]
) -> None:
    table = write(tmp_path, "path,label\na.jpg,11\nb.jpg,100\nsub/c.jpg,10\nsub/d.jpg,5\n")
    manifest = read_table(None, manifest=table, train_classes=train_classes)
    assert set(manifest.table.loc[manifest.table["split"] == "train", "label"]) == expected
    assert set(manifest.table["split"]) == ({"train", "test"} if expected else {"test"})
    assert not len(manifest.shared_labels())


@pytest.mark.parametrize("value", [-1, 1.0, 0.0, 1.5, float("nan"), "5", True, [1]])
def test_bad_number_of_train_classes(tmp_path: Path, value: Any) -> None:
    message = error_of(write(tmp_path, PEOPLE), train_classes=value)
    assert message.startswith(f"dataset.train_classes={value!r} is neither a number of classes")


def test_train_classes_must_leave_classes_on_both_sides(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label\na.jpg,cat\nb.jpg,dog\n")
    for value, role in ((2, "test"), (7, "test"), (0.9, "test"), (0.1, "train")):
        message = error_of(table, train_classes=value)
        assert f"dataset.train_classes={value} leaves no class to {role}: {table} has 2 in all" in message


def test_without_splits_both_ways_to_get_them_are_explained(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "path,label\na.jpg,1\n"))
    assert "my.csv has no splits" in message
    assert "column split" in message
    assert "dataset.train_classes=100" in message
    assert "dataset.train_classes=0.5" in message
    assert "with dataset.train_classes=0 all are the test set" in message
    folder = touch(tmp_path / "birds", "robin/1.jpg", "wren/1.jpg")
    assert "train/CLASS/IMAGE" in error_of(folder)


def test_splits_and_train_classes_exclude_each_other(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, PEOPLE), train_classes=1)
    assert f"dataset.train_classes=1 is set, but {tmp_path / 'my.csv'} has splits already" in message
    touch(tmp_path / "birds", "train/robin/1.jpg", "test/wren/1.jpg")
    assert "birds has splits already" in error_of(tmp_path / "birds", train_classes=0.5)


def people(root: Path, name: str, text: str = PEOPLE) -> Path:
    return write(root / name, text, f"{name}.csv")


def test_several_sources_have_identities_and_cameras_of_their_own(tmp_path: Path) -> None:
    first, second = people(tmp_path, "one"), people(tmp_path, "two")
    manifest = read_table(None, manifest=[first, second])
    assert (manifest.name, manifest.root) == ("one+two", tmp_path)
    assert rows(manifest)[:4] == [
        ["one/a.jpg", 7, 1, "train"],
        ["one/b.jpg", 9, 2, "train"],
        ["one/sub/c.jpg", 3, 1, "query"],
        ["one/sub/d.jpg", 3, 2, "gallery"],
    ]
    assert rows(manifest)[4:] == [
        ["two/a.jpg", 17, 4, "train"],
        ["two/b.jpg", 19, 5, "train"],
        ["two/sub/c.jpg", 13, 4, "query"],
        ["two/sub/d.jpg", 13, 5, "gallery"],
    ]
    assert manifest.unmatched_queries() == 0
    assert all(Path(path).is_file() for path in manifest.paths)
    assert read_table(None, manifest=[str(first)]).fingerprint == read_table(None, manifest=first).fingerprint


def test_a_table_and_a_folder_below_its_own(tmp_path: Path) -> None:
    table = write(tmp_path, PEOPLE.replace("camera", "view"))
    touch(tmp_path / "birds", "robin/1.jpg", "wren/1.jpg")
    manifest = read_table(None, manifest=[table, tmp_path / "birds"], train_classes=0.5)
    assert (manifest.name, manifest.root) == ("my+birds", tmp_path)
    assert rows(manifest)[4:] == [["birds/robin/1.jpg", 10, -1, "train"], ["birds/wren/1.jpg", 11, -1, "test"]]
    assert not manifest.has_cameras


def test_tables_below_one_root(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", *IMAGES, "e.jpg", "f.jpg")
    tables = [tmp_path / "x.csv", tmp_path / "y.csv"]
    tables[0].write_text(PEOPLE)
    tables[1].write_text("path,label,split\ne.jpg,cat,train\nf.jpg,dog,train\n")
    manifest = read_table(images, manifest=tables)
    assert manifest.root == images
    # The second has no cameras, and only trains: it gets one of its own.
    assert rows(manifest)[4:] == [["e.jpg", 10, 3, "train"], ["f.jpg", 11, 3, "train"]]
    assert manifest.has_cameras
    assert rows(read_table(images, manifest=tables[::-1]))[2] == ["a.jpg", 9, 2, "train"]


def test_sources_that_cannot_be_mixed(tmp_path: Path) -> None:
    first = people(tmp_path, "one")
    blind = people(tmp_path, "blind", PEOPLE.replace("camera", "view"))
    message = error_of([first, blind])
    assert message.startswith(f"{blind} has query, gallery or test images without cameras, but {first} has cameras")
    boxed = people(tmp_path, "boxed", "path,label,split,x1,y1,x2,y2\na.jpg,1,train,0,0,9,9\n")
    assert error_of([first, boxed]).startswith(f"{boxed} has boxes (x1 y1 x2 y2) and {first} has none")
    queries = people(tmp_path, "queries", "path,label,camera,split\na.jpg,1,1,query\n")
    gallery = people(tmp_path, "gallery", "path,label,camera,split\na.jpg,1,2,gallery\n")
    assert error_of([queries, gallery]).startswith(f"{queries} has queries but no gallery")


def test_an_image_in_two_sources_is_named_with_both(tmp_path: Path) -> None:
    first = write(tmp_path, PEOPLE)
    second = people(tmp_path, "sub", "path,label,camera,split\nb.jpg,1,1,train\nd.jpg,3,2,train\n")
    touch(tmp_path / "sub", "d.jpg")
    message = error_of([first, second])
    assert message.startswith(f"{second}, row 2: the image sub/d.jpg is already in {first}, row 4.")
    assert "is already in" in error_of([first, first])


def test_an_image_may_train_and_be_a_query_in_one_source(tmp_path: Path) -> None:
    first = people(tmp_path, "one", PEOPLE + "a.jpg,7,1,gallery\n")
    assert len(read_table(None, manifest=[first, people(tmp_path, "two")]).table) == 9


def test_errors_of_one_source_name_it_and_its_own_row(tmp_path: Path) -> None:
    first, second = people(tmp_path, "one"), people(tmp_path, "two", PEOPLE.replace("9,2", "9,left"))
    assert error_of([first, second]).startswith(f"{second}, row 2, column camera: 'left'")


def test_labels_too_large_to_be_shifted(tmp_path: Path) -> None:
    first, second = people(tmp_path, "one"), people(tmp_path, "two", PEOPLE.replace("9,2", f"{2**63 - 3},2"))
    assert f"{second}: label {2**63 - 3} is too large" in error_of([first, second])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=2, max_size=4))
def test_joining_keeps_identities_apart_and_within_a_source_together(tmp_path: Path, labels: list[list[int]]) -> None:
    tables = []
    for number, own in enumerate(labels):
        text = "path,label,split\n" + "".join(f"{path},{label},train\n" for path, label in zip(IMAGES, own))
        tables.append(people(tmp_path, f"s{number}", text))
    joined = read_table(None, manifest=tables).table["label"].to_numpy()
    expected = [(number, label) for number, own in enumerate(labels) for label in own]
    assert len(np.unique(joined)) == len(set(expected))
    assert len(set(zip(joined.tolist(), expected))) == len(set(expected))
