"""Callbacks that follow a number of the training."""

import pytest

from bdbnet.config import ConfigError
from bdbnet.training.runs import train

LIGHTNING = "pytorch_lightning.callbacks"


@pytest.mark.parametrize("callback", ["EarlyStopping,monitor:val_loss", "ModelCheckpoint,monitor:map,mode:max"])
def test_a_number_that_does_not_exist_is_refused_before_training_with_those_that_do(callback, tiny_config, tmp_path):
    config = tiny_config(f"callbacks.extra=[{{_target_:{LIGHTNING}.{callback}}}]")
    with pytest.raises(ConfigError) as refused:
        train(config, tmp_path)
    name, _, monitor = callback.partition(",")
    assert str(refused.value) == (
        f"callbacks.extra: {name} follows {monitor.split(':')[1].split(',')[0]}, which this training does not have. After every "
        "evaluation there are rank1, rank5, rank10, mAP, mINP, valid_queries; after every epoch loss, "
        "loss/triplet_global, loss/softmax_global, loss/triplet_dropping, loss/softmax_dropping"
    )
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_a_schedule_follows_a_number_that_exists(tiny_config, tmp_path):
    plateau = ["schedule=torch", "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"]
    with pytest.raises(
        ConfigError, match=r"schedule\.monitor: ReduceLROnPlateau follows map, .*rank1, .*loss/triplet_global"
    ):
        train(tiny_config(*plateau, "schedule.monitor=map"), tmp_path)


@pytest.mark.parametrize(
    "callback",
    [
        "EarlyStopping,monitor:loss/softmax_global,mode:min,stopping_threshold:1000",
        "EarlyStopping,monitor:mAP,mode:max,stopping_threshold:0",
    ],
)
def test_a_number_that_exists_is_followed(callback, tiny_config, tmp_path):
    config = tiny_config(
        f"callbacks.extra=[{{_target_:{LIGHTNING}.{callback}}}]", "trainer.max_epochs=3", "evaluation.every_n_epochs=1"
    )
    assert train(config, tmp_path).epochs == 1


def test_the_names_are_those_that_a_training_logs(finished_run, tiny_config):
    import pandas as pd

    history = pd.read_csv(finished_run / "history.csv").columns
    logged = {name for name in history if name == "loss" or name.startswith("loss/")}
    assert logged == {
        "loss",
        *(f"loss/{kind}_{branch}" for kind in ("triplet", "softmax") for branch in ("global", "dropping")),
    }
    assert {"rank1", "rank5", "rank10", "mAP", "mINP", "valid_queries"} <= {*history}
