"""How the processes of a training meet: who is missing, who sees something else, and what the others say when one ends."""

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.distributed_c10d import PrefixStore, Store

from bdbnet import __version__
from bdbnet.config import ConfigError, flatten
from bdbnet.datasets.union import TrainingSets
from bdbnet.models import read_checkpoint
from bdbnet.settings import setting_of
from bdbnet.training.callbacks import TrainingError
from bdbnet.training.distributed import is_about_others, texts_of_ranks
from bdbnet.training.watching import FAILED, Ended, Watch

#: Image files whose sizes are compared, evenly spread over a data set.
_SAMPLED = 1000

#: Seconds that a process waits for the reason for which another one has ended.
_PATIENCE = 3.0

Facts = Mapping[str, Any]


def facts_of_rank(config: Mapping[str, Any], data: TrainingSets, resume: Path | None) -> Facts:
    """What has to be the same on all ranks.

    Args:
        config: plain settings.
        data: that are trained on.
        resume: checkpoint from which the run resumes.
    """
    rows = np.unique(np.linspace(0, len(data.paths) - 1, _SAMPLED).astype(int))
    sizes = {data.paths[row]: _size(data.paths[row]) for row in rows.tolist()}
    step = None if resume is None else f"{resume.name} of step {read_checkpoint(resume).get('global_step')}"
    return {
        "bdbnet": __version__,
        "PyTorch": torch.__version__,
        "PyTorch Lightning": version("pytorch-lightning"),
        "Python": platform.python_version().rpartition(".")[0],
        "checkpoint to resume from": step,
        "fingerprint of the data": data.fingerprint,
        "size in bytes of": sizes,
        "setting": {
            key: value for key, value in flatten(config) if setting_of(key).resume or key == "trainer.precision"
        },
    }


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def meet(store: Store, rank: int, size: int, facts: Facts, seconds: float) -> None:
    """Wait for all ranks and compare what they see.

    Args:
        store: that all ranks reach.
        seconds: how long this rank waits for the others.

    Raises:
        DisagreementError: ranks are missing, or one sees something else; all that are there raise it.
    """
    hosts: dict[int, str] = {}
    seen: dict[int, Facts | str] = {}
    try:
        store.set(f"bdbnet/{rank}", json.dumps([socket.gethostname(), facts]))
        _read(store, size, seconds, hosts, seen)
        _compare(size, hosts, seen)
    except DisagreementError:
        with suppress(dist.DistError):
            _wait_for_readers(store, rank, [other for other, each in seen.items() if not isinstance(each, str)])
        raise
    except dist.DistError as error:
        raise DisagreementError(
            f"process 0 of {size} (on {hosts.get(0, os.environ.get('MASTER_ADDR'))}) has ended before all have met: it says why"
        ) from error


def _read(store: Store, size: int, seconds: float, hosts: dict[int, str], seen: dict[int, Facts | str]) -> None:
    """Wait for what the ranks say, and put it into ``hosts`` and ``seen``."""
    others, deadline = set(range(size)), time.monotonic() + seconds
    while True:
        for other in [other for other in others if store.check([f"bdbnet/{other}"])]:
            hosts[other], seen[other] = json.loads(store.get(f"bdbnet/{other}"))
            others.remove(other)
            if isinstance(seen[other], str):
                raise DisagreementError(f"process {other} of {size} (on {hosts[other]}) has ended: {seen[other]}")
        if not others:
            return
        if time.monotonic() > deadline:
            raise DisagreementError(_missing(len(seen), size, seconds, f"missing: {_listed(others)}. "))
        time.sleep(0.05)


def _compare(size: int, hosts: Mapping[int, str], seen: Mapping[int, Any]) -> None:
    for other in range(1, size):
        if (found := _difference(seen[0], seen[other])) is not None:
            raise DisagreementError(
                f"processes 0 (on {hosts[0]}) and {other} (on {hosts[other]}) see different things: {found}. All machines need the "
                "same version, command line and data, and one output_root"
            )


def _compare_met(facts: Facts) -> None:
    """Compare what ranks see that have met before.  Raises DisagreementError."""
    said = [json.loads(text) for text in texts_of_ranks(json.dumps([socket.gethostname(), facts]))]
    _compare(
        len(said),
        {rank: host for rank, (host, _) in enumerate(said)},
        {rank: seen for rank, (_, seen) in enumerate(said)},
    )


