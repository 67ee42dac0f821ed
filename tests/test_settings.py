"""The table of settings: each purpose asks it alone, and no row is of a key that no command has."""

from collections.abc import Sequence

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import config_dir, flatten
from bdbnet.settings import SETTINGS, is_whole, setting_of

COMMANDS = {
    "train": ("loss=margin", "dataset=table", "+dataset.recall_at=[1]"),
    "evaluate": (),
    "embed": (),
    "search": (),
}


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Dotted keys of all commands, and the groups above them."""
    found: set[str] = set()
    for command, overrides in COMMANDS.items():
        config = composed(command, overrides)
        plain = {str(key): OmegaConf.to_container(config[key]) if OmegaConf.is_config(config[key]) else None
                 for key in config if key not in ("hydra", "run_name", "output")}  # fmt: skip
        for key, _ in flatten(plain | dict.fromkeys(("run_name", "output"))):
            parts = key.split(".")
            found |= {".".join(parts[: place + 1]) for place in range(len(parts))}
    return found


@pytest.mark.parametrize("row", [key for key in SETTINGS if key])
def test_a_row_is_of_a_key_that_some_command_has(row, keys):
    of_a_reader = row.startswith("dataset.options.")
    of_a_list = row == "loggers"  # there where logger= is one
    assert row in keys or of_a_reader or of_a_list


@pytest.mark.parametrize("row", [key for key, setting in SETTINGS.items() if setting.follows])
def test_what_a_setting_follows_is_its_value_unless_it_is_set(row):
    config = composed("train", ["loss=margin", "seed=7", "trainer.max_epochs=9"])
    assert OmegaConf.select(config, row) == OmegaConf.select(config, SETTINGS[row].follows) in (7, 9)


@pytest.mark.parametrize(
    ("command", "overrides", "name"),
    [
        ("train", ["loss=none", "seed=3", "loading.test_batch_size=8", "dataset.root=x"],
         "dataset.root=x,loading.test_batch_size=8,loss=none,seed=3"),
        ("train", ["ckpt_path=last", "overwrite=true", "output_root=x", "data_root=x", "run_name=x", "sweep_name=x", "logger=csv",
                   "trainer.accelerator=cpu", "trainer.max_time=00:01:00:00",
                   "callbacks.progress=false", "loading.num_workers=1", "loading.cache=packed", "loading.cache_root=x"], ""),
        ("train", ["trainer.devices=2", "trainer.num_nodes=2"], "trainer.devices=2,trainer.num_nodes=2"),
        ("evaluate", ["checkpoint=a", "analysis=true", "output_root=x", "data_root=x", "sweep_name=x", "trainer.accelerator=cpu",
                      "trainer.devices=1", "loading.num_workers=1", "loading.cache=packed", "loading.test_batch_size=8"],
         "checkpoint=a,loading.test_batch_size=8"),
        ("embed", ["images=a", "output=x", "output_root=x", "data_root=x", "sweep_name=x", "overwrite=true", "on_error=skip",
                   "accelerator=cpu", "loading.num_workers=1", "loading.test_batch_size=8"], "images=a"),
        ("search", ["index=a", "k=3", "output_root=x", "sweep_name=x", "accelerator=cpu", "num_workers=1", "batch_size=4",
                    "printed=1", "index_folder=x"], "index=a,k=3"),
    ],
)  # fmt: skip
def test_the_folder_is_named_by_what_changes_a_result(command, overrides, name):
    assert composed(command, overrides).hydra.job.override_dirname == name


@pytest.mark.parametrize(
    ("key", "resume", "cell", "report", "name"),
    [
        ("dropping.height_ratio", True, "yes", "yes", True),
        ("dropping.seed", True, "own", "own", True),
        ("loss.metric.seed", True, "own", "own", True),
        ("loss.metric.margin", True, "yes", "yes", True),
        ("backbone.weights", False, "file", "yes", True),
        ("backbone.name", True, "yes", "yes", True),
        ("dataset.root", False, "no", "no", True),
        ("dataset.options.occlusion", True, "yes", "yes", True),
        ("evaluation.normalize", True, "yes", "yes", True),
        ("evaluation.flip", False, "yes", "yes", True),
        ("evaluation.ranks", True, "no", "yes", True),
        ("trainer.precision", False, "yes", "yes", True),
        ("trainer.max_epochs", True, "yes", "yes", True),
        ("callbacks.extra", False, "no", "yes", True),
        ("logger.logger.project", False, "no", "no", False),
        ("loading.num_workers", False, "no", "no", False),
        ("trainer.devices", False, "no", "yes", True),
        ("my_switch.of_my_own", False, "yes", "yes", True),
    ],
)
def test_a_key_counts_as_its_own_row_or_the_nearest_group_says(key, resume, cell, report, name):
    assert setting_of(key)[:4] == (resume, cell, report, name)


@pytest.mark.parametrize(
    ("value", "least", "whole"),
    [(3, None, True), (-3, None, True), (0, 1, False), (1, 1, True), (True, None, False), (1.0, None, False), ("1", None, False),
     (None, None, False)],
)  # fmt: skip
def test_whole_numbers(value, least, whole):
    assert is_whole(value, least) is whole
