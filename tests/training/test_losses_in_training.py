"""Every loss of the configuration in a training: on batches without pairs, and with parameters of its own."""

import math

import pytest
import torch

from bdbnet import plugins
from bdbnet.config import ConfigError, config_dir
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.models import read_checkpoint
from bdbnet.training.callbacks import TrainingError
from bdbnet.training.criterion import LossError
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


# Losses of pytorch-metric-learning, and of one's own


PML = "pytorch_metric_learning.losses"
WITH_PROXIES = {"ArcFaceLoss": "W", "CosFaceLoss": "W", "ProxyAnchorLoss": "proxies", "ProxyNCALoss": "proxies"}


@pytest.mark.parametrize(
    "loss",
    [
        "CircleLoss",
        "ContrastiveLoss",
        "MultiSimilarityLoss",
        "SupConLoss",
        "TripletMarginLoss",
        "SoftTripleLoss",
        *WITH_PROXIES,
    ],
)
def test_losses_of_pytorch_metric_learning_train_unregistered(loss, tiny_config, tmp_path):
    config = tiny_config("loss=pml", f"loss.metric._target_={PML}.{loss}", "trainer.max_epochs=1")
    assert math.isfinite(train(config, tmp_path).metrics["mAP"])
    assert f"loss/{loss}_global" in (tmp_path / "history.csv").read_text()


@pytest.mark.parametrize(("loss", "parameter"), WITH_PROXIES.items())
def test_proxies_are_made_for_every_branch_and_optimised_without_decay(loss, parameter, tiny_config):
    module = module_of(tiny_config("loss=pml", f"loss.metric._target_={PML}.{loss}"))
    optimizer = module.configure_optimizers()["optimizer"]
    (group,) = [group for group in optimizer.param_groups if group["weight_decay"] == 0]
    made = {name: getattr(loss, parameter) for name, loss in module.criterion.metric.items()}
    assert {id(found) for found in group["params"]} == {id(found) for found in made.values()}
    assert {name: sorted(found.shape) for name, found in made.items()} == {"global": [4, 512], "dropping": [4, 1024]}


FUNCTION = """
    def spread(embeddings, labels, scale=1.0):
        return scale * embeddings.square().mean()
"""


def test_a_function_is_a_loss_as_it_is(plugin, tiny_config, tmp_path):
    plugin("flat", FUNCTION)
    plugins.load(["flat"])
    config = tiny_config("loss=pml", "loss.metric._target_=flat.spread", "+loss.metric.scale=3", "trainer.max_epochs=1")
    found = module_of(config).criterion.metric(torch.ones(2, 4), torch.zeros(2))
    assert found == 3
    train(config, tmp_path / "run")
    wrong = tiny_config("loss=pml", "loss.metric._target_=flat.spread", "+loss.metric.sclae=3")
    with pytest.raises(LossError, match=r"loss flat.spread does not take .*sclae"):
        module_of(wrong)


def test_what_the_user_sets_of_a_loss_is_not_filled_in(tiny_config):
    config = tiny_config("loss=pml", f"loss.metric._target_={PML}.ProxyAnchorLoss", "+loss.metric.num_classes=7")
    assert module_of(config).criterion.metric["global"].proxies.shape == (7, 512)


def test_a_loss_that_may_keep_numbers_for_identities_keeps_them_only_when_told(tiny_config):
    choice = ["loss=pml", f"loss.metric._target_={PML}.MarginLoss", "+loss.metric.learn_beta=true"]
    assert module_of(tiny_config(*choice)).criterion.metric.beta.numel() == 1
    assert module_of(tiny_config(*choice, "+loss.per_class=true")).criterion.metric.beta.numel() == 4
    assert module_of(tiny_config("loss=margin")).criterion.metric.num_classes is None


def test_parts_of_a_loss_are_built_from_settings(tiny_config):
    distance = "+loss.metric.distance={_target_: pytorch_metric_learning.distances.LpDistance, p: 1}"
    loss = module_of(
        tiny_config("loss=pml", f"loss.metric._target_={PML}.TripletMarginLoss", distance)
    ).criterion.metric
    assert (type(loss.distance).__name__, loss.distance.p) == ("LpDistance", 1)


def test_a_run_with_proxies_resumes_bit_for_bit(tiny_config, tmp_path, plugin):
    plugin(
        "stopping",
        """
        import pytorch_lightning as pl

        class AfterFirst(pl.Callback):
            def on_train_epoch_start(self, trainer, module):
                if trainer.current_epoch == 1:
                    raise KeyboardInterrupt
    """,
    )
    plugins.load(["stopping"])
    overrides = ["loss=pml", f"loss.metric._target_={PML}.ProxyAnchorLoss", "model=baseline"]
    train(tiny_config(*overrides), tmp_path / "whole")
    stopping = ["callbacks.extra=[{_target_: stopping.AfterFirst}]", "callbacks.checkpoint_every_seconds=0"]
    with pytest.raises(SystemExit):
        train(tiny_config(*overrides, *stopping), tmp_path / "stopped")
    train(tiny_config(*overrides, "ckpt_path=last"), tmp_path / "stopped")
    whole, stopped = (read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "stopped"))
    assert "criterion.metric.global.proxies" in whole
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("embeddings.square().sum(1)", LossError, r"mine.Odd returned shape \(8,\); expected a scalar"),
        ("embeddings.mean() * float('nan')", TrainingError, r"the loss is nan in epoch 1, step 1 \(Odd_global = nan"),
    ],
)
def test_a_loss_that_returns_no_number_is_named(body, error, said, plugin, tiny_config, tmp_path):
    plugin(
        "mine",
        f"""
        import torch

        class Odd(torch.nn.Module):
            def forward(self, embeddings, labels):
                return {body}
    """,
    )
    plugins.load(["mine"])
    with pytest.raises(error, match=said):
        train(tiny_config("loss=pml", "loss.metric._target_=mine.Odd"), tmp_path)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"{PML}.SelfSupervisedLoss", "loss"),
        (f"{PML}.NTXentLos", r"loss.metric._target_: .*allow-list"),
        ("null", "_target_"),
    ],
)
def test_a_loss_that_can_t_be_built_is_named(target, said, tiny_config):
    with pytest.raises(ConfigError, match=said):
        module_of(tiny_config("loss=pml", "loss.name=x", f"loss.metric._target_={target}"))


# Optimizers


@pytest.mark.parametrize(
    "name", ["Adadelta", "Adafactor", "Adagrad", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD"]
)
def test_every_optimizer_of_torch_takes_the_place_of_adam(name, tiny_config):
    module = module_of(tiny_config(f"optimizer._target_=torch.optim.{name}"))
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is getattr(torch.optim, name)
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("torch.optim.LBFGS", "evaluates the loss of a batch several times"),
        ("torch.optim.SparseAdam", "takes sparse gradients"),
        ("torch.optim.Rprop", "weight_decay"),
        ("torch.optim.Optimizer", r"optimizer._target_: .*allow-list"),
    ],
)
def test_an_optimizer_that_can_t_be_used_is_named(target, said, tiny_config):
    with pytest.raises(ConfigError, match=said):
        module_of(tiny_config(f"optimizer._target_={target}")).configure_optimizers()
