"""What is decided before a run starts."""

import ctypes

import pytest
import torch
from lightning_utilities.core.imports import RequirementCache

from bdbnet.command_line import one_logger_each
from bdbnet.config import ConfigError, instantiate
from bdbnet.evaluation.trainer import build_trainer, keep_freed_memory
from bdbnet.models import BDBNetwork
from bdbnet.renamed import with_todays_keys
from bdbnet.training.setup import extra_callbacks, has_native_bfloat16, resolve_precision
from bdbnet.training.sync_norm import BatchNormOverRanks, layer_sync_of


@pytest.mark.parametrize(
    ("gpu", "native", "precision", "channels_last"),
    [
        (False, True, "bf16-mixed", True),
        (False, False, "32-true", True),
        (True, True, "bf16-mixed", True),
        (True, False, "32-true", False),
    ],
)
def test_auto_takes_what_is_fastest_there(gpu, native, precision, channels_last, tiny_config, monkeypatch):
    monkeypatch.setattr("bdbnet.training.setup.has_native_bfloat16", lambda accelerator: native)
    monkeypatch.setattr("bdbnet.training.setup.on_gpu", lambda settings: gpu)
    config = tiny_config("trainer.precision=auto")
    resolve_precision(config)
    assert (config.trainer.precision, config.trainer.channels_last) == (precision, channels_last)


@pytest.mark.parametrize(
    ("gpu", "typed", "benchmark"),
    [
        (False, [], False),
        (True, [], True),
        (True, ["trainer.deterministic=true"], False),
        (True, ["trainer.benchmark=false"], False),
        (False, ["+trainer.benchmark=true"], True),
    ],
)
def test_cudnn_chooses_on_gpus_unless_it_has_to_be_deterministic(
    gpu, typed, benchmark, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("bdbnet.evaluation.trainer.on_gpu", lambda settings: gpu)
    given = {}
    monkeypatch.setattr("pytorch_lightning.Trainer", lambda **settings: given.update(settings))
    build_trainer(tiny_config(*with_todays_keys(typed)[0]), tmp_path, [])
    assert given["benchmark"] is benchmark


def test_what_the_user_chose_stays(tiny_config):
    config = tiny_config("trainer.precision=32-true", "trainer.channels_last=false")
    resolve_precision(config)
    assert (config.trainer.precision, config.trainer.channels_last) == ("32-true", False)


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


def test_every_logger_of_a_list_is_the_trainer_s(tiny_config, tmp_path):
    typed = one_logger_each(["logger=[tensorboard,csv]"])
    kept = [
        f"logger.logger.save_dir={tmp_path}",
        "+logger@loggers.second=tensorboard",
        f"loggers.second.logger.save_dir={tmp_path}",
    ]
    trainer = build_trainer(tiny_config(*typed, *kept, "loggers.second.logger.name=second"), tmp_path, [])
    assert [(type(logger).__name__, logger.name) for logger in trainer.loggers] == [
        ("TensorBoardDashboard", "tensorboard"), ("TensorBoardDashboard", "second")
    ]  # fmt: skip
    assert build_trainer(tiny_config("logger=csv"), tmp_path, []).loggers == []


def test_a_logger_whose_package_is_missing_says_what_to_install(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.loggers.mlflow._MLFLOW_AVAILABLE", RequirementCache("mlflow>=1000"))
    config = tiny_config("logger=mlflow", f"logger.logger.save_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"MLFlowLogger.*pip install"):
        build_trainer(config, tmp_path, [])


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_named(name, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"trainer.accelerator={name}: PyTorch finds no GPU here; use auto or cpu"):
        build_trainer(tiny_config(f"trainer.accelerator={name}"), tmp_path, [])


def test_statistics_of_all_images_are_our_own_on_a_cpu_and_pytorchs_on_a_gpu(tiny_config, tmp_path, monkeypatch):
    two = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.sync_batchnorm=true"]
    network = BDBNetwork(2, "osnet_x0_25")
    assert layer_sync_of(tiny_config("trainer.devices=2"), network) is None
    config = tiny_config(*two)
    trainer = build_trainer(config, tmp_path, [], layer_sync_of(config, network))
    assert isinstance(trainer.strategy._layer_sync, BatchNormOverRanks)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert layer_sync_of(tiny_config(*two, "trainer.accelerator=gpu"), network) is None


@pytest.mark.parametrize(
    "callback", ["EarlyStopping, monitor: loss", "GradientAccumulationScheduler, scheduling: {1: 2}", "Timer"]
)
def test_callbacks_of_lightning_can_be_added(callback, tiny_config):
    (built,) = instantiate(
        tiny_config(f"callbacks.extra=[{{_target_: pytorch_lightning.callbacks.{callback}}}]").callbacks.extra
    )
    assert type(built).__name__ == callback.partition(",")[0]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("[{_target_: [os.system]}]", r"_target_=\['os.system'\]: give the dotted path of a class"),
        ("[{_target_: os.system, command: id}]", "os.system is not on the allow-list"),
        ("[[os.system]]", r"callbacks.extra\[0\]=\['os.system'\]: is no callback"),
        ("[5]", r"callbacks.extra\[0\]=5: is no callback"),
        ("[{_target_: torch.optim.SGD, params: []}]", "SGD|is no callback"),
        ("text", "callbacks.extra=text: give a list of callbacks"),
    ],
)
def test_what_is_no_callback_is_refused(typed, message, tiny_config):
    with pytest.raises(ConfigError, match=message):
        extra_callbacks(tiny_config(f"callbacks.extra={typed}"))


def test_callbacks_of_lightning_are_taken(tiny_config):
    config = tiny_config("callbacks.extra=[{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: mAP}]")
    assert [type(callback).__name__ for callback in extra_callbacks(config)] == ["EarlyStopping"]


@pytest.mark.parametrize("typed", ["{_target_: bdbnet.models.BDBNetwork, _partial_: true}", "text", "[1]"])
def test_what_is_no_logger_is_refused(typed, tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"logger\.logger=.*: is no logger"):
        build_trainer(tiny_config(f"++logger.logger={typed}"), tmp_path, [])
