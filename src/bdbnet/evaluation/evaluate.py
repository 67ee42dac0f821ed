"""The evaluation of a network on a dataset, from a configuration to the files of a run folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, check_settings, plain
from bdbnet.datasets import READERS, Manifest
from bdbnet.evaluation.calibrating import CalibrationError, calibrate_evaluated, identities_of, require_identities
from bdbnet.evaluation.error_analysis import analyse, clear_analysis, query_table, write_queries
from bdbnet.evaluation.load import Wanted, from_file, open_embedder, require_source, settings_of, training_of
from bdbnet.evaluation.module import EvaluationModule
from bdbnet.evaluation.network import count_parameters
from bdbnet.evaluation.progress import EvaluationProgress
from bdbnet.evaluation.protocol import build_metric, build_protocol
from bdbnet.evaluation.ranking_lists import write_ranking_lists
from bdbnet.evaluation.run_log import Outcome, facts_of, logged
from bdbnet.evaluation.test_set import EvaluationError, TestSet
from bdbnet.evaluation.trainer import (
    build_trainer,
    keep_freed_memory,
    quiet_libraries,
    seed_everything,
    sum_of_ranks,
)
from bdbnet.files import WriteError
from bdbnet.loading.datamodule import test_rows
from bdbnet.loading.from_config import build_data, build_manifest
from bdbnet.overwriting import refuse_other_settings, settings_that_count
from bdbnet.processor_time import processor_seconds
from bdbnet.results import (
    CALIBRATION,
    LABEL_NAMES,
    REPORT,
    RESULT,
    TOP_K,
    Result,
    ResultError,
    metric_of,
    read_result,
    write_atomically,
)
from bdbnet.retrieval import rank_queries
from bdbnet.stopping import signals_kept


def evaluate(config: DictConfig, folder: Path) -> Result:
    """Evaluate ``config.checkpoint`` on ``config.dataset`` and record it in ``folder``.

    Without a dataset a network that `bdbnet.train` trained is evaluated on its own: options and folder as its file says.
    Without a distance embeddings are compared by the network's own.

    Raises:
        ConfigError: the checkpoint does not say what network it is for and the configuration does not either, no dataset
            is known, or the folder holds results of other settings or data and ``config.overwrite`` is not set.
        CheckpointError, DatasetError, ImageError: see there.
        EvaluationError: the device's memory is not enough for a batch of test images.
    """
    began = processor_seconds()
    quiet_libraries()
    keep_freed_memory()
    check_settings(config, "evaluate")
    require_source(str(config.checkpoint))  # before a large dataset is read
    if config.get("dataset") is None:
        config = _with_own_dataset(config)
    overwrite = bool(config.get("overwrite"))
    earlier = None if overwrite else earlier_result(folder)
    seed_everything(config.seed)
    embedder = open_embedder(config.checkpoint, _wanted(config), device="cpu")
    if config.evaluation.distance is None:
        config = with_distance(config, embedder.distance_name)
    if earlier is not None:
        refuse_other_data(folder, earlier, config)
    manifest = build_manifest(config, trained=True)
    if config.dataset.pad_test is None:
        config.dataset.pad_test = embedder.preprocessing.pad_to_square
    embedder.preprocessing = replace(embedder.preprocessing, pad_to_square=config.dataset.pad_test)
    if earlier is not None:
        refuse_other_data(folder, earlier, config, manifest)
    check_calibration(config, test_rows(manifest), manifest.name)
    size = embedder.preprocessing.image_size
    data = build_data(config, manifest, test_size=list(size), channels_last=True)
    data.test_transform = embedder.preprocessing.transform
    top_k = config.evaluation.top_k
    test = build_test_set(config, manifest, progress=True, top_k=top_k, facts=config.analysis)
    module = EvaluationModule(embedder, [test])
    trainer = build_trainer(config, folder, [EvaluationProgress()])
    protocol = replace(build_protocol(config, data), preprocessing=embedder.preprocessing.unusual() or None)
    facts = facts_of("evaluate", config, folder, data=describe(manifest), protocol=protocol.record(), anew=overwrite)
    trained_with = embedder.origin.trained_with
    with logged(trainer.loggers, replace(facts, config={**facts.config, "trained_with": trained_with})) as log:
        with signals_kept():
            try:
                trainer.validate(module, data, verbose=False)
            except torch.OutOfMemoryError as error:
                raise EvaluationError(
                    f"the memory of {trainer.strategy.root_device} is not enough for {config.loading.test_batch_size} test images "
                    f"of {size[0]} x {size[1]} at once in {config.evaluation.precision}: lower loading.test_batch_size, or set "
                    "evaluation.precision=bf16-mixed or evaluation.chunk_memory_mb to less"
                ) from error
        result = Result(
            kind="evaluate",
            metrics=module.metrics,
            plain=module.plain_metrics,
            protocol=protocol,
            checkpoint=str(config.checkpoint),
            data=describe(manifest),
            config={**plain(config), "trained_with": trained_with},
            seed=config.seed,
            parameters=count_parameters(embedder.network),
            embedding_dim=embedder.dimensions,
            seconds={"evaluate": round(module.evaluation_seconds, 2)},
            images_per_second={"evaluate": round(len(data.test_table) / module.evaluation_seconds, 2)},
            processor_seconds=round(sum_of_ranks(trainer, processor_seconds() - began), 2),
        )
        if trainer.is_global_zero:
            write_evaluation(result, test, folder, config, made_for=embedder.made_for)
        log.outcome(Outcome(result, folder, test, manifest.root, embedder.network, size))
    return result


def build_test_set(
    config: DictConfig,
    manifest: Manifest,
    *,
    name: str = "",
    progress: bool = False,
    top_k: int = 0,
    facts: bool = False,
) -> TestSet:
    """The test images of a manifest with the metric of its protocol.

    Args:
        name: of a further test set.
        progress: re-ranking shows a bar.
        top_k, facts: see `TestSet`.
    """
    table, metric = test_rows(manifest), build_metric(config, progress=progress)
    names = {
        label: manifest.label_names[label]
        for label in table["label"].unique().tolist()
        if label in manifest.label_names
    }
    return TestSet(metric, table, name=name, top_k=top_k, facts=facts, label_names=names)


def write_outcome(result: Result, test: TestSet, folder: Path, top_k: int, *, queries: bool = False) -> None:
    """Write ``result.json``, the names of labels where they have any, and the ranking lists of ``top_k`` images, 0 for none.
    For rank 0 alone.

    Args:
        queries: also write ``per_query.parquet``, by which `compare_runs` compares two runs.
    """
    result.write(folder / RESULT)  # first: what was measured must not be lost with a list that can't be written
    if test.label_names:
        write_atomically(folder / LABEL_NAMES, json.dumps(test.label_names, ensure_ascii=False, indent=0).encode())
    else:
        (folder / LABEL_NAMES).unlink(missing_ok=True)
    found = test.evaluated
    if found is None or not (top_k or queries):
        return
    if (top_k and found.top_k is None) or (queries and found.facts is None):
        # While training no evaluation knows that it is the last.
        ranked = rank_queries(
            found.query, found.gallery, found.matches, found.search, top_k=top_k, facts=queries,
            ap_at=getattr(test.metric, "ap_at", None),
        )  # fmt: skip
        found = replace(found, top_k=ranked.top_k, facts=ranked.facts if queries else found.facts)
    if queries and found.facts is not None:
        write_queries(query_table(test.table, found, found.facts, test.plugin_values), folder)
    if top_k:
        write_ranking_lists(found, test.table, folder)


def check_calibration(config: DictConfig, test: pd.DataFrame, name: str) -> None:
    """Raise ConfigError or CalibrationError where `config.calibrate` can't be done on this test set."""
    if config.fmr is not None and not config.calibrate:
        raise ConfigError(f"fmr={config.fmr}: goes with calibrate=true; give both, or leave it out")
    if config.fmr is not None and config.fmr >= 1:
        raise ConfigError(
            f"fmr={config.fmr}: give a share of the pairs of two people, between 0 and 1, such as fmr=1e-3"
        )
    if config.calibrate:
        require_identities(identities_of(test) // 2, name, "test")


def write_evaluation(
    result: Result, test: TestSet, folder: Path, config: DictConfig, *, made_for: Mapping[str, Any]
) -> None:
    """Write the files of an evaluation, with the analysis where `config.analysis` asks for one, and the calibration where
    `config.calibrate` does.  For rank 0 alone.

    Args:
        made_for: settings of the embedding, which a threshold holds for.

    Raises:
        WriteError, CalibrationError: what was measured is printed first.
    """
    values = [f"{metric_of(name).title} {metric_of(name).text(value)}" for name, value in result.metrics.items()]
    try:
        if (folder / CALIBRATION).is_file():
            (folder / CALIBRATION).unlink()
            if not config.calibrate:
                print(f"removed from {folder}: the earlier {CALIBRATION}; calibrate=true makes one anew")
        removed = clear_analysis(folder)
        if removed and not config.analysis:
            print(f"removed from {folder}: the earlier analysis ({', '.join(removed)}); analysis=true makes one anew")
        if config.get("overwrite"):
            for name in (TOP_K, REPORT):
                (folder / name).unlink(missing_ok=True)
        write_outcome(result, test, folder, config.evaluation.top_k)
        if config.analysis:
            analyse(test, folder, result)
        if config.calibrate:
            assert test.evaluated is not None
            fmr = 1e-3 if config.fmr is None else config.fmr
            found = calibrate_evaluated(test.evaluated, result, fmr=fmr, made_for=made_for)
            write_atomically(folder / CALIBRATION, (json.dumps(found.record(), indent=2) + "\n").encode())
    except CalibrationError:
        print(f"measured: {', '.join(values)}\nresult: {folder / RESULT}")
        raise
    except WriteError:  # what was measured is not lost with it
        print(f"measured, but not written: {', '.join(values)}")
        raise


def refuse_other_data(folder: Path, earlier: Result, config: DictConfig, manifest: Manifest | None = None) -> None:
    """Raise ConfigError where the result in a folder is of other settings, or with a manifest, of other data."""
    if manifest is not None:
        then, now = (
            {"fingerprint of the data": data.get("fingerprint")} for data in (earlier.data, describe(manifest))
        )
        refuse_other_settings(folder, then, now)
        return
    then, now = settings_that_count(earlier.config), settings_that_count(plain(config))
    then = {key: value for key, value in then.items() if not key.startswith("trained_with.")}
    for settings in (then, now):  # the images are divided among them, and nothing else
        settings.pop("trainer.devices", None)
    refuse_other_settings(folder, {"kind": earlier.kind, **then}, {"kind": "evaluate", **now})


def earlier_result(folder: Path) -> Result | None:
    """The result that a folder holds.  Raises ConfigError where it can't be read: nobody knows what it is of."""
    if not (folder / RESULT).is_file():
        return None
    try:
        return read_result(folder / RESULT)
    except ResultError as error:
        raise ConfigError(f"{error}. To replace it: overwrite=true; to keep it: run_name=<another name>") from error


def describe(manifest: Manifest) -> dict[str, Any]:
    """Name, fingerprint and counts of a dataset for ``result.json``."""
    counts = manifest.counts()
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "cameras": manifest.has_cameras,
        "counts": {str(role): {str(k): int(v) for k, v in row.items()} for role, row in counts.iterrows()},
    }


