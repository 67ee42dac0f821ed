"""The matrix of scores: names, numbers and frames, and nothing cut off."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from bdbnet.figures import DARK, LIGHT, score_matrix

ROWS = ["OSNet x0.25 of Market-1501", "objects"]
COLUMNS = ["market1501 Rank-1", "synthetic_retrieval Recall@1", "c"]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_names_numbers_and_frames(theme):
    figure = score_matrix(
        "People, %", ROWS, COLUMNS, [[91.2, 3.0, None], [0.0, 80.0, 50.0]], [(0, 0), (1, 1)], theme=theme
    )
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ROWS
    assert [label.get_text() for label in axes.get_xticklabels()] == COLUMNS
    assert [text.get_text() for text in axes.texts] == ["91.2", "3.0", "-", "0.0", "80.0", "50.0"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(round(frame.get_x() + 0.46), round(frame.get_y() + 0.44)) for frame in frames] == [(0, 0), (1, 1)]
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="give 2 rows of 3 numbers"):
        score_matrix("People, %", ROWS, COLUMNS, [[1.0, 2.0, 3.0]])
