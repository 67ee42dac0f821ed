"""One damaged file or folder of each kind, and the command that meets it."""

import bz2
import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuzz_commands import EMBEDDED, EVALUATED, SEARCHED, TINY, Ended, Place, copied, reproduced
from fuzz_damage import damaged_bytes, damaged_csv, damaged_json, damaged_parquet, damaged_tree, odd
from PIL import Image


class Case(NamedTuple):
    """What was damaged and how, and how the command ended that met it."""

    what: str
    ended: Ended


def data_of(place: Place, table: Path | None = None) -> tuple[str, ...]:
    return ("dataset=table", f"dataset.manifest={table or place.good.table}", f"dataset.root={place.good.images}")


def embed(place: Place, *arguments: str, checkpoint: Path | None = None) -> Ended:
    """Embed the gallery, or what the arguments name."""
    what = arguments or (*data_of(place), "split=gallery")
    source = f"checkpoint={checkpoint or place.good.checkpoint}"
    return place.run("embed", source, *what, *EMBEDDED, f"output={place.out / 'embedded'}")


def evaluate(place: Place, checkpoint: Path, *arguments: str) -> Ended:
    where = (f"output_root={place.out}", "run_name=e")
    return place.run("evaluate", f"checkpoint={checkpoint}", *(arguments or data_of(place)), *EVALUATED, *where)


def train(place: Place, *arguments: str) -> Ended:
    return place.run("train", *TINY, f"output_root={place.out}", "run_name=t", *arguments)


# Tables and folders of images


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


# Archives


MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_train/0002_c2s1_000451_03.jpg",
    "query/0001_c1s1_001051_00.jpg", "bounding_box_test/0001_c2s1_000351_00.jpg",
)  # fmt: skip
BAD_NAMES = (
    *("../evil.jpg", "../../evil.jpg", "/tmp/evil-from-an-archive.jpg", "a/../../evil.jpg", "..", ".", "", "a\\..\\..\\evil.jpg"),
    *("C:\\evil.jpg", "C:evil.jpg", "\\\\server\\evil.jpg", "a\x00b.jpg", "a\nb.jpg", "x" * 300, "a/" * 900 + "b"),
    *("query", "query/", "query/./a.jpg", "//evil.jpg", "query/0001_c1s1_001051_00.jpg/x"),
    *("~/evil.jpg", "\u202egpj.exe", "é.jpg", "\udcff.jpg"),
)  # fmt: skip


def archive(rng: random.Random, place: Place) -> Case:
    kind = rng.choice(("zip", "zip", "tar", "tar.gz"))
    image = next(path for path in sorted(place.good.images.iterdir()) if path.suffix == ".jpg").read_bytes()
    what, data = rng.choice((_plain_archive, _named, _linked, _bomb, _headers))(rng, kind, image)
    if rng.random() < 0.3:
        data, what = (
            damaged_bytes(rng, data, (b"PK\x03\x04", b"\x1f\x8b", b"PK\x05\x06" + b"\0" * 18)),
            f"{what}; bytes",
        )
    file = place.inputs / f"market.{rng.choice((kind, kind, 'zip', 'tgz', 'bin', 'txt', 'mat'))}"
    file.write_bytes(data)
    arguments = ("dataset=market1501", f"archive={file}", f"dataset.root={place.out / 'market'}")
    ended = place.run("prepare", *arguments, "dataset.options.check_counts=false")
    left = sorted(path.name for path in place.out.iterdir() if path.name != "market")
    if left:
        ended = Ended("outside", f"left behind: {', '.join(left)}\n{ended.text}")
    return Case(f"{file.name}: {what}", ended)


