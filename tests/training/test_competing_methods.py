"""PCB and MGN through the same commands as the BDB Network: a tiny training of each, evaluated again, resumed, at two rates."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from bdbnet.config import ConfigError, check_settings
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.network import build_network
from bdbnet.models import PCBNetwork
from bdbnet.results import read_result
from bdbnet.training.callbacks import History
from bdbnet.training.runs import train
from modules import training_module

SETTINGS = {
    "pcb": ["model=pcb", "loss=none", "trainer.max_epochs=1"],
    "pcb_rpp": ["model=pcb_rpp", "loss=none", "trainer.max_epochs=3"],
    "mgn": ["model=mgn", "loss.metric.margin=1.2", "trainer.max_epochs=1"],
}
TRUNK = ["backbone=resnet18", "backbone.weights=none"]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("name", "losses", "length"), [("pcb", 6, 6 * 512), ("pcb_rpp", 6, 6 * 512), ("mgn", 11, 8 * 256)]
)
def test_a_run_is_evaluated_again_alike(name, losses, length, tiny_config, tmp_path):
    result = train(tiny_config(*TRUNK, *SETTINGS[name]), tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len([column for column in history if column.startswith("loss/")]) == losses
    assert result.embedding_dim == length
    config = tiny_config(f"checkpoint={tmp_path / 'run' / 'last.ckpt'}", "dataset=synthetic_reid", command="evaluate")
    config.dataset.options = result.config["dataset"]["options"]
    assert evaluate(config, tmp_path / "again").metrics == pytest.approx(result.metrics)


def rpp_of_three_epochs(*overrides: str) -> list[str]:
    """At a low rate: after two steps running statistics, which the second phase uses, are far from the batches'."""
    return [*TRUNK, *SETTINGS["pcb_rpp"], "backbone_rate=0.1", "optimizer=sgd", "optimizer.lr=1e-4", *overrides]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rpp") / "whole"


@pytest.mark.parametrize("stop", [1, 2])
def test_a_training_in_phases_resumes_identically(stop, whole, tiny_config, tmp_path, monkeypatch):
    """Stopped before the part classifier's epoch, or before the one of all together."""
    if not whole.exists():
        train(tiny_config(*rpp_of_three_epochs()), whole)
    begin_epoch = History.on_train_epoch_start

    def stopping(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stopping)
        with pytest.raises(SystemExit):
            train(tiny_config(*rpp_of_three_epochs("callbacks.checkpoint_every_seconds=0")), tmp_path)
    assert not weights_of(tmp_path)["network.pooling.on"] or stop == 2
    train(tiny_config(*rpp_of_three_epochs("ckpt_path=last")), tmp_path)
    expected, found = weights_of(whole), weights_of(tmp_path)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert found["network.pooling.on"]
    assert read_result(tmp_path / "result.json").metrics == read_result(whole / "result.json").metrics


def test_the_second_phase_trains_the_part_classifier_alone(tiny_config, tmp_path, monkeypatch):
    """Through the trainer: neither weights nor running statistics of anything else move in its epoch."""
    states = []
    begin_epoch = PCBNetwork.begin_epoch

    def recorded(self, epoch, max_epochs):
        states.append({key: value.clone() for key, value in self.state_dict().items()})
        begin_epoch(self, epoch, max_epochs)

    monkeypatch.setattr(PCBNetwork, "begin_epoch", recorded)
    train(tiny_config(*rpp_of_three_epochs("evaluation.every_n_epochs=1")), tmp_path)
    first, second, third = states
    moved = {key for key in first if not torch.equal(second[key], third[key])}
    assert moved == {"pooling.scores.weight", "pooling.scores.bias", "pooling.on"}
    assert not torch.equal(first["backbone.bn1.running_mean"], second["backbone.bn1.running_mean"])


@pytest.mark.parametrize("model", ["pcb", "mgn", "bdb"])
def test_the_backbone_has_a_rate_of_its_own(model, tiny_config):
    config = tiny_config(*TRUNK, f"model={model}", "optimizer=sgd", "optimizer.lr=0.1", "backbone_rate=0.1")
    module = training_module(config)
    network, made = module.network, module.configure_optimizers()
    schedule = made["lr_scheduler"]["scheduler"]
    rates = {id(p): group["initial_lr"] for group in made["optimizer"].param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates.pop(id(parameter)) == pytest.approx(0.01 if name.startswith(("backbone.", "copies.")) else 0.1)
    assert not rates
    factor = schedule.lr_lambdas[0](0)
    assert schedule.get_last_lr() == pytest.approx([0.1 * factor, 0.01 * factor])


def test_without_a_rate_of_the_backbone_there_is_one_group(tiny_config):
    config = tiny_config(*TRUNK, "model=baseline")
    module = training_module(config)
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module.network.parameters()]


@pytest.mark.parametrize("rate", ["0", "-1", "fast"])
def test_a_rate_of_the_backbone_that_is_none_is_refused(rate, tiny_config):
    config = tiny_config("model=baseline", f"backbone_rate={rate}")
    with pytest.raises(ConfigError, match="backbone_rate"):
        check_settings(config, "train")


def test_a_run_does_not_go_on_at_another_rate_of_the_backbone(tiny_config, tmp_path):
    config = ["model=baseline", "loss=none", "trainer.max_epochs=1"]
    train(tiny_config(*config), tmp_path)
    with pytest.raises(ConfigError, match=r"backbone_rate was None, is 0\.1"):
        train(tiny_config(*config, "backbone_rate=0.1", "ckpt_path=last"), tmp_path)


def test_starting_weights_reach_every_copy(tiny_config, tmp_path):
    train(tiny_config(*TRUNK, "model=baseline", "loss=none", "trainer.max_epochs=1"), tmp_path)
    network, loaded = build_network(
        tiny_config("backbone=resnet18", f"backbone.weights={tmp_path / 'last.ckpt'}", "model=mgn"), 4
    )
    trained = weights_of(tmp_path)["network.backbone.layer4.1.conv2.weight"]
    assert loaded == ["backbone"]
    assert all(torch.equal(copy[-1].conv2.weight, trained) for copy in network.copies.values())
