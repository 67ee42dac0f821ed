"""Tables and pages from result.json: a run's page, a sweep's table, the comparison of two runs."""

from bdbnet.reporting.loggers import tensorboard_logger, wandb_logger
from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run
from bdbnet.reporting.run_page import write_report

__all__ = ["ReportError", "RunFolder", "read_run", "tensorboard_logger", "wandb_logger", "write_report"]
