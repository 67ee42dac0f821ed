"""Cache of prepared images: one memory-mapped file per dataset, written once and shared by all processes."""

import bisect
import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from bdbnet.checked import checked, read_json
from bdbnet.datasets import Manifest
from bdbnet.datasets.checking import usable_cores
from bdbnet.datasets.images import ImageError
from bdbnet.datasets.manifest import expanded
from bdbnet.loading.transforms import TrainTransform

# Increase it with every change of what is stored: older caches are then rebuilt.
FORMAT = 1
_IMAGES, _FACTS = "images.npy", "cache.json"


class _Facts(TypedDict):
    """What `cache.json` says; `unreadable` is row -> reason."""

    format: int
    shape: tuple[int, int, int, int]
    content: str
    unreadable: Mapping[str, str]


class CacheError(RuntimeError):
    """A cache that can't be built; the message names the folder and the fix."""


class PackedImages:
    """uint8 (N, H, W, 3) images of N rows, `images`, and why rows are absent, `unreadable` (row -> reason).

    The pixels stay on disk and are paged in when they are read; all processes share them.  `content` identifies them.
    Raises CacheError for a folder with other content.
    """

    def __init__(self, folder: Path, content: str) -> None:
        facts = _facts(folder)
        if facts["content"] != content:
            raise CacheError(f"the cache {folder} was replaced while this run used it: start the run again")
        self.folder = folder
        self.content = content
        self.images: np.ndarray = np.load(folder / _IMAGES, mmap_mode="r")
        self.unreadable = {int(row): str(reason) for row, reason in facts["unreadable"].items()}

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map would be pickled with all its pixels.
        return PackedImages, (self.folder, self.content)


class JoinedImages:
    """The caches of several sets as one, in their order: what `PackedImages` has, without a copy."""

    def __init__(self, parts: Sequence[PackedImages]) -> None:
        self.parts = tuple(parts)
        ends = np.cumsum([len(part.images) for part in self.parts]).tolist()
        self.unreadable = {
            begin + row: reason
            for begin, part in zip([0, *ends], self.parts)
            for row, reason in part.unreadable.items()
        }
        self.images = _Rows([part.images for part in self.parts], ends)

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedImages, (self.parts,)


class _Rows:
    """Arrays (N, H, W, 3) one after the other, read by row or by a slice of rows."""

    def __init__(self, arrays: Sequence[np.ndarray], ends: Sequence[int]) -> None:
        self._arrays, self._ends = arrays, ends
        self.shape = (ends[-1], *arrays[0].shape[1:])
        self.nbytes = sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(self))
            starts = [0, *self._ends]
            found = [
                array[max(begin - start, 0) : end - start]
                for array, start, stop in zip(self._arrays, starts, self._ends)
                if begin < stop and end > start
            ]
            return np.concatenate(found) if found else self._arrays[0][:0]
        part = bisect.bisect_right(self._ends, rows)
        return cast(np.ndarray, self._arrays[part][rows - (self._ends[part - 1] if part else 0)])


