"""``python -m bdbnet.evaluate``: evaluate a checkpoint on the dataset it was trained for, or on another, or anyone's embeddings."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path


@command("evaluate")
def main(config: DictConfig) -> float:
    if config.checkpoint is None and config.features is None:
        raise ConfigError(
            "checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt, or embeddings as features=FILE"
        )
    if config.queries is not None and config.features is None:
        raise ConfigError("queries= goes with features=, the gallery's embeddings: give both, or leave it out")
    from pytorch_lightning.utilities import rank_zero_only

    from bdbnet.evaluation.evaluate import evaluate
    from bdbnet.evaluation.protocol import main_metric
    from bdbnet.reporting.analysis import analysis_text
    from bdbnet.reporting.calibration import calibration_text
    from bdbnet.reporting.run_folder import read_analysis, read_calibration
    from bdbnet.reporting.terminal import metrics_table
    from bdbnet.results import ANALYSIS, CALIBRATION, PER_QUERY

    folder = shown_path(HydraConfig.get().runtime.output_dir)
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
    return result.metrics[main_metric(OmegaConf.create(dict(result.config)))]


if __name__ == "__main__":
    main()
