"""Embeddings of a set of images in a folder: the numbers, a row per image, and the stamp of the network they come from.

A folder holds `meta.json`, written last, `manifest.parquet` with a row per image, and the embeddings as one tensor
`embeddings` in `embeddings.safetensors`, or as a column `embedding` in `embeddings.parquet`. Once images were added, replaced
or removed, `meta.json` lists the parts of which it consists, see `parts`; they are replaced together with it, so that a
reader sees the state before or after.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError

from bdbnet.checked import Holds, Plain, Positive, Range, Size, UnfitError, checked, read_json, read_parquet
from bdbnet.evaluation.calibration import Calibration
from bdbnet.files import replaced
from bdbnet.gallery.parts import (
    AGAIN,
    TABLE_COLUMNS,
    OpenPart,
    Part,
    check_size,
    checked_blocks,
    combined,
    digest_of,
    joined_tables,
    open_part,
    read_embeddings,
    write_parquet,
    write_safetensors,
)
from bdbnet.gallery.parts import StoreError as StoreError
from bdbnet.gallery.rows import Rows
from bdbnet.missing import no_embeddings
from bdbnet.renamed import with_todays_names
from bdbnet.results import versions, write_atomically

SCHEMA = 1
#: Of one to which images were added, or of which some were replaced or removed.
LIVE_SCHEMA = 2

# Files of a store.
META = "meta.json"
TABLE = "manifest.parquet"
SKIPPED = "skipped.csv"
# Size and time of change of each image file, by which `mode=sync` sees what has changed.
FILES = "files.parquet"
# That its content has been verified on this machine.
VERIFIED = ".verified.json"
# Of one that is being made: what it will hold, and the parts that are done.
PLAN = "plan.json"
SHARDS = "shards"
# Where images are embedded that then join it.
STAGING = ".adding"

FORMATS = ("safetensors", "parquet")

_TRIES = 5  # to open a folder that other processes extend meanwhile


@dataclass(frozen=True)
class ModelStamp:
    """The network and the settings that a set of embeddings was made with: enough to make more of the same.

    Attributes:
        fingerprint: SHA-256 of the network's parameters and buffers and of every setting below that changes an
            embedding. Embeddings may be compared with each other if it is equal.
        checkpoint: name of the file or saved folder of the weights, or `timm:NAME`; in galleries of earlier versions its path.
        network: groups `model`, `backbone` and `dropping` of the configuration that builds the network.
        dimensions: length of an embedding.
        image_size: height and width of the network's input, pixels.
        pad_to_square: the shorter side of every image is padded before it is resized.
        decode_margin: see `read_image`; None: JPEGs are decoded in full.
        precision: `32-true` or `bf16-mixed`.
        normalize: `none`, `joint` or `per_branch`.
        flip: embeddings of an image and its mirror image are averaged.
        scales: sizes of the input, relative to `image_size`, whose embeddings are averaged.
        preprocessing: other attributes of `Preprocessing`, where they are not those that `bdbnet` trains with.
        calibration: of the distances between these embeddings, see `Calibration`; None where none was made.
        distance: that the network is meant for.
        place: of the checkpoint, relative to the folder of the embeddings, so that both may be moved together.
    """

    fingerprint: str
    checkpoint: str
    network: Annotated[Mapping[str, Any], Holds(Mapping[str, Mapping[str, Any]]), Holds(Plain)]
    dimensions: Positive
    image_size: Size
    pad_to_square: bool = False
    decode_margin: float | None = 2.0
    precision: str = "32-true"
    normalize: str = "none"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    calibration: Calibration | None = field(default=None, compare=False)
    distance: Literal["euclidean", "cosine"] = field(default="euclidean", compare=False)

    @property
    def made_for(self) -> dict[str, Any]:
        """The settings of the embedding that a calibration has to be made with, as `Embedder.made_for` without the distance."""
        return {
            "image_size": list(self.image_size), "pad_to_square": self.pad_to_square, "decode_margin": self.decode_margin,
            "precision": self.precision, "normalize": self.normalize, "flip": self.flip, "scales": list(self.scales),
            **self.preprocessing,
        }  # fmt: skip

    @property
    def shown(self) -> str:
        """The checkpoint's name with the beginning of the fingerprint: many are called `last.ckpt`."""
        return f"{self.checkpoint} (fingerprint {self.fingerprint[:12]})"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelStamp":
        """The stamp that `record` and JSON made a record of.  Raises UnfitError, which names the key, for another record."""
        stamp = checked(record, cls, "model")
        return replace(stamp, network=with_todays_names(stamp.network))

    def record(self) -> dict[str, Any]:
        """As it stands in files."""
        said = asdict(self)
        if self.calibration is None:  # versions that know no calibration read galleries without one
            del said["calibration"]
        if self.distance == "euclidean":  # nor any of them another distance
            del said["distance"]
        return said


