"""Results -> something to read."""

from bdbnet.reporting.html import write_report
from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run

__all__ = ["ReportError", "RunFolder", "read_run", "write_report"]
