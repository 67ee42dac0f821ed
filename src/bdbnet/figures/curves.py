"""Training curves: figures of a run's history, with directly labelled lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bdbnet.results import is_metric, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """One labelled line: `epochs` and `values` (n,) are float64; NaN leaves a gap."""

    name: str
    epochs: np.ndarray
    values: np.ndarray


class Theme(NamedTuple):
    """Colours of a figure. The line colours stay distinct for the common kinds of colour blindness."""

    background: str
    text: str
    faint: str
    lines: tuple[str, ...]


# Hues of Okabe and Ito's palette, darkened or lightened until text in them is readable on the background.
LIGHT = Theme("#ffffff", "#22262b", "#d9dde2", ("#0067a3", "#c24e00", "#007a59", "#a3427f", "#8a6100", "#4b5563"))
DARK = Theme("#171a1f", "#e4e7eb", "#3a4048", ("#62b5ec", "#ff9147", "#2fc99b", "#e59ac8", "#e8b93a", "#a9b1bb"))


def loss_label(column: str) -> str:
    """Readable name of the loss or of a part of it.

    >>> loss_label("loss"), loss_label("loss/triplet_global")
    ('sum', 'triplet global')
    """
    return "sum" if column == "loss" else column.removeprefix("loss/").replace("_", " ")


def loss_columns(history: pd.DataFrame) -> list[str]:
    """The loss and its parts: columns that hold at least one number; the sum alone where it is its only part."""
    parts = [column for column in map(str, history) if column.startswith("loss/") and history[column].notna().any()]
    total = ["loss"] if "loss" in history and history["loss"].notna().any() and len(parts) != 1 else []
    return total + parts


def metric_columns(history: pd.DataFrame) -> list[str]:
    """Evaluated metrics (`rank1`, `mAP`, `recall@1`, ...): columns that hold at least one number."""
    return [column for column in map(str, history) if is_metric(column) and history[column].notna().any()]


def loss_curves(history: pd.DataFrame, *, theme: Theme = LIGHT) -> "Figure":
    """Loss and its parts by epoch. `history` has a row per epoch and the columns `epoch`, `loss`, `loss/<part>`."""
    columns = loss_columns(history)
    series = [Line(loss_label(column), _numbers(history, "epoch"), _numbers(history, column)) for column in columns]
    figure, axes = _axes(theme, "Loss, mean of the epoch")
    _draw_lines(axes, series, theme)
    lowest = min((float(history[column].min()) for column in columns), default=0.0)
    if lowest >= 0:
        axes.set_ylim(bottom=0)
    _label_lines(axes, series, theme)
    fit_left(figure, axes)
    return figure


def metric_curves(
    history: pd.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    before: Mapping[str, float] | None = None,
    theme: Theme = LIGHT,
) -> "Figure":
    """Evaluated metrics by epoch. Those in percent are fractions in `history` and `before` (drawn as epoch 0).

    Epochs that were not evaluated are blank (NaN) in `history`; the line runs straight across them.

    Args:
        history: a row per epoch, with the column `epoch`.
        columns: metrics of one unit; None: all that are in percent.
        before: metrics of the network before training.
    """
    if columns is None:
        columns = [column for column in metric_columns(history) if metric_of(column).unit == "%"]
    series = []
    for column in columns:
        metric = metric_of(column)
        evaluated = history.loc[history[column].notna(), ["epoch", column]]
        epochs, values = _numbers(evaluated, "epoch"), metric.scale * _numbers(evaluated, column)
        if before is not None and column in before:
            epochs, values = np.append(0, epochs), np.append(metric.scale * before[column], values)
        series.append(Line(metric.title, epochs, values))
    unit = metric_of(columns[0]).unit if columns else "%"
    figure, axes = _axes(theme, f"Metrics, {unit}" if unit else "Metrics")
    _draw_lines(axes, series, theme)
    if unit == "%":
        axes.set_ylim(0, 100)
    _label_lines(axes, series, theme)
    fit_left(figure, axes)
    return figure


def learning_rate_curve(history: pd.DataFrame, *, theme: Theme = LIGHT) -> "Figure":
    """Learning rate by epoch. `history` has the columns `epoch` and `learning_rate`."""
    from matplotlib.ticker import FuncFormatter

    series = [Line("", _numbers(history, "epoch"), _numbers(history, "learning_rate"))]
    figure, axes = _axes(theme, "Learning rate", left=0.17)
    _draw_lines(axes, series, theme)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    fit_left(figure, axes)
    return figure


def _power(value: float) -> str:
    """A learning rate as it is typed: `2.5e-4`."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < abs(value) < 0.1 else f"{value:g}"