class _Meta(TypedDict):
    """What `meta.json` says of a gallery as it was made."""

    count: Annotated[int, Range(0)]
    skipped: Annotated[int, Range(0)]
    source: str
    root: str
    format: Literal["safetensors", "parquet"]
    fingerprint: str
    model: Mapping[str, Any]
    files: Mapping[str, int]


class _LiveMeta(TypedDict):
    """What `meta.json` says of a gallery of parts."""

    count: Annotated[int, Range(0)]
    skipped: Annotated[int, Range(0)]
    source: str
    root: str
    format: Literal["safetensors", "parquet"]
    fingerprint: str
    model: Mapping[str, Any]
    parts: list[Part]
    next_id: Annotated[int, Range(0)]
    history: list[tuple[str, int]]


def check_same_model(a: ModelStamp, b: ModelStamp) -> None:
    """Raise StoreError, which names what differs, unless embeddings of the two may be compared."""
    if a.fingerprint == b.fingerprint:
        return
    names = [
        entry.name for entry in fields(ModelStamp) if entry.compare and entry.name not in ("fingerprint", "checkpoint")
    ]
    different = [name for name in names if getattr(a, name) != getattr(b, name)]
    what = "; ".join(f"{name} {getattr(a, name)} and {getattr(b, name)}" for name in different)
    raise StoreError(
        f"embeddings of {a.checkpoint} and of {b.checkpoint} can't be compared: they differ in "
        f"{what or 'the weights'}. Embed both with the same checkpoint and settings."
    )


