"""A case, and the commands that meet it."""

from pathlib import Path
from typing import NamedTuple

from fuzz_commands import EMBEDDED, EVALUATED, TINY, Ended, Place


class Case(NamedTuple):
    """What was damaged and how, and how the command ended that met it."""

    what: str
    ended: Ended


def data_of(place: Place, table: Path | None = None) -> tuple[str, ...]:
    return ("dataset=table", f"dataset.manifest={table or place.good.table}", f"dataset.root={place.good.images}")


def embed(place: Place, *arguments: str, checkpoint: Path | None = None) -> Ended:
    """Embed the gallery, or what the arguments name."""
    what = arguments or (*data_of(place), "split=gallery")
    source = f"checkpoint={checkpoint or place.good.checkpoint}"
    return place.run("embed", source, *what, *EMBEDDED, f"output={place.out / 'embedded'}")


def evaluate(place: Place, checkpoint: Path, *arguments: str) -> Ended:
    where = (f"output_root={place.out}", "run_name=e")
    return place.run("evaluate", f"checkpoint={checkpoint}", *(arguments or data_of(place)), *EVALUATED, *where)


def train(place: Place, *arguments: str) -> Ended:
    return place.run("train", *TINY, f"output_root={place.out}", "run_name=t", *arguments)
