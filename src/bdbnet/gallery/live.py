"""Changes of a gallery: rows are added, replaced and removed in one step, which a reader sees as a whole or not at all.

New files are written beside those in use, then `meta.json` is replaced, then files that no state needs any more are deleted.
A process that is killed before leaves the old state, and files that the next change deletes.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bdbnet.checked import UnfitError
from bdbnet.datasets import BOX_COLUMNS
from bdbnet.files import LockedError, locked
from bdbnet.gallery.parts import (
    FILLED,
    PARTS,
    ROW_ID,
    TABLE_COLUMNS,
    OpenPart,
    Part,
    StoreError,
    combined,
    joined_tables,
    open_part,
    parquet_bytes,
    write_part,
)
from bdbnet.gallery.rows import Rows
from bdbnet.gallery.store import (
    FILES,
    LIVE_SCHEMA,
    META,
    PLAN,
    TABLE,
    EmbeddingStore,
    ModelStamp,
    check_same_model,
    open_parts,
    read_meta,
)
from bdbnet.results import versions, write_atomically

_PART_BYTES = 512 * 2**20  # of embeddings in a new part
_MOST_GONE = 0.25  # share of a part's rows that may be gone before it is written anew
_STATES = 1000  # earlier states that are remembered, for indexes that belong to them
_ROWS = 8192  # copied at a time

#: What is known of an image's file: bytes, time of change (nanoseconds since 1970) and digest of its content; may be empty.
FILE_COLUMNS = {"size": pa.int64(), "mtime_ns": pa.int64(), "digest": pa.binary()}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only process that changes a gallery.

    Raises:
        LockedError: another one does.
    """
    try:
        lock = locked(folder, timeout=0)
    except LockedError:
        raise LockedError(
            f"{folder}: another process extends this gallery now. Wait until it has ended, then type the same again."
        ) from None
    with lock:
        yield


@dataclass(frozen=True, eq=False)
class State:
    """A gallery as it is before a change.

    Attributes:
        folder: of the gallery.
        meta: what `meta.json` says.
        model: what made the embeddings.
        parts: all of them.
    """

    folder: Path
    meta: Mapping[str, Any]
    model: ModelStamp
    parts: Sequence[OpenPart]

    @property
    def count(self) -> int:
        """Images."""
        return sum(each.part.live for each in self.parts)

    @property
    def table(self) -> pa.Table:
        """All rows, also those that no longer count."""
        return joined_tables([each.table for each in self.parts])

    @property
    def live(self) -> np.ndarray:
        """Which rows of `table` count: bool, one for each row, (N,)."""
        masks = []
        for each in self.parts:
            mask = np.ones(each.part.rows, bool)
            mask[each.removed] = False
            masks.append(mask)
        return np.concatenate(masks)

    @property
    def files(self) -> pa.Table:
        """What is known of the image files, for the rows of `table`."""
        return pa.concat_tables([_files_of(self.folder, each.part) for each in self.parts])

    @property
    def embeddings(self) -> Rows:
        """Of the rows of `table`."""
        return Rows([each.embeddings for each in self.parts], [None] * len(self.parts), self.model.dimensions)


def state_of(folder: Path) -> State:
    """The gallery in a folder, verified or not, as a change finds it.  Raises StoreError where it can't be used."""
    meta = read_meta(folder)
    if meta["schema"] == LIVE_SCHEMA:
        live, model, parts = open_parts(folder, meta)
        return State(folder, live, model, parts)
    store = EmbeddingStore.open(folder, verify=False)  # which looks at all that is read here
    embeddings = f"embeddings.{meta['format']}"
    history = [(meta["fingerprint"], len(store))]
    live = {**meta, "next_id": len(store), "history": history, "parts": []}
    if not len(store):
        return State(folder, live, store.model, [])
    sizes = dict(meta["files"])
    known = (folder / FILES).is_file() and pq.read_metadata(folder / FILES).num_rows == len(store)
    if known:
        sizes[FILES] = (folder / FILES).stat().st_size
    part = Part(embeddings, TABLE, len(store), meta["fingerprint"], sizes, files=FILES if known else None)
    return State(folder, live, store.model, [open_part(folder, part, meta["format"], store.model.dimensions)])


