"""A gallery in the vector database Milvus: a local file, or a server that many searches share."""

import hashlib
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdbnet.gallery.indexes.exact import Allowed, GalleryIndex, GalleryIndexError
from bdbnet.gallery.rows import Rows
from bdbnet.retrieval.matrices import Array
from bdbnet.wording import counted

_BATCH_BYTES = 8 * 2**20  # of vectors per insertion; a server takes messages of up to 64 MiB
_QUERIES_PER_CALL = 1000
_IDS_PER_CALL = 1000
_DIFFERENCES_MB = 512  # Milvus Lite holds all differences of a call's queries and images where it has no index
_MOST = 16_384  # neighbours that Milvus gives for one query
_EF_CONSTRUCTION = 200  # nodes kept in view while the graph is built
_LARGEST_EF = 32_768
_EARLIEST = -1e299
_NO_TIME = -1e300  # a scalar field holds no NaN


class MilvusIndex(GalleryIndex):
    """A gallery in a collection of Milvus, which finds its neighbours.

    The collection's name is derived from the content, so that one is filled once and then found again, and several
    galleries can share a database. The collection of an earlier state of the gallery (`history`) is brought up to date: new
    images are inserted, those that are gone are deleted, then it gets the name of the new state; a search that has the
    earlier state open still finds all images that are still there. A collection with another number of images, as an
    interrupted build leaves it, is filled anew. One process at a time may fill a collection.

    Args:
        embeddings, cameras, times, distance, fingerprint: see `GalleryIndex`. Cameras and times become scalar fields.
        uri: a file whose name ends in `.db` (Milvus Lite, in this process), or a server's `http://host:19530`.
        token: of the server, `user:password` or a key; None: what the environment variable MILVUS_TOKEN holds.
        timeout: seconds to wait for a server's answer when connecting.
        links: links per node of its HNSW graph.
        ef_search: nodes of the graph kept in view during a search; a filter widens it.
        progress: called with the number of images inserted so far.

    Attributes:
        build_seconds: time that filling or bringing up to date took; None for a collection that was there.

    Raises:
        GalleryIndexError: pymilvus, or Milvus Lite for a local file, is not installed, or the address does not answer,
            refuses the token or reports an error.
        ValueError: what `GalleryIndex` refuses.
    """

    def __init__(
        self,
        embeddings: Array | Rows,
        *,
        uri: str | Path,
        cameras: Array | None = None,
        times: Array | None = None,
        distance: str = "euclidean",
        fingerprint: str | None = None,
        ids: np.ndarray | None = None,
        history: Sequence[tuple[str, int]] = (),
        token: str | None = None,
        timeout: float = 10,
        links: int = 32,
        ef_search: int = 128,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        super().__init__(
            embeddings,
            cameras=cameras,
            times=times,
            distance=distance,
            fingerprint=fingerprint,
            ids=ids,
            history=history,
        )
        for name, value in (("links", links), ("ef_search", ef_search)):
            if value < 1:
                raise GalleryIndexError(f"{name} must be at least 1, got {value}")
        self.uri, self.links, self.ef_search = str(uri), links, ef_search
        self._local = "://" not in self.uri
        self._client, self._library = self._connect(token or os.environ.get("MILVUS_TOKEN", ""), timeout)
        self.collection = self._name_of(len(self.history) - 1, self.fingerprint)
        try:
            if self._count() != len(self) and not self._extended(progress):
                self._fill(progress)
        except BaseException as error:
            self._client.close()
            if isinstance(error, self._library.MilvusException):
                raise GalleryIndexError(f"{self.uri}: Milvus could not store the gallery: {error.message}") from error
            raise

    def close(self) -> None:
        """End the connection; a local file can then be opened by another process."""
        self._client.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What its recall depends on."""
        return {"collection": self.collection, "ef_search": self.ef_search}

    def _connect(self, token: str, timeout: float) -> tuple[Any, Any]:
        library = _library(self._local)
        if self._local and not self.uri.endswith(".db"):
            raise GalleryIndexError(f"{self.uri}: give a file whose name ends in .db, or a server as http://host:19530")
        if self._local:
            Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            return library.MilvusClient(uri=self.uri, token=token, timeout=timeout), library
        except library.MilvusException as error:
            advice = (
                "is the file in use by another process, or no Milvus file?"
                if self._local
                else f"no Milvus answered within {timeout:g} s. Is the address right and the server running, and is the "
                "token in MILVUS_TOKEN valid?"
            )
            raise GalleryIndexError(f"{self.uri}: {advice} ({error.message})") from error

    def _name_of(self, number: int, fingerprint: str) -> str:
        """Name of the collection of a state: the gallery's first (number 0 or below), whose images are numbered by their rows,
        or a later one."""
        content = f"{self.links} {self.distance} {fingerprint}" + (" by id" if number > 0 else "")
        return f"bdbnet_{hashlib.sha256(content.encode()).hexdigest()[:24]}"

    def _count(self) -> int | None:
        if not self._client.has_collection(self.collection):
            return None
        if not self._client.list_indexes(self.collection):  # broken off between the last image and the index
            return None
        self._client.load_collection(self.collection)
        rows = self._client.query(self.collection, output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def _extended(self, progress: Callable[[int], object] | None) -> bool:
        """Bring the collection of the latest earlier state up to date, if there is one with an index.

        A process that is killed meanwhile leaves a collection that still has the earlier name; what it holds is looked up here
        again.
        """
        there = set(self._client.list_collections())
        names = [self._name_of(number, fingerprint) for number, (fingerprint, _) in enumerate(self.history)]
        earlier = [name for name in names if name in there and name != self.collection]
        if not earlier or not self._client.list_indexes(earlier[-1]):
            return False
        name, begin = earlier[-1], time.perf_counter()
        self._client.load_collection(name)
        ids = self._ids_in(name)
        gone, new = ids[self._rows_with(ids) < 0], np.flatnonzero(~np.isin(self.ids, ids))
        self._insert(name, new, progress)
        for first in range(0, len(gone), _IDS_PER_CALL):
            self._client.delete(name, ids=gone[first : first + _IDS_PER_CALL].tolist())
        self._client.flush(name)
        if self.collection in there:  # filled in part only
            self._client.drop_collection(self.collection)
        self._client.rename_collection(name, self.collection)
        if self._count() != len(self):  # it was not what its name says
            return False
        self.build_seconds = time.perf_counter() - begin
        self.built = f"{counted(len(new), 'image')} added and {len(gone):,} taken out in {self.build_seconds:.1f} s"
        return True

    def _ids_in(self, name: str) -> np.ndarray:
        pages = self._client.query_iterator(
            name, batch_size=_IDS_PER_CALL, filter="id >= 0", output_fields=["id"], consistency_level="Strong"
        )
        found: list[int] = []
        while page := pages.next():
            found += [row["id"] for row in page]
        pages.close()
        return np.array(found, np.int64)

    def _fill(self, progress: Callable[[int], object] | None) -> None:
        begin = time.perf_counter()
        kinds = self._library.DataType
        if self._client.has_collection(self.collection):
            self._client.drop_collection(self.collection)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=self.dimensions)
        schema.add_field("camera", kinds.INT64)
        schema.add_field("time", kinds.DOUBLE)
        self._client.create_collection(self.collection, schema=schema)
        self._insert(self.collection, None, progress)
        self._client.flush(self.collection)
        indexes = self._client.prepare_index_params()
        graph = {"M": self.links, "efConstruction": _EF_CONSTRUCTION}
        indexes.add_index("embedding", index_type="HNSW", metric_type="L2", params=graph)
        self._client.create_index(self.collection, indexes)  # after the insertions: it ends when the index is there
        self._client.load_collection(self.collection)
        self.build_seconds = time.perf_counter() - begin
        self.built = f"built in {self.build_seconds:.1f} s"

    def _insert(self, name: str, chosen: np.ndarray | None, progress: Callable[[int], object] | None) -> None:
        """Insert rows of the gallery, None for all."""
        cameras = np.full(len(self), -1) if self.cameras is None else self.cameras
        times = np.full(len(self), _NO_TIME) if self.times is None else np.nan_to_num(self.times, nan=_NO_TIME)
        done = 0
        for rows, vectors in self._comparable_parts(chosen, max(1, _BATCH_BYTES // (4 * self.dimensions))):
            facts = zip(self.ids[rows].tolist(), vectors, cameras[rows].tolist(), times[rows].tolist(), strict=True)
            self._client.insert(
                name,
                [
                    {"id": number, "embedding": vector, "camera": camera, "time": moment}
                    for number, vector, camera, moment in facts
                ],
            )
            done += len(rows)
            if progress is not None:
                progress(done)

    def _nearest(self, queries: np.ndarray, k: int, allowed: Allowed) -> np.ndarray:
        if k > _MOST:
            raise GalleryIndexError(
                f"k={k}: Milvus gives at most {_MOST:,} images for a query; use another engine for more"
            )
        found = np.full((len(queries), k), -1, np.int64)
        vectors = self._comparable(queries)
        ef_search = min(math.ceil(max(self.ef_search, k) / allowed.share), _LARGEST_EF)
        step = _QUERIES_PER_CALL
        if self._local:
            step = max(1, min(step, _DIFFERENCES_MB * 2**20 // (4 * self.embeddings.size)))
        expression = " and ".join(filter(None, [_expression(allowed), f"id <= {self.ids[-1]}" if self.history else ""]))
        for begin in range(0, len(vectors), step):
            try:
                lists = self._client.search(
                    self.collection,
                    list(vectors[begin : begin + step]),
                    anns_field="embedding",
                    limit=k,
                    filter=expression,
                    search_params={"params": {"ef": ef_search}},
                    output_fields=["id"],
                    consistency_level="Strong",
                )
            except self._library.MilvusException as error:
                raise GalleryIndexError(f"{self.uri}: Milvus could not search: {error.message}") from error
            for number, hits in enumerate(lists, begin):
                found[number, : len(hits)] = [hit["id"] for hit in hits]
        return np.where(found < 0, -1, self._rows_with(found))


def _expression(allowed: Allowed) -> str:
    """The filter in Milvus' words; "" for none."""
    parts = [] if allowed.not_camera is None else [f"camera != {allowed.not_camera}"]
    if allowed.cameras is not None:
        parts.append(f"camera in {[*map(int, allowed.cameras)]}")
    if allowed.after is not None or allowed.before is not None:
        parts.append(f"time >= {_EARLIEST if allowed.after is None else float(allowed.after)!r}")
    if allowed.before is not None:
        parts.append(f"time < {float(allowed.before)!r}")
    return " and ".join(parts)


def _library(local: bool) -> Any:
    """The module pymilvus."""
    try:
        library = importlib.import_module("pymilvus")
    except ImportError as error:
        raise GalleryIndexError('pymilvus is not installed: pip install "bdbnet[milvus]"') from error
    if local and importlib.util.find_spec("milvus_lite") is None:
        raise GalleryIndexError('Milvus Lite, which a local file needs, is not installed: pip install "bdbnet[milvus]"')
    return library
