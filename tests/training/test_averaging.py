"""The moving average of the weights: its numbers, what is evaluated and kept, and that the training does not notice it."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import bdbnet
from bdbnet.config import ConfigError
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.models import CheckpointError
from bdbnet.results import read_result
from bdbnet.stopping import Stopped
from bdbnet.training.averaging import WeightAverage
from bdbnet.training.module import TrainingModule
from bdbnet.training.runs import train

SETTINGS = ["evaluation.before_training=true", "evaluation.every_n_epochs=1", "averaging.decay=0.5"]
Weights = dict[str, torch.Tensor]


def content(folder: Path, name: str = "last.ckpt") -> dict:
    return torch.load(folder / name, weights_only=True)


def network_of(folder: Path, name: str = "last.ckpt") -> Weights:
    state = content(folder, name)["state_dict"]
    return {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}


def equal(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def averaged(states: list[Weights], decay: float) -> Weights:
    """The average after the last of the states, the first of which it begins with; in double precision, one tensor at a time."""
    found = {key: value.double() for key, value in states[0].items()}
    for update, state in enumerate(states[1:], start=1):
        kept = min(decay, (1 + update) / (10 + update))
        for key, value in state.items():
            whole = not value.is_floating_point()
            found[key] = value.double() if whole else kept * found[key] + (1 - kept) * value.double()
    return found


def close(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key].double(), theirs[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.fixture
def states(monkeypatch) -> list[Weights]:
    """The network's state at the start of a training and after every step of its optimizer."""
    found: list[Weights] = []
    begin, step = TrainingModule.on_train_start, TrainingModule.optimizer_step

    def note(module: TrainingModule) -> None:
        found.append(copy.deepcopy(dict(module.network.state_dict())))

    monkeypatch.setattr(TrainingModule, "on_train_start", lambda self: (begin(self), note(self)))
    monkeypatch.setattr(TrainingModule, "optimizer_step", lambda self, *a, **b: (step(self, *a, **b), note(self)))
    return found


@pytest.mark.parametrize("decay", [0.15, 0.3, 0.9])
def test_the_average_is_that_of_a_loop_over_all_weights(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average, states = WeightAverage(network, decay), [copy.deepcopy(network.state_dict())]
    for _ in range(12):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        average.update()
        states.append(copy.deepcopy(network.state_dict()))
    own = [parameter.data_ptr() for parameter in network.parameters()]
    with average.applied():
        close(network.state_dict(), averaged(states, decay))
        assert network[1].num_batches_tracked == 12
    assert equal(network.state_dict(), states[-1])
    assert [parameter.data_ptr() for parameter in network.parameters()] == own  # recorded graphs point to them


def test_tensors_that_two_layers_share_change_places_once():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    average = WeightAverage(network, 0.9)
    before = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(1)
    with average.applied():
        assert torch.equal(network[0].weight, before)
        assert network[1].weight is network[0].weight
    assert torch.equal(network[0].weight, before + 1)


def test_the_average_follows_a_network_to_another_precision():
    network = nn.Linear(3, 3)
    average = WeightAverage(network, 0.9)
    network.double()
    with torch.inference_mode():
        average.follow()
    average.update()
    with average.applied():
        assert network.weight.dtype == torch.float64
        assert not network.weight.is_inference()


def test_a_compiled_network_is_not_compiled_again_after_an_evaluation():
    torch._dynamo.reset()
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    average, images = WeightAverage(network, 0.9), torch.randn(8, 3)
    before = compiled(images)
    with torch._dynamo.config.patch(error_on_recompile=True):
        average.update()
        with average.applied():
            pass
        torch.testing.assert_close(compiled(images), before)


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="give a number above 0 and below 1"):
        WeightAverage(nn.Linear(2, 2), decay)


