"""Budgets: the length of a cell's training, and the data that replace the paper's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdbnet.config import ConfigError
from bdbnet.reproduction.cells import Cell, build_cell
from bdbnet.reproduction.spec import ANY_BACKBONE, Row, Table, all_tables, experiments_dir
from bdbnet.results import cutoff

COMPARISONS = ("numbers", "order", "nothing")


@dataclass(frozen=True)
class Budget:
    """A file of ``experiments/budgets``.

    Attributes:
        compare: what is comparable with the paper: ``numbers``, their ``order`` alone, or ``nothing``.
        datasets: the table's dataset -> overrides that take its place, None where it is left out.
        overrides: of every training, after those of the row.
        keep_checkpoints: false: a finished training keeps its numbers, not its weights.
        backbones: kind of backbone that a row needs (`Row.backbone`) -> overrides that give it one, in place of the budget's own.
        places: the folders ``data_root`` and ``weights_root``, which files of tables may refer to.
    """

    name: str
    title: str
    compare: str
    datasets: Mapping[str, tuple[str, ...] | None]
    overrides: tuple[str, ...]
    keep_checkpoints: bool
    backbones: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """The overrides, without that of the place of the data."""
        return [override for override in self.overrides if not override.startswith("data_root=")]

    def cell(self, table: Table, row: Row, dataset: str, root: Path, *, code: str | None = None) -> Cell | None:
        """The training that fills the columns of ``dataset`` in a row; None where the budget leaves it out or `lacks_backbone`.

        Raises:
            ConfigError: an override is wrong.
        """
        stand_in = self.datasets.get(dataset, (f"dataset={dataset}",))
        if row.run is None or stand_in is None or self.lacks_backbone(row, dataset):
            return None
        run, more = row.run, self.overrides
        if row.backbone and _sets_backbone((*stand_in, *more)):
            run = _without_backbone(run)
            if row.backbone != ANY_BACKBONE:
                stand_in, more = _without_backbone(stand_in), (*_without_backbone(more), *self.backbones[row.backbone])
        overrides = (*stand_in, *run, *more, *listed_metrics(table))
        try:
            return build_cell(overrides, root, code=code)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{table.heading}, row {row.name}, {dataset}: {error}") from error

    def lacks_backbone(self, row: Row, dataset: str) -> bool:
        """Whether a row needs a kind of backbone, and the budget sets one but none of that kind."""
        needs = row.run is not None and row.backbone not in ("", ANY_BACKBONE, *self.backbones)
        return needs and _sets_backbone((*(self.datasets.get(dataset) or ()), *self.overrides))


def _without_backbone(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(each for each in overrides if not each.lstrip("+~").startswith(("backbone=", "backbone.")))


def _sets_backbone(overrides: Iterable[str]) -> bool:
    """Whether one of the overrides chooses a backbone, rather than its weights."""
    return any(
        override.lstrip("+").startswith(("backbone=", "backbone.name=", "backbone._target_=")) for override in overrides
    )


def read_budget(name: str, settings: DictConfig) -> Budget:
    """Read a budget by its name, or a file of the user's own; it may refer to ``data_root`` and ``weights_root``.

    Raises:
        ConfigError: there is none of that name, or a key in it is wrong.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else experiments_dir("budgets") / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(path.stem for path in experiments_dir("budgets").glob("*.yaml")))
        raise ConfigError(f"budget={name}: no such file; choose one of {there}, or give a file of your own (.yaml)")
    shared = {key: settings[key] for key in ("data_root", "weights_root")}
    try:
        merged = OmegaConf.merge(shared, {"budget": OmegaConf.load(path)})
        plain = OmegaConf.to_container(merged.budget, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable ({error})") from error
    known = {"title", "compare", "datasets", "overrides", "keep_checkpoints"}
    if not isinstance(plain, dict) or plain.keys() - {"backbones"} != known:
        found = ", ".join(sorted(map(str, plain))) if isinstance(plain, dict) else "no keys"
        raise ConfigError(
            f"{path}: expected the keys {', '.join(sorted(known))} and, where wanted, backbones, found {found}"
        )
    if plain["compare"] not in COMPARISONS:
        raise ConfigError(f"{path}: compare={plain['compare']}: choose one of {', '.join(COMPARISONS)}")
    datasets = {key: None if value is None else tuple(value) for key, value in plain["datasets"].items()}
    backbones = {kind: tuple(map(str, overrides)) for kind, overrides in (plain.get("backbones") or {}).items()}
    where = f"data_root={settings.data_root}"
    more = [str(override) for override in settings.overrides or ()]
    return Budget(
        name=path.stem,
        title=plain["title"] + (f"; changed by {' '.join(more)}" if more else ""),
        compare="order" if more and plain["compare"] == "numbers" else plain["compare"],
        datasets=datasets,
        overrides=(where, *plain["overrides"], *more),
        keep_checkpoints=plain["keep_checkpoints"],
        backbones=backbones,
        places={key: str(value) for key, value in shared.items()},
    )


def listed_metrics(table: Table) -> tuple[str, str]:
    """Overrides for every k of Rank-k and K of Recall@K that this or another table shows: one evaluation serves them all."""
    found = {"rank{k}": {1, 5, 10}, "recall@{k}": {1, 2, 4, 8}}
    tables = [*all_tables(), table]
    for metric in (metric for table in tables for metrics in table.columns.values() for metric in metrics):
        for family, numbers in found.items():
            if (k := cutoff(family, metric)) is not None:
                numbers.add(k)
    ranks, recall = (f"[{','.join(map(str, sorted(numbers)))}]" for numbers in found.values())
    return f"evaluation.ranks={ranks}", f"evaluation.recall_at={recall}"
