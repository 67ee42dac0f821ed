"""A calibration: its table for the terminal, and its record and figures as files."""

import base64
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bdbnet.evaluation.calibration import Calibration, Measured
from bdbnet.reporting.page import note_paragraphs
from bdbnet.reporting.pictures import svg, themed_picture
from bdbnet.reporting.table import Grid, as_html, as_text
from bdbnet.results import CALIBRATION, CALIBRATION_FIGURE, write_atomically
from bdbnet.wording import distance, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bdbnet.figures import Theme


def calibration_text(calibration: Calibration) -> str:
    """Its table for a terminal."""
    return as_text(_table(calibration))


def calibration_section(calibration: Calibration | None) -> str:
    """Section of a run's page with rates, curve and reliability; empty for a run that was not calibrated."""
    if calibration is None:
        return ""
    from bdbnet.figures import calibration as vis

    grid = _table(calibration)
    until = calibration.unsure_until
    beyond = f", not the same from {distance(until)} on" if np.isfinite(until) else ""
    pictures = (
        themed_picture(
            lambda theme: _curve(calibration, theme),
            "Probability of the same identity by distance",
            f"threshold {distance(calibration.threshold)}{beyond}",
        ),
        themed_picture(
            lambda theme: vis.reliability_plot(*_reliability(calibration), theme=theme),
            "Reliability on the held-out identities",
            "; ".join(
                f"predicted {percent(of.predicted)}, observed {percent(of.observed)}" for of in calibration.reliability
            ),
        ),
    )
    return (
        f'<section>\n<h2>The same identity?</h2>\n<div class="curves">\n{"".join(pictures)}</div>\n'
        f"<h3>{escape(grid.title)}</h3>\n{as_html(grid)}\n{note_paragraphs(grid.notes)}</section>"
    )


def write_figure(calibration: Calibration, folder: Path) -> Path:
    """Write curve and reliability side by side as `calibration.svg`."""
    from bdbnet.figures import LIGHT
    from bdbnet.figures import calibration as vis

    parts = (
        svg(_curve(calibration, LIGHT)),
        svg(vis.reliability_plot(*_reliability(calibration))),
    )
    images = "".join(
        f'<image x="{number * 340}" width="331" height="231" href="data:image/svg+xml;base64,{base64.b64encode(part).decode()}"/>'
        for number, part in enumerate(parts)
    )
    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="671" height="231" viewBox="0 0 671 231">{images}</svg>\n'
    return write_atomically(folder / CALIBRATION_FIGURE, text.encode())


def write_calibration(calibration: Calibration, folder: Path) -> Path:
    """Write `calibration.json` and its figure."""
    write_figure(calibration, folder)
    return write_atomically(folder / CALIBRATION, (json.dumps(calibration.record(), indent=2) + "\n").encode())


def _curve(calibration: Calibration, theme: "Theme") -> "Figure":
    from bdbnet.figures import calibration as vis

    return vis.probability_curve(
        calibration.distances, calibration.probabilities, threshold=calibration.threshold,
        unsure_until=calibration.unsure_until, theme=theme,
    )  # fmt: skip


def _reliability(calibration: Calibration) -> tuple[list[float], list[float]]:
    return [of.predicted for of in calibration.reliability], [of.observed for of in calibration.reliability]


def _table(found: Calibration) -> Grid:
    rows = [
        ["false match rate wanted", _fine(found.fmr), ""],
        ["on the identities it was chosen on", _fine(found.chosen_fmr), ""],
        ["on the held-out identities", _fine(found.reached.value), _interval(found.reached)],
        ["true positive rate there", percent(found.true_positive_rate.value), _interval(found.true_positive_rate)],
    ]
    a, b = found.chosen_on, found.held_out
    methods = {found.reached.method, found.true_positive_rate.method}
    how = {
        "bootstrap": "bootstrap over identities",
        "clopper-pearson": "Clopper and Pearson over independent identities",
    }
    settings = ", ".join(
        f"{name} {value}" for name, value in found.made_for.items() if name in ("distance", "normalize")
    )
    notes = [
        f"Chosen on {a.identities:,} identities of {a.data} {a.split} ({a.positives:,} pairs of one identity, {a.negatives:,} "
        f"of two), tested on {b.identities:,} others of {b.data} {b.split} ({b.positives:,} and {b.negatives:,}).",
        f"Intervals: {' and '.join(how[name] for name in sorted(methods))}. It holds for {settings}.",
        f"Probabilities are for a share of {found.prior:g} of pairs of one identity. Pairs beyond the threshold are unsure "
        "down to a probability of 5 %, then not the same.",
    ]
    return Grid(f"Same identity: nearer than {distance(found.threshold)}", ["", "rate", "95 % interval"], rows, notes)


def _interval(measured: Measured) -> str:
    low, high = measured.interval
    return f"{_fine(low)} to {_fine(high)}"


def _fine(fraction: float) -> str:
    """In percent, below 1 % with two significant digits."""
    return percent(fraction) if fraction >= 0.00995 else f"{100 * fraction:.2g} %"
