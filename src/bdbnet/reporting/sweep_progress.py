"""Progress of a sweep: a line before each job, and a table of all jobs at the end."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bdbnet.command_line import is_first
from bdbnet.config import as_typed
from bdbnet.reporting.settings import shown


class SweepProgress(Callback):
    """Says which job of a sweep (`-m`) begins and by what it differs: `[2/3] height_ratio=0.3`; then their results in one table.

    A callback of Hydra, so that it works with every launcher; jobs of other processes announce themselves there.
    """

    def __init__(self) -> None:
        self.fixed: set[str] | None = None  # keys that all jobs share
        self.jobs: int | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweeper = config.hydra.sweeper
        plain = str(sweeper._target_).endswith("BasicSweeper")  # of others Hydra doesn't know the number of jobs
        typed = [
            *(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if plain),
            *as_typed(config),
        ]
        overrides = {
            override.get_key_element(): override for override in OverridesParser.create().parse_overrides(typed)
        }
        swept = [override for override in overrides.values() if override.is_sweep_override()]
        self.fixed = overrides.keys() - {override.get_key_element() for override in swept}
        if plain and not any(override.value_type is ValueType.GLOB_CHOICE_SWEEP for override in swept):
            self.jobs = math.prod(len(list(override.sweep_string_iterator())) for override in swept)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.fixed is None or not is_first():  # other ranks of a job run the sweep once more
            return
        of = "" if self.jobs is None else f"/{self.jobs}"
        print(
            f"\n[{config.hydra.job.num + 1}{of}] {differs(as_typed(config), self.fixed)}".rstrip(),
            flush=True,
        )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if not is_first():
            return
        from bdbnet.reporting.run_folder import ReportError
        from bdbnet.reporting.sweep import MULTIRUN, read_sweep
        from bdbnet.reporting.sweep_page import sweep_text

        folder = Path(config.hydra.sweep.dir)
        started = folder / MULTIRUN
        try:
            sweep = read_sweep(folder, since=started.stat().st_mtime if started.is_file() else 0.0)
        except ReportError as error:
            print(f"\n{error}")
            return
        print(f"{sweep_text(sweep)}the same as a page: python -m bdbnet.report run={folder}")


def differs(overrides: Sequence[str], fixed: set[str]) -> str:
    """The settings of a job that its sweep varies, as they were typed; keys without their group where that is clear.

    >>> differs(["dataset=market1501", "dropping.height_ratio=0.3", "seed=2"], fixed={"dataset"})
    'height_ratio=0.3 seed=2'
    """
    parsed = [o for o in OverridesParser.create().parse_overrides([*overrides]) if o.get_key_element() not in fixed]
    keys = [override.get_key_element().lstrip("+") for override in parsed]
    ends = [key.rpartition(".")[2] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends)]
    return " ".join(f"{name}={shown(override.value())}" for name, override in zip(names, parsed))
