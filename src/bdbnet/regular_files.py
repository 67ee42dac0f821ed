"""Opening of regular files alone: a named pipe, a socket or a device would be waited for, or read, for ever."""

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special_kind(path: str | Path) -> str | None:
    """What `path` is if it is neither a regular file nor a folder: "a named pipe", "a socket" or "a device".

    Links are followed.  Raises OSError where there is nothing.
    """
    return _kind(os.stat(path))  # noqa: PTH116  (also for paths that are text)


def require_regular(path: str | Path) -> None:
    """Raise OSError for a named pipe, a socket or a device, for libraries that open a file by its name.

    Nothing is raised where there is no file: opening it gives that error.
    """
    try:
        kind = special_kind(path)
    except OSError:
        return
    if kind:
        raise _refusal(path, kind)


def regular(path: str, flags: int) -> int:
    """The `opener` of `open(path, "rb", opener=regular)`: as without it, but OSError for what is no regular file."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.  For regular files it changes nothing.
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError:
        require_regular(path)  # a socket can't be opened at all, which the system says in other words
        raise
    if (kind := _kind(os.fstat(handle))) is not None:
        os.close(handle)
        raise _refusal(path, kind)
    return handle


def _kind(status: os.stat_result) -> str | None:
    return next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), None)


def _refusal(path: str | Path, kind: str) -> OSError:
    return OSError(errno.EINVAL, f"is {kind}, not a regular file", str(path))