def _files_of(folder: Path, part: Part) -> pa.Table:
    if part.files is None:
        return pa.table({name: pa.nulls(part.rows, kind) for name, kind in FILE_COLUMNS.items()})
    table = pq.read_table(folder / part.files)
    if len(table) != part.rows or not {"size", "mtime_ns"} <= {*table.column_names}:
        raise StoreError(f"{folder / part.files} is damaged: delete it; its images are then embedded again")
    columns = {
        name: table[name] if name in table.column_names else pa.nulls(part.rows, kind)
        for name, kind in FILE_COLUMNS.items()
    }
    return pa.table({name: pc.cast(values, FILE_COLUMNS[name]) for name, values in columns.items()})


@dataclass(frozen=True, eq=False)
class NewRows:
    """Rows to append: a table of pyarrow, what is known of their files, and where their embeddings are: rows `numbers` (n,) of
    `matrix` (N, D)."""

    table: pa.Table
    files: pa.Table
    matrix: np.ndarray | Rows
    numbers: np.ndarray

    def blocks(self) -> Iterator[np.ndarray]:
        """The embeddings, some (n, D) at a time."""
        for begin in range(0, len(self.numbers), _ROWS):
            yield np.ascontiguousarray(self.matrix[self.numbers[begin : begin + _ROWS]])


def change(
    state: State,
    gone: np.ndarray,
    new: NewRows | None = None,
    *,
    root: str | None = None,
    prefix: str = "",
    source: str | None = None,
    skipped: int | None = None,
    noted: pa.Table | None = None,
) -> None:
    """Remove the rows `gone` (n,), numbers in `state.table`, append others, and make that the gallery's state.

    Args:
        root: new folder of the images; None: as before.
        prefix: comes before the paths that are in the gallery already.
        source, skipped: see `EmbeddingStore`; None: as before.
        noted: what is now known of the files of all rows of `state.table`; None: what was known before.

    Raises:
        StoreError: no row would be left, or the tables have other columns.
        WriteError: the disk is full, or the folder can't be written to.
    """
    folder, meta = state.folder, state.meta
    if state.count - len(gone) + (0 if new is None else len(new.numbers)) <= 0:
        raise StoreError(f"{folder}: no image would be left in it; delete the folder instead")
    kept = _kept_parts(state, gone, prefix, noted)
    next_id = meta["next_id"]
    pending: list[NewRows] = []
    if new is not None and len(new.numbers):
        ids = pa.array(np.arange(next_id, next_id + len(new.numbers)))
        pending.append(replace(new, table=new.table.append_column(ROW_ID, ids)))
        next_id += len(new.numbers)
    parts = _written(state, kept, pending)
    fingerprint = combined(parts)
    live = {
        **{key: meta[key] for key in ("skipped", "source", "root", "format", "model")},
        "schema": LIVE_SCHEMA,
        "count": sum(each.part.live for each in parts),
        "fingerprint": fingerprint,
        "next_id": next_id,
        "history": [*meta["history"], (fingerprint, next_id)][-_STATES:],
        "parts": [asdict(each.part) for each in parts],
        "versions": versions(),
    }
    live |= {
        key: value for key, value in (("root", root), ("source", source), ("skipped", skipped)) if value is not None
    }
    content = json.dumps(live, indent=1, default=str)
    write_atomically(folder / META, (content + "\n").encode())
    (folder / PLAN).unlink(missing_ok=True)  # from now on it does not say what is here
    clean(folder, [each.part for each in parts])


