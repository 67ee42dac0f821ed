"""The check that the losses' numbers share."""

import math


def at_least_zero(argument: str, value: float) -> float:
    """The value of a margin or a weight.

    Raises:
        ValueError: it is not a finite number of at least 0. The message names the argument.
    """
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        raise ValueError(f"{argument}: expected a number of at least 0, got {value!r}")
    return float(value)
