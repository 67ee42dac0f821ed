"""Signals that end a command: SIGTERM ends it in order, as Ctrl-C does, with the exit status of shells."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Signals that ask a process to end.
ENDING = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal asked the process to end. The exit status is that of shells, 128 + the signal's number: 130, 143.

    Attributes:
        told: whether the user has read how to resume.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.told = False

    def __reduce__(self) -> tuple[Any, ...]:  # of an error that another process raised
        return type(self), (int(self.signal),)


def stop(number: int, frame: FrameType | None = None) -> None:
    """Handler that raises `Stopped`, once: a process is often told several times.

    Args:
        frame: that the signal interrupted.
    """
    if _errors_are_ignored(frame):
        later = threading.Timer(_AGAIN_SECONDS, _again, (number,))
        later.daemon = True
        later.start()
        return
    signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.default_int_handler)
    raise Stopped(number)


_AGAIN_SECONDS = 0.05


def _again(number: int) -> None:
    if callable(signal.getsignal(number)):  # else the command has ended meanwhile
        os.kill(os.getpid(), number)


def _errors_are_ignored(frame: FrameType | None) -> bool:
    """Whether a finalizer is running: Python prints what it raises, and goes on.  PyTorch's loader waits for its workers in one."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def in_main_thread() -> bool:
    """Whether this thread may set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminated_in_order() -> Iterator[None]:
    """Let SIGTERM raise `Stopped`, where it would end the process at once: files and workers are left in order."""
    if not in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keep a signal the reason of an end where what Lightning does at it raises errors of its own.

    Ctrl-C becomes a `SystemExit` of status 1 there, and tearing down for the second time, after a signal that came in the middle
    of the first, a `RuntimeError`.

    Raises:
        Stopped: what ended the block followed from a signal.
    """
    try:
        yield
    except (SystemExit, RuntimeError) as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, Stopped | KeyboardInterrupt):
            reason = reason.__context__
        if reason is None or reason is error:
            raise
        raise (reason if isinstance(reason, Stopped) else Stopped(signal.SIGINT)) from None


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back signals that end a process; processes that start meanwhile do so for ever."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """In a worker process: end at a signal of the parent alone.

    SIGINT and SIGTERM often go to all processes of a group or a container (Ctrl-C, timeout, SLURM). They mean the parent, which
    still needs its workers to finish what it does, and ends them afterwards.
    """
    if not hasattr(signal, "sigwaitinfo"):  # Linux has it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # also of threads that start later

    def wait() -> None:
        while True:
            if signal.sigwaitinfo([signal.SIGTERM]).si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=wait, name="signals-of-the-parent", daemon=True).start()
