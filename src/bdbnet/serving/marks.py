"""Whether a distance means the same identity: the mark beside a result."""

from dataclasses import dataclass

from bdbnet.evaluation.embedder import Embedder


@dataclass(frozen=True)
class Marks:
    """A threshold on the distance: what is nearer shows the same identity.

    Attributes:
        threshold: in the unit of the distance.
        source: where it comes from, for people to read.
    """

    threshold: float
    source: str

    def of(self, distance: float) -> str:
        """`same` or `not same`.

        >>> Marks(0.5, "").of(0.4), Marks(0.5, "").of(0.5)
        ('same', 'not same')
        """
        return "same" if distance < self.threshold else "not same"


def marks_of(embedder: Embedder, distance: str) -> Marks | None:
    """The marks that the network's own threshold gives; None where it has none, or one for another distance."""
    if embedder.threshold is None or embedder.distance_name != distance:
        return None
    return Marks(float(embedder.threshold), f"threshold of {embedder.origin.source or 'the network'}")
