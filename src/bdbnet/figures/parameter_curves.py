"""Metrics over settings: curves over a numeric setting, dots for settings that are names."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bdbnet.figures.curves import LIGHT, Line, Theme, _axes, _label_lines, _power, fit_left

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Longer names are in a legend below the axes instead of beside the lines.
_LONGEST_LABEL = 18
_MARKERS = ("o", "s", "^", "D", "v", "P")


class ParameterCurve(NamedTuple):
    """One line: `x`, `y` and `error` (half the length of the error bars) have the same length.

    None and NaN in `y` leave a gap, in `error` they leave out the bar. Dashed lines are for numbers from elsewhere.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    error: Sequence[float | None] | None = None
    dashed: bool = False


class ConfigurationDot(NamedTuple):
    """One row of a dot plot; `error` is half the length of its bar."""

    name: str
    value: float
    error: float | None = None


def parameter_curves(
    title: str, x_label: str, y_label: str, lines: Sequence[ParameterCurve], *, theme: Theme = LIGHT
) -> "Figure":
    """Curves over a numeric setting with a marker at every measured point.

    The setting's axis is logarithmic where positive values span a factor of 100 or more.

    Raises:
        ValueError: the parts of a line differ in length.
    """
    for line in lines:
        for part, values in (("y", line.y), ("error", line.error)):
            if values is not None and len(values) != len(line.x):
                raise ValueError(f"lines: {line.name}: {part} has {len(values)} values for {len(line.x)} of x")
    named = [line.name for line in lines if line.name]
    beside = bool(named) and max(map(len, named)) <= _LONGEST_LABEL
    figure, axes = _axes(theme, title, left=0.165 if y_label else 0.1)
    axes.set_xlabel(x_label, color=theme.text, fontsize=10.5)
    axes.set_ylabel(y_label, color=theme.text, fontsize=10.5)
    series = [Line(line.name, _numbers(line.x), _numbers(line.y)) for line in lines]
    for i, (line, (_, x, y)) in enumerate(zip(lines, series)):
        bars = axes.errorbar(
            x,
            y,
            yerr=None if line.error is None else _numbers(line.error),
            color=theme.lines[i % len(theme.lines)],
            linestyle=(0, (4, 1.5)) if line.dashed else "-",
            linewidth=2,
            elinewidth=1.2,
            capsize=3,
            marker=_MARKERS[i // len(theme.lines) % len(_MARKERS)],
            markersize=5,
            markerfacecolor=theme.background if line.dashed else None,
        )
        bars.lines[0].set_label(line.name)
    _scale_x(axes, np.concatenate([x[np.isfinite(y)] for _, x, y in series] or [np.empty(0)]))
    heights = np.unique(np.concatenate([y[np.isfinite(y)] for _, _, y in series] or [np.empty(0)]))
    if len(heights) == 1 and np.ptp(axes.get_ylim()) < 2:  # Matplotlib would magnify a flat line without bars to noise
        axes.set_ylim(heights[0] - 1, heights[0] + 1)
    if beside:
        _label_lines(axes, series, theme)
    elif named:
        _legend(figure, axes, theme, len(named))
    fit_left(figure, axes)
    return figure


def configuration_dots(title: str, x_label: str, dots: Sequence[ConfigurationDot], *, theme: Theme = LIGHT) -> "Figure":
    """One dot per configuration, in the order given from top to bottom, with its name at the left."""
    from matplotlib.ticker import MaxNLocator

    names = [textwrap.fill(dot.name, 24, break_long_words=True) for dot in dots]
    heights = [0.16 + 0.17 * (name.count("\n") + 1) for name in names]
    below = 0.6 if x_label else 0.38
    total = 0.45 + sum(heights) + below
    figure, axes = _axes(theme, title)
    figure.set_size_inches(4.6, total)
    figure.texts[0].set_y(1 - 0.22 / total)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    left = 0.04 + 0.0197 * longest
    axes.set_position((left, below / total, 0.96 - left, sum(heights) / total))
    places = -(np.cumsum(heights) - np.array(heights) / 2)
    for place, dot in zip(places, dots):
        axes.errorbar(
            dot.value, place, xerr=dot.error, color=theme.lines[0], marker="o", markersize=7, elinewidth=1.2, capsize=3
        )
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(x_label, color=theme.text, fontsize=10.5)
    axes.set_yticks(places, names)
    axes.set_ylim(-sum(heights), 0)
    axes.margins(x=0.08)
    fit_left(figure, axes)
    return figure


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _scale_x(axes: "Axes", x: np.ndarray) -> None:
    """Ticks at the measured values where they are few and apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    values = np.unique(x[np.isfinite(x)])
    logarithmic = len(values) > 1 and values[0] > 0 and values[-1] / values[0] >= 100
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    places = np.log(values) if logarithmic else values
    apart = len(values) < 2 or np.diff(places).min() >= 0.09 * (places[-1] - places[0])
    if apart and len(values):
        axes.xaxis.set_major_locator(FixedLocator(values.tolist()))
    elif not logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value) if logarithmic else f"{value:g}"))


def _legend(figure: "Figure", axes: "Axes", theme: Theme, count: int) -> None:
    """Names below the axes, one per line; the figure grows by them."""
    added = 0.24 * count
    width, height = figure.get_size_inches()
    left, bottom, across, up = axes.get_position().bounds
    figure.set_size_inches(width, height + added)
    scale = height / (height + added)
    axes.set_position((left, 1 - (1 - bottom) * scale, across, up * scale))
    figure.texts[0].set_y(1 - (1 - figure.texts[0].get_position()[1]) * scale)
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 0),
        bbox_transform=figure.transFigure,
        frameon=False,
        fontsize=10,
        labelcolor=theme.text,
    )
    legend.set_in_layout(False)
