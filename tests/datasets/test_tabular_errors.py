"""Bad tables: every message names the file and, where there is one, row and column."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bdbnet.datasets import DatasetError
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


def error_of(manifest: Any, root: Path | None = None, **options: Any) -> str:
    with pytest.raises(DatasetError) as error:
        read_table(root, manifest=manifest, **options)
    str(error.value).encode()  # can be printed and logged
    return str(error.value)


@pytest.mark.parametrize("manifest", [None, "", [], [None], ["a.csv", ""]])
def test_without_a_manifest_the_setting_is_named_with_an_example(manifest: Any) -> None:
    message = error_of(manifest)
    assert message.startswith("dataset.manifest names no data")
    assert "dataset.manifest=my.csv" in message


def test_a_manifest_that_is_no_name_or_no_file(tmp_path: Path) -> None:
    assert "dataset.manifest=5 is not the name of a file" in error_of(5)
    assert "dataset.manifest={'a': 1} is not" in error_of({"a": 1})
    missing = tmp_path / "my.csv"
    message = error_of(missing)
    assert f"can't read {missing}: No such file or directory" in message
    assert "dataset.manifest must name" in message
    assert "there is no such user" in error_of("~nobody-of-this-name/my.csv")
    missing.symlink_to(missing)
    assert f"can't read {missing}: Too many levels of symbolic links" in error_of(missing)
    assert r"the name " in error_of(os.fsdecode(b"caf\xe9.csv"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty. Required columns are path, label"),
        ("\n\n", "is empty"),
        ("path,label,split\n", "the table has no rows"),
        ("path,camera\na.jpg,1\n", r"lacks column(s) label; it has 'path', 'camera'."),
        ("Path,label ,split\na.jpg,1,train\n", "lacks column(s) path, label; it has 'Path', 'label ', 'split'."),
        ("path;label;split\na.jpg;1;train\n", "it has 'path;label;split'. Columns are separated by commas."),
        ("path\tlabel\na.jpg\t1\n", "Columns are separated by commas."),
        ("path,label,x1,y1\na.jpg,1,0,0\n", "lacks column(s) x2, y2"),
        ("path,label,label\na.jpg,1,2\n", "has column(s) label more than once"),
        ("path,label,split\na.jpg,1,train\nb.jpg,1\n", "row 2: has 2 values for the 3 columns"),
        ("path,label,split\na.jpg,1,train\nb,x.jpg,1,train\n", "row 2: has 4 values for the 3 columns"),
        ('path,label,split\na.jpg,1,train\n"b.jpg,1,train\n', "line 3: is not CSV (unexpected end of data)"),
        ('path,label,split\n"a"b.jpg,1,train\n', "line 2: is not CSV"),
    ],
)  # fmt: skip
def test_a_bad_csv_file(tmp_path: Path, text: str, expected: str) -> None:
    table = write(tmp_path, text)
    message = error_of(table)
    assert message.startswith(str(table))
    assert expected in message


@pytest.mark.parametrize(
    ("row", "column", "value", "reason"),
    [
        (2, "label", "1.5", "'1.5' is not a whole number"),
        (2, "label", str(2**63), "is not a whole number below 2**63"),
        (2, "label", "9" * 5000, "is not a whole number below 2**63"),
        (2, "label", "", "is empty. Fill it in"),
        (2, "label", "-1", "is negative"),
        (3, "camera", "left", "'left' is not a whole number"),
        (3, "camera", "", "is empty"),
        (3, "camera", "-1", "means no camera, but other rows have one"),
        (3, "camera", "1.5", "is not a whole number"),
        (4, "x1", "a", "'a' is not a whole number"),
        (4, "x1", "-3", "lies outside of the image"),
        (4, "x2", "0", "leaves an empty box"),
        (4, "y2", "0", "leaves an empty box"),
        (4, "y2", "1_000", "is not a whole number"),
        (1, "path", "", "is empty"),
        (1, "path", "/etc/passwd", "is not a plain relative path, and lies outside of"),
        (1, "path", "../a.jpg", "is not a plain relative path"),
        (1, "path", "sub/../a.jpg", "is not a plain relative path"),
        (1, "path", "C:/a.jpg", "is not a plain relative path"),
        (1, "path", "a\0.jpg", "is not a plain relative path"),
        (2, "path", "a.jpg", "'a.jpg' is a train image already in row 1"),
        (4, "split", "validation", "'validation' is not one of train, query, gallery, test"),
        (4, "split", " test", "' test' is not one of"),
        (4, "split", "", "is empty"),
    ],
)
@pytest.mark.parametrize("kind", ["my.csv", "my.parquet"])
def test_a_bad_value_is_named_with_file_row_and_column(
    tmp_path: Path, kind: str, row: int, column: str, value: str, reason: str
) -> None:
    table = pd.read_csv(write(tmp_path, PEOPLE), dtype=str)
    table[["x1", "y1", "x2", "y2"]] = ["0", "0", "10", "10"]
    table.loc[row - 1, column] = value
    path = tmp_path / kind
    table.to_csv(path, index=False) if kind == "my.csv" else table.to_parquet(path)
    message = error_of(path)
    assert message.startswith(f"{path}, row {row}, column {column}: ")
    assert reason in message


def test_other_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    text = PEOPLE.replace("3,1,query", "3,1,query\ncafé.jpg,3,1,query")
    assert "my.csv, line 5: is not UTF-8 text. Save the table again" in error_of(
        write(tmp_path, text.encode("latin-1"))
    )
    with_mark = b"\xef\xbb\xbf" + text.encode("latin-1")
    assert "my.csv, line 5: is not UTF-8 text" in error_of(write(tmp_path, with_mark))
    assert "my.csv, line 1: is not UTF-8 text" in error_of(write(tmp_path, PEOPLE.encode("utf-16")))


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    text = read_table(None, manifest=write(tmp_path, PEOPLE))
    whole = tmp_path / "whole.parquet"
    text.table.to_parquet(whole)
    content = whole.read_bytes()
    damaged = bytearray(content)
    damaged[20:60] = b"x" * 40
    for bad in (b"", b"PAR1", PEOPLE.encode(), content[:-20], content[: len(content) // 2], bytes(damaged)):
        path = write(tmp_path, bad, "bad.parquet")
        assert f"{path} is not a complete Parquet file" in error_of(path)


def test_a_parquet_table_with_wrong_columns_or_types(tmp_path: Path) -> None:
    good = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "label": [1, 2], "split": "train"})
    path = touch(tmp_path, *IMAGES) / "my.parquet"
    for change, expected in (
        ({"label": [1.0, 1.5]}, "row 2, column label: 1.5 is not a whole number"),
        ({"label": pd.array([1, None], dtype="Int64")}, "row 2, column label: is empty"),
        ({"label": [1.0, float("nan")]}, "row 2, column label: is empty"),
        ({"label": [True, False]}, "column label: holds bool where text or numbers are needed"),
        ({"label": pd.to_datetime(["2020-01-01"] * 2)}, "column label: holds "),
        ({"label": [b"a", b"b"]}, "column label: holds bytes"),
        ({"camera": [[1], [2]]}, "column camera: holds list"),
        ({"path": [1, 2]}, "row 1, column path: 1 is not a plain relative path"),
        ({"split": ["train", None]}, "row 2, column split: is empty"),
    ):
        good.assign(**change).to_parquet(path)
        assert f"{path}, {expected}" in error_of(path)
    good.drop(columns="label").to_parquet(path)
    assert f"{path}: the table lacks column(s) label; it has 'path', 'split'." in error_of(path)
    good.iloc[:0].to_parquet(path)
    assert f"{path}: the table has no rows" in error_of(path)


def test_listed_images_that_are_not_there(tmp_path: Path) -> None:
    table = write(tmp_path, PEOPLE)
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "sub" / "d.jpg").unlink()
    message = error_of(table)
    assert f"{table}: 2 of the 4 listed images are not there, the first is 'b.jpg' in row 2." in message
    assert f"relative to {tmp_path} (the folder of the table; set dataset.root if it is another)" in message
    message = error_of(table, tmp_path / "elsewhere")
    assert "4 of the 4 listed images" in message
    assert f"relative to {tmp_path / 'elsewhere'} (dataset.root)" in message


def test_a_folder_name_that_is_too_long(tmp_path: Path) -> None:
    text = f"path,label,split\n{'x' * 300}/a.jpg,1,train\n"
    assert "my.csv: can't look for its images" in error_of(write(tmp_path, text))


@pytest.mark.parametrize("labels", [("7", "007"), ("8", "8.0"), ("08", "8")])
def test_two_spellings_of_a_number_are_not_one_identity(tmp_path: Path, labels: tuple[str, str]) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    rows = [f"a.jpg,{labels[0]},train", f"b.jpg,{labels[1]},train", "c.jpg,9,test", "d.jpg,9,test"]
    (tmp_path / "my.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(
        DatasetError, match=rf"row 2, column label: '{labels[1]}' and '{labels[0]}' are the same number"
    ):
        read_table(None, manifest=tmp_path / "my.csv")
