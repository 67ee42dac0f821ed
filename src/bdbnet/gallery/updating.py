"""Bringing a gallery up to date with a folder or table of images: `mode=add` and `mode=sync` of `python -m bdbnet.embed`."""

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bdbnet.datasets.checking import usable_cores
from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery.embedding import stamp_of
from bdbnet.gallery.live import (
    FILE_COLUMNS,
    NewRows,
    State,
    change,
    check_columns,
    clean,
    keys,
    places,
    refuse_repeated,
    state_of,
    table_of,
    writing,
)
from bdbnet.gallery.parts import StoreError
from bdbnet.gallery.rows import Rows
from bdbnet.gallery.shards import clear_folder, embed_into, file_facts
from bdbnet.gallery.store import META, SKIPPED, STAGING, EmbeddingStore, check_same_model
from bdbnet.loading.sources import Images
from bdbnet.results import write_atomically


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        embedded: images that were embedded.
        seconds: what that took.
        added, replaced, removed: images that are new in the gallery, that took the place of an earlier one, and that are gone.
        unknown: of the replaced ones those of whose files neither size nor time was known, so that they counted as changed.
    """

    embedded: int
    seconds: float
    added: int = 0
    replaced: int = 0
    removed: int = 0
    unknown: int = 0


def update_store(
    folder: Path,
    embedder: Embedder,
    images: Images,
    *,
    sync: bool,
    shard_size: int = 8192,
    batch_size: int = 128,
    skip_unreadable: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Update:
    """Embed the images that the gallery in `folder` does not hold yet, and append them.

    An image is known by its path, and by its box where it has one. What is embedded when the process is killed is kept, and the
    same command continues from there; the gallery changes in one step at the end.

    Args:
        sync: also embed those again whose file has changed (by size and time, and where these differ by content), take over
            what the table says now, and remove what is gone: of a gallery that holds images of several folders only below
            the folder of `images`.
        shard_size, batch_size, skip_unreadable, num_workers: see `embed_into`.

    Raises:
        StoreError: a gallery of another network, other columns, an image that is listed twice, or none would be left.
        LockedError: another process extends the gallery.
    """
    with writing(folder):
        state = state_of(folder)
        staging = folder / STAGING
        if state.parts:
            clean(folder, [each.part for each in state.parts])
        _check_model(state, embedder)
        plan = _compared(state, images, sync=sync)
        began = time.perf_counter()
        embedded, skipped = 0, _Skipped(folder)
        staged: EmbeddingStore | None = None
        if len(plan.to_embed):
            subset = _part_of(images, plan.to_embed)
            staged = _embedded(
                staging, embedder, subset, shard_size=shard_size, batch_size=batch_size, skip_unreadable=skip_unreadable,
                num_workers=num_workers, progress=progress,
            )  # fmt: skip
            embedded = len(staged)
        seconds = time.perf_counter() - began
        skipped.update(staging, plan, sync=sync)
        appended, new = _new_rows(state, plan, staged)
        other = str(plan.root) != state.meta["root"] or len(skipped.table) != state.meta["skipped"]
        if new is not None or len(plan.gone) or plan.noted is not None or other:
            skipped.write()
            change(
                state, plan.gone, new, root=str(plan.root), prefix=plan.old_prefix,
                source=_source(state, images, sync=sync and not plan.new_prefix), skipped=len(skipped.table), noted=plan.noted,
            )  # fmt: skip
        del staged, new
        shutil.rmtree(staging, ignore_errors=True)
        replaced = int(plan.is_known[appended].sum())
        return Update(embedded, seconds, len(appended) - replaced, replaced, len(plan.gone) - replaced, plan.unknown)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What an update has to do. Numbers of stored rows are those of `State.table`, others those of the images.

    Attributes:
        table: the images as the gallery is to name them.
        root, old_prefix, new_prefix: folder of all paths then, and what comes before those that are there and the new ones.
        is_known: bool, of the images: they are in the gallery.
        to_embed, to_copy: images; of the latter, only what the table says has changed.
        copies: stored row of each image in `to_copy`.
        gone: stored rows that no longer count.
        files: of all images: size, time and, where it was needed, digest.
        noted: what is now known of the files of all stored rows; None: as before.
        unknown: see `Update`.
    """

    table: pa.Table
    root: Path
    old_prefix: str
    new_prefix: str
    is_known: np.ndarray
    to_embed: np.ndarray
    to_copy: np.ndarray
    copies: np.ndarray
    gone: np.ndarray
    files: pa.Table
    noted: pa.Table | None
    unknown: int


