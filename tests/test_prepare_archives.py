"""Every dataset set up from small archives in the form in which its authors hand it out."""

import io
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bdbnet import prepare


def jpeg(form: str = "JPEG") -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(len(MADE)).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, form)
    MADE.append(content.getvalue())
    return MADE[-1]


MADE: list[bytes] = []


def pack(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def duke(folder: Path) -> list[Path]:
    names = ["bounding_box_train/0001_c2_f0046182.jpg", "query/0005_c2_f0046985.jpg"]
    names.append("bounding_box_test/0005_c1_f0044158.jpg")
    return [pack(folder / "DukeMTMC-reID.zip", {f"DukeMTMC-reID/{name}": jpeg() for name in names})]


def cuhk03(folder: Path) -> list[Path]:
    names = ["bounding_box_train/0001_c1_1.png", "query/0003_c1_1.png", "bounding_box_test/0003_c2_6.png"]
    members = {f"cuhk03-np/{kind}/{name}": jpeg("PNG") for kind in ("labeled", "detected") for name in names}
    return [pack(folder / "cuhk03-np.zip", members)]


def msmt17(version: int, train: str, test: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        name = "0000/0000_{}_0{}_0303morning_0015_0_ex.jpg"
        listed = {"train": (train, 0, 1), "val": (train, 1, 2), "query": (test, 2, 1), "gallery": (test, 3, 2)}
        members = {}
        for part, (place, number, camera) in listed.items():
            image = name.format(f"{number:03d}", camera)
            members[f"MSMT17_V{version}/{place}/{image}"] = jpeg()
            members[f"MSMT17_V{version}/list_{part}.txt"] = f"{image} 0\n".encode()
        return [pack(folder / f"MSMT17_V{version}.tar.gz", members)]

    return write


def cub200(folder: Path) -> list[Path]:
    images = ["001.Albatross/a.jpg", "150.Sparrow/a.jpg", "150.Sparrow/b.jpg"]
    members = {f"CUB_200_2011/images/{image}": jpeg() for image in images}
    lists = {
        "images": "\n".join(f"{number} {image}" for number, image in enumerate(images, 1)),
        "image_class_labels": "1 1\n2 150\n3 150",
        "bounding_boxes": "1 0.0 0.0 6.0 8.0\n2 1.0 1.0 4.0 4.0\n3 0.0 0.0 9.0 9.0",
    }
    members |= {f"CUB_200_2011/{name}.txt": text.encode() for name, text in lists.items()}
    return [pack(folder / "CUB_200_2011.tgz", {**members, "attributes.txt": b"1 has_bill"})]


def annotations(path: Path, rows: list[dict[str, object]], **others: object) -> Path:
    kinds = [(key, object) for key in rows[0]]
    scipy.io.savemat(
        path, {"annotations": np.array([tuple(row.values()) for row in rows], dtype=kinds)[None], **others}
    )
    return path


def cars_of_one_folder(folder: Path) -> list[Path]:
    box = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 5, "bbox_y2": 6}
    names = [f"car_ims/00000{number}.jpg" for number in (1, 2, 3)]
    rows = [{"relative_im_path": name, **box, "class": label, "test": 0} for name, label in zip(names, (3, 120, 120))]
    return [
        pack(folder / "car_ims.tgz", {name: jpeg() for name in names}),
        annotations(folder / "cars_annos.mat", rows),
    ]


def cars_of_two_folders(folder: Path) -> list[Path]:
    box = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 5, "bbox_y2": 6}
    train = annotations(folder / "t.mat", [{**box, "class": 3, "fname": "00001.jpg"}])
    rows = [{**box, "class": 120, "fname": f"0000{number}.jpg"} for number in (1, 2)]
    return [
        pack(folder / "cars_train.tgz", {"cars_train/00001.jpg": jpeg()}),
        pack(folder / "cars_test.tgz", {f"cars_test/0000{number}.jpg": jpeg() for number in (1, 2)}),
        pack(folder / "car_devkit.tgz", {"devkit/cars_train_annos.mat": train.read_bytes()}),
        annotations(folder / "cars_test_annos_withlabels.mat", rows),
    ]


def sop(folder: Path) -> list[Path]:
    head, members = "image_id class_id super_class_id path", {}
    for part, rows in (("train", [(1, 0)]), ("test", [(2, 0), (2, 1)])):
        paths = [f"bicycle_final/{label}_{number}.JPG" for label, number in rows]
        lines = [f"{number} {row[0]} 1 {path}" for number, (row, path) in enumerate(zip(rows, paths), 1)]
        members |= {f"Stanford_Online_Products/{path}": jpeg() for path in paths}
        members[f"Stanford_Online_Products/Ebay_{part}.txt"] = "\n".join([head, *lines]).encode()
    return [pack(folder / "Stanford_Online_Products.zip", members)]


CASES: list[tuple[str, Callable[[Path], list[Path]]]] = [
    ("dukemtmc_reid", duke),
    ("cuhk03_detect", cuhk03),
    ("cuhk03_label", cuhk03),
    ("msmt17_v1", msmt17(1, "train", "test")),
    ("msmt17_v2", msmt17(2, "mask_train_v2", "mask_test_v2")),
    ("cub200", cub200),
    ("cars196", cars_of_one_folder),
    ("cars196", cars_of_two_folders),
    ("sop", sop),
]


@pytest.mark.parametrize(("name", "write"), CASES, ids=[f"{name}-{write.__name__}" for name, write in CASES])
def test_authors_archives_are_set_up(
    name: str,
    write: Callable[[Path], list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three or four images: read, counted and opened; the one fault is that the dataset is not complete."""
    (tmp_path / "from").mkdir()
    archives = ",".join(map(str, write(tmp_path / "from")))
    root = tmp_path / "data"
    arguments = [f"dataset={name}", f"archive=[{archives}]", f"dataset.root={root}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    captured = capsys.readouterr()
    assert ended.value.code == 1, captured.err
    assert "has 1 fault:" in captured.err, captured.err
    assert f"1. not the complete {name}: train has 1 identities, published" in captured.err
    assert "fingerprint" in captured.out
    assert root.is_dir()
