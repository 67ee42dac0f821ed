"""``python -m bdbnet.evaluate``: evaluate a checkpoint on the dataset it was trained for, or on another."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, command, shown_path


@command("evaluate")
def main(config: DictConfig) -> float:
    if config.checkpoint is None:
        raise ConfigError("checkpoint= is missing: give a network, for example outputs/train/<run>/last.ckpt")
    from pytorch_lightning.utilities import rank_zero_only

    from bdbnet.evaluation.evaluate import evaluate
    from bdbnet.evaluation.protocol import main_metric
    from bdbnet.reporting.analysis import analysis_text
    from bdbnet.reporting.run_folder import read_analysis
    from bdbnet.reporting.terminal import metrics_table
    from bdbnet.results import ANALYSIS, PER_QUERY

    folder = shown_path(HydraConfig.get().runtime.output_dir)
    result = evaluate(config, folder)
    say = rank_zero_only(print)
    say(metrics_table(result))
    say(f"result: {folder / 'result.json'}\nranking lists: {folder / 'topk.parquet'}")
    if config.analysis and (analysis := read_analysis(folder / ANALYSIS)) is not None:
        say(f"\n{analysis_text(analysis)}\n\nanalysis: {folder / ANALYSIS}\nevery query: {folder / PER_QUERY}")
        say(f"with pictures: python -m bdbnet.report run={folder}")
    return result.metrics[main_metric(OmegaConf.create(dict(result.config)))]


if __name__ == "__main__":
    main()
