"""Searching a gallery: what every index has in common, and the exact one, which compares with every image."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bdbnet.gallery.rows import Rows, blocks_of, give_back
from bdbnet.retrieval.distances import DISTANCES, distance_blocks, product
from bdbnet.retrieval.knn import smallest
from bdbnet.retrieval.matches import label_array
from bdbnet.retrieval.matrices import Array, Prepared, as_matrix, distances_between, on_cpu, prepared

_ROWS_PER_PASS = 8192  # rows that are widened or scaled at a time, so that a memory-mapped gallery stays on disk
_LARGEST_AT_ONCE = 2**30  # bytes of a gallery that is compared as a whole; a larger one is read once for all queries
_SPARE = 16  # images found beyond those wanted, whose exact distances then decide: those of a product are rounded
_QUERIES_PER_PASS = 1024  # of which the distances to a block are held
_SAMPLED = 1000


class GalleryIndexError(ValueError):
    """An index that cannot be built or searched this way; the message says why."""


@dataclass(frozen=True)
class Filter:
    """Which gallery images a search may find; by default all.

    Attributes:
        not_cameras: integers (Q,): query `i` finds no image of camera `not_cameras[i]`; -1 for a query that may find all.
        after, before: finds images with `after <= time < before`, in the unit of the gallery's times. Where one of them
            is set, images without a time are not found.
        cameras: finds images of these cameras alone; None: of all.
    """

    not_cameras: np.ndarray | None = None
    after: float | None = None
    before: float | None = None
    cameras: tuple[int, ...] | None = None


class Allowed(NamedTuple):
    """What queries with the same filter may find: the rows (bool (G,), None for all), and the filter itself."""

    rows: np.ndarray | None
    not_camera: int | None
    after: float | None
    before: float | None
    cameras: tuple[int, ...] | None = None

    @property
    def share(self) -> float:
        """Share of the gallery that may be found."""
        return 1.0 if self.rows is None else float(self.rows.mean())


class GalleryIndex(ABC):
    """Gallery embeddings that can be searched for the images nearest to a query.

    Args:
        embeddings: (G, D) floating point, NumPy or torch, or the `Rows` of a gallery; a memory-mapped matrix is never copied
            as a whole, and of one above 1 GiB only a block at a time is in memory, whose rows are checked when they are used.
        cameras: integers (G,), needed by `Filter.not_cameras`; -1 for an image without one.
        times: numbers (G,), needed by `Filter.after` and `before`; NaN for an image without one.
        distance: `euclidean` or `cosine`.
        fingerprint: of embeddings, cameras and times, where it is known; None: it is taken from them.
        ids, history: see `EmbeddingStore`. With them an index of an earlier state of the gallery is brought up to date instead
            of built anew, where the engine can.

    Attributes:
        build_seconds: time that building or bringing up to date took; None where there was nothing to do.
        built: in words what was done, and why.

    Raises:
        GalleryIndexError: an unknown distance, times of another length, a row with NaN or infinity, or one of zeros,
            which has no cosine.
        ValueError: no matrix of floating-point numbers, or cameras that are not one integer for each image.
    """

    def __init__(
        self,
        embeddings: Array | Rows,
        *,
        cameras: Array | None = None,
        times: Array | None = None,
        distance: str = "euclidean",
        fingerprint: str | None = None,
        ids: np.ndarray | None = None,
        history: Sequence[tuple[str, int]] = (),
    ) -> None:
        if distance not in DISTANCES:
            raise GalleryIndexError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.distance, self._known_fingerprint = distance, fingerprint
        self.build_seconds: float | None = None
        self.built = "kept from before"
        self.embeddings: np.ndarray | Rows
        if isinstance(embeddings, Rows) and embeddings.nbytes <= _LARGEST_AT_ONCE:
            embeddings = np.asarray(embeddings)
        self.embeddings = embeddings if isinstance(embeddings, Rows) else _numpy_matrix(embeddings, "gallery")
        if self.embeddings.nbytes <= _LARGEST_AT_ONCE:
            _check_rows(self.embeddings, "gallery", distance)
        count = len(self.embeddings)
        self.cameras = None if cameras is None else label_array(cameras, count, "gallery cameras")
        self.ids, self.history = np.arange(count) if ids is None else np.asarray(ids, np.int64), tuple(history)
        self.times = None if times is None else np.asarray(times, np.float64)
        if self.times is not None and self.times.shape != (count,):
            raise GalleryIndexError(
                f"gallery times must have shape ({count},), one for each embedding, got {self.times.shape}"
            )

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def dimensions(self) -> int:
        """Length D of an embedding."""
        return int(self.embeddings.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of embeddings, cameras and times, or the one that was given."""
        if self._known_fingerprint is not None:
            return self._known_fingerprint
        digest = hashlib.sha256(f"{self.embeddings.dtype} {self.embeddings.shape}".encode())
        for name, values in (("embeddings", self.embeddings), ("cameras", self.cameras), ("times", self.times)):
            if values is not None:
                digest.update(name.encode())
                for begin in range(0, len(values), _ROWS_PER_PASS):
                    digest.update(values[begin : begin + _ROWS_PER_PASS].tobytes())
        return digest.hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """What its recall depends on: the content and how it is searched."""
        return {"measure": self.distance, "fingerprint": self.fingerprint}

    def search(self, queries: Array, k: int, *, allowed: Filter | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest gallery images of every query, nearest first, ties in gallery order.

        An approximate index may miss some of them, but it finds as many as there are, and the distances are exact: they
        come from the embeddings themselves.

        Args:
            queries: (Q, D) embeddings.
            k: images wanted, at least 1.
            allowed: what may be found.

        Returns:
            Gallery indices int64 (Q, k) and distances float32 (Q, k): Euclidean, or 1 minus the cosine similarity; -1
            and infinity where fewer than `k` images may be found.

        Raises:
            GalleryIndexError: `k` below 1, bad queries, or a filter on a column that the gallery does not have.
            ValueError: queries that are no matrix of floating-point numbers.
        """
        if k < 1:
            raise GalleryIndexError(f"k must be at least 1, got {k}")
        # In the gallery's precision: another one would have the whole gallery copied.
        vectors = _checked(queries, "query", self.distance).astype(self.embeddings.dtype, copy=False)
        if vectors.shape[1] != self.dimensions:
            raise GalleryIndexError(
                f"query embeddings have {vectors.shape[1]} dimensions, gallery embeddings {self.dimensions}"
            )
        indices = np.full((len(vectors), k), -1, np.int64)
        distances = np.full((len(vectors), k), np.inf, np.float32)
        for members, part in self._groups(len(vectors), allowed or Filter()):
            there = min(k, len(self) if part.rows is None else int(part.rows.sum()))
            if there == 0:
                continue
            group = vectors[members]
            found = self._nearest(group, there, part)
            short = (found < 0).any(axis=1)  # an approximate index looks into a part of the gallery
            if short.any():
                found[short] = self._exactly(group[short], there, part.rows)
            away = np.empty(found.shape, np.float32)
            for number, near in enumerate(found):
                away[number] = distances_between(group[number, None], self.embeddings[near], self.distance)
            order = np.lexsort((found, away))
            indices[members, :there] = np.take_along_axis(found, order, 1)
            distances[members, :there] = np.take_along_axis(away, order, 1)
        return indices, distances

    def sampled(self) -> np.ndarray:
        """Embeddings of at most 1,000 gallery images, evenly spread."""
        found = self.embeddings[self._sampled_rows()]
        if isinstance(self.embeddings, np.ndarray):
            give_back(self.embeddings)
        return found

    def _sampled_rows(self) -> np.ndarray:
        return np.unique(np.linspace(0, len(self) - 1, min(_SAMPLED, len(self))).astype(np.int64))

    @cached_property
    def _prepared(self) -> Prepared:
        return prepared(np.asarray(self.embeddings))

    @cached_property
    def _offset(self) -> np.ndarray | None:
        """What is taken from all embeddings so that rounding does no harm, see `matrices.centred`, decided by some of them."""
        if self.distance != "euclidean":
            return None
        sample = self.sampled()
        _check_block(self._sampled_rows(), sample, "gallery", self.distance)
        offset = prepared(sample).offset
        return None if offset is None else on_cpu(offset)

    def _exactly(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
        """Indices (Q, k) of the nearest gallery images among `rows`, of which there are at least `k`."""
        if self.embeddings.nbytes > _LARGEST_AT_ONCE:
            return self._in_one_pass(queries, k, rows)
        found = np.empty((len(queries), k), np.int64)
        left_out = None if rows is None else ~rows
        for begin, block in distance_blocks(queries, self._prepared, distance=self.distance):
            if left_out is not None:
                block[:, left_out] = np.inf
            found[begin : begin + len(block)] = smallest(block, k)
        return found

    def _in_one_pass(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
        """`_exactly` of a large gallery, which is read once, a block at a time, whatever the number of queries."""
        most = min(k + _SPARE, len(self))
        values = np.full((len(queries), most), np.inf, self.embeddings.dtype)
        found = np.full((len(queries), most), -1, np.int64)
        centred = queries if self._offset is None else queries - self._offset
        unit = queries.dtype.type
        scaled = (
            -queries / np.linalg.norm(queries, axis=1, keepdims=True)
            if self.distance == "cosine"
            else centred * unit(-2)
        )
        for begin, block in blocks_of(self.embeddings, _ROWS_PER_PASS):
            there = None if rows is None else np.flatnonzero(rows[begin : begin + len(block)])
            if there is not None and not len(there):
                continue
            part = np.ascontiguousarray(block if there is None or len(there) == len(block) else block[there])
            part = part if self._offset is None else part - self._offset
            squared = np.einsum("ij,ij->i", part, part)
            if not np.isfinite(squared).all() or (self.distance == "cosine" and not squared.all()):
                _check_block(np.arange(begin, begin + len(block)), block, "gallery", self.distance)
            for first in range(0, len(queries), _QUERIES_PER_PASS):
                own = slice(first, first + _QUERIES_PER_PASS)
                away = np.empty((len(scaled[own]), len(part)), part.dtype)
                product(scaled[own], part, away)
                if self.distance == "cosine":
                    away /= np.sqrt(squared)
                else:
                    away += squared
                near = smallest(away, min(most, len(part)))
                numbers = near + begin if there is None else there[near] + begin
                _keep_smallest(values[own], found[own], np.take_along_axis(away, near, 1), numbers)
        chosen = np.empty((len(queries), k), np.int64)
        for number, near in enumerate(found):
            near = near[near >= 0]
            exact = distances_between(queries[number, None], self.embeddings[near], self.distance)
            chosen[number] = near[np.lexsort((near, exact))[:k]]
        return chosen

    @abstractmethod
    def _nearest(self, queries: np.ndarray, k: int, allowed: Allowed) -> np.ndarray:
        """Gallery indices int64 (Q, k) in any order, -1 for what was not found; at least `k` images may be found."""

    def _comparable(self, vectors: np.ndarray) -> np.ndarray:
        """float32 vectors whose Euclidean distances have the order of the distance."""
        if self.distance == "cosine":
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors, np.float32)

    def _comparable_parts(
        self, chosen: np.ndarray | None = None, rows: int = _ROWS_PER_PASS
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of rows and their comparable vectors, so many at a time: of the rows `chosen`, None for all."""
        if chosen is None:
            for begin, block in blocks_of(self.embeddings, rows):
                yield (
                    np.arange(begin, begin + len(block)),
                    self._comparable_rows(np.arange(begin, begin + len(block)), block),
                )
            return
        for begin in range(0, len(chosen), rows):
            numbers = chosen[begin : begin + rows]
            yield numbers, self._comparable_rows(numbers, self.embeddings[numbers])

    def _comparable_rows(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Comparable vectors of these rows of the gallery, checked."""
        _check_block(numbers, rows, "gallery", self.distance)
        return self._comparable(rows)

    def _rows_with(self, ids: np.ndarray) -> np.ndarray:
        """The row of each of these numbers of images, -1 where the gallery has no such image."""
        place = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where(self.ids[place] == ids, place, -1)

    def _groups(self, count: int, allowed: Filter) -> Iterator[tuple[np.ndarray, Allowed]]:
        """Query numbers that may find the same images, and what they may find."""
        window = None
        if allowed.after is not None or allowed.before is not None:
            if self.times is None:
                raise GalleryIndexError("the gallery has no times: leave out after and before")
            window = ~np.isnan(self.times)
            window &= True if allowed.after is None else self.times >= allowed.after
            window &= True if allowed.before is None else self.times < allowed.before
        if (allowed.cameras is not None or allowed.not_cameras is not None) and self.cameras is None:
            name = "not_cameras" if allowed.cameras is None else "cameras"
            raise GalleryIndexError(f"the gallery has no cameras: leave out {name}")
        if allowed.cameras is not None and self.cameras is not None:
            chosen = np.isin(self.cameras, allowed.cameras)
            window = chosen if window is None else window & chosen
        if allowed.not_cameras is None:
            yield np.arange(count), Allowed(window, None, allowed.after, allowed.before, allowed.cameras)
            return
        left_out = label_array(allowed.not_cameras, count, "not_cameras")
        for camera in np.unique(left_out):
            other = None if camera < 0 else self.cameras != camera
            rows = other if window is None else window if other is None else window & other
            left = None if camera < 0 else int(camera)
            members = np.flatnonzero(left_out == camera)
            yield members, Allowed(rows, left, allowed.after, allowed.before, allowed.cameras)


class ExactIndex(GalleryIndex):
    """Compares each query with every image of the gallery; there is nothing to build and nothing it can miss."""

    def _nearest(self, queries: np.ndarray, k: int, allowed: Allowed) -> np.ndarray:
        return self._exactly(queries, k, allowed.rows)


def _keep_smallest(values: np.ndarray, numbers: np.ndarray, more: np.ndarray, their: np.ndarray) -> None:
    """Keep, in place, the smallest of `values` (n, m) and `more`, and their numbers, each in order of value, then of number."""
    all_values, all_numbers = np.concatenate([values, more], 1), np.concatenate([numbers, their], 1)
    order = np.argsort(all_values, axis=1, kind="stable")[:, : values.shape[1]]
    values[:], numbers[:] = np.take_along_axis(all_values, order, 1), np.take_along_axis(all_numbers, order, 1)


def _checked(embeddings: Array, name: str, distance: str) -> np.ndarray:
    """A NumPy matrix whose rows can all be compared."""
    matrix = _numpy_matrix(embeddings, name)
    _check_rows(matrix, name, distance)
    return matrix


def _numpy_matrix(embeddings: Array, name: str) -> np.ndarray:
    matrix = as_matrix(embeddings, name)
    return matrix.cpu().numpy() if isinstance(matrix, Tensor) else matrix


def _check_rows(matrix: np.ndarray | Rows, name: str, distance: str) -> None:
    for begin, rows in blocks_of(matrix, _ROWS_PER_PASS):
        _check_block(np.arange(begin, begin + len(rows)), rows, name, distance)


def _check_block(numbers: np.ndarray, rows: np.ndarray, name: str, distance: str) -> None:
    """Raise GalleryIndexError, which gives the number of the row, unless all can be compared."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise GalleryIndexError(f"{name} embedding {numbers[finite.argmin()]} contains NaN or infinity")
    if distance == "cosine" and not (pointing := rows.any(axis=1)).all():
        row = numbers[pointing.argmin()]
        raise GalleryIndexError(f"{name} embedding {row} is all zeros and so has no direction for the cosine distance")
