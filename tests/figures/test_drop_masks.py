import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bdbnet.figures import DARK, LIGHT, drop_masks_figure


def two_masks() -> dict[str, np.ndarray]:
    rows, units = np.zeros((2, 2, 4, 6, 2), dtype=bool)
    rows[:, :, 1:3] = True
    units[1, 2, 5, 1] = units[0, 0, 0, 0] = True
    return {"Block": rows, "Units": units}


def maps(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_every_layer_image_and_channel_has_a_map_of_its_own():
    masks = two_masks()
    figure = drop_masks_figure(masks)
    drawn = iter(maps(figure))
    for mask in masks.values():
        for channel in range(3):
            for image in range(2):
                assert np.array_equal(next(drawn), mask[image, channel])
    assert next(drawn, None) is None


def test_maps_stand_in_rows_of_images_and_columns_of_channels():
    figure = drop_masks_figure(two_masks(), images=2, channels=4)
    boxes = np.array([axes.get_position().extents for axes in figure.axes]).reshape(2, 4, 2, 4)
    left, bottom, right, top = np.moveaxis(boxes, -1, 0)
    assert (left == left[:, :, :1]).all()
    assert (bottom == bottom[:1, :1]).all()
    assert (bottom[..., 0] > top[..., 1]).all()
    columns = left[..., 0].ravel()
    assert (columns[1:] > right[..., 0].ravel()[:-1]).all()
    assert boxes.min() > 0
    assert boxes.max() < 1


@pytest.mark.parametrize("shape", [(24, 8), (7, 7), (4, 16)])
def test_units_are_square(shape):
    figure = drop_masks_figure({"Block": np.zeros((2, 3, *shape), dtype=bool)})
    width, height = figure.axes[0].get_position().size * figure.get_size_inches()
    assert width / shape[1] == pytest.approx(height / shape[0])


def test_words_name_layers_images_channels_and_shares():
    found = words(drop_masks_figure(two_masks()))
    assert [word for word in found if word in ("Block", "Units")] == ["Block", "Units"]
    for expected in ("33.3 % dropped", "2.1 % dropped", "image 1", "image 2", "channel", "dropped", "kept"):
        assert found.count(expected) == 1
    assert found.count("3") == 2


def test_share_counts_what_is_not_shown_too():
    mask = np.zeros((4, 5, 2, 2), dtype=bool)
    mask[3] = True
    assert "25.0 % dropped" in words(drop_masks_figure({"Block": mask}, images=1, channels=1))


def test_long_names_do_not_run_into_each_other():
    figure = drop_masks_figure({f"A drop layer of long name {i}": two_masks()["Block"] for i in range(3)}, channels=1)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts if "layer" in text.get_text()]
    assert all(first.x1 < second.x0 for first, second in pairwise(boxes))
    assert boxes[-1].x1 < figure.bbox.width


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_dropped_and_kept_units_have_the_colours_of_the_legend(theme):
    figure = drop_masks_figure(two_masks(), theme=theme)
    swatches = [text.get_color() for text in figure.texts if text.get_text() == "■"]
    picture = figure.axes[0].images[0]
    assert [to_rgb(picture.cmap(picture.norm(value))) for value in (True, False)] == [to_rgb(each) for each in swatches]
    assert figure.get_facecolor()[:3] == to_rgb(theme.background)
    figure.savefig(io.BytesIO(), format="svg")


@pytest.mark.parametrize(
    ("masks", "shown", "message"),
    [
        ({}, {}, "at least one mask"),
        (two_masks(), {"images": 0}, "images=0"),
        (two_masks(), {"channels": 5}, r"masks\['Block'\] has 2 images and 4 channels.*channels=5"),
        (two_masks(), {"images": 3}, "too few to show images=3"),
        ({"A": np.zeros((2, 3, 4, 4))}, {}, r"masks\['A'\] must be bool \(N, C, H, W\), not float64"),
        ({"A": np.zeros((3, 4, 4), dtype=bool)}, {}, r"not bool \(3, 4, 4\)"),
        (two_masks() | {"A": np.zeros((2, 3, 4, 4), dtype=bool)}, {}, "one size, not of 4 x 4, 6 x 2"),
    ],
)
def test_what_can_not_be_drawn_is_said(masks, shown, message):
    with pytest.raises(ValueError, match=message):
        drop_masks_figure(masks, **shown)
