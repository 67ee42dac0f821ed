"""Training and evaluation: where network, losses, data and metrics meet."""

from bdbnet.training.schedules import CosineSchedule, PaperSchedule

__all__ = ["CosineSchedule", "PaperSchedule"]
