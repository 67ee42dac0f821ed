"""Claims: which rows of a table are said to be better than which, read from a file and looked up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from bdbnet.regular_files import require_regular
from bdbnet.reproduction.budget import Budget
from bdbnet.reproduction.measured import Measured, measure
from bdbnet.reproduction.spec import SpecError, Table, experiments_dir, read_table
from bdbnet.results import headline_metrics

#: Stands for all other rows that have a training.
REST = "rest"
_KEYS = ("name", "source", "table", "dataset", "pairs")
#: What of the protocol a recipe may have of its own: how embeddings are made and compared, not what is counted.
OWN_PROTOCOL = (
    "image_size", "pad_to_square", "decode_margin", "preprocessing", "precision", "normalize", "measure", "flip", "scales",
    "query_expansion", "rerank",
)  # fmt: skip
_TESTED = 2  # metrics of a column


class Pair(NamedTuple):
    """Numbers of two rows of a table: the one that is said to be better, and the other."""

    above: int
    below: int


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as pairs of rows of a table.

    Attributes:
        name: the sentence.
        source: where the paper says it.
        dataset: column of the table.
        may_differ: what of the protocol belongs to what is compared, of `OWN_PROTOCOL`.
    """

    name: str
    source: str
    table: Table
    dataset: str
    pairs: tuple[Pair, ...]
    may_differ: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Those of the column that are tested: its headline metrics, of which there are at most two."""
        return headline_metrics(self.table.columns[self.dataset])[:_TESTED]


@dataclass(frozen=True)
class Claims:
    """A file of claims; claims on one table share the same object of it."""

    path: Path
    title: str
    claims: tuple[Claim, ...]


def read_claims(name: str) -> Claims:
    """Read the claims of a name in ``experiments/claims``, or a file of the user's own.

    Raises:
        SpecError: there is no such file, or a claim in it is wrong; the message names file, claim and row.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else experiments_dir("claims") / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(path.stem for path in experiments_dir("claims").glob("*.yaml")))
        raise SpecError(f"claims={name}: no such file; choose one of {there}, or give a file of your own (.yaml)")
    try:
        require_regular(path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, Mapping) or content.keys() != {"title", "claims"} or not _is_text(content["title"]):
        raise SpecError(f"{path}: expected the keys title (text) and claims (a list)")
    entries = content["claims"]
    if not isinstance(entries, list) or not entries:
        raise SpecError(f"{path}: claims: give a list of claims, each with {', '.join(_KEYS)}")
    tables: dict[Path, Table] = {}
    claims = tuple(_claim(path, number, entry, tables) for number, entry in enumerate(entries, start=1))
    for claim in claims:
        if sum(other.name == claim.name for other in claims) > 1:
            raise SpecError(f"{path}: two claims have the name {claim.name}; rename one")
    return Claims(path, content["title"], claims)


def measure_claims(
    claims: Sequence[Claim], budget: Budget, root: Path, seeds: Sequence[int], *, code: str | None = None
) -> list[Measured]:
    """Look up the cells that claims name, table by table; see `measure`."""
    needed: dict[int, tuple[Table, set[tuple[int, str]]]] = {}
    for claim in claims:
        _, cells = needed.setdefault(id(claim.table), (claim.table, set()))
        cells |= {(row, claim.dataset) for pair in claim.pairs for row in pair}
    return [measure(table, budget, root, seeds, code=code, only=cells) for table, cells in needed.values()]


