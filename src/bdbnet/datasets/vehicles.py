"""Vehicle re-identification datasets in the layout of their authors."""

import re
from itertools import product
from pathlib import Path

import pandas as pd

from bdbnet.datasets.layout import build_manifest, find_base, find_layout, how_to_prepare, missing_files
from bdbnet.datasets.lists import GET_AGAIN, read_list, refuse
from bdbnet.datasets.manifest import COLUMNS, DatasetError, Manifest, Role
from bdbnet.datasets.person_reid import FileNames, read_folders

_VERI_FOLDERS: dict[str, Role] = {"image_train": "train", "image_query": "query", "image_test": "gallery"}
# identity, camera, time, number
_VERI_NAMES = FileNames(re.compile(r"(\d{4})_c(0(?:0[1-9]|1\d|20))_\d+_\d+", re.ASCII), "0001_c001_00016450_0.jpg")

_LISTS = "train_test_split"
_VEHICLEID_TESTS = {"vehicleid_small": 800, "vehicleid_medium": 1_600, "vehicleid_large": 2_400}
_VERI_WILD_TESTS = {"veri_wild_small": 3_000, "veri_wild_medium": 5_000, "veri_wild_large": 10_000}
_VERI_WILD_IMAGE = "[0-9]{1,9}/[0-9]{1,9}"
_VERI_WILD_INFO = f"{_LISTS}/vehicle_info.txt"
# identity / image ; camera ; time, model, type, colour
_VERI_WILD_INFO_LINE = re.compile(r"(\d+/\d+)(?:\.jpg)?;(\d{1,9})(?:;.*)?", re.ASCII)


def read_veri776(root: Path, *, check_counts: bool = True) -> Manifest:
    """VeRi-776 (Liu et al., "A Deep Learning-Based Approach to Progressive Vehicle Re-identification for Urban
    Surveillance", ECCV 2016): 776 vehicles under 20 cameras, evaluated image by image, without those of the query's camera.

    `root`, or one folder in it, holds `image_train`, `image_query` and `image_test`. Rows are sorted by file name within train,
    query, gallery. `check_counts` warns (CountWarning) where the number of images, vehicles or cameras is not the published one.
    Raises DatasetError for a missing, incomplete or wrong folder, and for an image whose name can't be parsed.
    """
    base = find_base("veri776", Path(root), tuple(_VERI_FOLDERS))
    rows = read_folders("veri776", base, _VERI_FOLDERS, _VERI_NAMES)
    return build_manifest("veri776", base, rows, check_counts=check_counts)


def read_vehicleid_small(root: Path, *, check_counts: bool = True) -> Manifest:
    """PKU VehicleID (Liu et al., "Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016)
    with its small test set, 800 vehicles.

    `root`, or one folder in it, holds `image`, `train_test_split/train_list.txt` and `train_test_split/test_list_800.txt`, whose
    lines are the number of an image and of a vehicle. There are no cameras. Test images have split test: under the published
    protocol (`reid_single_shot`) one image of each vehicle is drawn for the gallery and all others are queries, ten times.
    Rows are in the order of the lists.
    Raises DatasetError for a missing or incomplete folder, for a malformed list, and for a list that names a missing image.
    """
    return _read_vehicleid("vehicleid_small", Path(root), check_counts)


def read_vehicleid_medium(root: Path, *, check_counts: bool = True) -> Manifest:
    """VehicleID with its medium test set, 1,600 vehicles: as `read_vehicleid_small`, with `test_list_1600.txt`."""
    return _read_vehicleid("vehicleid_medium", Path(root), check_counts)


def read_vehicleid_large(root: Path, *, check_counts: bool = True) -> Manifest:
    """VehicleID with its large test set, 2,400 vehicles: as `read_vehicleid_small`, with `test_list_2400.txt`."""
    return _read_vehicleid("vehicleid_large", Path(root), check_counts)


def read_veri_wild_small(root: Path, *, check_counts: bool = True) -> Manifest:
    """VERI-Wild (Lou et al., "VERI-Wild: A Large Dataset and a New Method for Vehicle Re-Identification in the Wild", CVPR
    2019) with its small test set, 3,000 vehicles, one query each.

    `root`, or one folder in it, holds `images` and, in `train_test_split`, the lists `train_list_start0.txt` (or
    `train_list.txt`), `test_3000_id_query.txt` and `test_3000_id.txt` (or `test_3000_query.txt` and `test_3000.txt`). A line of a
    list is a vehicle and an image, a number of the vehicle, which is not used, and the camera: `00001/000001.jpg 0 133`; or the
    first of these alone, then `vehicle_info.txt` there says the camera. Rows are in the order of the lists within train, query,
    gallery.
    Raises DatasetError for a missing or incomplete folder, for a malformed list, and for a list that names a missing image or
    one without a camera.
    """
    return _read_veri_wild("veri_wild_small", Path(root), check_counts)


