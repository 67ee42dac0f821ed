"""The loggers that a configuration names: dashboards of runs in W&B and in TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bdbnet.reporting.tensorboard import TensorBoardDashboard
    from bdbnet.reporting.wandb import WandbDashboard


def wandb_logger(
    *,
    save_dir: str | Path,
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    offline: bool | None = None,
    images: bool | None = None,
    ranking_lists: int = 8,
    worst_queries: int = 20,
    distances: bool = True,
    masks: bool = True,
    activation_maps: int = 4,
    model: bool = True,
    result: bool = True,
) -> "WandbDashboard":
    """A W&B logger that writes its run below ``save_dir`` and stays offline unless asked.

    What is None here is decided by W&B's environment variables (``WANDB_PROJECT``, ``WANDB_MODE``, ...), and without those by the
    run: its name, the sweep as its group, the command as its job type. W&B itself keeps a debug log in the user's cache folder.

    Args:
        save_dir: run folder; W&B makes a folder ``wandb`` in it, unless ``WANDB_DIR`` names another place.
        project, entity, name, group, job_type, notes: as W&B has them.
        tags: further ones, beside data set, loss and experiment.
        offline: write files that ``wandb sync`` sends later; nothing leaves the machine. None: as ``WANDB_MODE`` says, else true.
        images, ranking_lists, worst_queries, distances, masks, activation_maps: see `bdbnet.reporting.run_pictures.Shown`.
        model: log the trained network as an artifact, the folder of ``Embedder.save``.
        result: log the files of the result as an artifact.

    Raises:
        ConfigError: wandb is missing or can't be imported.
    """
    from bdbnet.reporting.run_pictures import Shown
    from bdbnet.reporting.wandb import WandbDashboard

    return WandbDashboard(
        save_dir=str(save_dir), project=project, entity=entity, name=name, group=group, job_type=job_type, notes=notes,
        tags=list(tags or ()), offline=offline,
        shown=Shown(images, ranking_lists, worst_queries, distances, masks, activation_maps),
        model=model, result=result,
    )  # fmt: skip


def tensorboard_logger(
    *,
    save_dir: str | Path,
    name: str = "tensorboard",
    version: int | str = "",
    sub_dir: str | None = None,
    prefix: str = "",
    images: bool | None = None,
    ranking_lists: int = 8,
    worst_queries: int = 20,
    distances: bool = True,
    masks: bool = True,
    activation_maps: int = 4,
) -> "TensorBoardDashboard":
    """A TensorBoard logger with the sections, pictures and tables of the W&B one.

    Args:
        save_dir, name, version, sub_dir: the files lie in ``save_dir/name/version/sub_dir``.
        prefix: before every name.
        images, ranking_lists, worst_queries, distances, masks, activation_maps: see `bdbnet.reporting.run_pictures.Shown`.

    Raises:
        ConfigError: tensorboard is missing.
    """
    from bdbnet.reporting.run_pictures import Shown
    from bdbnet.reporting.tensorboard import TensorBoardDashboard

    shown = Shown(images, ranking_lists, worst_queries, distances, masks, activation_maps)
    return TensorBoardDashboard(str(save_dir), name, version, sub_dir=sub_dir, prefix=prefix, shown=shown)
