"""Embedding a set of images into a folder, shard by shard, so that an interrupted run resumes where it stopped.

Several processes may share the work: each takes every `world_size`-th shard, and whichever finds all of them complete
puts them together. They meet in the folder alone.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypedDict

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from bdbnet.checked import checked, read_json
from bdbnet.config import ConfigError
from bdbnet.datasets.images import ImageError
from bdbnet.evaluation.embedder import Embedded, Embedder, EmbeddingError
from bdbnet.files import locked
from bdbnet.gallery.embedding import stamp_of
from bdbnet.gallery.parts import PARTS
from bdbnet.gallery.store import (
    FILES,
    FORMATS,
    LIVE_SCHEMA,
    META,
    PLAN,
    SCHEMA,
    SHARDS,
    SKIPPED,
    STAGING,
    TABLE,
    VERIFIED,
    ModelStamp,
    StoreError,
    check_same_model,
    read_meta,
    write_store,
)
from bdbnet.loading.sources import Images
from bdbnet.results import write_atomically
from bdbnet.settings import is_whole
from bdbnet.wording import counted


class _Plan(TypedDict):
    """What `plan.json` says of a folder that is being made."""

    source: str
    count: int
    images: str
    shard_size: int
    format: str
    model: Mapping[str, Any]


class Ranks(NamedTuple):
    """This process among those that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a process did.

    Attributes:
        embedded: images that it embedded.
        seconds: what that took.
        missing: shards of other processes that are not there yet; 0: the folder is complete.
    """

    embedded: int
    seconds: float
    missing: int


def ranks_of_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process as torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or SLURM's srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS) numbers it.

    SLURM_NTASKS is no help: it is also set in a batch script, where there is one process however many tasks were asked for.

    Raises:
        ConfigError: the numbers make no sense; names the variables.
    """
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    ):
        if names[0] not in environment or names[1] not in environment:
            continue
        try:
            rank, size, local = (int(environment.get(name, "0")) for name in names[:3])
            ranks = Ranks(rank, size, local, int(environment.get(names[3], "1")))
        except ValueError:
            ranks = Ranks(-1)
        if not 0 <= ranks.rank < ranks.world_size or ranks.local_rank < 0 or ranks.local_size < 1:
            found = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
            raise ConfigError(
                f"{found}: these variables should number the processes from 0; unset them for a single one"
            )
        return ranks
    return Ranks()


def embed_into(
    folder: Path,
    embedder: Embedder,
    images: Images,
    *,
    shard_size: int = 8192,
    batch_size: int = 128,
    format: str = "safetensors",
    skip_unreadable: bool = False,
    overwrite: bool = False,
    num_workers: int | None = None,
    ranks: Ranks | None = None,
    progress: bool = True,
    may_be_empty: bool = False,
) -> Outcome:
    """Embed `images` into `folder`, or resume that; nothing is done where it is complete.

    Args:
        shard_size: images that are written at once, and at most embedded again after the process was killed.
        format: of the complete embeddings, `safetensors` or `parquet`.
        skip_unreadable: leave images out that can't be read; `skipped.csv` lists them.
        overwrite: delete the embeddings that `folder` holds.
        ranks: this process among those that share the work; None: it is alone.
        may_be_empty: no error if none of the images can be read.

    Raises:
        ConfigError: an unknown format or a size below 1.
        StoreError: the folder holds embeddings of other images or settings.
        ImageError, EmbeddingError: see `Embedder.embed_files`.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format}: choose one of {', '.join(FORMATS)}")
    for name, size in (("shard_size", shard_size), ("loading.test_batch_size", batch_size)):
        if not is_whole(size, 1):
            raise ConfigError(f"{name}={size}: give a whole number of at least 1")
    ranks = ranks or Ranks()
    if overwrite and ranks.world_size > 1:
        raise ConfigError(
            "overwrite=true: several processes can't delete a folder together; delete it before they start"
        )
    facts = file_facts(images.manifest.paths)
    run = _Run(folder, stamp_of(embedder, folder), images, shard_size, batch_size, format, facts, may_be_empty)
    with locked(folder):
        if overwrite:
            clear_folder(folder)
        run.begin()
        own = [shard for shard in range(ranks.rank, run.shards, ranks.world_size) if run.is_missing(shard)]
    began = time.perf_counter()
    batches = [batch for shard in own for batch in run.batches(shard)]
    embedded = 0
    if own:
        options: dict[str, Any] = {"num_workers": num_workers, "local_ranks": ranks.local_size}
        stream = embedder.embed_files(images.manifest, batches, skip_unreadable=skip_unreadable, **options)
        with (
            tqdm(
                total=sum(map(len, batches)), desc="embedding", unit=" images", disable=None if progress else True
            ) as bar,
            _memory_named(embedder, batch_size),
        ):
            for shard in own:
                parts = [_counted(bar, next(stream)) for _ in run.batches(shard)]
                run.write(shard, parts)
                embedded += sum(len(part.rows) for part in parts)
    seconds = time.perf_counter() - began
    with locked(folder):
        missing = run.finish()
    return Outcome(embedded, seconds, missing)


@contextmanager
def unreadable_named() -> Iterator[None]:
    """Say how all images that can't be read are left out at once where one ends a command.  Raises ConfigError."""
    try:
        yield
    except ImageError as error:
        raise ConfigError(f"{error}. on_error=skip leaves out all such images and lists them in {SKIPPED}") from error


