"""Training and evaluation: where network, losses, data and metrics meet."""

from bdbnet.training.schedules import PaperSchedule

__all__ = ["PaperSchedule"]
