"""``python -m bdbnet.train``: train a network, evaluate it, and leave a run folder with everything that was measured."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bdbnet.config import command, shown_path
from bdbnet.stopping import Stopped

RESUME = "Resume with the same command and ckpt_path=last."


@command("train", again=RESUME, loads=["bdbnet.training.runs", "bdbnet.reporting.terminal"])
def main(config: DictConfig) -> float:
    from pytorch_lightning.utilities import rank_zero_only

    from bdbnet.evaluation.protocol import main_metric
    from bdbnet.reporting.terminal import metrics_table
    from bdbnet.training.joining import check_started
    from bdbnet.training.runs import train
    from bdbnet.training.setup import devices_of

    check_started(devices_of(config.trainer) * config.trainer.num_nodes)
    folder = shown_path(HydraConfig.get().runtime.output_dir)
    say = rank_zero_only(print)
    try:
        result = train(config, folder)
    except Stopped as stopped:
        say(RESUME, flush=True)
        stopped.told = True
        raise
    say(metrics_table(result))
    say(f"result: {folder / 'result.json'}\na page to look at: python -m bdbnet.report run={folder}")
    return result.metrics[main_metric(config)]


if __name__ == "__main__":
    main()
