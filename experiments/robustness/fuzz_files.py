"""Damaged files against every command that reads them: no traceback, no hang, no code run, no file elsewhere.

    python experiments/robustness/fuzz_files.py                            1,200 cases
    python experiments/robustness/fuzz_files.py --seed 7 --only results    other damage, one kind
    python experiments/robustness/fuzz_files.py --only results --case 41   one case again, with its whole trace

A case damages a good file by a seed and runs a command on it, in a worker process and through the command's own wrapper. It
ends in a clean error (one message, exit status 1), in a result (the file was still valid), or in a fault of ours: a traceback,
a hang, code from the file that ran, or a file written or shown from elsewhere. The exit status is 0 if there is no fault.
"""

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # started from another program
    sys.path.insert(0, str(HERE))

from tqdm import tqdm  # noqa: E402

#: Shares of all cases, in the order of the table.
SHARES = {
    "manifests": 20, "lists": 8, "archives": 14, "checkpoints": 18, "saved": 8, "images": 14, "results": 20, "stores": 14,
    "parts": 10, "settings": 4,
}  # fmt: skip
OUTCOMES = ("still valid", "clean error", "traceback", "hang", "code executed", "outside")
FAULTS = OUTCOMES[2:]
_MEMORY = 12 << 30  # bytes of address space: a bomb ends its worker, not the machine


class Job(NamedTuple):
    """A case by its kind and number."""

    kind: str
    number: int


class Told(NamedTuple):
    """What a worker says of a case."""

    job: Job
    what: str
    outcome: str
    text: str
    seconds: float
    processor: float


def jobs_of(cases: int, only: list[str]) -> list[Job]:
    """The cases of a run, each kind by its share, evenly mixed."""
    kinds = only or list(SHARES)
    total = sum(SHARES[kind] for kind in kinds)
    listed = [(n / SHARES[kind], Job(kind, n)) for kind in kinds for n in range(round(cases * SHARES[kind] / total))]
    return [job for _, job in sorted(listed)]


def work(connection: Connection, good: Path, workplace: Path, seed: int) -> None:
    """Run cases as they come; each starts in a folder of its own, which is removed."""
    _prepare_process(workplace)
    from fuzz_cases import KINDS
    from fuzz_commands import Good, Place

    connection.send(None)  # ready
    while True:
        job = connection.recv()
        if job is None:
            return
        place = Place(workplace / f"{job.kind}-{job.number}", Good(good))
        place.make()
        began, worked = time.perf_counter(), time.process_time()
        case = KINDS[job.kind](random.Random(f"{seed} {job.kind} {job.number}"), place)
        told = Told(
            job,
            case.what,
            case.ended.outcome,
            case.ended.text,
            time.perf_counter() - began,
            time.process_time() - worked,
        )
        shutil.rmtree(place.root, ignore_errors=True)
        connection.send(told)


