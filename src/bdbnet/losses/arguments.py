"""Argument checks shared by the losses."""

import math


def at_least_zero(argument: str, value: float) -> float:
    """The value as a float, if it is a valid margin or weight.

    Raises:
        ValueError: not a finite number of at least 0; the message names the argument.
    """
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        raise ValueError(f"{argument}: expected a number of at least 0, got {value!r}")
    return float(value)
