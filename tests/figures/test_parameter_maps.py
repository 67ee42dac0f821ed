import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from bdbnet.figures import DARK, LIGHT, parameter_map


def drawn(values, theme=LIGHT):
    figure = parameter_map("Recall@1, %", "height", "width", [0.1, 0.3, 0.5], [0.2, 0.4], values, theme=theme)
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_cell_shows_its_number_and_the_highest_has_a_frame(theme):
    axes = drawn([[50.0, 61.26, None], [52.0, 53.0, 54.0]], theme)
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "50.0", (1, 0): "61.3", (2, 0): "-", (0, 1): "52.0", (1, 1): "53.0", (2, 1): "54.0"}
    (frame,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (round(frame.get_x() + 0.46), round(frame.get_y() + 0.46)) == (1, 0)
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # larger ratios stand higher
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.2", "0.4"]


@pytest.mark.parametrize("values", [[[None] * 3] * 2, [[7.0] * 3] * 2])
def test_nothing_measured_and_equal_numbers_can_be_drawn(values):
    assert len(drawn(values).texts) == 6


def test_numbers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="give 2 rows of 3 numbers"):
        drawn([[1.0, 2.0, 3.0]])
