"""Trees of small files for the tests of readers."""

import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def touch(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def link_images(root: Path, files: Iterable[str], images_per_source: int = 60_000) -> Path:
    """Thousands of images that are one and the same; a file system takes about 65,000 names for one file."""
    root.mkdir(parents=True, exist_ok=True)
    folders: set[str] = set()
    for number, file in enumerate(files):
        if number % images_per_source == 0:
            source = root / f"source{number}"
            Image.new("RGB", (8, 16), "gray").save(source, "jpeg")
        folder = file.rpartition("/")[0]
        if folder not in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            folders.add(folder)
        os.link(source, root / file)
    return root
