"""A gallery whose writer is killed at random moments while another process reads it: every state seen is whole.

    python experiments/robustness/kill_adding.py --help

A process adds, replaces and removes images in a loop, by a seed, and brings a FAISS index up to date after each change. Meanwhile
this one opens the gallery again and again, compares all that it holds with a dictionary to which the same was done, and kills the
writer with SIGKILL at a random moment. Then the gallery must be in the state that the writer announced last or in the next one, the
index must find what an exact search finds, and the next writer continues. The exit status is 1 if one case fails.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.files import LockedError
from bdbnet.gallery import EmbeddingStore, ModelStamp, write_store
from bdbnet.gallery.indexes import ExactIndex, FaissIndex

DIMENSIONS = 32
LISTS = 8
PATIENCE = 60.0
#: Writers are forked by a process that has imported all and computed nothing: threads of OpenMP do not survive a fork.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["faiss", "bdbnet.gallery.live", "bdbnet.gallery.indexes"])

Images = dict[str, np.ndarray]


def states() -> Iterator[tuple[str, Images, Images]]:
    """The gallery after each change, as dictionaries that nothing can go wrong with: what was done to which images, and all."""
    whole: Images = drawn(0, range(300))
    yield "new", whole, whole
    number, following = 0, 300
    while True:
        number += 1
        rng = np.random.default_rng(number)
        what = ("add", "replace", "remove", "add")[number % 4]
        some = [*rng.choice([*whole], len(whole) // 10, replace=False)]
        if what == "add":
            images = drawn(number, range(following, following + 40))
            following += 40
        elif what == "replace":
            images = dict(zip(some, drawn(number, range(len(some))).values(), strict=True))
        else:
            images = {path: whole[path] for path in some}
        whole = {path: row for path, row in whole.items() if path not in images} | ({} if what == "remove" else images)
        yield what, images, whole


def drawn(number: int, names: range) -> Images:
    rows = np.random.default_rng([number, 1]).standard_normal((len(names), DIMENSIONS), dtype=np.float32)
    return {f"{name}.jpg": row for name, row in zip(names, rows, strict=True)}


def matrix(images: Images) -> tuple[np.ndarray, pd.DataFrame]:
    return np.stack([*images.values()]), pd.DataFrame({"path": [*images]})


def begin(folder: Path) -> None:
    """Write the first state."""
    embeddings, table = matrix(next(states())[2])
    stamp = ModelStamp("0" * 64, "random", {}, DIMENSIONS, (64, 32))
    write_store(folder, [embeddings], table, root=folder, model=stamp)


def write(folder: Path, last: int, log: Path) -> None:
    """The writer: makes one state after the other from the one after `last` on, and announces each in a file.

    It ends with the status `os.EX_TEMPFAIL` where another process changes the gallery.
    """
    with log.open("ab", buffering=0) as said:
        for number, (what, images, _) in enumerate(states()):
            if number <= last:
                continue
            store = EmbeddingStore.open(folder)
            try:
                store = store.remove(images) if what == "remove" else getattr(store, what)(*matrix(images))
            except LockedError:
                sys.exit(os.EX_TEMPFAIL)
            said.write(f"{number}\n".encode())
            index_of(store)


def index_of(store: EmbeddingStore) -> FaissIndex:
    return FaissIndex(
        store.embeddings, fingerprint=store.fingerprint, ids=store.ids, history=store.history, folder=store.folder / "index",
        lists=LISTS, probes=LISTS,
    )  # fmt: skip


class Gallery:
    """A gallery that is written to by other processes, and what it must hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder.with_name(f"{folder.name}.log")
        self._states: list[Images] = []
        self._coming = states()
        self.number = self._started = 0
        begin(folder)

    def announced(self) -> int:
        """Number of the last state of which a writer said, or found when it was started, that it is there."""
        lines = self._log.read_bytes().splitlines(keepends=True) if self._log.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        return max(int(whole[-1]) if whole else 0, self._started)

    def look(self) -> EmbeddingStore:
        """Open it: it must be in a whole state, that of before or a later one.

        Raises:
            ValueError: it is not.
        """
        said = max(self.announced(), self.number)
        store = EmbeddingStore.open(self.folder)
        found = dict(zip(store.table["path"], np.asarray(store.embeddings), strict=True))
        latest = self.announced() + 1
        for number in range(said, latest + 1):
            expected = self._state(number)
            if found.keys() == expected.keys() and all(np.array_equal(found[path], expected[path]) for path in found):
                self.number = number
                return store
        raise ValueError(f"{self.folder}: {len(store)} images, which is none of the states {said} to {latest}")

    def _state(self, number: int) -> Images:
        while len(self._states) <= number:
            self._states.append(next(self._coming)[2])
        return self._states[number]

    def start(self) -> BaseProcess:
        """Start a writer that continues from the present state."""
        self._started = self.number
        process = CONTEXT.Process(target=write, args=(self.folder, self.number, self._log), daemon=True)
        process.start()
        return process

    def kill(self, after: Callable[[], float]) -> str:
        """One case: a writer is killed so many seconds after its first change.  Returns what happened.

        Raises:
            ValueError: what is there afterwards is not whole.
        """
        first, opened, limit = self.number, 0, time.monotonic() + PATIENCE
        process = self.start()
        try:
            while self.announced() <= first:
                if not process.is_alive() or time.monotonic() > limit:
                    raise ValueError(f"the writer changed nothing (exit status {process.exitcode})")
                self.look()
                opened += 1
            end = time.monotonic() + after()
            while time.monotonic() < end:
                self.look()
                opened += 1
        finally:
            process.kill()
            process.join()
        said = self.announced()
        store = self.look()
        queries = np.asarray(store.embeddings[::7])
        expected, found = (index.search(queries, 9)[0] for index in (ExactIndex(store.embeddings), index_of(store)))
        if not np.array_equal(expected, found):
            raise ValueError(f"the index finds something else than an exact search, in state {self.number}")
        shown = "the state that was announced last" if self.number == said else "the next one, not announced"
        return f"{said - first} changes, opened {opened} times meanwhile, then {shown} ({len(store)} images)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    parser.add_argument("--most", type=float, default=0.4, help="seconds after the first change (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder is made in it")
    options = parser.parse_args()
    place, chance = Path(tempfile.mkdtemp(prefix="kill-adding-", dir=options.folder)), random.Random(options.seed)
    failed = between = 0
    try:
        gallery = Gallery(place / "gallery")
        for number in range(1, options.kills + 1):
            try:
                happened = gallery.kill(lambda: chance.uniform(0, options.most))
                between += "not announced" in happened
                print(f"[{number}/{options.kills}] {happened}", flush=True)
            except Exception as error:
                failed += 1
                print(f"[{number}/{options.kills}] FAILED: {type(error).__name__}: {error}", flush=True)
        whole = f"{options.kills - failed} of {options.kills} kills left a whole gallery and a right index"
        print(f"{whole}, {between} of them between a change and its announcement; {os.cpu_count()} cores")
    finally:
        shutil.rmtree(place)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
