"""Damage to files: to their bytes, to trees of plain values (JSON, checkpoints) and to tables.

Every function takes the generator first, so that a seed gives the same damage again.
"""

import io
import json
import math
import random
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: Values that a careless reader stumbles over.
ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", "x", "0", "1e999", "nan", "last", "none", "train"),
    *(-1, 0, 1, 2, 7, 2**31, 2**63, 10**30, -0.5, 0.5, 1.0, 1e308, math.nan, math.inf, -math.inf),
    *([], {}, [[]], [None], [1, 2], ["a", 1], {"": None}, {"a": {"b": 1}}, [0] * 1000),
    *("../../secret.png", "/etc/passwd", "/dev/zero", "<script>alert(1)</script>", "a\nb", "a\x00b", "\ud800", "é" * 200),
    *("${oc.env:HOME}", "${seed}", "%s%n{0}", "x" * 20_000, "last.ckpt", "=cmd|' /C calc'!A0"),
    {"_target_": "os.system", "command": "id"}, {"_target_": "bdbnet.models.BDBNetwork"}, {"_target_": 5},
)  # fmt: skip


def odd(rng: random.Random) -> Any:
    """One of the odd values, or rarely a very deep one."""
    if rng.random() < 0.02:
        deep: Any = 1
        for _ in range(rng.choice((50, 3000))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice(ODD)


def damaged_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file cut short, overwritten, shortened, lengthened or mistaken for another."""
    size = len(data)

    def place() -> int:
        return rng.randrange(size) if size else 0

    def flipped() -> bytes:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20)) if size else 0):
            changed[place()] = rng.randrange(256)
        return bytes(changed)

    def overwritten() -> bytes:
        begin, length = place(), rng.choice((1, 8, 100, 4096))
        filling = rng.choice((b"\0", b"\xff", b"A")) * min(length, size - begin)
        return data[:begin] + filling + data[begin + len(filling) :]

    def shortened() -> bytes:
        begin = place()
        return data[:begin] + data[begin + rng.choice((1, 7, 500)) :]

    def header() -> bytes:  # most formats keep their sizes there
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            if size:
                changed[rng.randrange(min(size, 64))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        return bytes(changed)

    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[: place()],
        lambda: data[: max(0, size - rng.choice((1, 4, 8, 100)))],
        flipped, flipped, overwritten, shortened, header, header,
        lambda: data + rng.randbytes(rng.choice((1, 100, 5000))),
        lambda: data * 2,
        lambda: rng.randbytes(rng.choice((0, 1, 8, 300))),
        lambda: rng.choice(others) if others else b"",
    )  # fmt: skip
    return rng.choice(ways)()


def damaged_tree(
    rng: random.Random, tree: Any, value: Callable[[random.Random], Any] = odd, edits: int = 2
) -> list[str]:
    """Edit a nested dict or list in place, up to `edits` times; what was done, in words."""
    return [_edit(rng, tree, value) for _ in range(rng.randint(1, edits))]


def _edit(rng: random.Random, tree: Any, value: Callable[[random.Random], Any]) -> str:
    holder, key, path = _place(rng, tree)
    if holder is None:
        return "nothing"
    way = rng.random()
    if way < 0.55:
        holder[key] = value(rng)
        return f"{path} = {_short(holder[key])}"
    if way < 0.75:
        del holder[key]
        return f"{path} deleted"
    if way < 0.80 and isinstance(holder, dict):
        holder[rng.choice(("x", "", 5, f"{key}_", "_target_", "../a"))] = holder.pop(key)
        return f"{path} renamed"
    if way < 0.85 and isinstance(holder, dict):
        name = rng.choice(("x", "", 5, None, "<b>", "_target_"))
        holder[name] = value(rng)
        return f"{name!r} added beside {path}"
    if way < 0.92:
        holder[key] = _converted(rng, holder[key])
        return f"{path} as {_short(holder[key])}"
    other, other_key, other_path = _place(rng, tree)
    if other is None:
        return "nothing"
    holder[key] = json.loads(json.dumps(other[other_key], default=str))  # a copy: nothing may hold itself
    return f"{path} = what {other_path} is"


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any, str]:
    """A container somewhere in the tree, one of its keys, and the path there."""
    path = ""
    while isinstance(tree, dict | list) and tree:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        path += f".{key}" if isinstance(tree, dict) else f"[{key}]"
        child = tree[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.3:
            return tree, key, path.lstrip(".")
        tree = child
    return None, None, path


def _converted(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict):
        return rng.choice((list(value.values()), list(value), str(value)[:500]))
    if isinstance(value, list):
        return rng.choice(
            ({str(i): item for i, item in enumerate(value)}, value[:1], value * 2, [value], str(value)[:500])
        )
    if isinstance(value, bool) or value is None:
        return rng.choice((str(value), 0, [value]))
    if isinstance(value, int | float):
        return rng.choice((str(value), -value, value * 1000, value + 0.5, [value], bool(value)))
    return [value]


def _short(value: Any) -> str:
    try:
        text = ascii(value)
    except RecursionError:
        text = "a very deep value"
    return text if len(text) < 60 else f"{text[:57]}..."


def damaged_json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A JSON file with edited values, or rarely with damaged bytes."""
    if rng.random() < 0.12:
        return damaged_bytes(rng, data, (b"[]", b"{}", b"null", b'"x"', b"5", b"\xff\xfe{}", b"[" * 100_000)), "bytes"
    tree = {"": json.loads(data)}
    done = damaged_tree(rng, tree[""])
    try:
        return json.dumps(_with_text_keys(tree.get("")), indent=2).encode(), "; ".join(done)
    except RecursionError:
        return b"[" * 50_000 + b"]" * 50_000, "a very deep value"


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


# Tables


def damaged_parquet(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A Parquet file with another column, type, order or number of rows, or rarely with damaged bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, data, (b"PAR1", b"PAR1" * 3, b"a,b\n1,2\n")), "bytes"
    table = pq.read_table(io.BytesIO(data))
    done = []
    for _ in range(rng.randint(1, 2)):
        table, what = _edited(rng, table)
        done.append(what)
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer)
    except (pa.ArrowException, OSError) as error:  # a column that Parquet does not have
        return damaged_bytes(rng, data), f"bytes ({type(error).__name__})"
    return buffer.getvalue(), "; ".join(done)


