"""A calibrated threshold: which distance means the same identity, how sure that is, and for which distance it was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np

from bdbnet.checked import Range, UnfitError, checked

Rate = Annotated[float, Range(0, 1)]

#: Below this probability a pair beyond the threshold is "not same"; between it and the threshold lies "unsure".
UNLIKELY = 0.05
MARKS = ("same", "unsure", "not same")


@dataclass(frozen=True)
class Measured:
    """A rate on identities that the threshold was not chosen on, with its 95 % interval.

    Attributes:
        value: share of the pairs.
        interval: lower and upper end.
        method: `bootstrap` over identities, or `clopper-pearson` where no pair, or every pair, was below the threshold.
    """

    value: Rate
    interval: tuple[Rate, Rate]
    method: str


@dataclass(frozen=True)
class Pairs:
    """Pairs that were counted: of which data, of how many identities, and how many of one identity and of two."""

    data: str
    fingerprint: str
    split: str
    identities: int
    positives: int
    negatives: int


@dataclass(frozen=True)
class Reliable:
    """Held-out pairs whose probability lies in a bin: the mean of it, the share that was right, and how many."""

    predicted: Rate
    observed: Rate
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """A threshold with what it is worth.

    Attributes:
        threshold: pairs nearer than it count as the same identity.
        made_for: `distance` and the settings of the embedding that it was measured with, see `made_for`.
        fmr: false match rate that was asked for.
        chosen_fmr: what the threshold has on the pairs that it was chosen on.
        reached: false match rate on the held-out identities.
        true_positive_rate: likewise.
        chosen_on, held_out: the pairs.
        prior: probability of the same identity before anything is seen, which the curve's probabilities are for.
        distances, probabilities: (K,) of the curve, straight lines between; probabilities never rise.
        reliability: of held-out pairs by predicted probability.
        seed: of the halves and the draws.
    """

    threshold: float
    made_for: Mapping[str, Any]
    fmr: Rate
    chosen_fmr: Rate
    reached: Measured
    true_positive_rate: Measured
    chosen_on: Pairs
    held_out: Pairs
    prior: Rate
    distances: Sequence[float]
    probabilities: Sequence[Rate]
    reliability: Sequence[Reliable]
    seed: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Calibration":
        """The calibration that `record` wrote.  Raises UnfitError, which names the key, for another record."""
        found: Calibration = checked(record, cls, "calibration")
        if not found.distances or len(found.distances) != len(found.probabilities):
            raise UnfitError("calibration: distances and probabilities are not lists of the same length")
        if (np.diff(found.distances) < 0).any() or (np.diff(found.probabilities) > 0).any():
            raise UnfitError("calibration: distances do not ascend, or probabilities rise with them")
        return found

    def record(self) -> dict[str, Any]:
        """As it stands in files."""
        return asdict(self)

    def probability(self, distances: Any) -> np.ndarray:
        """Probability of the same identity for distances of any shape, float64."""
        found: np.ndarray = np.interp(np.asarray(distances, np.float64), self.distances, self.probabilities)
        return found

    def marks(self, distances: Any) -> np.ndarray:
        """`same` for distances below the threshold, `not same` where the probability is at most 5 % besides, else `unsure`.

        So `same` is what `Embedder.same` calls the same; whoever wants to look again looks at `unsure`.
        """
        away = np.asarray(distances, np.float64)
        choices = [away < self.threshold, self.probability(away) <= UNLIKELY]
        return np.select(choices, ["same", "not same"], "unsure")

    @property
    def unsure_until(self) -> float:
        """The distance from which on `marks` says `not same`, at least the threshold; infinite where the curve stays above 5 %."""
        x, y = np.asarray(self.distances), np.asarray(self.probabilities)
        below = np.flatnonzero(y <= UNLIKELY)
        if not len(below):
            return float("inf")
        first = below[0]
        away = x[0] if first == 0 else np.interp(-UNLIKELY, -y[first - 1 : first + 1], x[first - 1 : first + 1])
        return max(self.threshold, float(away))

    def differences(self, made_for: Mapping[str, Any]) -> list[str]:
        """What is not as it was measured with, in words: none where the threshold may be used."""
        mine = dict(self.made_for)
        return [
            f"{name} {_plain(mine.get(name))}, not {_plain(made_for.get(name))}"
            for name in dict.fromkeys([*mine, *made_for])
            if _plain(mine.get(name)) != _plain(made_for.get(name))
        ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
