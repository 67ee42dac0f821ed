"""Ranking lists: a query and its nearest images, with a border for right and wrong (Figures 5 and 9 of the paper)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from bdbnet.figures.curves import LIGHT, Theme
from bdbnet.regular_files import regular

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, RED, GREY = "#1b8a4b", "#c9302c", "#8b929b"

#: An image: uint8 array (H, W, 3) or (H, W), or the path of a file.
Picture = np.ndarray | str | Path


class RankedImage(NamedTuple):
    """One gallery image of a ranking list; `correct` is None where nobody knows."""

    picture: Picture
    distance: float
    correct: bool | None


class RankingList(NamedTuple):
    """A query and its gallery images, nearest first; `title` is written under the query."""

    query: Picture
    results: Sequence[RankedImage]
    title: str = "query"


def _formats() -> list[str]:
    """Pillow's formats but EPS, for which it starts another program."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def read_thumbnail(picture: Picture, size: int = 224) -> Image.Image:
    """RGB copy of an image, upright, shrunk to fit `size` x `size` pixels (never enlarged).

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is not an image that can be read.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
    else:
        try:
            with open(picture, "rb", opener=regular) as file, Image.open(file, formats=_formats()) as opened:
                opened.draft("RGB", (2 * size, 2 * size))
                image = ImageOps.exif_transpose(opened)
                image.load()
        except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise OSError(f"{picture}: {error}") from error
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    image.thumbnail((size, size))
    return image


def ranking_lists_figure(
    lists: Sequence[RankingList], *, top: int = 5, row_height: float = 1.9, theme: Theme = LIGHT
) -> "Figure":
    """One row per query: the query at the left, then its `top` nearest images with rank and distance.

    Right images have a solid green border, wrong ones a dashed red border. In place of a file that can't be read there
    is a grey field with a note. `row_height` is in inches.

    Raises:
        ValueError: `lists` is empty or `top` is below 1.
    """
    from matplotlib.figure import Figure

    if not lists or top < 1:
        raise ValueError(f"a figure needs at least one ranking list and top >= 1, not {len(lists)} lists and top={top}")
    pictures = [[_pixels(picture) for picture in (row.query, *(r.picture for r in row.results[:top]))] for row in lists]
    shapes = [pixels.shape for row in pictures for pixels in row if pixels is not None]
    aspect = float(np.median([width / height for height, width, _ in shapes])) if shapes else 0.5
    columns = 1 + top
    size = ((columns + 0.4) * max(row_height * 0.8 * aspect, 0.75), len(lists) * row_height)
    figure = Figure(figsize=size, facecolor=theme.background)
    edges = {"left": 0.01, "right": 0.99, "bottom": 0.02, "top": max(0.93, 1 - 0.3 / size[1])}
    grid = figure.add_gridspec(len(lists), columns + 1, width_ratios=(1, 0.25, *[1] * top), **edges)
    for i, row in enumerate(lists):
        _draw(figure.add_subplot(grid[i, 0]), pictures[i][0], row.title, GREY, False)
        for j, result in enumerate(row.results[:top]):
            mark, colour = {True: ("✓ ", GREEN), False: ("✗ ", RED), None: ("", GREY)}[result.correct]
            axes = figure.add_subplot(grid[i, j + 2])
            caption = f"{j + 1} {mark}{_three_digits(result.distance)}"
            _draw(axes, pictures[i][j + 1], caption, colour, result.correct is False)
    return figure


def _pixels(picture: Picture) -> np.ndarray | None:
    try:
        return np.asarray(read_thumbnail(picture))
    except OSError:
        return None


def _three_digits(distance: float) -> str:
    return f"{distance:#.3g}".rstrip(".")


def _draw(axes: "Axes", pixels: np.ndarray | None, caption: str, colour: str, dashed: bool) -> None:
    if pixels is None:
        axes.imshow(np.full((2, 1, 3), 225, dtype=np.uint8))
        axes.text(0.5, 0.5, "image\nnot found", transform=axes.transAxes, ha="center", va="center", fontsize=7)
    else:
        axes.imshow(pixels)
    axes.set_title(caption, fontsize=9, color=colour, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.5)
        spine.set_capstyle("butt")  # the default lengthens every dash until the gaps are closed
        spine.set_linestyle((0, (3, 1.2)) if dashed else "-")
