"""The training step as one graph: what is in it, that it computes the same, what happens where it can't be compiled."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bdbnet.losses
from bdbnet.config import ConfigError
from bdbnet.losses import BatchHardTripletLoss, MarginLoss
from bdbnet.models import BDBNetwork
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.setup import resolve_compile
from bdbnet.training.step import TrainingStep
from modules import training_module


class Small(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU())


def step_of(
    compile: bool | str = False, loss: Callable[[], nn.Module] = BatchHardTripletLoss, **settings: Any
) -> TrainingStep:
    torch.manual_seed(0)
    branches, backbone = settings.pop("branches", ("global", "dropping")), settings.pop("backbone", Small)
    network = BDBNetwork(4, backbone(), branches=branches, embedding_dims={"global": 8, "dropping": 8}).train()
    return TrainingStep(network, BranchLosses(loss()), compile, **settings)


def batch() -> dict[str, Tensor]:
    images = torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    erased = torch.tensor([[[3, 4, 10, 6], [50, 20, 9, 9]], [[0, 0, 0, 0]] * 2] * 4)
    return {"image": images, "erased": erased, "label": torch.arange(8) // 2}


def numbers(step: TrainingStep) -> dict[str, Tensor]:
    """Losses, weights, statistics, mask counters and gradients after two steps."""
    found = {}
    for number in range(2):
        loss, parts = step(batch())
        loss.backward()
        found |= {f"{number} {name}": part.detach().clone() for name, part in {"loss": loss, **parts}.items()}
    network = step._network
    return found | network.state_dict() | {f"{name}.grad": p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("branches", [("global",), ("dropping",), ("global", "dropping")], ids="+".join)
def test_images_to_losses_are_one_graph(branches):
    torch._dynamo.reset()
    step, data = step_of(branches=branches), batch()
    scale, shift = torch.ones(3), torch.zeros(3)
    found = torch._dynamo.explain(step._compute_all)(data["image"], data["erased"], scale, shift, data["label"])
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.parametrize(
    "name", [name for name in bdbnet.losses.__all__ if name.endswith("Loss") and name != "MarginLoss"]
)
def test_our_losses_are_graphs(name):
    made = getattr(bdbnet.losses, name)
    torch._dynamo.reset()
    found = torch._dynamo.explain(made())(torch.randn(8, 5, requires_grad=True), torch.arange(8) // 2)
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_compiled_or_not_the_numbers_masks_and_erased_pixels_are_the_same():
    torch._dynamo.reset()
    compiled, plain = step_of(True, backend="aot_eager"), step_of()
    found, expected = numbers(compiled), numbers(plain)
    assert (compiled.plan, plain.plan) == ("whole", "nothing")
    assert found.keys() == expected.keys()  # checkpoints have the same keys
    assert found["branches.dropping.drop.step"] == 2  # the trial took no mask
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=lambda why, n=name: f"{n}: {why}")


def test_what_does_not_compile_falls_back_and_says_why_once(capsys):
    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler was found")

    torch._dynamo.reset()
    step = step_of(True, backend=no_compiler)
    found = numbers(step)
    assert step.plan == "nothing"
    assert all(torch.equal(found[name], values) for name, values in numbers(step_of()).items())
    said = capsys.readouterr().out
    assert said.count("torch.compile fails") == 1
    assert "no C++ compiler was found" in said
    assert "trainer.compile=false" in said


class WrongWhenCompiled(Small):
    """The same features; compiled, their gradient is nan."""

    def forward(self, images):
        features = super().forward(images)
        return features + (features * 0).sqrt() if torch.compiler.is_compiling() else features


def test_a_step_whose_compiled_gradients_are_nan_is_not_compiled(capsys):
    torch._dynamo.reset()
    step, plain = (step_of(compile, backbone=WrongWhenCompiled, backend="eager") for compile in (True, False))
    found, expected = numbers(step), numbers(plain)
    assert step.plan == "nothing"
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert "gradients are nan or infinite" in capsys.readouterr().out


class Averaging(torch.nn.Module):
    """A loss with a running mean, which a nan would never leave."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, embeddings, labels):
        loss = (embeddings**2).mean()
        with torch.no_grad():
            self.mean.lerp_(loss.detach(), 0.5)
        return loss + 0 * self.mean


class NanWhenCompiled(Small):
    def forward(self, images):
        features = super().forward(images)
        return features * float("nan") if torch.compiler.is_compiling() else features


def test_the_uncompiled_trial_does_not_begin_where_the_compiled_one_left_a_loss(capsys):
    torch._dynamo.reset()
    step = step_of(True, Averaging, backbone=NanWhenCompiled, backend="eager")
    loss, _ = step(batch())
    assert step.plan == "nothing"
    assert loss.isfinite()


def test_gradients_that_are_nan_anyway_are_no_fault_of_compiling():
    torch._dynamo.reset()
    step = step_of(True, backend="eager")
    with torch.no_grad():
        step._network.backbone[0].weight.fill_(torch.nan)
    step(batch())
    assert step.plan == "whole"


def test_a_loss_that_is_no_graph_runs_beside_the_compiled_network(capsys):
    torch._dynamo.reset()
    step = step_of(True, MarginLoss, backend="eager")
    found = numbers(step)
    assert step.plan == "network"
    assert step._criterion.metric.step == 2 * 2  # both branches, two steps; the trial drew nothing
    assert all(
        torch.allclose(found[name], values, atol=1e-6) for name, values in numbers(step_of(loss=MarginLoss)).items()
    )
    assert capsys.readouterr().out.count("the loss metric runs beside the compiled network") == 1