def _check_model(state: State, embedder: Embedder) -> None:
    try:
        check_same_model(state.model, stamp_of(embedder, state.folder))
    except StoreError as error:
        raise StoreError(
            f"{state.folder} can't be extended by this network: {error} A gallery of this one: output=<another folder>."
        ) from None


def _compared(state: State, images: Images, *, sync: bool) -> _Plan:
    """Look which images are new, changed and gone."""
    root, old_prefix, new_prefix = _roots(state, images.root, sync=sync)
    table = table_of(images.table)
    refuse_repeated(table, images.source)
    if new_prefix:
        text = pa.large_string()
        paths = pc.binary_join_element_wise(pa.scalar(new_prefix, text), table["path"], pa.scalar("", text))
        table = table.set_column(table.column_names.index("path"), "path", paths)
    count, nowhere = len(table), np.empty(0, np.int64)
    if not state.parts:
        files = _files(images.manifest.paths, np.arange(count))
        new = np.arange(count)
        return _Plan(table, root, "", "", np.zeros(count, bool), new, nowhere, nowhere, nowhere, files, None, 0)
    if not sync:
        check_columns(state, table, images.source)
    stored = state.table
    live, place = state.live, places(_prefixed_keys(stored, old_prefix), keys(table))
    known = np.flatnonzero(live & (place >= 0))
    # A gallery may hold an image twice, if its table listed it twice: the first one is kept.
    first = known[np.unique(place[known], return_index=True)[1]]
    is_known = np.zeros(count, bool)
    is_known[place[first]] = True
    if not sync:
        to_embed = np.flatnonzero(~is_known)
        files = _files(images.manifest.paths, to_embed)
        return _Plan(
            table, root, old_prefix, new_prefix, is_known, to_embed, nowhere, nowhere, nowhere, files, None, 0
        )  # fmt: skip
    gone = live.copy()
    gone[first] = False
    if new_prefix:  # of other folders nothing is known
        gone &= pc.starts_with(_prefixed_keys(stored, old_prefix), new_prefix).to_numpy()
    gone[np.setdiff1d(known, first)] = True
    if not len(first) and gone.sum() == live.sum():
        raise StoreError(
            f"{state.folder}: none of its {state.count:,} images ({state.meta['source']}) is among those of {images.source}: "
            "mode=sync would replace them all. mode=add adds the new ones, overwrite=true (without mode=) builds the gallery anew."
        )
    changed, unknown, files, noted = _changed_files(state, images.manifest.paths, first, place[first])
    other = _other_facts(stored, table, first, place[first])
    copied = first[other & ~changed]
    gone[first[changed | other]] = True
    to_embed = np.flatnonzero(~is_known)
    to_embed = np.sort(np.concatenate([to_embed, place[first[changed]]]))
    files = _with_digests(files, images.manifest.paths, to_embed)
    return _Plan(
        table, root, old_prefix, new_prefix, is_known, to_embed, place[copied], copied, np.flatnonzero(gone), files, noted, unknown
    )  # fmt: skip


def _roots(state: State, new: Path, *, sync: bool) -> tuple[Path, str, str]:
    """The folder of all paths, and what comes before those in the gallery and those of the images."""
    old = Path(state.meta["root"])
    if not state.parts or old == new or os.path.realpath(old) == os.path.realpath(new):
        return new, "", ""
    if not old.exists() and _were_moved(state, new, sync=sync):
        return new, "", ""
    try:
        common = Path(os.path.commonpath([old, new]))
    except ValueError:  # another drive
        raise StoreError(
            f"the images of {state.folder} lie in {old}, which has no folder in common with {new}: give them a gallery of their "
            "own, output=<another folder>"
        ) from None
    prefixes = ["" if each == common else f"{each.relative_to(common).as_posix()}/" for each in (old, new)]
    return common, prefixes[0], prefixes[1]


