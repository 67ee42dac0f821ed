"""A metric over two numeric settings: a cell for each pair of values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdbnet.figures.curves import LIGHT, Theme, _axes, fit_left
from bdbnet.figures.error_analysis import write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def parameter_map(
    title: str,
    x_label: str,
    y_label: str,
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[Sequence[float | None]],
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """A matrix of numbers; higher numbers have a stronger colour, and the highest a frame.

    Args:
        x, y: (X,) and (Y,) values of the two settings; y grows upwards.
        values: (Y, X) in the metric's unit; None where nothing was measured.

    Raises:
        ValueError: values of another shape.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    if [len(row) for row in values] != [len(x)] * len(y):
        raise ValueError(f"values: give {len(y)} rows of {len(x)} numbers, one for each pair of y and x")
    numbers = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)
    figure, axes = _axes(theme, title, left=0.13)
    width, height = max(4.6, 0.9 + 0.52 * len(x)), max(2.2, 1.15 + 0.36 * len(y))
    figure.set_size_inches(width, height)
    axes.set_position((0.75 / width, 0.55 / height, 1 - 0.9 / width, 1 - 1.05 / height))
    figure.texts[0].set_y(1 - 0.24 / height)
    shades = LinearSegmentedColormap.from_list("values", [theme.background, theme.lines[0]])
    measured = numbers[np.isfinite(numbers)]
    low, high = (measured.min(), measured.max()) if measured.size else (0.0, 1.0)
    span = max(high - low, 1e-9)
    axes.imshow(numbers, cmap=shades, vmin=low, vmax=low + span, aspect="auto", origin="lower")
    write_numbers(axes, numbers, shades((numbers - low) / span), theme)
    if measured.size:
        row, column = np.unravel_index(int(np.nanargmax(numbers)), numbers.shape)
        frame = (float(column) - 0.46, float(row) - 0.46)
        axes.add_patch(Rectangle(frame, 0.92, 0.92, fill=False, edgecolor=theme.lines[1], linewidth=2.2))
    axes.set_xticks(range(len(x)), [f"{value:g}" for value in x])
    axes.set_yticks(range(len(y)), [f"{value:g}" for value in y])
    axes.set_xlabel(x_label, color=theme.text, fontsize=10.5)
    axes.set_ylabel(y_label, color=theme.text, fontsize=10.5)
    fit_left(figure, axes)
    return figure
