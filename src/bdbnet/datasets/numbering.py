"""Labels and cameras as tables write them, as whole numbers or as names, to numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdbnet.datasets.manifest import DatasetError

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")


class Numbered(NamedTuple):
    """Numbers of the rows, the names of these numbers where they are written otherwise, and what a user should know."""

    numbers: list[Any]
    names: dict[int, str]
    remark: str = ""


def is_number(value: object) -> bool:
    """Whether a value is a number or the text of one."""
    return not isinstance(value, str) or _NUMBER.fullmatch(value) is not None


def number_labels(source: str | Path, labels: Sequence[Any]) -> Numbered:
    """Labels as numbers: whole numbers are kept, also as text; otherwise all are names, numbered in sorted order.

    Raises DatasetError that names row (the first is 1) and label.
    """
    texts = {label for label in labels if isinstance(label, str)}
    if not texts:
        return Numbered(list(labels), {})
    numeric = {text for text in texts if _NUMBER.fullmatch(text)}
    whole = {text: _whole(text) for text in numeric}
    if numeric == texts:
        row = next((row for row, label in enumerate(labels, 1) if label in whole and whole[label] is None), 0)
        if row:
            raise DatasetError(
                f"{source}, row {row}, column label: {labels[row - 1]!r} is not a whole number below 2**63. Write labels as "
                "whole numbers or as names."
            )
        _require_one_spelling(source, labels, whole)
        numbers = [whole.get(label, label) for label in labels]
        names = {number: text for text, number in whole.items() if number is not None and text != str(number)}
        return Numbered(numbers, names)
    _require_one_spelling(source, labels, whole)
    written = [str(label) for label in labels]
    for row, label in enumerate(written, 1):
        if label.startswith("-") and _NUMBER.fullmatch(label):
            raise DatasetError(
                f"{source}, row {row}, column label: {label} is negative: leave junk images out of the table."
            )
    ranked = number_names(written)
    numbers_among = sum(_NUMBER.fullmatch(label) is not None for label in written)
    if not numbers_among:
        return ranked
    name = next(label for label in written if not _NUMBER.fullmatch(label))
    return ranked._replace(
        remark=f"{numbers_among:,} labels are numbers and the others names, such as {name!r}: all are read as names"
    )


def number_names(names: Sequence[str]) -> Numbered:
    """Names numbered 0, 1, ... in sorted order, whole numbers among them first."""
    ordered = sorted({*names}, key=lambda name: (0, int(name), name) if _is_short_whole(name) else (1, 0, name))
    ranks = {name: rank for rank, name in enumerate(ordered)}
    return Numbered([ranks[name] for name in names], {rank: name for name, rank in ranks.items()})


def number_sequences(sequences: Sequence[Any]) -> list[Any]:
    """Sequences as numbers in sorted order; images of none are one sequence."""
    return number_names(["" if value is None else str(value) for value in sequences]).numbers


def number_cameras(cameras: Sequence[Any]) -> Numbered:
    """Cameras as they are, or, where all have names, numbered 0, 1, ... in sorted order."""
    if any(is_number(camera) for camera in cameras):
        return Numbered(list(cameras), {})
    ranked = number_names(cameras)
    shown = [f"{number} = {name}" for number, name in ranked.names.items()]
    listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
    return ranked._replace(remark=f"the cameras are numbered: {listed}")


def _require_one_spelling(source: str | Path, labels: Sequence[Any], whole: dict[str, int | None]) -> None:
    """Raise DatasetError where two texts are the same number."""
    spelled: dict[int, str] = {}
    for row, label in enumerate(labels, 1):
        number = whole.get(label) if isinstance(label, str) else None
        if number is not None and spelled.setdefault(number, label) != label:
            raise DatasetError(
                f"{source}, row {row}, column label: {label!r} and {spelled[number]!r} are the same number. Write the "
                "labels of one identity alike; for other identities, write names (a7, a007)."
            )


def _is_short_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 40


def _whole(text: str) -> int | None:
    digits, _, fraction = text.partition(".")
    if fraction.strip("0") or len(digits) > 40:  # Python refuses to convert thousands of digits
        return None
    number = int(digits)
    return number if abs(number) < 2**63 else None
