"""An approximate index of the FAISS library, kept in a file (Douze et al., The Faiss library, 2024)."""

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bdbnet.checked import read_json
from bdbnet.gallery.indexes.exact import Allowed, GalleryIndex, GalleryIndexError
from bdbnet.gallery.parts import read_numbers
from bdbnet.gallery.rows import Rows
from bdbnet.regular_files import require_regular
from bdbnet.results import write_atomically
from bdbnet.retrieval.matrices import Array
from bdbnet.wording import counted

KINDS = ("ivf", "hnsw")

_EF_CONSTRUCTION = 80  # neighbours looked at while the graph is built; more cost time and gain little recall
_MOST_GONE = 0.25  # share of an index's images that may be gone before it is built anew
_MOST_GROWTH = 4  # times as many images as its lists were made for, before these are made anew


class FaissIndex(GalleryIndex):
    """A gallery behind a FAISS index of one of two kinds, which hold all vectors (G, D) in full.

    - `ivf`: the gallery is cut into lists around k-means centres; a search reads the lists nearest to the query.
    - `hnsw`: a graph of near neighbours that a search walks through (Malkov & Yashunin, TPAMI 2020); slower to build,
      faster to search.

    A filter widens the search: as many more lists or nodes are looked at as it leaves out images.

    Args:
        embeddings, cameras, times, distance, fingerprint: see `GalleryIndex`.
        kind: `ivf` or `hnsw`.
        folder: where the index is kept: `faiss-<kind>.json` describes it and names its file. An index of the same gallery and
            settings is read from there. One of an earlier state of the gallery (`history`) is extended: new images are added,
            those that are gone are no longer found. It is built anew where more than a quarter of its images are gone, or
            where an `ivf` would hold over four times the images for which its lists were made. Any other is replaced. None:
            it is built and not kept.
        build: False: an index is read, and extended in memory, but never built, and nothing is written to `folder`.
        lists: ivf: number of lists; None for 4 times the square root of the gallery's size when they are made.
        probes: ivf: lists read per search.
        links: hnsw: links per node.
        ef_search: hnsw: nodes kept in view during a search.

    Attributes:
        build_seconds: time that building or extending took; None for an index that was read from its file.

    Raises:
        GalleryIndexError: FAISS is not installed, a setting below 1, more lists than images, or none is there with
            `build=False`.
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
        ids: np.ndarray | None = None,
        history: Sequence[tuple[str, int]] = (),
        kind: str = "ivf",
        folder: str | Path | None = None,
        build: bool = True,
        lists: int | None = None,
        probes: int = 32,
        links: int = 32,
        ef_search: int = 128,
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
        if kind not in KINDS:
            raise GalleryIndexError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        for name, value in (("lists", lists), ("probes", probes), ("links", links), ("ef_search", ef_search)):
            if value is not None and value < 1:
                raise GalleryIndexError(f"{name} must be at least 1, got {value}")
        self._faiss = _library()
        self.kind, self.probes, self.links, self.ef_search = kind, probes, links, ef_search
        self._wanted_lists, self.lists = lists, _usual_lists(len(self)) if lists is None else lists
        self._first_count = len(self)  # images when it was built
        if folder is None:
            self._index, self._at = self._build(), self.ids
        elif not build:
            self._index, self._at = self._kept(Path(folder), build)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with FileLock(Path(folder) / f".faiss-{kind}.index.lock"):
                self._index, self._at = self._kept(Path(folder), build)
        self._row_at = self._rows_with(self._at)

    @property
    def settings(self) -> dict[str, Any]:
        """What its recall depends on."""
        search = {"probes": self.probes} if self.kind == "ivf" else {"ef_search": self.ef_search}
        extended = {} if len(self._at) == self._first_count == len(self) else {"built_with": self._first_count}
        return {**self._made_from, **extended, **search}

    @property
    def _made_from(self) -> dict[str, Any]:
        """What the file depends on."""
        size = {"lists": self.lists} if self.kind == "ivf" else {"links": self.links}
        return {"kind": self.kind, **size, "measure": self.distance, "fingerprint": self.fingerprint}

    def _build(self, reason: str = "") -> Any:
        begin = time.perf_counter()
        if self.kind == "ivf":
            if self.lists > len(self):
                raise GalleryIndexError(
                    f"lists={self.lists}: the gallery has {len(self)} images, so at most that many lists"
                )
            index = self._faiss.IndexIVFFlat(self._faiss.IndexFlatL2(self.dimensions), self.dimensions, self.lists)
            index.cp.min_points_per_centroid = 1  # it would warn of every gallery below 39 images per list
            most = index.cp.max_points_per_centroid * self.lists
            chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))
            index.train(self._comparable_rows(chosen, self.embeddings[chosen]))
        else:
            index = self._faiss.IndexHNSWFlat(self.dimensions, self.links)
            index.hnsw.efConstruction = _EF_CONSTRUCTION
        for _, vectors in self._comparable_parts():
            index.add(vectors)
        self.build_seconds = time.perf_counter() - begin
        took = f"in {self.build_seconds:.1f} s"
        self.built = f"built anew {took}, because {reason}" if reason else f"built {took}"
        return index

    def _kept(self, folder: Path, build: bool) -> tuple[Any, np.ndarray]:
        """The index in a folder, as it is, extended or built, and the numbers of the images at its places."""
        found, reason = self._read(folder), ""
        if found is None and not build:  # another process may have replaced it meanwhile
            found = self._read(folder)
        if found is not None:
            record, index, at = found
            own_lists = int(record.get("lists", self.lists))
            gone, new = self._rows_with(at) < 0, np.flatnonzero(~np.isin(self.ids, at))
            if record["fingerprint"] == self.fingerprint:
                self.lists, self._first_count = own_lists, record["built_with"]
                return index, at
            if gone.sum() > _MOST_GONE * (len(at) + len(new)):
                reason = f"{gone.sum():,} of the {len(at):,} images of the earlier one are gone"
            elif self.kind == "ivf" and len(self) > _MOST_GROWTH * record["built_with"]:
                reason = f"the lists of the earlier one were made for {record['built_with']:,} images"
            else:
                self.lists, self._first_count = own_lists, record["built_with"]
                begin = time.perf_counter()
                for _, vectors in self._comparable_parts(new):
                    index.add(vectors)
                at = np.concatenate([at, self.ids[new]])
                if build:
                    self._write(folder, index, at)
                self.build_seconds = time.perf_counter() - begin
                self.built = (
                    f"{counted(len(new), 'image')} added and {gone.sum():,} taken out in {self.build_seconds:.1f} s"
                )
                return index, at
        if not build:
            why = f": {reason}" if reason else ""
            raise GalleryIndexError(f"{folder} holds no index faiss_{self.kind} of this gallery that can be kept{why}")
        index = self._build(reason)
        self._write(folder, index, self.ids)
        return index, self.ids

    def _read(self, folder: Path) -> tuple[dict[str, Any], Any, np.ndarray] | None:
        """Description, index and numbers of its images; None where there is none of this gallery and these settings."""
        try:
            record = read_json(folder / f"faiss-{self.kind}.json")
            if not self._fits(record):
                return None
            path = folder / _plain_name(record.get("file", f"faiss-{self.kind}.index"))
            require_regular(path)
            index = self._faiss.read_index(str(path))
            at = np.arange(index.ntotal)
            if record.get("ids") is not None:
                at = read_numbers(folder / _plain_name(record["ids"]))
            record = record | {"built_with": int(record.get("built_with", index.ntotal))}
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):  # RuntimeError: FAISS
            return None
        kind = self._faiss.IndexIVFFlat if self.kind == "ivf" else self._faiss.IndexHNSWFlat
        same = record["fingerprint"] == self.fingerprint
        whole = at.dtype == np.int64 and at.shape == (index.ntotal,) and bool((np.diff(at) > 0).all())
        if not isinstance(index, kind) or index.d != self.dimensions or not whole:
            return None
        if same and not np.isin(self.ids, at).all():
            return None
        return record, index, at

    def _fits(self, record: Mapping[str, Any]) -> bool:
        """Whether an index that is described so can be used, now or once it is extended."""
        known = {self.fingerprint, *(fingerprint for fingerprint, _ in self.history)}
        if (record["kind"], record["measure"]) != (self.kind, self.distance) or record["fingerprint"] not in known:
            return False
        # Earlier versions numbered the images by their rows, which only in a gallery's first state are the numbers of its images.
        if "file" not in record and self.history and record["fingerprint"] != self.history[0][0]:
            return False
        if self.kind == "hnsw":
            return bool(record["links"] == self.links)
        usual = _usual_lists(int(record["built_with"])) if "built_with" in record else _usual_lists(len(self))
        if self._wanted_lists is None and "file" not in record and self.history:
            usual = _usual_lists(self.history[0][1])
        return bool(record["lists"] == (usual if self._wanted_lists is None else self._wanted_lists))

    def _write(self, folder: Path, index: Any, at: np.ndarray) -> None:
        """Write new files, then name them in the description: whoever is killed before leaves the index as it was."""
        tag = uuid.uuid4().hex[:8]
        path, numbers = (folder / f"faiss-{self.kind}.{tag}.{ending}" for ending in ("index", "ids.npy"))
        numbered = not np.array_equal(at, np.arange(len(at)))
        try:
            self._faiss.write_index(index, str(path))
            if numbered:
                np.save(numbers, at, allow_pickle=False)
        except BaseException as error:
            path.unlink(missing_ok=True)
            numbers.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):
                raise OSError(f"{path}: the index could not be written ({error})") from error
            raise
        record = {**self._made_from, "file": path.name, "ids": numbers.name if numbered else None}
        content = json.dumps(record | {"built_with": self._first_count}, indent=2) + "\n"
        write_atomically(folder / f"faiss-{self.kind}.json", content.encode())
        for pattern in (f"faiss-{self.kind}.index", f"faiss-{self.kind}.*.index", f"faiss-{self.kind}.*.ids.npy"):
            for file in folder.glob(pattern):
                if file not in (path, numbers):
                    file.unlink(missing_ok=True)

    def _nearest(self, queries: np.ndarray, k: int, allowed: Allowed) -> np.ndarray:
        places = self._row_at >= 0
        if allowed.rows is not None:
            places &= allowed.rows[self._row_at]
        share = float(places.mean())
        chosen = None if share == 1 else self._faiss.IDSelectorBitmap(np.packbits(places, bitorder="little"))
        if self.kind == "ivf":
            probes = min(math.ceil(self.probes / share), self.lists)
            options = self._faiss.SearchParametersIVF(sel=chosen, nprobe=probes)
        else:
            ef_search = min(math.ceil(max(self.ef_search, k) / share), len(self._at))
            options = self._faiss.SearchParametersHNSW(sel=chosen, efSearch=ef_search)
        found: np.ndarray = self._index.search(self._comparable(queries), k, params=options)[1]
        return np.where(found < 0, -1, self._row_at[found])


def _usual_lists(count: int) -> int:
    return min(round(4 * math.sqrt(count)), count)


def _plain_name(name: str) -> str:
    """A file's name, which leads to no other folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file in the index's folder")
    return name


def _library() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise GalleryIndexError('FAISS is not installed: pip install "bdbnet[faiss]"') from error
    return faiss
