"""Paths of images as tables write them: absolute, or of Windows, to relative ones with forward slashes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdbnet.datasets.manifest import DatasetError

_DRIVE = re.compile("[A-Za-z]:/")


def plain_paths(
    source: str | Path, paths: Sequence[Any], base: Path, place: str, *, key: str = "dataset.root"
) -> list[Any]:
    """Paths relative to `base`, with forward slashes; what is no text or no plain path is left for `Manifest` to refuse.

    `place` says in messages what `base` is, `key` the setting that gives another. Raises DatasetError that names the row of
    an absolute path outside of `base`.
    """
    bases = {f"{folder.rstrip('/')}/" for folder in (base.as_posix(), os.path.realpath(base).replace("\\", "/"))}
    result = []
    for row, path in enumerate(paths, 1):
        if not isinstance(path, str):
            result.append(path)
            continue
        plain = path.replace("\\", "/")
        while plain.startswith("./"):
            plain = plain[2:]
        if plain.startswith("/") or _DRIVE.match(plain):
            inside = next((plain.removeprefix(start) for start in bases if plain.startswith(start)), None)
            if inside is None:
                raise DatasetError(f"{source}, row {row}, column path: {path!r} {_outside(plain, base, place, key)}")
            plain = inside
        result.append(plain)
    return result


def _outside(plain: str, base: Path, place: str, key: str) -> str:
    fault = f"is not a plain relative path, and lies outside of {base} ({place.partition(';')[0]})."
    if _DRIVE.match(plain) and os.name != "nt":
        return (
            f"{fault} There are no drives here: write paths relative to the folder of the images, and set {key} to it."
        )
    root = f"{plain[:3]}" if _DRIVE.match(plain) else "/"
    return (
        f"{fault} Set {key}={root} to read absolute paths from anywhere, or {key} to the folder that holds all images."
    )
