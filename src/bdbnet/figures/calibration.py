"""Figures of a calibration: probability by distance, and how far the probabilities can be relied on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdbnet.figures.curves import LIGHT, Theme, _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def probability_curve(
    distances: Sequence[float],
    probabilities: Sequence[float],
    *,
    threshold: float,
    unsure_until: float | None = None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Probability of the same identity by distance, in percent, with the threshold.

    Args:
        distances, probabilities: (K,) of the curve; fractions.
        threshold: marked by a line.
        unsure_until: likewise, where it lies beyond the threshold and is finite.
    """
    figure, axes = _axes(theme, "Probability of the same identity, %")
    x, y = np.asarray(distances), 100 * np.asarray(probabilities)
    shown = np.flatnonzero(y > 0.5)
    last = x[min(shown[-1] + 1, len(x) - 1)] if len(shown) else x[-1]
    right = x[0] + 1.25 * max(last - x[0], 1e-9)
    until = threshold if unsure_until is None or not np.isfinite(unsure_until) else unsure_until
    if until > threshold:
        right = max(right, x[0] + (until - x[0]) / 0.7)  # room for its words
    axes.plot(np.append(x, right), np.append(y, y[-1]), color=theme.lines[0], linewidth=2, solid_capstyle="round")
    axes.set_xlim(min(x[0], threshold), max(right, 1.02 * threshold))
    axes.set_ylim(0, 100)
    axes.set_xlabel("distance", color=theme.text, fontsize=10.5)
    axes.axvline(threshold, color=theme.text, linewidth=1.2, linestyle=(0, (4, 2)))
    # The curve falls: below it there is room at the left, above it at the right.
    begin, end = axes.get_xlim()
    left = threshold - begin > 0.3 * (end - begin)
    _note(axes, f"same < {threshold:.3g}", (threshold, 0.06 if left else 0.9), theme, left=left)
    if until > threshold:
        axes.axvline(until, color=theme.text, linewidth=1.2, linestyle=(0, (1, 2)))
        _note(axes, f"not same > {until:.3g}", (until, 0.9 if left else 0.78), theme, left=False)
    return figure


def reliability_plot(predicted: Sequence[float], observed: Sequence[float], *, theme: Theme = LIGHT) -> "Figure":
    """Share of the same identity among held-out pairs over the probability that was predicted for them, in percent.

    On the dashed line both are equal.

    Args:
        predicted, observed: (B,) of the bins; fractions.
    """
    figure, axes = _axes(theme, "Held-out pairs of one identity, %")
    axes.plot((0, 100), (0, 100), color=theme.text, linewidth=1.2, linestyle=(0, (4, 2)))
    x, y = 100 * np.asarray(predicted), 100 * np.asarray(observed)
    axes.plot(x, y, color=theme.lines[0], linewidth=2, marker="o", markersize=5, clip_on=False)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("predicted probability, %", color=theme.text, fontsize=10.5)
    return figure


def _note(axes: "Axes", text: str, at: tuple[float, float], theme: Theme, *, left: bool) -> None:
    axes.annotate(
        text, at, xycoords=("data", "axes fraction"), xytext=(-5 if left else 5, 0), textcoords="offset points",
        horizontalalignment="right" if left else "left", color=theme.text, fontsize=9.5,
    )  # fmt: skip
