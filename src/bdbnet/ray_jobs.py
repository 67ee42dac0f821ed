"""Jobs of a sweep on Ray: a job whose worker dies is run again and resumes, one that fails leaves the others alone."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import DictConfig, open_dict

from bdbnet.results import versions
from bdbnet.settings import ConfigError
from bdbnet.stopping import in_main_thread
from hydra_plugins.bdbnet_ray import RayLauncher


class SweepError(RuntimeError):
    """Jobs of a sweep without a result; the message names them, and why."""


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
    lost = 128 + signal.SIGTERM  # exit status of a job whose machine is taken away: another worker can do it
    tries, done, failed = [1] * len(overrides), dict[int, JobReturn](), dict[int, str]()
    with _connected(launcher.address) as ray:
        gpus = launcher.gpus if launcher.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
        # Lost work is counted here: Ray would run the same job again, which has to resume instead.
        remote = ray.remote(num_cpus=launcher.cpus, num_gpus=gpus, max_retries=0)(_run)
        shared = ray.put((launcher.hydra_context, launcher.task_function, Singleton.get_state(), str(Path.cwd())))

        def start(number: int) -> Any:
            config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, [*overrides[number]])
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = f"ray_{first + number}", first + number
                if tries[number] > 1 and "ckpt_path" in config and config.ckpt_path is None and not config.overwrite:
                    config.ckpt_path = "last"
            return remote.remote(shared, config, versions().get("bdbnet"))

        running = {start(number): number for number in range(len(overrides))}
        try:
            while running:
                (ended,), _ = ray.wait([*running], num_returns=1)
                number = running.pop(ended)
                try:
                    found, status = ray.get(ended)
                except ray.exceptions.RayTaskError as error:
                    found, status = str(error.cause or error), 1
                except ray.exceptions.RayError as error:  # the worker or its machine died, or ran out of memory
                    found, status = f"its worker died ({str(error).splitlines()[0]})", lost
                if isinstance(found, JobReturn):
                    done[number] = found
                elif status == lost and tries[number] < launcher.tries:
                    tries[number] += 1
                    print(f"job {first + number + 1} is run again: {found}", flush=True)
                    running[start(number)] = number
                else:
                    failed[number] = found
        except BaseException:
            for each in running:  # trainings keep the step that they are at, see `stopping`
                ray.cancel(each, force=False)
            if running:
                ray.wait([*running], num_returns=len(running), timeout=60)
            raise
    if failed:
        same = set(overrides[0]).intersection(*overrides)
        names = {n: [f"job {first + n + 1}", *(each for each in overrides[n] if each not in same)] for n in failed}
        said = "".join(f"\n  {' '.join(name)}: {failed[n]}" for n, name in sorted(names.items()))
        raise SweepError(f"{len(failed)} of {len(overrides)} jobs have no result:{said}")
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
            "both hydra.launcher.address and RAY_ADDRESS out to run on this machine alone (ray stop forgets a lost cluster)"
        ) from error
    try:
        if in_main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
        yield ray
    finally:
        ray.shutdown()


def _run(shared: tuple[Any, ...], config: DictConfig, version: str | None) -> tuple[JobReturn | str, int]:
    """A job, in a worker of Ray: what it returned, or why it has ended; and its exit status."""
    context, task, state, folder = shared
    if version != (own := versions().get("bdbnet")):
        raise ConfigError(f"{os.uname().nodename} has bdbnet {own}, the sweep was started by {version}")
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    try:
        done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    except SystemExit as end:  # of a command that has said why; it would be the end of Ray's worker, too
        return str(end.__context__ or f"exit status {end.code}"), end.code if isinstance(end.code, int) else 1
    return (done, 0) if done.status == JobStatus.COMPLETED else (f"{done._return_value!r}", 1)
