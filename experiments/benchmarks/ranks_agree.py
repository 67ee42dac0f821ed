"""Trainings of 1, 2 and 4 processes beside one another: how far losses, batch-norm statistics and weights are apart.

    python experiments/benchmarks/ranks_agree.py
    python experiments/benchmarks/ranks_agree.py --steps 1 --precision 64-true --optimizer sgd
    python experiments/benchmarks/ranks_agree.py --ranks 2 --epochs 1

Each row is a whole `bdbnet.train` of rendered people on CPUs (gloo) under Lightning, compared with the training of one process:
the largest difference of an epoch's loss (relative), of a running mean or variance of a layer, and of a weight. Biases below batch
normalisation have no effect on the output and a gradient that is zero but for rounding, which Adam follows: they have a column of
their own.

Trainings of random weights are chaotic: a difference in the last digit grows about tenfold with every step. So there is a row
"control": one process again, whose starting weights are changed by one part in 1e7 (in float64: 1e15). Ranks that compute the same
but for rounding are as far from one process as the control is, and after one step (`--steps 1`) in float64 they are equal to 1e-12.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

ROUNDING = {"32-true": 1e-7, "64-true": 1e-15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="end after so many steps (default: after the epochs)")
    parser.add_argument("--precision", choices=ROUNDING, default="32-true")
    parser.add_argument("--optimizer", default="adam", help="a name of conf/optimizer")
    parser.add_argument("--lr", type=float, help="learning rate (default: that of the optimizer's file)")
    parser.add_argument("--backbone", default="osnet_x0_25")
    parser.add_argument("--data-root", default=None, help="of rendered people (default: rendered for this run)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        alone = trained(options, work, "alone", 1)
        length = f"{options.epochs} epochs" if options.steps is None else f"{options.steps} steps"
        rate = "" if options.lr is None else f" at {options.lr:g}"
        print(
            f"{options.backbone} BDB, 16 images a batch, 64 x 32, {length}, {options.precision}, {options.optimizer}{rate}"
        )
        titles = "".join(f"{title:>10}" for title in ("loss", "mean", "variance", "weight", "no effect"))
        print(f"{'processes':>9}  {'sync_batchnorm':<14}{titles}")
        report(
            "1",
            "(control)",
            differences(alone, trained(options, work, "control", 1, change=ROUNDING[options.precision])),
        )
        for synced in (True, False):
            for ranks in options.ranks:
                text = str(synced).lower()
                report(
                    str(ranks),
                    text,
                    differences(alone, trained(options, work, f"{ranks}-{text}", ranks, synced=synced)),
                )


def report(ranks: str, synced: str, found: tuple[float, ...]) -> None:
    print(f"{ranks:>9}  {synced:<14}" + "".join(f"{value:10.1e}" for value in found), flush=True)


def trained(
    options: argparse.Namespace, work: Path, name: str, ranks: int, *, synced: bool = False, change: float = 0.0
) -> Path:
    """The run folder of a training."""
    data = options.data_root or f"{work}/data"
    length = [] if options.steps is None else [f"+trainer.max_steps={options.steps}"]
    rate = [] if options.lr is None else [f"optimizer.lr={options.lr}"]
    changed = (
        ["plugins=[ranks_agree]", f"callbacks.extra=[{{_target_: ranks_agree.ChangedStart, by: {change}}}]"]
        if change
        else []
    )
    subprocess.run(
        [
            sys.executable, "-m", "bdbnet.train", f"data_root={data}", f"output_root={work}", f"run_name={name}",
            *(f"dataset.options.{key}" for key in ("train_identities=32", "test_identities=4", "images_per_camera=2",
                                                    "cameras=2", "distractors=2", "image_size=[32,16]", "workers=1")),
            "dataset.image_size=[64,32]", f"backbone={options.backbone}", "sampler.batch_size=16", "loading.num_workers=0",
            f"trainer.max_epochs={options.epochs}", *length, f"optimizer={options.optimizer}", *rate, *changed,
            f"trainer.precision={options.precision}", "trainer.accelerator=cpu", f"trainer.devices={ranks}",
            "trainer.strategy=ddp", f"trainer.sync_batchnorm={str(synced).lower()}", "callbacks.progress=false",
        ],
        check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))},
    )  # fmt: skip
    return work / "train" / name


class ChangedStart(Callback):
    """Change every starting weight by about one part in `1 / by`."""

    def __init__(self, by: float) -> None:
        self.by = by

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_((1 + self.by * noise).to(parameter.dtype))


def differences(alone: Path, together: Path) -> tuple[float, ...]:
    """Largest difference of: an epoch's loss (relative), running means, variances, weights, and biases that have no effect."""
    losses = [pd.read_csv(folder / "history.csv")["loss"] for folder in (alone, together)]
    states = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (alone, together)]
    largest = dict.fromkeys(("running_mean", "running_var", "weight", "no effect"), 0.0)
    for key in states[0].keys() - {key for key in states[0] if key.endswith(("num_batches_tracked", "step"))}:
        part = key.rpartition(".")[2]
        kind = "no effect" if key.endswith("reduction.0.bias") else part if part in largest else "weight"
        apart = (states[0][key].double() - states[1][key].double()).abs().max().item()
        largest[kind] = max(largest[kind], apart)
    return ((losses[0] - losses[1]).abs() / losses[0]).max(), *largest.values()


if __name__ == "__main__":
    main()
