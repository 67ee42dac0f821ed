"""Matches: which gallery images a query should find, and which do not count for it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdbnet.retrieval.matrices import Array


class Ragged(NamedTuple):
    """Some columns of each row: those of row `i` are next to each other in `columns`, ascending; `counts` (rows,)."""

    columns: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The row of each column."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> np.ndarray:
        """Where each row's columns begin."""
        starts: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts


class Table(NamedTuple):
    """Gallery images of each query's label as tensors (queries, M), in gallery order; shorter rows repeat their last image.

    Attributes:
        columns: int64, gallery indices; some other image's where the gallery has none of the label.
        positive: bool, False where an image is repeated.
        left_out: bool, True for repeated ones too.
        some: bool (queries, 1), whether the gallery has images of the label.
    """

    columns: Tensor
    positive: Tensor
    left_out: Tensor
    some: Tensor


def label_array(values: Array, count: int, name: str) -> np.ndarray:
    """Labels or cameras as int64 (count,); raises `ValueError` for another shape, length or a non-integer dtype."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) != count:
        raise ValueError(f"{name} must have shape ({count},), one for each embedding, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64, copy=False)


class Matches:
    """Which gallery images a query should find and which ones do not count for it.

    A positive has the query's label. Left out of the ranking are, where cameras are given, the images with the query's
    label and camera, and with `same_set`, where queries and gallery are one list of images, the query itself.
    With `next_camera` the images of the camera with the next number count, whatever their label, and no others: where the
    frames of a video are its cameras, everybody in the next frame.

    Args:
        query_labels, gallery_labels: int64 (Q,) and (G,).
        query_cameras, gallery_cameras: int64 (Q,) and (G,), or None for both.
        same_set: query `i` is gallery image `i`.
        next_camera: a query is searched for in the next camera alone; needs cameras.
    """

    def __init__(
        self,
        query_labels: np.ndarray,
        gallery_labels: np.ndarray,
        query_cameras: np.ndarray | None = None,
        gallery_cameras: np.ndarray | None = None,
        *,
        same_set: bool = False,
        next_camera: bool = False,
    ) -> None:
        if (query_cameras is None) != (gallery_cameras is None):
            raise ValueError("cameras are given for queries or gallery only: give both or none")
        if next_camera and query_cameras is None:
            raise ValueError("searching in the next camera needs the cameras of queries and gallery")
        self.query_labels, self.gallery_labels = query_labels, gallery_labels
        self.query_cameras, self.gallery_cameras = query_cameras, gallery_cameras
        self._same_set = same_set
        self.next_camera = next_camera
        # A stable sort keeps the images of one label in gallery order.
        self._by_label = np.argsort(gallery_labels, kind="stable")
        sorted_labels = gallery_labels[self._by_label]
        self._begin = np.searchsorted(sorted_labels, query_labels, "left")
        self._end = np.searchsorted(sorted_labels, query_labels, "right")

    @classmethod
    def of_labels(
        cls,
        query_labels: Array,
        gallery_labels: Array,
        query_cameras: Array | None = None,
        gallery_cameras: Array | None = None,
        *,
        sizes: tuple[int, int],
        same_set: bool = False,
        next_camera: bool = False,
    ) -> "Matches":
        """The same from labels and cameras of any integer type, NumPy or torch, for `sizes` queries and gallery images.

        Raises `ValueError`: see `label_array`.
        """
        queries, images = sizes
        return cls(
            label_array(query_labels, queries, "query labels"),
            label_array(gallery_labels, images, "gallery labels"),
            None if query_cameras is None else label_array(query_cameras, queries, "query cameras"),
            None if gallery_cameras is None else label_array(gallery_cameras, images, "gallery cameras"),
            same_set=same_set,
            next_camera=next_camera,
        )

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Gallery indices of the query's positives and of the images left out, both ascending."""
        positives, left_out = self.of_queries(query, query + 1)
        return positives.columns, left_out.columns

    def of_queries(self, begin: int, end: int) -> tuple[Ragged, Ragged]:
        """Positives and images left out of the queries from `begin` to `end`."""
        queries = np.arange(begin, end)
        counts = self._end[begin:end] - self._begin[begin:end]
        of = np.repeat(queries, counts)
        within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        same = self._by_label[self._begin[of] + within]
        if self.next_camera:
            assert self.query_cameras is not None
            assert self.gallery_cameras is not None
            wanted = self.query_cameras[begin:end] + 1
            there = self.gallery_cameras[same] == wanted[of - begin]
            elsewhere = self.gallery_cameras != wanted[:, None]
            positives = Ragged(same[there], np.bincount(of[there] - begin, minlength=len(queries)))
            return positives, Ragged(np.nonzero(elsewhere)[1], elsewhere.sum(axis=1))
        left_out = same == of if self._same_set else np.zeros(len(same), bool)
        if self.query_cameras is not None and self.gallery_cameras is not None:
            left_out |= self.gallery_cameras[same] == self.query_cameras[of]
        left = np.bincount(of[left_out] - begin, minlength=len(queries))
        return Ragged(same[~left_out], counts - left), Ragged(same[left_out], left)

    def on(self, device: torch.device) -> "DeviceMatches":
        """The same as tensors on a device.  Raises ValueError with `next_camera`, where most images are left out."""
        if self.next_camera:
            raise ValueError("images of the next camera alone are ranked on the CPU")
        by_label, begin, end = (
            torch.from_numpy(values).to(device) for values in (self._by_label, self._begin, self._end)
        )
        cameras = None
        if self.query_cameras is not None and self.gallery_cameras is not None:
            cameras = torch.from_numpy(self.query_cameras).to(device), torch.from_numpy(self.gallery_cameras).to(device)
        most = max(1, int((self._end - self._begin).max()))
        return DeviceMatches(by_label, begin, end, cameras, most=most, same_set=self._same_set)


class DeviceMatches:
    """Positives and images left out as tables on a device.

    Args:
        by_label: gallery indices (G,) ordered by label.
        begin, end: places (Q,) in `by_label` between which the images of each query's label are.
        cameras: of the queries (Q,) and of the gallery (G,); None: not known.
        most: number of images of the commonest label.
        same_set: whether query and gallery are the same images.
    """

    def __init__(
        self,
        by_label: Tensor,
        begin: Tensor,
        end: Tensor,
        cameras: tuple[Tensor, Tensor] | None,
        *,
        most: int,
        same_set: bool,
    ) -> None:
        self._by_label, self._begin, self._end = by_label, begin, end
        self._cameras = cameras
        self.most, self._same_set = most, same_set
        self._slots = torch.arange(most, device=by_label.device)

    def of_queries(self, begin: int, end: int) -> Table:
        """The table of the queries from `begin` to `end`."""
        first, last = self._begin[begin:end, None], self._end[begin:end, None] - 1
        place = first + self._slots
        columns = self._by_label[place.minimum(last).clamp_(0, len(self._by_label) - 1)]
        left_out = torch.zeros_like(columns, dtype=torch.bool)
        if self._same_set:
            left_out |= columns == torch.arange(begin, end, device=columns.device)[:, None]
        if self._cameras is not None:
            asked, shown = self._cameras
            left_out |= shown[columns] == asked[begin:end, None]
        some = first <= last
        return Table(columns, (place <= last) & ~left_out, left_out & some, some)