@dataclass(frozen=True, eq=False)
class EmbeddingStore:
    """A folder of embeddings, opened for reading.

    Attributes:
        folder: where it is.
        embeddings: (N, D) float32, read-only; mapped from the file, so that only what is used is read, where its format
            allows that (safetensors). Of a gallery that has grown they are `Rows`, used like an array; `np.asarray` makes
            one of them, in memory.
        table: N rows with `path` (relative to `root`) and, where known, `label` int64, `camera` int64 (-1 for none),
            `time` float64 (seconds since 1970, NaN for none) and boxes `x1 y1 x2 y2` int64 (pixels).
        root: folder of the images when they were embedded.
        model: what made the embeddings.
        fingerprint: SHA-256 of table and embeddings.
        source: what was embedded, as given.
        skipped: images left out because they could not be read; `skipped.csv` lists them.
        ids: int64 (N,), ascending: of each row a number that no other row of this gallery ever has, so that an index can
            tell which rows are new and which are gone; None: they are 0 to N - 1, as nothing was added yet.
        history: fingerprint of every state of the gallery so far, with the first number that no row had yet, latest last.

    The rows come in the order in which they were added; a replaced one counts as added then.
    """

    folder: Path
    embeddings: np.ndarray | Rows
    table: pd.DataFrame
    root: Path
    model: ModelStamp
    fingerprint: str
    source: str = ""
    skipped: int = 0
    ids: np.ndarray | None = None
    history: tuple[tuple[str, int], ...] = ()

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> "EmbeddingStore":
        """Open the store in `folder`.

        Args:
            verify: compare table and embeddings with the fingerprint. That reads all of them at the first opening, and again
                where a file has changed since; in between the size and the times of the files are compared.

        Raises:
            StoreError: there is none, it is not complete yet, damaged, or of another schema.
        """
        folder = Path(str(folder)).expanduser()
        for _ in range(_TRIES):
            meta = read_meta(folder)
            try:
                return (
                    cls._of_parts(folder, meta, verify)
                    if meta["schema"] == LIVE_SCHEMA
                    else cls._whole(folder, meta, verify)
                )
            except StoreError:
                # Another process may have extended the store meanwhile, and taken away files of the state before.
                if read_meta(folder) == meta:
                    raise
        raise StoreError(f"{folder} is extended again and again while it is being opened: try later")

    @classmethod
    def _whole(cls, folder: Path, meta: Mapping[str, Any], verify: bool) -> "EmbeddingStore":
        """A store as it was made."""
        try:
            checked(meta, _Meta)
            model = ModelStamp.from_json(meta["model"])
        except UnfitError as error:
            raise StoreError(f"{folder / META} is damaged: {error}. {AGAIN}") from error
        for name, size in meta["files"].items():
            check_size(folder, name, size)
        try:
            table = read_parquet(
                folder / TABLE, TABLE_COLUMNS, optional=[name for name in TABLE_COLUMNS if name != "path"]
            )
        except (UnfitError, OSError) as error:
            raise StoreError(f"{folder / TABLE} is damaged: {error}. {AGAIN}") from error
        try:
            embeddings = read_embeddings(folder / f"embeddings.{meta['format']}", model.dimensions)
            shape = (meta["count"], model.dimensions)
            if len(table) != meta["count"] or embeddings.shape != shape or embeddings.dtype != np.float32:
                raise StoreError(
                    f"{folder} is damaged: {len(table)} rows and embeddings {embeddings.shape} {embeddings.dtype}, where "
                    f"{META} says {shape} float32. {AGAIN}"
                )
            if verify:
                _verify(folder, meta, embeddings)
            return cls(
                folder,
                embeddings,
                table,
                Path(meta["root"]),
                model,
                meta["fingerprint"],
                meta["source"],
                meta["skipped"],
            )
        except StoreError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OSError, pa.ArrowException, SafetensorError) as error:
            raise StoreError(f"{folder} is damaged ({type(error).__name__}: {error}). {AGAIN}") from error

    @classmethod
    def _of_parts(cls, folder: Path, meta: Mapping[str, Any], verify: bool) -> "EmbeddingStore":
        """A store that has grown."""
        live, model, parts = open_parts(folder, meta)
        try:
            if verify:
                _verify_parts(folder, live, parts)
            rows = [part.rows for part in parts]
            chosen = list(zip(parts, rows, strict=True))
            table = joined_tables([part.table if own is None else part.table.take(own) for part, own in chosen])
            ids = np.concatenate([part.ids if own is None else part.ids[own] for part, own in chosen])
            if len(table) != live["count"] or not (np.diff(ids) > 0).all():
                raise StoreError(
                    f"{folder} is damaged: {META} says {live['count']} images, its parts hold {len(table)}. {AGAIN}"
                )
            return cls(
                folder,
                Rows([part.embeddings for part in parts], rows, model.dimensions),
                table.to_pandas(),
                Path(live["root"]),
                model,
                live["fingerprint"],
                live["source"],
                live["skipped"],
                ids,
                tuple(live["history"]),
            )
        except StoreError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OSError, pa.ArrowException) as error:
            raise StoreError(f"{folder} is damaged ({type(error).__name__}: {error}). {AGAIN}") from error

    def add(self, embeddings: np.ndarray, table: pd.DataFrame, *, model: ModelStamp | None = None) -> "EmbeddingStore":
        """Append images to the gallery, and open it again; this object keeps seeing the state before.

        Args:
            embeddings: (n, D) float32.
            table: n rows with the columns of `table`; cameras and times may be left out.
            model: what made the embeddings; None: the caller vouches that it is the gallery's.

        Raises:
            StoreError: embeddings of another model or size, or with NaN; other columns; an image that is there already, or
                is given twice.
            LockedError: another process extends the gallery.
        """
        from bdbnet.gallery.live import add_rows

        add_rows(self.folder, embeddings, table, model)
        return EmbeddingStore.open(self.folder)

    def replace(
        self, embeddings: np.ndarray, table: pd.DataFrame, *, model: ModelStamp | None = None
    ) -> "EmbeddingStore":
        """Like `add`, but images whose path (and box) is in the gallery take the place of those."""
        from bdbnet.gallery.live import add_rows

        add_rows(self.folder, embeddings, table, model, replacing=True)
        return EmbeddingStore.open(self.folder)

    def remove(self, paths: Iterable[str]) -> "EmbeddingStore":
        """Remove all rows of these paths from the gallery, and open it again; this object keeps seeing the state before.

        Raises:
            StoreError: a path that is not in the gallery, or none would be left.
            LockedError: another process extends the gallery.
        """
        from bdbnet.gallery.live import remove_rows

        remove_rows(self.folder, paths)
        return EmbeddingStore.open(self.folder)

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""
        return self.model.dimensions

    def __len__(self) -> int:
        return len(self.table)


def open_parts(folder: Path, meta: Mapping[str, Any]) -> tuple[Mapping[str, Any], ModelStamp, list[OpenPart]]:
    """What `meta.json` says of a gallery of parts, and these.  Raises StoreError for what is damaged."""
    try:
        live = checked(meta, _LiveMeta)
        model = ModelStamp.from_json(live["model"])
    except UnfitError as error:
        raise StoreError(f"{folder / META} is damaged: {error}. {AGAIN}") from error
    if not live["parts"]:
        raise StoreError(f"{folder / META} is damaged: parts is empty. {AGAIN}")
    try:
        return live, model, [open_part(folder, part, live["format"], model.dimensions) for part in live["parts"]]
    except StoreError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError, pa.ArrowException, SafetensorError) as error:
        raise StoreError(f"{folder} is damaged ({type(error).__name__}: {error}). {AGAIN}") from error


