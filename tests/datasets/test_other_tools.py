"""Tables as other tools write them, and columns that are not used."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from bdbnet.datasets import DatasetError, Manifest
from bdbnet.datasets.columns import near_misses
from bdbnet.datasets.tabular import read_table
from small_files import touch

IMAGES = ("a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg")
OML = """\
label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2,category
7,a.jpg,train,,,1,11,2,22,cars
9,b.jpg,train,,,3,13,4,24,cars
3,sub/c.jpg,validation,True,True,5,15,6,26,buses
3,sub/d.jpg,validation,True,True,7,17,8,28,buses
"""


def write(root: Path, text: str, name: str = "my.csv") -> Path:
    touch(root, *IMAGES)
    (root / name).write_text(text)
    return root / name


def rows(manifest: Manifest) -> list[list[Any]]:
    return manifest.table.to_numpy().tolist()


def read(manifest: Any, root: Path | None = None, **options: Any) -> tuple[Manifest, str]:
    """The manifest and everything that a user is told."""
    with pytest.warns(UserWarning, match=".") as caught:
        found = read_table(root, manifest=manifest, **options)
    return found, "\n".join(str(warning.message) for warning in caught)


def test_every_unused_column_is_named_with_what_it_may_mean(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,split,kamera,note\na.jpg,1,train,2,x\nb.jpg,2,test,1,y\n")
    manifest, said = read(table)
    assert not manifest.has_cameras
    assert said == (
        f"{table}: columns that are not used: kamera, note; did you mean camera by 'kamera'? Then rename the column."
    )


def test_a_table_whose_columns_are_all_used_is_read_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    read_table(None, manifest=write(tmp_path, "path,label,split,camera\na.jpg,1,train,2\nb.jpg,2,test,1\n"))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("kamera", "camera"), ("Camera", "camera"), ("cam_id", "camera"), ("camrea", "camera"), ("Label", "label"),
        ("identity", "label"), ("person id", "label"), ("xmin", "x1"), ("X1", "x1"), ("image path", "path"), ("subset", "split"),
        ("note", None), ("size", None), ("hair", None), ("quality", None),
    ],
)  # fmt: skip
def test_near_misses(name: str, column: str | None) -> None:
    found = near_misses([name], ["path", "label", "camera", "split", "x1", "y1", "x2", "y2"])
    assert found == ({} if column is None else {name: column})


def test_a_missing_column_comes_with_its_near_misses(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"lacks column\(s\) label; it has .*Did you mean label by 'Identity'"):
        read_table(None, manifest=write(tmp_path, "path,Identity\na.jpg,1\n"))


def test_boxes_written_with_width_and_height_are_explained(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,split,x,y,w,h\na.jpg,1,train,0,0,5,5\nb.jpg,2,test,0,0,5,5\n")
    assert "a box is written as x1=x, y1=y, x2=x+w, y2=y+h" in read(table)[1]


def test_a_table_of_open_metric_learning(tmp_path: Path) -> None:
    manifest, said = read(write(tmp_path, OML))
    assert rows(manifest) == [
        ["a.jpg", 7, -1, "train", 1, 2, 11, 22],
        ["b.jpg", 9, -1, "train", 3, 4, 13, 24],
        ["sub/c.jpg", 3, -1, "test", 5, 6, 15, 26],
        ["sub/d.jpg", 3, -1, "test", 7, 8, 17, 28],
    ]
    assert "columns of another name are read: x_1 as x1, y_1 as y1, x_2 as x2, y_2 as y2" in said
    assert "columns that are not used: category" in said


def test_open_metric_learning_in_parquet_reads_alike(tmp_path: Path) -> None:
    text = read(write(tmp_path, OML))[0]
    table = pd.read_csv(tmp_path / "my.csv")
    table["is_query"] = table["is_query"].astype("boolean")
    table.to_parquet(tmp_path / "my.parquet")
    assert read(tmp_path / "my.parquet")[0].fingerprint == text.fingerprint


def test_queries_and_gallery_of_open_metric_learning(tmp_path: Path) -> None:
    table = "path,label,split,is_query,is_gallery\n" + "".join(
        f"{path},1,{split},{flags}\n"
        for path, split, flags in zip(IMAGES, ("train", *["validation"] * 3), (",", "1,0", "0.0,1.0", "False,False"))
    )
    manifest, said = read(write(tmp_path, table))
    assert manifest.table["split"].tolist() == ["train", "query", "gallery"]
    assert "1 row(s) are left out, which are neither query nor gallery" in said


def test_an_image_that_is_both_beside_a_gallery_is_two_rows_where_cameras_tell_it_from_itself(tmp_path: Path) -> None:
    table = "path,label,split,is_query,is_gallery,camera\n" + "".join(
        f"{path},{label},{rest}\n"
        for path, label, rest in zip(
            IMAGES, (9, 1, 1, 1), ("train,,,0", "validation,1,1,0", "validation,0,1,1", "validation,0,1,0")
        )
    )
    manifest = read_table(None, manifest=write(tmp_path, table))
    assert [row[0::3] for row in rows(manifest)] == [
        ["a.jpg", "train"], ["b.jpg", "query"], ["sub/c.jpg", "gallery"], ["sub/d.jpg", "gallery"], ["b.jpg", "gallery"],
    ]  # fmt: skip
    assert manifest.unmatched_queries() == 0


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        ("is_query,is_gallery", "maybe,1", "row 1, column is_query: 'maybe' is neither True nor False"),
        ("is_query", "1", "has the column is_query but not is_gallery"),
        ("x_1,x_2,y_1,y_2", "1,2,,3", "row 1, column y_1: is empty"),
        ("x_1,x_2", "1,2", r"lacks column\(s\) y1, y2"),
    ],
)
def test_what_open_metric_learning_would_refuse_too(tmp_path: Path, columns: str, values: str, message: str) -> None:
    table = write(tmp_path, f"path,label,split,{columns}\na.jpg,1,validation,{values}\n")
    with pytest.raises(DatasetError, match=message):
        read_table(None, manifest=table)


def test_an_empty_box_of_open_metric_learning_is_the_whole_image(tmp_path: Path) -> None:
    table = write(tmp_path, OML.replace(",3,13,4,24", ",,,,"))
    turned = Image.new("RGB", (40, 30))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown upright, the image is 30 wide and 40 high
    turned.save(tmp_path / "b.jpg", exif=exif)
    assert rows(read(table)[0])[1] == ["b.jpg", 9, -1, "train", 0, 0, 30, 40]
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"row 2: the size of an image without a box is needed, but image .*b\.jpg"):
        read_table(None, manifest=table)


def test_columns_of_other_tools_that_are_empty_are_named_and_not_used(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,split,x_1,x_2,y_1,y_2\na.jpg,1,train,,,,\nb.jpg,2,test,,,,\n")
    manifest, said = read(table)
    assert "x1" not in manifest.table
    assert "x_1 (empty)" in said


def test_a_sequence_is_read_as_a_camera(tmp_path: Path) -> None:
    manifest, said = read(
        write(tmp_path, OML.replace("category", "sequence").replace("cars", "").replace("buses\n3", "s1\n3"))
    )
    assert manifest.table["camera"].tolist() == [0, 0, 2, 1]
    assert "own sequence" in said


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg 7 1\nb.jpg 9 2\nsub/c.jpg 3 1\nsub/d.jpg 3 2\n",
        "a.jpg\t7\t1\nb.jpg\t9\t2\n\n# the test set\nsub/c.jpg\t3\t1\nsub/d.jpg\t3\t2",
        "('a.jpg', 7, 1),\n('b.jpg', 9, 2),\n('sub/c.jpg', 3, 1, 0),\n(\"sub/d.jpg\", 3, 2)\n",
        "a.jpg,7,1\nb.jpg,9,2\nsub\\c.jpg,3,1\n./sub/d.jpg,3,2\n",
    ],
)
def test_lists_of_path_label_and_camera(tmp_path: Path, text: str) -> None:
    manifest = read_table(None, manifest=write(tmp_path, text, "list.txt"), train_classes=2)
    assert [row[:3] for row in rows(manifest)] == [
        ["a.jpg", 7, 1],
        ["b.jpg", 9, 2],
        ["sub/c.jpg", 3, 1],
        ["sub/d.jpg", 3, 2],
    ]


def test_a_fourth_value_of_a_list_is_said_not_to_be_used(tmp_path: Path) -> None:
    for name, text in (("my.txt", "a.jpg 7 1 0\nb.jpg 9 2 0\n"), ("my.json", '[["a.jpg", 7, 1, 0], ["b.jpg", 9, 2]]')):
        _, said = read(write(tmp_path, text, name), train_classes=1)
        assert "columns that are not used: the fourth value" in said


def test_lists_for_each_split(tmp_path: Path) -> None:
    lists = [
        write(tmp_path, "a.jpg 7 1\nb.jpg 9 2\n", "train.txt"),
        write(tmp_path, "sub/c.jpg 3 1\n", "list_query.txt"),
        write(tmp_path, "sub/d.jpg 3 2\n", "gallery.txt"),
    ]
    manifest, said = read([*map(str, lists)], share_labels=True)
    assert rows(manifest) == [
        ["a.jpg", 7, 1, "train"],
        ["b.jpg", 9, 2, "train"],
        ["sub/c.jpg", 3, 1, "query"],
        ["sub/d.jpg", 3, 2, "gallery"],
    ]
    assert "list_query.txt: all its images have split query, after its name" in said
    with pytest.raises(DatasetError, match=r"dataset\.options\.share_labels=true if the same label"):
        read_table(None, manifest=lists)


def test_paths_with_spaces_and_labels_alone(tmp_path: Path) -> None:
    touch(tmp_path, "my photos/a 1.JPG", "my photos/a 2.jpg")
    table = write(tmp_path, "my photos/a 1.JPG anna\nmy photos/a 2.jpg ben\n", "my.txt")
    manifest = read_table(None, manifest=table, train_classes=1)
    assert rows(manifest) == [["my photos/a 1.JPG", 0, -1, "train"], ["my photos/a 2.jpg", 1, -1, "test"]]


def test_the_split_file_of_torchreid(tmp_path: Path) -> None:
    split = {
        "train": [["a.jpg", 0, 0], ["b.jpg", 1, 1]], "query": [["sub/c.jpg", 2, 0]], "gallery": [["sub/d.jpg", 2, 1]],
        "num_train_pids": 2,
    }  # fmt: skip
    for content in (split, [split]):
        manifest = read_table(None, manifest=write(tmp_path, json.dumps(content), "splits.json"))
        assert rows(manifest) == [
            ["a.jpg", 0, 0, "train"],
            ["b.jpg", 1, 1, "train"],
            ["sub/c.jpg", 2, 0, "query"],
            ["sub/d.jpg", 2, 1, "gallery"],
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "hello\n", "line 1: 'hello' is not an image's path, its label"),
        ("a.txt", "a.jpg 1\nb.jpg\n", "line 2: 'b.jpg' is not an image's path"),
        ("a.txt", "a.jpg 1 1\nb.jpg 2\n", "row 2: some images have a camera and some have none"),
        ("a.txt", "\n", "lists no images"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", '[{"train": []}, {"train": []}]', "holds 2 splits of a data set"),
        ("a.json", '{"images": []}', "holds no lists of images"),
        ("a.json", '{"train": [["a.jpg"]]}', r"entry 1 of train: \['a.jpg'\] is not \[path, label\]"),
        ("a.json", '{"train": [["a.jpg", null]]}', "entry 1 of train"),
        ("a.json", f'[["a.jpg", {"9" * 400}]]', "entry 1: .* is not .path, label"),
        ("a.json", "[]", "lists no images"),
        ("a.json", "3", "holds no lists of images"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_table(None, manifest=write(tmp_path, text, name), train_classes=1)


def test_the_names_of_torchreid(tmp_path: Path) -> None:
    manifest, said = read(write(tmp_path, "img_path,pid,camid\na.jpg,7,1\nb.jpg,9,2\n"), train_classes=1)
    assert [row[:3] for row in rows(manifest)] == [["a.jpg", 7, 1], ["b.jpg", 9, 2]]
    assert "columns of another name are read: img_path as path, pid as label, camid as camera" in said


def test_our_own_name_comes_first(tmp_path: Path) -> None:
    manifest, said = read(write(tmp_path, "path,label,camera,camid,split\na.jpg,7,1,5,train\nb.jpg,9,2,6,test\n"))
    assert manifest.table["camera"].tolist() == [1, 2]
    assert "columns that are not used: camid" in said


def test_absolute_paths(tmp_path: Path) -> None:
    for name in ("here", "there"):
        touch(tmp_path / name, *IMAGES)
    inside = write(tmp_path / "here", f"path,label,split\n{tmp_path}/here/a.jpg,1,train\nb.jpg,2,test\n")
    assert read_table(None, manifest=inside).table["path"].tolist() == ["a.jpg", "b.jpg"]
    text = f"path,label,split\n{tmp_path}/here/a.jpg,1,train\n{tmp_path}/there/b.jpg,2,test\n"
    outside = write(tmp_path / "here", text)
    with pytest.raises(
        DatasetError, match=r"row 2, column path: .*there/b.jpg' is not a plain.*dataset\.root=/ to read abs"
    ):
        read_table(None, manifest=outside)
    manifest = read_table(Path("/"), manifest=outside)
    assert manifest.root == Path("/")
    assert manifest.paths == [f"{tmp_path}/here/a.jpg", f"{tmp_path}/there/b.jpg"]
    assert read_table(tmp_path, manifest=outside).table["path"].tolist() == ["here/a.jpg", "there/b.jpg"]


def test_paths_of_windows(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,split\nsub\\c.jpg,1,train\n.\\a.jpg,2,test\n")
    assert read_table(None, manifest=table).table["path"].tolist() == ["sub/c.jpg", "a.jpg"]
    table = write(tmp_path, "path,label,split\nC:\\photos\\a.jpg,1,train\n")
    with pytest.raises(DatasetError, match="There are no drives here"):
        read_table(None, manifest=table)


def test_images_that_lie_in_a_folder_above_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/tables/x")
    table = tmp_path / "photos" / "tables" / "my.csv"
    table.write_text("path,label,split\nphotos/a.jpg,1,train\n")
    with pytest.raises(DatasetError, match=f"It is in {tmp_path}: set dataset.root={tmp_path}"):
        read_table(None, manifest=table)


def test_cameras_with_names(tmp_path: Path) -> None:
    table = write(
        tmp_path, "path,label,split,camera\na.jpg,1,train,hall\nb.jpg,2,query,door\nsub/c.jpg,2,gallery,hall\n"
    )
    manifest, said = read(table)
    assert manifest.table["camera"].tolist() == [1, 0, 1]
    assert "the cameras are numbered: 0 = door, 1 = hall" in said


def test_labels_keep_the_names_that_people_know(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,split\na.jpg,0001,train\nb.jpg,12,train\nsub/c.jpg,0003,test\n")
    manifest = read_table(None, manifest=table)
    assert manifest.table["label"].tolist() == [1, 12, 3]
    assert [manifest.subset("train").name_of(label) for label in (1, 12, 3)] == ["0001", "12", "0003"]
    touch(tmp_path / "birds", "train/robin/1.jpg", "test/wren/1.jpg")
    assert read_table(None, manifest=tmp_path / "birds").name_of(1) == "wren"
    other = write(tmp_path / "b", "path,label,split\na.jpg,0004,test\n")
    both = read_table(None, manifest=[table, other])
    assert both.name_of(both.table["label"].iloc[-1]) == "0004"


def test_labels_that_mix_numbers_and_names_are_names(tmp_path: Path) -> None:
    text = "path,label,split\n" + "".join(
        f"{path},{label},train\n" for path, label in zip(IMAGES, ["cat", "10", "9", "cat"])
    )
    manifest, said = read(write(tmp_path, text))
    assert manifest.table["label"].tolist() == [2, 1, 0, 2]
    assert [manifest.name_of(label) for label in (0, 1, 2)] == ["9", "10", "cat"]
    assert "2 labels are numbers and the others names, such as 'cat': all are read as names" in said
    with pytest.raises(DatasetError, match="row 1, column label: -1 is negative"):
        read_table(None, manifest=write(tmp_path, "path,label,split\na.jpg,-1,train\nb.jpg,cat,train\n"))
