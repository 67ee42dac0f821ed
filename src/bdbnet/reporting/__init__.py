"""Results -> something to read."""

from bdbnet.reporting.dashboard import wandb_logger
from bdbnet.reporting.html import write_report
from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run

__all__ = ["ReportError", "RunFolder", "read_run", "wandb_logger", "write_report"]
