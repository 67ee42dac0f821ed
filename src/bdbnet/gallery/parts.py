"""Files of embeddings and their tables, and parts of a gallery that grows: files that never change, and which rows count.

A part is a pair of such files. What is added comes in new parts; of a row that is removed or replaced its number is noted
in a small file of its own. So whoever has opened an earlier state keeps seeing that state.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from bdbnet.checked import Column, Positive, Range, UnfitError, read_arrow
from bdbnet.datasets import BOX_COLUMNS
from bdbnet.files import replaced
from bdbnet.gallery.rows import blocks_of
from bdbnet.regular_files import require_regular
from bdbnet.results import write_atomically

#: Folder of the parts, in that of the gallery.
PARTS = "parts"
#: Column of a part's table: what tells a row apart from every other that the gallery ever held.
ROW_ID = "row_id"

TABLE_COLUMNS = {
    "path": Column("text"), "label": Column("whole"), "camera": Column("whole"), "time": Column("number", empty=True),
    **{name: Column("whole") for name in BOX_COLUMNS},
}  # fmt: skip
#: Columns that an image may lack, and what stands there then.
FILLED = {"camera": -1, "time": float("nan")}
AGAIN = "Run python -m bdbnet.embed again with overwrite=true."

_ROWS = 8192  # embeddings that are hashed at a time
_NAME = re.compile(rf"(?:{PARTS}/)?[\w-][\w.-]*")


class StoreError(ValueError):
    """A folder of embeddings that can't be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Part:
    """Some rows of a gallery, as `meta.json` lists them; files are named relative to the gallery's folder.

    Attributes:
        embeddings, table: files.
        rows: in them, also those that no longer count.
        digest: SHA-256 of both, see `digest_of`.
        sizes: bytes of each file.
        first: identifier of the first row, where the table has no column `row_id`.
        prefix: comes before every path of the table.
        files: file with size, time of change and digest of each image file; None: not known.
        removed: file with the numbers of the rows that no longer count; None: all count.
        gone: how many these are.
    """

    embeddings: str
    table: str
    rows: Positive
    digest: str
    sizes: Mapping[str, int]
    first: Annotated[int, Range(0)] = 0
    prefix: str = ""
    files: str | None = None
    removed: str | None = None
    gone: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        for name in (self.embeddings, self.table, self.files, self.removed):
            if name is not None and not _NAME.fullmatch(name):
                raise UnfitError(f"a part names the file {name!r}, which is not in its folder")

    @property
    def names(self) -> list[str]:
        """Its files."""
        return [name for name in (self.embeddings, self.table, self.files, self.removed) if name is not None]

    @property
    def live(self) -> int:
        """Rows that count."""
        return self.rows - self.gone


@dataclass(frozen=True, eq=False)
class OpenPart:
    """A part whose files are read or mapped.

    Attributes:
        part: what it is.
        embeddings: (rows, D) float32.
        table: of pyarrow, all rows, with whole paths; without `row_id`.
        ids: int64 (rows,).
        removed: int64, ascending: rows that no longer count.
    """

    part: Part
    embeddings: np.ndarray
    table: pa.Table
    ids: np.ndarray
    removed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> np.ndarray | None:
        """Numbers of the rows that count, ascending; None: all."""
        return np.delete(np.arange(self.part.rows), self.removed) if len(self.removed) else None


def open_part(folder: Path, part: Part, format: str, dimensions: int) -> OpenPart:
    """Open a part.  Raises StoreError for files that are not there, of another size or content."""
    for name in part.names:
        if name not in part.sizes:
            raise StoreError(f"{folder} is damaged: the size of {name} is not known. {AGAIN}")
        check_size(folder, name, part.sizes[name])
    optional = [name for name in TABLE_COLUMNS if name != "path"]
    try:
        table = read_arrow(
            folder / part.table, {**TABLE_COLUMNS, ROW_ID: Column("whole", least=0)}, [*optional, ROW_ID]
        )
    except (UnfitError, OSError) as error:
        raise StoreError(f"{folder / part.table} is damaged: {error}. {AGAIN}") from error
    embeddings = read_embeddings(folder / part.embeddings, dimensions)
    if len(table) != part.rows or embeddings.shape != (part.rows, dimensions) or embeddings.dtype != np.float32:
        raise StoreError(
            f"{folder} is damaged: {len(table)} rows and embeddings {embeddings.shape} {embeddings.dtype} in {part.embeddings}, "
            f"where {(part.rows, dimensions)} float32 should be. {AGAIN}"
        )
    if ROW_ID in table.column_names:
        ids = table[ROW_ID].to_numpy()
        table = table.drop_columns([ROW_ID])
    else:
        ids = np.arange(part.first, part.first + part.rows)
    paths = pc.cast(table["path"], pa.large_string())
    if part.prefix:
        paths = pc.binary_join_element_wise(
            pa.scalar(part.prefix, pa.large_string()), paths, pa.scalar("", pa.large_string())
        )
    table = table.set_column(table.column_names.index("path"), "path", paths).replace_schema_metadata(None)
    removed = np.empty(0, np.int64)
    if part.removed is not None:
        removed = read_numbers(folder / part.removed)
        if removed.dtype != np.int64 or removed.shape != (part.gone,) or not _is_ascending(removed, part.rows):
            raise StoreError(f"{folder / part.removed} is damaged. {AGAIN}")
    return OpenPart(part, embeddings, table, ids, removed)


