"""Readers of uncropped retrieval datasets, on lists in their authors' format at the published size, and on bad ones."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bdbnet.datasets import PUBLISHED_COUNTS, CountWarning, DatasetError, Manifest, load_manifest
from bdbnet.datasets.image_retrieval import read_inshop, read_sop
from small_files import link_images

SOP_HEADER = "image_id class_id super_class_id path"
INSHOP_HEADER = "image_name item_id evaluation_status"
SOP_FOLDERS = ["bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa", "stapler"]
SOP_FOLDERS += ["table", "toaster"]


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), newline="")


def error_of(reader: Callable[..., Manifest], root: Path) -> str:
    with pytest.raises(DatasetError) as error:
        reader(root, check_counts=False)
    return str(error.value)


def rows_of(manifest: Manifest) -> list[list[Any]]:
    return manifest.table.to_numpy().tolist()


def shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` sizes that differ by one at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def assert_complete(name: str, manifest: Manifest, warned: pytest.WarningsRecorder) -> None:
    assert not warned.list
    assert manifest.differences(PUBLISHED_COUNTS[name]) == []
    assert manifest.name == name
    assert (manifest.table["camera"] == -1).all()
    assert len(manifest.shared_labels()) == 0
    assert all(Path(path).is_file() for path in manifest.paths[::500])


# Stanford Online Products


def sop_part(first_image: int, first_class: int, images: int, classes: int) -> list[tuple[int, int, int, str]]:
    """Rows of one list, product after product and super class after super class."""
    rows: list[tuple[int, int, int, str]] = []
    for number, size in enumerate(shares(images, classes)):
        group = number * 12 // classes
        for view in range(size):
            path = f"{SOP_FOLDERS[group]}_final/{110_000_000_000 + first_class + number}_{view}.JPG"
            rows.append((first_image + len(rows), first_class + number, group + 1, path))
    return rows


@pytest.fixture(scope="module")
def sop_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("sop")
    train, test = sop_part(1, 1, 59_551, 11_318), sop_part(59_552, 11_319, 60_502, 11_316)
    base = link_images(root / "Stanford_Online_Products", [row[3] for row in train + test])
    for name, rows in (("train", train), ("test", test)):
        write(base / f"Ebay_{name}.txt", SOP_HEADER, *(" ".join(map(str, row)) for row in rows))
    yield root
    shutil.rmtree(root)


def test_sop_has_the_published_counts(sop_root: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = load_manifest("sop", sop_root)
    assert_complete("sop", manifest, recwarn)
    assert manifest.counts()["images"].tolist() == [59_551, 60_502, 60_502]
    assert manifest.counts()["identities"].tolist() == [11_318, 11_316, 11_316]
    rows = rows_of(manifest)
    assert rows[0] == ["bicycle_final/110000000001_0.JPG", 1, -1, "train"]
    assert rows[59_550:59_552] == [
        ["toaster_final/110000011318_4.JPG", 11_318, -1, "train"],
        ["bicycle_final/110000011319_0.JPG", 11_319, -1, "test"],
    ]
    assert rows[-1] == ["toaster_final/110000022634_4.JPG", 22_634, -1, "test"]


SOP_TRAIN = ["1 7 1 mug_final/b.JPG", "2 3 12 sofa_final/a.JPG"]
SOP_TEST = ["3 9 1 mug_final/c.JPG"]


def small_sop(root: Path) -> Path:
    write(root / "Ebay_train.txt", SOP_HEADER, *SOP_TRAIN)
    write(root / "Ebay_test.txt", SOP_HEADER, *SOP_TEST)
    return link_images(root, ["mug_final/b.JPG", "sofa_final/a.JPG", "mug_final/c.JPG"])


def test_sop_rows_in_the_order_of_the_lists(tmp_path: Path) -> None:
    assert rows_of(read_sop(small_sop(tmp_path), check_counts=False)) == [
        ["mug_final/b.JPG", 7, -1, "train"],
        ["sofa_final/a.JPG", 3, -1, "train"],
        ["mug_final/c.JPG", 9, -1, "test"],
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([SOP_HEADER, SOP_TRAIN[0], "", "2 3 sofa_final/a.JPG"], "line 4: expected the 4 columns image_id class_id"),
        ([SOP_HEADER, SOP_TRAIN[0], "2 3.5 12 sofa_final/a.JPG"], "line 3: class_id '3.5' is not a whole number"),
        ([SOP_HEADER, "1 7 mug mug_final/b.JPG"], "line 2: super_class_id 'mug' is not a whole number"),
        ([SOP_HEADER, f"1 {'9' * 30} 1 mug_final/b.JPG"], "is not a whole number"),
        ([SOP_HEADER, SOP_TRAIN[0], "2 7 1 mug_final/b.JPG"], "line 3: 'mug_final/b.JPG' is listed a second time"),
        (SOP_TRAIN, f"line 1: expected the header '{SOP_HEADER}', found '{SOP_TRAIN[0]}'"),
        ([], "line 1: expected the header"),
    ],
)
def test_sop_bad_line_is_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    write(small_sop(tmp_path) / "Ebay_train.txt", *lines)
    message = error_of(read_sop, tmp_path)
    assert message.startswith(f"{tmp_path / 'Ebay_train.txt'}, line ")
    assert expected in message


@pytest.mark.parametrize("lines", [["x" * 9_999], [SOP_HEADER, "x" * 9_999], [SOP_HEADER, f"{'x' * 9_999} 7 1 a.JPG"]])
def test_sop_message_about_an_endless_line_is_short(tmp_path: Path, lines: list[str]) -> None:
    write(small_sop(tmp_path) / "Ebay_train.txt", *lines)
    message = error_of(read_sop, tmp_path)
    assert "x" * 50 in message
    assert "x" * 100 not in message


def test_sop_list_without_images(tmp_path: Path) -> None:
    write(small_sop(tmp_path) / "Ebay_test.txt", SOP_HEADER, "")
    assert error_of(read_sop, tmp_path).startswith(f"{tmp_path / 'Ebay_test.txt'} lists no images.")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_list_that_is_not_utf8(tmp_path: Path, encoding: str) -> None:
    text = f"{SOP_HEADER}\n1 7 1 mug_final/caf\N{LATIN SMALL LETTER E WITH ACUTE}.JPG\n"
    (small_sop(tmp_path) / "Ebay_train.txt").write_bytes(text.encode(encoding))
    assert error_of(read_sop, tmp_path).startswith(f"{tmp_path / 'Ebay_train.txt'} is not UTF-8 text")


def test_list_that_is_a_folder(tmp_path: Path) -> None:
    (small_sop(tmp_path) / "Ebay_train.txt").unlink()
    (tmp_path / "Ebay_train.txt").mkdir()
    assert error_of(read_sop, tmp_path).startswith(f"can't read {tmp_path / 'Ebay_train.txt'}: ")


# In-Shop Clothes Retrieval


@pytest.fixture(scope="module")
def inshop_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders of the authors' download; items of training and test take turns in the list."""
    root = tmp_path_factory.mktemp("inshop")
    train = [[("train", size)] for size in shares(25_882, 3_997)]
    test = [list(zip(("query", "gallery"), sizes)) for sizes in zip(shares(14_218, 3_985), shares(12_612, 3_985))]
    items = [item for pair in zip(train, test) for item in pair] + train[len(test) :]
    views = link_images(root / "views", [f"{view:02}_1_front.jpg" for view in range(1, 9)])
    rows: list[tuple[str, str, str]] = []
    for number, item in enumerate(items, 1):
        folder = f"img/{('MEN/Denim', 'WOMEN/Dresses')[number % 2]}/id_{number:08}"
        (root / "Img" / folder).parent.mkdir(parents=True, exist_ok=True)
        # One folder of views for all items: a disk takes long to make and remove thousands of folders.
        (root / "Img" / folder).symlink_to(views)
        for view, status in enumerate(status for status, size in item for _ in range(size)):
            rows.append((f"{folder}/{view + 1:02}_1_front.jpg", f"id_{number:08}", status))
    write(
        root / "Eval" / "list_eval_partition.txt",
        str(len(rows)),
        INSHOP_HEADER,
        *(f"{path:<75} {item}    {status}  " for path, item, status in rows),
    )
    yield root
    shutil.rmtree(root)