def _numbers(history: pd.DataFrame, column: str) -> np.ndarray:
    return history[column].to_numpy(dtype=np.float64)


def _axes(theme: Theme, title: str, left: float = 0.1) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, 3.2), facecolor=theme.background)
    axes = figure.add_axes((left, 0.16, 0.96 - left, 0.69), facecolor=theme.background)
    figure.text(0.01, 0.93, title, color=theme.text, fontsize=12, fontweight="bold")
    axes.set_xlabel("epoch", color=theme.text, fontsize=10.5)
    axes.tick_params(colors=theme.text, labelsize=10.5, length=0, pad=5)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)
    return figure, axes


def fit_left(figure: "Figure", axes: "Axes") -> None:
    """Widen the left margin where numbers or names beside the axis would be cut off; call it when all else is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    box = axes.yaxis.get_tightbbox(canvas.get_renderer())
    missing = 0.0 if box is None else (3 - box.x0) / figure.bbox.width
    if missing > 0:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((left + missing, bottom, width - missing, height))


def _draw_lines(axes: "Axes", series: Sequence[Line], theme: Theme) -> None:
    """One line per series; they differ in colour and dashes, and points are marked where they are few."""
    for i, (_, epochs, values) in enumerate(series):
        axes.plot(
            epochs,
            values,
            color=theme.lines[i % len(theme.lines)],
            linestyle=("-", (0, (4, 1.5)))[i // len(theme.lines) % 2],
            linewidth=2,
            marker="o" if len(values) <= 20 else None,
            markersize=4,
            solid_capstyle="round",
            clip_on=False,
        )


def _label_lines(axes: "Axes", series: Sequence[Line], theme: Theme) -> None:
    """Write each line's name beside its last point, moved apart where names would overlap."""
    if not series:
        return
    longest = max(len(name) for name, _, _ in series)
    left, bottom, _, height = axes.get_position().bounds
    # 10.5 points: a letter is about 0.019 of the figure's width, a line of text 0.07 of the axes' height.
    axes.set_position((left, bottom, 0.98 - left - 0.0195 * longest - 0.02, height))
    low, high = axes.get_ylim()
    ends = []
    for _, _, numbers in series:
        finite = numbers[np.isfinite(numbers)]
        ends.append((float(finite[-1]) - low) / (high - low) if len(finite) and high > low else 0.0)
    for i, place in enumerate(spread(ends, gap=0.08)):
        axes.text(
            1.025,
            place,
            series[i][0],
            transform=axes.transAxes,
            color=theme.lines[i % len(theme.lines)],
            fontsize=10.5,
            verticalalignment="center",
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places apart to at least `gap` within 0..1, changing neither their order nor, where free, their value.

    >>> spread([0.5, 0.1, 0.5], gap=0.25)
    [0.5, 0.1, 0.75]
    """
    gap = min(gap, 1 / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    moved = [0.0] * len(places)
    lowest = 0.0
    for i in order:
        moved[i] = max(places[i], lowest)
        lowest = moved[i] + gap
    highest = 1.0
    for i in reversed(order):
        moved[i] = min(moved[i], highest)
        highest = moved[i] - gap
    return moved
