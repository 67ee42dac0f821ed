"""Work on threads: at most so much at once, at most so much waiting, and never longer than a limit."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from bdbnet.serving.errors import RequestError

Result = TypeVar("Result")


class WorkPool:
    """Threads for what would block the event loop.

    Args:
        name: what messages and threads are called.
        workers: calls that run at once.
        waiting: calls that may wait for a thread; further ones are refused.
        seconds: after so long a caller is told that it takes too long.
        start: called in each thread before its first work.
    """

    def __init__(
        self, name: str, workers: int, waiting: int, seconds: float, start: Callable[[], object] | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=start)
        self._most, self._seconds = workers + waiting, seconds
        self._lock = threading.Lock()
        self._unfinished = 0

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)` in a thread.

        Raises:
            RequestError: 503 where too many calls wait already, 504 where it takes too long. What runs is not broken off, and
                counts until it ends.
        """
        with self._lock:
            if self._unfinished >= self._most:
                raise RequestError(503, "too many requests are being worked on: try again in a moment", retry_after=1)
            self._unfinished += 1
        try:
            future = self._executor.submit(function, *arguments)
        except RuntimeError:  # shut down
            self._finished(None)
            raise RequestError(503, "the server is ending") from None
        future.add_done_callback(self._finished)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            raise RequestError(504, f"no result within {self._seconds:g} s: the server is busy, or the work is too large",
                               retry_after=5) from None  # fmt: skip

    def close(self) -> None:
        """Take no more work; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _finished(self, _: "Future[Any] | None") -> None:
        with self._lock:
            self._unfinished -= 1
