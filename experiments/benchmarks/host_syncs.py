"""Whether the host ever waits for the device while a training runs: 200 steps of `bdbnet.train` under the profiler.

    python experiments/benchmarks/host_syncs.py
    python experiments/benchmarks/host_syncs.py --steps 50 dataset=synthetic_reid backbone=osnet_x0_25 sampler.batch_size=8

Everything between two steps is in it: loading, callbacks, logging, the learning rate. The table counts the events at which the
host reads a number of a tensor or waits for queued work, and says of each which function of which file asked for it. On a GPU
`cudaEventSynchronize` belongs to `HostCopy`: it waits for the step before the last, whose numbers have long been there. On a
CPU nothing is queued, and the count says where a GPU would be waited for. Further arguments are those of `bdbnet.train`; with
a GPU the defaults are a ResNet-50 with batches of 128 and the training images on the device.
"""

import argparse
import collections
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from bdbnet.config import config_dir
from bdbnet.training import runs

#: Steps of one recording: with the Python functions of 200 steps it takes 18 GB of memory.
_PART = 5
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize",
         "cudaEventSynchronize")  # fmt: skip
SMALL = ("dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=16", "loading.num_workers=0")
LARGE = ("backbone.weights=none", "loading.cache=device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm", type=int, default=5, help="steps before them (default: %(default)s)")
    parser.add_argument("settings", nargs="*", help="of bdbnet.train")
    options = parser.parse_args()

    steps = Steps(options.warm, options.steps)
    built = runs._callbacks
    runs._callbacks = lambda *arguments, **settings: [steps, *built(*arguments, **settings)]
    with tempfile.TemporaryDirectory() as folder:
        chosen = LARGE if torch.cuda.is_available() else SMALL
        fixed = ["trainer.max_epochs=1000", f"+trainer.max_steps={options.warm + options.steps + 1}", "run_name=syncs"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(
                "train", [*chosen, *fixed, f"output_root={folder}", "callbacks.progress=false", *options.settings]
            )
        try:
            runs.train(config, Path(folder) / "run")
        except Measured:
            steps.report()


class Measured(Exception):
    """All steps are done."""


class Steps(pl.Callback):
    """Profiles the steps from `warm` on; it is the first callback, so that the others are in it."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps = warm, steps
        self.profile: torch.profiler.profile | None = None
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        done = trainer.global_step - self.warm
        if self.profile is not None and (done % _PART == 0 or done == self.steps):
            self.profile.stop()
            self._count(self.profile)
            self.profile = None
        if done == self.steps:
            raise Measured
        if done >= 0 and done % _PART == 0:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profile = torch.profiler.profile(activities=activities, with_stack=True)
            self.profile.start()

    def _count(self, profile: torch.profiler.profile) -> None:
        for event in profile.events():
            if event.name in WAITS:
                self.counts[event.name, _asked_by(event)] += 1

    def report(self) -> None:
        print(f"{self.steps} steps; a step and what is around it:")
        if not self.counts:
            print("the host never waits")
        for (name, place), count in self.counts.most_common():
            print(f"{count / self.steps:8.2f}  {name:28}{place}")


def _asked_by(event: torch.autograd.profiler_util.FunctionEvent) -> str:
    """The innermost frame of ours, of Lightning or of torchmetrics; the profiler lists Python functions as parents."""
    parent = event.cpu_parent
    outer = ""
    while parent is not None:
        outer = parent.name
        if any(f"{package}/" in outer for package in ("bdbnet", "pytorch_lightning", "torchmetrics")):
            return "/".join(outer.split("/")[-2:])
        parent = parent.cpu_parent
    return outer


if __name__ == "__main__":
    main()
