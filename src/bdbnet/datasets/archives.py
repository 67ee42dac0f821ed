"""Safe extraction of dataset archives (.zip, .tar, .tar.gz)."""

import errno
import gzip
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from tqdm import tqdm

from bdbnet.datasets.manifest import DatasetError
from bdbnet.files import similar_file
from bdbnet.regular_files import regular

_CHUNK = 1 << 20
# Files that datasets ship next to their archives: annotations and lists.
_COMPANIONS = (".mat", ".txt")
# Up to this size any compression ratio is allowed: a small text file may compress 1000-fold without being an attack.
_ALWAYS_ALLOWED = 1 << 20
# Empty, absolute, with a drive letter, with a backslash or control character, or with a ".." part.
_UNSAFE_NAME = re.compile(r"^$|^/|^[A-Za-z]:|[\\\x00-\x1f]|(?:^|/)\.\.(?:/|$)")
# Exceptions of the libraries for truncated or damaged headers and content.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
)
_GET_ANOTHER = "Nothing was extracted. Get the archive from the dataset's authors."


class ArchiveError(DatasetError):
    """An archive that is unsafe, damaged or can't be extracted."""


def extract_archives(
    archives: Sequence[str | Path],
    destination: str | Path,
    *,
    max_members: int = 2_000_000,
    max_bytes: int = 500 * 10**9,
    max_ratio: float = 100.0,
    progress: bool = True,
) -> Path:
    """Extract .zip, .tar, .tar.gz or .tgz files into the new folder `destination` and return its path.

    Several archives go into the same folder, one after another; .mat and .txt files that datasets ship next to their
    archives are copied into it.  Only plain files and folders are written, and only below `destination`.  Refused are
    absolute names, `..`, backslashes, links, devices, encrypted and repeated members, and in each archive more than
    `max_members` members, and more content than `max_bytes` or `max_ratio` times its size, both counted while it is
    unpacked.  Files are written to a temporary folder next to `destination`, which is renamed at the end: after an error or
    Ctrl-C nothing is left.  Raises ArchiveError.
    """
    sources, target = [Path(archive) for archive in archives], Path(destination).resolve()
    if not sources:
        raise ArchiveError("archive=[] names no file: give one, or several as archive=[a.zip,b.tgz]")
    _check_destination(target)
    kinds = [_kind(source) for source in sources]
    with _clear_errors(sources[0], target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent))
    try:
        # A folder made by mkdir, unlike one by mkdtemp, has the permissions that the user's umask asks for.
        content = temporary / "content"
        content.mkdir()
        for source, kind in zip(sources, kinds):
            with _clear_errors(source, target):
                _extract(source, kind, content, _Limit(source, max_members, max_bytes, max_ratio), progress)
        with _clear_errors(sources[-1], target):
            if target.exists():
                target.rmdir()
            content.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _extract(archive: Path, kind: str, folder: Path, limit: "_Limit", progress: bool) -> None:
    if kind == "plain":
        with archive.open("rb") as stream, _create(archive, archive.name, folder / archive.name) as target:
            shutil.copyfileobj(stream, target, _CHUNK)
        return
    with tqdm(desc=f"extracting {archive.name}", unit=" files", disable=not progress) as bar:
        if kind == "zip":
            _extract_zip(archive, folder, limit, bar)
        else:
            _extract_tar(archive, folder, limit, bar, compressed=kind == "tar.gz")


class _Limit:
    """Counts members and unpacked bytes of one archive against its caps."""

    def __init__(self, archive: Path, max_members: int, max_bytes: int, max_ratio: float) -> None:
        self.archive = archive
        self.max_members = max_members
        self.members = 0
        self.unpacked = 0
        by_ratio = max(int(max_ratio * archive.stat().st_size), _ALWAYS_ALLOWED)
        self.bytes = min(max_bytes, by_ratio)
        self.reason = (
            f"more than {max_bytes:,} bytes"
            if max_bytes <= by_ratio
            else f"more than {max_ratio:g} times the size of the archive"
        )

    def count_member(self) -> None:
        self.members += 1
        if self.members > self.max_members:
            raise ArchiveError(f"{self.archive} has more than {self.max_members:,} members. {_GET_ANOTHER}")

    def count_bytes(self, number: int) -> None:
        self.unpacked += number
        if self.unpacked > self.bytes:
            raise ArchiveError(f"{self.archive} unpacks to {self.reason}. {_GET_ANOTHER}")