def _packed(kind: str, members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members:
                info = zipfile.ZipInfo()
                info.filename = name
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w", errors="surrogateescape") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _plain_archive(rng: random.Random, kind: str, image: bytes) -> tuple[str, bytes]:
    names = rng.choice((MARKET, MARKET[:-1], (), (*MARKET, *MARKET), [f"Market/{name}" for name in MARKET]))
    return f"{kind} of {len(names)} files", _packed(kind, ((name, image) for name in names))


def _named(rng: random.Random, kind: str, image: bytes) -> tuple[str, bytes]:
    name = rng.choice(BAD_NAMES)
    if kind == "zip":
        name = name.encode("utf-8", "replace").decode()
    members = [(name, image), *((each, image) for each in MARKET)]
    if rng.random() < 0.5:
        members.reverse()
    return f"{kind} with {ascii(name)[:60]}", _packed(kind, members)


def _linked(rng: random.Random, kind: str, image: bytes) -> tuple[str, bytes]:
    """Links, hard links, devices and pipes, and a file that would be written through a link."""
    target = rng.choice(("../..", "/tmp", "/etc/passwd", "query", "../secret.png"))
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            link = zipfile.ZipInfo("query")
            link.create_system = 3
            mode = rng.choice((0o120777, 0o060666, 0o020666, 0o010666, 0o140666))
            link.external_attr = mode << 16
            file.writestr(link, target)
            for name in MARKET:
                file.writestr(name, image)
        return f"zip with mode {mode:o} to {target}", buffer.getvalue()
    form = rng.choice(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
    )
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as file:
        link = tarfile.TarInfo("query")
        link.type, link.linkname = form, target
        file.addfile(link)
        for name in MARKET:
            info = tarfile.TarInfo(name)
            info.size = len(image)
            file.addfile(info, io.BytesIO(image))
    return f"{kind} with type {form!r} to {target}", buffer.getvalue()


def _bomb(rng: random.Random, kind: str, image: bytes) -> tuple[str, bytes]:
    """Zeros by the megabyte, many members, an archive in an archive, sizes that lie."""
    way = rng.randrange(4)
    if way == 0:
        size = rng.choice((3, 30)) << 20
        return f"{kind} of {size >> 20} MiB of zeros", _packed(kind, [("query/0001_c1s1_001051_00.jpg", bytes(size))])
    if way == 1:
        return f"{kind} of 20,000 members", _packed(kind, ((f"query/{i}", b"") for i in range(20_000)))
    if way == 2:
        inner = _packed("zip", [("a", bytes(1 << 20))])
        return f"{kind} in a {kind}", _packed(kind, [(f"query/{i}.zip", inner) for i in range(5)])
    buffer = io.BytesIO()  # a header of 8 EiB
    info = tarfile.TarInfo("query/0001_c1s1_001051_00.jpg")
    info.size = rng.choice((2**33, 2**62, 10**11))
    data = info.tobuf(rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) + image
    buffer.write(gzip.compress(data) if kind == "tar.gz" else data)
    return f"tar with a file of {info.size:,} bytes", buffer.getvalue()


def _headers(rng: random.Random, kind: str, image: bytes) -> tuple[str, bytes]:
    """Headers of rare kinds: encryption, other compression, pax records, other formats altogether."""
    way = rng.randrange(5)
    if way == 0:
        buffer = io.BytesIO()
        form = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(buffer, "w", form) as file:
            file.writestr(MARKET[0], image)
        return f"zip of compression {form}", buffer.getvalue()
    if way == 1:
        data = bytearray(_packed("zip", ((name, image) for name in MARKET)))
        central = data.rindex(b"PK\x01\x02")
        data[6] |= 1
        data[central + 8] |= 1
        return "zip that says it is encrypted", bytes(data)
    if way == 2:
        buffer = io.BytesIO()
        headers = rng.choice(
            ({"path": "../../evil.jpg"}, {"size": "-5"}, {"size": "x"}, {"linkpath": "/etc"}, {"GNU.sparse.map": "0,1"})
        )
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
            info = tarfile.TarInfo(MARKET[0])
            info.pax_headers = dict(headers)
            info.size = len(image)
            file.addfile(info, io.BytesIO(image))
        return f"tar with pax headers {headers}", buffer.getvalue()
    if way == 3:
        return "bz2", bz2.compress(_packed("tar", ((name, image) for name in MARKET)))
    data = bytearray(_packed(kind, ((name, image) for name in MARKET)))
    for _ in range(8):
        data[rng.randrange(len(data))] = rng.choice((0, 0xFF))
    return f"{kind} with noise", bytes(data)


# Checkpoints


class Runs:
    """Code that would run if a checkpoint were simply unpickled."""

    def __init__(self, canary: Path, way: str) -> None:
        self.canary, self.way = canary, way

    def __reduce__(self) -> tuple[Any, ...]:
        if self.way == "system":
            return os.system, (f"touch {self.canary}",)
        if self.way == "eval":
            return eval, (f"open({str(self.canary)!r}, 'w')",)
        return Path.touch, (self.canary,)


def odd_tensor(rng: random.Random, like: Any = None) -> Any:
    """A tensor of a kind, type, shape or content that a network does not expect, or an odd value."""
    base = like if isinstance(like, torch.Tensor) else torch.rand(4, 3)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: base.to_sparse(),
        lambda: torch.rand(4, 3).to_sparse_csr(),
        lambda: base.to("meta"),
        lambda: torch.quantize_per_tensor(base.float(), 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(torch.rand(4, 3), torch.ones(4), torch.zeros(4), 0, torch.qint8),
        lambda: base.to(torch.float64), lambda: base.to(torch.float16), lambda: base.to(torch.bfloat16),
        lambda: base.to(torch.complex64), lambda: base.to(torch.int8), lambda: base.to(torch.bool),
        lambda: base.float().to(torch.float8_e4m3fn),
        lambda: torch.full_like(base.float(), float("nan")), lambda: torch.full_like(base.float(), float("inf")),
        lambda: base.float() * 1e30, lambda: base[:0], lambda: base.reshape(-1), lambda: base[None],
        lambda: torch.tensor(1.0), lambda: base.float().expand(2, *base.shape), lambda: torch.zeros(1).expand(100_000, 100_000),
        lambda: base.float().clone().requires_grad_(), lambda: torch.nn.Parameter(base.float()),
        lambda: torch.nested.nested_tensor([torch.rand(2, 2), torch.rand(1, 2)]),
        lambda: base.numpy() if not base.is_sparse else 1, lambda: torch.storage.UntypedStorage(8),
        lambda: odd(rng), lambda: odd(rng),
    )  # fmt: skip
    try:
        return rng.choice(ways)()
    except (RuntimeError, TypeError, NotImplementedError):  # not every tensor has every kind
        return odd(rng)


def checkpoint(rng: random.Random, place: Place) -> Case:
    file = place.inputs / rng.choice(("last.ckpt", "last.ckpt", "weights.pth", "weights.pth.tar"))
    way = rng.random()
    if way < 0.15:
        what = "bytes"
        file.write_bytes(damaged_bytes(rng, place.good.checkpoint.read_bytes(), (b"PK\x03\x04", b"\x80\x02.", b"{}")))
    elif way < 0.25:
        what = with_code(rng, place, file)
    elif way < 0.35:
        what = safetensors_file(rng, place, file := place.inputs / "weights.safetensors")
    else:
        what = altered(rng, place, file)
    return Case(f"{file.name}: {what}", meet_checkpoint(rng, place, file))


def meet_checkpoint(rng: random.Random, place: Place, file: Path) -> Ended:
    """One of the commands that read a checkpoint."""
    way = rng.random()
    if way < 0.5:
        size = rng.choice(((), ("image_size=[64,32]",)))
        return embed(place, *data_of(place), "split=gallery", *size, checkpoint=file)
    if way < 0.75:
        return evaluate(place, file, *rng.choice((data_of(place), ("seed=1",))))
    if way < 0.85:
        return train(place, *data_of(place), f"backbone.weights={file}")
    return train(place, *data_of(place), f"ckpt_path={file}")


def altered(rng: random.Random, place: Place, file: Path) -> str:
    """A checkpoint with edited entries, or bare weights with edited tensors."""
    content: Any = torch.load(place.good.checkpoint, map_location="cpu", weights_only=True)
    way = rng.random()
    if way < 0.4:
        done = ["bdbnet." + what for what in damaged_tree(rng, content["bdbnet"])]
    elif way < 0.5:
        config = content["bdbnet"]["config"]
        group = rng.choice(("dataset", "evaluation", "model", "backbone", "trainer"))
        done = [f"{group}." + what for what in damaged_tree(rng, config[group])]
    elif way < 0.6:
        done = damaged_tree(rng, content)
    elif way < 0.7:
        entry = rng.choice([key for key in content if isinstance(content[key], dict | list) and content[key]])
        done = [f"{entry}: {what}" for what in damaged_tree(rng, content[entry], lambda rng: odd_tensor(rng))]
    else:
        state = content["state_dict"]
        done = []
        for _ in range(rng.choice((1, 1, 3))):
            key = rng.choice(list(state))
            tensor = odd_tensor(rng, state[key])
            state[key] = tensor
            done.append(
                f"{key}: {type(tensor).__name__} {getattr(tensor, 'dtype', '')} {getattr(tensor, 'layout', '')}"
            )
        if rng.random() < 0.3:
            content = rng.choice(
                (state, {"state_dict": state}, {"model": state}, [state], list(state.values()), {"net": {"w": state}})
            )
            done.append("bare")
    protocol = rng.choice((2, 2, 2, 4))
    legacy = rng.random() < 0.2
    try:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    except Exception as error:  # what torch itself can't write
        torch.save({"state_dict": {}, "bdbnet": None}, file)
        done.append(f"not writable ({type(error).__name__})")
    return "; ".join(done)[:300]


def with_code(rng: random.Random, place: Place, file: Path) -> str:
    """A pickle that would run code: alone, in a checkpoint, or in its settings."""
    bad = Runs(place.canary, way := rng.choice(("system", "eval", "touch")))
    content: Any = torch.load(place.good.checkpoint, map_location="cpu", weights_only=True)
    where = rng.choice(("state_dict", "bdbnet", "hyper_parameters", "itself", "pickle", "config"))
    if where == "itself":
        torch.save(bad, file)
    elif where == "pickle":
        file.write_bytes(pickle.dumps(bad, protocol=rng.choice((0, 2, 5))))
    else:
        holder = content["bdbnet"]["config"] if where == "config" else content
        holder["x" if where == "config" else where] = bad
        torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    return f"code ({way}) in {where}"


def safetensors_file(rng: random.Random, place: Place, file: Path) -> str:
    """Weights in safetensors with another header, or damaged bytes."""
    data = (place.good.saved / "model.safetensors").read_bytes()
    data, what = damaged_safetensors(rng, data)
    file.write_bytes(data)
    return what


def damaged_safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged_bytes(rng, data, (b"\0" * 8, b"\xff" * 16, b"{}")), "bytes"
    length = int.from_bytes(data[:8], "little")
    header, what = damaged_json(rng, data[8 : 8 + length])
    if rng.random() < 0.1:
        length = rng.choice((0, 2**63, 2**40, len(header) - 1))
    else:
        length = len(header)
    return length.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :], what