def _edited(rng: random.Random, table: pa.Table) -> tuple[pa.Table, str]:
    rows = table.num_rows
    if not table.num_columns:
        return table, "nothing"
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    way = rng.randrange(9)
    if way == 0:
        return table.remove_column(place), f"{name} removed"
    if way == 1:
        return table.append_column(rng.choice((name, "x", "", "path", "camera")), table.column(place)), f"{name} twice"
    if way == 2:
        order = table.column_names
        new = rng.choice(("", "x", name.upper(), f" {name}", "index"))
        return table.rename_columns([new if i == place else old for i, old in enumerate(order)]), f"{name} renamed"
    if way == 3:
        kept = rng.choice((0, 1, rows // 2))
        return table.slice(0, kept), f"{kept} rows"
    if way == 4:
        return pa.concat_tables([table, table]), "rows twice"
    if way == 5:
        return table.take(rng.sample(range(rows), rows)), "rows in another order"
    if way == 6:  # a value here and there
        values = table.column(place).to_pylist()
        for _ in range(rng.choice((1, 3))):
            if rows:
                values[rng.randrange(rows)] = _like(rng, values[0])
        try:
            column = pa.array(values, table.schema.field(place).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            column = pa.array([None if i == 0 else str(value) for i, value in enumerate(values)])
        return table.set_column(place, name, column), f"values of {name}"
    column, kind = odd_column(rng, rows)
    return table.set_column(place, name, column), f"{name} as {kind}"


def _like(rng: random.Random, value: Any) -> Any:
    """An odd value of about the same type."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return rng.choice((None, -1, -(2**40), 2**40, 0, 10**6))
    if isinstance(value, float):
        return rng.choice((None, math.nan, math.inf, -math.inf, -1.0, 1e308))
    return rng.choice((None, "", "../../secret.png", "/etc/passwd", "a\x00b", "<b>", "x" * 5000, "a/" * 300))


def odd_column(rng: random.Random, rows: int) -> tuple[pa.Array, str]:
    """A column of a type that a reader may not expect, and its name."""
    columns: dict[str, Callable[[], pa.Array]] = {
        "null": lambda: pa.nulls(rows),
        "text": lambda: pa.array([rng.choice(("", "x", "1", "nan", "a.jpg")) for _ in range(rows)], pa.string()),
        "bytes": lambda: pa.array([b"\xff\x00"] * rows, pa.binary()),
        "lists": lambda: pa.array([[1, 2]] * rows, pa.list_(pa.int64())),
        "structs": lambda: pa.array([{"a": 1}] * rows, pa.struct([("a", pa.int64())])),
        "maps": lambda: pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        "NaN": lambda: pa.array([math.nan] * rows, pa.float64()),
        "infinity": lambda: pa.array([math.inf] * rows, pa.float32()),
        "half": lambda: pa.array(np.ones(rows, np.float16)),
        "fractions": lambda: pa.array([0.5] * rows, pa.float64()),
        "whole": lambda: pa.array([3] * rows, pa.int8()),
        "negative": lambda: pa.array([-7] * rows, pa.int64()),
        "huge": lambda: pa.array([2**64 - 1] * rows, pa.uint64()),
        "boolean": lambda: pa.array([True] * rows, pa.bool_()),
        "dates": lambda: pa.array([date(2020, 1, 1)] * rows, pa.date32()),
        "times": lambda: pa.array([datetime(2020, 1, 1)] * rows, pa.timestamp("ns", "UTC")),
        "durations": lambda: pa.array([5] * rows, pa.duration("ms")),
        "decimals": lambda: pa.array([Decimal("1.50")] * rows, pa.decimal128(5, 2)),
        "categories": lambda: pa.array(["train"] * rows).dictionary_encode(),
        "numbers with gaps": lambda: pa.array([None if i % 2 else i for i in range(rows)], pa.int64()),
        "large text": lambda: pa.array(["x" * 3000] * rows, pa.large_string()),
    }
    kind = rng.choice(list(columns))
    return columns[kind](), kind


def damaged_csv(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A CSV file with other cells, heads, separators, quotes, line ends or encoding, or with damaged bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, data, (b"\n", b",", b"a,b\n1,2\n", b"PAR1")), "bytes"
    rows = [line.split(",") for line in data.decode().splitlines()]
    done = []
    for _ in range(rng.randint(1, 2)):
        place, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
        way = rng.randrange(10)
        if way < 4:
            text = rng.choice(CELLS)
            rows[place] = [text if i == column else cell for i, cell in enumerate(rows[place])]
            done.append(f"cell {place},{column} = {_short(text)}")
        elif way == 4:
            head = rng.choice(("", "x", rows[0][0].upper(), "camid", "x_1", "path", "label", "split", "epoch"))
            rows[0] = [head if i == column else cell for i, cell in enumerate(rows[0])]
            done.append(f"head {column} = {head!r}")
        elif way == 5:
            rows = [[cell for i, cell in enumerate(row) if i != column] or [""] for row in rows]
            done.append(f"column {column} removed")
        elif way == 6:
            text = rng.choice(CELLS)
            rows = [rows[0], *([text if i == column else cell for i, cell in enumerate(row)] for row in rows[1:])]
            done.append(f"column {column} all {_short(text)}")
        elif way == 7:
            rows[place] = rng.choice(([], [""], rows[place] * 2, rows[place][:1], [*rows[place], "x"]))
            done.append(f"row {place} ragged")
        elif way == 8:
            rows = rows[: rng.choice((1, 2, len(rows)))] + rows[1:] * rng.choice((0, 1, 2))
            done.append("rows")
        else:
            rows.insert(place, rng.choice((["# comment"], rows[0], ["sep=;"], ["\x00"] * len(rows[0]))))
            done.append(f"a row before {place}")
    separator = rng.choice((",", ",", ",", ",", ";", "\t", ", ", "|"))
    end = rng.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    text = end.join(separator.join(row) for row in rows) + rng.choice((end, "", '"'))
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "replace"), "; ".join([*done, repr(separator), repr(end), encoding])


#: Cells of tables of images, of histories and of lists.
CELLS = (
    *("", " ", "x", '"', '""', '"a', "a,b", '"a,b"', "'", "0", "-1", "1.5", "1e3", "1e400", "nan", "inf", "NULL", "None", "True"),
    *("9" * 30, "9" * 5000, "00", "+3", "0x10", "\uff11", "é", "\u0661", "train", "query", "gallery", "test", "val", "TRAIN"),
    *("../../secret.png", "/etc/passwd", "C:\\a.jpg", "a\\b.jpg", "./a.jpg", "//a", "~/a.jpg", "~nobody/a", "con", "a" * 300),
    *("a/" * 2000, "\x00", "a\x00b", "\u202e", "=1+1", "<script>", "${oc.env:HOME}", "http://example.com/a.jpg", "-", "."),
)  # fmt: skip


def frame_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
