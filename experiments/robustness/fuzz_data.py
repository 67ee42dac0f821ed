"""Damaged tables, folders of images, lists of datasets' authors and archives."""

import io
import random
import shutil
from collections.abc import Callable, Iterable

import numpy as np
from fuzz_commands import Place
from fuzz_damage import damaged_bytes, damaged_csv, damaged_parquet
from fuzz_meeting import Case, data_of, embed, evaluate, train


def manifest(rng: random.Random, place: Place) -> Case:
    if rng.random() < 0.1:
        return class_folders(rng, place)
    parquet = rng.random() < 0.4
    source = place.good.images / ("list.parquet" if parquet else "list.csv")
    data, what = (damaged_parquet if parquet else damaged_csv)(rng, source.read_bytes())
    suffix = rng.choice(
        (".parquet", ".parquet", ".pq", ".csv") if parquet else (".csv", ".csv", ".csv", ".tsv", ".txt", "")
    )
    file = place.inputs / f"list{suffix}"
    file.write_bytes(data)
    way = rng.random()
    if way < 0.6:
        classes = rng.choice(((), (), (), ("dataset.train_classes=0.5",), ("dataset.train_classes=3",)))
        images = rng.choice(("true", "false"))
        return Case(
            f"{file.name}: {what}", place.run("prepare", *data_of(place, file), f"check_images={images}", *classes)
        )
    if way < 0.9:
        return Case(f"{file.name}, embedded: {what}", embed(place, f"images={file}", f"root={place.good.images}"))
    if way < 0.96:
        return Case(f"{file.name}, evaluated: {what}", evaluate(place, place.good.checkpoint, *data_of(place, file)))
    return Case(f"{file.name}, trained on: {what}", train(place, *data_of(place, file)))


def class_folders(rng: random.Random, place: Place) -> Case:
    """Folders of classes with odd names, files among them, links and empty folders."""
    images = [path for path in place.good.images.iterdir() if path.suffix in (".png", ".jpg")]
    base = place.inputs / "photos"
    names = ["a", "b", "c", "d", rng.choice((".hidden", " ", "é", "x" * 200, "a b", "-", "train", "1", "01", "CON"))]
    for part in rng.choice((("train", "test"), ("train", "query", "gallery"), ("",), ("train",), ("test", "x"))):
        for name in names:
            folder = base / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for image in rng.sample(images, rng.choice((0, 1, 2))):
                shutil.copy(image, folder / image.name)
    extra = rng.choice(("empty.jpg", "text.jpg", "folder.jpg", "notes.txt", "link.jpg", "loop", "up"))
    place_of_it = base / extra if rng.random() < 0.5 else folder / extra
    if extra == "folder.jpg":
        place_of_it.mkdir()
    elif extra in ("link.jpg", "loop", "up"):
        place_of_it.symlink_to({"link.jpg": "/nowhere.jpg", "loop": ".", "up": "../.."}[extra])
    else:
        place_of_it.write_bytes(b"" if extra == "empty.jpg" else b"not an image")
    classes = rng.choice(((), ("dataset.train_classes=0.5",), ("dataset.train_classes=2",)))
    return Case(
        f"class folders with {extra}", place.run("prepare", "dataset=table", f"dataset.manifest={base}", *classes)
    )


# Lists of the datasets' authors


def author_list(rng: random.Random, place: Place) -> Case:
    """A dataset in its authors' layout, with a damaged list."""
    name, lists = rng.choice(list(AUTHORS.items()))
    root = place.inputs / name
    images = sorted(path for path in place.good.images.iterdir() if path.suffix == ".jpg")
    files = dict(lists())
    wanted = rng.choice(list(files))
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in IMAGES_OF[name]:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(rng.choice(images), target)
    data = files[wanted]
    if wanted.endswith(".mat") or rng.random() < 0.3:
        data, what = damaged_bytes(rng, data), "bytes"
    else:
        lines = data.decode().splitlines()
        row = rng.randrange(len(lines))
        words = lines[row].split()
        if words:
            words[rng.randrange(len(words))] = rng.choice(
                ("", "x", "-1", "0", "9" * 30, "../../secret.png", "1.5", "é", "\x00")
            )
        lines[row] = rng.choice((" ".join(words), "", lines[row] * 2, "# x"))
        data, what = "\n".join(lines).encode(), f"line {row}: {lines[row][:40]!r}"
    (root / wanted).write_bytes(data)
    loose = "dataset.options.check_counts=false"
    ended = place.run("prepare", f"dataset={name}", f"dataset.root={root}", loose, "check_images=false")
    return Case(f"{name}, {wanted}: {what}", ended)