def saved_folder(rng: random.Random, place: Place) -> Case:
    folder = copied(place.good.saved, place.inputs / "saved")
    if rng.random() < 0.8:
        data, what = damaged_json(rng, (folder / "bdbnet.json").read_bytes())
        (folder / "bdbnet.json").write_bytes(data)
        what = f"bdbnet.json: {what}"
    elif rng.random() < 0.8:
        what = f"model.safetensors: {safetensors_file(rng, place, folder / 'model.safetensors')}"
    else:
        name = rng.choice(("model.safetensors", "bdbnet.json", "README.md"))
        (folder / name).unlink()
        what = f"{name} is not there"
        if rng.random() < 0.5:
            (folder / name).mkdir()
            what = f"{name} is a folder"
    if rng.random() < 0.7:
        return Case(what, embed(place, checkpoint=folder))
    return Case(f"{what}, evaluated", evaluate(place, folder, *rng.choice((data_of(place), ("seed=1",)))))


# Images


def image(rng: random.Random, place: Place) -> Case:
    folder = place.inputs / "photos"
    folder.mkdir()
    good = sorted(path for path in place.good.images.iterdir() if path.suffix in (".jpg", ".png"))
    for path in good[:3]:
        shutil.copy(path, folder / path.name)
    name, data, what = odd_image(rng, good)
    file = folder / name
    file.write_bytes(data)
    way = rng.random()
    if way < 0.35:
        skip = rng.choice(("raise", "skip"))
        return Case(f"{name}: {what}", embed(place, f"images={folder}", f"on_error={skip}"))
    if way < 0.5:
        where = (f"output_root={place.out}", "run_name=s")
        return Case(
            f"{name}, searched: {what}",
            place.run("search", f"index={place.good.gallery}", f"images={file}", *SEARCHED, *where),
        )
    rows = [f"{path.name},{i % 2},train,{i}" for i, path in enumerate(good[:3])] + [
        f"{name},5,query,0",
        f"{name},5,gallery,1",
    ]
    table = folder / "list.csv"
    boxed = rng.random() < 0.3
    if boxed:
        box = rng.choice(("0,0,9,9", "-5,-5,3,3", "5,5,5,5", "30,60,9999999,9999999", "999,999,1000,1000"))
        rows = [f"{row},{box}" for row in rows]
    table.write_text("\n".join(["path,label,split,camera" + ",x1,y1,x2,y2" * boxed, *rows]) + "\n")
    data_arguments = ("dataset=table", f"dataset.manifest={table}")
    if way < 0.8:
        return Case(f"{name}, prepared: {what}", place.run("prepare", *data_arguments))
    return Case(f"{name}, evaluated: {what}", evaluate(place, place.good.checkpoint, *data_arguments))


