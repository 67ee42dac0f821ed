"""Processor time of a start, to the first training step and of --help, against importing the libraries alone.

    python experiments/benchmarks/startup.py [dataset=market1501 backbone=osnet_x0_25 ...]

Data must be in place; the default set is rendered first if it is not. The arguments are those of `python -m bdbnet.train`. Times
are of the process and its children, user and system, the median of several rounds in which all take turns.
"""

import os
import statistics
import subprocess
import sys
import tempfile

#: Imports that nothing which trains with Lightning can do without; torchvision has the networks.
FLOORS = {
    "import torch": "import torch",
    "import torch, pytorch_lightning": "import torch, pytorch_lightning",
    "... and torchvision, pandas, hydra": "import torch, pytorch_lightning, torchvision, pandas, hydra",
    "import hydra": "import hydra",
    "python alone": "pass",
}
TO_FIRST_STEP = """
import importlib.abc, importlib.util, os, sys


class Stopper(importlib.abc.MetaPathFinder):
    "Lets the training end where its first step begins, without importing anything before its time."

    def find_spec(self, name, path, target=None):
        if name != "bdbnet.training.module":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.TrainingModule.on_train_batch_start = stop

        spec.loader.exec_module = exec_module
        return spec


def stop(self, batch, index):
    os.write(1, b"first step\\n")
    os._exit(0)


sys.meta_path.insert(0, Stopper())
sys.argv = ["bdbnet.train", *sys.argv[1:]]
from bdbnet.train import main
main()
"""
HELP = "import sys; sys.argv = ['bdbnet.train', '--help']; from bdbnet.train import main; main()"
LIST = "import sys; sys.argv = ['bdbnet', '--help']; from bdbnet.__main__ import main; main()"
ROUNDS = 5


def seconds(code: str, *arguments: str, ends_with: str = "") -> float:
    """Processor time of `python -c CODE ARGUMENTS`."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode or ends_with not in done.stdout:
        sys.exit(f"failed:\n{done.stdout}{done.stderr}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    arguments = sys.argv[1:] or ["dataset=synthetic_reid", "backbone.weights=none"]
    with tempfile.TemporaryDirectory() as folder:
        arguments += [f"output_root={folder}", "overwrite=true"]
        seconds(TO_FIRST_STEP, *arguments, ends_with="first step\n")  # renders, and warms the disk cache
        rounds = [
            {
                **{name: seconds(code) for name, code in FLOORS.items()},
                "first step": seconds(TO_FIRST_STEP, *arguments, ends_with="first step\n"),
                "train --help": seconds(HELP),
                "bdbnet --help": seconds(LIST),
            }
            for _ in range(ROUNDS)
        ]
    times = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name in FLOORS:
        print(f"{name:<36} {times[name]:5.2f} s")
    floors = {
        "first step": "... and torchvision, pandas, hydra",
        "train --help": "import hydra",
        "bdbnet --help": "python alone",
    }
    for name, floor in floors.items():
        print(f"{name:<36} {times[name]:5.2f} s    ratio {times[name] / times[floor]:.2f} to: {floor}")


if __name__ == "__main__":
    main()
