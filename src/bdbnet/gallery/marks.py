"""Marks: what the distance of a result says about the identity, where a threshold was found for such distances."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery.store import ModelStamp
from bdbnet.wording import distance as shown


@dataclass(frozen=True)
class Marks:
    """A threshold on the distance: what is nearer shows the same identity.

    Attributes:
        threshold: in the unit of the distance.
        source: where it comes from, for people to read.
        calibration: what tells "unsure" from "not same"; None for a threshold that somebody gave.
    """

    threshold: float
    source: str
    calibration: Calibration | None = None

    def of(self, distances: Any) -> np.ndarray:
        """`same`, `unsure` or `not same` for distances of any shape; see `Calibration.marks`.

        >>> Marks(0.5, "").of([0.4, 0.5]).tolist()
        ['same', 'not same']
        """
        if self.calibration is not None:
            return self.calibration.marks(distances)
        return np.where(np.asarray(distances, np.float64) < self.threshold, "same", "not same")

    @property
    def text(self) -> str:
        """What the marks mean, in a line."""
        nearer = f"same: nearer than {shown(self.threshold)}"
        if self.calibration is None:
            return f"{nearer} ({self.source})"
        until = self.calibration.unsure_until
        if until > self.threshold:
            nearer += ", unsure: " + (f"up to {shown(until)}" if np.isfinite(until) else "beyond")
        made = self.calibration
        return (
            f"{nearer} ({self.source}: calibrated for a false match rate of {100 * made.fmr:.2g} %, "
            f"{100 * made.reached.value:.2g} % on {made.held_out.identities:,} other identities of {made.held_out.data})"
        )


class Marking(NamedTuple):
    """Marks for the distances of a search, or None; and a line that says what they mean, or why there are none."""

    marks: Marks | None
    text: str


def marking_of(stamp: ModelStamp, distance: str, embedder: Embedder | None = None) -> Marking:
    """The marks for distances to the embeddings of a gallery.

    The calibration of the network comes first, where it was loaded, for it is the newer one; then that of the gallery's stamp.
    One that was made for another distance or for other settings of the embedding marks nothing.

    Args:
        stamp: of the gallery.
        distance: by which is searched.
        embedder: of the queries; None where they were embedded before.
    """
    made_for = {**stamp.made_for, "distance": distance}
    refused = ""
    for made, source in _calibrations(stamp, embedder):
        if not (apart := made.differences(made_for)):
            marks = Marks(made.threshold, source, made)
            return Marking(marks, marks.text)
        refused = refused or _refusal(made, source, apart, made_for)
    if embedder is not None and embedder.threshold is not None and not refused:  # somebody's own number
        source = f"threshold of {embedder.origin.source or 'the network'}"
        if embedder.distance_name == distance:
            marks = Marks(float(embedder.threshold), source)
            return Marking(marks, marks.text)
        own = embedder.distance_name
        refused = f"none: the {source} is one of the {own} distance: search with distance={own}"
    return Marking(
        None, refused or "none: no threshold is known for this network; python -m bdbnet.calibrate finds one"
    )


def _calibrations(stamp: ModelStamp, embedder: Embedder | None) -> list[tuple[Calibration, str]]:
    found = []
    if embedder is not None and embedder.calibration is not None:
        if embedder.threshold == embedder.calibration.threshold:
            found.append((embedder.calibration, str(embedder.origin.source or "the network")))
        elif embedder.threshold is not None:  # given by hand, in place of both
            return []
    if stamp.calibration is not None:
        found.append((stamp.calibration, "the gallery"))
    return found


def _refusal(made: Calibration, source: str, apart: list[str], made_for: Mapping[str, Any]) -> str:
    wanted = made.made_for.get("distance")
    other = f"search with distance={wanted}, or " if wanted != made_for["distance"] and len(apart) == 1 else ""
    return (
        f"none: the calibration of {source} was made for {'; '.join(apart)}: {other}calibrate again with "
        f"python -m bdbnet.calibrate"
    )
