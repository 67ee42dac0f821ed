"""Commands run in this process and watched, and the good files that are damaged."""

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

#: Of a tiny network on tiny images.
TINY = (
    *("model=baseline", "backbone=osnet_x0_25", "backbone.weights=none", "dataset.image_size=[64,32]"),
    *("sampler.batch_size=8", "sampler.images_per_identity=2", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "loading.num_workers=0", "loading.test_batch_size=32", "callbacks.progress=false"),
    *("evaluation.top_k=5", "trainer.log_every_n_steps=1"),
)
EVALUATED = ("loading.num_workers=0", "loading.test_batch_size=32", "trainer.accelerator=cpu", "evaluation.top_k=5")
EMBEDDED = ("loading.num_workers=0", "loading.test_batch_size=32", "accelerator=cpu")
SEARCHED = ("num_workers=0", "accelerator=cpu", "k=3", "pictures=2", "printed=1")

#: How a case ended.
OUTCOMES = ("still valid", "clean error", "traceback", "hang", "code executed", "outside")

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Ended:
    """How a command ended: one of `OUTCOMES`, and its message or trace."""

    outcome: str
    text: str


class Watch:
    """What a command does outside of the folders that it may write to.

    Python tells of every file that it opens, makes or renames; what libraries in C write is seen by comparing the case's
    folder before and after.
    """

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.secret: str | None = None
        self.found: list[str] = []
        self.code: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.secret is None:
            return
        if event == "os.system":
            self.code.append(f"os.system({arguments[0]!r})")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes):
                self._opened(os.fsdecode(path), flags if isinstance(flags, int) else 0)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            self._changed(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._changed(event, arguments[0] if event == "os.rename" else arguments[1])
            self._changed(event, arguments[1])

    def _opened(self, path: str, flags: int) -> None:
        if flags & _WRITING:
            self._changed("open", path)
        elif os.path.abspath(path) == self.secret:  # noqa: PTH100  (a Path would open nothing, but takes longer)
            self.found.append(f"read {path}")

    def _changed(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
            if not place.startswith(self.allowed):
                self.found.append(f"{event} {place}")


_watch: Watch | None = None


@dataclass(frozen=True)
class Place:
    """The folders of one case.

    Attributes:
        inputs: damaged files that no command may change.
        out: what commands may write to; also holds damaged files of folders that commands write into.
        good: the undamaged files, shared by all cases.
    """

    root: Path
    good: "Good"

    @property
    def inputs(self) -> Path:
        return self.root / "in"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def canary(self) -> Path:
        """A file that exists once code from a damaged file has run."""
        return self.root / "canary"

    @property
    def secret(self) -> Path:
        """An image that no report of a run may show."""
        return self.root / "secret.png"

    def make(self) -> None:
        for folder in (self.inputs, self.out, self.root / "tmp"):
            folder.mkdir(parents=True)
        Image.new("RGB", (32, 64), "red").save(self.secret)

    def run(self, command: str, *arguments: str) -> Ended:
        """Run a command and say how it ended."""
        global _watch
        _watch = _watch or Watch()
        before = self._listed()
        _watch.found, _watch.code = [], []
        _watch.allowed = (f"{self.out}", f"{self.root / 'tmp'}", "/dev/", os.environ.get("MPLCONFIGDIR", "/nowhere"))
        _watch.secret = str(self.secret)
        old = tempfile.tempdir
        tempfile.tempdir = str(self.root / "tmp")
        try:
            ended = run_command(self.out, command, *arguments)
        finally:
            tempfile.tempdir = old
            _watch.secret = None
        if self.canary.exists() or _watch.code:
            self.canary.unlink(missing_ok=True)
            return Ended("code executed", f"{_watch.code} {ended.text}")
        outside = _watch.found + [f"changed {path}" for path in sorted(before ^ self._listed())]
        return Ended("outside", f"{'; '.join(outside[:5])}\n{ended.text}") if outside else ended

    def _listed(self) -> set[tuple[str, int, int]]:
        """Everything in the case's folder that no command may change."""
        found = set()
        for place, folders, files in os.walk(self.root):
            if Path(place) == self.root:
                folders[:] = [name for name in folders if name not in ("out", "tmp")]
                files = [name for name in files if name != "canary"]
            for name in files:
                status = os.lstat(f"{place}/{name}")
                found.add((f"{place}/{name}", status.st_size, status.st_mtime_ns))
        return found


def run_command(folder: Path, command: str, *arguments: str) -> Ended:
    """Run ``python -m bdbnet.<command>`` in ``folder`` and this process, through the same wrapper."""
    module = importlib.import_module(f"bdbnet.{command}")
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as a terminal is
    argv, here, filters = sys.argv, Path.cwd(), warnings.filters[:]
    sys.argv = [command, *arguments]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            module.main()
        status: Any = 0
    except SystemExit as error:
        status = error.code
    except Exception:
        return Ended("traceback", _last_frames(traceback.format_exc()))
    finally:
        sys.argv = argv
        os.chdir(here)
        warnings.filters[:] = filters
    output.flush()
    text = output.buffer.getvalue().decode("utf-8", "replace")
    if "Traceback (most recent call last)" in text:
        return Ended("traceback", text[text.index("Traceback (most") :][-3000:])
    if status in (0, None):
        return Ended("still valid", text[-500:])
    message = text[text.rindex("error:") :] if "error:" in text else ""
    if status != 1 or not message:
        return Ended("traceback", f"exit status {status} without a message: {text[-1500:]}")
    if said := bare(message):
        return Ended("traceback", f"bare message ({said}): {message}")
    return Ended("clean error", message)


def bare(message: str) -> str:
    """What of an error message speaks to a programmer alone; "" for a message that says what is wrong."""
    text = message.removeprefix("error:").strip()
    if not text:
        return "empty"
    if re.fullmatch(r"\[Errno \d+\] [\w ]+", text) or re.fullmatch(r"'?[\w.]+'?", text):
        return "no file and no key"
    return ""


def _last_frames(trace: str) -> str:
    lines = trace.strip().splitlines()
    return "\n".join(lines[-14:])


@dataclass(frozen=True)
class Good:
    """The undamaged files: images with their table, a run, two analysed evaluations, a gallery, and so on."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def table(self) -> Path:
        return self.images / "list.csv"

    @property
    def run(self) -> Path:
        return self.root / "out" / "train" / "run"

    @property
    def checkpoint(self) -> Path:
        return self.run / "last.ckpt"

    def evaluation(self, number: int) -> Path:
        return self.root / "out" / "evaluate" / f"evaluation{number}"

    @property
    def gallery(self) -> Path:
        return self.root / "gallery"

    @property
    def grown(self) -> Path:
        """The gallery after some changes."""
        return self.root / "grown"

    @property
    def saved(self) -> Path:
        return self.root / "saved"

    @property
    def reproduction(self) -> Path:
        """Folder with `table.yaml`, `budget.yaml` and `runs`, in which one training is done."""
        return self.root / "reproduction"


def make_good_files(root: Path) -> Good:
    """Draw images, train on them, evaluate, embed and so on.  Raises RuntimeError where a command fails."""
    good = Good(root)
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for identity in range(8):
        for camera in range(2):
            for number in range(2):
                path = f"{identity:02d}_c{camera}_{number}.{'jpg' if number else 'png'}"
                pixels = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8) // 4 + 20 * identity
                good.images.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(good.images / path)
                split = "train" if identity < 4 else "gallery" if number else "query"
                rows.append((path, identity, split, camera))
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "camera"])
    frame.to_csv(good.table, index=False)
    frame.to_parquet(good.images / "list.parquet", index=False)
    data = ("dataset=table", f"dataset.manifest={good.table}")
    root_out = f"output_root={root / 'out'}"

    def do(command: str, *arguments: str) -> None:
        ended = run_command(root, command, *arguments)
        if ended.outcome != "still valid":
            raise RuntimeError(f"{command} {' '.join(arguments)}: {ended.outcome}: {ended.text}")

    do("train", *TINY, *data, root_out, "run_name=run", "evaluation.before_training=true")
    for number, flip in enumerate(("false", "true"), start=1):
        do(
            *("evaluate", f"checkpoint={good.checkpoint}", *data, *EVALUATED, root_out, f"run_name=evaluation{number}"),
            *("analysis=true", f"evaluation.flip={flip}"),
        )
    embedded = (f"checkpoint={good.checkpoint}", *data, "split=gallery", *EMBEDDED)
    do("embed", *embedded, f"output={good.gallery}")
    do(
        "search",
        f"index={good.gallery}",
        f"queries={good.gallery}",
        *SEARCHED,
        root_out,
        "run_name=s",
        "engine=faiss_ivf",
    )
    import bdbnet
    from bdbnet.gallery import EmbeddingStore

    grown = EmbeddingStore.open(copied(good.gallery, good.grown))
    paths, embeddings = grown.table["path"], np.asarray(grown.embeddings)
    grown = grown.replace(embeddings[:2] + 1, grown.table[:2]).remove(paths[2:4])
    grown.add(embeddings[2:3] - 1, grown.table[:1].assign(path="another.jpg"))
    do(
        "search",
        f"index={good.grown}",
        f"queries={good.gallery}",
        *SEARCHED,
        root_out,
        "run_name=g",
        "engine=faiss_ivf",
    )
    bdbnet.load(good.checkpoint, device="cpu").save(good.saved)
    _make_reproduction(good)
    do("reproduce", *reproduced(good.reproduction))
    return good


def reproduced(folder: Path) -> list[str]:
    return [
        f"table={folder / 'table.yaml'}", f"budget={folder / 'budget.yaml'}", f"runs_root={folder / 'runs'}",
        f"output_root={folder}",
    ]  # fmt: skip


def _make_reproduction(good: Good) -> None:
    good.reproduction.mkdir()
    (good.reproduction / "table.yaml").write_text(
        "title: one training\ncolumns: {market1501: [rank1, mAP]}\nrows:\n"
        "  - {name: ours, run: [model=baseline], paper: {market1501: [90, 80]}}\n"
    )
    listed = "".join(f"  - {argument}\n" for argument in TINY)
    (good.reproduction / "budget.yaml").write_text(
        "title: tiny\ncompare: nothing\nkeep_checkpoints: true\ndatasets:\n"
        f"  market1501: [dataset=table, dataset.manifest={good.table}]\noverrides:\n{listed}"
    )


def copied(source: Path, target: Path) -> Path:
    """A folder as another of its own."""
    shutil.copytree(source, target)
    return target
