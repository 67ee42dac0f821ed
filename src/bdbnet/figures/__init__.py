"""Matplotlib figures from arrays and tables. Matplotlib itself is imported when the first figure is drawn."""

from bdbnet.figures.activation_maps import activation_maps_figure, overlay, upsampled
from bdbnet.figures.curves import (
    DARK,
    LIGHT,
    Theme,
    learning_rate_curve,
    loss_columns,
    loss_curves,
    loss_label,
    metric_columns,
    metric_curves,
)
from bdbnet.figures.drop_masks import drop_masks_figure
from bdbnet.figures.parameter_curves import (
    ConfigurationDot,
    ParameterCurve,
    configuration_dots,
    parameter_curves,
)
from bdbnet.figures.ranking_lists import RankedImage, RankingList, ranking_lists_figure, read_thumbnail

__all__ = [
    "DARK",
    "LIGHT",
    "ConfigurationDot",
    "ParameterCurve",
    "RankedImage",
    "RankingList",
    "Theme",
    "activation_maps_figure",
    "configuration_dots",
    "drop_masks_figure",
    "learning_rate_curve",
    "loss_columns",
    "loss_curves",
    "loss_label",
    "metric_columns",
    "metric_curves",
    "overlay",
    "parameter_curves",
    "ranking_lists_figure",
    "read_thumbnail",
    "upsampled",
]
