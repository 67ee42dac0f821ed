"""`WorkerLoader`: a `DataLoader` whose worker processes leave signals to the main process, and how many of them there are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from bdbnet.datasets.checking import usable_cores
from bdbnet.stopping import leave_signals_to_parent, signals_held

T = TypeVar("T")
_MOST_WORKERS = 8


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


def default_workers(local_ranks: int = 1) -> int:
    """Worker processes for one rank: half of the usable cores, divided by the ranks of this machine; 1 to 8."""
    return min(max(usable_cores() // (2 * local_ranks), 1), _MOST_WORKERS)
