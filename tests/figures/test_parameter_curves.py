import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bdbnet.figures import DARK, ConfigurationDot, ParameterCurve, configuration_dots, parameter_curves

NAN = float("nan")
X = [0.1, 0.3, 0.5]


def drawn(figure) -> None:
    """Draw, so that texts have their places."""
    FigureCanvasAgg(figure).draw()


def curves(*lines: ParameterCurve, **options):
    return parameter_curves("Rank-1, %", "height ratio", "", lines, **options)


def points(figure) -> list[np.ndarray]:
    return [container.lines[0].get_xydata() for container in figure.axes[0].containers]


def bars(figure, line: int) -> np.ndarray:
    """Lower and upper ends of a line's error bars."""
    (bars,) = figure.axes[0].containers[line].lines[2]
    return np.array([segment[:, 1] for segment in bars.get_segments() if len(segment)])


def test_lines_bars_and_labels_are_what_was_given():
    figure = curves(ParameterCurve("ours", X, [70, 72, 71], [1, 2, 0.5]), ParameterCurve("paper", X, [71, 73, 72]))
    drawn(figure)
    np.testing.assert_allclose(points(figure)[0], [[0.1, 70], [0.3, 72], [0.5, 71]])
    np.testing.assert_allclose(bars(figure, 0), [[69, 71], [70, 74], [70.5, 71.5]])
    assert len(figure.axes[0].containers[1].lines[2]) == 0
    assert [text.get_text() for text in figure.axes[0].texts] == ["ours", "paper"]
    assert figure.axes[0].get_xlabel() == "height ratio"


def test_missing_points_leave_gaps_and_missing_errors_leave_out_the_bar():
    figure = curves(ParameterCurve("a", X, [70, None, 71], [1, None, None]), ParameterCurve("b", X, [NAN, NAN, 60]))
    drawn(figure)
    assert np.isnan(points(figure)[0][1, 1])
    np.testing.assert_allclose(bars(figure, 0)[0], [69, 71])
    assert np.isnan(bars(figure, 0)[1:]).all()
    assert np.isfinite(points(figure)[1]).all(axis=1).tolist() == [False, False, True]


def test_points_are_marked_and_dashed_lines_have_open_markers():
    figure = curves(ParameterCurve("ours", [0.3], [70]), ParameterCurve("paper", X, [1, 2, 3], dashed=True))
    ours, paper = (container.lines[0] for container in figure.axes[0].containers)
    assert ours.get_marker() == "o"
    assert paper.is_dashed()
    assert not ours.is_dashed()
    assert paper.get_markerfacecolor() != ours.get_markerfacecolor()


def test_nothing_measured_and_no_line_are_drawn():
    drawn(curves(ParameterCurve("a", X, [None, None, None], [None, None, None])))
    drawn(curves())


def test_long_names_stand_in_a_legend_below_the_axes():
    names = [f"dropping=BatchDropBlock, pooling={pooling}" for pooling in ("max", "avg")]
    figure = curves(*(ParameterCurve(name, X, [1, 2, 3]) for name in names))
    drawn(figure)
    axes = figure.axes[0]
    assert not axes.texts
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    box = axes.get_legend().get_window_extent()
    label = axes.xaxis.label.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= label.y0


def test_nine_lines_differ_in_colour_or_marker():
    containers = curves(*(ParameterCurve(f"{i}", X, [i, i, i]) for i in range(9))).axes[0].containers
    assert len({(c.lines[0].get_color(), c.lines[0].get_marker()) for c in containers}) == 9


@pytest.mark.parametrize(
    ("x", "scale", "ticks"),
    [
        ([1e-5, 1e-4, 1e-2], "log", ["1e-5", "1e-4", "1e-2"]),
        ([0.1, 0.3, 0.5], "linear", ["0.1", "0.3", "0.5"]),
        ([0.0, 1.0, 1000.0], "linear", None),
    ],
)
def test_the_axis_of_the_setting_fits_its_values(x, scale, ticks):
    figure = curves(ParameterCurve("", x, [1, 2, 3]))
    drawn(figure)
    axis = figure.axes[0].xaxis
    assert axis.get_scale() == scale
    if ticks is not None:
        assert [label.get_text() for label in axis.get_ticklabels()] == ticks


def test_parts_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"lines: ours: y has 2 values for 3 of x"):
        curves(ParameterCurve("ours", X, [1, 2]))
    with pytest.raises(ValueError, match=r"lines: ours: error has 1 values for 3 of x"):
        curves(ParameterCurve("ours", X, [1, 2, 3], [1]))


def test_dots_are_in_the_order_given_and_names_fit_the_figure():
    dots = [ConfigurationDot("dropping=BatchDropBlock, pooling=max", 70, 1.0), ConfigurationDot("none", 50)]
    figure = configuration_dots("Rank-1, %", "", dots)
    drawn(figure)
    (first, second) = (container.lines[0].get_xydata()[0] for container in figure.axes[0].containers)
    assert (first[0], second[0]) == (70, 50)
    assert first[1] > second[1]
    names = figure.axes[0].get_yticklabels()
    assert [name.get_text().replace("\n", " ") for name in names] == [dot.name for dot in dots]
    assert min(name.get_window_extent().x0 for name in names) >= 0


def test_more_configurations_make_a_taller_figure():
    dots = [ConfigurationDot(f"{i}", i) for i in range(20)]
    tall, short = (configuration_dots("mAP", "", some).get_figheight() for some in (dots, dots[:2]))
    assert tall > 3 * short


def test_a_dark_theme_reaches_background_and_text():
    for figure in (
        curves(ParameterCurve("a", X, [1, 2, 3]), theme=DARK),
        configuration_dots("mAP", "%", [ConfigurationDot("a", 1)], theme=DARK),
    ):
        assert figure.get_facecolor()[:3] < (0.2, 0.2, 0.2)
        assert figure.axes[0].xaxis.label.get_color() == DARK.text


def test_a_metric_of_zero_everywhere_has_readable_ticks():
    figure = parameter_curves("Rank-1, %", "lr", "", [ParameterCurve("", [0.1, 0.2], [0.0, 0.0], [0.0, 0.0])])
    assert figure.axes[0].get_ylim() == (-1, 1)


@pytest.mark.parametrize(
    "values", [[100.0, 100.0, 100.0], [71.51, 71.52, 71.53], [-0.001, 0.0, 0.001], [0.0, 0.0, 0.0]]
)
def test_the_numbers_of_the_axis_are_whole_also_where_all_values_are_alike(values):
    for figure in (
        curves(ParameterCurve("", X, values)),
        configuration_dots("Rank-1, %", "", [ConfigurationDot(f"layer {i}", value) for i, value in enumerate(values)]),
    ):
        drawn(figure)
        width, _ = figure.bbox.size
        axes = figure.axes[0]
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        shown = [label for label in axes.get_xticklabels() if left <= label.get_position()[0] <= right]
        shown += [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        boxes = [label.get_window_extent() for label in shown]
        assert len(boxes) > 4
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= width
