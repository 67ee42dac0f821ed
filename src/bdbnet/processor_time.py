"""Processor time: the user and system seconds that this process and the processes it started have used."""

import multiprocessing
import os
from pathlib import Path


def processor_seconds() -> float:
    """User and system seconds of this process so far, of its ended child processes and of its workers that still run.

    Workers are the processes of `multiprocessing`, such as those of a `DataLoader`. Of a worker that still runs Linux alone tells
    the time (``/proc``); elsewhere it counts once it has ended. Differences of two calls are what happened in between.
    """
    running = [
        worker.pid for worker in multiprocessing.active_children()
    ]  # ended ones are counted as ended from here on
    of_workers = sum(_seconds_of(pid) for pid in running if pid is not None)
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + of_workers


def _seconds_of(pid: int) -> float:
    """Of a running process and its ended children; 0 where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # utime, stime, cutime and cstime are fields 14 to 17; the second, a name in brackets, may hold blanks
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