def _were_moved(state: State, new: Path, *, sync: bool) -> bool:
    """Whether a gallery's images, which are not at their place any more, lie in the folder `new`.

    False where nothing lies there under their names.

    Args:
        sync: files that have changed are embedded again, so that it is enough if most are the same.

    Raises:
        StoreError: other files lie there under their names, or it can't be told whether they are others.
    """
    names = state.table["path"].filter(pa.array(state.live))
    before = state.files.filter(pa.array(state.live))
    paths = [f"{new}/{name}" for name in names.to_pylist()]
    facts = file_facts(paths)
    there = facts["size"] >= 0
    if not there.any():
        return False
    known = there & before["size"].is_valid().to_numpy()
    same = known & (_whole(before["size"]) == facts["size"])
    with_digest = before["digest"].is_valid().to_numpy()
    undecided = np.flatnonzero(same & (_whole(before["mtime_ns"]) != facts["mtime_ns"]) & with_digest)
    if len(undecided):
        earlier = before["digest"].take(pa.array(undecided)).to_pylist()
        same[undecided] = [one == other for one, other in zip(_digests(paths, undecided), earlier, strict=True)]
    other = np.flatnonzero(known & ~same)
    if same.sum() > (len(other) if sync else 0) and (sync or not len(other)):
        return True
    first = names[int(other[0] if len(other) else np.argmax(there))].as_py()
    why = (
        f"{len(other):,} of the {there.sum():,} files of the same names in {new} are others ({first})"
        if len(other)
        else f"of the files of the same names in {new} ({first}) it is not known whether they are the same"
    )
    changed = ", or, where some have changed, mode=sync" if len(other) and same.sum() > len(other) else ""
    place = state.meta["root"]
    raise StoreError(
        f"the images of {state.folder} lay in {place}, which is not there, and {why}. Other images: give them a gallery of their "
        f"own, output=<another folder>. The same ones, moved: make {place} a link to their folder{changed}."
    )


def _prefixed_keys(table: pa.Table, prefix: str) -> pa.ChunkedArray:
    text = pa.large_string()
    own = keys(table)
    return pc.binary_join_element_wise(pa.scalar(prefix, text), own, pa.scalar("", text)) if prefix else own


def _changed_files(
    state: State, paths: Sequence[str], stored: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, int, pa.Table, pa.Table | None]:
    """Which files of images that are stored have changed, of how many nothing was known, and what is known now.

    Args:
        stored, images: numbers of the same images here and there.

    Returns:
        bool (n,), a number, the files of all images, and those of all stored rows, or None where nothing is to be noted.
    """
    files, before = _files(paths, np.empty(0, np.int64)), state.files
    sizes, moments = (files[name].to_numpy()[images] for name in ("size", "mtime_ns"))
    times = _whole(before["mtime_ns"])
    digests = before["digest"]
    known = before["size"].is_valid().to_numpy()[stored] & before["mtime_ns"].is_valid().to_numpy()[stored]
    same_size = known & (_whole(before["size"])[stored] == sizes)
    same = same_size & (times[stored] == moments)
    with_digest = digests.is_valid().to_numpy()[stored]
    undecided = np.flatnonzero(same_size & ~same & with_digest)
    noted = None
    if len(undecided):
        found = _digests(paths, images[undecided])
        earlier = digests.take(pa.array(stored[undecided])).to_pylist()
        touched = undecided[[one == other for one, other in zip(found, earlier, strict=True)]]
        same[touched] = True
        if len(touched):
            times[stored[touched]] = moments[touched]
            valid = before["mtime_ns"].is_valid().to_numpy()
            noted = before.set_column(1, "mtime_ns", pa.array(times, pa.int64(), mask=~valid))
    return ~same, int((~known).sum()), files, noted


def _whole(values: pa.ChunkedArray) -> np.ndarray:
    """Whole numbers, 0 for none: exact where floats would not be."""
    return np.array(pc.fill_null(values, 0).to_numpy())


