"""Files that are written whole or not at all, folders that one process at a time may use, and files that a wrong name may mean."""

import contextlib
import difflib
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

#: File in a folder whose lock a process holds while it works there.
LOCK = ".lock"

#: Errors of the system that a user can do something about, and what.
_ADVICE = {
    errno.ENOSPC: "free some space there, or write to another disk",
    errno.EDQUOT: "free some space there, or write to another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write to another disk",
    errno.EROFS: "choose a folder that is writable",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


class WriteError(OSError):
    """A file that can't be written; the message names it and says what to do. What was there before is unchanged."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __reduce__(self) -> tuple[Any, ...]:  # of an error that another process raised
        return type(self), (self.filename, OSError(self.errno, self.strerror))

    def __str__(self) -> str:
        advice = _ADVICE.get(self.errno or 0)
        return f"{self.filename} can't be written: {self.strerror}" + (f"; {advice}" if advice else "")


class LockedError(RuntimeError):
    """A folder that another process works in; the message names it."""


def is_about_writing(error: OSError) -> bool:
    """Whether an error is that of a disk that is full or that may not be written to."""
    if error.errno in (errno.EACCES, errno.EPERM):  # of what is not there, only the making can be forbidden
        return isinstance(error, WriteError) or (error.filename is not None and not Path(error.filename).exists())
    return isinstance(error, WriteError) or error.errno in _ADVICE


@contextmanager
def replaced(path: str | Path, *, keep: str | Path | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when all of it is on the disk; an error leaves `path` as it was.

    The content goes into a hidden file beside `path`, so that no other file system is involved and a rename does the rest:
    a process that is killed, or a power failure, leaves the old file or the whole new one.

    Args:
        keep: name under which the old file is kept.

    Raises:
        WriteError: the disk is full, or the folder can't be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise WriteError(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if keep is not None:
            _keep(path, Path(keep))
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(path.parent):
            raise  # what was being read, not what is written
        raise WriteError(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file by `replaced`."""
    with replaced(path) as file:
        file.write(content)
    return path


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed while they replaced `path`; nobody may be doing that now."""
    for temporary in path.parent.glob(f".{path.name}.*"):
        temporary.unlink(missing_ok=True)


def similar_file(path: str | Path) -> Path | None:
    """The file beside a path that is not there whose name is most like the path's; None where none is."""
    path = Path(path).expanduser()
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / close[0] if close else None


def locked(folder: Path, *, timeout: float = -1) -> AbstractContextManager[object]:
    """Take the lock of a folder, until the end of a `with` statement; the same process may take it again inside.

    Args:
        timeout: seconds to wait for another process; below 0: for ever.

    Raises:
        LockedError: another process still holds it.
        WriteError: the folder can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.resolve() / LOCK, is_singleton=True).acquire(timeout=timeout)
    except Timeout as error:
        raise LockedError(f"{folder}: another process is working there") from error
    except OSError as error:
        raise WriteError(folder / LOCK, error) from error


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that can't be written to is one that nobody works in
        return False


def _keep(path: Path, kept: Path) -> None:
    """Give the file at `path` a second name; `path` is there at every moment where the file system has hard links."""
    if not path.exists():
        return
    kept.unlink(missing_ok=True)
    try:
        kept.hardlink_to(path)
    except OSError:
        path.replace(kept)


def _flush_folder(folder: Path) -> None:
    """Write a rename to the disk, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
