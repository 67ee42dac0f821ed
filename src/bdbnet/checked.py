"""Contents of files checked against types where they are read: one error that names the file, the key and what belongs there."""

import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, Union

from bdbnet.regular_files import require_regular

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")

_WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null",
}  # fmt: skip
_DEEPEST = 100  # levels of nested values; a file of ours has about ten
_LARGEST_WHOLE = 2**63
_SHOWN = 60  # characters of a value that a message shows


class Range(NamedTuple):
    """In ``Annotated[int, Range(1)]``: the least and the largest number that are allowed, both included."""

    least: float = -math.inf
    most: float = math.inf


class Holds(NamedTuple):
    """In ``Annotated[Mapping[str, Any], Holds(Facts)]``: what the mapping holds, a TypedDict, where code reads it as a mapping."""

    kind: Any


Positive = Annotated[int, Range(1)]
Size = tuple[Positive, Positive]


class Plain:
    """As a type: text, numbers, true, false, null, and lists and mappings of these, not too deep."""


class UnfitError(ValueError):
    """A value that does not fit its type; the message names the key, what is there and what belongs there."""


def checked(value: Any, kind: type[_T], key: str = "") -> _T:
    """Plain data as a value of a type.

    Args:
        value: of mappings, lists, texts, numbers, true, false and null, as JSON and checkpoints hold them.
        kind: an annotation of these types: bool, int, float (finite; a whole number fits), str, None, Any, Literal, unions,
            list, Sequence, tuple (made of a list), dict and Mapping with text as keys, TypedDict (further keys are kept),
            dataclass (made of a mapping without further keys) and Annotated with `Range` and `Holds`.
        key: of the value, for messages.

    Raises:
        UnfitError: names the first key that does not fit.

    >>> checked([64, 32], tuple[int, int])
    (64, 32)
    >>> checked({"epochs": "x"}, dict[str, int])
    Traceback (most recent call last):
    bdbnet.checked.UnfitError: epochs is 'x'; expected a whole number
    """
    return typing.cast(_T, _checked(value, kind, key))


