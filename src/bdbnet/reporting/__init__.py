"""Tables and pages from result.json: a run's page, a sweep's table, the comparison of two runs."""

from bdbnet.reporting.loggers import tensorboard_logger, wandb_logger
from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run
from bdbnet.reporting.run_page import write_report
from bdbnet.reporting.sweep import read_sweep

__all__ = [
    "ReportError",
    "RunFolder",
    "read_run",
    "read_sweep",
    "tensorboard_logger",
    "wandb_logger",
    "write_report",
]