_SOP = "image_id class_id super_class_id path\n1 1 1 bicycle_final/1.jpg\n2 1 1 bicycle_final/2.jpg\n"
_SOP_TEST = "image_id class_id super_class_id path\n3 2 1 bicycle_final/3.jpg\n4 2 1 bicycle_final/4.jpg\n"
_INSHOP = (
    "4\nimage_name item_id evaluation_status\nimg/WOMEN/1.jpg id_1 train\nimg/WOMEN/2.jpg id_1 train\n"
    "img/WOMEN/3.jpg id_2 query\nimg/WOMEN/4.jpg id_2 gallery\n"
)
_CUB_IMAGES = "".join(f"{i} {i:03d}.Bird/{i}.jpg\n" for i in (1, 2, 101, 102))


def _cars() -> Iterable[tuple[str, bytes]]:
    from scipy.io import savemat

    fields = [
        ("relative_im_path", "O"),
        *((f"bbox_{side}", "O") for side in ("x1", "y1", "x2", "y2")),
        ("class", "O"),
        ("test", "O"),
    ]
    cells = np.zeros((1, 4), dtype=fields)
    for i, label in enumerate((1, 1, 100, 100)):
        cells[0, i] = (f"car_ims/{i + 1:06d}.jpg", 1, 1, 20, 40, label, 0)
    buffer = io.BytesIO()
    savemat(buffer, {"annotations": cells, "class_names": np.array(["a"] * 196, dtype=object)})
    return [("cars_annos.mat", buffer.getvalue())]


#: Small lists in the layouts of datasets' authors.
AUTHORS: dict[str, Callable[[], Iterable[tuple[str, bytes]]]] = {
    "sop": lambda: [("Ebay_train.txt", _SOP.encode()), ("Ebay_test.txt", _SOP_TEST.encode())],
    "inshop": lambda: [("list_eval_partition.txt", _INSHOP.encode())],
    "cub200": lambda: [
        ("images.txt", _CUB_IMAGES.encode()),
        ("image_class_labels.txt", b"1 1\n2 1\n101 101\n102 101\n"),
        ("bounding_boxes.txt", b"1 1 1 20 40\n2 1 1 20 40\n101 1 1 20 40\n102 1 1 20 40\n"),
    ],
    "msmt17_v1": lambda: [
        ("list_train.txt", b"0000/0000_000_01_0303morning_0015_0.jpg 0\n"),
        ("list_val.txt", b"0000/0000_001_02_0303morning_0016_0.jpg 0\n"),
        ("list_query.txt", b"0001/0001_000_01_0303morning_0015_0.jpg 1\n"),
        ("list_gallery.txt", b"0001/0001_001_02_0303morning_0016_0.jpg 1\n"),
    ],
    "cars196": _cars,
}
IMAGES_OF = {
    "sop": [f"bicycle_final/{i}.jpg" for i in range(1, 5)],
    "inshop": [f"img/WOMEN/{i}.jpg" for i in range(1, 5)],
    "cub200": [f"images/{line.split()[1]}" for line in _CUB_IMAGES.splitlines()],
    "msmt17_v1": [
        *("train/0000/0000_000_01_0303morning_0015_0.jpg", "train/0000/0000_001_02_0303morning_0016_0.jpg"),
        *("test/0001/0001_000_01_0303morning_0015_0.jpg", "test/0001/0001_001_02_0303morning_0016_0.jpg"),
    ],
    "cars196": [f"car_ims/{i:06d}.jpg" for i in range(1, 5)],
}