def read_numbers(file: Path) -> np.ndarray:
    """The array of an `.npy` file, of any shape.  Raises ValueError for a damaged one."""
    require_regular(file)
    try:
        found: np.ndarray = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy reads the header as Python's text: any error of its parser
        raise ValueError(f"{file} is no array that NumPy reads: {error}") from error
    return found


def _is_ascending(numbers: np.ndarray, below: int) -> bool:
    return bool((np.diff(numbers) > 0).all()) and (not len(numbers) or (numbers[0] >= 0 and numbers[-1] < below))


def write_part(
    folder: Path, name: str, format: str, table: pa.Table, blocks: Iterable[np.ndarray], dimensions: int,
    files: pa.Table | None,
) -> Part:  # fmt: skip
    """Write a part under a name that no other has.

    Args:
        table: rows, with `row_id`.
        blocks: their embeddings in order, (n, dimensions) float32 at a time.
        files: what is known of their image files.
    """
    places = [f"{PARTS}/{name}.{format}", f"{PARTS}/{name}.rows.parquet"]
    content = parquet_bytes(table)
    digest = hashlib.sha256(content)
    write_atomically(folder / places[1], content)
    writer = write_safetensors if format == "safetensors" else write_parquet
    with replaced(folder / places[0]) as file:
        writer(file, checked_blocks(blocks, len(table), dimensions, digest), table["path"].to_pandas(), dimensions)
    if files is not None:
        places.append(f"{PARTS}/{name}.files.parquet")
        write_atomically(folder / places[2], parquet_bytes(files))
    sizes = {place: (folder / place).stat().st_size for place in places}
    return Part(places[0], places[1], len(table), digest.hexdigest(), sizes, files=None if files is None else places[2])


def parquet_bytes(table: pa.Table) -> bytes:
    """The content of a Parquet file that holds a table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def digest_of(table: Path, embeddings: np.ndarray) -> str:
    """SHA-256 of the bytes of a table's file and of embeddings (N, D)."""
    digest = hashlib.sha256(table.read_bytes())
    for _, block in blocks_of(embeddings, _ROWS):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def combined(parts: Sequence[OpenPart]) -> str:
    """The fingerprint of a gallery of parts: SHA-256 of their digests, of where their paths begin and of the removed rows."""
    removed = [hashlib.sha256(part.removed.tobytes()).hexdigest() if len(part.removed) else "" for part in parts]
    record = [[each.part.digest, each.part.prefix, gone] for each, gone in zip(parts, removed, strict=True)]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def joined_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other; an image of a table without cameras or times has none.

    Raises:
        StoreError: one of them has a column that can't be filled in.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    kinds = {name: next(table[name].type for table in tables if name in table.column_names) for name in names}
    whole = []
    for table in tables:
        if lacking := [name for name in names if name not in table.column_names and name not in FILLED]:
            raise StoreError(f"some of its tables have no column {', '.join(lacking)}, others have one")
        columns = [
            pc.cast(table[name], kinds[name])
            if name in table.column_names
            else pa.array(np.full(len(table), FILLED[name]), kinds[name])
            for name in names
        ]
        whole.append(pa.table(columns, names=names))
    return pa.concat_tables(whole)


# Files


def checked_blocks(
    blocks: Iterable[np.ndarray], count: int, dimensions: int, digest: "hashlib._Hash"
) -> Iterator[np.ndarray]:
    """The blocks (n, dimensions) float32, whose content goes into `digest`."""
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


def write_safetensors(file: BinaryIO, blocks: Iterator[np.ndarray], paths: pd.Series, dimensions: int) -> None:
    """Write blocks (n, dimensions) of embeddings as the tensor `embeddings`."""
    # The library's writers want the whole tensor in memory; the format is a length, a header and the numbers.
    shape = [len(paths), dimensions]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    header = json.dumps({"embeddings": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of their size
    file.write(len(header).to_bytes(8, "little") + header)
    for block in blocks:
        file.write(block.data)


def write_parquet(file: BinaryIO, blocks: Iterator[np.ndarray], paths: pd.Series, dimensions: int) -> None:
    """Write blocks (n, dimensions) of embeddings as the column `embedding`, beside `path`."""
    schema = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), dimensions))])
    first = 0
    # Floating-point numbers hardly get smaller by compression.
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for block in blocks:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dimensions)
            names = pa.array(paths.iloc[first : first + len(block)].tolist(), pa.string())
            writer.write_table(pa.table([names, lists], schema=schema))
            first += len(block)


def read_embeddings(file: Path, dimensions: int) -> np.ndarray:
    """Embeddings (N, D) of either format; those of a safetensors file are mapped."""
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


def check_size(folder: Path, name: str, size: int) -> None:
    """Raise StoreError unless a file is there and has its size."""
    file = folder / name
    if not file.is_file():
        raise StoreError(f"{folder} is damaged: {name} is not there. {AGAIN}")
    if file.stat().st_size != size:
        raise StoreError(f"{folder} is damaged: {name} has {file.stat().st_size:,} bytes instead of {size:,}. {AGAIN}")
