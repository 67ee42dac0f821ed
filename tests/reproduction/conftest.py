"""A table of one's own under a budget of a second per cell."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bdbnet.reproduction.budget import Budget, read_budget
from bdbnet.reproduction.spec import Table, read_table
from toy_tables import BUDGET, TABLE


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    path = tmp_path / "two.yaml"
    path.write_text(TABLE)
    return read_table(path)


@pytest.fixture
def toy_budget(tmp_path: Path, toy_data: Path) -> Callable[..., Budget]:
    """``toy_budget("key=value", ...)``: the budget with overrides of every training."""

    def build(*overrides: str) -> Budget:
        path = tmp_path / "toy.yaml"
        path.write_text(BUDGET)
        settings = {"data_root": str(toy_data), "weights_root": "weights", "overrides": list(overrides)}
        return read_budget(str(path), OmegaConf.create(settings))

    return build