def test_inshop_has_the_published_counts(inshop_root: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = load_manifest("inshop", inshop_root)
    assert_complete("inshop", manifest, recwarn)
    assert len(manifest.table) == 52_712
    assert manifest.counts()["images"].tolist() == [25_882, 14_218, 12_612]
    assert manifest.counts()["identities"].tolist() == [3_997, 3_985, 3_985]
    assert manifest.unmatched_queries() == 0
    rows = rows_of(manifest)
    assert rows[0] == ["Img/img/WOMEN/Dresses/id_00000001/01_1_front.jpg", 1, -1, "train"]
    assert rows[25_882] == ["Img/img/MEN/Denim/id_00000002/01_1_front.jpg", 2, -1, "query"]
    assert rows[40_100] == ["Img/img/MEN/Denim/id_00000002/05_1_front.jpg", 2, -1, "gallery"]


INSHOP = [
    "img/WOMEN/Dresses/id_00000020/01_1_front.jpg                id_00000020 gallery",
    "img/WOMEN/Dresses/id_00000020/02_1_front.jpg                id_00000020 query",
    "img/MEN/Denim/id_00000003/01_2_side.jpg                     id_00000003 train",
]


def small_inshop(root: Path, *lines: str, evaluation: str = "", images: str = "") -> Path:
    write(root / evaluation / "list_eval_partition.txt", *(lines or ("3", INSHOP_HEADER, *INSHOP)))
    link_images(root / images, [line.split()[0] for line in INSHOP])
    return root


@pytest.mark.parametrize("evaluation", ["", "Eval/"])
@pytest.mark.parametrize("images", ["", "Img/"])
def test_inshop_lists_and_images_in_either_place(tmp_path: Path, evaluation: str, images: str) -> None:
    small_inshop(tmp_path / "In-shop Clothes Retrieval Benchmark", evaluation=evaluation, images=images)
    assert rows_of(read_inshop(tmp_path, check_counts=False)) == [
        [f"{images}img/MEN/Denim/id_00000003/01_2_side.jpg", 3, -1, "train"],
        [f"{images}img/WOMEN/Dresses/id_00000020/02_1_front.jpg", 20, -1, "query"],
        [f"{images}img/WOMEN/Dresses/id_00000020/01_1_front.jpg", 20, -1, "gallery"],
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["3", INSHOP_HEADER, *INSHOP[:2]], "line 1: expected the number of images, 2 by the lines below, found '3'"),
        (["three", INSHOP_HEADER, *INSHOP], "line 1: expected the number of images, 3 by the lines below"),
        ([INSHOP_HEADER, *INSHOP], f"line 2: expected the header '{INSHOP_HEADER}', found 'img/WOMEN"),
        (["3"], "line 2: expected the header"),
        (
            ["1", INSHOP_HEADER, "img/a.jpg id_00000020 val"],
            "line 3: evaluation_status 'val' is not one of train, query, gallery",
        ),
        (["1", INSHOP_HEADER, "img/a.jpg id_2x train"], "line 3: item_id 'id_2x' is not an item such as id_00000002"),
        (["1", INSHOP_HEADER, "img/../a.jpg id_00000020 train"], "line 3: image_name 'img/../a.jpg' is not a plain"),
        (["2", INSHOP_HEADER, INSHOP[0], "img/WOMEN/Dres"], "line 4: expected the 3 columns image_name item_id"),
    ],
)
def test_inshop_bad_line_is_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    message = error_of(read_inshop, small_inshop(tmp_path, *lines))
    assert message.startswith(f"{tmp_path / 'list_eval_partition.txt'}, line ")
    assert expected in message


