"""Fixtures that every part's tests share."""

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bdbnet.config import config_dir

# Two cores, several test processes: one thread each is faster than all of them fighting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real datasets and weights; tests that need it skip where it is absent."""
    checkout = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("BDBNET_SHARED_DATA", checkout.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set BDBNET_SHARED_DATA to a folder that has them")
    return folder


TINY_DATA = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 2, "cameras": 2, "distractors": 2,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a rendered re-ID set of a few small images."""
    from bdbnet.datasets import load_manifest

    root = tmp_path_factory.mktemp("data")
    load_manifest("synthetic_reid", root / "synthetic_reid", **TINY_DATA)
    return root


@pytest.fixture
def tiny_config(tiny_data: Path) -> Callable[..., DictConfig]:
    """``tiny_config("key=value", ...)``: the configuration of a run of a few steps on the CPU in float32."""

    def build(*overrides: str, command: str = "train", options: dict[str, Any] = TINY_DATA) -> DictConfig:
        shared = [f"data_root={tiny_data}", "run_name=test", "loading.num_workers=0", "loading.test_batch_size=16"]
        if command == "train":
            shared += [
                *(f"dataset.options.{key}={value}".replace(" ", "") for key, value in options.items()),
                "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "trainer.max_epochs=2",
                "trainer.precision=32-true", "trainer.accelerator=cpu", "callbacks.progress=false", "evaluation.top_k=3",
            ]  # fmt: skip
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(command, [*shared, *overrides])

    return build


@pytest.fixture
def plugin(tmp_path_factory, monkeypatch) -> Iterator[Callable[[str, str], Path]]:
    """``plugin(name, source)`` writes a module that can be imported during this test, and nothing of it stays after it."""
    from hydra.core.config_store import ConfigStore

    from bdbnet import plugins, results

    folder = tmp_path_factory.mktemp("plugins")
    monkeypatch.syspath_prepend(folder)
    for name in ("_named", "_taken", "_brought"):
        monkeypatch.setattr(plugins, name, deepcopy(getattr(plugins, name)))
    monkeypatch.setattr(plugins, "_loaded_entry_points", set())
    monkeypatch.setattr(results, "METRICS", dict(results.METRICS))
    before = set(sys.modules)

    def write(name: str, source: str) -> Path:
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return path

    yield write
    for kind in ("loss", "backbone", "dataset"):
        choices = ConfigStore.instance().repo.get(kind, {})
        for choice in [key for key, node in choices.items() if node.provider == "a plugin"]:
            del choices[choice]
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "finished"


@pytest.fixture
def finished_run(finished, tiny_config) -> Path:
    """Folder of a run of two epochs that was evaluated before, during and after; shared by the tests of one process."""
    from bdbnet.training.runs import train

    if not finished.exists():
        train(tiny_config("evaluation.before_training=true", "evaluation.every_n_epochs=1"), finished)
    return finished