def _wait_for_readers(store: Store, rank: int, there: Sequence[int], seconds: float = _PATIENCE) -> None:
    """The first rank holds the store, or its agent does: where it ends, nobody can read any more."""
    store.set(f"bdbnet/{rank} has read", "")
    deadline = time.monotonic() + seconds
    while not rank and not store.check([f"bdbnet/{other} has read" for other in there]) and time.monotonic() < deadline:
        time.sleep(0.05)


def _difference(first: Facts, other: Facts) -> str | None:
    for name, value in first.items():
        if isinstance(value, dict):
            for key in [*value, *(other[name].keys() - value.keys())]:
                if value.get(key) != other[name].get(key):
                    return f"{name} {key} is {value.get(key)} and {other[name].get(key)}"
        elif value != other[name]:
            return f"{name} is {value} and {other[name]}"
    return None


def _listed(ranks: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:8]))
    return f"{'process' if len(ranks) == 1 else 'processes'} {shown}" + (", ..." if len(ranks) > 8 else "")


def _missing(there: int, size: int, seconds: float, which: str = "") -> str:
    return (
        f"{there} of {size} processes have met within {seconds:g} s at MASTER_ADDR={os.environ.get('MASTER_ADDR')} "
        f"MASTER_PORT={os.environ.get('MASTER_PORT')}; {which}Start the same command on every machine (each with a number of its "
        "own: NODE_RANK, or torchrun --node-rank), open that port between them, or wait longer: trainer.join_seconds=600"
    )


class DisagreementError(ConfigError):
    """Ranks that see different things, are missing, or have ended; all ranks raise it."""


class Rendezvous:
    """The ranks that train together, from their meeting on.

    Args:
        trainer: whose strategy starts them; nothing is changed where it has one process.
        facts: makes what has to be the same on all ranks.
        seconds: how long a rank waits for the others.
    """

    _met: ClassVar[Store | None] = None  # of the process, as PyTorch's process group is

    def __init__(self, trainer: pl.Trainer, facts: Callable[[], Facts], seconds: float) -> None:
        self._trainer, self._facts, self._seconds = trainer, facts, seconds
        self._store: Store | None = None
        self._watch: Watch | None = None
        if trainer.world_size > 1 and isinstance(trainer.strategy, DDPStrategy):
            self._connect = trainer.strategy.setup_distributed
            trainer.strategy.setup_distributed = self._meet  # type: ignore[method-assign]

    def _meet(self) -> None:
        if dist.is_initialized():  # a second training of the same processes, in a sweep
            _compare_met(self._facts())
            return self._begin(Rendezvous._met)
        strategy = cast(DDPStrategy, self._trainer.strategy)
        strategy.set_world_ranks()
        place = strategy.cluster_environment
        assert place is not None
        os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
        rank, size, facts = strategy.global_rank, strategy.world_size, self._facts()
        try:
            store = joined(rank, size, self._seconds)
            meet(store, rank, size, facts, self._seconds)
        except ConfigError:
            if strategy.local_rank:  # all ranks raise it: one of each machine says it
                time.sleep(2 * _PATIENCE)  # torchrun ends all of a machine with the first that ends
                raise SystemExit(1) from None
            raise
        backend = strategy._get_process_group_backend()
        device = strategy.root_device if strategy.root_device.type != "cpu" else None
        usual = strategy._timeout or dist.constants.default_pg_timeout
        store.set_timeout(usual)
        group = PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=usual, device_id=device)
        self._begin(store)

    def _begin(self, store: Store | None) -> None:
        self._store = Rendezvous._met = store
        if store is not None:
            strategy, size = cast(DDPStrategy, self._trainer.strategy), self._trainer.world_size
            own = _reached(size, self._seconds, is_master=False)
            self._watch = Watch(own, strategy.global_rank, size, self._end)
            self._watch.start()
        self._connect()  # finds that all is there

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the other ranks of an error in the block, and end in order where another one has ended.

        Raises:
            TrainingError: another rank has ended; says why, on the first rank of each machine other than that rank's.
            SystemExit: another rank has ended, and it is said elsewhere.
        """
        try:
            yield
        except Exception as error:
            if self._store is None:
                raise
            strategy = cast(DDPStrategy, self._trainer.strategy)
            if not is_about_others(error):
                self._tell(strategy, f"{type(error).__name__}: {error}")
                raise
            ended = self._reason()
            if not self._has_to_say(ended):
                raise SystemExit(1) from None
            raise TrainingError(self._sentence(ended)) from None
        finally:
            if self._watch is not None:
                self._watch.finish()

    def _has_to_say(self, ended: Ended) -> bool:
        """Whether this rank is the first of a machine other than that of the rank that has ended, which says it itself."""
        strategy = cast(DDPStrategy, self._trainer.strategy)
        return not strategy.local_rank and (ended.node is None or ended.node != strategy.node_rank)

    def _sentence(self, ended: Ended) -> str:
        place = "" if ended.host is None else f" (on {ended.host})"
        who = "another process" if ended.rank is None else f"process {ended.rank}{place}"
        return f"{who} of the {self._trainer.world_size} that train together has ended: {ended.reason}"

    def _end(self, ended: Ended) -> None:
        """End this process, whose main thread waits for a rank that is gone and can't be woken."""
        if self._has_to_say(ended):
            print(f"error: {self._sentence(ended)}", file=sys.stderr, flush=True)
        os._exit(1)

    def _tell(self, strategy: DDPStrategy, message: str) -> None:
        assert self._store is not None
        record = [strategy.global_rank, strategy.node_rank, socket.gethostname(), message]
        try:
            self._store.set_timeout(timedelta(seconds=_PATIENCE))
            self._store.set(FAILED, json.dumps(record))
        except RuntimeError:  # the process that holds the store has ended before
            return
        if strategy.global_rank == 0:
            time.sleep(_PATIENCE)  # it is the one that holds it: the others read

    def _reason(self) -> Ended:
        """The rank that has ended first."""
        assert self._store is not None
        deadline = time.monotonic() + _PATIENCE
        with suppress(RuntimeError):  # the process that holds the store has ended
            while time.monotonic() < deadline:
                if self._store.check([FAILED]):
                    return Ended(*json.loads(self._store.get(FAILED)))
                time.sleep(0.05)
        return Ended(None, None, None, "it has left no message; was it killed, or out of memory?")


