"""Commands in processes of their own that need not import everything again: forked by a process that has."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

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
        "bdbnet.reporting.run_page",
        "bdbnet.reproduction.running",
        "bdbnet.training.runs",
    ]
)


class Done(NamedTuple):
    """How a command ended, named as `subprocess.CompletedProcess` does."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """`python -m bdbnet.NAME ARGUMENTS` in a folder, started in a process group of its own.

    Args:
        name: of the command; with a dot, of a module of another package that has a `main`.
        arguments: of the command.
        folder: where it is typed.
        log: path of two files, without a suffix: what it says and what it complains of.
        site: folders in which it finds further packages.
        variables: added to its environment, in which those of bdbnet, Hydra and Python are not set.
    """

    def __init__(
        self, name: str, *arguments: str, folder: Path, log: Path, site: Sequence[Path] = (), **variables: str
    ) -> None:
        self.logs = [log.with_name(f"{log.name}.{stream}") for stream in ("out", "err")]
        for path in self.logs:
            path.write_text("")
        settings = (name, arguments, folder, self.logs, [str(path) for path in site], variables)
        self._process: BaseProcess = CONTEXT.Process(target=_run, args=settings)
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its group."""
        assert self._process.pid is not None
        (os.killpg if group else os.kill)(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = 300) -> Done:
        """How it ended."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"it ran longer than {seconds} s: {[path.read_text() for path in self.logs]}")
        return Done(self._process.exitcode, *(path.read_text() for path in self.logs))

    def ended(self) -> str:
        """What it said, once it has ended well."""
        done = self.wait()
        assert done.returncode == 0, done.stderr
        return done.stdout


def run(name: str, *arguments: str, folder: Path, log: Path, site: Sequence[Path] = (), **variables: str) -> Done:
    """A command from its start to its end; see `Command`."""
    return Command(name, *arguments, folder=folder, log=log, site=site, **variables).wait()


def _run(
    name: str, arguments: tuple[str, ...], folder: Path, logs: list[Path], site: list[str], variables: dict[str, str]
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as where it is started from a shell
    for stream, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY), stream)
    for key in [key for key in os.environ if key.startswith(("BDBNET", "HYDRA", "PYTHON"))]:
        del os.environ[key]
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | variables)
    os.chdir(folder)
    sys.path[:0] = site
    sys.argv = [name, *arguments]
    import_module(name if "." in name else f"bdbnet.{name}").main()
