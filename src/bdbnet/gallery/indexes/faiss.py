"""An approximate index of the FAISS library, kept in a file (Douze et al., The Faiss library, 2024)."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bdbnet.checked import read_json
from bdbnet.gallery.indexes.exact import Allowed, GalleryIndex, GalleryIndexError
from bdbnet.gallery.rows import Rows
from bdbnet.regular_files import require_regular
from bdbnet.results import write_atomically
from bdbnet.retrieval.matrices import Array

KINDS = ("ivf", "hnsw")

_EF_CONSTRUCTION = 80  # neighbours looked at while the graph is built; more cost time and gain little recall


class FaissIndex(GalleryIndex):
    """A gallery behind a FAISS index of one of two kinds, which hold all vectors in full.

    - `ivf`: the gallery is cut into lists around k-means centres; a search reads the lists nearest to the query.
    - `hnsw`: a graph of near neighbours that a search walks through (Malkov & Yashunin, TPAMI 2020); slower to build,
      faster to search.

    A filter widens the search: as many more lists or nodes are looked at as it leaves out images.

    Args:
        embeddings, cameras, times, distance, fingerprint: see `GalleryIndex`.
        kind: `ivf` or `hnsw`.
        folder: where the index is kept as `faiss-<kind>.index`, with its description beside it. An index of the same
            gallery and settings is read from there, any other is replaced. None: it is built and not kept.
        lists: ivf: number of lists; None for 4 times the square root of the gallery's size.
        probes: ivf: lists read per search.
        links: hnsw: links per node.
        ef_search: hnsw: nodes kept in view during a search.

    Attributes:
        build_seconds: time the building took; None for an index that was read from its file.

    Raises:
        GalleryIndexError: FAISS is not installed, or a setting below 1, or more lists than images.
        ValueError: what `GalleryIndex` refuses.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        embeddings: Array | Rows,
        *,
        cameras: Array | None = None,
        times: Array | None = None,
        distance: str = "euclidean",
        fingerprint: str | None = None,
        kind: str = "ivf",
        folder: str | Path | None = None,
        lists: int | None = None,
        probes: int = 32,
        links: int = 32,
        ef_search: int = 128,
    ) -> None:
        super().__init__(embeddings, cameras=cameras, times=times, distance=distance, fingerprint=fingerprint)
        if kind not in KINDS:
            raise GalleryIndexError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        lists = min(round(4 * math.sqrt(len(self))), len(self)) if lists is None else lists
        for name, value in (("lists", lists), ("probes", probes), ("links", links), ("ef_search", ef_search)):
            if value < 1:
                raise GalleryIndexError(f"{name} must be at least 1, got {value}")
        if lists > len(self):
            raise GalleryIndexError(f"lists={lists}: the gallery has {len(self)} images, so at most that many lists")
        self._faiss = _library()
        self.kind, self.lists, self.probes, self.links, self.ef_search = kind, lists, probes, links, ef_search
        if folder is None:
            self._index = self._build()
            return
        path = Path(folder) / f"faiss-{kind}.index"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            self._index = self._read(path) or self._write(path)

    @property
    def settings(self) -> dict[str, Any]:
        """What its recall depends on."""
        search = {"probes": self.probes} if self.kind == "ivf" else {"ef_search": self.ef_search}
        return {**self._made_from, **search}

    @property
    def _made_from(self) -> dict[str, Any]:
        """What the file depends on."""
        size = {"lists": self.lists} if self.kind == "ivf" else {"links": self.links}
        return {"kind": self.kind, **size, "measure": self.distance, "fingerprint": self.fingerprint}

    def _build(self) -> Any:
        begin = time.perf_counter()
        if self.kind == "ivf":
            index = self._faiss.IndexIVFFlat(self._faiss.IndexFlatL2(self.dimensions), self.dimensions, self.lists)
            index.cp.min_points_per_centroid = 1  # it would warn of every gallery below 39 images per list
            most = index.cp.max_points_per_centroid * self.lists
            chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))
            index.train(self._comparable(self.embeddings[chosen]))
        else:
            index = self._faiss.IndexHNSWFlat(self.dimensions, self.links)
            index.hnsw.efConstruction = _EF_CONSTRUCTION
        for _, vectors in self._comparable_parts():
            index.add(vectors)
        self.build_seconds = time.perf_counter() - begin
        return index

    def _read(self, path: Path) -> Any | None:
        """The index in the file; None where there is none, or one of another gallery or of other settings."""
        try:
            if read_json(path.with_suffix(".json")) != self._made_from:
                return None
            require_regular(path)
            index = self._faiss.read_index(str(path))
        except (FileNotFoundError, ValueError, RuntimeError):  # RuntimeError: FAISS, of a damaged file
            return None
        kind = self._faiss.IndexIVFFlat if self.kind == "ivf" else self._faiss.IndexHNSWFlat
        fits = isinstance(index, kind) and (index.d, index.ntotal) == (self.dimensions, len(self))
        return index if fits else None

    def _write(self, path: Path) -> Any:
        index = self._build()
        temporary = path.with_suffix(".part")
        try:
            self._faiss.write_index(index, str(temporary))
            path.with_suffix(".json").unlink(missing_ok=True)  # it must never describe another file than the one there
            temporary.replace(path)
        except RuntimeError as error:
            raise OSError(f"{path}: the index could not be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)
        write_atomically(path.with_suffix(".json"), (json.dumps(self._made_from, indent=2) + "\n").encode())
        return index

    def _nearest(self, queries: np.ndarray, k: int, allowed: Allowed) -> np.ndarray:
        chosen = None
        if allowed.rows is not None:
            chosen = self._faiss.IDSelectorBitmap(np.packbits(allowed.rows, bitorder="little"))
        if self.kind == "ivf":
            probes = min(math.ceil(self.probes / allowed.share), self.lists)
            options = self._faiss.SearchParametersIVF(sel=chosen, nprobe=probes)
        else:
            ef_search = min(math.ceil(max(self.ef_search, k) / allowed.share), len(self))
            options = self._faiss.SearchParametersHNSW(sel=chosen, efSearch=ef_search)
        found: np.ndarray = self._index.search(self._comparable(queries), k, params=options)[1]
        return found


def _library() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise GalleryIndexError('FAISS is not installed: pip install "bdbnet[faiss]"') from error
    return faiss