def clean(folder: Path, parts: Iterable[Part]) -> None:
    """Delete files of parts that the state does not need: of earlier states, and of a change that was broken off."""
    needed = {folder / name for part in parts for name in part.names}
    if not needed:
        return
    base = [folder / name for name in (TABLE, FILES, "embeddings.safetensors", "embeddings.parquet")]
    for file in [*base, *(folder / PARTS).glob("*"), *(folder / PARTS).glob(".*")]:
        if file not in needed:
            with suppress(OSError):  # a reader has it open, where the system minds that: the next change deletes it
                file.unlink(missing_ok=True)
    for temporary in folder.glob(f".{META}.*"):
        temporary.unlink(missing_ok=True)


def _kept_parts(state: State, gone: np.ndarray, prefix: str, noted: pa.Table | None) -> list[OpenPart | NewRows]:
    """Parts that stay, as they then are, and in the place of those that lose many rows the rows to be written anew."""
    kept: list[OpenPart | NewRows] = []
    begin = 0
    for each in state.parts:
        part, end = each.part, begin + each.part.rows
        own = gone[(gone >= begin) & (gone < end)] - begin
        files = None if noted is None else noted.slice(begin, part.rows)
        begin = end
        removed = np.union1d(each.removed, own).astype(np.int64)
        if len(removed) == part.rows:
            continue
        table, changed = _prefixed(each.table, prefix), replace(part, prefix=prefix + part.prefix)
        whole = OpenPart(changed, each.embeddings, table, each.ids, removed)
        if len(own) and len(removed) > _MOST_GONE * part.rows:
            kept.append(_rows_of(state.folder, whole, files))
            continue
        sizes = dict(part.sizes)
        if len(own):
            name = f"{PARTS}/{uuid.uuid4().hex[:16]}.removed.npy"
            changed = replace(
                changed, removed=_written_file(state.folder / name, _npy(removed), name, sizes), gone=len(removed)
            )
        if files is not None and not files.equals(_files_of(state.folder, part)):
            name = f"{PARTS}/{uuid.uuid4().hex[:16]}.files.parquet"
            changed = replace(changed, files=_written_file(state.folder / name, parquet_bytes(files), name, sizes))
        changed = replace(changed, sizes={name: sizes[name] for name in changed.names})
        kept.append(replace(whole, part=changed))
    return kept


def _written(state: State, kept: Sequence[OpenPart | NewRows], pending: list[NewRows]) -> list[OpenPart]:
    """All parts of the new state, those written that are not there yet.

    Small parts at the end are put together with what comes after them while they are no larger: each row is written again
    as often as the number of rows doubles, and the number of parts stays small however often a few images are added.
    """
    kept = [*kept]
    while pending and kept:
        last, rows = kept[-1], sum(len(each.numbers) for each in pending)
        if isinstance(last, OpenPart):
            if (
                not last.part.table.startswith(PARTS)
                or last.part.live > rows
                or last.part.live + rows > _most_rows(state)
            ):
                break
            last = _rows_of(state.folder, last, None)
        pending.insert(0, last)
        kept.pop()
    parts: list[OpenPart] = []
    group: list[NewRows] = []
    for each in [*kept, *pending]:
        if isinstance(each, NewRows):
            group.append(each)
            continue
        parts += _new_parts(state, group)
        group = []
        parts.append(each)
    return parts + _new_parts(state, group)


