"""Trainings of 1, 2 and 4 processes beside one another: how far losses, batch-norm statistics and weights are apart.

    python experiments/benchmarks/ranks_agree.py
    python experiments/benchmarks/ranks_agree.py --ranks 2 --epochs 1

Each row is a whole `bdbnet.train` of rendered people on CPUs (gloo) under Lightning, with `trainer.sync_batchnorm=true` or
without it, compared with the training of one process: the largest difference of an epoch's loss (relative), of a running
mean or variance of a layer, and of a weight. In float32 Adam follows the last bits of gradients that are zero but for rounding,
such as those of a bias below batch normalisation: such biases have no effect on the output and have a column of their own. That
the ranks compute the same but for rounding is shown in float64 by `tests/training/test_distributed.py`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backbone", default="osnet_x0_25")
    parser.add_argument("--data-root", default=None, help="of rendered people (default: rendered for this run)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        data = options.data_root or f"{work}/data"
        alone = trained(options, Path(work), data, 1, synced=False)
        print(f"{options.backbone} BDB, 16 images a batch, 64 x 32, {options.epochs} epochs, float32")
        print(
            f"{'processes':>9}  {'sync_batchnorm':<14}{'loss':>10}{'mean':>10}{'variance':>10}{'weight':>10}{'no effect':>11}"
        )
        for synced in (True, False):
            for ranks in options.ranks:
                if ranks > 1:
                    found = differences(alone, trained(options, Path(work), data, ranks, synced=synced))
                    print(
                        f"{ranks:9}  {str(synced).lower():<14}" + "".join(f"{value:10.1e}" for value in found),
                        flush=True,
                    )


def trained(options: argparse.Namespace, work: Path, data: str, ranks: int, *, synced: bool) -> Path:
    """The run folder of a training."""
    name = f"{ranks}-{synced}"
    subprocess.run(
        [
            sys.executable, "-m", "bdbnet.train", f"data_root={data}", f"output_root={work}", f"run_name={name}",
            *(f"dataset.options.{key}" for key in ("train_identities=32", "test_identities=4", "images_per_camera=2",
                                                    "cameras=2", "distractors=2", "image_size=[32,16]", "workers=1")),
            "dataset.image_size=[64,32]", f"backbone={options.backbone}", "sampler.batch_size=16", "loading.num_workers=0",
            f"trainer.max_epochs={options.epochs}", "trainer.precision=32-true", "trainer.accelerator=cpu",
            f"trainer.devices={ranks}", "trainer.strategy=ddp", f"trainer.sync_batchnorm={str(synced).lower()}",
            "callbacks.progress=false",
        ],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return work / "train" / name


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
