"""From typing the command to the first training step, against importing the libraries alone.

    python experiments/benchmarks/startup.py [dataset=market1501 backbone=osnet_x0_25 ...]

Data must be in place; the default set is rendered first if it is not. The arguments are those of `python -m bdbnet.train`.
"""

import statistics
import subprocess
import sys
import tempfile
import time

FLOOR = "import torch, torchvision, pytorch_lightning, torchmetrics, hydra, pandas"
TO_FIRST_STEP = """
import os, sys
from bdbnet.training.module import TrainingModule
def stop(self, batch, index):
    os.write(1, b"first step\\n")
    os._exit(0)
TrainingModule.on_train_batch_start = stop
sys.argv = ["bdbnet.train", *sys.argv[1:]]
from bdbnet.train import main
main()
"""
ROUNDS = 5


def seconds(code: str, *arguments: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode or (arguments and "first step" not in done.stdout):
        sys.exit(f"failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    arguments = sys.argv[1:] or ["dataset=synthetic_reid", "backbone.weights=none"]
    with tempfile.TemporaryDirectory() as folder:
        arguments += [f"output_root={folder}", "overwrite=true"]
        seconds(TO_FIRST_STEP, *arguments)  # renders, and warms the disk cache
        pairs = [(seconds(FLOOR), seconds(TO_FIRST_STEP, *arguments)) for _ in range(ROUNDS)]
    imports, first_step = (statistics.median(times) for times in zip(*pairs))
    print(f"importing the libraries      {imports:6.2f} s")
    print(f"start to first training step {first_step:6.2f} s")
    print(f"ratio {first_step / imports:.2f}")


if __name__ == "__main__":
    main()
