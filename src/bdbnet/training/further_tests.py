"""Further data sets that a training evaluates on, beside its own test set."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, config_dir, quote_paths
from bdbnet.datasets import Manifest
from bdbnet.evaluation.evaluate import build_test_set
from bdbnet.evaluation.test_set import TestSet
from bdbnet.loading import EvaluationTransform
from bdbnet.loading.from_config import build_manifest


class FurtherTest(NamedTuple):
    """A data set to evaluate on, how its images are prepared, and its metric."""

    manifest: Manifest
    transform: EvaluationTransform
    test: TestSet


def further_tests(config: DictConfig, image_size: tuple[int, int]) -> list[FurtherTest]:
    """The data sets that ``config.evaluations`` lists, each read and with the metric of its protocol.

    Args:
        config: of the training; each entry is the name of a choice in the group `dataset`, and after it settings of that
            group: `cuhk03_detect`, `table dataset.manifest=mine.csv`.
        image_size: height and width of the network's input, which they share with the run's own test set.

    Raises:
        ConfigError: an entry that names no data set, or two of one name.
        DatasetError: a data set that can't be used.
    """
    entries = config.evaluations
    if not OmegaConf.is_list(entries) or not all(isinstance(entry, str) and entry.strip() for entry in entries):
        raise ConfigError(
            f"evaluations={entries}: give a list of data sets, such as evaluations=[cuhk03_detect,msmt17_v2]"
        )
    found = []
    for entry in entries:
        own = config.copy()
        own.dataset = _dataset(shlex.split(entry), str(config.data_root))
        manifest = build_manifest(own)
        test = build_test_set(own, manifest, name=manifest.name)
        transform = EvaluationTransform(image_size, pad_to_square=bool(own.dataset.pad_test))
        found.append(FurtherTest(manifest, transform, test))
    _check_names([further.test.name for further in found])
    return found


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or any("/" in name for name in names):
        raise ConfigError(
            f"evaluations: {', '.join(twice) or names}: results are told apart by the names of the data sets; give each another one"
        )


def _dataset(words: Sequence[str], data_root: str) -> DictConfig:
    overrides = quote_paths([f"dataset={words[0]}", f"data_root={data_root}", *words[1:]])
    try:
        if GlobalHydra.instance().is_initialized():
            composed = compose("evaluate", overrides)
        else:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                composed = compose("evaluate", overrides)
    except HydraException as error:
        raise ConfigError(f"evaluations: {' '.join(words)}: {str(error).partition(chr(10))[0]}") from error
    dataset: DictConfig = composed.dataset
    OmegaConf.resolve(dataset)  # its folder depends on data_root, which it leaves behind
    return dataset