class _MeteredStream:
    """A readable stream for tarfile that counts how far it was unpacked, headers and padding included."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: _Limit) -> None:
        self.stream = stream
        self.limit = limit

    def read(self, size: int) -> bytes:
        # A header may claim any size: never unpack more than one byte beyond the limit at once.
        if size < 0:
            raise tarfile.ReadError("a header gives a negative size")
        start = self.stream.tell()
        data = self.stream.read(min(size, max(self.limit.bytes - start, 0) + 1))
        self._advance(start + len(data))
        return data

    def seek(self, position: int) -> int:
        self._advance(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        return self.stream.tell()

    def _advance(self, position: int) -> None:
        self.limit.count_bytes(max(position - self.limit.unpacked, 0))


def _extract_zip(archive: Path, folder: Path, limit: _Limit, bar: "tqdm[NoReturn]") -> None:
    with zipfile.ZipFile(archive) as source:
        members = source.infolist()
        bar.total = len(members)
        for member in members:
            limit.count_member()
            # The upper half holds the Unix mode; it is 0 in archives made elsewhere.
            form = stat.S_IFMT(member.external_attr >> 16)
            if form not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, member.filename, "is a link or a device")
            if member.flag_bits & 0x1:
                raise _refused(archive, member.filename, "is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(archive, member.filename, "is not compressed by deflate")
            path = _safe_path(archive, folder, member.filename)
            if member.is_dir():
                _make_folder(archive, member.filename, path)
            else:
                with source.open(member) as stream, _create(archive, member.filename, path) as target:
                    while chunk := stream.read(_CHUNK):
                        limit.count_bytes(len(chunk))
                        target.write(chunk)
            bar.update()


def _extract_tar(archive: Path, folder: Path, limit: _Limit, bar: "tqdm[NoReturn]", *, compressed: bool) -> None:
    with gzip.open(archive) if compressed else archive.open("rb") as unpacked:
        stream = _MeteredStream(unpacked, limit)
        reader: Any = tarfile  # its type stubs have neither custom streams nor `members`
        with reader.open(fileobj=stream, mode="r:") as source:
            for member in source:
                limit.count_member()
                path = _safe_path(archive, folder, member.name)
                if member.isdir():
                    _make_folder(archive, member.name, path)
                elif not member.isreg() or member.issparse() or member.size < 0:
                    raise _refused(archive, member.name, "is a link, a device or a sparse file")
                else:
                    with _create(archive, member.name, path) as target:
                        _copy_member(source, member, target)
                bar.update()
                source.members = []  # tarfile keeps every header otherwise
            # tarfile stops silently at a damaged header, so check that only zeros follow the last member.
            stream.seek(source.offset)
            padding = stream.read(tarfile.BLOCKSIZE)
            if len(padding) < tarfile.BLOCKSIZE:
                raise EOFError("the end of the archive is missing")
            while padding:
                if padding.strip(b"\0"):
                    raise tarfile.ReadError("damaged header")
                padding = stream.read(_CHUNK)


def _copy_member(source: tarfile.TarFile, member: tarfile.TarInfo, target: IO[bytes]) -> None:
    stream = source.extractfile(member)
    assert stream is not None
    missing = member.size
    while chunk := stream.read(min(_CHUNK, missing)):
        target.write(chunk)
        missing -= len(chunk)
    if missing:
        raise EOFError(f"{member.name} ends early")


def _safe_path(archive: Path, folder: Path, name: str) -> Path:
    if _UNSAFE_NAME.search(name):
        raise _refused(archive, name, "has a name that is empty or could lead out of the folder")
    return folder / name


def _make_folder(archive: Path, name: str, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _refused(archive, name, "needs a folder with the name of an earlier file") from None


def _create(archive: Path, name: str, path: Path) -> IO[bytes]:
    """A new file; "x" also notices names that are equal only to a file system without upper and lower case."""
    _make_folder(archive, name, path.parent)
    try:
        return path.open("xb")
    except (FileExistsError, IsADirectoryError):
        raise _refused(archive, name, "has the name of an earlier member") from None


def _refused(archive: Path, member: str, reason: str) -> ArchiveError:
    return ArchiveError(f"{archive}: member {member!r} {reason}, which is refused. {_GET_ANOTHER}")


def _check_destination(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            raise ArchiveError(
                f"{target} holds files already. Leave out archive= to use them, or delete the folder to extract again. "
                "A list or a .mat file that is missing can be copied there."
            )
        if os.path.ismount(target):
            raise ArchiveError(f"{target} is a mount point. Extract into a folder inside it.")
    elif target.exists():
        raise ArchiveError(f"{target} is a file. Give a new folder to extract into.")


def _kind(archive: Path) -> str:
    """`zip`, `tar` or `tar.gz`, told by the first bytes, or `plain` by the name.  Raises ArchiveError."""
    try:
        with open(archive, "rb", opener=regular) as file:
            start = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        near = None if archive.exists() else similar_file(archive)
        advice = f"Did you mean archive={near}?" if near else "Check archive=."
        raise ArchiveError(f"can't read the archive {archive}: {error.strerror}. {advice}") from None
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if start[257:262] == b"ustar":
        return "tar"
    if archive.suffix.lower() in _COMPANIONS:
        return "plain"
    raise ArchiveError(
        f"{archive} ({archive.stat().st_size:,} bytes) is not a .zip, .tar, .tar.gz or .tgz archive. "
        "It may be a saved error page: download it again."
    )


@contextmanager
def _clear_errors(archive: Path, target: Path) -> Iterator[None]:
    """Turn what zipfile, tarfile and the file system raise into ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except _DAMAGED as error:
        raise ArchiveError(
            f"{archive} is truncated or damaged ({error}). Nothing was extracted. Download it again."
        ) from error
    except NotImplementedError as error:
        raise ArchiveError(
            f"{archive} can't be unpacked here ({error}). Unpack it with another program and set dataset.root to the folder."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "The disk is full. Free some space or set dataset.root to a folder on another disk."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "The folder is not writable. Change its permissions or set dataset.root to another folder."
        else:
            advice = f"{error.filename}." if error.filename else "Check the archive and the disk."
        raise ArchiveError(
            f"can't extract {archive} to {target}: {error.strerror or error}. Nothing was extracted. {advice}"
        ) from error
