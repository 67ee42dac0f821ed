"""Processor time: of this process, of its workers while they run and after they have ended."""

import multiprocessing
import os
import sys
import time

import pytest

from bdbnet import processor_time
from bdbnet.processor_time import processor_seconds

_WORK = 0.15


def of_the_system() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def work(done, end) -> None:
    while time.process_time() < _WORK:
        pass
    done.set()
    end.wait()


def test_own_work_is_what_the_system_counts():
    before, began = processor_seconds(), of_the_system()
    while time.process_time() < _WORK or processor_seconds() == before:
        pass
    ended = of_the_system()
    assert processor_seconds() - before > 0
    assert processor_seconds() - before >= ended - began


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker counts when it has ended")
def test_a_worker_counts_while_it_runs_and_once_when_it_has_ended():
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    before, began = processor_seconds(), of_the_system()
    worker = context.Process(target=work, args=(done, end))
    worker.start()
    done.wait()
    own = of_the_system() - began  # without the worker
    running = processor_seconds() - before
    assert running >= own + _WORK - 0.03  # the system counts in hundredths, user and system apart
    end.set()
    worker.join()
    assert processor_seconds() - before >= running - 0.03
    # Everything that was counted has ended: the system's own sum is the same.
    assert processor_seconds() - before == pytest.approx(of_the_system() - began, abs=0.03)


def test_a_worker_that_the_system_does_not_tell_of_counts_nothing():
    assert processor_time._seconds_of(2**22 + 1) == 0.0  # no process has such a number