def open_or_pack(
    root: Path,
    name: str,
    manifest: Manifest,
    transform: TrainTransform,
    prepare: Callable[[int], np.ndarray],
    *,
    decode_margin: float | None,
    keep_going: bool = False,
    progress: bool = True,
) -> PackedImages:
    """The cache of all rows of `manifest`, in a folder of `root` named by dataset, rows and size; built if absent.

    `prepare(row)` gives a row's pixels (H, W, 3).  A cache with other files (by size and time of change), settings, image
    size or format, or an incomplete one, is rebuilt, and a line says why.  One process builds it, others wait.  It gets its
    name when it is complete; a complete one may be on a read-only disk.

    Raises CacheError where it can't be written, and ImageError for an unreadable image, unless `keep_going`: such rows are
    then noted in `unreadable`.
    """
    height, width = transform.prepared_size
    # Settings are part of the name; changed files are detected by size and time.
    settings = f"{manifest.fingerprint} {manifest.root} {transform.pad_to_square} {decode_margin}"
    if transform.interpolation != "bilinear":
        settings += f" {transform.interpolation}"
    key = hashlib.sha256(settings.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    folder = expanded(root) / f"{name[:60]}-{key}-{height}x{width}"
    content = _content(settings, manifest)
    wanted: dict[str, Any] = {"format": FORMAT, "shape": [len(manifest.table), height, width, 3], "content": content}
    try:
        if _problem(folder, wanted, keep_going=keep_going) is None:
            with contextlib.suppress(OSError, CacheError):  # another process may be rebuilding it
                return PackedImages(folder, content)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if (problem := _problem(folder, wanted, keep_going=keep_going)) is not None:
                _make_room(folder, problem)
                _pack(folder, wanted, prepare, keep_going=keep_going, progress=progress)
            return PackedImages(folder, content)
    except OSError as error:
        needed = math.ceil(math.prod(wanted["shape"]) / 2**20)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CacheError(
            f"the cache {folder} can't be written ({error.strerror or error}): set loading.cache_root to a folder "
            f"{f'with {needed:,} MiB of free space' if full else 'that is writable'}, or loading.cache=none"
        ) from error


def _make_room(folder: Path, problem: str) -> None:
    """Remove the outdated cache and the temporary folders of killed processes.  Nothing else is removed."""
    if folder.exists():
        others = {path.name for path in folder.iterdir()} - {_IMAGES, _FACTS} if folder.is_dir() else {folder.name}
        if others:
            raise CacheError(
                f"{folder} is the folder of the cache, but holds {', '.join(sorted(others)[:3])}: move it away, or set "
                "loading.cache_root to another folder"
            )
        print(f"cache {folder} {problem}: rebuilding it", flush=True)
        shutil.rmtree(folder)
    # A process that fills such a folder holds the lock, so none of these is in use.
    for left_behind in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left_behind, ignore_errors=True)


def _facts(folder: Path) -> dict[str, Any]:
    """What a cache says of itself.  Raises OSError or ValueError."""
    return {**checked(read_json(folder / _FACTS), _Facts)}


def _content(settings: str, manifest: Manifest) -> str:
    """Hash of everything that the pixels depend on."""
    digest = hashlib.sha256(settings.encode("utf-8", "surrogateescape"))
    for path in manifest.paths:
        try:
            status = os.stat(path)  # noqa: PTH116  (a Path for each of 100,000 files takes as long as the call)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"absent\n")
    return digest.hexdigest()


def _problem(folder: Path, wanted: dict[str, Any], *, keep_going: bool) -> str | None:
    """Why the cache in `folder` can't be used, or None."""
    if not folder.exists():
        return "is absent"
    try:
        facts = _facts(folder)
        found = {key: facts[key] for key in wanted}
        unreadable = facts["unreadable"]
        images = np.load(folder / _IMAGES, mmap_mode="r")  # fails where the file is too short
        shape = images.shape if images.dtype == np.uint8 else ()
    except (OSError, ValueError, EOFError):
        return "is incomplete or damaged"
    found["shape"] = [*found["shape"]]
    if found["shape"] != wanted["shape"] or list(shape) != wanted["shape"]:
        return f"holds {found['shape'][0]:,} images of {found['shape'][1]} x {found['shape'][2]} pixels"
    if found != wanted:
        return "was built from other images or settings"
    if unreadable and not keep_going:
        return f"lacks {len(unreadable)} images that could not be read"
    return None


def _pack(
    folder: Path, wanted: dict[str, Any], prepare: Callable[[int], np.ndarray], *, keep_going: bool, progress: bool
) -> None:
    count = wanted["shape"][0]
    temporary = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    unreadable: dict[int, str] = {}

    def fill(row: int) -> None:
        try:
            images[row] = prepare(row)
        except ImageError as error:
            if not keep_going:
                raise
            unreadable[row] = str(error)

    try:
        temporary.mkdir()
        images = np.lib.format.open_memmap(temporary / _IMAGES, mode="w+", dtype=np.uint8, shape=tuple(wanted["shape"]))
        if hasattr(os, "posix_fallocate"):
            # The file is sparse: on a full disk, writing into a hole would kill the process without a message.
            with (temporary / _IMAGES).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, (temporary / _IMAGES).stat().st_size)
        with (
            ThreadPoolExecutor(usable_cores()) as pool,  # decoders and resizing release Python's global lock
            tqdm(total=count, desc=f"packing {folder.name}", unit=" images", disable=None if progress else True) as bar,
        ):
            for begin in range(0, count, 1024):  # in portions, so that an error or Ctrl-C leaves no long queue behind
                for _ in pool.map(fill, range(begin, min(begin + 1024, count))):
                    bar.update()
        images.flush()
        (temporary / _FACTS).write_text(json.dumps({**wanted, "unreadable": dict(sorted(unreadable.items()))}))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