def _prepare_process(workplace: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    os.environ["MPLCONFIGDIR"] = str(workplace / "matplotlib")
    os.environ["BDBNET_DATA"] = str(workplace / "nothing")
    import torch

    torch.set_num_threads(1)


def _make(good: Path, workplace: Path) -> None:
    _prepare_process(workplace)
    from fuzz_commands import make_good_files

    try:
        make_good_files(good)
    except BaseException:
        shutil.rmtree(good, ignore_errors=True)
        raise


class Worker:
    """A process that runs one case at a time, and can be ended."""

    def __init__(self, context: Any, *arguments: Any) -> None:
        self._context, self._arguments = context, arguments
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(target=work, args=(theirs, *self._arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.ready, self.since = False, time.monotonic()

    def give(self, job: Job | None) -> None:
        self.job, self.since = job, time.monotonic()
        self.connection.send(job)

    def restart(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.job = None
        self._start()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run(
    jobs: list[Job], *, seed: int, workers: int, timeout: float, workplace: Path, good: Path, progress: bool = True
) -> list[Told]:
    """Run the cases on some processes, and print faults as they come.

    Cases that take longer than `timeout` seconds are ended and count as hangs. The good files are made in the folder `good`, unless
    that exists.
    """
    # By this the process that the workers are copied from finds what it imports.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fuzz_preload"])
    if not good.exists():
        making = context.Process(target=_make, args=(good, workplace))
        making.start()
        making.join()
        if making.exitcode:
            sys.exit("the good files could not be made; see above")
    waiting, told = collections.deque(jobs), []
    pool = [Worker(context, good, workplace, seed) for _ in range(min(workers, len(jobs)))]
    try:
        with tqdm(total=len(jobs), unit=" cases", disable=None if progress else True) as bar:
            while len(told) < len(jobs):
                wait([worker.connection for worker in pool], timeout=1.0)
                for worker in pool:
                    if (one := _hear(worker, timeout)) is not None:
                        told.append(one)
                        bar.update()
                        if one.outcome in FAULTS:
                            bar.write(
                                f"{one.outcome}: {one.job.kind} {one.job.number}: {one.what}\n{_indented(one.text)}"
                            )
                    if worker.ready and worker.job is None and waiting:
                        worker.give(waiting.popleft())
    except KeyboardInterrupt:
        print(f"interrupted after {len(told):,} of {len(jobs):,} cases", file=sys.stderr)
    finally:
        for worker in pool:
            worker.end()
    return sorted(told, key=lambda one: (list(SHARES).index(one.job.kind), one.job.number))


def _indented(text: str) -> str:
    lines = text.strip().splitlines()
    return "".join(f"    {line}\n" for line in (lines if len(lines) < 15 else [*lines[:2], "...", *lines[-12:]]))


def _hear(worker: Worker, timeout: float) -> Told | None:
    """What a worker says now, if anything; a silent or dead one is replaced."""
    try:
        if worker.connection.poll():
            message = worker.connection.recv()
            if message is None:
                worker.ready = True
                return None
            worker.job = None
            return message
    except (EOFError, ConnectionError):
        job = worker.job
        worker.process.join()
        code = worker.process.exitcode
        worker.restart()
        if job is None:
            raise RuntimeError("a worker ended before its first case") from None
        return Told(job, "", "traceback", f"the process ended with {code}", 0.0, 0.0)
    if worker.job is not None and time.monotonic() - worker.since > timeout:
        told = Told(worker.job, "", "hang", f"no answer in {timeout:g} s", timeout, 0.0)
        worker.restart()
        return told
    return None


def table(told: list[Told]) -> str:
    """A row for each kind and one for all."""
    heads = ["kind", "cases", *OUTCOMES]
    rows = []
    for kind in SHARES:
        counts = collections.Counter(one.outcome for one in told if one.job.kind == kind)
        if counts:
            rows.append([kind, counts.total(), *(counts[outcome] for outcome in OUTCOMES)])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(heads)))])
    widths = [
        max(len(f"{cell:,}" if isinstance(cell, int) else cell) for cell in column) for column in zip(heads, *rows)
    ]
    lines = [
        "  ".join(
            f"{cell:>{w},}" if isinstance(cell, int) else f"{cell:{'>' if i else '<'}{w}}"
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        for row in (heads, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--cases", type=int, default=1200, help="over all kinds (default: 1200)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=list(SHARES),
        metavar="KIND",
        help=f"one of {', '.join(SHARES)}; may be repeated",
    )
    parser.add_argument("--case", type=int, nargs="+", help="with --only: run these cases alone, print how they ended")
    parser.add_argument(
        "--good", type=Path, metavar="FOLDER", help="keep the good files there, and use those that are there"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds after which a case counts as a hang (default: 60)"
    )
    parser.add_argument("--list", action="store_true", help="print every case")
    arguments = parser.parse_args()
    if arguments.case is not None and len(arguments.only) != 1:
        parser.error("--case needs one --only KIND")
    jobs = jobs_of(arguments.cases, arguments.only)
    if arguments.case is not None:
        jobs = [Job(arguments.only[0], number) for number in arguments.case]
    began = time.perf_counter()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tqdm.set_lock(threading.RLock())  # its own is one between processes, of which none is needed
    with tempfile.TemporaryDirectory(prefix="bdbnet-fuzz-") as folder:
        told = run(
            jobs,
            seed=arguments.seed,
            workers=arguments.workers,
            timeout=arguments.timeout,
            workplace=Path(folder).resolve(),
            good=(arguments.good or Path(folder, "good")).resolve(),
        )
    if arguments.list or arguments.case is not None:
        for one in told:
            print(
                f"{one.job.kind} {one.job.number} ({one.seconds:.1f} s): {one.what}\n  {one.outcome}: {one.text.strip()[:5000]}"
            )
    print(table(told))
    print(
        f"seed {arguments.seed}, {arguments.workers} processes, {time.perf_counter() - began:.0f} s, of which the cases took "
        f"{sum(one.processor for one in told):.0f} s of processor time"
    )
    return int(any(one.outcome in FAULTS for one in told))


if __name__ == "__main__":
    sys.exit(main())