def odd_image(rng: random.Random, good: list[Path]) -> tuple[str, bytes, str]:
    """Name, content and description of an image file."""
    way = rng.random()
    if way < 0.4:
        form = rng.choice(("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"))
        data = encoded(rng, form)
        return (
            f"x{rng.choice(('.jpg', '.png', '.webp', '.bmp', '.tif', '.gif', '.ppm'))}",
            damaged_bytes(rng, data, [p.read_bytes() for p in good]),
            f"{form}, bytes",
        )
    if way < 0.6:
        mode, form = rng.choice(
            (("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("P", "GIF"), ("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"),
             ("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("LAB", "TIFF"),
             ("YCbCr", "TIFF"), ("HSV", "RAW"))
        )  # fmt: skip
        size = rng.choice(((1, 1), (1, 500), (500, 1), (3, 7), (32, 64)))
        if form == "RAW":
            return "x.png", b"raw", "not an image"
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, form)
        return f"x.{form.lower().replace('jpeg', 'jpg')}", buffer.getvalue(), f"{form} of mode {mode}, {size}"
    return rng.choice(
        (_huge_png, _text_png, _huge_bmp, _huge_gif, _huge_ppm, _huge_tiff, _exif, _foreign, _frames, _huge_jpeg)
    )(rng)


def encoded(rng: random.Random, form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png(rng: random.Random) -> tuple[str, bytes, str]:
    width, height = rng.choice(((2**31 - 1, 2**31 - 1), (100_000, 100_000), (9_000, 9_000), (0, 5), (2**31, 1)))
    header = struct.pack(
        ">IIBBBBB", width, height, rng.choice((1, 8, 16, 7)), rng.choice((0, 2, 3, 6, 9)), 0, 0, rng.choice((0, 1))
    )
    data = zlib.compress(bytes(1 << 20), 9)
    return (
        "x.png",
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b""),
        f"PNG of {width} x {height}",
    )


def _text_png(rng: random.Random) -> tuple[str, bytes, str]:
    data = encoded(rng, "PNG")
    bomb = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(rng.choice((1 << 20, 200 << 20))), 9))
    return "x.png", data[:33] + bomb * rng.choice((1, 3)) + data[33:], "PNG with a text of zeros"