# Both


SMALL: dict[str, Callable[[Path], Path]] = {"sop": small_sop, "inshop": small_inshop}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("sop", "sofa_final/a.JPG"),
        ("inshop", "img/MEN/Denim/id_00000003/01_2_side.jpg"),
    ],
)
def test_missing_image_is_named(tmp_path: Path, name: str, image: str) -> None:
    (SMALL[name](tmp_path) / image).unlink()
    with pytest.raises(DatasetError, match=f"^{name}: 1 of the 3 listed images are not in .*, the first is {image}"):
        load_manifest(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sop", "Ebay_test.txt"),
        ("inshop", "list_eval_partition.txt"),
    ],
)
def test_missing_list_is_named(tmp_path: Path, name: str, file: str) -> None:
    (SMALL[name](tmp_path) / file).unlink()
    with pytest.raises(
        DatasetError, match=rf"but not {file}\.(.|\n)*python -m bdbnet\.prepare dataset={name} archive="
    ):
        load_manifest(name, tmp_path)


@pytest.mark.parametrize("name", list(SMALL))
def test_windows_line_ends_and_byte_order_mark_make_no_difference(tmp_path: Path, name: str) -> None:
    root = SMALL[name](tmp_path)
    expected = load_manifest(name, root, check_counts=False).fingerprint
    for file in root.glob("*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_manifest(name, root, check_counts=False).fingerprint == expected


@pytest.mark.parametrize("name", list(SMALL))
def test_unpublished_counts_give_a_warning(tmp_path: Path, name: str) -> None:
    root = SMALL[name](tmp_path)
    published = PUBLISHED_COUNTS[name]["train"].images
    with pytest.warns(CountWarning, match=rf"train has [12] images, published {published:,}") as caught:
        load_manifest(name, root)
    assert len(caught) == 1


@pytest.mark.parametrize("name", list(SMALL))
def test_wrong_or_no_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / "notes.txt", "none")
    with pytest.raises(DatasetError, match=f"{name}: {tmp_path} has an unexpected layout(.|\n)*found notes.txt"):
        load_manifest(name, tmp_path)
    with pytest.raises(DatasetError, match=f"there is no folder {tmp_path / 'absent'}"):
        load_manifest(name, tmp_path / "absent")