def joined(rank: int, size: int, seconds: float) -> Store:
    """The store of the first rank, at MASTER_ADDR and MASTER_PORT.

    Raises:
        ConfigError: its port is in use, or it does not answer in time.
    """
    deadline = time.monotonic() + seconds
    while rank and not _answers():
        if time.monotonic() > deadline:
            raise ConfigError(_missing(1, size, seconds, "process 0 does not answer. "))
        time.sleep(0.2)
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = _reached(size, seconds, is_master=not rank and not of_agent)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" not in reason:
            raise ConfigError(_missing(1, size, seconds, f"{reason} ")) from error
        raise ConfigError(
            f"MASTER_PORT={os.environ['MASTER_PORT']} of {socket.gethostname()} is in use by another program: choose another, the "
            "same on all machines"
        ) from error
    return store


def _reached(size: int, seconds: float, *, is_master: bool) -> Store:
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store = cast(Any, dist).TCPStore(
        *place, size, is_master=is_master, timeout=timedelta(seconds=seconds), wait_for_workers=False
    )
    return store


def _answers() -> bool:
    """Whether the first rank's store can be reached. PyTorch's own attempts fill the terminal."""
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
    except OSError:
        return False
    return True


def check_started(ranks: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a training that has another number of ranks than torchrun or srun have started processes: each would train by itself.

    One process may start the others itself, as in a shell that srun opened.

    Args:
        ranks: of the training, ``trainer.devices`` times ``trainer.num_nodes``.

    Raises:
        ConfigError: says how many there are, and which keys to type.
    """
    for starter, mark, total in (
        ("torchrun", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"),
        ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ):
        started = environment.get(total, "")
        if mark in environment and started.isdigit() and int(started) not in (1, ranks):
            raise ConfigError(
                f"{starter} started {started} processes, but the training has {ranks} (trainer.devices times trainer.num_nodes), "
                "so each would train by itself: set trainer.devices to the processes of one machine, and trainer.num_nodes to the "
                "number of machines"
            )


@contextmanager
def told_before_meeting() -> Iterator[None]:
    """Under torchrun, which knows of one machine alone: tell the other ranks of an error, which would wait for this one."""
    try:
        yield
    except Exception as error:
        numbered = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if numbered and not dist.is_initialized() and not isinstance(error, DisagreementError):
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            with suppress(ConfigError, RuntimeError):
                store = joined(rank, size, 10 * _PATIENCE)
                store.set(f"bdbnet/{rank}", json.dumps([socket.gethostname(), str(error)]))
                _wait_for_readers(store, rank, range(size), 10 * _PATIENCE)
        raise
