"""Watching the other ranks of a training, since a rank that waits for one that is gone may wait for half an hour."""

import itertools
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

#: Where a rank that ends by an error says so.
FAILED = "bdbnet/failed"


class Ended(NamedTuple):
    """A rank that has ended: its number, those of its machine and the machine's name, where they are known, and the reason."""

    rank: int | None
    node: int | None
    host: str | None
    reason: str


class Watch(threading.Thread):
    """A thread by which a rank says that it is alive, and hears of one that is not.

    The first rank listens to all, the others to the first and to what it reports: the number of messages grows with the ranks.
    Time is counted in this process's own rounds, so that a whole job can be suspended and continued.

    Args:
        store: a connection of its own: another thread may hold one while it waits.
        rank, size: of this process, and how many there are.
        gone: called in this thread, at most once, when another rank has failed or fallen silent and this one has not noticed
            by itself within `grace` seconds.
        every: seconds between two signs of life.
        silence: seconds after which a rank counts as gone.
        grace: see `gone`.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        gone: Callable[[Ended], None],
        *,
        every: float = 5.0,
        silence: float = 60.0,
        grace: float = 10.0,
    ) -> None:
        super().__init__(name="bdbnet-watch", daemon=True)
        self._store, self._rank, self._gone = store, rank, gone
        self._every, self._rounds, self._grace = every, max(2, round(silence / every)), grace
        self._silence = silence
        self._others = range(1, size) if rank == 0 else range(1)
        self._heard: dict[int, tuple[bytes, int]] = {}
        self._end = threading.Event()

    def run(self) -> None:
        for count in itertools.count():
            if self._end.wait(self._every if count else 0):
                return
            try:
                self._store.set(f"bdbnet/alive/{self._rank}", str(count))
                ended = self._failed() or self._silent(count)
                patience = self._grace
            except dist.DistError:  # the first rank's process, which holds the store, is gone, perhaps in order
                ended = Ended(0, None, None, "it can't be reached any more; was it killed, or out of memory?")
                patience = self._silence
            if ended is not None:
                if not self._end.wait(patience):
                    self._gone(ended)
                return

    def finish(self) -> None:
        """This rank ends in order: nobody waits for it."""
        self._end.set()
        with suppress(dist.DistError):
            self._store.set(f"bdbnet/alive/{self._rank}", "finished")

    def _failed(self) -> Ended | None:
        return Ended(*json.loads(self._store.get(FAILED))) if self._store.check([FAILED]) else None

    def _silent(self, count: int) -> Ended | None:
        for other in self._others:
            key = f"bdbnet/alive/{other}"
            if not self._store.check([key]):
                continue
            sign = self._store.get(key)
            before, since = self._heard.get(other, (b"", count))
            if sign != before:
                self._heard[other] = sign, count
            elif sign != b"finished" and count - since >= self._rounds:
                host = json.loads(self._store.get(f"bdbnet/{other}"))[0]
                ended = Ended(
                    other, None, host, f"it has been silent for {self._silence:g} s; is its machine down or stopped?"
                )
                if self._rank == 0:
                    self._store.set(FAILED, json.dumps(ended))
                return ended
        return None
