"""`hydra/launcher=ray`: Hydra looks for launchers in the package `hydra_plugins` alone."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RayLauncher(Launcher):
    """Runs the jobs of a sweep on Ray, see `bdbnet.ray_jobs`; the arguments are explained in `conf/hydra/launcher/ray.yaml`."""

    def __init__(self, address: str | None, cpus: float, gpus: float | None, tries: int) -> None:
        self.address, self.cpus, self.gpus, self.tries = address, cpus, gpus, tries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bdbnet.ray_jobs import run_jobs  # Hydra imports this file at every start of every command

        return run_jobs(self, job_overrides, initial_job_idx)
