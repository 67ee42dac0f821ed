import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbnet.figures import DARK, learning_rate_curve, loss_columns, loss_curves, loss_label, metric_columns
from bdbnet.figures.curves import _power, metric_curves, spread


@pytest.fixture
def history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "seconds": [0.5, 0.5, 0.5],
            "learning_rate": [1e-4, 2e-4, 3e-4],
            "loss": [3.0, 2.5, 2.0],
            "loss/triplet_global": [1.0, 0.8, 0.5],
            "loss/softmax_global": [2.0, 1.7, 1.5],
            "rank1": [np.nan, 0.25, 0.5],
            "mAP": [np.nan, 0.1, 0.2],
            "mINP": [np.nan, np.nan, np.nan],
            "valid_queries": [np.nan, 7, 7],
        }
    )


def drawn(figure) -> dict[str, np.ndarray]:
    """Label -> points of the line in the label's colour."""
    axes = figure.axes[0]
    names = {text.get_color(): text.get_text() for text in axes.texts}
    return {names[line.get_color()]: line.get_xydata() for line in axes.lines}


def test_columns_are_told_apart_and_blank_ones_left_out(history):
    assert loss_columns(history) == ["loss", "loss/triplet_global", "loss/softmax_global"]
    assert metric_columns(history) == ["rank1", "mAP"]
    assert metric_columns(pd.DataFrame({"recall@1": [0.5], "map@r": [0.1], "grad_norm": [0.3]})) == [
        "recall@1",
        "map@r",
    ]


def test_a_sum_of_one_part_is_not_drawn_twice(history):
    assert loss_columns(history[["epoch", "loss", "loss/softmax_global"]]) == ["loss/softmax_global"]
    assert loss_columns(history[["epoch", "loss"]]) == ["loss"]


def test_loss_curves_draw_each_part_under_its_own_label(history):
    lines = drawn(loss_curves(history))
    assert set(lines) == {"sum", "triplet global", "softmax global"}
    np.testing.assert_array_equal(lines["triplet global"], [[1, 1.0], [2, 0.8], [3, 0.5]])


def test_metric_curves_are_in_percent_cross_blank_epochs_and_begin_before_training(history):
    lines = drawn(metric_curves(history, before={"rank1": 0.05}))
    np.testing.assert_allclose(lines["Rank-1"], [[0, 5], [2, 25], [3, 50]])
    np.testing.assert_allclose(lines["mAP"], [[2, 10], [3, 20]])


def test_one_epoch_is_marked_with_a_point_on_a_whole_number(history):
    figure = loss_curves(history.head(1))
    figure.savefig(io.BytesIO(), format="svg")
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_many_epochs_have_no_markers():
    epochs = np.arange(1, 401)
    figure = learning_rate_curve(pd.DataFrame({"epoch": epochs, "learning_rate": 1e-3 / epochs}))
    assert figure.axes[0].lines[0].get_marker() == "None"


def test_nine_lines_differ_in_colour_or_dashes():
    history = pd.DataFrame({"epoch": [1, 2]} | {f"loss/part{i}": [2.0, 1.0] for i in range(9)})
    lines = loss_curves(history).axes[0].lines
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 9


def test_nan_and_negative_losses_are_drawn(history):
    history.loc[2, "loss"] = np.nan
    history.loc[0, "loss/triplet_global"] = -1.0
    figure = loss_curves(history)
    figure.savefig(io.BytesIO(), format="svg")
    assert figure.axes[0].get_ylim()[0] <= -1


def test_labels_do_not_overlap_when_lines_end_together(history):
    history["loss/softmax_global"] = history["loss/triplet_global"]
    places = sorted(text.get_position()[1] for text in loss_curves(history).axes[0].texts)
    assert min(np.diff(places)) >= 0.079


def test_a_dark_theme_reaches_background_and_text(history):
    figure = loss_curves(history, theme=DARK)
    assert figure.get_facecolor()[:3] < (0.2, 0.2, 0.2)
    assert figure.axes[0].xaxis.label.get_color() == DARK.text


def test_figures_leave_pyplot_alone(history):
    import matplotlib._pylab_helpers

    loss_curves(history)
    assert matplotlib._pylab_helpers.Gcf.get_num_fig_managers() == 0


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.5, "0.5"), (7.5e-10, "7.5e-10")]
)
def test_rates_are_written_as_they_are_typed(value, shown):
    assert _power(value) == shown


@pytest.mark.parametrize(("column", "label"), [("loss", "sum"), ("loss/triplet_part_2", "triplet part 2")])
def test_labels_of_losses(column, label):
    assert loss_label(column) == label


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.3))
def test_spread_keeps_order_range_and_gap(places, gap):
    moved = spread(places, gap)
    gap = min(gap, 1 / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    assert all(moved[b] - moved[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)
