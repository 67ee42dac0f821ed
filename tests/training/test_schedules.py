"""The learning rate over a run: the paper's schedule, a cosine, and those of torch."""

import itertools
import math

import pandas as pd
import pytest
import torch

from bdbnet.config import ConfigError
from bdbnet.training import CosineSchedule, PaperSchedule
from bdbnet.training.callbacks import History
from bdbnet.training.objective import build_schedule
from bdbnet.training.runs import train
from bdbnet.training.schedules import by_step
from modules import training_module


def test_the_paper_s_rates_by_epoch():
    """Section 4.1.2: to 1e-3 in 50 epochs, 1e-4 after 200, 1e-5 after 300."""
    schedule = PaperSchedule(400)
    rates = [1e-3 * schedule(epoch) for epoch in range(400)]
    assert rates[:50] == pytest.approx([1e-3 * (epoch + 1) / 50 for epoch in range(50)])
    assert rates[50:200] == pytest.approx([1e-3] * 150)
    assert rates[200:300] == pytest.approx([1e-4] * 100)
    assert rates[300:] == pytest.approx([1e-5] * 100)


#: First epoch, from 0, and the rate from then on, in the 400 epochs of the released code.
RELEASED = [
    (0, 1e-4), (4, 2e-4), (9, 3e-4), (14, 4e-4), (19, 5e-4), (24, 6e-4), (29, 7e-4), (34, 8e-4), (39, 9e-4), (44, 1e-3),
    (199, 1e-4), (299, 1e-5), (400, 0.0),
]  # fmt: skip


def test_the_released_code_s_rates_by_epoch(tiny_config):
    config = tiny_config("schedule=official", "trainer.max_epochs=400")
    assert config.optimizer.lr == 1e-3
    factor = attached(config)[0]["scheduler"].lr_lambdas[0]
    rates = [1e-3 * factor(epoch) for epoch in range(400)]
    expected = [rate for (first, rate), (end, _) in itertools.pairwise(RELEASED) for _ in range(first, end)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("length", [4, 40, 800])
def test_the_released_code_s_rates_keep_their_shape_in_another_length(length):
    """Its epoch numbers from 1 on are stretched too: the shift is one of 400 epochs, not one of the run's."""
    schedule = PaperSchedule(length, staircase=True)
    for epoch in range(length):
        number = 400 * epoch / length + 1
        if number < 50:
            assert schedule(epoch) == pytest.approx((number // 5 + 1) / 10)
        else:
            assert schedule(epoch) == pytest.approx(1 if number < 200 else 0.1 if number < 300 else 0.01)


@pytest.mark.parametrize("length", [1, 3, 40, 401])
def test_another_length_keeps_the_shape(length):
    """Each epoch's factor is that of the 400-epoch schedule at the same share of the run."""
    schedule = PaperSchedule(length)
    for epoch in range(length):
        share = 400 * epoch / length
        if share >= 50:
            assert schedule(epoch) == pytest.approx(1 if share < 200 else 0.1 if share < 300 else 0.01)
        else:
            assert schedule(epoch) == pytest.approx(min(1, (epoch + 1) * 400 / length / 50))


def test_forty_epochs_are_a_tenth_of_the_paper_s():
    schedule = PaperSchedule(40)
    assert [round(schedule(epoch), 6) for epoch in (0, 4, 19, 20, 29, 30)] == [0.2, 1, 1, 0.1, 0.1, 0.01]


def test_no_warm_up_and_no_decay():
    schedule = PaperSchedule(5, warmup_epochs=0, decay_epochs=[])
    assert [schedule(epoch) for epoch in range(5)] == [1] * 5


@pytest.mark.parametrize("settings", [{"decay_epochs": [300, 200]}, {"warmup_epochs": -1}, {"epochs": 0}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError):
        PaperSchedule(10, **settings)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="max_epochs"):
        PaperSchedule(0)


def test_the_cosine_rises_and_falls():
    schedule = CosineSchedule(20, warmup_epochs=5, min_factor=0.1)
    assert [schedule(epoch) for epoch in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for epoch in range(5, 20):
        assert schedule(epoch) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (epoch - 5) / 15)) / 2)


def test_by_step_the_warm_up_takes_as_many_epochs():
    factor = by_step(CosineSchedule(4, warmup_epochs=2), steps_per_epoch=5)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factor(15) == pytest.approx(0.5)
    assert by_step(PaperSchedule(4), 5)(7) == PaperSchedule(4)(1.4)


@pytest.mark.parametrize("settings", [{"warmup_epochs": 10}, {"warmup_epochs": -1}, {"min_factor": 2}])
def test_a_cosine_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ValueError):
        CosineSchedule(10, **settings)


