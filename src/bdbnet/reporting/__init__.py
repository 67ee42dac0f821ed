"""Tables and pages from result.json: a run's page, a sweep's table, the comparison of two runs."""

from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run
from bdbnet.reporting.run_page import write_report
from bdbnet.reporting.sweep import read_sweep
from bdbnet.reporting.wandb import wandb_logger

__all__ = ["ReportError", "RunFolder", "read_run", "read_sweep", "wandb_logger", "write_report"]
