"""Readers of vehicle datasets, on generated folders in their documented layout."""

from pathlib import Path

import pytest

from bdbnet.datasets import CountWarning, DatasetError, load_manifest
from small_files import touch


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def test_veri776(tmp_path: Path) -> None:
    touch(tmp_path / "VeRi", "image_train/0001_c001_00016450_0.jpg", "image_query/0002_c020_00023720_0.jpg")
    touch(tmp_path / "VeRi", "image_test/0002_c003_00085065_0.jpg", "name_train.txt")
    with pytest.warns(CountWarning, match="train has 1 images, published 37,778"):
        manifest = load_manifest("veri776", tmp_path)
    assert manifest.table.to_numpy().tolist() == [
        ["image_train/0001_c001_00016450_0.jpg", 1, 1, "train"],
        ["image_query/0002_c020_00023720_0.jpg", 2, 20, "query"],
        ["image_test/0002_c003_00085065_0.jpg", 2, 3, "gallery"],
    ]


def test_veri776_with_a_camera_that_there_is_not(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/0001_c021_00016450_0.jpg" for part in ("image_train", "image_query", "image_test")))
    with pytest.raises(DatasetError, match=r"a name looks like 0001_c001_00016450_0.jpg"):
        load_manifest("veri776", tmp_path)


def vehicleid(root: Path, size: int = 800) -> Path:
    write(root / "train_test_split/train_list.txt", "0000003 9", "0000001 9")
    write(root / f"train_test_split/test_list_{size}.txt", "0000002 7", "0000004 7", "0000005 8", "0000006 8")
    return touch(root, *(f"image/000000{number}.jpg" for number in range(1, 7)))


@pytest.mark.parametrize(("name", "size"), [("small", 800), ("medium", 1600), ("large", 2400)])
def test_vehicleid(tmp_path: Path, name: str, size: int) -> None:
    manifest = load_manifest(f"vehicleid_{name}", vehicleid(tmp_path, size), check_counts=False)
    assert manifest.table.to_numpy().tolist() == [
        ["image/0000003.jpg", 9, -1, "train"],
        ["image/0000001.jpg", 9, -1, "train"],
        *([f"image/000000{number}.jpg", label, -1, "test"] for number, label in ((2, 7), (4, 7), (5, 8), (6, 8))),
    ]


def test_vehicleid_lists_that_name_missing_images(tmp_path: Path) -> None:
    vehicleid(tmp_path)
    for number in (4, 6):
        (tmp_path / f"image/000000{number}.jpg").unlink()
    with pytest.raises(DatasetError) as error:
        load_manifest("vehicleid_small", tmp_path)
    message = str(error.value)
    assert f"{tmp_path / 'train_test_split/test_list_800.txt'} names 2 images of 4 that are not there" in message
    assert "the first is image/0000004.jpg in line 2" in message
    assert "were not tried on the authors' files" in message


def test_vehicleid_with_another_list(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"but not train_test_split/test_list_2400.txt"):
        load_manifest("vehicleid_large", vehicleid(tmp_path))
    write(tmp_path / "train_test_split/train_list.txt", "0000001")
    with pytest.raises(DatasetError, match="line 1: expected the 2 columns path class_id, found '0000001'"):
        load_manifest("vehicleid_small", tmp_path)


INFO = "id/image;Camera ID;Time;Model;Type;Color"


def veri_wild(root: Path, test: str = "test_3000") -> Path:
    lists = root / "train_test_split"
    write(lists / "train_list.txt", "00001/000001", "00001/000002.jpg")
    write(lists / f"{test}_query.txt", "00002/000003")
    write(lists / f"{test}.txt", "00002/000004")
    write(lists / "vehicle_info.txt", INFO, *(f"0000{v}/00000{i};{c};2018-03-11 11:37:20;a;b;c" for v, i, c in
                                              ((1, 1, 133), (1, 2, 7), (2, 3, 8), (2, 4, 9))))  # fmt: skip
    return touch(root, *(f"images/0000{v}/00000{i}.jpg" for v, i in ((1, 1), (1, 2), (2, 3), (2, 4))))


@pytest.mark.parametrize(
    ("name", "test"), [("small", "test_3000"), ("medium", "test_5000_id"), ("large", "test_10000")]
)
def test_veri_wild(tmp_path: Path, name: str, test: str) -> None:
    manifest = load_manifest(f"veri_wild_{name}", veri_wild(tmp_path / "VERI-Wild", test).parent, check_counts=False)
    assert manifest.table.to_numpy().tolist() == [
        ["images/00001/000001.jpg", 1, 133, "train"],
        ["images/00001/000002.jpg", 1, 7, "train"],
        ["images/00002/000003.jpg", 2, 8, "query"],
        ["images/00002/000004.jpg", 2, 9, "gallery"],
    ]


def test_veri_wild_lists_with_cameras(tmp_path: Path) -> None:
    """The number in the middle is one of training in the first list, so the folder says which vehicle it is."""
    lists = veri_wild(tmp_path) / "train_test_split"
    for file in lists.iterdir():
        file.unlink()
    write(lists / "train_list_start0.txt", "00001/000001.jpg 0 133", "00001/000002.jpg 0 7")
    write(lists / "test_3000_id_query.txt", "00002/000003.jpg 2 8")
    write(lists / "test_3000_id.txt", "00002/000004.jpg 2 9")
    manifest = load_manifest("veri_wild_small", tmp_path, check_counts=False)
    assert manifest.table[["label", "camera"]].to_numpy().tolist() == [[1, 133], [1, 7], [2, 8], [2, 9]]
    assert manifest.table["path"].iloc[3] == "images/00002/000004.jpg"
    write(lists / "test_3000_id.txt", "00002/000004.jpg")
    with pytest.raises(DatasetError, match=r"the lists name no cameras, and there is no .*vehicle_info.txt"):
        load_manifest("veri_wild_small", tmp_path)


@pytest.mark.parametrize(
    ("file", "lines", "expected"),
    [
        ("train_list.txt", ["000001"], "train_list.txt, line 1: '000001' is not a vehicle and an image"),
        (
            "test_3000.txt",
            ["00002/000009"],
            r"test_3000.txt names 1 images of 1 that are not there, the first is images/00002/",
        ),
        (
            "vehicle_info.txt",
            [INFO, "00001/000001;133", "00001/000002;7", "00002/000003;8;"],
            r"test_3000.txt, line 1: '00002/000004' has no camera in train_test_split/vehicle_info.txt",
        ),
        (
            "vehicle_info.txt",
            [INFO, "00001/000001,3"],
            "vehicle_info.txt, line 2: '00001/000001,3' does not begin with",
        ),
    ],
)
def test_a_bad_line_of_veri_wild_is_named(tmp_path: Path, file: str, lines: list[str], expected: str) -> None:
    write(veri_wild(tmp_path) / "train_test_split" / file, *lines)
    with pytest.raises(DatasetError, match=expected):
        load_manifest("veri_wild_small", tmp_path)
