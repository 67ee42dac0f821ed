"""Data of a user's own in the folders of Market-1501, with any pattern of file names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bdbnet.datasets.layout import find_base
from bdbnet.datasets.manifest import COLUMNS, DatasetError, Manifest
from bdbnet.datasets.numbering import Numbered, number_names
from bdbnet.datasets.person_reid import FOLDERS, OWN_NAMES, image_files, without_suffix

_EXAMPLE = r"'(?P<identity>\d+)_cam(?P<camera>\d+)_.*'"
_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_JUNK = "-1"


class _Names(NamedTuple):
    """Pattern of file names without suffix, and its groups; `camera` is None where images have none."""

    pattern: re.Pattern[str]
    identity: int | str = 1
    camera: int | str | None = 2


class _Image(NamedTuple):
    path: str
    identity: str
    camera: str | None
    split: str


def read_market_layout(root: Path, *, pattern: str | None = None) -> Manifest:
    """Images of a user's own in `bounding_box_train`, `query` and `bounding_box_test` of `root`, or of one folder in it.

    `pattern` is a regular expression for the whole file name without its suffix. Its groups `identity` and `camera` (or,
    where neither is named, the first and the second) are what they are called; without the one for the camera there are no
    cameras. The default reads names that begin like `0002_c1s1_000451_03`, with any numbers. Whole numbers are kept, and
    identity -1 is junk, which is left out; other texts are names, numbered in sorted order. Rows are sorted by file name
    within train, query, gallery. The manifest has the name of its folder.
    Raises DatasetError for a missing folder, a pattern that can't be used, and an image whose name does not match it.
    """
    base = find_base("market_layout", Path(root), tuple(FOLDERS))
    names = _Names(OWN_NAMES) if pattern is None else _compiled(pattern)
    images = [image for folder, split in FOLDERS.items() for image in _read(base, folder, split, names)]
    labels = _numbered([image.identity for image in images], "identities")
    cameras: Sequence[int] = [-1] * len(images)
    if names.camera is not None:
        cameras = _numbered([str(image.camera) for image in images], "cameras").numbers
    rows = [(image.path, label, camera, image.split) for image, label, camera in zip(images, labels.numbers, cameras)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Manifest.from_table(table, base, base.absolute().name, source=base, label_names=labels.names)


def _compiled(pattern: str) -> _Names:
    """Raises DatasetError for what is no regular expression, and for one without a group for the identity."""
    key = f"dataset.options.pattern={pattern}"
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise DatasetError(f"{key}: not a regular expression ({error}). Write one such as {_EXAMPLE}") from None
    named = compiled.groupindex
    if "identity" in named:
        return _Names(compiled, "identity", "camera" if "camera" in named else None)
    if not compiled.groups or "camera" in named:
        raise DatasetError(f"{key}: has no group for the identity. Write one such as {_EXAMPLE}")
    return _Names(compiled, 1, 2 if compiled.groups > 1 else None)


def _read(base: Path, folder: str, split: str, names: _Names) -> list[_Image]:
    files = image_files(base / folder)
    if not files:
        raise DatasetError(f"{base / folder} holds no images. Put the {split} images into this folder itself.")
    images = []
    for file in files:
        match = names.pattern.fullmatch(without_suffix(file))
        identity, camera = (match and key is not None and match[key] for key in (names.identity, names.camera))
        if not identity or (names.camera is not None and not camera):
            raise DatasetError(
                f"{base / folder}: can't read {'identity' if names.camera is None else 'identity and camera'} from the file name "
                f"{file!r} by the pattern '{names.pattern.pattern}'. Rename or remove the file, or set dataset.options.pattern to "
                f"one for all names, such as {_EXAMPLE}"
            )
        if identity != _JUNK:
            images.append(_Image(f"{folder}/{file}", identity, camera or None, split))
    if not images:
        raise DatasetError(
            f"{base / folder} holds no images but junk (identity {_JUNK}). Put the {split} images there."
        )
    return images


def _numbered(texts: Sequence[str], what: str) -> Numbered:
    """Whole numbers as they are, 0002 as 2, else names in sorted order.  Raises DatasetError: 2 and 0002 are both there."""
    if all(_WHOLE.fullmatch(text) for text in texts):
        numbers = [int(text) for text in texts]
        spelled: dict[int, str] = {}
        for number, text in zip(numbers, texts):
            if (other := spelled.setdefault(number, text)) != text:
                raise DatasetError(
                    f"market_layout: the {what} {other} and {text} are one number. Write it alike in all file names, or rename "
                    "one of the two"
                )
        return Numbered(numbers, {number: text for number, text in zip(numbers, texts) if text != str(number)})
    return number_names(texts)
