"""The evaluation of a network on a dataset, from a configuration to the files of a run folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, plain
from bdbnet.datasets import READERS, Manifest
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.error_analysis import analyse, clear_analysis
from bdbnet.evaluation.load import Wanted, open_embedder, settings_of
from bdbnet.evaluation.module import EvaluationModule
from bdbnet.evaluation.network import count_parameters
from bdbnet.evaluation.progress import EvaluationProgress
from bdbnet.evaluation.protocol import build_metric, build_protocol, check_evaluation
from bdbnet.evaluation.ranking_lists import write_ranking_lists
from bdbnet.evaluation.test_set import TestSet
from bdbnet.evaluation.trainer import build_trainer, keep_freed_memory, quiet_libraries, seed_everything
from bdbnet.loading.datamodule import test_rows
from bdbnet.loading.from_config import build_data, build_manifest
from bdbnet.models import read_checkpoint
from bdbnet.renamed import with_todays_names
from bdbnet.results import RESULT, Result


def evaluate(config: DictConfig, folder: Path) -> Result:
    """Evaluate ``config.checkpoint`` on ``config.dataset`` and record it in ``folder``.

    Without a dataset a checkpoint of `bdbnet.train` is evaluated on its own: options and folder as it says.

    Raises:
        ConfigError: the checkpoint does not say what network it is for and the configuration does not either, or no dataset
            is known.
        CheckpointError, DatasetError, ImageError: see there.
    """
    quiet_libraries()
    keep_freed_memory()
    if config.get("dataset") is None:
        config = _with_own_dataset(config)
    check_evaluation(config)
    if not isinstance(config.analysis, bool):
        raise ConfigError(f"analysis={config.analysis}: give true or false")
    seed_everything(config.seed)
    # First, so that a checkpoint that can't be used shows before a large dataset is read.
    embedder = open_embedder(config.checkpoint, _wanted(config), device="cpu")
    manifest = build_manifest(config)
    embedder = _settled(embedder, config)
    size = embedder.preprocessing.image_size
    data = build_data(config, manifest, test_size=list(size), channels_last=True)
    data.test_transform = embedder.preprocessing.transform
    test = build_test_set(config, manifest, progress=True, facts=config.analysis)
    module = EvaluationModule(embedder, [test])
    trainer = build_trainer(config, folder, [EvaluationProgress()])
    trainer.validate(module, data, verbose=False)
    result = Result(
        kind="evaluate",
        metrics=module.metrics,
        plain=module.plain_metrics,
        protocol=build_protocol(config, data),
        checkpoint=str(config.checkpoint),
        data=describe(manifest),
        config={**plain(config), "trained_with": embedder.origin.trained_with},
        seed=config.seed,
        parameters=count_parameters(embedder.network),
        embedding_dim=embedder.dimensions,
        seconds={"evaluate": round(module.evaluation_seconds, 2)},
        images_per_second={"evaluate": round(len(data.test_table) / module.evaluation_seconds, 2)},
    )
    if trainer.is_global_zero:
        clear_analysis(folder)
        write_outcome(result, test, folder)
        if config.analysis:
            analyse(test, folder, result)
    return result


def build_test_set(
    config: DictConfig, manifest: Manifest, *, name: str = "", progress: bool = False, facts: bool = False
) -> TestSet:
    """The test images of a manifest with the metric of its protocol.

    Args:
        name: of a further test set.
        progress: re-ranking shows a bar.
        facts: keep what happened to each query, for the error analysis.
    """
    top_k = 0 if name else config.evaluation.top_k
    return TestSet(build_metric(config, progress=progress), test_rows(manifest), name=name, top_k=top_k, facts=facts)


def write_outcome(result: Result, test: TestSet, folder: Path) -> None:
    """Write ``result.json`` and the ranking lists.  For rank 0 alone."""
    result.write(folder / RESULT)  # first: what was measured must not be lost with a list that can't be written
    if test.evaluated is not None:
        write_ranking_lists(test.evaluated, test.table, folder)


def describe(manifest: Manifest) -> dict[str, Any]:
    """Name, fingerprint and counts of a dataset for ``result.json``."""
    counts = manifest.counts()
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "cameras": manifest.has_cameras,
        "counts": {str(role): {str(k): int(v) for k, v in row.items()} for role, row in counts.iterrows()},
    }


def _wanted(config: DictConfig) -> Wanted:
    return Wanted(
        model=config.get("model"),
        backbone=config.get("backbone"),
        image_size=config.image_size,
        pad_to_square=False,  # until the dataset has been read, see `_settled`
        decode_margin=config.loading.decode_margin,
        settings=settings_of(config.evaluation),
        fallback_size=config.dataset.test_size or [1, 1],
    )


def _settled(embedder: Embedder, config: DictConfig) -> Embedder:
    """With what a dataset settles when it has been read: its padding, and its size where the network says none."""
    preprocessing = replace(embedder.preprocessing, pad_to_square=bool(config.dataset.pad_test))
    if preprocessing.image_size == (1, 1):
        preprocessing = replace(preprocessing, image_size=tuple(config.dataset.test_size))
    embedder.preprocessing = preprocessing
    return embedder


def _with_own_dataset(config: DictConfig) -> DictConfig:
    """The configuration with the dataset that the checkpoint was trained for.  Raises ConfigError where it says none."""
    path = Path(str(config.checkpoint)).expanduser()
    content = read_checkpoint(path) if path.is_file() else None
    saved = content.get("bdbnet") if isinstance(content, dict) else None
    if saved is None:
        raise ConfigError(
            f"dataset= is missing: {config.checkpoint} does not say which dataset it is for. Give dataset=market1501, for example"
        )
    dataset = OmegaConf.create(with_todays_names(saved["config"])["dataset"])
    if dataset.name not in READERS or dataset.get("reader") is not None:
        raise ConfigError(
            f"dataset= is missing: {config.checkpoint} was trained on {dataset.name}, which a plugin reads. A file never names a "
            f"plugin: name both yourself, plugins=[...] and dataset={dataset.name}"
        )
    moved = Path(str(config.data_root)) / Path(str(dataset.root)).name
    if dataset.root is not None and not Path(str(dataset.root)).expanduser().exists() and moved.exists():
        dataset.root = str(moved)
    own = config.copy()
    OmegaConf.update(own, "dataset", dataset, force_add=True)
    return own
