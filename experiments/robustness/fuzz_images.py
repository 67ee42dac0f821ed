"""Damaged, huge and odd images."""

import io
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from fuzz_commands import SEARCHED, Place
from fuzz_damage import damaged_bytes
from fuzz_meeting import Case, embed, evaluate
from PIL import Image


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
