"""``python -m bdbnet.reproduce``: reproduction of the paper's tables and figures; trains what is missing."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path

if TYPE_CHECKING:
    from bdbnet.reproduction.budget import Budget
    from bdbnet.reproduction.cells import Run
    from bdbnet.reproduction.claims import Claims
    from bdbnet.reproduction.measured import Measured
    from bdbnet.reproduction.spec import Table
    from bdbnet.reproduction.verdicts import Judged

ALL = ["table=all", "figure=all"]


@command(
    "reproduce",
    again="Run the same command again; trainings that are finished are kept, the one that stopped is resumed.",
)
def main(config: DictConfig) -> None:
    check(config)
    from bdbnet.reproduction.budget import read_budget
    from bdbnet.reproduction.claims import read_claims
    from bdbnet.reproduction.claims_page import refuse_other_claims_summary, write_claims_summary
    from bdbnet.reproduction.running import check_complete
    from bdbnet.reproduction.spec import find_tables
    from bdbnet.reproduction.writing import refuse_other_summary, write_summary

    asked = [OmegaConf.to_container(config[key]) if OmegaConf.is_list(config[key]) else config[key]
             for key in ("table", "figure")]  # fmt: skip
    tables, claims = find_tables(*asked), None if config.claims is None else read_claims(str(config.claims))
    names = list(config.budget) if OmegaConf.is_list(config.budget) else [config.budget]
    summary, typed = None if config.summary is None else Path(config.summary), command_line(config)
    if summary is not None and not config.overwrite:
        if tables:
            refuse_other_summary(summary, typed)
        if claims is not None:
            refuse_other_claims_summary(summary, typed)
    found = [reproduce(tables, claims, read_budget(str(name), config), config) for name in names]
    if summary is not None and tables:
        print(f"summary: {write_summary([table for of in found for table in of.tables], summary, typed)}")
    if summary is not None and claims is not None:
        print(f"summary of the claims: {write_claims_summary(claims, [of.judged for of in found], summary, typed)}")
    check_complete([run for of in found for run in of.runs], str(config.weights_root))


class Found(NamedTuple):
    """What has been found under one budget; `runs` are the trainings that were asked for."""

    tables: "list[Measured]"
    judged: "list[Judged]"
    runs: "list[Run]"


def reproduce(tables: "list[Table]", claims: "Claims | None", budget: "Budget", config: DictConfig) -> Found:
    """Train what the tables and claims lack, print them and write them."""
    from bdbnet.reproduction.claims import measure_claims
    from bdbnet.reproduction.claims_page import refuse_other_claims
    from bdbnet.reproduction.measured import jobs_of, measure
    from bdbnet.reproduction.running import run_missing
    from bdbnet.reproduction.verdicts import check_comparable, judge
    from bdbnet.reproduction.writing import refuse_other_tables

    folder = Path(config.output_root) / "reproduce" / budget.name
    sources: tuple[Path, str | None] = Path(config.runs_root), config.version
    stated = () if claims is None else claims.claims

    def look() -> "tuple[list[Measured], list[Measured]]":
        where = (budget, sources[0], config.seeds)
        of_tables = [measure(table, *where, code=config.version) for table in tables]
        return of_tables, measure_claims(stated, *where, code=config.version)

    measured, claimed = look()
    if not config.overwrite:
        refuse_other_tables(measured, folder, *sources)
        if claims is not None:
            refuse_other_claims(claims, budget, folder, *sources)
    check_comparable(stated, claimed)
    runs: list[Run] = []
    if not config.list and config.version is None:
        runs = run_missing(
            jobs_of([*measured, *claimed], config.seeds),
            retry=config.retry,
            keep_checkpoints=budget.keep_checkpoints,
            seconds=None if config.max_hours is None else 3600 * config.max_hours,
            device=device_of(config.worker),
            loggers=[config.loggers] if isinstance(config.loggers, str) else list(config.loggers or ()),
        )
        measured, claimed = look()
    shown = [table for table in measured if table.datasets]
    if shown:  # before the claims are judged, for which a file may be unreadable
        _show_tables(shown, folder, *sources)
    judged = judge(stated, claimed)
    if claims is not None:
        _show_claims(judged, claims, folder, *sources)
    return Found(shown, judged, runs)


def _show_tables(tables: "list[Measured]", folder: Path, runs_root: Path, version: str | None) -> None:
    """Print the tables, and write them into the folder."""
    from bdbnet.reporting.table import as_text
    from bdbnet.reproduction.writing import reproduction_grid, write_tables

    for table in tables:
        print(f"\n{as_text(reproduction_grid(table))}")
    page, *files = write_tables(tables, folder, runs_root, version)
    print(
        f"\n{len(files)} files (Markdown, CSV, LaTeX, pictures) in {shown_path(page.parent)}\n"
        f"a page to look at: {shown_path(page)}"
    )


def _show_claims(judged: "list[Judged]", claims: "Claims", folder: Path, runs_root: Path, version: str | None) -> None:
    """Print the verdicts, and write them into the folder."""
    from bdbnet.reporting.table import as_text
    from bdbnet.reproduction.claims_page import terminal_grid, write_claims

    print(f"\n{as_text(terminal_grid(claims.title, judged))}")
    page, *files = write_claims(claims, judged, folder, runs_root, version)
    names = " and ".join(file.name for file in files)
    print(f"\neach pair of rows: {names} in {shown_path(page.parent)}\na page to look at: {shown_path(page)}")


def check(config: DictConfig) -> None:
    """Refuse arguments before anything is read.  Raises ConfigError that names the key."""
    if config.table is None and config.figure is None and config.claims is None:
        raise ConfigError("table= and figure= are missing: add table=3, figure=7a, claims=paper or all; see --help")


def device_of(worker: int | None) -> int | None:
    """The GPU of a process among several, by its number; None without a GPU or for a single process."""
    import torch

    if worker is None or not torch.cuda.is_available():
        return None
    return worker % torch.cuda.device_count()


def command_line(config: DictConfig) -> str:
    """The command that makes a summary again."""
    parts = [f"{key}={config[key]}".replace(" ", "") for key in ("table", "figure") if config[key] is not None]
    budget = config.budget if isinstance(config.budget, str) else f"[{','.join(config.budget)}]"
    parts = ["all"] if parts == ALL else parts
    if config.claims is not None:
        parts.append(f"claims={config.claims}")
    parts.append(f"budget={budget}")
    if list(config.seeds) != [1]:
        parts.append(f"seeds=[{','.join(map(str, config.seeds))}]")
    if config.overrides:
        parts.append(quote(f"overrides=[{','.join(config.overrides)}]"))
    if config.version is not None:
        parts.append(f"version={config.version}")
    return " ".join(["python -m bdbnet.reproduce", *parts, "list=true", f"runs_root={config.runs_root}",
                     f"summary={config.summary}"])  # fmt: skip


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """``all`` stands for every table and every figure; items of ``overrides`` are quoted for Hydra's grammar.

    >>> spelled_out(["all", "budget=smoke"])
    ['table=all', 'figure=all', 'budget=smoke']
    >>> spelled_out(["overrides=[backbone.weights=none,dataset.image_size=[256,128]]"])
    ['overrides=["backbone.weights=none","dataset.image_size=[256,128]"]']
    """
    parts = [part for argument in arguments for part in (ALL if argument == "all" else [argument])]
    return [_quoted(part) if part.startswith("overrides=") and '"' not in part else part for part in parts]


def _quoted(argument: str) -> str:
    listed = argument.removeprefix("overrides=").strip()
    if listed.startswith("[") and listed.endswith("]"):
        listed = listed[1:-1]
    # Commas inside of brackets belong to a value.
    items = [item.strip() for item in re.split(r",(?![^\[]*\])", listed) if item.strip()]
    return "overrides=[" + ",".join(f'"{item}"' for item in items) + "]"


if __name__ == "__main__":
    sys.argv[1:] = spelled_out(sys.argv[1:])
    main()