def _checked(value: Any, kind: Any, key: str) -> Any:
    if kind is Any:
        return value
    if kind is Plain:
        _check_plain(value, key)
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = _checked(value, arguments[0], key)
        for further in arguments[1:]:
            if isinstance(further, Holds):
                value = _checked(value, further.kind, key)
            elif isinstance(further, Range) and not further.least <= value <= further.most:
                raise _unfit(key, value, _range_words(further))
        return value
    if origin in (typing.Required, typing.NotRequired):
        return _checked(value, arguments[0], key)
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, key)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _unfit(key, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple or kind is tuple:
        return _tuple(value, arguments, key)
    if origin in (list, Sequence) or kind in (list, Sequence):
        if not isinstance(value, list | tuple):
            raise _unfit(key, value, "a list")
        inner = arguments[0] if arguments else Any
        return [_checked(item, inner, f"{key}[{number}]") for number, item in enumerate(value)]
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        inner = arguments[1] if arguments else Any
        return {name: _checked(item, inner, _below(key, name)) for name, item in _mapping(value, key).items()}
    if typing.is_typeddict(kind):
        return _typed_dict(value, kind, key)
    if is_dataclass(kind):
        return _dataclass(value, kind, key)
    if not _fits(value, kind):
        raise _unfit(key, value, _words(kind))
    return value


def _check_plain(value: Any, key: str, levels: int = _DEEPEST) -> None:
    if levels == 0:
        raise UnfitError(f"{key[:_SHOWN]}... is nested in more than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        for name, item in _mapping(value, key).items():
            _check_plain(item, _below(key, name), levels - 1)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{key}[{number}]", levels - 1)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise _unfit(key, value, "text, a number, a list or a mapping")


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        try:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number beyond every float
            return False
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_WHOLE
    return isinstance(value, type(None) if kind is None else kind)


def _one_of(value: Any, kinds: Sequence[Any], key: str) -> Any:
    inside = None
    for kind in kinds:
        try:
            return _checked(value, kind, key)
        except UnfitError as error:
            if not str(error).startswith(f"{key} is "):  # it fits but for something in it
                inside = error
    raise inside or _unfit(key, value, " or ".join(map(_words, kinds)))


def _tuple(value: Any, kinds: Sequence[Any], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _unfit(key, value, "a list")
    if not kinds or kinds[-1] is Ellipsis:
        kinds = [kinds[0] if kinds else Any] * len(value)
    if len(value) != len(kinds):
        raise _unfit(key, value, f"a list of {len(kinds)}")
    return tuple(_checked(item, kind, f"{key}[{number}]") for number, (item, kind) in enumerate(zip(value, kinds)))


def _typed_dict(value: Any, kind: Any, key: str) -> dict[str, Any]:
    known, found = typing.get_type_hints(kind, include_extras=True), dict(_mapping(value, key))
    _require(kind.__required_keys__, found, key)
    return found | {name: _checked(found[name], known[name], _below(key, name)) for name in known if name in found}


def _dataclass(value: Any, kind: Any, key: str) -> Any:
    known, found = typing.get_type_hints(kind, include_extras=True), _mapping(value, key)
    _require([f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING], found, key)
    if further := [name for name in found if name not in known]:
        raise UnfitError(f"{_below(key, further[0])} is not a key of this version")
    try:
        return kind(**{name: _checked(item, known[name], _below(key, name)) for name, item in found.items()})
    except UnfitError:
        raise
    except ValueError as error:  # what the class itself refuses
        raise UnfitError(f"{key}: {error}" if key else str(error)) from error


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _unfit(key, value, "a mapping")
    if (odd := next((name for name in value if not isinstance(name, str)), value)) is not value:
        raise UnfitError(f"{key or 'it'} has the key {_short(odd)}; expected text as keys")
    return value


def _require(names: Iterable[str], found: Mapping[str, Any], key: str) -> None:
    for name in names:
        if name not in found:
            raise UnfitError(f"{_below(key, name)} is missing")


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _unfit(key: str, value: Any, expected: str) -> UnfitError:
    return UnfitError(f"{key or 'it'} is {_short(value)}; expected {expected}")


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= _LARGEST_WHOLE:  # Python refuses to write out thousands of digits
        return "a whole number of more than 19 digits"
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return next(
            (_range_words(limits) for limits in arguments[1:] if isinstance(limits, Range)), _words(arguments[0])
        )
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind in _WORDS or kind is None:
        return _WORDS[type(None) if kind is None else kind]
    return "a list" if (origin or kind) in (list, tuple, Sequence) else "a mapping"


def _range_words(limits: Range) -> str:
    if limits.most == math.inf:
        return f"a number of at least {limits.least:g}"
    return f"a number from {limits.least:g} to {limits.most:g}"


# Files


def read_json(path: Path) -> Any:
    """The content of a JSON file (UTF-8).

    Raises:
        OSError: it can't be read, or is a named pipe, a socket or a device.
        ValueError: it is not JSON, or its values are nested more deeply than any file of ours.
    """
    require_regular(path)
    try:
        content = json.loads(path.read_bytes().decode())
        too_deep = _is_deeper(content, _DEEPEST)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"its values are nested in more than {_DEEPEST} levels")
    return content


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list) or not value:
        return False
    return levels == 0 or any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


class Column(NamedTuple):
    """What a column of a Parquet table holds.

    Attributes:
        kind: ``whole`` and ``number`` of any width, ``text``, ``label`` (whole numbers or text), ``truth`` (true and false).
        empty: values may be missing, NaN among numbers; infinity never fits.
        least: smallest number that is allowed.
    """

    kind: Literal["whole", "number", "text", "label", "truth"]
    empty: bool = False
    least: float = -math.inf


def read_parquet(path: Path, columns: Mapping[str, Column], optional: Iterable[str] = ()) -> "pd.DataFrame":
    """A Parquet table with the columns that are known, and those beside them as they are.

    Args:
        columns: by name; all but the `optional` ones have to be there.

    Raises:
        OSError: it is a named pipe, a socket or a device.
        UnfitError: it is no Parquet file or damaged, or a column is missing, twice or of another kind; names column and row,
            the first row is 1.
    """
    table = read_arrow(path, columns, optional)
    try:
        # What pandas noted in the file is of no use here, and may be damaged too.
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except MemoryError:
        raise
    except Exception as error:
        raise UnfitError(f"not a readable Parquet file ({_first_line(error)})") from error
    return frame


def read_arrow(path: Path, columns: Mapping[str, Column], optional: Iterable[str] = ()) -> Any:
    """`read_parquet` as a table of pyarrow.  Raises OSError and UnfitError as that does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_regular(path)
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        names = table.column_names
        if missing := [name for name in columns if name not in names and name not in {*optional}]:
            raise UnfitError(f"lacks the column(s) {', '.join(missing)}")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UnfitError(f"has the column(s) {', '.join(twice)} more than once")
        for name, column in columns.items():
            if name in names:
                _check_column(name, table.column(name), column)
    except (UnfitError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UnfitError(f"not a readable Parquet file ({_first_line(error)})") from error
    return table


def _check_column(name: str, values: Any, column: Column) -> None:
    """Raise UnfitError unless a column (of pyarrow) is of its kind."""
    import pyarrow as pa

    is_whole, is_number = pa.types.is_signed_integer(values.type), pa.types.is_floating(values.type)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    fits, words = {
        "whole": (is_whole, "whole numbers"),
        "number": (is_whole or is_number, "numbers"),
        "text": (is_text, "text"),
        "label": (is_whole or is_text, "whole numbers or text"),
        "truth": (pa.types.is_boolean(values.type), "true and false"),
    }[column.kind]
    all_empty = values.null_count == len(values) and (column.empty or not len(values))
    if not fits and not all_empty:
        raise UnfitError(f"column {name} holds {values.type}; expected {words}")
    if not column.empty and values.null_count:
        raise UnfitError(f"column {name}, row {values.is_null().index(True).as_py() + 1}: is empty; expected {words}")
    if column.kind in ("whole", "number") and not all_empty:
        import numpy as np

        numbers = np.asarray(values.to_pandas(), np.float64)
        wrong = np.isinf(numbers) if column.empty else ~np.isfinite(numbers)
        for row in np.flatnonzero(wrong | (numbers < column.least))[:1]:
            least = f" of at least {column.least:g}" if numbers[row] < column.least else ""
            raise UnfitError(f"column {name}, row {row + 1}: is {numbers[row]:g}; expected {words}{least}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
