"""Further data sets that a training evaluates on, beside its own test set."""

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.evaluate import build_test_set
from bdbnet.evaluation.test_set import TestSet
from bdbnet.loading import EvaluationTransform
from bdbnet.loading.entries import dataset_of
from bdbnet.loading.from_config import build_manifest
from bdbnet.training.union import Member


class FurtherTest(NamedTuple):
    """A data set to evaluate on, how its images are prepared, and its metric."""

    manifest: Manifest
    transform: EvaluationTransform
    test: TestSet


def further_tests(config: DictConfig, image_size: tuple[int, int], members: Sequence[Member] = ()) -> list[FurtherTest]:
    """The test parts of a union's further sets, and the data sets that ``config.evaluations`` lists, each with the metric of
    its protocol.

    Args:
        config: of the training; each entry is the name of a choice in the group `dataset`, and after it settings of that
            group: `cuhk03_detect`, `table dataset.manifest=mine.csv`.
        image_size: height and width of the network's input, which they share with the run's own test set.
        members: further sets of the union that is trained on.

    Raises:
        ConfigError: an entry that names no data set, or two of one name.
        DatasetError: a data set that can't be used.
    """
    found = [
        _further_test(member.config, member.manifest, member.name, image_size) for member in members if member.is_tested
    ]
    for entry in config.evaluations:
        own = config.copy()
        own.dataset = dataset_of(entry, str(config.data_root), "evaluations")
        manifest = build_manifest(own)
        found.append(_further_test(own, manifest, manifest.name, image_size))
    _check_names([further.test.name for further in found])
    return found


def _further_test(own: DictConfig, manifest: Manifest, name: str, image_size: tuple[int, int]) -> FurtherTest:
    transform = EvaluationTransform(image_size, pad_to_square=bool(own.dataset.pad_test))
    return FurtherTest(manifest, transform, build_test_set(own, manifest, name=name))


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or any("/" in name for name in names):
        raise ConfigError(
            f"evaluations: {', '.join(twice) or names}: results are told apart by the names of the data sets; give each another one"
        )
