"""``python -m bdbnet.dashboard``: saved views of a W&B project: a run, the height ratio, and the paper's tables."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path


@command("dashboard")
def main(config: DictConfig) -> None:
    if config.project is None:
        raise ConfigError("project= is missing: give a project of W&B, such as project=bdbnet or project=team/bdbnet")
    from bdbnet.files import write_atomically
    from bdbnet.reporting.workspaces import (
        Library,
        default_entity,
        paper_report,
        ratio_view,
        run_view,
        save,
        specification,
    )

    library = Library()
    typed, _, project = str(config.project).rpartition("/")
    entity = config.entity or typed or default_entity(offline=config.dry_run)
    builders = {
        "run": lambda: run_view(library, entity, project),
        "height_ratio": lambda: ratio_view(library, entity, project),
        "paper": lambda: paper_report(library, entity, project, _tables(config), offline=config.dry_run),
    }
    views = {name: builders[name]() for name in config.views}
    if config.dry_run:
        content = {name: specification(view) for name, view in views.items()}
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        print(f"specification: {shown_path(path)}")
        return
    for name, view in views.items():
        print(f"{name}: {save(view)}")


def _tables(config: DictConfig) -> list[tuple[str, str]]:
    """Heading and text of the paper's tables, with our results that are there."""
    from bdbnet.reporting.table import as_markdown
    from bdbnet.reproduction.budget import read_budget
    from bdbnet.reproduction.measured import measure
    from bdbnet.reproduction.spec import find_tables
    from bdbnet.reproduction.writing import reproduction_grid

    wanted: Any = OmegaConf.to_container(config.table) if OmegaConf.is_list(config.table) else config.table
    tables = [table for table in find_tables(wanted) if not table.statistics]
    budget = read_budget(str(config.budget), config)
    measured = [measure(table, budget, Path(config.runs_root), config.seeds) for table in tables]
    return [(found.table.heading, as_markdown(reproduction_grid(found, portable=True))) for found in measured]


if __name__ == "__main__":
    main()