def _verify(folder: Path, meta: Mapping[str, Any], embeddings: np.ndarray) -> None:
    """Raise StoreError unless table and embeddings are those that were written; what was found is kept for the next time."""
    files = {name: _identity(folder / name) for name in meta["files"]}
    state = {"fingerprint": meta["fingerprint"], "files": files}
    if _verified(folder) == state:
        return
    found = digest_of(folder / TABLE, embeddings)
    if found != meta["fingerprint"]:
        raise _other_content(folder, files, found, meta["fingerprint"])
    _note_verified(folder, state)


def _verify_parts(folder: Path, meta: Mapping[str, Any], parts: Sequence[OpenPart]) -> None:
    """`_verify` of a gallery of parts: those that have been verified before are not read again."""
    record = _verified(folder)
    known = dict(record["parts"]) if isinstance(record.get("parts"), dict) else {}
    if isinstance(record.get("fingerprint"), str):
        known[record["fingerprint"]] = record.get("files")
    seen = {}
    for each in parts:
        part = each.part
        files = {name: _identity(folder / name) for name in (part.embeddings, part.table)}
        if (
            known.get(part.digest) != files
            and (found := digest_of(folder / part.table, each.embeddings)) != part.digest
        ):
            raise _other_content(folder, files, found, part.digest)
        seen[part.digest] = files
    if (found := combined(parts)) != meta["fingerprint"]:
        removed = [each.part.removed for each in parts if each.part.removed is not None]
        raise _other_content(folder, removed or [META], found, meta["fingerprint"])
    if record.get("parts") != seen:
        _note_verified(folder, {"parts": seen})


def _verified(folder: Path) -> dict[str, Any]:
    """What is noted to have been verified."""
    try:
        record = read_json(folder / VERIFIED)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _note_verified(folder: Path, state: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a folder that can't be written to is verified every time
        write_atomically(folder / VERIFIED, (json.dumps(state) + "\n").encode())


def _other_content(folder: Path, files: Iterable[str], found: str, wanted: str) -> StoreError:
    return StoreError(
        f"{folder} is damaged or was changed: {' and '.join(files)} are not those that were written (fingerprint "
        f"{found[:12]} instead of {wanted[:12]}). Copy the folder again, or embed again: "
        "python -m bdbnet.embed with overwrite=true. verify=false opens it all the same."
    )


def _identity(file: Path) -> list[int]:
    """What tells that a file is the one that was verified. A copy has another inode and time of change, whatever it keeps."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def write_store(
    folder: Path,
    blocks: Iterable[np.ndarray],
    table: pd.DataFrame,
    *,
    root: str | Path,
    model: ModelStamp,
    source: str = "",
    skipped: int = 0,
    format: str = "safetensors",
) -> None:
    """Write a store of the embeddings in `blocks` (n, D) float32, which are the rows of `table` in order.

    `meta.json` comes last, so that the folder is a store only when all of it is there. Attributes as `EmbeddingStore`'s.

    Raises:
        ValueError: an unknown format, or blocks that do not fit the table.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(folder / TABLE, buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue())
    embeddings = folder / f"embeddings.{format}"
    writer = write_safetensors if format == "safetensors" else write_parquet
    with replaced(embeddings) as file:
        writer(file, checked_blocks(blocks, len(table), model.dimensions, digest), table["path"], model.dimensions)
    meta = {
        "schema": SCHEMA,
        "count": len(table),
        "skipped": skipped,
        "source": source,
        "root": str(Path(root).absolute()),
        "format": format,
        "fingerprint": digest.hexdigest(),
        "model": model.record(),
        "files": {file.name: file.stat().st_size for file in (embeddings, folder / TABLE)},
        "versions": versions(),
    }
    write_atomically(folder / META, (json.dumps(meta, indent=2, default=str) + "\n").encode())


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of `meta.json`.  Raises StoreError where there is no store of a schema that is known."""
    if not folder.is_dir():
        raise StoreError(no_embeddings(folder))
    try:
        meta = read_json(folder / META)
    except FileNotFoundError:
        if (folder / PLAN).exists():
            raise StoreError(
                f"{folder} is not complete: its images are still being embedded, or that was interrupted. Run the same "
                "python -m bdbnet.embed command again; it resumes where it stopped."
            ) from None
        raise StoreError(
            f"{folder} holds no embeddings ({META} is not there); python -m bdbnet.embed makes such a folder"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder / META} is damaged ({error}). {AGAIN}") from error
    if not isinstance(meta, dict) or meta.get("schema") not in (SCHEMA, LIVE_SCHEMA):
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise StoreError(f"{folder}: schema {found}, this version reads schema {SCHEMA} and {LIVE_SCHEMA}. {AGAIN}")
    return meta
