"""Ranks that fall silent while the others wait for them."""

import json
import threading

import pytest
from torch.distributed import DistNetworkError, HashStore

from bdbnet.training.watching import FAILED, Ended, Watch


class Rank:
    """A rank with its watch, whose rounds are a hundredth of a second long."""

    def __init__(self, store, number: int, size: int = 2) -> None:
        store.set(f"bdbnet/{number}", json.dumps([f"host-{number}", {}]))
        self.store, self.number = store, number
        self.heard: list[Ended] = []
        self.has_heard = threading.Event()
        self.watch = Watch(store, number, size, self._hear, every=0.01, silence=0.1, grace=0.02)
        self.watch.start()

    def _hear(self, ended: Ended) -> None:
        self.heard.append(ended)
        self.has_heard.set()

    def is_killed(self) -> None:
        """Its thread ends without a word, after its first sign of life."""
        self.store.get(f"bdbnet/alive/{self.number}")
        self.watch._end.set()
        self.watch.join()


def test_a_rank_that_falls_silent_is_named_on_all_others():
    store = HashStore()
    ranks = [Rank(store, number, 3) for number in range(3)]
    ranks[1].is_killed()
    for number in (0, 2):
        assert ranks[number].has_heard.wait(5)
        (ended,) = ranks[number].heard
        assert (ended.rank, ended.host) == (1, "host-1")
        assert "silent for 0.1 s" in ended.reason
    assert not ranks[1].heard


def test_the_first_rank_is_missed_too():
    store = HashStore()
    first, other = Rank(store, 0), Rank(store, 1)
    first.is_killed()
    assert other.has_heard.wait(5)
    assert other.heard[0].rank == 0


def test_an_error_that_a_rank_has_told_of_reaches_one_that_waits():
    store = HashStore()
    rank = Rank(store, 1)
    store.set(FAILED, json.dumps([0, 0, "host-0", "ValueError: no"]))
    assert rank.has_heard.wait(5)
    assert rank.heard == [Ended(0, 0, "host-0", "ValueError: no")]


def test_a_rank_that_ends_by_itself_in_time_is_left_alone():
    store = HashStore()
    rank = Rank(store, 1)
    rank.watch._grace = 5.0
    store.set(FAILED, json.dumps([0, 0, "host-0", "ValueError: no"]))
    threading.Event().wait(0.05)
    rank.watch.finish()
    rank.watch.join()
    assert not rank.heard


def test_a_rank_that_has_not_begun_or_has_finished_is_not_missed():
    store = HashStore()
    first = Rank(store, 0, 3)  # the third never begins
    second = Rank(store, 1, 3)
    threading.Event().wait(0.05)
    second.watch.finish()
    second.watch.join()
    assert not first.has_heard.wait(0.3)
    first.watch.finish()


class Lost:
    """A connection whose other end is gone."""

    def set(self, key, value):
        raise DistNetworkError("broken pipe")


@pytest.mark.parametrize("finishes", [False, True])
def test_a_store_that_is_gone_ends_a_rank_that_still_waits(finishes):
    heard, has_heard = [], threading.Event()
    watch = Watch(Lost(), 1, 2, lambda ended: (heard.append(ended), has_heard.set()), every=0.01, silence=0.1)
    watch.start()
    if finishes:
        watch.finish()
    assert has_heard.wait(0.5) is not finishes
    assert [ended.rank for ended in heard] == ([] if finishes else [0])
