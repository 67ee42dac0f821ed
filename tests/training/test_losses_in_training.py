"""Every loss of the configuration in a training: on batches without pairs, and with parameters of its own."""

import math

import pytest
import torch

from bdbnet.config import ConfigError, config_dir
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.models import read_checkpoint
from bdbnet.training.module import TrainingModule
from bdbnet.training.runs import train
from modules import training_module

LOSSES = sorted(path.stem for path in (config_dir() / "loss").glob("*.yaml"))


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_without_a_positive_pair_train_by_the_softmax_alone(loss, tiny_config, tmp_path):
    config = tiny_config(
        f"loss={loss}", "sampler.images_per_identity=1", "sampler.batch_size=4", "trainer.max_epochs=1"
    )
    assert math.isfinite(train(config, tmp_path / "run").metrics["mAP"])


def module_of(config) -> TrainingModule:
    return training_module(config)


def test_a_learnt_boundary_is_optimised_without_decay_and_kept(tiny_config, tmp_path):
    config = tiny_config("loss=margin", "loss.metric.learn_beta=true", "loss.metric.nu=0.1", "loss.per_class=true")
    module = module_of(config)
    optimizer = module.configure_optimizers()["optimizer"]
    beta = module.criterion.metric.beta
    (group,) = [group for group in optimizer.param_groups if any(parameter is beta for parameter in group["params"])]
    assert group["weight_decay"] == 0
    assert beta.shape == (4,)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*module.network.parameters(), beta])

    train(config, tmp_path / "run")
    kept = read_checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"]["criterion.metric.beta"]
    assert not torch.equal(kept, torch.full((4,), 1.2))
    evaluation = tiny_config(
        f"checkpoint={tmp_path / 'run' / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate"
    )
    evaluation.dataset.options = config.dataset.options
    assert math.isfinite(evaluate(evaluation, tmp_path / "evaluated").metrics["mAP"])


def test_without_parameters_of_a_loss_there_is_one_group_as_ever(tiny_config):
    (group,) = module_of(tiny_config("loss=margin")).configure_optimizers()["optimizer"].param_groups
    assert group["weight_decay"] == 5e-4


@pytest.mark.parametrize("rate", ["0", "-1", "fast"])
def test_a_rate_of_the_backbone_that_is_none_is_refused(tiny_config, rate):
    with pytest.raises(ConfigError, match="backbone_rate"):
        module_of(tiny_config(f"backbone_rate={rate}"))