def _huge_bmp(rng: random.Random) -> tuple[str, bytes, str]:
    width, height = rng.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (-5, 10), (10, -10), (0, 0)))
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, rng.choice((1, 8, 24, 32)), rng.choice((0, 1, 2, 3)), 0, 0, 0, 0, 0
    )
    return "x.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(200), f"BMP of {width} x {height}"


def _huge_gif(rng: random.Random) -> tuple[str, bytes, str]:
    size = rng.choice(((65_535, 65_535), (0, 0), (9_000, 8_000)))
    data = encoded(rng, "GIF")
    return "x.gif", data[:6] + struct.pack("<HH", *size) + data[10:], f"GIF of {size}"


def _huge_ppm(rng: random.Random) -> tuple[str, bytes, str]:
    head = rng.choice(
        (
            "P6 99999 99999 255\n",
            "P6 2 2 65536\n",
            "P6 -1 5 255\n",
            "P6 " + "9" * 400 + " 1 255\n",
            "P3 2 2 255\n1 2",
            "P4 8 8\n",
            "Pf 2 2 -1.0\n",
            "P6\n#" + "x" * 5000,
        )
    )
    return "x.ppm", head.encode() + bytes(12), f"PPM {head[:20]!r}"


def _huge_tiff(rng: random.Random) -> tuple[str, bytes, str]:
    data = bytearray(encoded(rng, "TIFF"))
    offset = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[offset : offset + 2])[0]
    entry = offset + 2 + 12 * rng.randrange(count)
    field = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4)))
    data[entry + field[0] : entry + field[0] + field[1]] = rng.randbytes(field[1])
    if rng.random() < 0.2:
        data[4:8] = struct.pack("<I", rng.choice((0, 4, len(data) - 1, offset)))
    return "x.tif", bytes(data), "TIFF with another tag"


