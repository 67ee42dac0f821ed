"""A gallery of a million embeddings: seconds and memory to add images, to open it and to search it exactly.

    python experiments/benchmarks/live_gallery.py
    python experiments/benchmarks/live_gallery.py --rows 100000

Random unit vectors are written by the gallery's own writer into a temporary folder (`--folder` says where; 6.2 GB for a million
of 1,536 numbers). Each step then runs in a process of its own, whose peak memory is printed: with what the process holds in
memory of its own (anonymous pages) beside all pages, which count those of mapped files that the system may drop at any time.
The floors are measured in the same run: writing as many bytes and flushing them, reading the embeddings' files once, and the
bare NumPy product of the queries and all embeddings, block by block, without looking for the nearest. The steps that end in
`-cold` find the embeddings on the disk alone, the others in the system's cache as far as that has room.

On two cores and 23 GiB of memory, a million embeddings of 1,536 numbers, threads as PyTorch sets them, beside other work (memory:
pages of the process's own):

    making it                       73.5 s   642 MiB
    opening it, the first time      27.5 s   474 MiB   all of it is verified; afterwards 0.5 s
    reading its files                1.8 s             from the disk 5.9 s
    writing 61 MB                    0.2 s
    adding 10,000 images             1.8 s   733 MiB
    removing 100 images              0.8 s   686 MiB
    searching for one query          4.9 s   498 MiB   from the disk 12.7 s; of which opening 0.3 s

With `--rows 200000`: searching for 1,000 queries 18.1 s and 609 MiB, the bare product 12.7 s.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

BLOCK = 8192
STEPS = (
    "new", "open", "floor-read-cold", "floor-read", "floor-add", "add", "replace", "open", "search-one", "search-one-cold",
    "floor-product", "search", "search-camera",
)  # fmt: skip


def drawn(count: int, dimensions: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for begin in range(0, count, BLOCK):
        block = rng.standard_normal((min(BLOCK, count - begin), dimensions), dtype=np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def table_of(first: int, count: int) -> pd.DataFrame:
    numbers = np.arange(first, first + count)
    paths = [f"camera_{number % 6}/2024-05-31/{number:09d}.jpg" for number in numbers.tolist()]
    return pd.DataFrame({"path": paths, "camera": numbers % 6, "time": 1.7e9 + numbers})


class Memory:
    """Peak of a process's memory since the start, in MiB: pages of its own, and all pages."""

    def __init__(self) -> None:
        self.own = self.all = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._look()

    def _look(self) -> None:
        found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own, whole = (int(found[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))
        self.own, self.all = max(self.own, own), max(self.all, whole)

    def __str__(self) -> str:
        self._look()
        return f"{self.own:,.0f} MiB of its own, {self.all:,.0f} MiB with pages of mapped files"


def step(name: str, folder: Path, options: argparse.Namespace) -> None:
    """One step, in a process of its own."""
    from bdbnet.gallery import EmbeddingStore, ModelStamp, write_store
    from bdbnet.gallery.indexes.exact import ExactIndex, Filter

    before = Memory()
    idle = str(before)
    queries = np.concatenate([*drawn(options.queries, options.dimensions, 3)])
    new = np.concatenate([*drawn(options.add, options.dimensions, 2)]) if name in ("add", "floor-add") else None
    if name.endswith("cold"):  # its files are on the disk alone
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    if name == "new":
        stamp = ModelStamp("0" * 64, "random", {}, options.dimensions, (384, 128))
        table = table_of(0, options.rows)
        write_store(folder, drawn(options.rows, options.dimensions, 1), table, root=folder, model=stamp)
    elif name == "open":
        EmbeddingStore.open(folder)
    elif name == "add":
        store = EmbeddingStore.open(folder, verify=False)
        began = time.perf_counter()
        store.add(new, table_of(len(store), options.add))
    elif name == "replace":
        store = EmbeddingStore.open(folder, verify=False)
        began = time.perf_counter()
        store.remove(
            [
                f"camera_{number % 6}/2024-05-31/{number:09d}.jpg"
                for number in range(0, options.rows, options.rows // 100)
            ]
        )
    elif name in ("search", "search-one", "search-one-cold", "search-camera"):
        store = EmbeddingStore.open(folder)
        some = queries[:1] if name.startswith("search-one") else queries
        index = ExactIndex(store.embeddings, cameras=store.table["camera"], times=store.table["time"])
        opened = time.perf_counter() - began
        allowed = Filter(np.arange(len(some)) % 6) if name == "search-camera" else None
        index.search(some, 10, allowed=allowed)
        print(f"{'':28}{opened:8.1f} s of these to open the gallery")
    elif name == "floor-add":
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(new.data)
            file.flush()
            os.fsync(file.fileno())
    elif name.startswith("floor-read"):
        buffer = bytearray(2**24)
        for path in folder.rglob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    elif name == "floor-product":
        out = np.empty((len(queries), BLOCK), np.float32)
        for path in sorted(folder.rglob("*.safetensors")):
            rows = (path.stat().st_size - 8) // (4 * options.dimensions)
            with path.open("rb") as file:
                file.seek(8 + int.from_bytes(file.read(8), "little"))
                for begin in range(0, rows, BLOCK):
                    block = np.fromfile(file, np.float32, min(BLOCK, rows - begin) * options.dimensions)
                    np.matmul(
                        queries, block.reshape(-1, options.dimensions).T, out=out[:, : len(block) // options.dimensions]
                    )
    took = time.perf_counter() - began
    print(f"{name:28}{took:8.1f} s   {before}" + (f" ({idle} before)" if name == "open" else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--add", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder is made in it")
    parser.add_argument(
        "--steps", help=f"new first, then some of {', '.join(dict.fromkeys(STEPS))}, with commas between"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.step, options.folder, options)
        return
    place = Path(tempfile.mkdtemp(dir=options.folder))
    print(
        f"{options.rows:,} embeddings of {options.dimensions:,} numbers, {options.add:,} added, {options.queries:,} queries"
    )
    print(
        f"{os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}, load {os.getloadavg()[0]:.1f}\n",
        flush=True,
    )
    try:
        for name in STEPS if options.steps is None else options.steps.split(","):
            arguments = [f"--{key}={getattr(options, key)}" for key in ("rows", "dimensions", "add", "queries")]
            subprocess.run([sys.executable, __file__, f"--step={name}", f"--folder={place}", *arguments], check=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
