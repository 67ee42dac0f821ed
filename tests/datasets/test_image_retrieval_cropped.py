"""Readers of cropped retrieval datasets, on their authors' lists and boxes, and on files that can't be used."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat

from bdbnet.datasets import PUBLISHED_COUNTS, DatasetError, Manifest, load_manifest
from bdbnet.datasets.image_retrieval import read_cars196, read_cub200
from small_files import link_images

BOXES = ["x1", "y1", "x2", "y2"]
CARS_FIELDS = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), newline="")


def error_of(reader: Callable[..., Manifest], root: Path, **options: bool) -> str:
    with pytest.raises(DatasetError) as error:
        reader(root, check_counts=False, **options)
    return str(error.value)


def rows_of(manifest: Manifest) -> list[list[Any]]:
    return manifest.table.to_numpy().tolist()


def assert_complete(name: str, manifest: Manifest, warned: pytest.WarningsRecorder) -> None:
    assert not warned.list
    assert manifest.differences(PUBLISHED_COUNTS[name]) == []
    assert manifest.name == name
    assert (manifest.table["camera"] == -1).all()
    assert len(manifest.shared_labels()) == 0
    assert all(Path(path).is_file() for path in manifest.paths[::500])


# CUB-200-2011


@pytest.fixture(scope="module")
def cub_lists(shared_data: Path) -> Path:
    return shared_data / "protocols" / "cub200"


@pytest.fixture(scope="module")
def cub_root(cub_lists: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the authors' archive holds: their lists and all names of images in one folder, a file beside it."""
    root = tmp_path_factory.mktemp("cub")
    base = root / "CUB_200_2011"
    link_images(base / "images", [line.split()[1] for line in (cub_lists / "images.txt").read_text().splitlines()])
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "train_test_split.txt"):
        shutil.copy(cub_lists / name, base)
    write(root / "attributes.txt", "1 has_bill_shape::curved_(up_or_down)")
    yield root
    shutil.rmtree(root)


