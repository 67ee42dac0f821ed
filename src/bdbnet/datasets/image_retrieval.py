"""Image retrieval datasets in the layout of their authors: no cameras, and classes unseen in training at test time."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from bdbnet.datasets.layout import build_manifest, find_base, find_layout, how_to_prepare, is_there, require_files
from bdbnet.datasets.lists import FORMS, GET_AGAIN, PATH, read_list, refuse
from bdbnet.datasets.manifest import BOX_COLUMNS, SPLITS, DatasetError, Manifest

_CARS_TOGETHER = ("car_ims", "cars_annos.mat")
_CARS_APART = ("cars_train", "cars_test", "devkit/cars_train_annos.mat")
# Kaggle's copy, in which also the images are one folder deeper: cars_train/cars_train.
_CARS_DEEPER = ("cars_train", "cars_test", "car_devkit/devkit/cars_train_annos.mat")
_CARS_TEST = "cars_test_annos_withlabels.mat"
_CARS_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")

_INSHOP_LIST = "list_eval_partition.txt"
# Img/img comes first: a case-insensitive file system finds Img under the name img too.
_INSHOP_LAYOUTS = [(file, images) for images in ("Img/img", "img") for file in (_INSHOP_LIST, f"Eval/{_INSHOP_LIST}")]


def read_cub200(root: Path, *, crop: bool = True, check_counts: bool = True) -> Manifest:
    """CUB-200-2011 (Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011).

    `root` holds `images`, `images.txt`, `image_class_labels.txt` and `bounding_boxes.txt`, directly or in one folder
    below. Classes 1 to 100 train and classes 101 to 200 test (as query and gallery), which is zero-shot retrieval
    and not the split of the authors' `train_test_split.txt`. Rows are in the order of `images.txt` within train, test.
    `crop` gives the birds' boxes in whole pixels; some of them reach past the edge of the image. `check_counts` warns
    (CountWarning) where the number of images or classes is not the published one.
    Raises DatasetError for missing files and images, and for lists that are malformed or don't fit together.
    """
    lists = ("images.txt", "image_class_labels.txt", *(("bounding_boxes.txt",) if crop else ()))
    base = find_base("cub200", Path(root), ("images", *lists))
    images = read_list(base / lists[0], ("image_id", "path"))
    rows = _by_image(images, base / lists[0])
    classes = read_list(base / lists[1], ("image_id", "class_id"))
    classes["split"] = _zero_shot(classes["class_id"], 100, base / lists[1], "line")
    rows = _join(rows, base / lists[0], classes, base / lists[1])
    if crop:
        boxes = read_list(base / lists[2], ("image_id", "x", "y", "width", "height"))
        left, top, width, height = (boxes[column].to_numpy(np.float64) for column in ("x", "y", "width", "height"))
        edges = (np.floor(left), np.floor(top), np.ceil(left + width), np.ceil(top + height))
        for column, edge in zip(BOX_COLUMNS, edges):
            boxes[column] = np.maximum(edge, 0).astype(np.int64)
        _check_boxes(boxes, base / lists[2], "line")
        rows = _join(rows, base / lists[0], boxes[["image_id", *BOX_COLUMNS]], base / lists[2])
    rows["path"] = "images/" + rows["path"]
    return _build("cub200", base, rows.rename(columns={"class_id": "label"}), check_counts)


def read_cars196(root: Path, *, crop: bool = True, check_counts: bool = True) -> Manifest:
    """CARS196 (Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013).

    `root` holds, directly or in one folder below, one of the two published layouts:

    - `car_ims` and `cars_annos.mat`,
    - `cars_train`, `cars_test`, `devkit/cars_train_annos.mat`, and `cars_test_annos_withlabels.mat` next to them or in
      `devkit`. The devkit alone lacks the classes of the test images. As Kaggle has them, the images may be one folder
      deeper (`cars_train/cars_train`) and the devkit in `car_devkit`.

    Classes 1 to 98 train and classes 99 to 196 test (as query and gallery), regardless of the authors' own split into
    train and test. Rows are in the order of the authors' files (`cars_train` before `cars_test`) within train, test.
    `crop` gives the cars' boxes. `check_counts` warns (CountWarning) where the number of images or classes is not the
    published one. Raises DatasetError for missing files and images, and for .mat files that can't be used.
    """
    base, layout = find_layout("cars196", Path(root), (_CARS_TOGETHER, _CARS_APART, _CARS_DEEPER))
    if layout == _CARS_TOGETHER:
        rows = _read_annotations(base / "cars_annos.mat", "relative_im_path", "", crop)
    else:
        devkit = base / Path(layout[2]).parent
        labelled = [base / _CARS_TEST, devkit / _CARS_TEST, devkit.parent / _CARS_TEST]
        present = [file for file in labelled if file.is_file()]
        if not present:
            raise DatasetError(
                f"cars196: {_CARS_TEST} is missing, looked for it in {base} and in its devkit folder. The plain devkit "
                "(cars_test_annos.mat) holds no classes of the test images: get this file where you got the "
                f"images.\n{how_to_prepare('cars196', base)}"
            )
        parts = [(base / layout[2], "cars_train"), (present[0], "cars_test")]
        rows = pd.concat(
            [
                _read_annotations(
                    file, "fname", f"{folder}/{folder}/" if is_there(base / folder / folder) else f"{folder}/", crop
                )
                for file, folder in parts
            ]
        )
    return _build("cars196", base, rows, check_counts)


def read_sop(root: Path, *, check_counts: bool = True) -> Manifest:
    """Stanford Online Products (Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", 2016).

    `root` holds `Ebay_train.txt`, `Ebay_test.txt` and the folders of images that they name, directly or in one folder
    below. The label is the product (`class_id`); products of the test list are unseen in training, and each of its
    images is both query and gallery. Rows are in the order of the lists. `check_counts` warns (CountWarning) where the number
    of images or products is not the published one.
    Raises DatasetError for missing files and images, and for malformed lists.
    """
    lists = {"Ebay_train.txt": "train", "Ebay_test.txt": "test"}
    base = find_base("sop", Path(root), tuple(lists))
    columns = ("image_id", "class_id", "super_class_id", "path")
    parts = [read_list(base / file, columns, header=True).assign(split=split) for file, split in lists.items()]
    return _build("sop", base, pd.concat(parts).rename(columns={"class_id": "label"}), check_counts)


def read_inshop(root: Path, *, check_counts: bool = True) -> Manifest:
    """In-Shop Clothes Retrieval, a benchmark of DeepFashion.

    Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations", CVPR 2016.
    `root` holds `list_eval_partition.txt` (or `Eval/list_eval_partition.txt`) and `img` (or `Img/img`), directly or in
    one folder below. The label is the number of the item, 2 for `id_00000002`. Rows are in the order of the list within
    train, query, gallery. Images are used whole, as in the paper, which crops CUB-200-2011 and CARS196 only.
    `check_counts` warns (CountWarning) where the number of images or items is not the published one: 3,997 items train
    and 3,985 test, 7,982 in all, although Table 6 of the Batch DropBlock paper gives 11,735 classes as their total.
    Raises DatasetError for missing files and images, and for a list that is malformed or incomplete.
    """
    base, (file, images) = find_layout("inshop", Path(root), _INSHOP_LAYOUTS)
    rows = read_list(base / file, ("image_name", "item_id", "evaluation_status"), header=True, counted=True)
    rows = rows.set_axis(["path", "label", "split"], axis="columns")
    rows["path"] = images.removesuffix("img") + rows["path"]
    rows["label"] = rows["label"].str.removeprefix("id_").astype(np.int64)
    return _build("inshop", base, rows, check_counts)


def read_inat2018(root: Path, *, check_counts: bool = True) -> Manifest:
    """iNaturalist-2018 as retrieval (Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", 2020).

    `root`, or one folder in it, holds `Inaturalist_train_set1.txt` and `Inaturalist_test_set1.txt`, or both in
    `Inat_dataset_splits`, and `train_val2018`, whose images the lists name as `train_val2018/Aves/2761/name.jpg`. The label is
    the number of the species' folder; species of the test list are unseen in training, and each of its images is query and
    gallery. Rows are in the order of the lists. `check_counts` warns (CountWarning) where the number of images or species is
    not the published one.
    Raises DatasetError for missing files and images, and for malformed lists.
    """
    layouts = [
        ("train_val2018", *(f"{folder}Inaturalist_{split}_set1.txt" for split in ("train", "test")))
        for folder in ("Inat_dataset_splits/", "")
    ]
    base, (_, *lists) = find_layout("inat2018", Path(root), layouts)
    parts = []
    for file, split in zip(lists, ("train", "test")):
        part = read_list(base / file, ("path",))
        species = part["path"].str.extract(r"/([0-9]{1,9})/[^/]+$")[0]
        refuse(
            species.isna(), part["path"], base / file, "line", "is not a path such as train_val2018/Aves/2761/name.jpg"
        )
        parts.append(part.assign(label=species.astype(np.int64), split=split))
    return _build("inat2018", base, pd.concat(parts), check_counts)


def _build(name: str, base: Path, rows: pd.DataFrame, check_counts: bool) -> Manifest:
    """The manifest of `rows` with path, label, split and perhaps boxes, which are sorted by split."""
    boxes = [column for column in BOX_COLUMNS if column in rows.columns]
    rows = pd.concat([rows[rows["split"] == split] for split in SPLITS]).assign(camera=-1)
    require_files(name, base, rows["path"])
    return build_manifest(name, base, rows[["path", "label", "camera", "split", *boxes]], check_counts=check_counts)


def _by_image(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """`table` with image_id for its index, where each occurs once."""
    refuse(table["image_id"].duplicated(), table["image_id"], file, "line", "is listed a second time")
    return table.set_index("image_id")


def _join(rows: pd.DataFrame, listed_in: Path, more: pd.DataFrame, file: Path) -> pd.DataFrame:
    """`rows` with the columns of `more` for the same images, in the order of `rows`."""
    more = _by_image(more, file)
    for here, there, holder, other in ((rows, more, listed_in, file), (more, rows, file, listed_in)):
        alone = here.index.difference(there.index)
        if len(alone):
            shown = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
            raise DatasetError(f"{holder} lists {len(alone):,} image_id that {other} lacks: {shown}. {GET_AGAIN}")
    return rows.join(more)


def _read_annotations(file: Path, image_field: str, folder: str, crop: bool) -> pd.DataFrame:
    """Path, label, split and, with `crop`, box of every image in a .mat file of CARS196."""
    needed = [image_field, "class", *(_CARS_BOX if crop else ())]
    fields = f"a struct array 'annotations' with the fields {', '.join(needed)}"
    try:
        annotations = np.ravel(loadmat(file, squeeze_me=True, variable_names=["annotations"])["annotations"])
    except Exception as error:  # loadmat raises exceptions of many kinds on damaged content
        raise DatasetError(f"{file} can't be read as a .mat file with {fields} ({error!r}). {GET_AGAIN}") from error
    missing = [field for field in needed if field not in (annotations.dtype.names or ())]
    if missing:
        raise DatasetError(f"{file} lacks {', '.join(missing)}: it must hold {fields}. {GET_AGAIN}")
    index = pd.RangeIndex(1, len(annotations) + 1)
    given = pd.DataFrame({field: annotations[field] for field in needed}, index=index, dtype=object)
    for field, values in given.items():
        good, form = (_is_path, FORMS["path"][1]) if field == image_field else (_is_whole, FORMS["class_id"][1])
        refuse(~values.map(good).astype(bool), values, file, "row", f"in the field {field} is not {form}")
    names = given[image_field]
    refuse(names.duplicated(), names, file, "row", f"is a second time in the field {image_field}")
    table = pd.DataFrame({"path": folder + names.astype(str), "label": given["class"].astype(np.int64)})
    table["split"] = _zero_shot(table["label"], 98, file, "row")
    if crop:
        x1, y1, x2, y2 = (given[field].astype(np.int64) for field in _CARS_BOX)
        # MATLAB counts pixels from 1 and includes the last one, so that the right and lower edges stay as they are.
        table = table.assign(x1=x1 - 1, y1=y1 - 1, x2=x2, y2=y2)
        _check_boxes(table, file, "row")
    return table


def _is_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(PATH, value) is not None


def _is_whole(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**31 and value % 1 == 0


def _zero_shot(classes: pd.Series, train_classes: int, file: Path, place: str) -> np.ndarray:
    """`train` for the first half of the classes, `test` for the second."""
    outside = ~classes.between(1, 2 * train_classes)
    refuse(outside, classes, file, place, f"is not one of the classes 1 to {2 * train_classes}")
    return np.where(classes <= train_classes, "train", "test")


def _check_boxes(table: pd.DataFrame, file: Path, place: str) -> None:
    for column in ("x1", "y1"):
        refuse(table[column] < 0, table[column], file, place, f"for {column} lies outside of the image")
    for low, high in (("x1", "x2"), ("y1", "y2")):
        refuse(table[high] <= table[low], table[high], file, place, f"for {high} leaves an empty box")