def skipped_images(images: Images, unreadable: Mapping[int, str]) -> pd.DataFrame:
    """The images that can't be read, row -> reason, with the columns path and reason."""
    return pd.DataFrame({"path": images.table["path"].iloc[[*unreadable]], "reason": [*unreadable.values()]})


def write_skipped(folder: Path, skipped: pd.DataFrame) -> None:
    """Write `skipped.csv`."""
    write_atomically(folder / SKIPPED, skipped.to_csv(index=False).encode())


@contextmanager
def _memory_named(embedder: Embedder, batch_size: int) -> Iterator[None]:
    """Say what to lower where the device has too little memory.  Raises EmbeddingError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        height, width = embedder.preprocessing.image_size
        raise EmbeddingError(
            f"the memory of {embedder.device} is not enough for {batch_size} images of {height} x {width} at once: lower "
            "loading.test_batch_size, or set evaluation.precision=bf16-mixed. What was embedded before is kept; the same "
            "command continues from there"
        ) from error


def clear_folder(folder: Path) -> None:
    """Remove the embeddings in `folder`, complete or not, and nothing else."""
    # meta.json first: from then on it is a store no more.
    for name in (META, PLAN, TABLE, FILES, SKIPPED, VERIFIED, *(f"embeddings.{format}" for format in FORMATS)):
        (folder / name).unlink(missing_ok=True)
    for name in (SHARDS, PARTS, STAGING):
        shutil.rmtree(folder / name, ignore_errors=True)


@dataclass(frozen=True)
class _Run:
    """Images on their way into a folder. `begin` and `finish` need the folder's lock."""

    folder: Path
    stamp: ModelStamp
    images: Images
    shard_size: int
    batch_size: int
    format: str
    facts: Mapping[str, np.ndarray]
    may_be_empty: bool = False

    @property
    def shards(self) -> int:
        return -(-len(self.images) // self.shard_size)

    def is_missing(self, shard: int) -> bool:
        return not (self.folder / META).exists() and not self._file(shard).exists()

    def batches(self, shard: int) -> list[range]:
        """Rows of a shard's images, in batches."""
        rows = self._rows(shard)
        return [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]

    def begin(self) -> None:
        """Write down what the folder will hold, or compare it with what another process wrote."""
        plan = {
            "schema": SCHEMA,
            "source": self.images.source,
            "count": len(self.images),
            "images": _fingerprint(self.images, self.facts),
            "shard_size": self.shard_size,
            "format": self.format,
            "model": self.stamp.record(),
        }
        path = self.folder / PLAN
        if (self.folder / META).exists() and read_meta(self.folder)["schema"] == LIVE_SCHEMA:
            raise StoreError(
                f"{self.folder} holds a gallery that was extended or changed since it was made: mode=add adds images to it, "
                "mode=sync brings it up to date, overwrite=true deletes it, output=<another folder> keeps it."
            )
        if not path.exists():
            if (self.folder / META).exists():
                raise StoreError(
                    f"{self.folder} holds embeddings, and no {PLAN} that says of which images: overwrite=true deletes them, "
                    "output=<another folder> keeps them."
                )
            write_atomically(path, (json.dumps(plan, indent=2) + "\n").encode())
            return
        try:
            there = read_json(path)
            found = there.get("schema") if isinstance(there, dict) else None
            if found != SCHEMA:
                raise ValueError(f"schema {found}, this version writes {SCHEMA}")
            self._check_same(checked(there, _Plan), plan)
        except StoreError as error:
            raise StoreError(
                f"{self.folder} was built from something else: {error} overwrite=true deletes it, output=<another folder> keeps it."
            ) from None
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}): overwrite=true starts again") from error

    def write(self, shard: int, parts: list[Embedded]) -> None:
        """Write a shard: the rows of its images, their embeddings, and why others were left out."""
        tensors = {
            "rows": np.concatenate([part.rows for part in parts]),
            "embeddings": np.concatenate([part.embeddings for part in parts]),
        }
        unreadable = {row: reason for part in parts for row, reason in part.unreadable.items()}
        write_atomically(self._file(shard), safetensors.numpy.save(tensors, {"unreadable": json.dumps(unreadable)}))

    def finish(self) -> int:
        """Put the shards together if all are there; the number of those that are missing."""
        if not (self.folder / META).exists():
            if missing := sum(not self._file(shard).exists() for shard in range(self.shards)):
                return missing
            self._merge()
        # Also what a process left behind that was killed: nobody else writes while the lock is held.
        shutil.rmtree(self.folder / SHARDS, ignore_errors=True)
        for name in (META, PLAN, TABLE, FILES, SKIPPED, *(f"embeddings.{format}" for format in FORMATS)):
            for temporary in self.folder.glob(f".{name}.*"):
                temporary.unlink(missing_ok=True)
        return 0

    def _merge(self) -> None:
        rows: list[np.ndarray] = []
        unreadable: dict[int, str] = {}
        for shard in range(self.shards):
            own, reasons = self._read(shard)
            if sorted([*own, *reasons]) != [*self._rows(shard)]:
                raise self._damaged(shard, "other rows than its own")
            rows.append(own)
            unreadable |= reasons
        table = self.images.table.iloc[np.concatenate(rows)].reset_index(drop=True)
        if table.empty and not self.may_be_empty:
            raise EmbeddingError(f"{self.images.source}: no image can be read; the first: {unreadable[0]}")
        if unreadable:
            write_skipped(self.folder, skipped_images(self.images, unreadable))
        kept = np.concatenate(rows)
        files = pd.DataFrame({name: values[kept] for name, values in self.facts.items()})
        buffer = io.BytesIO()
        files.to_parquet(buffer, index=False)
        write_atomically(self.folder / FILES, buffer.getvalue())
        write_store(
            self.folder,
            (self._embeddings(shard) for shard in range(self.shards)),
            table,
            root=self.images.root,
            model=self.stamp,
            source=self.images.source,
            skipped=len(unreadable),
            format=self.format,
        )

    def _read(self, shard: int) -> tuple[np.ndarray, dict[int, str]]:
        try:
            with safe_open(self._file(shard), "np") as file:
                reasons = checked(json.loads(file.metadata()["unreadable"]), dict[str, str])
                rows: np.ndarray = file.get_tensor("rows")
                if rows.dtype != np.int64 or rows.ndim != 1:
                    raise ValueError(f"rows are {rows.shape} {rows.dtype}")
                return rows, {int(row): reason for row, reason in reasons.items()}
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._damaged(shard, error) from error

    def _embeddings(self, shard: int) -> np.ndarray:
        try:
            with safe_open(self._file(shard), "np") as file:
                embeddings: np.ndarray = file.get_tensor("embeddings")
                shape = (len(file.get_tensor("rows")), self.stamp.dimensions)
                if embeddings.shape != shape or embeddings.dtype != np.float32:
                    raise ValueError(f"embeddings are {embeddings.shape} {embeddings.dtype}, not {shape} float32")
                return embeddings
        except (SafetensorError, ValueError) as error:
            raise self._damaged(shard, error) from error

    def _damaged(self, shard: int, reason: object) -> StoreError:
        return StoreError(f"{self._file(shard)} is damaged ({reason}): delete it and run the same command again")

    def _check_same(self, there: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Raise StoreError that says what differs."""
        check_same_model(ModelStamp.from_json(there["model"]), self.stamp)
        if there["images"] != plan["images"]:
            before, now = (f"{counted(record['count'], 'image')} of {record['source']}" for record in (there, plan))
            differs = "of which some have changed since" if before == now else f"not from {now}"
            growing = ""
            if (self.folder / META).exists():
                growing = " mode=add embeds those that are not in it yet, mode=sync also removes those that are gone,"
            raise StoreError(f"it was built from {before}, {differs}.{growing}")
        for key in ("shard_size", "format"):
            if there[key] != plan[key]:
                raise StoreError(f"it was begun with {key}={there[key]}, not {plan[key]}.")

    def _rows(self, shard: int) -> range:
        return range(len(self.images))[shard * self.shard_size : (shard + 1) * self.shard_size]

    def _file(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:06d}.safetensors"


def _counted(bar: "tqdm[NoReturn]", part: Embedded) -> Embedded:
    bar.update(len(part.rows) + len(part.unreadable))
    return part


def _fingerprint(images: Images, facts: Mapping[str, np.ndarray]) -> str:
    """Identifies images by what the table says of them, and by size and time of change of their files."""
    digest = hashlib.sha256(images.manifest.fingerprint.encode())
    digest.update(" ".join(images.table.columns).encode())
    if "time" in images.table.columns:
        digest.update(images.table["time"].to_numpy().tobytes())
    for size, moment in zip(facts["size"].tolist(), facts["mtime_ns"].tolist()):
        digest.update(b"absent\n" if size < 0 else f"{size} {moment}\n".encode())
    return digest.hexdigest()


def file_facts(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """`size` in bytes and `mtime_ns`, the time of change in nanoseconds since 1970, of files; -1 for one that is not there."""
    facts = {name: np.full(len(paths), -1, np.int64) for name in ("size", "mtime_ns")}
    for number, path in enumerate(paths):
        try:
            status = os.stat(path)  # noqa: PTH116  (a Path for each of 100,000 files takes as long as the call)
        except OSError:  # reading the image says what is wrong
            continue
        facts["size"][number], facts["mtime_ns"][number] = status.st_size, status.st_mtime_ns
    return facts