def test_cub_has_the_published_counts(cub_root: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = load_manifest("cub200", cub_root)
    assert_complete("cub200", manifest, recwarn)
    assert manifest.counts()["images"].tolist() == [5_864, 5_924, 5_924]
    assert manifest.counts()["identities"].tolist() == [100, 100, 100]
    assert manifest.root == cub_root / "CUB_200_2011"
    assert sorted(manifest.table.loc[manifest.table["split"] == "test", "label"].unique()) == list(range(101, 201))


def test_cub_rows_agree_with_the_authors_lists(cub_root: Path, cub_lists: Path) -> None:
    manifest = read_cub200(cub_root)
    listed = [line.split()[1] for line in (cub_lists / "images.txt").read_text().splitlines()]
    assert manifest.table["path"].tolist() == [f"images/{path}" for path in listed]
    assert manifest.table["label"].tolist() == [int(path[:3]) for path in listed]
    boxes = manifest.table[BOXES]
    assert (boxes.dtypes == np.int64).all()
    for row in (0, 1, 5_863, 5_864, 11_787):
        number, *box = (cub_lists / "bounding_boxes.txt").read_text().splitlines()[row].split()
        x, y, width, height = map(float, box)
        assert int(number) == row + 1
        assert boxes.iloc[row].tolist() == [x, y, x + width, y + height]
    assert boxes.iloc[0].tolist() == [60, 27, 385, 331]


def small_cub(root: Path, **changes: list[str]) -> Path:
    lists = {
        "images": ["7 b/test.jpg", "2 a/train.jpg", "1 b/late.jpg"],
        "image_class_labels": ["1 200", "2 100", "7 101"],
        "bounding_boxes": ["1 0.0 0.0 5.0 5.0", "2 1.5 2.0 3.25 4.0", "7 -3.0 -0.5 9.0 4.0"],
    }
    for name, lines in {**lists, **changes}.items():
        write(root / f"{name}.txt", *lines)
    return link_images(root / "images", ["a/train.jpg", "b/test.jpg", "b/late.jpg"]).parent


def test_cub_lists_are_joined_by_id_and_boxes_become_whole_pixels_inside_the_image(tmp_path: Path) -> None:
    assert rows_of(read_cub200(small_cub(tmp_path), check_counts=False)) == [
        ["images/a/train.jpg", 100, -1, "train", 1, 2, 5, 6],
        ["images/b/test.jpg", 101, -1, "test", 0, 0, 6, 4],
        ["images/b/late.jpg", 200, -1, "test", 0, 0, 5, 5],
    ]


def test_cub_without_crop_needs_no_boxes(tmp_path: Path) -> None:
    (small_cub(tmp_path) / "bounding_boxes.txt").unlink()
    whole = load_manifest("cub200", tmp_path, crop=False, check_counts=False)
    assert list(whole.table.columns) == ["path", "label", "camera", "split"]
    assert whole.table["label"].tolist() == [100, 101, 200]
    assert "but not bounding_boxes.txt" in error_of(read_cub200, tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "text", "expected"),
    [
        ("images", 2, "2", "the 2 columns image_id path, found '2'"),
        ("images", 2, "2 a/my train.jpg", "the 2 columns image_id path"),
        ("images", 2, "two a/train.jpg", "image_id 'two' is not a whole number"),
        ("images", 2, "2 ../a/train.jpg", "path '../a/train.jpg' is not a plain relative path"),
        ("images", 2, "2 /a/train.jpg", "path '/a/train.jpg' is not"),
        ("images", 2, "2 a\\train.jpg", "is not a plain relative path"),
        ("images", 3, "2 b/late.jpg", "2 is listed a second time"),
        ("images", 2, "2 b/test.jpg", "'b/test.jpg' is listed a second time"),
        ("image_class_labels", 3, "7 x", "class_id 'x' is not a whole number"),
        ("image_class_labels", 3, "7 -1", "class_id '-1' is not a whole number"),
        ("image_class_labels", 1, "1 201", "201 is not one of the classes 1 to 200"),
        ("image_class_labels", 1, "1 0", "0 is not one of the classes 1 to 200"),
        ("image_class_labels", 2, "1 100", "1 is listed a second time"),
        ("bounding_boxes", 2, "2 1.0 2.0 3.0", "the 5 columns image_id x y width height"),
        ("bounding_boxes", 2, "2 1.0 2.0 nan 4.0", "width 'nan' is not a number"),
        ("bounding_boxes", 2, "2 1.0 2.0 0.0 4.0", "1 for x2 leaves an empty box"),
        ("bounding_boxes", 2, "2 1.0 -9.0 3.0 4.0", "0 for y2 leaves an empty box"),
    ],
)
def test_cub_bad_line_is_named(tmp_path: Path, name: str, line: int, text: str, expected: str) -> None:
    small_cub(tmp_path)
    lines = (tmp_path / f"{name}.txt").read_text().splitlines()
    write(tmp_path / f"{name}.txt", *lines[: line - 1], text, *lines[line:])
    message = error_of(read_cub200, tmp_path)
    assert message.startswith(f"{tmp_path / name}.txt, line {line}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("changes", "holder", "number", "other"),
    [
        ({"image_class_labels": ["1 200", "2 100"]}, "images.txt", 7, "image_class_labels.txt"),
        (
            {"image_class_labels": ["1 200", "2 100", "7 101", "8 101"]},
            "image_class_labels.txt",
            8,
            "images.txt",
        ),
        ({"bounding_boxes": ["2 1.0 1.0 9.0 9.0", "7 1.0 1.0 9.0 9.0"]}, "images.txt", 1, "bounding_boxes.txt"),
    ],
)
def test_cub_lists_with_different_ids(
    tmp_path: Path, changes: dict[str, list[str]], holder: str, number: int, other: str
) -> None:
    message = error_of(read_cub200, small_cub(tmp_path, **changes))
    assert f"{tmp_path / holder} lists 1 image_id that {tmp_path / other} lacks: {number}." in message


