"""The gallery that is served: its store, indexes and network, kept up with the folder while the server runs."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdbnet.checked import read_json
from bdbnet.datasets import BOX_COLUMNS
from bdbnet.datasets.images import Box, ImageError, image_size, read_image
from bdbnet.evaluation.embedder import Embedder, EmbeddingError
from bdbnet.evaluation.inputs import InputError, boxes_in
from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndex, GalleryIndexError
from bdbnet.gallery.indexes.faiss import KINDS, FaissIndex
from bdbnet.gallery.marks import marking_of
from bdbnet.gallery.searching import index_columns
from bdbnet.gallery.store import META, EmbeddingStore
from bdbnet.reporting.run_folder import file_below
from bdbnet.serving.errors import RequestError, UnavailableError
from bdbnet.serving.pictures import jpeg
from bdbnet.serving.uploads import Upload

_LOOK_EVERY = 1.0  # seconds between looks at the folder
_PATIENCE = 0.2  # seconds after a change was found that requests wait for it: a small gallery is opened by then
MOST_BOXES = 256  # of one request


@dataclass(frozen=True, eq=False)
class _Opened:
    """A gallery as it was at one moment, and what identifies that moment."""

    store: EmbeddingStore
    indexes: Mapping[str, GalleryIndex]
    state: tuple[int, int, int]


class ServedGallery:
    """What the server answers from. All methods block, and may be called by several threads at once.

    Args:
        store: the gallery.
        embedder: the network that embedded it.
        distance: `euclidean` or `cosine`.
        index_folder: where `bdbnet.search` keeps the files of FAISS indexes; those that are there and fit become engines.
        verify: compare the gallery with its fingerprint whenever it is opened anew.

    Raises:
        GalleryIndexError: embeddings that the distance can't compare.
    """

    def __init__(
        self, store: EmbeddingStore, embedder: Embedder, *, distance: str, index_folder: Path, verify: bool = True
    ) -> None:
        self.folder, self.embedder, self.distance = store.folder, embedder, distance
        self.fingerprint = store.model.fingerprint
        self.marks, self.marking = marking_of(store.model, distance, embedder)
        self._index_folder, self._verify = index_folder, verify
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._problem: UnavailableError | None = None
        self._opening: threading.Thread | None = None
        self._opened = self._open(store, _state(store.folder))

    # Keeping up with the folder

    def opened(self) -> _Opened:
        """The gallery as it is now. Where it has changed it is opened anew beside the requests, which get the state before until
        the new one is there.

        Raises:
            UnavailableError: it was deleted, is damaged, or another network embedded it.
        """
        with self._lock:
            if self._opening is None and time.monotonic() - self._looked >= _LOOK_EVERY:
                self._looked = time.monotonic()
                self._look()
            opening, patience = self._opening, self._looked + _PATIENCE - time.monotonic()
        if opening is not None and patience > 0:
            opening.join(patience)
        with self._lock:
            if self._problem is not None:
                raise self._problem
            return self._opened

    def _look(self) -> None:
        """See whether the gallery is still there and the same; start a thread that opens it where it has changed."""
        try:
            state = _state(self.folder)
        except FileNotFoundError:
            self._problem = self._gone()
            return
        except OSError as error:
            self._problem = UnavailableError(f"the gallery can't be used: {error}")
            return
        if state == self._opened.state:
            self._problem = None
            return
        self._opening = threading.Thread(target=self._reopen, args=(state,), name="open gallery", daemon=True)
        self._opening.start()

    def _reopen(self, state: tuple[int, int, int]) -> None:
        opened, problem = None, None
        try:
            store = EmbeddingStore.open(self.folder, verify=self._verify)
            if store.model.fingerprint == self.fingerprint:
                opened = self._open(store, state)
            else:
                problem = UnavailableError(
                    f"the gallery {self.folder} is now one of another network, {store.model.shown}; this server runs "
                    f"{self.embedder.origin.source}. Start the server again to use it."
                )
        except FileNotFoundError:
            problem = self._gone()
        except Exception as error:  # in this thread nobody else would say it
            problem = UnavailableError(f"the gallery can't be used: {error}")
        with self._lock:
            self._opened, self._problem, self._opening = opened or self._opened, problem, None

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            f"the gallery {self.folder} was deleted or moved while the server runs. Put it back, or start the server again with "
            "another one: index=FOLDER"
        )

    def _open(self, store: EmbeddingStore, state: tuple[int, int, int]) -> _Opened:
        columns = index_columns(store, self.distance)
        indexes: dict[str, GalleryIndex] = {"exact": ExactIndex(store.embeddings, **columns)}
        for kind in KINDS:
            options = self._kept(kind, store)
            if options is not None:
                with suppress(GalleryIndexError, OSError):  # built anew it would take long
                    indexes[f"faiss_{kind}"] = FaissIndex(
                        store.embeddings, kind=kind, folder=self._index_folder, build=False, **options, **columns
                    )
        return _Opened(store, indexes, state)

    def _kept(self, kind: str, store: EmbeddingStore) -> dict[str, Any] | None:
        """The settings of the FAISS index that is kept for this gallery or an earlier state of it; None where there is none."""
        try:
            record = read_json(self._index_folder / f"faiss-{kind}.json")
            states = {store.fingerprint, *(fingerprint for fingerprint, _ in store.history)}
            fits = record["measure"] == self.distance and record["fingerprint"] in states
            name = "lists" if kind == "ivf" else "links"
            options = {name: int(record[name])} if fits else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if options is not None:
            try:
                import faiss  # noqa: F401
            except ImportError:
                return None
        return options

    # Searching

    def embed(self, upload: Upload, boxes: Sequence[Sequence[float]] = ()) -> np.ndarray:
        """Embeddings (N, D) of an image, or of N boxes in it: x1, y1, x2, y2 in pixels of the upright image.

        Raises:
            RequestError: a damaged image, or a box without a pixel in it.
        """
        try:
            found = boxes_in(upload.height, upload.width, np.asarray(boxes, np.float64).reshape(-1, 4))
            preprocessing = self.embedder.preprocessing
            if not found:
                return self._embedded([upload.decoded(preprocessing)])
            if len(found) == 1:
                return self._embedded([upload.decoded(preprocessing, found[0])])
            pixels = upload.decoded(preprocessing, (0, 0, upload.width, upload.height))  # in full, once
            return self._embedded([pixels[top:bottom, left:right] for left, top, right, bottom in found])
        except InputError as error:
            raise RequestError(422, str(error)) from error

    def embed_row(self, row: int, box: Sequence[float] | None = None, state: str | None = None) -> np.ndarray:
        """Embeddings (1, D) of an image of the gallery: as stored, or of a box in it, which is read anew.

        Args:
            state: fingerprint of the gallery in which the row was seen: in another state it may be another image.

        Raises:
            RequestError: no such row, no pixel in the box, an image file that is not there or not readable, or another state.
        """
        store = self._store(state)
        self._check_row(store, row)
        if box is None:
            return np.array(store.embeddings[row : row + 1])
        file, own = self._file(store, row)
        try:
            pixels = read_image(file, box=own)
            left, top, right, bottom = boxes_in(pixels.shape[0], pixels.shape[1], [[*box]])[0]
            return self._embedded([pixels[top:bottom, left:right]])
        except ImageError as error:
            raise _not_readable(row) from error
        except InputError as error:
            raise RequestError(422, str(error)) from error

    def search(
        self, query: np.ndarray, k: int, engine: str = "exact", allowed: Filter | None = None, *, but: int | None = None
    ) -> list[dict[str, Any]]:
        """The `k` images of the gallery nearest to the query (1, D), nearest first, each as `facts` with `rank`, `distance`
        and `same`: `same`, `unsure`, `not same`, or None where no threshold is known.

        Args:
            but: row that is not found: the query's own.

        Raises:
            RequestError: an engine that is not there, or a filter on what the gallery does not know.
        """
        opened = self.opened()
        if engine not in opened.indexes:
            raise RequestError(422, f"engine={engine}: choose one of {', '.join(opened.indexes)}")
        try:
            found, away = opened.indexes[engine].search(
                query, min(k + (but is not None), len(opened.store)), allowed=allowed
            )
        except GalleryIndexError as error:
            raise RequestError(422, str(error)) from error
        hits = [(int(row), float(far)) for row, far in zip(found[0], away[0], strict=True) if row >= 0 and row != but][
            :k
        ]
        return [
            {
                "rank": rank,
                "distance": far,
                "same": None if self.marks is None else str(self.marks.of(far)),
                **facts(opened.store.table, row),
            }
            for rank, (row, far) in enumerate(hits, 1)
        ]

    # Looking

    def info(self) -> dict[str, Any]:
        """What the gallery is and what can be asked of it."""
        opened = self.opened()
        store, table = opened.store, opened.store.table
        cameras, times = table.get("camera"), table.get("time")
        counted = (
            [] if cameras is None else np.column_stack(np.unique(cameras[cameras >= 0], return_counts=True)).tolist()
        )
        known = None if times is None or times.notna().sum() == 0 else (times.min(), times.max())
        return {
            "name": self.folder.resolve().name,
            "images": len(store),
            "dimensions": store.dimensions,
            "network": store.model.shown,
            "image_size": [*store.model.image_size],
            "fingerprint": store.fingerprint,
            "distance": self.distance,
            "engines": [*opened.indexes],
            "cameras": [{"camera": int(camera), "images": int(count)} for camera, count in counted],
            "times": None if known is None else [_moment(known[0]), _moment(known[1])],
            "same": None if self.marks is None else {"threshold": self.marks.threshold, "source": self.marks.source},
        }

    def images(self, offset: int, limit: int, allowed: Filter) -> dict[str, Any]:
        """A part of the gallery's images in its order, those that a filter allows: `total` and `images`, each as `facts`.  Raises
        RequestError for a filter by what the gallery's table does not say."""
        store = self.opened().store
        table = store.table
        rows = np.ones(len(table), bool)
        for column, wanted in (("camera", allowed.cameras), ("time", allowed.after), ("time", allowed.before)):
            if wanted is not None and column not in table:
                raise RequestError(422, f"the gallery has no {column}s: leave the filter out")
        if allowed.cameras is not None:
            rows &= table["camera"].isin(allowed.cameras).to_numpy()
        if allowed.after is not None:
            rows &= (table["time"] >= allowed.after).to_numpy()
        if allowed.before is not None:
            rows &= (table["time"] < allowed.before).to_numpy()
        chosen = np.flatnonzero(rows)
        shown = [facts(table, int(row)) for row in chosen[offset : offset + limit]]
        return {"total": len(chosen), "fingerprint": store.fingerprint, "images": shown}

    def image(self, row: int, state: str | None = None) -> dict[str, Any]:
        """The facts of one image, with `height` and `width` in pixels; `state` as in `embed_row`.  Raises RequestError."""
        store = self._store(state)
        self._check_row(store, row)
        file, box = self._file(store, row)
        try:
            height, width = image_size(file)
        except ImageError as error:
            raise _not_readable(row) from error
        if box is not None:
            left, top, right, bottom = box
            height, width = min(bottom, height) - max(top, 0), min(right, width) - max(left, 0)
        return {**facts(store.table, row), "height": height, "width": width, "fingerprint": store.fingerprint}

    def picture(self, row: int, size: int, state: str | None = None) -> bytes:
        """An image of the gallery as JPEG that fits `size` x `size` pixels; `state` as in `embed_row`.  Raises RequestError."""
        store = self._store(state)
        self._check_row(store, row)
        file, box = self._file(store, row)
        try:
            return jpeg(file, box, size)
        except (OSError, ValueError) as error:  # ImageError too
            raise _not_readable(row) from error

    # Inside

    def _store(self, state: str | None) -> EmbeddingStore:
        """The gallery as it is now.  Raises RequestError if a client speaks of another state of it."""
        store = self.opened().store
        if state is not None and state != store.fingerprint:
            raise RequestError(
                409, "the gallery has changed, and its rows may be other images now: ask /api/info again"
            )
        return store

    def _embedded(self, images: Sequence[np.ndarray]) -> np.ndarray:
        try:
            return self.embedder.embed([*images], progress=False)
        except EmbeddingError as error:
            raise RequestError(500, str(error)) from error

    def _check_row(self, store: EmbeddingStore, row: int) -> None:
        if not 0 <= row < len(store):
            raise RequestError(404, f"there is no image {row}: the gallery has the rows 0 to {len(store) - 1}")

    def _file(self, store: EmbeddingStore, row: int) -> tuple[Path, Box | None]:
        """The file of an image, which lies in the gallery's folder of images, and the box that is the image."""
        try:
            file = file_below(store.root, store.table["path"].iloc[row])
        except (OSError, ValueError):
            file = None
        if file is None:
            raise RequestError(404, f"the file of image {row} is not in the folder of the gallery's images any more")
        if BOX_COLUMNS[0] not in store.table:
            return file, None
        left, top, right, bottom = (int(store.table[column].iloc[row]) for column in BOX_COLUMNS)
        return file, (left, top, right, bottom)


def facts(table: pd.DataFrame, row: int) -> dict[str, Any]:
    """What the gallery knows of an image: `row`, which is its id, `name`, and `label`, `camera`, `time` or None."""
    known: dict[str, Any] = {"row": row, "name": "/".join(str(table["path"].iloc[row]).split("/")[-2:])}
    known["label"] = int(table["label"].iloc[row]) if "label" in table else None
    camera = int(table["camera"].iloc[row]) if "camera" in table else -1
    known["camera"] = camera if camera >= 0 else None
    known["time"] = _moment(table["time"].iloc[row]) if "time" in table else None
    return known


def _moment(seconds: float) -> str | None:
    """A time as ISO 8601 in UTC.

    >>> _moment(0), _moment(float("nan"))
    ('1970-01-01T00:00:00+00:00', None)
    """
    if not np.isfinite(seconds):
        return None
    try:
        return datetime.fromtimestamp(float(seconds), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _not_readable(row: int) -> RequestError:
    return RequestError(404, f"the file of image {row} can't be read any more")


def _state(folder: Path) -> tuple[int, int, int]:
    """What tells that a gallery is the one that was opened: `meta.json` is written last.  Raises FileNotFoundError."""
    status = (folder / META).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
