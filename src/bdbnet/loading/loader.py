"""`WorkerLoader`: a `DataLoader` whose worker processes leave signals to the main process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from bdbnet.stopping import leave_signals_to_parent, signals_held

T = TypeVar("T")


class WorkerLoader(DataLoader[T]):
    """Like `DataLoader`; its workers live on when SIGINT or SIGTERM comes to all processes of a group."""

    def __iter__(self) -> Any:
        if self.num_workers == 0:
            return super().__iter__()
        if not isinstance(self.worker_init_fn, _InWorker):
            self.worker_init_fn = _InWorker(self.worker_init_fn)
        with signals_held():  # until a worker has done that, too
            return super().__iter__()


@dataclass(frozen=True)
class _InWorker:
    """What a worker does first: leave signals to the main process, then what the loader was told."""

    also: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        leave_signals_to_parent()
        if self.also is not None:
            self.also(worker)
