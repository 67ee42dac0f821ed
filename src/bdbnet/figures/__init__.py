"""Matplotlib figures from arrays and tables. Matplotlib itself is imported when the first figure is drawn."""

from bdbnet.figures.activation_maps import activation_maps_figure, overlay, upsampled
from bdbnet.figures.calibration import probability_curve, reliability_plot
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
from bdbnet.figures.error_analysis import camera_matrix, distance_distributions, precision_histogram, roc_curve
from bdbnet.figures.parameter_curves import (
    ConfigurationDot,
    ParameterCurve,
    configuration_dots,
    parameter_curves,
)
from bdbnet.figures.parameter_maps import parameter_map
from bdbnet.figures.ranking_lists import RankedImage, RankingList, ranking_lists_figure, read_thumbnail
from bdbnet.figures.score_matrix import score_matrix

__all__ = [
    "DARK",
    "LIGHT",
    "ConfigurationDot",
    "ParameterCurve",
    "RankedImage",
    "RankingList",
    "Theme",
    "activation_maps_figure",
    "camera_matrix",
    "configuration_dots",
    "distance_distributions",
    "drop_masks_figure",
    "learning_rate_curve",
    "loss_columns",
    "loss_curves",
    "loss_label",
    "metric_columns",
    "metric_curves",
    "overlay",
    "parameter_curves",
    "parameter_map",
    "precision_histogram",
    "probability_curve",
    "ranking_lists_figure",
    "read_thumbnail",
    "reliability_plot",
    "roc_curve",
    "score_matrix",
    "upsampled",
]
