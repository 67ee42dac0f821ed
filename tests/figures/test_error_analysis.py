from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from bdbnet.figures import DARK, LIGHT
from bdbnet.figures.error_analysis import camera_matrix, distance_distributions, precision_histogram, roc_curve

CAMERAS = [[None, 0.9, 0.2], [0.55, None, 0.0]]


def drawn(figure):
    """Draw, so that texts have their places."""
    FigureCanvasAgg(figure).draw()
    return figure


def inside(figure) -> bool:
    """Whether all texts lie within the figure."""
    width, height = figure.bbox.size
    texts = [text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]
    boxes = [text.get_window_extent() for text in (*texts, *figure.texts) if text.get_text()]
    return all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("threshold", [1.5, 3.5, None])
def test_distributions_are_what_was_given(theme, threshold):
    figure = drawn(
        distance_distributions([1, 2, 3, 4], [0.6, 0.4, 0], [0, 0.25, 0.75], threshold=threshold, theme=theme)
    )
    axes = figure.axes[0]
    filled, positives, negatives = axes.patches
    assert positives.get_data().values.tolist() == [60, 40, 0]
    assert negatives.get_data().values.tolist() == [0, 25, 75]
    assert positives.get_data().edges.tolist() == [1, 2, 3, 4]
    assert filled.get_fill()
    assert not negatives.get_fill()
    assert axes.get_ylim()[1] > 75
    words = [text.get_text() for text in axes.texts]
    assert words[:2] == ["two identities", "same identity"]
    assert words[2:] == ([] if threshold is None else [f"threshold {threshold}"])
    assert not axes.texts[0].get_window_extent().overlaps(axes.texts[1].get_window_extent())
    assert inside(figure)


def test_roc_leaves_out_what_a_logarithm_has_no_place_for():
    figure = drawn(roc_curve([0, 1e-3, 0.1, 1], [0.2, 0.5, 0.9, 1], marks=[("EER", 0.1, 0.9), ("low", 1e-3, 0.2)]))
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.1, 50], [10, 90], [100, 100]])
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((0.1, 100))
    assert [text.get_text() for text in axes.texts] == ["EER", "low"]
    assert inside(figure)
    drawn(roc_curve([0, 1], [1, 1]))


@pytest.mark.parametrize("lowest", [1e-8, 2e-7, 1e-5, 1e-3, 0.02, 0.3])
def test_the_numbers_below_the_roc_stand_apart(lowest):
    axes = drawn(roc_curve([0, lowest, 1], [0.1, 0.5, 1], marks=[("EER", 0.4, 0.6)])).axes[0]
    low, high = axes.get_xlim()
    ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    assert len(ticks) >= 2
    boxes = [label.get_window_extent() for label in ticks]
    assert min(right.x0 - left.x1 for left, right in pairwise(boxes)) > 4
    zero = axes.get_yticklabels()[0].get_window_extent()
    assert not zero.overlaps(boxes[0])


def test_a_perfect_roc_has_a_line():
    axes = drawn(roc_curve([0, 1], [1, 1])).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[50, 100], [100, 100]])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_pair_of_cameras_has_its_number(theme):
    figure = drawn(camera_matrix("Rank-1, %", CAMERAS, [1, 2], [1, 2, 3], theme=theme))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["-", "90.0", "20.0", "55.0", "-", "0.0"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "2"]
    assert inside(figure)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_numbers_can_be_read_on_every_shade(theme):
    values = np.linspace(0, 1, 21)[None]
    axes = drawn(camera_matrix("Rank-1, %", values, [1], list(range(21)), theme=theme)).axes[0]

    def luminance(colour) -> float:
        channels = np.array(colour[:3])
        return (np.where(channels > 0.04, ((channels + 0.055) / 1.055) ** 2.4, channels / 12.9)) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    image = axes.images[0]
    for value, text in zip(values[0], axes.texts):
        shades = sorted((luminance(image.cmap(image.norm(100 * value))), luminance(to_rgb(text.get_color()))))
        assert (shades[1] + 0.05) / (shades[0] + 0.05) > 3


def test_many_cameras_make_a_larger_picture():
    small, large = (
        camera_matrix("Rank-1, %", np.full((n, n), 0.5), range(n), range(n)).get_size_inches() for n in (3, 15)
    )
    assert (large > small).all()


def test_histogram_of_queries():
    axes = drawn(precision_histogram([3, 0, 1, 6])).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3, 0, 1, 6]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == [12.5, 37.5, 62.5, 87.5]
    assert axes.get_xlim() == (0, 100)