def _most_rows(state: State) -> int:
    return max(1, _PART_BYTES // (4 * state.model.dimensions))


def _new_parts(state: State, group: Sequence[NewRows]) -> list[OpenPart]:
    """Write rows as parts of the usual size."""
    if not group:
        return []
    try:
        table = joined_tables([each.table for each in group])
    except StoreError as error:
        raise StoreError(f"{state.folder}: {error}") from None
    files = pa.concat_tables([each.files for each in group])
    stream = _Stream(block for each in group for block in each.blocks())
    parts = []
    for begin in range(0, len(table), _most_rows(state)):
        rows, known = table.slice(begin, _most_rows(state)), files.slice(begin, _most_rows(state))
        name, format, dimensions = uuid.uuid4().hex[:16], state.meta["format"], state.model.dimensions
        part = write_part(state.folder, name, format, rows, stream.take(len(rows)), dimensions, known)
        parts.append(open_part(state.folder, part, format, dimensions))
    return parts


class _Stream:
    """Blocks of rows, cut anew."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks, self._rest = blocks, None

    _rest: np.ndarray | None

    def take(self, rows: int) -> Iterator[np.ndarray]:
        """The next rows, in blocks."""
        while rows:
            block = next(self._blocks) if self._rest is None else self._rest
            yield block[:rows]
            self._rest = block[rows:] if len(block) > rows else None
            rows -= min(rows, len(block))


def _rows_of(folder: Path, each: OpenPart, files: pa.Table | None) -> NewRows:
    """The rows of a part that count, to be written again."""
    rows = np.arange(each.part.rows) if each.rows is None else each.rows
    table = each.table.append_column(ROW_ID, pa.array(each.ids)).take(rows)
    known = _files_of(folder, each.part) if files is None else files
    return NewRows(table, known.take(rows), each.embeddings, rows)


def _prefixed(table: pa.Table, prefix: str) -> pa.Table:
    if not prefix:
        return table
    text = pa.large_string()
    paths = pc.binary_join_element_wise(pa.scalar(prefix, text), table["path"], pa.scalar("", text))
    return table.set_column(table.column_names.index("path"), "path", paths)


def _written_file(file: Path, content: bytes, name: str, sizes: dict[str, int]) -> str:
    write_atomically(file, content)
    sizes[name] = len(content)
    return name


def _npy(numbers: np.ndarray) -> bytes:
    buffer = pa.BufferOutputStream()
    np.lib.format.write_array(buffer, numbers, allow_pickle=False)
    return bytes(buffer.getvalue())


# Rows by what they show


def keys(table: pa.Table) -> pa.ChunkedArray:
    """A text for each row that tells its image from others: the path, and the box if there is one."""
    text = pa.large_string()
    paths = pc.cast(table["path"], text)
    if BOX_COLUMNS[0] not in table.column_names:
        return paths
    boxes = [pc.cast(table[name], text) for name in BOX_COLUMNS]
    return pc.binary_join_element_wise(paths, *boxes, pa.scalar("\0", text))


def places(wanted: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """For each of the keys `wanted` its number among other keys, int64 (n,); -1 where it is not there."""
    found = pc.fill_null(pc.index_in(wanted, value_set=_one_chunk(among)), -1)
    return np.asarray(found.to_numpy(), np.int64)


def _one_chunk(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def refuse_repeated(table: pa.Table, name: str) -> None:
    """Raise StoreError where an image is listed twice; names the rows, the first is 1."""
    own = keys(table)
    first = places(own, own)
    again = np.flatnonzero(first != np.arange(len(first)))
    if len(again):
        raise StoreError(
            f"{name}: rows {first[again[0]] + 1} and {again[0] + 1} are the same image, {shown_key(own[int(again[0])].as_py())}. "
            "List each image (and box) once."
        )


def shown_key(key: str) -> str:
    """A key as people read it."""
    path, _, box = key.partition("\0")
    return f"{path} (box {box.replace(chr(0), ' ')})" if box else path


def check_columns(state: State, table: pa.Table, name: str) -> None:
    """Raise StoreError unless the rows of a table can stand below the gallery's."""
    if not state.parts:
        return
    known = list(dict.fromkeys(column for each in state.parts for column in each.table.column_names))
    different = [c for c in {*known} ^ {*table.column_names} if c not in FILLED]
    if different:
        shown = [" ".join(c for c in TABLE_COLUMNS if c in columns) for columns in (known, table.column_names)]
        raise StoreError(
            f"{name}: images with the columns {shown[1]} can't be added to {state.folder}, whose images have {shown[0]}. "
            f"Give {' '.join(c for c in TABLE_COLUMNS if c in different)} for all of them or for none."
        )


def add_rows(
    folder: Path,
    embeddings: np.ndarray,
    table: pd.DataFrame,
    model: ModelStamp | None = None,
    *,
    replacing: bool = False,
) -> None:
    """Add rows with embeddings (n, D) float32; see `EmbeddingStore.add` and `replace`.

    Raises:
        StoreError: the embeddings or the table do not fit, a row is there already, or another network made the store.
    """
    embeddings = np.asarray(embeddings)
    rows = table_of(table)
    with writing(folder):
        state = state_of(folder)
        if model is not None:
            check_same_model(state.model, model)
        shape = (len(rows), state.model.dimensions)
        if embeddings.shape != shape or embeddings.dtype != np.float32:
            raise StoreError(
                f"embeddings {embeddings.shape} {embeddings.dtype} for {len(rows)} rows can't be added to {folder}: expected "
                f"{shape} float32. Embeddings of another size need a gallery of their own: "
                "python -m bdbnet.embed output=<another folder>."
            )
        if not np.isfinite(embeddings).all():
            raise StoreError(f"embedding {int(np.argmin(np.isfinite(embeddings).all(axis=1)))} holds NaN or infinity")
        check_columns(state, rows, "table")
        refuse_repeated(rows, "table")
        there = np.empty(0, np.int64)
        if state.parts:
            place = places(keys(state.table), keys(rows))
            there = np.flatnonzero((place >= 0) & state.live)
        if len(there) and not replacing:
            raise StoreError(
                f"{folder} already holds {shown_key(keys(state.table)[int(there[0])].as_py())} (and {len(there) - 1} more of the "
                f"{len(rows)} images): leave them out, or use replace"
            )
        files = pa.table({name: pa.nulls(len(rows), kind) for name, kind in FILE_COLUMNS.items()})
        change(state, there, NewRows(rows, files, embeddings, np.arange(len(rows))))


def remove_rows(folder: Path, paths: Iterable[str]) -> None:
    """See `EmbeddingStore.remove`.  Raises StoreError for a path that is not there."""
    wanted = list(dict.fromkeys([paths] if isinstance(paths, str) else paths))
    with writing(folder):
        state = state_of(folder)
        if not state.parts:
            raise StoreError(f"{folder} holds no images")
        own = state.table["path"]
        place = places(own, pa.chunked_array([pa.array(wanted, pa.large_string())]))
        gone = np.flatnonzero((place >= 0) & state.live)
        if missing := sorted({*range(len(wanted))} - {*place[gone].tolist()}):
            raise StoreError(
                f"{folder} holds no image {wanted[missing[0]]!r} (and not {len(missing) - 1} more of the {len(wanted)} to be "
                "removed): paths are those of its table"
            )
        change(state, gone)


def table_of(table: pd.DataFrame) -> pa.Table:
    """A table of rows to add, of pyarrow.  Raises StoreError for a missing column, or one that can't be used."""
    if missing := [name for name in ("path",) if name not in table.columns]:
        raise StoreError(f"the table has no column {missing[0]}")
    rows = pa.Table.from_pandas(table[[name for name in TABLE_COLUMNS if name in table.columns]], preserve_index=False)
    rows = rows.replace_schema_metadata(None)
    try:
        columns = {}
        for name in rows.column_names:
            kind = {"path": pa.large_string(), "time": pa.float64()}.get(name, pa.int64())
            columns[name] = pc.cast(rows[name], kind)
            if name != "time" and columns[name].null_count:
                raise UnfitError(f"column {name} has empty cells")
    except (UnfitError, pa.ArrowException) as error:
        raise StoreError(f"the table of the images can't be used: {error}") from error
    return pa.table(columns)
