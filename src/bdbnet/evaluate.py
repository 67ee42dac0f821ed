"""``python -m bdbnet.evaluate``: evaluate a checkpoint on the dataset it was trained for, or on another, or anyone's embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path

if TYPE_CHECKING:
    from bdbnet.results import Result


@command("evaluate")
def main(config: DictConfig) -> float:
    if config.checkpoint is None and config.features is None:
        raise ConfigError(
            "checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt, or embeddings as features=FILE"
        )
    if config.queries is not None and config.features is None:
        raise ConfigError("queries= goes with features=, the gallery's embeddings: give both, or leave it out")
    from bdbnet.evaluation.protocol import main_metric

    folder = shown_path(HydraConfig.get().runtime.output_dir)
    if config.evaluations:
        results = evaluate_several(config, folder)
    else:
        results = [evaluate_one(config, folder)]
    return results[0].metrics[main_metric(OmegaConf.create(dict(results[0].config)))]


def evaluate_several(config: DictConfig, folder: Path) -> "list[Result]":
    """Evaluate on the data set and on each of ``config.evaluations``, every one in a folder of its own below `folder`.

    Raises:
        ConfigError: an entry names no data set, or embeddings are given in place of a network.
        DatasetError: a data set can't be used, or is there twice: before anything is computed.
    """
    from pytorch_lightning.utilities import rank_zero_only

    from bdbnet.datasets.union import names_apart, require_different
    from bdbnet.loading.entries import dataset_of
    from bdbnet.loading.from_config import build_manifest
    from bdbnet.reporting.terminal import several_table

    if config.features is not None:
        raise ConfigError(
            "evaluations= (a list in dataset=) goes with checkpoint=: embeddings are of one data set alone"
        )
    if config.get("dataset") is None:
        raise ConfigError(f"evaluations={list(config.evaluations)}: name the first data set, too: dataset=[a,b]")
    say = rank_zero_only(print)
    configs, manifests = [], []
    for dataset in [
        config.dataset,
        *(dataset_of(entry, str(config.data_root), "dataset") for entry in config.evaluations),
    ]:
        own = config.copy()
        own.dataset, own.evaluations = dataset.copy(), []
        configs.append(own)
        manifests.append(build_manifest(own.copy()))  # all of them are found and read before the first is evaluated
    names = names_apart(manifest.name for manifest in manifests)
    require_different(names, manifests, what="the list")
    results = []
    for number, (name, own) in enumerate(zip(names, configs), start=1):
        say(f"\n[{number}/{len(names)}] {name}")
        results.append(evaluate_one(own, folder / name))
    say(several_table(dict(zip(names, results))))
    return results


def evaluate_one(config: DictConfig, folder: Path) -> "Result":
    """Evaluate on one data set, and print what came out."""
    from pytorch_lightning.utilities import rank_zero_only

    from bdbnet.evaluation.evaluate import evaluate
    from bdbnet.reporting.analysis import analysis_text
    from bdbnet.reporting.calibration import calibration_text
    from bdbnet.reporting.run_folder import read_analysis, read_calibration
    from bdbnet.reporting.terminal import metrics_table
    from bdbnet.results import ANALYSIS, CALIBRATION, PER_QUERY

    say = rank_zero_only(print)
    if config.features is not None:
        from bdbnet.evaluation.evaluate_features import evaluate_features
        from bdbnet.gallery.stored_features import read_stored

        result, notes = evaluate_features(config, folder, read_folder=read_stored)
        for note in notes:
            say(f"note: {note}")
    else:
        result = evaluate(config, folder)
    say(metrics_table(result))
    if config.evaluation.distance is None and config.features is None:
        say(f"compared by {result.protocol.measure} distance, the network's own; evaluation.distance= sets another")
    say(f"result: {folder / 'result.json'}")
    if config.evaluation.top_k:
        say(f"ranking lists: {folder / 'topk.parquet'}")
    if config.analysis and (analysis := read_analysis(folder / ANALYSIS)) is not None:
        say(f"\n{analysis_text(analysis)}\n\nanalysis: {folder / ANALYSIS}\nevery query: {folder / PER_QUERY}")
    if config.calibrate and (calibration := read_calibration(folder / CALIBRATION)) is not None:
        say(f"\n{calibration_text(calibration)}\n\ncalibration: {folder / CALIBRATION}")
    if config.analysis or config.calibrate:
        say(f"with pictures: python -m bdbnet.report run={folder}")
    return result


if __name__ == "__main__":
    main()
