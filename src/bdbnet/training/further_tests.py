"""Further data sets that a training evaluates on, beside its own test set."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, check_settings, compose_settings, quote_paths
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
    found = []
    for entry in config.evaluations:
        own = config.copy()
        try:
            words = shlex.split(entry)
        except ValueError as error:
            raise ConfigError(f"evaluations: {entry}: {error}") from error
        own.dataset = _dataset(words, str(config.data_root))
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
        composed = compose_settings("evaluate", overrides)
    except HydraException as error:
        raise ConfigError(f"evaluations: {' '.join(words)}: {str(error).partition(chr(10))[0]}") from error
    check_settings(composed, "evaluate")
    dataset: DictConfig = composed.dataset
    OmegaConf.resolve(dataset)  # its folder depends on data_root, which it leaves behind
    return dataset
