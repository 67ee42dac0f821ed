"""Check of every image file of a dataset, on all cores."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bdbnet.datasets.images import ImageError, decode_image, read_file
from bdbnet.datasets.manifest import BOX_COLUMNS, Manifest

_PORTION = 4096
_DIGEST_BYTES = 16


class CheckedImages(NamedTuple):
    """`unreadable`: row -> what is wrong; `digests` (N,): content of each row's file in hex, "" for unreadable ones;
    `clipped`: rows whose box reaches over the image's border."""

    unreadable: dict[int, str]
    digests: np.ndarray
    clipped: list[int]


def check_images(manifest: Manifest, *, progress: bool = True) -> CheckedImages:
    """Decode every image of a manifest completely, with its box.

    Decoding releases Python's global lock, so threads use all cores; memory holds the images being decoded and 32
    characters per row.
    """
    count = len(manifest.table)
    paths = manifest.paths
    boxes = manifest.table[[*BOX_COLUMNS]].to_numpy() if BOX_COLUMNS[0] in manifest.table.columns else None
    digests = np.zeros(count, dtype=f"<U{2 * _DIGEST_BYTES}")
    unreadable: dict[int, str] = {}
    clipped: list[int] = []

    def check(row: int) -> None:
        box = None if boxes is None else tuple(boxes[row].tolist())
        try:
            data = read_file(paths[row])
            height, width = decode_image(data, paths[row], box=box).shape[:2]
        except ImageError as error:
            unreadable[row] = str(error)
            return
        digests[row] = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
        if box is not None and (box[2] - box[0], box[3] - box[1]) != (width, height):
            clipped.append(row)

    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        tqdm(total=count, desc=f"checking {manifest.name}", unit=" images", disable=None if progress else True) as bar,
    ):
        for begin in range(0, count, _PORTION):  # in portions, so that Ctrl-C leaves no long queue behind
            for _ in pool.map(check, range(begin, min(begin + _PORTION, count))):
                bar.update()
    return CheckedImages(dict(sorted(unreadable.items())), digests, sorted(clipped))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
