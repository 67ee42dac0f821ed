"""What is decided before a run starts."""

import ctypes

import pytest
import torch

from bdbnet.evaluation.trainer import keep_freed_memory
from bdbnet.training.setup import has_native_bfloat16, resolve_precision


@pytest.mark.parametrize(
    ("native", "precision", "channels_last"), [(True, "bf16-mixed", True), (False, "32-true", False)]
)
def test_auto_takes_bfloat16_where_it_is_native(native, precision, channels_last, tiny_config, monkeypatch):
    monkeypatch.setattr("bdbnet.training.setup.has_native_bfloat16", lambda accelerator: native)
    config = tiny_config("trainer.precision=auto")
    resolve_precision(config)
    assert (config.trainer.precision, config.trainer.channels_last) == (precision, channels_last)


def test_what_the_user_chose_stays(tiny_config):
    config = tiny_config("trainer.precision=32-true", "trainer.channels_last=true")
    resolve_precision(config)
    assert (config.trainer.precision, config.trainer.channels_last) == ("32-true", True)


def test_a_processor_that_cannot_be_asked_has_no_native_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert has_native_bfloat16("auto") is False


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()


def test_kept_memory_leaves_results_alone(tiny_config):
    product = torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    keep_freed_memory()
    assert torch.equal(torch.ones(2000, 2000) @ torch.ones(2000, 2000), product)
