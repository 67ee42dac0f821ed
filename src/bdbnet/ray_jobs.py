"""Jobs of a sweep on Ray: a job whose worker dies is run again and resumes, one that fails leaves the others alone."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from omegaconf import DictConfig, open_dict

from bdbnet.settings import ConfigError
from bdbnet.stopping import in_main_thread
from hydra_plugins.bdbnet_ray import RayLauncher


class SweepError(RuntimeError):
    """Jobs of a sweep without a result; the message names them, and why."""


@dataclass(frozen=True)
class _Ended:
    """A job that left with an exit status; the command has said why where it ran."""

    status: int
    reason: str


def run_jobs(launcher: RayLauncher, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the jobs of a sweep, as many at once as the cluster has room for.

    Args:
        overrides: of each job.
        first: number of the first one.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
        SweepError: jobs failed, or lost their workers `tries` times; all others are done.
    """
    setup_globals()
    folder = Path(str(launcher.config.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    with _connected(launcher.address) as ray:
        gpus = launcher.gpus if launcher.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
        # Lost work is counted here: Ray would run the same job again, which has to resume instead.
        remote = ray.remote(num_cpus=launcher.cpus, num_gpus=gpus, max_retries=0)(_run)
        shared = ray.put((launcher.hydra_context, launcher.task_function, Singleton.get_state(), str(Path.cwd())))

        def start(number: int, *, again: bool = False) -> Any:
            config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, [*overrides[number]])
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = f"ray_{first + number}", first + number
                if again and "ckpt_path" in config and config.ckpt_path is None and not config.overwrite:
                    config.ckpt_path = "last"
            return remote.remote(shared, config, _version())

        tries = [1] * len(overrides)
        running = {start(number): number for number in range(len(overrides))}
        done: dict[int, JobReturn] = {}
        failed: dict[int, str] = {}
        try:
            while running:
                (ended,), _ = ray.wait([*running], num_returns=1)
                number = running.pop(ended)
                found, lost = _outcome(ray, ended)
                if isinstance(found, JobReturn):
                    done[number] = found
                elif lost and tries[number] < launcher.tries:
                    tries[number] += 1
                    print(f"job {first + number + 1} is run again: {found}", flush=True)
                    running[start(number, again=True)] = number
                else:
                    failed[number] = found
        except BaseException:
            for each in running:  # trainings keep the step that they are at, see `stopping`
                ray.cancel(each, force=False)
            ray.wait([*running], num_returns=len(running), timeout=60)
            raise
    if failed:
        lines = [f"  {' '.join(overrides[number])}: {reason}" for number, reason in sorted(failed.items())]
        raise SweepError("\n".join([f"{len(failed)} of {len(overrides)} jobs have no result:", *lines]))
    return [done[number] for number in range(len(overrides))]


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray's module, connected to a cluster, or to one on this machine for as long as the block lasts."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # jobs that print the same line are two jobs
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ConfigError(f"hydra/launcher=ray needs Ray ({error}): pip install 'bdbnet[ray]'") from error
    where, handler = address or os.environ.get("RAY_ADDRESS") or "", signal.getsignal(signal.SIGTERM)
    host, _, port = where.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, logging_level="WARNING")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"hydra.launcher.address={where}: no Ray cluster answers there ({error}). Start one (ray start --head), or leave "
            "hydra.launcher.address and RAY_ADDRESS out to run on this machine alone"
        ) from error
    if in_main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
    try:
        yield ray
    finally:
        ray.shutdown()


def _outcome(ray: Any, job: Any) -> tuple[Any, bool]:
    """What a job returned, or why it has no result and whether that is because its worker is gone."""
    try:
        found = ray.get(job)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause or error), False
    except ray.exceptions.RayError as error:  # the worker or its machine died, or ran out of memory
        return f"its worker died ({str(error).splitlines()[0]})", True
    if isinstance(found, _Ended):  # 143 after SIGTERM: the machine is taken away
        return found.reason, found.status == 128 + signal.SIGTERM
    return found, False


def _version() -> str:
    return str(import_module("bdbnet").__version__)


def _run(shared: tuple[Any, ...], config: DictConfig, version: str) -> JobReturn | _Ended:
    """A job, in a worker of Ray."""
    context, task, state, folder = shared
    if version != _version():
        raise ConfigError(
            f"bdbnet {_version()} is installed on {os.uname().nodename}, the sweep was started by {version}"
        )
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    try:
        return run_job(
            hydra_context=context, task_function=task, config=config, job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip
    except SystemExit as end:  # the end of a command that has said why; it would be the end of Ray's worker, too
        return _Ended(end.code if isinstance(end.code, int) else 1, str(end.__context__ or f"exit status {end.code}"))
