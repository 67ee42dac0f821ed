"""From a configuration to the objects that a training needs."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from bdbnet.config import ConfigError, instantiate, plain
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.test_set import TestSet
from bdbnet.evaluation.trainer import on_gpu
from bdbnet.models import EmbeddingNetwork, read_checkpoint
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.module import Recipe, Record, TrainingModule
from bdbnet.training.objective import build_center_loss, build_metric_loss, build_schedule, optimizer_factory


def has_native_bfloat16(accelerator: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware, where it is several times as fast as float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator in ("auto", "cpu"):
        # Not public in PyTorch, so that a release may drop them: then the answer is no.
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe is not None and probe() for probe in probes)
    return False


def resolve_precision(config: DictConfig) -> None:
    """Replace ``auto`` in ``trainer.precision`` and ``trainer.channels_last`` by what this device is fastest with."""
    trainer = config.trainer
    if trainer.precision == "auto":
        trainer.precision = "bf16-mixed" if has_native_bfloat16(trainer.accelerator) else "32-true"
    if trainer.channels_last == "auto":
        # On a CPU in float32, too: with channels first a BDB step takes 1.1 times as long with a ResNet, 1.4 to 1.6 times with
        # OSNet x0.25 (experiments/benchmarks/README.md).
        half = str(trainer.precision) in ("bf16-mixed", "16-mixed")
        trainer.channels_last = half or not on_gpu(trainer)


#: What compiling the whole step saves per image of a GPU: forward and backward pass of ResNet-50 at 384 x 128 in bfloat16 on an
#: H100 take 336 microseconds, and 268 compiled. Smaller networks gain in launches what they lose in memory traffic.
SAVED_PER_IMAGE = 68e-6
#: Seconds of compiling forward and backward pass of ResNet-50 for the first time: an assumption, to be measured.
COMPILATION = 60.0


def resolve_compile(config: DictConfig, steps: int, resume: Path | None = None) -> str | None:
    """Replace ``auto`` in ``trainer.compile``: true on a GPU if the run is long enough to repay the compilation.

    Args:
        steps: of an epoch.
        resume: checkpoint from which the run resumes; what is behind it saves nothing.

    Returns:
        Why it was decided so, where it was.

    Raises:
        ConfigError: CUDA graphs and accumulated gradients.
    """
    trainer = config.trainer
    if trainer.compile == "reduce-overhead" and (trainer.get("accumulate_grad_batches") or 1) > 1:
        raise ConfigError(
            "trainer.compile=reduce-overhead can't accumulate gradients, which lie in memory that its next step writes over: leave "
            "trainer.accumulate_grad_batches out, or set trainer.compile=true"
        )
    if trainer.compile != "auto":
        return None
    trainer.compile = False
    if not on_gpu(trainer):  # as everyone expects there
        return None
    if trainer.deterministic:
        return "off, because of trainer.deterministic"
    most = trainer.get("max_steps") or -1
    left = steps * trainer.max_epochs if most < 0 else min(most, steps * trainer.max_epochs)
    if resume is not None:
        left = max(left - int(read_checkpoint(resume).get("global_step", 0)), 0)
    saved = left * config.sampler.batch_size / (devices_of(trainer) * trainer.num_nodes) * SAVED_PER_IMAGE
    trainer.compile = saved > COMPILATION
    outcome = "on" if trainer.compile else "off"
    return f"{outcome}: {left:,} steps save about {saved:.0f} s, compiling takes about {COMPILATION:.0f} s"


def devices_of(trainer: DictConfig) -> int:
    """Number of GPUs of this machine that `trainer.devices` names: a number, a list, a text such as "0,1"; all for -1 or auto."""
    devices = trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices)
    if text in ("-1", "auto"):
        return max(torch.cuda.device_count(), 1)
    return len([part for part in text.split(",") if part.strip()]) if "," in text else int(text)


def extra_callbacks(config: DictConfig) -> list[pl.Callback]:
    """The callbacks of ``callbacks.extra``.  Raises ConfigError that names the key and the entry."""
    listed = config.callbacks.extra
    if not OmegaConf.is_list(listed):
        raise ConfigError(f"callbacks.extra={listed}: give a list of callbacks, [{{_target_: ...}}]")
    found = []
    for number, entry in enumerate(listed):
        callback = instantiate(entry) if OmegaConf.is_dict(entry) else entry
        if not isinstance(callback, pl.Callback):
            raise ConfigError(
                f"callbacks.extra[{number}]={entry}: is no callback; give the _target_ of a class of "
                "pytorch_lightning.callbacks or of a plugin"
            )
        found.append(callback)
    return found


def build_recipe(config: DictConfig, network: EmbeddingNetwork, num_classes: int) -> Recipe:
    """Losses, optimizer and schedule.  Raises ConfigError that names the key."""
    loss, rate = config.loss, config.backbone_rate
    criterion = BranchLosses(
        build_metric_loss(config, network, num_classes), name=loss.name, metric_weight=loss.metric_weight,
        softmax_weight=loss.softmax_weight, label_smoothing=loss.label_smoothing,
        center=build_center_loss(config, network, num_classes), center_weight=loss.get("center_weight") or 0.0,
    )  # fmt: skip
    compiled = config.trainer.compile if config.trainer.compile != "auto" else False  # undecided: see `resolve_compile`
    schedule, decay = build_schedule(config), config.averaging.decay
    return Recipe(criterion, optimizer_factory(config.optimizer), schedule, rate, compiled, decay)


def build_module(
    config: DictConfig, embedder: Embedder, tests: list[TestSet], num_classes: int, fingerprint: str | None = None
) -> TrainingModule:
    """The module that is trained."""
    return TrainingModule(
        embedder,
        tests,
        build_recipe(config, embedder.network, num_classes),
        Record(plain(config), num_classes, fingerprint),
    )
