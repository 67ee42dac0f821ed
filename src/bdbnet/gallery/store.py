"""Embeddings of a set of images in a folder: the numbers, a row per image, and the stamp of the network they come from.

A folder holds `meta.json`, written last, `manifest.parquet` with a row per image, and the embeddings as one tensor
`embeddings` in `embeddings.safetensors`, or as a column `embedding` in `embeddings.parquet`.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from bdbnet.checked import Column, Holds, Plain, Positive, Range, Size, UnfitError, checked, read_json, read_parquet
from bdbnet.datasets import BOX_COLUMNS
from bdbnet.evaluation.calibration import Calibration
from bdbnet.files import replaced
from bdbnet.renamed import with_todays_names
from bdbnet.results import versions, write_atomically

SCHEMA = 1

# Files of a store.
META = "meta.json"
TABLE = "manifest.parquet"
SKIPPED = "skipped.csv"
# That its content has been verified on this machine.
VERIFIED = ".verified.json"
# Of one that is being made: what it will hold, and the parts that are done.
PLAN = "plan.json"
SHARDS = "shards"

FORMATS = ("safetensors", "parquet")

_ROWS = 8192  # embeddings that are hashed at a time


class StoreError(ValueError):
    """A folder of embeddings that can't be used; the message names it and says what to do."""


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

    @property
    def shown(self) -> str:
        """The checkpoint's name with the beginning of the fingerprint: many are called `last.ckpt`."""
        return f"{self.checkpoint} (fingerprint {self.fingerprint[:12]})"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelStamp":
        """The stamp that `asdict` and JSON made a record of.  Raises UnfitError, which names the key, for another record."""
        stamp = checked(record, cls, "model")
        return replace(stamp, network=with_todays_names(stamp.network))


class _Meta(TypedDict):
    """What `meta.json` says."""

    count: Annotated[int, Range(0)]
    skipped: Annotated[int, Range(0)]
    source: str
    root: str
    format: Literal["safetensors", "parquet"]
    fingerprint: str
    model: Mapping[str, Any]
    files: Mapping[str, int]


_TABLE_COLUMNS = {
    "path": Column("text"), "label": Column("whole"), "camera": Column("whole"), "time": Column("number", empty=True),
    **{name: Column("whole") for name in BOX_COLUMNS},
}  # fmt: skip


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
            allows that (safetensors).
        table: N rows with `path` (relative to `root`) and, where known, `label` int64, `camera` int64 (-1 for none),
            `time` float64 (seconds since 1970, NaN for none) and boxes `x1 y1 x2 y2` int64 (pixels).
        root: folder of the images when they were embedded.
        model: what made the embeddings.
        fingerprint: SHA-256 of table and embeddings.
        source: what was embedded, as given.
        skipped: images left out because they could not be read; `skipped.csv` lists them.
    """

    folder: Path
    embeddings: np.ndarray
    table: pd.DataFrame
    root: Path
    model: ModelStamp
    fingerprint: str
    source: str = ""
    skipped: int = 0

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
        meta = _read_meta(folder)
        try:
            checked(meta, _Meta)
            model = ModelStamp.from_json(meta["model"])
        except UnfitError as error:
            raise StoreError(f"{folder / META} is damaged: {error}. {_AGAIN}") from error
        for name, size in meta["files"].items():
            _check_size(folder, name, size)
        try:
            table = read_parquet(
                folder / TABLE, _TABLE_COLUMNS, optional=[name for name in _TABLE_COLUMNS if name != "path"]
            )
        except (UnfitError, OSError) as error:
            raise StoreError(f"{folder / TABLE} is damaged: {error}. {_AGAIN}") from error
        try:
            embeddings = _read_embeddings(folder / f"embeddings.{meta['format']}", model.dimensions)
            shape = (meta["count"], model.dimensions)
            if len(table) != meta["count"] or embeddings.shape != shape or embeddings.dtype != np.float32:
                raise StoreError(
                    f"{folder} is damaged: {len(table)} rows and embeddings {embeddings.shape} {embeddings.dtype}, where "
                    f"{META} says {shape} float32. {_AGAIN}"
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
            raise StoreError(f"{folder} is damaged ({type(error).__name__}: {error}). {_AGAIN}") from error

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""
        return self.model.dimensions

    def __len__(self) -> int:
        return len(self.table)


def _verify(folder: Path, meta: Mapping[str, Any], embeddings: np.ndarray) -> None:
    """Raise StoreError unless table and embeddings are those that were written; what was found is kept for the next time."""
    files = {name: _identity(folder / name) for name in meta["files"]}
    state = {"fingerprint": meta["fingerprint"], "files": files}
    record = folder / VERIFIED
    try:
        if read_json(record) == state:
            return
    except (OSError, ValueError):
        pass
    digest = hashlib.sha256((folder / TABLE).read_bytes())
    for first in range(0, len(embeddings), _ROWS):
        digest.update(np.ascontiguousarray(embeddings[first : first + _ROWS]).data)
    if digest.hexdigest() != meta["fingerprint"]:
        raise StoreError(
            f"{folder} is damaged or was changed: {' and '.join(files)} are not those that were written (fingerprint "
            f"{digest.hexdigest()[:12]} instead of {str(meta['fingerprint'])[:12]}). Copy the folder again, or embed again: "
            "python -m bdbnet.embed with overwrite=true. verify=false opens it all the same."
        )
    with suppress(OSError):  # a folder that can't be written to is verified every time
        write_atomically(record, (json.dumps(state) + "\n").encode())


def _identity(file: Path) -> list[int]:
    """What tells that a file is the one that was verified. A copy has another inode and time of change, whatever it keeps."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