# iNaturalist-2018

INAT = {
    "train": ["train_val2018/Aves/2761/a.jpg", "train_val2018/Fungi/12/b.jpg"],
    "test": ["train_val2018/Aves/2762/c.jpg"],
}


def small_inat(root: Path) -> Path:
    for split, lines in INAT.items():
        write(root / f"Inat_dataset_splits/Inaturalist_{split}_set1.txt", *lines)
    return link_images(root, [*INAT["train"], *INAT["test"]])


def test_inat2018_rows_in_the_order_of_the_lists(tmp_path: Path) -> None:
    with pytest.warns(CountWarning, match="train has 2 identities, published 5,690"):
        manifest = load_manifest("inat2018", small_inat(tmp_path))
    assert rows_of(manifest) == [
        [INAT["train"][0], 2761, -1, "train"],
        [INAT["train"][1], 12, -1, "train"],
        [INAT["test"][0], 2762, -1, "test"],
    ]


def test_inat2018_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    (small_inat(tmp_path) / INAT["test"][0]).unlink()
    with pytest.raises(
        DatasetError, match=r"1 of the 3 listed images are not in .*, the first is train_val2018/Aves/2762/c.jpg"
    ):
        load_manifest("inat2018", tmp_path)
    write(tmp_path / "Inat_dataset_splits/Inaturalist_test_set1.txt", "train_val2018/Aves/c.jpg")
    with pytest.raises(DatasetError, match=r"test_set1.txt, line 1: 'train_val2018/Aves/c.jpg' is not a path such as"):
        load_manifest("inat2018", tmp_path)
