"""Rendering of synthetic datasets into a folder, on first use and with several processes."""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from tqdm import tqdm

from bdbnet.datasets.checking import usable_cores
from bdbnet.datasets.layout import whole_folder
from bdbnet.datasets.manifest import DatasetError, Manifest

RENDERER_VERSION = 3
"""Increase it with every change of pictures or tables: new folders are rendered and older ones left alone."""
JPEG_QUALITY = 92
IMAGES_PER_WORKER = 100
MOST_IMAGES = 10_000_000

logger = logging.getLogger(__name__)


class Shot(NamedTuple):
    """One image to render; `number` counts the images of one identity and camera, or of one class."""

    path: str
    label: int
    camera: int
    number: int
    split: str


Render = Callable[[Shot], Image.Image]


def require_integers(minimum: int, **values: object) -> None:
    """Raise DatasetError for the first option that is not a whole number of at least `minimum`."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise DatasetError(f"option {key} must be a whole number of at least {minimum}, not {value!r}")


def require_possible(images: int) -> None:
    """Raise DatasetError for more images than anyone renders."""
    if images > MOST_IMAGES:
        raise DatasetError(f"the options ask for {images:,} images; at most {MOST_IMAGES:,} are rendered")


def rendered(
    root: Path,
    name: str,
    options: dict[str, Any],
    shots: Sequence[Shot],
    render: Render,
    workers: int | None,
    *,
    stored_only: bool = False,
) -> Manifest:
    """The manifest of all shots; their files are rendered first if no complete cache of these options exists.

    Raises DatasetError instead with `stored_only`.
    """
    if workers is not None:
        require_integers(0, workers=workers)
    key = json.dumps([name, RENDERER_VERSION, options])
    folder = root / f"v{RENDERER_VERSION}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        if stored_only:
            raise DatasetError(f"{name} is not rendered in {root}: python -m bdbnet.prepare dataset={name} renders it")
        _render_folder(folder, name, shots, render, workers)
    missing = next((shot.path for shot in shots if not (folder / shot.path).is_file()), None)
    if missing:
        raise DatasetError(f"{folder} lacks {missing}: delete this folder to render {name} again")
    table = pd.DataFrame(shots, columns=list(Shot._fields))
    return Manifest.from_table(table[["path", "label", "camera", "split"]], folder, name, source=folder)


def _render_folder(folder: Path, name: str, shots: Sequence[Shot], render: Render, workers: int | None) -> None:
    """Render into `folder`, which is complete or absent."""
    logger.info("rendering %d images of %s into %s (once)", len(shots), name, folder)
    try:
        with whole_folder(folder) as temporary:
            for split in sorted({shot.split for shot in shots}):
                (temporary / split).mkdir()
            _render_all(temporary, name, shots, render, workers)
    except OSError as error:
        raise DatasetError(
            f"can't render {name} into {folder.parent}: {error.strerror or error}. Free space or make this "
            "folder writable, or choose another one with data_root=..."
        ) from error


def _render_all(folder: Path, name: str, shots: Sequence[Shot], render: Render, workers: int | None) -> None:
    count = min(8, usable_cores()) if workers is None else workers
    # For fewer images, starting a process takes longer than rendering them.
    count = min(count, len(shots) // IMAGES_PER_WORKER)
    shares = [shots[worker::count] for worker in range(count)] if count > 1 else []
    with tqdm(total=len(shots), desc=f"rendering {name}", unit="image", disable=None) as progress:
        finished = _render_in_processes(folder, shares, render, progress)
        if shares and not all(finished):
            logger.warning("a worker process for %s ended early: its images are rendered in this process", name)
        for share in [share for share, done in zip(shares, finished) if not done] if shares else [shots]:
            for shot in share:
                _save(folder, render, shot)
                progress.update()


def _render_in_processes(
    folder: Path, shares: Sequence[Sequence[Shot]], render: Render, progress: "tqdm[Any]"
) -> list[bool]:
    """Render each share in its own Python process; returns which of them finished.

    Not `multiprocessing`: its children would import the main module again, so that a training command would load
    torch once more per worker, and a script without a `__main__` guard would start itself.
    """
    command = [sys.executable, "-c", "from bdbnet.datasets.synthetic.rendering import _work; _work()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    reading, writing = os.pipe()
    children: list[subprocess.Popen[bytes]] = []
    try:
        with os.fdopen(reading, "rb", buffering=0) as ticks:
            try:
                for _ in shares:
                    # In its own session: Ctrl-C reaches only this process, which then ends the workers.
                    child = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.DEVNULL, env=environment,
                        start_new_session=True,
                    )  # fmt: skip
                    children.append(child)
            finally:
                os.close(writing)
            for child, share in zip(children, shares):
                assert child.stdin is not None
                with contextlib.suppress(BrokenPipeError), child.stdin:
                    pickle.dump((folder, share, render), child.stdin)
            while done := ticks.read(4096):
                progress.update(len(done))
        return [child.wait() == 0 for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _work() -> None:
    """Body of a worker process: takes its share from standard input, writes one byte per finished image."""
    folder, share, render = pickle.load(sys.stdin.buffer)
    for shot in share:
        _save(folder, render, shot)
        os.write(1, b".")


def _save(folder: Path, render: Render, shot: Shot) -> None:
    render(shot).save(folder / shot.path, quality=JPEG_QUALITY, subsampling=0)
