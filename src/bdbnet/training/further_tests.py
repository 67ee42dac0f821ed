"""Further data sets that a training evaluates on, beside its own test set."""

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.datasets.union import names_apart, require_different
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
    its protocol; of two with one name the second has a number: ``table_2``.

    Args:
        config: of the training; each entry is the name of a choice in the group `dataset`, and after it settings of that
            group: `cuhk03_detect`, `table dataset.manifest=mine.csv`.
        image_size: height and width of the network's input, which they share with the run's own test set.
        members: further sets of the union that is trained on.

    Raises:
        ConfigError: an entry that names no data set.
        DatasetError: a data set that can't be used, or is there twice.
    """
    found = [
        _further_test(member.config, member.manifest, member.name, image_size) for member in members if member.is_tested
    ]
    listed = []
    for entry in config.evaluations:
        own = config.copy()
        own.dataset = dataset_of(entry, str(config.data_root), "evaluations")
        listed.append((own, build_manifest(own)))
    taken = [further.test.name for further in found]
    names = names_apart((manifest.name for _, manifest in listed), taken)
    sets = [*(member.manifest for member in members if member.is_tested), *(manifest for _, manifest in listed)]
    require_different([*taken, *names], sets, what="evaluations")
    found += [_further_test(own, manifest, name, image_size) for name, (own, manifest) in zip(names, listed)]
    _check_names([further.test.name for further in found])
    return found


def _further_test(own: DictConfig, manifest: Manifest, name: str, image_size: tuple[int, int]) -> FurtherTest:
    transform = EvaluationTransform(image_size, pad_to_square=bool(own.dataset.pad_test))
    return FurtherTest(manifest, transform, build_test_set(own, manifest, name=name))


def _check_names(names: Sequence[str]) -> None:
    if wrong := [name for name in names if "/" in name]:
        raise ConfigError(
            f"evaluations: {wrong[0]}: its name has a / in it, which parts set and metric: give another one"
        )
