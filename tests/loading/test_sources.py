"""Which images are embedded: folders, tables, files and parts of a dataset."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bdbnet.datasets import DatasetError
from bdbnet.loading.sources import find_images
from small_files import touch

FILES = ("a.jpg", "b.jpg", "sub/c.PNG", "sub/deep/d.jpeg")


def table(root: Path, text: str, name: str = "my.csv") -> Path:
    touch(root, *FILES)
    (root / name).write_text(text)
    return root / name


def test_a_folder_gives_all_its_images_sorted_and_knows_no_more(tmp_path):
    touch(tmp_path, *reversed(FILES), "notes.txt", ".hidden.jpg", ".cache/e.jpg")
    images = find_images(tmp_path)
    assert images.table.to_dict("list") == {"path": list(FILES)}
    assert images.root == tmp_path
    assert images.manifest.paths == [str(tmp_path / file) for file in FILES]


def test_one_file(tmp_path):
    touch(tmp_path, *FILES)
    images = find_images(tmp_path / "sub" / "c.PNG")
    assert (images.table["path"].tolist(), images.root, len(images)) == (["c.PNG"], tmp_path / "sub", 1)


def test_a_table_keeps_what_it_knows(tmp_path):
    rows = [
        "path,time,shop,label,camera,x1,y1,x2,y2", "sub/c.PNG,1700000000.5,here,7,0,1,2,3,4", "a.jpg,,there,9,2,0,0,5,5",
        "b.jpg,2023-11-14T22:13:20Z,,9,2,0,0,5,5", "b.jpg,2023-11-14 23:13:21+01:00,,9,2,0,0,6,6",
        '"b.jpg",2023-11-14,,9,2,0,0,7,7',
    ]  # fmt: skip
    found = find_images(table(tmp_path, "\n".join(rows))).table
    assert found.columns.tolist() == ["path", "label", "camera", "x1", "y1", "x2", "y2", "time"]
    assert found["path"].tolist() == ["sub/c.PNG", "a.jpg", "b.jpg", "b.jpg", "b.jpg"]
    assert found["label"].tolist() == [7, 9, 9, 9, 9]
    assert (found[["label", "camera", "x2"]].dtypes == np.int64).all()
    assert np.array_equal(found["time"], [1700000000.5, np.nan, 1700000000, 1700000001, 1699920000], equal_nan=True)


def test_parquet_means_the_same_as_csv(tmp_path):
    touch(tmp_path / "images", *FILES)
    times = pd.to_datetime(["2023-11-14T22:13:20", None], utc=True)
    rows = pd.DataFrame({"path": ["a.jpg", "sub/c.PNG"], "camera": [1, 0], "time": times})
    rows.to_parquet(tmp_path / "my.parquet")
    rows.to_csv(tmp_path / "my.csv", index=False)
    found = [find_images(tmp_path / name, root=tmp_path / "images").table for name in ("my.parquet", "my.csv")]
    pd.testing.assert_frame_equal(*found)
    assert found[0]["time"].iloc[0] == 1700000000
    assert "label" not in found[0].columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\n1\n", r"my.csv: the table lacks column\(s\) path; it has 'label'"),
        ("path,x1\na.jpg,1\n", r"lacks column\(s\) y1, x2, y2"),
        ("path,label,label\na.jpg,1,1\n", r"has column\(s\) label more than once"),
        ("path,label\na.jpg,1\nb.jpg,anna\n", "my.csv, row 2, column label: 'anna' is not a whole number"),
        ("path,label\na.jpg,-1\n", "row 1, column label: -1 is negative"),
        ("path,camera\na.jpg,1\nb.jpg,\n", "row 2, column camera: '' is not a whole number"),
        ("path\na.jpg\n../b.jpg\n", "row 2, column path: '../b.jpg' is not a plain relative path"),
        ("path\na.jpg\n/etc/b.jpg\n", "row 2, column path: '/etc/b.jpg' is not a plain relative path"),
        ("path\na.jpg\nsub/c.PNG\na.jpg\n", "row 3, column path: 'a.jpg' is a gallery image already in row 1"),
        ("path\na.jpg\nnone.jpg\n", "1 of the 2 listed images are not there, the first is 'none.jpg' in row 2"),
        ("path,time\na.jpg,5\nb.jpg,noon\n", "row 2, column time: 'noon' is no time: write seconds"),
        ("path,time\na.jpg,inf\n", "row 1, column time: 'inf' is no time"),
        ("path,label\na.jpg\n", "can't be read as a table .*Expected 2 columns, got 1"),
        ("path\n", "the table has no rows"),
        ("", "can't be read as a table"),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column(text, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        find_images(table(tmp_path, text))


def test_what_holds_no_images_is_refused(tmp_path):
    touch(tmp_path, "notes.txt")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    for images, message in (
        (tmp_path, "there is no image .*jpg.* in this folder or below"),
        (tmp_path / "absent", "there is no such file or folder"),
        (tmp_path / "notes.txt", "neither a folder, a table .* nor an image"),
        (tmp_path / "bad.parquet", "can't be read as a table"),
    ):
        with pytest.raises(DatasetError, match=message):
            find_images(images)
    touch(tmp_path, "a.jpg")
    with pytest.raises(DatasetError, match=r"root=.* leave root= out"):
        find_images(tmp_path, root=tmp_path)


def test_columns_that_are_not_used_are_named_and_those_of_other_tools_read(tmp_path):
    text = "img_path,pid,camid,kamera,x_1,y_1,x_2,y_2\nsub\\c.PNG,7,1,x,0,1,2,3\n"
    file = table(tmp_path, text)
    with pytest.warns(UserWarning, match="columns that are not used: kamera") as caught:
        found = find_images(file).table
    assert found.to_dict("list") == {
        "path": ["sub/c.PNG"], "label": [7], "camera": [1], "x1": [0], "y1": [1], "x2": [2], "y2": [3],
    }  # fmt: skip
    assert "img_path as path, pid as label, camid as camera" in str(caught[0].message)


def test_absolute_paths_are_read_below_the_root(tmp_path):
    images = touch(tmp_path / "images", *FILES)
    (tmp_path / "tables").mkdir()
    file = tmp_path / "tables" / "my.csv"
    file.write_text(f"path\n{images}/a.jpg\n")
    with pytest.raises(DatasetError, match=r"row 1, column path: .*Set root=/ to read absolute paths from anywhere"):
        find_images(file)
    assert find_images(file, root="/").manifest.paths == [str(images / "a.jpg")]
    assert find_images(file, root=images).table["path"].tolist() == ["a.jpg"]


def test_images_in_other_formats_are_counted_and_named(tmp_path):
    touch(tmp_path, "a.jfif", "b.JPE", "sub/c.heic", "notes.txt")
    with pytest.warns(UserWarning, match=r"left out are 1 image\(s\) in formats .* \(1 \.heic\), such as sub/c\.heic"):
        assert find_images(tmp_path).table["path"].tolist() == ["a.jfif", "b.JPE"]
    touch(tmp_path / "phone", "1.heic", "2.heic")
    with pytest.raises(DatasetError, match=r"there are 2 image\(s\) in formats that are not read here \(2 \.heic\)"):
        find_images(tmp_path / "phone")


def test_a_table_of_open_metric_learning_may_leave_boxes_and_sequences_empty(tmp_path):
    text = "path,label,sequence,x_1,y_1,x_2,y_2\na.jpg,0007,hall,,,,\nb.jpg,8,,1,2,3,4\nsub/c.PNG,8,yard,0,0,2,2\n"
    file = table(tmp_path, text)
    Image.new("RGB", (12, 34)).save(tmp_path / "a.jpg")
    with pytest.warns(UserWarning, match="sequence as camera"):
        found = find_images(file).table
    assert found[["label", "camera", "x1", "y1", "x2", "y2"]].to_numpy().tolist() == [
        [7, 1, 0, 0, 12, 34], [8, 0, 1, 2, 3, 4], [8, 2, 0, 0, 2, 2],
    ]  # fmt: skip
    with pytest.warns(UserWarning, match=r"not used: sequence \(empty\), x_1 \(empty\)"):
        found = find_images(table(tmp_path, "path,label,sequence,x_1,y_1,x_2,y_2\na.jpg,1,,,,,\n")).table
    assert list(found) == ["path", "label"]
    with pytest.raises(DatasetError, match="row 2, column y_2: is empty"):
        find_images(table(tmp_path, "path,x_1,y_1,x_2,y_2\na.jpg,,,,\nb.jpg,1,2,3,\n"))
    with pytest.warns(UserWarning, match="the cameras are numbered: 0 = hall, 1 = yard"):
        assert find_images(table(tmp_path, "path,camera\na.jpg,yard\nb.jpg,hall\n")).table["camera"].tolist() == [1, 0]
