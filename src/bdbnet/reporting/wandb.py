"""Weights & Biases logger; the only file of the package that imports wandb."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdbnet.results import METRICS

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger


def wandb_logger(
    *,
    save_dir: str | Path,
    project: str = "bdbnet",
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    offline: bool = True,
    tags: list[str] | None = None,
) -> "WandbLogger":
    """A W&B logger that writes its run below ``save_dir`` and stays offline unless asked.

    W&B itself keeps a debug log in the user's cache folder besides. Metrics of the evaluated test set are summarised by their
    best value, losses by their minimum: W&B's own summary, the last value, hides an earlier peak. Whoever trains calls
    ``logger.experiment.finish()`` at the end, also after an error.

    Args:
        save_dir: run folder; W&B makes a folder ``wandb`` in it.
        project, name, group, job_type, tags: as W&B has them.
        offline: write files that ``wandb sync`` sends later; nothing leaves the machine.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    logger = WandbLogger(
        save_dir=str(save_dir), project=project, name=name, group=group, job_type=job_type, offline=offline, tags=tags,
        settings=wandb.Settings(console="off", silent=True),
    )  # fmt: skip
    run: Any = logger.experiment
    run.define_metric("trainer/global_step")
    for name, summary in _summaries().items():
        run.define_metric(name, step_metric="trainer/global_step", summary=summary)
    run.define_metric("loss*", step_metric="trainer/global_step", summary="min")
    return logger


def _summaries() -> dict[str, str]:
    """Every metric in W&B's pattern of names, with the summary that is its best value."""
    summaries = {"higher": "max", "lower": "min"}
    return {
        metric.name.replace("{k}", "*"): summaries[metric.better]
        for metric in METRICS.values()
        if metric.better in summaries
    }
