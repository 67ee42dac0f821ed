"""Contents of files against types: what fits comes back, what does not is named by its key."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import pandas as pd
import pytest

from bdbnet.checked import Column, Holds, Plain, Positive, Range, Size, UnfitError, checked, read_json, read_parquet


class Facts(TypedDict):
    name: str
    share: NotRequired[Annotated[float, Range(0, 1)]]


@dataclass(frozen=True)
class Shape:
    size: Size
    facts: Facts
    unit: Literal["px", "mm"] = "px"
    more: Annotated[Mapping[str, Any], Holds(Facts)] | None = None

    def __post_init__(self) -> None:
        if self.size == (13, 13):
            raise ValueError("size=13: choose another")


def test_what_fits_comes_back_as_its_type():
    record = {"size": [2, 3], "facts": {"name": "a", "share": 1, "extra": [None]}, "more": {"name": "b"}}
    assert checked(record, Shape) == Shape((2, 3), {"name": "a", "share": 1, "extra": [None]}, more={"name": "b"})
    assert checked([1, 2.5], tuple[float, ...]) == (1, 2.5)
    assert checked({"a": [1]}, dict[str, list[int]]) == {"a": [1]}
    assert checked(None, int | None) is None


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("x", int, "k is 'x'; expected a whole number"),
        (True, int, "k is true; expected a whole number"),
        (2**63, int, "k is a whole number of more than 19 digits; expected a whole number"),
        (1.5, int, "k is 1.5; expected a whole number"),
        (True, float, "k is true; expected a number"),
        (math.nan, float, "k is nan; expected a number"),
        (10**400, float, "k is a whole number of more than 19 digits; expected a number"),
        (None, str, "k is null; expected text"),
        (1, bool, "k is 1; expected true or false"),
        (5, str | None, "k is 5; expected text or null"),
        ("cm", Literal["px", "mm"], "k is 'cm'; expected one of px, mm"),
        (0, Positive, "k is 0; expected a number of at least 1"),
        ([1], Size, r"k is a list of 1; expected a list of 2"),
        ([1, "x"], Size, r"k\[1\] is 'x'; expected a whole number"),
        ({"a": "x"}, Mapping[str, float], "k.a is 'x'; expected a number"),
        ({5: 1}, Mapping[str, float], "k has the key 5; expected text as keys"),
        ([], Mapping[str, float], "k is a list of 0; expected a mapping"),
        ({"share": 0.5}, Facts, "k.name is missing"),
        ({"name": "a", "share": 2}, Facts | None, "k.share is 2; expected a number from 0 to 1"),
        ({"facts": {"name": "a"}}, Shape, "k.size is missing"),
        ({"size": [1, 1], "facts": {"name": "a"}, "x": 1}, Shape, "k.x is not a key of this version"),
        ({"size": [13, 13], "facts": {"name": "a"}}, Shape, "k: size=13: choose another"),
        ({"size": [1, 1], "facts": {"name": "a"}, "more": {"name": 1}}, Shape, "k.more.name is 1; expected text"),
        ({"a": [{"b": np.float64}]}, Plain, r"k.a\[0\].b is a type; expected text, a number, a list or a mapping"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(value, kind, message):
    with pytest.raises(UnfitError, match=f"^{message}$"):
        checked(value, kind, "k")


def test_deep_values_are_refused(tmp_path):
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(UnfitError, match="nested in more than 100 levels"):
        checked({"a": deep}, Plain)
    path = tmp_path / "a.json"
    for text in (json.dumps(deep), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"nested in more than 100 levels|Expecting"):
            read_json(path)


COLUMNS = {
    "path": Column("text"),
    "rank": Column("whole", least=1),
    "ap": Column("number", empty=True),
    "ok": Column("truth"),
}


def good_table() -> pd.DataFrame:
    return pd.DataFrame({"path": ["a", "b"], "rank": [1, 2], "ap": [0.5, np.nan], "ok": [True, False], "more": [1, 2]})


def test_a_table_comes_back(tmp_path):
    good_table().to_parquet(tmp_path / "t.parquet", index=False)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet", COLUMNS), good_table())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": [1, 2]}, "column path holds int64; expected text"),
        ({"path": ["a", None]}, "column path, row 2: is empty; expected text"),
        ({"rank": [1, 0]}, "column rank, row 2: is 0; expected whole numbers of at least 1"),
        ({"rank": [1.0, 2.0]}, "column rank holds double; expected whole numbers"),
        ({"ap": [0.5, np.inf]}, "column ap, row 2: is inf; expected numbers"),
        ({"ap": ["x", "y"]}, "column ap holds .*string; expected numbers"),
        ({"ok": [0, 1]}, "column ok holds int64; expected true and false"),
        ({"ok": [[1], [2]]}, "column ok holds list.*; expected true and false"),
    ],
)
def test_a_column_of_another_kind_is_named(changes, message, tmp_path):
    good_table().assign(**changes).to_parquet(tmp_path / "t.parquet", index=False)
    with pytest.raises(UnfitError, match=message):
        read_parquet(tmp_path / "t.parquet", COLUMNS)


@pytest.mark.parametrize("keep", [0, 4, 100, -20])
def test_a_damaged_table_is_refused(keep, tmp_path):
    path = tmp_path / "t.parquet"
    good_table().to_parquet(path, index=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnfitError, match="not a readable Parquet file"):
        read_parquet(path, COLUMNS)


def test_columns_may_be_absent_where_they_are_optional_only(tmp_path):
    good_table().drop(columns=["ap", "ok"]).to_parquet(tmp_path / "t.parquet", index=False)
    assert "ap" not in read_parquet(tmp_path / "t.parquet", COLUMNS, optional=["ap", "ok"])
    with pytest.raises(UnfitError, match=r"lacks the column\(s\) ok"):
        read_parquet(tmp_path / "t.parquet", COLUMNS, optional=["ap"])
