"""A calibration as a file holds it, without measuring one."""

from typing import Any

from bdbnet.evaluation.calibration import Calibration, Measured, Pairs


def calibration(threshold: float, unsure_until: float, **made_for: Any) -> Calibration:
    """Below the threshold the probability is above a half, and from `unsure_until` on at most 5 %."""
    pairs = Pairs("rendered", "f" * 64, "test", 30, 100, 10_000)
    return Calibration(
        threshold=threshold,
        made_for={"distance": "euclidean", **made_for},
        fmr=1e-3,
        chosen_fmr=9e-4,
        reached=Measured(2e-3, (1e-3, 3e-3), "bootstrap"),
        true_positive_rate=Measured(0.8, (0.7, 0.9), "bootstrap"),
        chosen_on=pairs,
        held_out=pairs,
        prior=0.5,
        distances=[0.0, threshold, unsure_until, 2 * unsure_until],
        probabilities=[1.0, 0.6, 0.05, 0.0],
        reliability=[],
    )
