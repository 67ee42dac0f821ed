"""A matrix of scores: a row for each network, a column for each data set that it is evaluated on."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdbnet.figures.curves import LIGHT, Theme, _axes, fit_left
from bdbnet.figures.error_analysis import write_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    framed: Collection[tuple[int, int]] = (),
    *,
    theme: Theme = LIGHT,
) -> "Figure":
    """Numbers from 0 to 100; higher numbers have a stronger colour.

    Args:
        rows, columns: (R,) and (C,) names; the first row is on top.
        values: (R, C) percentages; None where nothing was measured.
        framed: row and column of the cells with a frame.

    Raises:
        ValueError: values of another shape.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    if [len(row) for row in values] != [len(columns)] * len(rows):
        raise ValueError(
            f"values: give {len(rows)} rows of {len(columns)} numbers, one for each pair of row and column"
        )
    numbers = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)
    figure, axes = _axes(theme, title)
    # Inches: names of rows stand to the left, those of columns below, aslant.
    left, below, above = 0.3 + 0.075 * max(map(len, rows)), 0.25 + 0.038 * max(map(len, columns)), 0.5
    width, height = left + 0.75 * len(columns) + 0.2, below + 0.42 * len(rows) + above
    figure.set_size_inches(max(width, 0.3 + 0.095 * len(title)), height)
    axes.set_position((left / width, below / height, 1 - (left + 0.2) / width, 1 - (below + above) / height))
    figure.texts[0].set_y(1 - 0.28 / height)
    shades = LinearSegmentedColormap.from_list("scores", [theme.background, theme.lines[0]])
    axes.imshow(numbers, cmap=shades, vmin=0, vmax=100, aspect="auto")
    write_numbers(axes, numbers, shades(np.nan_to_num(numbers) / 100), theme)
    for row, column in framed:
        frame = (column - 0.46, row - 0.44)
        axes.add_patch(Rectangle(frame, 0.92, 0.88, fill=False, edgecolor=theme.lines[1], linewidth=2.2))
    axes.set_xticks(
        range(len(columns)), list(columns), rotation=30, horizontalalignment="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("")
    fit_left(figure, axes)
    return figure
