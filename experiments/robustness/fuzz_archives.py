"""Damaged and hostile archives."""

import bz2
import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Iterable

from fuzz_commands import Ended, Place
from fuzz_damage import damaged_bytes
from fuzz_meeting import Case

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
    return f"{kind} of {len(names)} files", _packed(kind, ((name, image + bytes(i)) for i, name in enumerate(names)))


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
