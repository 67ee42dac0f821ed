"""Activation maps over their images, with a colour bar for the values (Figures 1 and 4 of the paper)."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bdbnet.figures.curves import LIGHT, Theme
from bdbnet.figures.ranking_lists import Picture, read_thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "inferno"  # dark to light in even steps, also in grey and for the colour-blind
_STRENGTH = 0.65  # of the map over the image
_PIXELS = 320  # longest side of an image
_LINE = 16  # letters of a column's name before it is broken
# Inches.
_HEIGHT, _BETWEEN, _TOP, _BOTTOM, _EDGE, _LETTER = 1.75, 0.12, 0.42, 0.42, 0.08, 0.078


def upsampled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) at the size of its image, float32, by linear interpolation: between its values, never beyond them."""
    small = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def overlay(picture: Picture, values: np.ndarray, highest: float, mask: np.ndarray | None = None) -> np.ndarray:
    """An image in grey with its map in colours, uint8 RGB (H, W, 3), at the image's size but at most 320 pixels.

    Args:
        picture: an image or its file.
        values: map (h, w), at least 0.
        highest: value of the brightest colour.
        mask: bool (h, w), True = dropped: that part stays without colours.
    """
    from matplotlib import colormaps

    image = np.asarray(read_thumbnail(picture, _PIXELS))
    height, width = image.shape[:2]
    shares = upsampled(values, height, width) / highest if highest > 0 else np.zeros((height, width), np.float32)
    colours = colormaps[COLOURS](shares.clip(0, 1))[..., :3]
    grey = np.repeat(image.mean(2, keepdims=True) / 255, 3, axis=2)
    strength: Any = _STRENGTH
    if mask is not None:
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        strength = np.where(mask[rows][:, columns], 0.0, _STRENGTH)[..., None]
    mixed: np.ndarray = 255 * (strength * colours + (1 - strength) * grey)
    return mixed.round().astype(np.uint8)


def activation_maps_figure(
    images: Sequence[Picture],
    maps: Mapping[str, Sequence[np.ndarray]],
    *,
    captions: Sequence[str] = (),
    masks: Mapping[str, Sequence[np.ndarray | None]] | None = None,
    unit: str = "",
    theme: Theme = LIGHT,
) -> "Figure":
    """A row per image: the image, then its maps, each column with its own scale and colour bar.

    Args:
        images: N images or their files, of any sizes.
        maps: name of a column -> N maps (h, w), at least 0. A line break in a name starts a second line.
        captions: of the rows, at the left.
        masks: name of a column -> N drop masks, bool (h, w), whose part is left without colours; or None.
        unit: what the values are, beneath.

    Raises:
        ValueError: no image or map, or numbers that do not fit.
    """
    from matplotlib.figure import Figure

    count = len(images)
    if not count or not maps:
        raise ValueError(f"a figure needs at least one image and one map, not {count} images and {len(maps)} columns")
    if wrong := {name: len(column) for name, column in maps.items() if len(column) != count}:
        raise ValueError(f"{count} images, but other numbers of maps: {wrong}")
    thumbnails = [np.asarray(read_thumbnail(image, _PIXELS)) for image in images]
    panel = _HEIGHT * min(max(float(np.median([t.shape[1] / t.shape[0] for t in thumbnails])), 0.35), 1.6)
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    left = _LETTER * longest + 0.2 if longest else _EDGE
    heads = {name: [part for line in name.split("\n") for part in wrap(line, _LINE)] for name in maps}
    top = _TOP + 0.16 * (max(map(len, heads.values())) - 1)
    # A column is as wide as its name needs, too.
    widths = [panel, *(max(panel, _LETTER * max(map(len, lines), default=0)) for lines in heads.values())]
    width = left + sum(widths) + _BETWEEN * len(widths) + _EDGE
    height = top + count * (_HEIGHT + _BETWEEN) + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor=theme.background)

    def place(x: float, y: float, w: float, h: float) -> "Axes":
        return figure.add_axes((x / width, y / height, w / width, h / height))

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(
            x / width, y / height, text, color=theme.text, fontsize=options.pop("size", 9), va="center", **options
        )

    bottoms = [height - top - _HEIGHT - row * (_HEIGHT + _BETWEEN) for row in range(count)]
    for row, bottom in enumerate(bottoms):
        if any(captions):
            write(left - 0.1, bottom + _HEIGHT / 2, captions[row], ha="right", linespacing=1.4)
        _show(place(left, bottom, panel, _HEIGHT), thumbnails[row])
    write(left + panel / 2, height - top / 2, "image", ha="center")
    x = left + panel + _BETWEEN
    for name, column_width in zip(maps, widths[1:], strict=True):
        highest = max(float(np.max(one)) for one in maps[name])
        write(x + column_width / 2, height - top / 2, "\n".join(heads[name]), ha="center", linespacing=1.3)
        for row, bottom in enumerate(bottoms):
            mask = masks[name][row] if masks and name in masks else None
            pixels = overlay(thumbnails[row], maps[name][row], highest, mask)
            _show(place(x + (column_width - panel) / 2, bottom, panel, _HEIGHT), pixels)
        _colour_bar(place(x + (column_width - panel) / 2, _BOTTOM - 0.14, panel, 0.07), highest, theme)
        x += column_width + _BETWEEN
    if unit:
        write(left, 0.09, unit, ha="left", size=8)
    return figure


def _show(axes: "Axes", pixels: np.ndarray) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_axis_off()


def _colour_bar(axes: "Axes", highest: float, theme: Theme) -> None:
    """0 to the highest value, with its numbers beneath."""
    axes.imshow(np.linspace(0, 1, 128)[None], cmap=COLOURS, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 1], ["0", f"{highest:,.0f}" if highest >= 100 else f"{highest:.3g}"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.tick_params(length=0, pad=2, labelsize=7.5, labelcolor=theme.text)
    for spine in axes.spines.values():
        spine.set_visible(False)