_AGAIN = "Run python -m bdbnet.embed again with overwrite=true."


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
    writer = _write_safetensors if format == "safetensors" else _write_parquet
    with replaced(embeddings) as file:
        writer(file, _checked(blocks, len(table), model.dimensions, digest), table["path"], model.dimensions)
    meta = {
        "schema": SCHEMA,
        "count": len(table),
        "skipped": skipped,
        "source": source,
        "root": str(Path(root).absolute()),
        "format": format,
        "fingerprint": digest.hexdigest(),
        "model": asdict(model),
        "files": {file.name: file.stat().st_size for file in (embeddings, folder / TABLE)},
        "versions": versions(),
    }
    write_atomically(folder / META, (json.dumps(meta, indent=2, default=str) + "\n").encode())


def _checked(
    blocks: Iterable[np.ndarray], count: int, dimensions: int, digest: "hashlib._Hash"
) -> Iterator[np.ndarray]:
    """The blocks, whose content goes into `digest`."""
    done = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != dimensions or block.dtype != np.float32:
            raise ValueError(f"a block of embeddings is {block.shape} {block.dtype}, not (n, {dimensions}) float32")
        block = np.ascontiguousarray(block)
        done += len(block)
        digest.update(block.data)
        yield block
    if done != count:
        raise ValueError(f"{done} embeddings for a table of {count} rows")


def _write_safetensors(file: BinaryIO, blocks: Iterator[np.ndarray], paths: pd.Series, dimensions: int) -> None:
    # The library's writers want the whole tensor in memory; the format is a length, a header and the numbers.
    shape = [len(paths), dimensions]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    header = json.dumps({"embeddings": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of their size
    file.write(len(header).to_bytes(8, "little") + header)
    for block in blocks:
        file.write(block.data)


def _write_parquet(file: BinaryIO, blocks: Iterator[np.ndarray], paths: pd.Series, dimensions: int) -> None:
    schema = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), dimensions))])
    first = 0
    # Floating-point numbers hardly get smaller by compression.
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dimensions)
            names = pa.array(paths.iloc[first : first + len(block)].tolist(), pa.string())
            writer.write_table(pa.table([names, lists], schema=schema))
            first += len(block)


def _read_embeddings(file: Path, dimensions: int) -> np.ndarray:
    if file.suffix == ".parquet":
        lists = pq.read_table(file, columns=["embedding"])["embedding"].combine_chunks()
        embeddings: np.ndarray = lists.flatten().to_numpy().reshape(-1, dimensions)
        return embeddings
    with safe_open(file, "np") as tensors:  # checks the header
        part = tensors.get_slice("embeddings")
        shape = part.get_shape()
        if list(tensors.keys()) != ["embeddings"] or part.get_dtype() != "F32":
            raise ValueError(f"it holds {', '.join(tensors.keys())} of {part.get_dtype()}, not embeddings of F32")
    with file.open("rb") as content:
        offset = 8 + int.from_bytes(content.read(8), "little")
    return np.memmap(file, np.float32, "r", offset, tuple(shape))


def _read_meta(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such folder of embeddings; python -m bdbnet.embed makes one")
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
        raise StoreError(f"{folder / META} is damaged ({error}). {_AGAIN}") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else None
        raise StoreError(f"{folder}: schema {found}, this version reads schema {SCHEMA}. {_AGAIN}")
    return meta


def _check_size(folder: Path, name: str, size: int) -> None:
    file = folder / name
    if not file.is_file():
        raise StoreError(f"{folder} is damaged: {name} is not there. {_AGAIN}")
    if file.stat().st_size != size:
        raise StoreError(f"{folder} is damaged: {name} has {file.stat().st_size:,} bytes instead of {size:,}. {_AGAIN}")
