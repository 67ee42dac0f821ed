"""The processor time of a training: what the system counts, over loader workers, ranks and resumed parts."""

import os
from types import SimpleNamespace

import pytest
import torch

from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.trainer import sum_of_ranks
from bdbnet.results import read_result
from bdbnet.training import processor_time
from bdbnet.training.processor_time import ProcessorTime
from bdbnet.training.runs import train


def of_the_system() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_a_training_records_what_the_system_counts_and_a_resumed_one_adds_to_it(tiny_config, tmp_path):
    began = of_the_system()
    result = train(tiny_config("trainer.max_epochs=1", "loading.num_workers=1"), tmp_path)
    taken = of_the_system() - began
    assert result.processor_seconds is not None
    assert 0.5 * taken < result.processor_seconds <= taken + 0.05  # a little is written after the record
    assert read_result(tmp_path / "result.json").processor_seconds == result.processor_seconds
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["processor_seconds"]
    assert 0 < kept <= result.processor_seconds + 0.01
    began = of_the_system()
    again = train(tiny_config("trainer.max_epochs=1", "loading.num_workers=0", "ckpt_path=last"), tmp_path)
    assert again.processor_seconds is not None
    assert kept < again.processor_seconds <= kept + of_the_system() - began + 0.05


def test_an_evaluation_records_it_too(finished_run, tiny_config, tmp_path):
    config = tiny_config(f"checkpoint={finished_run / 'last.ckpt'}", "trainer.accelerator=cpu", command="evaluate")
    began = of_the_system()
    found = evaluate(config, tmp_path).processor_seconds
    assert found is not None
    assert 0 < found <= of_the_system() - began + 0.05


@pytest.fixture
def counted(monkeypatch):
    """A clock that a test sets, and a trainer of three ranks with equal numbers."""
    now = SimpleNamespace(seconds=10.0)
    monkeypatch.setattr(processor_time, "processor_seconds", lambda: now.seconds)
    reduce = lambda tensor, reduce_op: {"sum": 3 * tensor}[reduce_op]  # noqa: E731
    return now, SimpleNamespace(strategy=SimpleNamespace(reduce=reduce, root_device=torch.device("cpu")))


def test_ranks_and_parts_are_added_up(counted):
    now, trainer = counted
    assert sum_of_ranks(trainer, 2.0) == 6.0
    first = ProcessorTime()
    now.seconds += 2.0
    checkpoint: dict[str, float] = {}
    first.on_save_checkpoint(trainer, None, checkpoint)
    now.seconds = 0.0  # another process
    second = ProcessorTime()
    second.on_load_checkpoint(trainer, None, checkpoint)
    now.seconds = 5.0
    assert second.total(trainer) == 3 * (2.0 + 5.0)


def test_a_run_whose_first_part_was_not_counted_has_none(counted):
    _, trainer = counted
    clock = ProcessorTime()
    clock.on_load_checkpoint(trainer, None, {})
    assert clock.total(trainer) is None
