"""Tables and pages from result.json: a run's page, a sweep's table, the comparison of two runs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdbnet.reporting.loggers import tensorboard_logger, wandb_logger
    from bdbnet.reporting.run_folder import ReportError, RunFolder, read_run
    from bdbnet.reporting.run_page import write_report
    from bdbnet.reporting.sweep import read_sweep

# Imported when first used: torch takes seconds, and Hydra imports the progress of a sweep before it looks at any setting.
_HOMES = {
    "bdbnet.reporting.loggers": ("tensorboard_logger", "wandb_logger"),
    "bdbnet.reporting.run_folder": ("ReportError", "RunFolder", "read_run"),
    "bdbnet.reporting.run_page": ("write_report",),
    "bdbnet.reporting.sweep": ("read_sweep",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ReportError",
    "RunFolder",
    "read_run",
    "read_sweep",
    "tensorboard_logger",
    "wandb_logger",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