def with_distance(config: DictConfig, distance: str) -> DictConfig:
    """The configuration with the distance by which embeddings are compared."""
    own = config.copy()
    own.evaluation.distance = distance
    return own


def _wanted(config: DictConfig) -> Wanted:
    return Wanted(
        model=config.get("model"),
        backbone=config.get("backbone"),
        image_size=config.image_size,
        pad_to_square=config.dataset.pad_test,
        decode_margin=config.loading.decode_margin,
        settings=settings_of(config.evaluation),
        fallback_size=config.dataset.test_size,
    )


def _with_own_dataset(config: DictConfig) -> DictConfig:
    """The configuration with the dataset that the network was trained for.  Raises ConfigError where its source says none."""
    source = str(config.checkpoint)
    trained = training_of(source)
    if trained is None or not isinstance(trained.get("dataset"), Mapping):
        raise ConfigError(
            f"dataset= is missing: {source} does not say which dataset it is for. Give dataset=market1501, for example"
        )
    dataset = from_file(trained["dataset"], source)
    name = str(dataset.get("name"))
    if name not in READERS or dataset.get("reader") is not None:
        raise ConfigError(
            f"dataset= is missing: {source} was trained on {name}, which a plugin reads. A file never names a plugin: name both "
            f"yourself, plugins=[...] and dataset={name}"
        )
    root = None if dataset.get("root") is None else Path(str(dataset.root)).expanduser()
    # A file does not say where data are rendered: that is where they are already, or this command's own folder.
    is_there = root is not None and (any(root.glob("v*-*")) if name.startswith("synthetic") else root.exists())
    if root is not None and not is_there:
        here = Path(str(config.data_root)) / Path(str(dataset.root)).name
        # Rendered data are rendered where this command keeps its own.
        if here.exists() or name.startswith("synthetic"):
            dataset.root = str(here)
    own = config.copy()
    OmegaConf.update(own, "dataset", dataset, force_add=True)
    return own