def _claim(path: Path, number: int, entry: Any, tables: dict[Path, Table]) -> Claim:
    if not isinstance(entry, Mapping) or not _is_text(entry.get("name")):
        raise SpecError(f"{path}: claim {number}: name is missing: give it a sentence")
    where = f"{path}: claim {entry['name']}"
    if entry.keys() - {"may_differ"} != set(_KEYS):
        odd = sorted(({*map(str, entry)} - {"may_differ"}) ^ {*_KEYS})
        raise SpecError(
            f"{where}: a claim has the keys {', '.join(_KEYS)}, and may have may_differ; missing or unknown: {', '.join(odd)}"
        )
    for key in ("source", "table", "dataset"):
        if not _is_text(entry[key]):
            raise SpecError(f"{where}: {key}: {entry[key]}: give a text")
    table = _table(where, path.parent, entry["table"], tables)
    if entry["dataset"] not in table.columns:
        raise SpecError(
            f"{where}: dataset: {table.name} has no column {entry['dataset']}; choose one of {', '.join(table.columns)}"
        )
    pairs = entry["pairs"]
    if (
        not isinstance(pairs, list)
        or not pairs
        or not all(isinstance(pair, Mapping) and pair.keys() == {"above", "below"} for pair in pairs)
    ):
        raise SpecError(f"{where}: pairs: give a list of {{above: ROW, below: ROW}}")
    may_differ = entry.get("may_differ", [])
    if not isinstance(may_differ, list) or not {*map(str, may_differ)} <= {*OWN_PROTOCOL}:
        raise SpecError(f"{where}: may_differ: {may_differ}: give a list of keys out of {', '.join(OWN_PROTOCOL)}")
    rows = _Rows(where, table)
    found = dict.fromkeys(pair for one in pairs for pair in rows.pairs(one["above"], one["below"]))
    return Claim(entry["name"], entry["source"], table, entry["dataset"], tuple(found), tuple(may_differ))


def _table(where: str, folder: Path, name: str, tables: dict[Path, Table]) -> Table:
    own = name.endswith((".yaml", ".yml"))
    path = folder / Path(name).expanduser() if own else experiments_dir("paper") / f"{name}.yaml"
    if not path.is_file():
        if own:
            raise SpecError(f"{where}: table: {path}: no such file")
        there = ", ".join(sorted(path.stem for path in experiments_dir("paper").glob("*.yaml")))
        raise SpecError(f"{where}: table: {name}: no such table; choose one of {there}, or give a file (.yaml)")
    key = path.resolve()
    if key not in tables:
        tables[key] = read_table(path)
    if tables[key].cross:
        raise SpecError(
            f"{where}: table: {path}: a cross-domain table: claims are tested query by query, on a row's own data set"
        )
    return tables[key]


class _Rows:
    """The rows of a table by the names that a claim gives them."""

    def __init__(self, where: str, table: Table) -> None:
        self.where, self.table = where, table
        self.trained = [number for number, row in enumerate(table.rows) if row.run is not None]
        names = (table.rows[number].name for number in self.trained)
        self.lines = list(dict.fromkeys(names)) if table.x else []

    def pairs(self, above: Any, below: Any) -> Iterable[Pair]:
        """A pair for each row below; of lines, at each x."""
        if above in self.lines:
            yield from self._pairs_of_lines(above, below)
            return
        upper = self._row(above, "above")
        if below == REST:
            yield from (Pair(upper, number) for number in self.trained if number != upper)
            return
        for name in self._names(below):
            lower = self._row(name, "below")
            if lower == upper:
                self._refuse("below", name, "the same row is above")
            yield Pair(upper, lower)

    def _pairs_of_lines(self, above: str, below: Any) -> Iterable[Pair]:
        names = [name for name in self.lines if name != above] if below == REST else self._names(below)
        for name in names:
            if name not in self.lines or name == above:
                self._refuse("below", name, f"{above} is a line, to be compared with another one", self.lines)
            for upper in self._points(above):
                same = [lower for lower in self._points(name) if self.table.rows[lower].x == self.table.rows[upper].x]
                yield from (Pair(upper, lower) for lower in same)

    def _points(self, line: str) -> list[int]:
        return [number for number in self.trained if self.table.rows[number].name == line]

    def _names(self, below: Any) -> list[Any]:
        names = below if isinstance(below, list) else [below]
        if not names:
            self._refuse("below", "[]", "empty")
        return names

    def _row(self, name: Any, side: str) -> int:
        found = [number for number, row in enumerate(self.table.rows) if row.label == name]
        choices = [self.table.rows[number].label for number in self.trained]
        if not found:
            self._refuse(side, name, f"{self.table.name} has no such row", choices + self.lines)
        if len(found) > 1:
            self._refuse(side, name, f"{self.table.name} has {len(found)} rows of this name")
        if found[0] not in self.trained:
            self._refuse(side, name, "the row has no training (run)", choices)
        return found[0]

    def _refuse(self, side: str, name: Any, why: str, choices: Sequence[str] = ()) -> NoReturn:
        advice = f"; choose one of {', '.join(choices)}" if choices else ""
        raise SpecError(f"{self.where}: {side}: {name}: {why}{advice}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
