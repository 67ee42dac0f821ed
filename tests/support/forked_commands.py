"""Commands in processes of their own that need not import everything again: forked by a process that has."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

#: Threads of OpenMP do not survive a fork: the process that forks has computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "bdbnet.evaluation.trainer",
        "bdbnet.gallery.embedding",
        "bdbnet.gallery.updating",
        "bdbnet.loading.sources",
        "bdbnet.training.sync_norm",
        "pytorch_metric_learning.losses",
    ]
)


class Command:
    """`python -m bdbnet.NAME ARGUMENTS` in a folder, its variables added to the environment, started."""

    def __init__(self, name: str, *arguments: str, folder: Path, log: Path, **variables: str) -> None:
        self._logs = [log.with_suffix(f".{stream}") for stream in ("out", "err")]
        self._process: BaseProcess = CONTEXT.Process(target=_run, args=(name, arguments, folder, self._logs, variables))
        self._process.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def ended(self) -> str:
        """What it said, once it has ended well."""
        self._process.join(120)
        said, complained = (log.read_text() for log in self._logs)
        assert self._process.exitcode == 0, complained
        return said


def _run(name: str, arguments: tuple[str, ...], folder: Path, logs: list[Path], variables: dict[str, str]) -> None:
    for stream, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o644), stream)
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = [name, *arguments]
    import_module(f"bdbnet.{name}").main()