def _exif(rng: random.Random) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = rng.choice((3, 6, 8, 0, 99, 65535))
    Image.new("RGB", (24, 40), "blue").save(buffer, rng.choice(("JPEG", "PNG", "WEBP", "TIFF")), exif=exif)
    data = bytearray(buffer.getvalue())
    for _ in range(rng.choice((0, 2, 6))):
        data[rng.randrange(min(len(data), 120))] = rng.randrange(256)
    return "x.jpg", bytes(data), f"orientation {exif[0x0112]}"


def _foreign(rng: random.Random) -> tuple[str, bytes, str]:
    """Formats that start programs, point elsewhere or are no images."""
    texts = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/tmp/evil) (w) file\n%%EOF\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "HTML": b"<html>404</html>", "PDF": b"%PDF-1.4\n", "ELF": b"\x7fELF" + bytes(100), "zeros": bytes(5000),
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "MPO": b"\xff\xd8\xff\xe2\x00\x10MPF\0" + bytes(60), "ICO": b"\0\0\1\0\1\0" + bytes(60), "DDS": b"DDS " + bytes(124),
        "PSD": b"8BPS\0\1" + bytes(60), "FITS": b"SIMPLE  =                    T" + bytes(100),
        "QOI": b"qoif" + struct.pack(">II", 2**31, 2**31) + b"\3\0",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "AVIF": b"\0\0\0\x20ftypavif" + bytes(60),
    }  # fmt: skip
    kind = rng.choice(list(texts))
    return f"x{rng.choice(('.jpg', '.png', '.tif', '.gif'))}", texts[kind], kind


def _frames(rng: random.Random) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    frames = [Image.new("P", (24, 40), i) for i in range(rng.choice((2, 50)))]
    form = rng.choice(("GIF", "WEBP", "TIFF", "PNG"))
    frames[0].convert("RGB").save(
        buffer, form, save_all=True, append_images=[frame.convert("RGB") for frame in frames[1:]]
    )
    return (
        f"x.{form.lower().replace('tiff', 'tif')}",
        damaged_bytes(rng, buffer.getvalue()),
        f"{len(frames)} frames of {form}, bytes",
    )


def _huge_jpeg(rng: random.Random) -> tuple[str, bytes, str]:
    data = bytearray(encoded(rng, "JPEG"))
    start = data.index(b"\xff\xc0")
    size = rng.choice(((65_535, 65_535), (0, 0), (1, 65_535), (9_000, 8_000)))
    data[start + 5 : start + 9] = struct.pack(">HH", *size)
    return "x.jpg", bytes(data), f"JPEG of {size}"


# Results


