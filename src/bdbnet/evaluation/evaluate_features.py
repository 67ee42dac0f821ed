"""The evaluation of embeddings that any program made, from a file to the files of a run folder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, check_settings, config_dir, plain
from bdbnet.datasets import Manifest
from bdbnet.evaluation.embedder import scale_embeddings
from bdbnet.evaluation.evaluate import (
    build_test_set,
    check_calibration,
    describe,
    earlier_result,
    refuse_other_data,
    with_distance,
    write_evaluation,
)
from bdbnet.evaluation.feature_files import read_arrays
from bdbnet.evaluation.feature_sets import FEATURES, Features, align, assemble
from bdbnet.evaluation.features import FeatureError, Side, sides_of
from bdbnet.evaluation.protocol import (
    expansion_record,
    query_expansion,
    query_pooling,
    rerank_record,
    reranking,
    single_shot,
)
from bdbnet.evaluation.run_log import Outcome, facts_of, logged
from bdbnet.evaluation.test_set import TestSet
from bdbnet.evaluation.trainer import build_loggers
from bdbnet.loading.datamodule import test_rows
from bdbnet.loading.from_config import build_manifest, is_reid, require_matches
from bdbnet.processor_time import processor_seconds
from bdbnet.results import Protocol, Result

#: Reads a folder that `bdbnet.embed` made; None for another path.
FolderReader = Callable[[Path], Side | None]


def evaluate_features(config: DictConfig, folder: Path, *, read_folder: FolderReader) -> tuple[Result, list[str]]:
    """Evaluate the embeddings in ``config.features`` (and ``config.queries``) and record it in ``folder``.

    Returns:
        The result, and what the user should know: which array was read as what.

    Raises:
        ConfigError: a setting that only a network has; see also `bdbnet.evaluation.evaluate.evaluate`.
        FeatureError, CheckpointError, DatasetError: embeddings, or a data set, that can't be used.
    """
    check_settings(config, "evaluate")
    config = _with_dataset(config)
    if config.evaluation.distance is None:
        config = with_distance(config, "euclidean")
    _refuse_network_settings(config)
    overwrite = bool(config.get("overwrite"))
    earlier = None if overwrite else earlier_result(folder)
    if earlier is not None:
        refuse_other_data(folder, earlier, config)
    sides, notes = read_sides(config, read_folder)
    features = _features(config, sides)
    notes += features.notes
    manifest = features.manifest
    check_calibration(config, test_rows(manifest), manifest.name)
    if earlier is not None:
        refuse_other_data(folder, earlier, config, manifest)
    protocol = _protocol(config, manifest)
    facts = facts_of("evaluate", config, folder, data=describe(manifest), protocol=protocol.record(), anew=overwrite)
    with logged(build_loggers(config), facts) as log:
        result, test = _evaluate(config, folder, features, protocol)
        root = features.root if config.dataset.name == FEATURES else manifest.root
        log.outcome(Outcome(result, folder, test, root))
    return result, notes


def _evaluate(config: DictConfig, folder: Path, features: Features, protocol: Protocol) -> tuple[Result, TestSet]:
    manifest = features.manifest
    began, processor_began = time.perf_counter(), processor_seconds()
    # What is mapped from a file can't be written to, which torch does not know.
    own = features.embeddings if features.embeddings.flags.writeable else features.embeddings.copy()
    embeddings = torch.from_numpy(own)
    dimensions = embeddings.shape[1]
    embeddings = scale_embeddings(embeddings, [dimensions], config.evaluation.normalize)
    test = build_test_set(config, manifest, progress=True, top_k=config.evaluation.top_k, facts=config.analysis)
    table = test.table
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in ("label", "camera")}
    test.add(
        embeddings,
        columns
        | {
            "is_query": torch.from_numpy(table["split"].isin(("query", "test")).to_numpy().copy()),
            "index": torch.arange(len(table)),
        },
    )
    found = test.evaluate()
    seconds = time.perf_counter() - began
    plain_metrics = found.plain_metrics
    result = Result(
        kind="evaluate",
        metrics=test.metrics,
        plain=None if plain_metrics is None else {name: float(value) for name, value in plain_metrics.items()},
        protocol=protocol,
        checkpoint=str(config.features),
        data=describe(manifest),
        config=plain(config),
        seed=config.seed,
        embedding_dim=dimensions,
        seconds={"evaluate": round(seconds, 2)},
        processor_seconds=round(processor_seconds() - processor_began, 2),
    )
    # What else decides the embeddings, nobody knows: such a threshold fits no embedder.
    made_for = {"normalize": config.evaluation.normalize, "preprocessing": "unknown"}
    write_evaluation(result, test, folder, config, made_for=made_for)
    return result, test


def read_sides(config: DictConfig, read_folder: FolderReader) -> tuple[dict[str, Side], list[str]]:
    """Embeddings of ``config.features`` by side, "" where all images are together, and notes.

    Raises:
        FeatureError: a file that can't be read as embeddings.
        ConfigError: ``config.queries`` does not fit ``config.features``.
    """
    sides, notes = _read(str(config.features), read_folder)
    if config.get("queries") is None:
        return sides, notes
    queries, further = _read(str(config.queries), read_folder)
    for key, found in (("features", sides), ("queries", queries)):
        if len(found) > 1:
            raise ConfigError(
                f"{key}={config[key]}: holds queries and gallery already; give queries= for a gallery alone"
            )
    if ("query" in sides) or ("gallery" in queries):
        raise ConfigError("features= is the gallery and queries= the queries: exchange the two")
    return {"query": next(iter(queries.values())), "gallery": next(iter(sides.values()))}, notes + further


def _read(source: str, read_folder: FolderReader) -> tuple[dict[str, Side], list[str]]:
    path = Path(source).expanduser()
    stored = read_folder(path)
    return ({"": stored}, []) if stored is not None else sides_of(read_arrays(path), str(path))


def _with_dataset(config: DictConfig) -> DictConfig:
    own = config.copy()
    if config.get("dataset") is None:
        OmegaConf.update(own, "dataset", OmegaConf.load(config_dir() / "dataset" / f"{FEATURES}.yaml"), force_add=True)
    if own.dataset.get("name") == FEATURES and own.dataset.protocol == "auto":
        own.dataset.protocol = "reid"
    return own


def _refuse_network_settings(config: DictConfig) -> None:
    """Raise ConfigError for settings of a network, which has no part in this."""
    evaluation = config.evaluation
    wrong = [key for key in ("checkpoint", "image_size", "model", "backbone") if config.get(key) is not None]
    if evaluation.flip:
        wrong.append("evaluation.flip")
    if evaluation.scales not in (None, [], [1], [1.0]):
        wrong.append("evaluation.scales")
    if evaluation.precision != "32-true":
        wrong.append("evaluation.precision")
    if wrong:
        raise ConfigError(f"{wrong[0]}= is a setting of a network; with features= there is none, so leave it out")
    if evaluation.normalize == "per_branch":
        raise ConfigError(
            "evaluation.normalize=per_branch: nobody knows the branches of embeddings from a file; use joint or none"
        )


def _features(config: DictConfig, sides: Mapping[str, Side]) -> Features:
    dataset = config.dataset
    if dataset.get("name") != FEATURES:
        manifest = build_manifest(config)
        return align(sides, manifest, test_rows(manifest))
    # One image per identity, drawn from all cameras: VehicleID's protocol knows none.
    needed = is_reid(config) and single_shot(config) is None
    features = assemble(sides, cameras=needed, root=dataset.root)
    manifest, by_camera = features.manifest, is_reid(config)
    if features.root is not None:
        dataset.root = str(features.root)
    require_matches(manifest, str(config.features), by_camera=by_camera, noun="label", error=FeatureError)
    return features


def _protocol(config: DictConfig, manifest: Manifest) -> Protocol:
    evaluation = config.evaluation
    settings: dict[str, Any] = {
        "query_expansion": expansion_record(query_expansion(config)),
        "rerank": rerank_record(reranking(config)),
    }
    return Protocol(
        task=config.dataset.protocol,
        dataset=manifest.name,
        image_size=None,
        precision="unknown",
        normalize=evaluation.normalize,
        ap_at=evaluation.ap_at if is_reid(config) and single_shot(config) is None else None,
        query_pooling=query_pooling(config),
        measure=evaluation.distance,
        single_shot=single_shot(config),
        preprocessing="unknown",
        **settings,
    )