def test_the_average_is_evaluated_and_kept_and_the_training_is_as_without_it(
    states, finished_run, tiny_config, tmp_path, capsys
):
    states.clear()  # of a finished_run that was trained just now
    result = train(tiny_config(*SETTINGS), tmp_path / "run")
    assert "weights: their moving average is evaluated and kept, of decay 0.5" in capsys.readouterr().out
    last, plain = content(tmp_path / "run"), network_of(finished_run)
    trained = network_of(tmp_path / "run") | last["averaging"]["weights"]
    assert equal(trained, plain)
    assert last["averaging"]["updates"] == last["global_step"] == len(states) - 1 == 4
    close(network_of(tmp_path / "run"), averaged(states, 0.5))
    assert not equal(network_of(tmp_path / "run"), plain)
    best = states[: 1 + 2 * result.best["epoch"]]  # of two steps an epoch
    close(network_of(tmp_path / "run", "best.ckpt"), averaged(best, 0.5))
    assert "averaging" not in content(tmp_path / "run", "best.ckpt")

    assert result.config["averaging"] == {"decay": 0.5}
    assert result.before == read_result(finished_run / "result.json").before
    config = tiny_config(f"checkpoint={tmp_path / 'run' / 'last.ckpt'}", command="evaluate")
    assert evaluate(config, tmp_path / "evaluated").metrics == pytest.approx(result.metrics)
    embedder = bdbnet.load(tmp_path / "run" / "last.ckpt")
    assert equal(
        {key: value for key, value in embedder.network.state_dict().items() if key in last["averaging"]["weights"]},
        {key: value for key, value in network_of(tmp_path / "run").items()
         if key in last["averaging"]["weights"] and ".classifier." not in key},
    )  # fmt: skip


def test_what_is_evaluated_has_the_averaged_weights(states, tiny_config, tmp_path, monkeypatch):
    """The embeddings of the last evaluation are those of a network that a loop has averaged."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = TrainingModule.validation_step

    def validation_step(self, batch, *rest):
        found.append((batch["image"].clone(), self.embedder.embed_prepared(batch["image"]).clone()))
        return step(self, batch, *rest)

    monkeypatch.setattr(TrainingModule, "validation_step", validation_step)
    train(tiny_config(*SETTINGS), tmp_path)
    embedder = bdbnet.load(tmp_path / "last.ckpt", device="cpu")
    own, (images, embeddings) = embedder.network.state_dict().keys(), found[-1]

    def largest_difference(state: Weights) -> float:
        embedder.network.load_state_dict({key: state[key] for key in own})
        return float((embedder.embed_prepared(images) - embeddings).abs().max())

    assert largest_difference(averaged(states, 0.5)) < 1e-5 < 1e-3 < largest_difference(states[-1])


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(step, tiny_config, tmp_path, monkeypatch):
    expected = train(tiny_config(*SETTINGS), tmp_path / "whole")
    real = TrainingModule.training_step

    def training_step(self, batch, batch_index):
        if self.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", training_step)
        with pytest.raises(Stopped):
            train(tiny_config(*SETTINGS), tmp_path / "stopped")
    kept = content(tmp_path / "stopped")
    assert kept["averaging"]["updates"] == kept["global_step"] == step
    result = train(tiny_config(*SETTINGS, "ckpt_path=last"), tmp_path / "stopped")
    whole, resumed = content(tmp_path / "whole"), content(tmp_path / "stopped")
    assert equal(network_of(tmp_path / "whole"), network_of(tmp_path / "stopped"))
    assert equal(whole["averaging"]["weights"], resumed["averaging"]["weights"])
    assert whole["averaging"]["updates"] == resumed["averaging"]["updates"] == 4
    assert equal(network_of(tmp_path / "whole", "best.ckpt"), network_of(tmp_path / "stopped", "best.ckpt"))
    assert result.metrics == expected.metrics


def test_steps_count_not_batches(tiny_config, tmp_path):
    train(tiny_config("averaging.decay=0.5", "trainer.accumulate_grad_batches=2"), tmp_path)
    kept = content(tmp_path)
    assert kept["averaging"]["updates"] == kept["global_step"] == 2


def test_a_run_without_an_average_does_not_go_on_with_one(finished_run, tiny_config, tmp_path):
    message = r"averaging\.decay was None, is 0\.5. Resume with those settings, or start a new run .*backbone\.weights="
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(*SETTINGS, f"ckpt_path={finished_run / 'last.ckpt'}"), tmp_path)


def test_a_checkpoint_that_has_lost_its_average_is_refused(tiny_config, tmp_path):
    train(tiny_config(*SETTINGS), tmp_path / "run")
    kept = content(tmp_path / "run")
    del kept["averaging"]
    torch.save(kept, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=r"odd\.ckpt: .*its state is damaged"):
        train(tiny_config(*SETTINGS, f"ckpt_path={tmp_path / 'odd.ckpt'}"), tmp_path / "again")
