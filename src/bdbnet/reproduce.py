"""``python -m bdbnet.reproduce``: reproduction of the paper's tables and figures; trains what is missing."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path

ALL = ["table=all", "figure=all"]


@command(
    "reproduce",
    again="Run the same command again; trainings that are finished are kept, the one that stopped is resumed.",
)
def main(config: DictConfig) -> None:
    check(config)
    from bdbnet.reporting.table import as_text
    from bdbnet.reproduction.budget import read_budget
    from bdbnet.reproduction.cells import Run
    from bdbnet.reproduction.measured import Measured, jobs_of, measure
    from bdbnet.reproduction.running import check_complete, run_missing
    from bdbnet.reproduction.spec import find_tables
    from bdbnet.reproduction.writing import (
        refuse_other_summary,
        refuse_other_tables,
        reproduction_grid,
        write_summary,
        write_tables,
    )

    asked = [OmegaConf.to_container(config[key]) if OmegaConf.is_list(config[key]) else config[key]
             for key in ("table", "figure")]  # fmt: skip
    tables = find_tables(*asked)
    base = Path(config.output_root) / "reproduce"
    names = list(config.budget) if OmegaConf.is_list(config.budget) else [config.budget]
    if config.summary is not None and not config.overwrite:
        refuse_other_summary(Path(config.summary), command_line(config))
    everything: list[Measured] = []
    runs: list[Run] = []
    for budget in (read_budget(str(name), config) for name in names):

        def look(budget: Any = budget) -> list[Measured]:
            return [
                measure(table, budget, Path(config.runs_root), config.seeds, code=config.version) for table in tables
            ]

        measured = look()
        if not config.overwrite:
            refuse_other_tables(measured, base / budget.name, Path(config.runs_root), config.version)
        if not config.list and config.version is None:
            runs += run_missing(
                jobs_of(measured, config.seeds),
                retry=config.retry,
                keep_checkpoints=budget.keep_checkpoints,
                seconds=None if config.max_hours is None else 3600 * config.max_hours,
                device=device_of(config.worker),
                loggers=[config.loggers] if isinstance(config.loggers, str) else list(config.loggers or ()),
            )
            measured = look()
        measured = [table for table in measured if table.datasets]
        for table in measured:
            print(f"\n{as_text(reproduction_grid(table))}")
        page, *files = write_tables(measured, base / budget.name, Path(config.runs_root), config.version)
        print(
            f"\n{len(files)} files (Markdown, CSV, LaTeX, pictures) in {shown_path(page.parent)}\n"
            f"a page to look at: {shown_path(page)}"
        )
        everything += measured
    if config.summary is not None:
        print(f"summary: {write_summary(everything, Path(config.summary), command_line(config))}")
    check_complete(runs, str(config.weights_root))


def check(config: DictConfig) -> None:
    """Refuse arguments before anything is read.  Raises ConfigError that names the key."""
    if config.table is None and config.figure is None:
        raise ConfigError("table= and figure= are missing: add table=3, figure=7a or all; see --help")


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
    return " ".join(
        ["python -m bdbnet.reproduce", *parts, f"budget={budget}", "list=true", f"runs_root={config.runs_root}",
         f"summary={config.summary}"]
    )  # fmt: skip


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