# CARS196


def real_boxes(shared_data: Path, name: str) -> np.ndarray:
    annotations: np.ndarray = loadmat(shared_data / "protocols" / "cars196" / name)["annotations"]
    return annotations


@pytest.fixture(scope="module")
def cars_apart(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The authors' training annotations; their test boxes with classes that lead to the published counts."""
    root = tmp_path_factory.mktemp("cars_apart")
    test = real_boxes(shared_data, "cars_test_annos.mat")
    labelled = np.empty(test.shape, [(field, object) for field in CARS_FIELDS])
    for field in test.dtype.names or ():
        labelled[field] = test[field]
    # 4,052 of the authors' training images are of the classes 1 to 98: 4,002 more make 8,054.
    classes = [number % 98 + (1 if number < 4_002 else 99) for number in range(8_041)]
    for number, label in enumerate(np.random.default_rng(0).permutation(classes)):
        labelled["class"][0, number] = np.array([[label]], np.uint8)
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": labelled})
    (root / "devkit").mkdir()
    shutil.copy(shared_data / "protocols" / "cars196" / "cars_train_annos.mat", root / "devkit")
    for part, size in (("cars_train", 8_144), ("cars_test", 8_041)):
        link_images(root / part, [f"{number:05}.jpg" for number in range(1, size + 1)])
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def cars_together(cars_apart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same cars, numbered through in one folder."""
    root = tmp_path_factory.mktemp("cars_together") / "cars196"
    train = loadmat(cars_apart / "devkit" / "cars_train_annos.mat")["annotations"][0]
    test = loadmat(cars_apart / "cars_test_annos_withlabels.mat")["annotations"][0]
    fields = ["relative_im_path", *CARS_FIELDS[:5], "test"]
    annotations = np.empty((1, len(train) + len(test)), [(field, object) for field in fields])
    for field in CARS_FIELDS[:5]:
        annotations[field][0] = np.concatenate([train[field], test[field]])
    names = [f"car_ims/{number:06}.jpg" for number in range(1, annotations.size + 1)]
    for number, name in enumerate(names):
        annotations["relative_im_path"][0, number] = np.array([name])
        annotations["test"][0, number] = np.array([[number >= len(train)]], np.uint8)
    link_images(root, names)
    savemat(root / "cars_annos.mat", {"annotations": annotations})
    yield root.parent
    shutil.rmtree(root.parent)


def test_generated_test_annotations_have_the_structure_of_the_authors_files(
    cars_apart: Path, shared_data: Path
) -> None:
    authors = real_boxes(shared_data, "cars_train_annos.mat")
    generated = loadmat(cars_apart / "cars_test_annos_withlabels.mat")["annotations"]
    assert generated.dtype == authors.dtype
    assert (authors.shape, generated.shape) == ((1, 8_144), (1, 8_041))
    for field in CARS_FIELDS:
        ours, theirs = generated[field][0, 0], authors[field][0, 0]
        assert (ours.shape, ours.dtype.kind) == (theirs.shape, theirs.dtype.kind)


@pytest.mark.parametrize("layout", ["cars_apart", "cars_together"])
def test_cars_has_the_published_counts(
    layout: str, request: pytest.FixtureRequest, recwarn: pytest.WarningsRecorder
) -> None:
    manifest = load_manifest("cars196", request.getfixturevalue(layout))
    assert_complete("cars196", manifest, recwarn)
    assert manifest.counts()["images"].tolist() == [8_054, 8_131, 8_131]
    assert sorted(manifest.table.loc[manifest.table["split"] == "train", "label"].unique()) == list(range(1, 99))


def test_cars_layouts_give_the_same_labels_and_boxes(cars_apart: Path, cars_together: Path) -> None:
    apart, together = read_cars196(cars_apart).table, read_cars196(cars_together).table
    pd.testing.assert_frame_equal(apart.drop(columns="path"), together.drop(columns="path"))
    place = apart["path"].str.extract(r"(train|test)/(\d+)\.jpg")
    number = place[1].astype(int) + 8_144 * (place[0] == "test")
    assert together["path"].tolist() == [f"car_ims/{value:06}.jpg" for value in number]
    for split in ("train", "test"):
        assert number[apart["split"] == split].is_monotonic_increasing


def test_cars_rows_agree_with_the_authors_file(cars_apart: Path, shared_data: Path) -> None:
    table = read_cars196(cars_apart).table.set_index("path")
    assert (table[BOXES].dtypes == np.int64).all()
    assert table.loc["cars_train/00001.jpg"].tolist() == [14, -1, "train", 38, 115, 569, 375]
    for name, folder in (("cars_train_annos.mat", "cars_train"), ("cars_test_annos.mat", "cars_test")):
        annotations = real_boxes(shared_data, name)[0]
        for row in (0, 1, len(annotations) - 1):
            x1, y1, x2, y2 = (int(annotations[row][field].item()) for field in CARS_FIELDS[:4])
            image = f"{folder}/{annotations[row]['fname'].item()}"
            assert table.loc[image, BOXES].tolist() == [x1 - 1, y1 - 1, x2, y2]


def test_cars_without_classes_of_the_test_images(shared_data: Path, tmp_path: Path) -> None:
    for name in ("cars_train", "cars_test", "devkit"):
        (tmp_path / name).mkdir()
    for name in ("cars_train_annos.mat", "cars_test_annos.mat"):
        shutil.copy(shared_data / "protocols" / "cars196" / name, tmp_path / "devkit")
    message = error_of(read_cars196, tmp_path)
    assert "cars_test_annos_withlabels.mat is missing" in message
    assert "The plain devkit (cars_test_annos.mat) holds no classes of the test images" in message
    shutil.copy(tmp_path / "devkit" / "cars_test_annos.mat", tmp_path / "cars_test_annos_withlabels.mat")
    assert f"{tmp_path / 'cars_test_annos_withlabels.mat'} lacks class" in error_of(read_cars196, tmp_path)


CAR = {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 8, "bbox_y2": 6.0, "class": 5}


def small_cars(root: Path, **changes: object) -> Path:
    cars = [{"fname": "00002.jpg", **CAR, "class": 196}, {"fname": "00001.jpg", **CAR, **changes}]
    fields = [field for field in cars[1] if cars[1][field] is not None]
    annotations = np.empty((1, 2), [(field, object) for field in fields])
    for number, car in enumerate(cars):
        annotations[0, number] = tuple(car[field] for field in fields)
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": annotations})
    savemat(root / "devkit" / "cars_test_annos_withlabels.mat", {"annotations": {"fname": "00001.jpg", **CAR}})
    link_images(root / "cars_test", ["00001.jpg"])
    return link_images(root / "cars_train", ["00001.jpg", "00002.jpg"]).parent


def test_cars_with_one_image_and_labels_in_the_devkit(tmp_path: Path) -> None:
    assert rows_of(read_cars196(small_cars(tmp_path / "cars"), check_counts=False)) == [
        ["cars_train/00001.jpg", 5, -1, "train", 0, 1, 8, 6],
        ["cars_test/00001.jpg", 5, -1, "train", 0, 1, 8, 6],
        ["cars_train/00002.jpg", 196, -1, "test", 0, 1, 8, 6],
    ]


def test_cars_as_kaggle_has_them(tmp_path: Path) -> None:
    small_cars(tmp_path / "cars")
    root = tmp_path / "kaggle"
    for part in ("cars_train", "cars_test"):
        (root / part).mkdir(parents=True)
        (tmp_path / "cars" / part).rename(root / part / part)
    (root / "car_devkit").mkdir()
    (tmp_path / "cars" / "devkit").rename(root / "car_devkit" / "devkit")
    assert [row[:4] for row in rows_of(read_cars196(root, check_counts=False))] == [
        ["cars_train/cars_train/00001.jpg", 5, -1, "train"],
        ["cars_test/cars_test/00001.jpg", 5, -1, "train"],
        ["cars_train/cars_train/00002.jpg", 196, -1, "test"],
    ]


def test_cars_without_crop_needs_no_boxes(tmp_path: Path) -> None:
    manifest = read_cars196(small_cars(tmp_path, bbox_x1=None, bbox_y2=None), crop=False, check_counts=False)
    assert list(manifest.table.columns) == ["path", "label", "camera", "split"]
    assert "lacks bbox_x1, bbox_y2: it must hold a struct array 'annotations'" in error_of(read_cars196, tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"class": "five"}, "'five' in the field class is not a whole number"),
        ({"class": []}, "[] in the field class is not a whole number"),
        ({"class": 197}, "197 is not one of the classes 1 to 196"),
        ({"bbox_x2": 8.5}, "8.5 in the field bbox_x2 is not a whole number"),
        ({"bbox_x2": float("nan")}, "nan in the field bbox_x2 is not"),
        ({"bbox_y2": 1}, "1 for y2 leaves an empty box"),
        ({"bbox_x1": 0}, "-1 for x1 lies outside of the image"),
        ({"fname": "../00001.jpg"}, "'../00001.jpg' in the field fname is not a plain relative path"),
        ({"fname": 1}, "1 in the field fname is not a plain relative path"),
        ({"fname": "00002.jpg"}, "'00002.jpg' is a second time in the field fname"),
    ],
)
def test_cars_bad_value_is_named(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    message = error_of(read_cars196, small_cars(tmp_path, **changes))
    assert message.startswith(f"{tmp_path / 'devkit' / 'cars_train_annos.mat'}, row 2: {expected}")


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>" * 20, None])
def test_cars_file_that_is_no_mat_file(tmp_path: Path, content: bytes | None) -> None:
    file = small_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
    file.write_bytes(file.read_bytes()[:700] if content is None else content)
    message = error_of(read_cars196, tmp_path)
    assert message.startswith(f"{file} can't be read as a .mat file with a struct array 'annotations' with the fields")
    assert "fname, class, bbox_x1, bbox_y1, bbox_x2, bbox_y2" in message


@pytest.mark.parametrize("content", [{"boxes": 1}, {"annotations": "none"}, {"annotations": [1, 2]}])
def test_cars_mat_file_with_other_content(tmp_path: Path, content: dict[str, object]) -> None:
    file = small_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
    savemat(file, content)
    message = error_of(read_cars196, tmp_path)
    assert message.startswith(str(file))
    assert "fname, class, bbox_x1" in message


def test_cars_half_a_layout(tmp_path: Path) -> None:
    shutil.rmtree(small_cars(tmp_path) / "cars_test")
    assert "holds cars_train, devkit/cars_train_annos.mat but not cars_test." in error_of(read_cars196, tmp_path)


# Both


@pytest.mark.parametrize(
    ("name", "small", "image"),
    [("cub200", small_cub, "images/b/test.jpg"), ("cars196", small_cars, "cars_test/00001.jpg")],
)
def test_missing_image_is_named(tmp_path: Path, name: str, small: Callable[[Path], Path], image: str) -> None:
    (small(tmp_path) / image).unlink()
    with pytest.raises(DatasetError, match=f"^{name}: 1 of the 3 listed images are not in .*, the first is {image}"):
        load_manifest(name, tmp_path)


def test_windows_line_ends_and_byte_order_mark_make_no_difference(tmp_path: Path) -> None:
    expected = read_cub200(small_cub(tmp_path), check_counts=False).fingerprint
    for file in tmp_path.glob("*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_cub200(tmp_path, check_counts=False).fingerprint == expected
