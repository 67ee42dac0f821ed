"""Figures of an error analysis: distances of pairs, ROC, results by camera, average precision of the queries."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdbnet.figures.curves import LIGHT, Theme, _axes, _power

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def distance_distributions(
    edges: Sequence[float],
    positives: Sequence[float],
    negatives: Sequence[float],
    *,
    threshold: float | None = None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Shares of pairs by distance, pairs of one identity over pairs of two, with the line between them.

    Args:
        edges: (B + 1,) of the bins.
        positives, negatives: (B,) share of the pairs of a kind in each bin, fractions.
        threshold: a distance to be marked.
    """
    figure, axes = _axes(theme, "Distances of pairs, % of each kind")
    axes.set_xlabel("distance", color=theme.text, fontsize=10.5)
    same, different = theme.lines[:2]
    axes.stairs(
        100 * np.asarray(positives), edges, color=same, alpha=0.25, fill=True
    )  # distinguishable without colours too
    for values, colour in ((positives, same), (negatives, different)):
        axes.stairs(100 * np.asarray(values), edges, color=colour, linewidth=2)
    axes.set_ylim(0, 118 * max((*positives, *negatives)))
    axes.set_xlim(edges[0], edges[-1])
    _names_above(axes, [("two identities", different), ("same identity", same)])
    if threshold is not None:
        axes.axvline(threshold, color=theme.text, linewidth=1.2, linestyle=(0, (4, 2)))
        right = threshold > sum(axes.get_xlim()) / 2
        axes.annotate(
            f"threshold {threshold:.3g}",
            (threshold, 0.93),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if right else 5, 0),
            textcoords="offset points",
            horizontalalignment="right" if right else "left",
            verticalalignment="center",
            color=theme.text,
            fontsize=9.5,
        )
    return figure


def roc_curve(
    false_positive_rate: Sequence[float],
    true_positive_rate: Sequence[float],
    *,
    marks: Sequence[tuple[str, float, float]] = (),
    theme: Theme = LIGHT,
) -> "Figure":
    """True positive rate over the false positive rate on a logarithmic axis, both in percent.

    Args:
        false_positive_rate, true_positive_rate: fractions (P,), ascending; points at a false positive rate of 0 can't be
            shown.
        marks: name, false and true positive rate of points to be marked.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axes = _axes(theme, "Same identity or not: ROC", left=0.165)
    false, true = 100 * np.asarray(false_positive_rate), 100 * np.asarray(true_positive_rate)
    shown = false > 0
    lowest = min(false[shown].min(initial=100), 50)
    if not shown.all() and lowest < false[shown].min(initial=100):  # so few points that there would be no line
        false, true = np.append(lowest, false[shown]), np.append(true[~shown].max(), true[shown])
        shown = false > 0
    axes.plot(false[shown], true[shown], color=theme.lines[0], linewidth=2, solid_capstyle="round", clip_on=False)
    axes.set_xscale("log")
    axes.set_xlim(lowest, 100)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > 1 else (1,), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 0.01 else _power(value)))
    axes.minorticks_off()
    axes.tick_params(axis="x", pad=7)
    axes.set_xlabel("false positives, %", color=theme.text, fontsize=10.5)
    axes.set_ylabel("true positives, %", color=theme.text, fontsize=10.5)
    for name, x, y in marks:
        axes.plot(100 * x, 100 * y, "o", color=theme.lines[1], markersize=6, clip_on=False)
        above = y < 0.5
        axes.annotate(
            name,
            (100 * x, 100 * y),
            xytext=(-6 if above else 8, 6 if above else -13),
            textcoords="offset points",
            horizontalalignment="right" if above else "left",
            color=theme.text,
            fontsize=9.5,
        )
    return figure


def camera_matrix(
    title: str,
    values: Sequence[Sequence[float | None]],
    query_cameras: Sequence[int],
    gallery_cameras: Sequence[int],
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """A matrix of numbers for pairs of cameras, in percent; lower numbers have a stronger colour.

    Args:
        title: what the numbers are.
        values: (A, B) fractions, a row per query camera; None where there is no query.
        query_cameras, gallery_cameras: (A,) and (B,).
    """
    from matplotlib.colors import LinearSegmentedColormap

    numbers = 100 * np.array([[np.nan if value is None else value for value in row] for row in values])
    rows, columns = numbers.shape
    figure, axes = _axes(theme, title, left=0.13)
    width, height = max(4.6, 0.9 + 0.5 * columns), max(2.2, 1.15 + 0.36 * rows)
    figure.set_size_inches(width, height)
    axes.set_position((0.65 / width, 0.55 / height, 1 - 0.8 / width, 1 - 1.05 / height))
    figure.texts[0].set_y(1 - 0.24 / height)
    shades = LinearSegmentedColormap.from_list("cameras", [theme.lines[1], theme.background])
    axes.imshow(numbers, cmap=shades, vmin=0, vmax=100, aspect="auto")
    write_numbers(axes, numbers, shades(numbers / 100), theme)
    axes.set_xticks(range(columns), [str(camera) for camera in gallery_cameras])
    axes.set_yticks(range(rows), [str(camera) for camera in query_cameras])
    axes.set_xlabel("gallery camera", color=theme.text, fontsize=10.5)
    axes.set_ylabel("query camera", color=theme.text, fontsize=10.5)
    return figure


def write_numbers(axes: "Axes", numbers: np.ndarray, colours: np.ndarray, theme: Theme) -> None:
    """Write the numbers (R, C) into the cells of a matrix that are drawn in these colours (R, C, 4); NaN is a dash."""
    from matplotlib.colors import to_rgb

    dark, light = sorted((theme.text, theme.background), key=lambda colour: _light(to_rgb(colour)))
    for row, column in np.ndindex(*numbers.shape):
        missing = bool(np.isnan(numbers[row, column]))
        cell = to_rgb(theme.background) if missing else colours[row, column]
        axes.text(
            column,
            row,
            "-" if missing else f"{numbers[row, column]:.1f}",
            color=dark if _light(cell) > 0.22 else light,  # where both contrast alike
            fontsize=9.5,
            horizontalalignment="center",
            verticalalignment="center",
        )
    axes.grid(visible=False)


def precision_histogram(counts: Sequence[int], *, theme: Theme = LIGHT) -> "Figure":
    """Number of queries by average precision: (B,) counts of bins of equal width from 0 to 1."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(theme, "Queries by average precision")
    axes.set_position((0.115, 0.16, 0.845, 0.69))
    edges = np.linspace(0, 100, len(counts) + 1)
    width = edges[1]
    axes.bar(edges[:-1] + width / 2, counts, width=0.88 * width, color=theme.lines[0])
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("average precision, %", color=theme.text, fontsize=10.5)
    return figure


def _light(colour: Sequence[float] | np.ndarray) -> float:
    """Relative luminance of red, green and blue from 0 to 1."""
    linear = np.asarray(colour[:3]) ** 2.2
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _names_above(axes: "Axes", names: Sequence[tuple[str, str]]) -> None:
    """Names in their lines' colours, above the axes from right to left."""
    for i, (name, colour) in enumerate(names):
        axes.annotate(
            name,
            (1, 1),
            xycoords="axes fraction",
            xytext=(-92 * i, 5),
            textcoords="offset points",
            horizontalalignment="right",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
        )
