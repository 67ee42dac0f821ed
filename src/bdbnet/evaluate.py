"""``python -m bdbnet.evaluate``: judge a checkpoint on the dataset it was trained for, or on another."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bdbnet.config import ConfigError, command


@command("evaluate")
def main(config: DictConfig) -> float:
    if config.get("dataset") is None:
        raise ConfigError(
            "dataset= is missing: on which dataset should the checkpoint be judged? dataset=market1501, for example"
        )
    from bdbnet.training.runs import evaluate
    from bdbnet.training.setup import main_metric
    from bdbnet.training.tables import metrics_table

    folder = Path(HydraConfig.get().runtime.output_dir)
    result = evaluate(config, folder)
    print(metrics_table(result))
    print(f"result: {folder / 'result.json'}\nranking lists: {folder / 'topk.parquet'}")
    return result.metrics[main_metric(config)]


if __name__ == "__main__":
    main()