def read_veri_wild_medium(root: Path, *, check_counts: bool = True) -> Manifest:
    """VERI-Wild with its medium test set, 5,000 vehicles: as `read_veri_wild_small`, with 5000 in the names."""
    return _read_veri_wild("veri_wild_medium", Path(root), check_counts)


def read_veri_wild_large(root: Path, *, check_counts: bool = True) -> Manifest:
    """VERI-Wild with its large test set, 10,000 vehicles: as `read_veri_wild_small`, with 10000 in the names."""
    return _read_veri_wild("veri_wild_large", Path(root), check_counts)


def _read_vehicleid(name: str, root: Path, check_counts: bool) -> Manifest:
    lists = {f"{_LISTS}/train_list.txt": "train", f"{_LISTS}/test_list_{_VEHICLEID_TESTS[name]}.txt": "test"}
    base = find_base(name, root, ("image", *lists))
    parts = []
    for file, split in lists.items():
        part = read_list(base / file, ("path", "class_id")).rename(columns={"class_id": "label"})
        part["path"] = "image/" + part["path"].str.removesuffix(".jpg") + ".jpg"
        _require_listed(name, base, file, part["path"])
        parts.append(part.assign(camera=-1, split=split))
    return build_manifest(name, base, pd.concat(parts)[list(COLUMNS)], check_counts=check_counts)


def _read_veri_wild(name: str, root: Path, check_counts: bool) -> Manifest:
    size = _VERI_WILD_TESTS[name]
    layouts = [
        ("images", *(f"{_LISTS}/{file}.txt" for file in (train, f"{test}_query", test)))
        for train, test in product(("train_list_start0", "train_list"), (f"test_{size}_id", f"test_{size}"))
    ]
    base, (_, *files) = find_layout(name, root, layouts)
    lists = [_read_veri_wild_list(name, base, file) for file in files]
    if any("camera_id" not in part for part in lists):
        cameras = _read_cameras(name, base)
        for file, part in zip(files, lists):
            if "camera_id" not in part:
                part["camera_id"] = _looked_up(base / file, part["image"], cameras)
    parts = [
        part.rename(columns={"camera_id": "camera"}).assign(split=split)
        for part, split in zip(lists, _VERI_FOLDERS.values())
    ]
    return build_manifest(name, base, pd.concat(parts)[list(COLUMNS)], check_counts=check_counts)


def _read_veri_wild_list(name: str, base: Path, file: str) -> pd.DataFrame:
    """Image (`00001/000001`), path and label of a list's rows, and camera_id where the list gives it."""
    columns = ("path", "class_id", "camera_id") if _columns_of(base / file) == 3 else ("path",)
    part = read_list(base / file, columns)
    images = part["path"].str.removesuffix(".jpg")
    refuse(
        ~images.str.fullmatch(_VERI_WILD_IMAGE), part["path"], base / file, "line",
        "is not a vehicle and an image such as 00001/000001",
    )  # fmt: skip
    part["path"] = "images/" + images + ".jpg"
    _require_listed(name, base, file, part["path"])
    return part.assign(image=images, label=images.str.partition("/")[0].astype("int64"))


def _columns_of(file: Path) -> int:
    """The number of columns in the first line of a list; 0 for one that can't be read, of which `read_list` says why."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return len(lines.readline().split())
    except OSError:
        return 0


def _looked_up(file: Path, images: pd.Series, cameras: dict[str, int]) -> pd.Series:
    """The cameras of a list's images.  Raises DatasetError for an image without one."""
    found = images.map(cameras)
    refuse(found.isna(), images, file, "line", f"has no camera in {_VERI_WILD_INFO}")
    return found.astype("int64")


def _read_cameras(name: str, base: Path) -> dict[str, int]:
    """Camera of each image, `00001/000001`."""
    file = base / _VERI_WILD_INFO
    if not file.is_file():
        raise DatasetError(f"{name}: the lists name no cameras, and there is no {file}.\n{how_to_prepare(name, base)}")
    cameras = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = _VERI_WILD_INFO_LINE.fullmatch(line.strip())
        if match is not None:
            cameras[match[1]] = int(match[2])
        elif line.strip() and number > 1:  # the first line names the columns
            raise DatasetError(
                f"{file}, line {number}: {line[:80]!r} does not begin with image and camera, such as 00001/000001;12;. {GET_AGAIN}"
            )
    return cameras


def _require_listed(name: str, base: Path, file: str, paths: pd.Series) -> None:
    """Raise DatasetError where images of a list are missing, with the list's line of the first; the index holds the lines."""
    missing = missing_files(base, paths)
    if missing:
        line = paths.index[(paths == missing[0]).to_numpy()][0]
        raise DatasetError(
            f"{base / file} names {len(missing):,} images of {len(paths):,} that are not there, the first is {missing[0]} in line "
            f"{line}. Extract the images again, or use the list that belongs to them.\n{how_to_prepare(name, base)}"
        )
