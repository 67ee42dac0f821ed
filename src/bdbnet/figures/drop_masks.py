"""Drop masks of several drop layers side by side, for two images of a batch (Figure 6 of the paper)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bdbnet.figures.curves import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_MAP_HEIGHT, _MAP_WIDTH = 1.5, 0.5  # at most; units stay square
_LEFT, _TOP, _BOTTOM, _RIGHT = 0.75, 0.6, 0.62, 0.12
_BETWEEN_CHANNELS, _BETWEEN_IMAGES, _BETWEEN_LAYERS = 0.08, 0.14, 0.34
_LETTER = 0.1  # of a layer's name


def drop_masks_figure(
    masks: Mapping[str, np.ndarray], *, images: int = 2, channels: int = 3, theme: Theme = LIGHT
) -> "Figure":
    """A group of small maps per layer: a row per image, a column per channel, dropped units dark.

    The share under a layer's name counts all images and channels of its mask, not only those shown.

    Args:
        masks: name of a layer to its mask (N, C, H, W), bool, True = dropped; all with the same H and W. What a layer
            shares between images or channels is repeated.
        images: how many images are shown, the first of the batch.
        channels: how many channels are shown, the first of each map.

    Raises:
        ValueError: no mask, one of another kind or shape, or fewer images or channels than are to be shown.
    """
    from matplotlib.figure import Figure

    rows, columns = _map_size(masks, images, channels)
    unit = min(_MAP_HEIGHT / rows, _MAP_WIDTH / columns)
    map_width, map_height = unit * columns, unit * rows
    group = channels * (map_width + _BETWEEN_CHANNELS) - _BETWEEN_CHANNELS
    group_pitch = max(group, _LETTER * max(map(len, masks))) + _BETWEEN_LAYERS
    width = _LEFT + len(masks) * group_pitch - _BETWEEN_LAYERS + _RIGHT
    height = _TOP + images * (map_height + _BETWEEN_IMAGES) - _BETWEEN_IMAGES + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor=theme.background)

    def write(x: float, y: float, text: str, size: float = 9, *, color: str = theme.text, **options: Any) -> None:
        figure.text(x / width, y / height, text, color=color, va="center", fontsize=size, **options)

    bottoms = [height - _TOP - map_height - i * (map_height + _BETWEEN_IMAGES) for i in range(images)]
    for i, bottom in enumerate(bottoms):
        write(_LEFT - 0.12, bottom + map_height / 2, f"image {i + 1}", ha="right")
    write(_LEFT - 0.12, _BOTTOM - 0.13, "channel", ha="right")
    for x, colour, meaning in ((_LEFT, theme.lines[0], "dropped"), (_LEFT + 1, theme.faint, "kept")):
        write(x, 0.17, "■", 12, color=colour)
        write(x + 0.19, 0.16, meaning)
    for k, (name, mask) in enumerate(masks.items()):
        left = _LEFT + k * group_pitch
        write(left, height - 0.2, name, 10.5, ha="left", fontweight="bold")
        write(left, height - 0.42, f"{100 * mask.mean():.1f} % dropped", ha="left")
        for j in range(channels):
            x = left + j * (map_width + _BETWEEN_CHANNELS)
            write(x + map_width / 2, _BOTTOM - 0.13, str(j + 1), ha="center")
            for i, bottom in enumerate(bottoms):
                axes = figure.add_axes((x / width, bottom / height, map_width / width, map_height / height))
                _draw(axes, mask[i, j], theme)
    return figure


def _map_size(masks: Mapping[str, np.ndarray], images: int, channels: int) -> tuple[int, int]:
    if not masks or images < 1 or channels < 1:
        raise ValueError(
            f"a figure needs at least one mask, image and channel, not {len(masks)} masks, images={images}, "
            f"channels={channels}"
        )
    sizes = set()
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.ndim != 4:
            raise ValueError(f"masks[{name!r}] must be bool (N, C, H, W), not {mask.dtype} {mask.shape}")
        if mask.shape[0] < images or mask.shape[1] < channels:
            raise ValueError(
                f"masks[{name!r}] has {mask.shape[0]} images and {mask.shape[1]} channels, too few to show "
                f"images={images}, channels={channels}"
            )
        sizes.add(mask.shape[2:])
    if len(sizes) > 1:
        raise ValueError(
            f"masks must be of maps of one size, not of {', '.join(f'{h} x {w}' for h, w in sorted(sizes))}"
        )
    return sizes.pop()


def _draw(axes: "Axes", mask: np.ndarray, theme: Theme) -> None:
    from matplotlib.colors import ListedColormap

    rows, columns = mask.shape
    axes.imshow(mask, cmap=ListedColormap([theme.faint, theme.lines[0]]), vmin=0, vmax=1, interpolation="none")
    axes.set_aspect("auto")
    axes.set_axis_off()
    # Lines, not a grid: the ticks that a grid needs would take two thirds of the time of the whole figure.
    lines: Any = {"color": theme.background, "linewidth": 0.5}
    axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, **lines)
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, **lines)