class Remembering(torch.nn.Module):
    """A loss with a queue and a place in it, which are no buffers."""

    def __init__(self):
        super().__init__()
        self.queue, self.place, self.seen = torch.zeros(4, 8), 0, []

    def forward(self, embeddings, labels):
        self.queue = torch.cat([self.queue[1:], embeddings.detach()[:1, :8]])
        self.place += 1
        return (embeddings**2).mean()


def test_the_trial_leaves_a_loss_without_memory_of_it():
    torch._dynamo.reset()
    compiled, plain = step_of(True, Remembering, backend="eager"), step_of(loss=Remembering)
    for step in (compiled, plain):
        step(batch())
    found, expected = (each._criterion.metric for each in (compiled, plain))
    assert found.place == expected.place == 2  # both branches
    torch.testing.assert_close(found.queue, expected.queue)


def test_a_later_step_that_asks_for_too_many_graphs_goes_on_without(capsys, monkeypatch):
    step = step_of(True, backend="eager")
    first = step(batch())[0]
    assert step.plan == "whole"

    def too_many(*_):
        raise torch._dynamo.exc.FailOnRecompileLimitHit("recompile_limit reached")

    monkeypatch.setattr(step, "_whole", too_many)
    torch.testing.assert_close(step(batch())[0], step_of()(batch())[0], rtol=1, atol=0)
    assert (step.plan, first.isfinite().item()) == ("nothing", True)
    assert (
        "torch.compile fails at a later step: FailOnRecompileLimitHit: recompile_limit reached"
        in capsys.readouterr().out
    )


@torch._dynamo.config.patch(recompile_limit=1)  # monkeypatch would leave the setting hidden from later tests
def test_every_training_of_a_process_is_compiled():
    for seed in range(3):
        step = step_of(True, backend="eager", branches=("dropping",))
        step._network.branches["dropping"].drop.seed = seed
        step(batch())
        assert step.plan == "whole"


def test_a_step_never_waits_for_a_number():
    step = step_of()
    data = {**batch(), "image": torch.randn(8, 3, 64, 32)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss, _ = step(data)
        loss.backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in names
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


# What is chosen before


@pytest.mark.parametrize(
    ("typed", "gpu", "chosen", "said"),
    [
        (["trainer.max_epochs=400"], False, False, None),
        (["trainer.max_epochs=400"], True, True, r"on: 9,200 steps save about 80 s, compiling takes about 60 s"),
        (["trainer.max_epochs=20"], True, False, "off: 460 steps save about 4 s"),
        (["trainer.max_epochs=400", "trainer.devices=4"], True, False, "off: 9,200 steps save about 20 s"),
        (["trainer.max_epochs=400", "trainer.devices=[0,1]"], True, False, "off: 9,200 steps save about 40 s"),
        (["trainer.max_epochs=400", "trainer.devices='0,1,'"], True, False, "off: 9,200 steps save about 40 s"),
        (["trainer.max_epochs=400", "trainer.devices=auto"], True, True, "on: 9,200 steps save about 80 s"),
        (["trainer.max_epochs=400", "+trainer.max_steps=100"], True, False, "off: 100 steps save"),
        (
            ["trainer.max_epochs=400", "trainer.deterministic=true"],
            True,
            False,
            "off, because of trainer.deterministic",
        ),
        (["trainer.compile=true"], True, True, None),
        (["trainer.compile=reduce-overhead"], False, "reduce-overhead", None),
        (["trainer.compile=false"], True, False, None),
    ],
)
def test_compiling_where_it_pays(typed, gpu, chosen, said, tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    config = tiny_config("sampler.batch_size=128", "trainer.accelerator=auto", *typed)
    reason = resolve_compile(config, 23)
    assert config.trainer.compile == chosen
    assert reason == said if said is None else reason.startswith(said)


def test_what_a_resumed_run_has_behind_it_saves_nothing(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    torch.save({"state_dict": {}, "global_step": 8280, "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    config = tiny_config("sampler.batch_size=128", "trainer.accelerator=auto", "trainer.max_epochs=400")
    assert resolve_compile(config, 23, tmp_path / "last.ckpt").startswith("off: 920 steps save about 8 s")


def test_cuda_graphs_and_accumulated_gradients_do_not_go_together(tiny_config):
    config = tiny_config("trainer.compile=reduce-overhead", "trainer.accumulate_grad_batches=2")
    with pytest.raises(ConfigError, match="reduce-overhead can't accumulate gradients"):
        resolve_compile(config, 23)


LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("then", "now", "layout_then", "layout_now"),
    [(True, False, FIRST, FIRST), (False, True, FIRST, FIRST), (True, True, FIRST, LAST), (True, True, LAST, FIRST)],
)
def test_fused_or_not_and_in_any_memory_format_a_training_resumes(then, now, layout_then, layout_now, tiny_config):
    def one_step(module, optimizer):
        torch.manual_seed(2)
        for parameter in module.network.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
        optimizer.step()

    first = training_module(tiny_config(f"optimizer.fused={then}"))
    first.network.to(memory_format=layout_then)
    before = first.configure_optimizers()["optimizer"]
    one_step(first, before)
    checkpoint = {"optimizer_states": [copy.deepcopy(before.state_dict())], "state_dict": first.state_dict()}
    second = training_module(tiny_config(f"optimizer.fused={now}"))
    second.network.to(memory_format=layout_now)
    second.load_state_dict(first.state_dict())
    second.on_load_checkpoint(checkpoint)
    after = second.configure_optimizers()["optimizer"]
    after.load_state_dict(checkpoint["optimizer_states"][0])
    assert after.param_groups[0]["fused"] is now
    one_step(first, before)
    one_step(second, after)
    for one, other in zip(first.network.parameters(), second.network.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