RESULT_FILES = (
    "result.json",
    "result.json",
    "result.json",
    "history.csv",
    "topk.parquet",
    "topk.parquet",
    "analysis.json",
    "per_query.parquet",
)


def damage_file(rng: random.Random, file: Path) -> str:
    """Damage a file in place, by its format."""
    data = file.read_bytes()
    damage = {
        ".json": damaged_json,
        ".csv": damaged_csv,
        ".parquet": damaged_parquet,
        ".safetensors": damaged_safetensors,
    }
    if file.suffix in damage:
        changed, what = damage[file.suffix](rng, data)
    else:
        changed, what = damaged_bytes(rng, data), "bytes"
    file.write_bytes(changed)
    return f"{file.name}: {what}"


def result(rng: random.Random, place: Place) -> Case:
    way = rng.random()
    if way < 0.1:
        return reproduction(rng, place)
    name = rng.choice(RESULT_FILES)
    source = (
        place.good.run
        if name in ("history.csv",) or (name in ("result.json", "topk.parquet") and rng.random() < 0.6)
        else place.good.evaluation(1)
    )
    folder = copied(source, place.out / "runs" / "a")
    what = damage_file(rng, folder / name)
    if way < 0.2 and name == "result.json":
        copied(place.good.run, place.out / "runs" / "b")
        return Case(f"sweep, {what}", place.run("report", f"run={place.out / 'runs'}"))
    if name == "per_query.parquet" or (
        name in ("analysis.json", "result.json") and source != place.good.run and way < 0.6
    ):
        other = copied(place.good.evaluation(2), place.out / "b")
        sides = [folder, other]
        rng.shuffle(sides)
        return Case(f"compared, {what}", place.run("report", f"run={sides[0]}", f"compare={sides[1]}"))
    return Case(what, place.run("report", f"run={folder}"))


def reproduction(rng: random.Random, place: Place) -> Case:
    """A training of a table whose record is damaged."""
    folder = copied(place.good.reproduction, place.out / "r")
    run = next((folder / "runs").glob("*/*/seed=1"))
    file = rng.choice((run / "result.json", run / "result.json", run.parent / "cell.json", run / "failure.json"))
    if file.name == "failure.json":
        file.write_text('{"reason": "x", "trace": "", "created": "2026"}')
        (run / "result.json").unlink()
    elif file.name == "cell.json" and rng.random() < 0.7:  # of another version: its settings are read
        run.parent.rename(run.parent.with_name("other"))
        file = run.parent.with_name("other") / "cell.json"
    what = damage_file(rng, file)
    return Case(f"reproduce, {what}", place.run("reproduce", *reproduced(folder), "list=true"))


# Galleries


def store(rng: random.Random, place: Place) -> Case:
    folder = copied(place.good.gallery, place.out / "gallery")
    way = rng.random()
    if way < 0.15:
        return interrupted(rng, place, folder)
    engine = ()
    if way < 0.25:
        file = rng.choice(sorted(folder.glob("faiss-ivf.*")))
        engine = ("engine=faiss_ivf",)
    else:
        file = folder / rng.choice(
            ("meta.json", "meta.json", "meta.json", "manifest.parquet", "manifest.parquet", "embeddings.safetensors")
        )
    what = damage_file(rng, file)
    if file.name != "meta.json" and rng.random() < 0.7:  # so that more than the size is looked at
        meta = json.loads((folder / "meta.json").read_text())
        meta["files"] = {name: (folder / name).stat().st_size for name in meta["files"]}
        (folder / "meta.json").write_text(json.dumps(meta))
        what += ", with its size in meta.json"
    out = (f"output_root={place.out}", "run_name=s", *engine)
    way = rng.random()
    if way < 0.4:
        ended = place.run("search", f"index={folder}", f"queries={place.good.gallery}", *SEARCHED, *out)
    elif way < 0.55:
        ended = place.run("search", f"index={place.good.gallery}", f"queries={folder}", *SEARCHED, *out)
    elif way < 0.9:
        extra = rng.choice(((), (), ("after=5",), ("same_camera=false",)))
        ended = place.run("search", f"index={folder}", f"images={place.good.table}", *SEARCHED, *out, *extra)
    else:
        ended = place.run(
            "embed",
            f"checkpoint={place.good.checkpoint}",
            *data_of(place),
            "split=gallery",
            *EMBEDDED,
            f"output={folder}",
        )
    return Case(what, ended)