def _other_facts(stored: pa.Table, table: pa.Table, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Of which images the table says something else than the gallery: bool (n,)."""
    names = [name for name in stored.column_names if name != "path"]
    if {*names} != {*table.column_names} - {"path"}:
        return np.ones(len(rows), bool)
    other = np.zeros(len(rows), bool)
    for name in names:
        one, two = stored[name].to_numpy()[rows], table[name].to_numpy()[images]
        other |= (one != two) & ~((one != one) & (two != two))  # NaN: no time
    return other


def _files(paths: Sequence[str], hashed: np.ndarray) -> pa.Table:
    """Sizes and times of change of image files, with the digests of some."""
    facts = file_facts(paths)
    files = pa.table([facts["size"], facts["mtime_ns"], pa.nulls(len(paths), pa.binary())], names=[*FILE_COLUMNS])
    return _with_digests(files, paths, hashed)


def _with_digests(files: pa.Table, paths: Sequence[str], hashed: np.ndarray) -> pa.Table:
    if not len(hashed):
        return files
    digests: list[bytes | None] = [None] * len(files)
    for number, digest in zip(hashed.tolist(), _digests(paths, hashed), strict=True):
        digests[number] = digest
    return files.set_column(2, "digest", pa.array(digests, pa.binary()))


def _digests(paths: Sequence[str], numbers: np.ndarray) -> list[bytes | None]:
    """Digests of the content of files, each read once; None for one that can't be read."""
    wanted = [paths[number] for number in numbers.tolist()]
    different = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(usable_cores()) as threads:
        found = dict(zip(different, threads.map(_digest, different), strict=True))
    return [found[path] for path in wanted]


def _digest(path: str) -> bytes | None:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None


def _part_of(images: Images, rows: np.ndarray) -> Images:
    manifest = images.manifest.with_rows(images.manifest.table.iloc[rows].reset_index(drop=True))
    return Images(manifest, images.table.iloc[rows].reset_index(drop=True), images.source)


def _embedded(staging: Path, embedder: Embedder, images: Images, **options: Any) -> EmbeddingStore:
    """Embed images beside the gallery, or go on with that."""
    try:
        embed_into(staging, embedder, images, may_be_empty=True, **options)
    except StoreError:  # begun with other images or sizes
        clear_folder(staging)
        embed_into(staging, embedder, images, may_be_empty=True, **options)
    return EmbeddingStore.open(staging, verify=False)


def _new_rows(state: State, plan: _Plan, staged: EmbeddingStore | None) -> tuple[np.ndarray, NewRows | None]:
    """The images to append, and their rows, in the order of the images.

    They are those embedded now, and stored ones of which other facts are known.
    """
    matrices, image, number = [], [], []
    own = keys(plan.table)
    offset = 0
    if len(plan.to_copy):
        matrices += [each.embeddings for each in state.parts]
        image.append(plan.to_copy)
        number.append(plan.copies)
        offset = sum(len(each) for each in matrices)
    if staged is not None and len(staged):
        matrices.append(np.asarray(staged.embeddings))
        path = staged.table.assign(path=plan.new_prefix + staged.table["path"])
        image.append(places(keys(table_of(path)), own))
        number.append(np.arange(len(staged)) + offset)
    if not matrices:
        return np.empty(0, np.int64), None
    rows, numbers = np.concatenate(image), np.concatenate(number)
    order = np.argsort(rows, kind="stable")
    matrix = Rows(matrices, [None] * len(matrices), state.model.dimensions)
    rows, numbers = rows[order], numbers[order]
    return rows, NewRows(plan.table.take(rows), plan.files.take(rows), matrix, numbers)


def _source(state: State, images: Images, *, sync: bool) -> str:
    known = state.meta["source"]
    if sync or images.source in known.split(", "):
        return images.source if sync else known
    return f"{known}, {images.source}"


class _Skipped:
    """The list of the images that could not be read, `skipped.csv`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / SKIPPED
        self.table = pd.DataFrame({"path": [], "reason": []}, dtype=str)
        self._read(self._file)

    def _read(self, file: Path) -> None:
        try:
            found = pd.read_csv(file, dtype=str, keep_default_na=False)[["path", "reason"]]
        except (OSError, ValueError, KeyError):
            return
        self.table = pd.concat([self.table[~self.table["path"].isin(found["path"])], found], ignore_index=True)

    def update(self, staging: Path, plan: _Plan, *, sync: bool) -> None:
        """Leave out images that were embedded now, or are gone, and add those that could not be read now."""
        if plan.old_prefix:
            self.table["path"] = plan.old_prefix + self.table["path"]
        tried = plan.table["path"].take(pa.array(plan.to_embed)).to_pylist()
        self.table = self.table[~self.table["path"].isin(tried)]
        if sync:
            elsewhere = ~self.table["path"].str.startswith(plan.new_prefix)  # none where the prefix is empty
            self.table = self.table[elsewhere | self.table["path"].isin(plan.table["path"].to_pylist())]
        if (staging / SKIPPED).exists() and (staging / META).exists():
            fresh = pd.read_csv(staging / SKIPPED, dtype=str, keep_default_na=False)
            self.table = pd.concat([self.table, fresh.assign(path=plan.new_prefix + fresh["path"])], ignore_index=True)

    def write(self) -> None:
        """Write it, or delete it where nothing is left out."""
        if len(self.table):
            write_atomically(self._file, self.table.to_csv(index=False).encode())
        else:
            self._file.unlink(missing_ok=True)