def attached(config) -> tuple[dict, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    return build_schedule(config)(optimizer, lambda: 40), optimizer


TORCH = "torch.optim.lr_scheduler"


@pytest.mark.parametrize(
    "arguments",
    [
        ["ConstantLR"], ["CosineAnnealingLR"], ["CosineAnnealingWarmRestarts", "+schedule.T_0=2"],
        ["CyclicLR", "+schedule.base_lr=0.01"], ["ExponentialLR", "+schedule.gamma=0.9"], ["LinearLR"],
        ["LambdaLR", "+schedule.lr_lambda={_target_: bdbnet.training.PaperSchedule, max_epochs: 3}"],
        ["MultiStepLR", "+schedule.milestones=[1,2]"], ["OneCycleLR"], ["PolynomialLR"], ["ReduceLROnPlateau"],
        ["StepLR", "+schedule.step_size=1"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_every_scheduler_of_torch_is_built(arguments, interval, tiny_config):
    name, *further = arguments
    entry, optimizer = attached(
        tiny_config("schedule=torch", f"schedule._target_={TORCH}.{name}", f"schedule.interval={interval}", *further)
    )
    assert type(entry["scheduler"]).__name__ == name
    assert (entry["interval"], entry["scheduler"].optimizer) == (interval, optimizer)


def test_the_length_of_the_run_is_filled_in_unless_it_is_set(tiny_config):
    base = ["schedule=torch", "trainer.max_epochs=7"]
    assert attached(tiny_config(*base))[0]["scheduler"].T_max == 7
    assert attached(tiny_config(*base, "schedule.interval=step"))[0]["scheduler"].T_max == 40
    assert attached(tiny_config(*base, "+schedule.T_max=3"))[0]["scheduler"].T_max == 3
    cycle = attached(tiny_config(*base, f"schedule._target_={TORCH}.OneCycleLR", "schedule.interval=step"))[0]
    assert cycle["scheduler"].total_steps == 40
    assert cycle["scheduler"].optimizer.param_groups[0]["max_lr"] == 0.1


@pytest.mark.parametrize(
    ("monitor", "mode", "frequency"), [("null", "min", 1), ("loss/triplet_global", "min", 1), ("mAP", "max", 5)]
)
def test_a_plateau_follows_a_loss_or_a_metric(monitor, mode, frequency, tiny_config):
    plateau = ["schedule=torch", f"schedule._target_={TORCH}.ReduceLROnPlateau", f"schedule.monitor={monitor}"]
    entry, _ = attached(tiny_config(*plateau, "evaluation.every_n_epochs=5"))
    assert entry["monitor"] == ("loss" if monitor == "null" else monitor)
    assert (entry["scheduler"].mode, entry["frequency"]) == (mode, frequency)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"schedule._target_={TORCH}.SequentialLR"], "made of other schedulers"),
        (["schedule._target_=torch.optim.Adam.step"], r"schedule._target_.*allow-list"),
        (["+schedule.T_maxx=3"], "T_maxx"),
    ],
)
def test_a_schedule_that_can_t_be_used_is_named(overrides, said, tiny_config):
    with pytest.raises(ConfigError, match=said):
        attached(tiny_config("schedule=torch", *overrides))


def rates_of(folder) -> list[float]:
    return list(pd.read_csv(folder / "history.csv")["learning_rate"])


@pytest.mark.parametrize(
    "schedule",
    [["schedule=cosine", "schedule.warmup_epochs=1"], ["schedule=torch", f"schedule._target_={TORCH}.OneCycleLR"]],
)
def test_a_schedule_by_step_resumes_bit_for_bit(schedule, tiny_config, tmp_path, monkeypatch):
    overrides = [*schedule, "schedule.interval=step", "trainer.max_epochs=3", "optimizer=adamw", "model=baseline"]
    train(tiny_config(*overrides), tmp_path / "whole")
    begin_epoch = History.on_train_epoch_start

    def stop_in_third_epoch(self, trainer, module):
        begin_epoch(self, trainer, module)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop_in_third_epoch)
        with pytest.raises(SystemExit):
            train(tiny_config(*overrides, "callbacks.checkpoint_every_seconds=0"), tmp_path / "stopped")
    train(tiny_config(*overrides, "ckpt_path=last"), tmp_path / "stopped")
    whole, stopped = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    assert rates_of(tmp_path / "whole") == rates_of(tmp_path / "stopped")
    assert len(set(rates_of(tmp_path / "whole"))) > 1


def test_a_warm_up_of_another_length_is_scaled():
    long, short = CosineSchedule(120, warmup_epochs=6, epochs=120), CosineSchedule(20, warmup_epochs=6, epochs=120)
    assert (long.warmup, short.warmup) == (6, 1)
    assert CosineSchedule(20, warmup_epochs=6).warmup == 6
    with pytest.raises(ValueError, match="epochs=0"):
        CosineSchedule(20, epochs=0)


def test_adamw_with_a_cosine_takes_the_steps_of_its_formula(tiny_config):
    """Rates of torch's own cosine, and decoupled weight decay (Loshchilov and Hutter, 2019), in double precision."""
    config = tiny_config(
        "model=baseline", "optimizer=adamw", "optimizer.weight_decay=0.5", "schedule=cosine", "trainer.max_epochs=4"
    )
    module = training_module(config).double()
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    weight = next(module.network.parameters())
    expected, first, second = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=1000)  # steps of a run that has no trainer yet
    for step in range(1, 6):
        weight.grad = torch.randn_like(weight)
        rate = cosine.get_last_lr()[0]
        assert scheduler.get_last_lr() == pytest.approx([rate])
        first = 0.9 * first + 0.1 * weight.grad
        second = 0.999 * second + 0.001 * weight.grad**2
        expected = expected - rate * 0.5 * expected
        expected = expected - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)
        for each in (other, scheduler, cosine):
            each.step()