def interrupted(rng: random.Random, place: Place, folder: Path) -> Case:
    """A gallery that is half done, with a damaged plan or part."""
    for name in ("meta.json", "manifest.parquet", "embeddings.safetensors"):
        (folder / name).unlink(missing_ok=True)
    arguments = (f"checkpoint={place.good.checkpoint}", *data_of(place), "split=gallery", *EMBEDDED, f"output={folder}")
    plan = folder / "plan.json"
    shard = folder / "shards" / "000000.safetensors"
    if rng.random() < 0.5:
        what = damage_file(rng, plan)
    else:
        import safetensors.numpy

        shard.parent.mkdir(exist_ok=True)
        rows, numbers = np.arange(8), np.zeros((8, 512), np.float32)
        parts: dict[str, Any] = {"rows": rows, "embeddings": numbers}
        way = rng.randrange(5)
        if way == 0:
            parts["embeddings"] = rng.choice(
                (numbers[:, :5], numbers.astype(np.float64), numbers[:3], numbers.reshape(-1))
            )
        elif way == 1:
            parts["rows"] = rng.choice(
                (rows[:3], rows.astype(np.float32), rows + 5, rows.reshape(2, -1), np.zeros(8, np.int64))
            )
        elif way == 2:
            parts.pop(rng.choice(("rows", "embeddings")))
        words = rng.choice(('{"0": "x"}', "{}", "x", "[]", '{"a": 1}', "null", "5"))
        shard.write_bytes(safetensors.numpy.save(parts, {"unreadable": words}))
        what = f"shard {way}, unreadable {words}" if way < 4 else damage_file(rng, shard)
    return Case(f"resumed, {what}", place.run("embed", *arguments))


# Settings


TARGETS = (
    *("os.system", "builtins.eval", "subprocess.run", "os.path.join", "torch.load", "pickle.loads"),
    *("bdbnet.models.BDBNetwork", "bdbnet.models", "bdbnet.results.write_atomically", "torch.optim.SGD", "torch.nn.Identity"),
    *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.callbacks.Callback", "x", "", ".", "..a", "os."),
    *("pytorch_lightning.callbacks.early_stopping.EarlyStopping",),
    *("bdbnet.losses.HardTripletLoss", "pytorch_lightning.callbacks.ModelCheckpoint", "[os.system]", "{a: 1}", "null", "5", "???"),
)  # fmt: skip


def settings(rng: random.Random, place: Place) -> Case:
    """Callbacks, loggers, losses and so on that a command line builds."""
    target = rng.choice(TARGETS)
    argument = rng.choice(
        ("", ", command: 'touch CANARY'", ", monitor: mAP", ", x: 1", ", _partial_: true", ", _args_: [1]")
    )
    node = f"{{_target_: {target if target[:1] in ('[', '{') else repr(target)}{argument}}}".replace(
        "CANARY", str(place.canary)
    )
    key = rng.choice(
        ("callbacks.extra=[{}]", "callbacks.extra=[{}]", "callbacks.extra={}", "+logger.x={}", "logger.logger={}",
         "augmentation.erasing=[{}]", "+optimizer.x={}", "+loss.metric={}", "dropping={}", "+schedule.x={}",
         "callbacks.extra=[[{}]]", "callbacks.extra=[[os.system]]")
    )  # fmt: skip
    typed = key.replace("{}", node)
    return Case(typed, train(place, *data_of(place), typed))


KINDS: dict[str, tuple[Callable[[random.Random, Place], Case], int]] = {
    "manifests": (manifest, 20),
    "lists": (author_list, 8),
    "archives": (archive, 14),
    "checkpoints": (checkpoint, 18),
    "saved": (saved_folder, 8),
    "images": (image, 14),
    "results": (result, 20),
    "stores": (store, 14),
    "settings": (settings, 4),
}
"""Kind -> what makes a case and runs it, and its share of all cases."""
