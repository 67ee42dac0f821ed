"""Network and images -> embeddings -> metrics, ranking lists and an analysis of the errors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdbnet.evaluation.calibrating import Comparison, calibrate, comparison_of
    from bdbnet.evaluation.calibration import Calibration
    from bdbnet.evaluation.maps import half_energy_area
    from bdbnet.evaluation.significance import bootstrap_interval, paired_difference
    from bdbnet.evaluation.verification import coarse_histogram, equal_error, pair_distances, roc_points

# Imported when first used: torch takes seconds, and who compares numbers does not need it.
_HOMES = {
    "bdbnet.evaluation.calibrating": ("Comparison", "calibrate", "comparison_of"),
    "bdbnet.evaluation.calibration": ("Calibration",),
    "bdbnet.evaluation.maps": ("half_energy_area",),
    "bdbnet.evaluation.significance": ("bootstrap_interval", "paired_difference"),
    "bdbnet.evaluation.verification": ("coarse_histogram", "equal_error", "pair_distances", "roc_points"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Calibration",
    "Comparison",
    "bootstrap_interval",
    "calibrate",
    "coarse_histogram",
    "comparison_of",
    "equal_error",
    "half_energy_area",
    "pair_distances",
    "paired_difference",
    "roc_points",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
