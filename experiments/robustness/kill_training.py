"""Trainings that are killed at random moments and resumed: they must end with the numbers of an uninterrupted one, bit for bit.

    python experiments/robustness/kill_training.py --help

Each case starts the same tiny training, sends it a signal after a random time, resumes it with `ckpt_path=last`, and compares
what it leaves with what an uninterrupted run leaves: weights, optimizer, learning-rate schedule, best.ckpt, every column of
history.csv but times and speeds, and the metrics of result.json. By turns the run folder lies on the file system of temporary
files, on another one (`--elsewhere`), and is written to slowly (`--delay`), so that signals come in the middle of a checkpoint.
The exit status is 1 if one case differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

KILL, TERM, GROUP = "kill -9", "SIGTERM to the process", "SIGTERM to its group"
#: What tells a training in this file apart from the tests: `python kill_training.py SLOW <seconds> <arguments of bdbnet.train>`.
SLOW = "slow-training"
TIMES = ("seconds", "images_per_second")
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")


@dataclass(frozen=True)
class Place:
    """Where a run folder lies, and how many seconds each file that is written there takes at least."""

    title: str
    root: Path
    delay: float = 0.0


class Training:
    """The training that all cases have in common.

    Args:
        arguments: of `bdbnet.train`.
        workers: processes that decode images, for runs that are not killed outright.
    """

    def __init__(self, arguments: Sequence[str], workers: int) -> None:
        self.arguments, self.workers = list(arguments), workers

    def start(self, place: Place, name: str, *more: str, workers: int = 0) -> subprocess.Popen[str]:
        """Start it in a process group of its own, up to the moment at which it begins to train."""
        arguments = [
            *self.arguments,
            f"loading.num_workers={workers}",
            f"output_root={place.root}",
            f"run_name={name}",
            *more,
        ]
        command = [sys.executable, "-m", "bdbnet.train", *arguments]
        if place.delay:
            command = [sys.executable, __file__, SLOW, str(place.delay), *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run folder: "):
                return process
        sys.exit(f"the training does not start:\n{process.stderr.read() if process.stderr else ''}")

    def case(self, place: Place, name: str, how: str, after: float) -> str:
        """Start, send the signal after so many seconds, resume.  Returns what happened; raises `Failure`."""
        process = self.start(place, name, workers=0 if how == KILL else self.workers)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            if how == GROUP:
                os.killpg(process.pid, signal.SIGTERM)
            else:
                process.send_signal(signal.SIGKILL if how == KILL else signal.SIGTERM)
        said, errors = process.communicate(timeout=120)
        expected = -signal.SIGKILL if how == KILL else 128 + signal.SIGTERM
        if process.returncode not in (0, expected):
            raise Failure(f"exit status {process.returncode} instead of {expected}\n{said}{errors}")
        if "Traceback" in errors:
            raise Failure(f"a traceback:\n{errors}")
        if process.returncode == 0:
            return "it was finished already"
        step = step_of(place.root / "train" / name)
        resumed = self.start(place, name, "ckpt_path=last", workers=0)
        said, errors = resumed.communicate(timeout=300)
        if resumed.returncode:
            raise Failure(f"resuming failed with exit status {resumed.returncode}\n{said}{errors}")
        return "no checkpoint yet" if step is None else f"resumed at step {step}"


class Failure(Exception):
    """A case that did not end as the uninterrupted run; the message says what differs."""


def step_of(folder: Path) -> int | None:
    """The step of the checkpoint in a run folder; None where there is none."""
    if not (folder / "last.ckpt").is_file():
        return None
    return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])


def differences(reference: Path, folder: Path) -> list[str]:
    """What differs between two run folders, bit for bit; times are left out."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (torch.load(path / name, weights_only=True, map_location="cpu") for path in (reference, folder))
        found += [f"{name}: {key}" for key in STATES if not same(ours.get(key), theirs.get(key))]
    ours, theirs = (pd.read_csv(path / "history.csv").drop(columns=[*TIMES]) for path in (reference, folder))
    if list(ours) != list(theirs):
        return [*found, f"history.csv: columns {[*ours]} and {[*theirs]}"]
    found += [
        f"history.csv: {key} {[*ours[key]]} and {[*theirs[key]]}" for key in ours if not ours[key].equals(theirs[key])
    ]
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (reference, folder))
    found += [f"result.json: {key}" for key in ("metrics", "best", "epochs") if ours[key] != theirs[key]]
    left = sorted({path.name for path in folder.iterdir()} ^ {path.name for path in reference.iterdir()})
    return found + ([f"files: {', '.join(left)}"] if left else [])


def same(ours: Any, theirs: Any) -> bool:
    """Whether two nested values are equal bit for bit."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def train_slowly(delay: float, arguments: Sequence[str]) -> None:
    """`bdbnet.train` whose files take so many seconds each: half of it while they are written, a quarter before each rename."""
    import bdbnet.files
    from bdbnet.train import main

    class SlowFile:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "SlowFile":
            return self

        def __exit__(self, *_: Any) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, content: Any) -> int:
            content = memoryview(content)
            part = len(content) // 16 + 1
            for begin in range(0, len(content), part):
                self._file.write(content[begin : begin + part])
                self._file.flush()
                time.sleep(delay / 32)
            return len(content)

    class SlowSystem:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fdopen(self, *arguments: Any) -> SlowFile:
            return SlowFile(os.fdopen(*arguments))

        def fsync(self, handle: int) -> None:
            os.fsync(handle)
            time.sleep(delay / 4)

    keep = bdbnet.files._keep

    def kept_slowly(path: Path, name: Path) -> None:
        keep(path, name)
        time.sleep(delay / 4)

    bdbnet.files.os = SlowSystem()
    bdbnet.files._keep = kept_slowly
    sys.argv = ["bdbnet.train", *arguments]
    main()


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="cases with kill -9 (default: %(default)s)")
    parser.add_argument("--terms", type=int, default=5, help="cases with SIGTERM to the process (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=5, help="cases with SIGTERM to its group (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of each training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images where SIGTERM is sent")
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one, removed afterwards)")
    parser.add_argument(
        "--elsewhere",
        type=Path,
        default=Path("/dev/shm"),
        help="a folder on another file system (default: %(default)s)",
    )
    parser.add_argument("--delay", type=float, default=0.5, help="seconds that a file takes at least where it is slow")
    parser.add_argument(
        "--data-root", default=os.environ.get("BDBNET_DATA"), help="of the rendered data (default: FOLDER/data)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed(sys.argv[1:])
    temporary = [] if options.folder else [Path(tempfile.mkdtemp(prefix="kill-training-"))]
    folder = options.folder or temporary[0]
    places = [Place("same file system", folder / "runs"), Place("slow writes", folder / "slow", options.delay)]
    if options.elsewhere.is_dir():
        temporary.append(Path(tempfile.mkdtemp(prefix="kill-training-", dir=options.elsewhere)))
        places.append(Place("other file system", temporary[-1]))
        places.append(Place("other file system, slow writes", temporary[-1] / "slow", options.delay))
    training = Training(
        [
            "dataset=synthetic_reid", "backbone=osnet_x0_25", "backbone.weights=none", "dataset.image_size=[64,32]",
            "sampler.batch_size=16", "trainer.accelerator=cpu", "trainer.precision=32-true", "evaluation.every_n_epochs=1",
            "callbacks.progress=false", f"trainer.max_epochs={options.epochs}",
            f"data_root={options.data_root or folder / 'data'}",
        ],
        options.workers,
    )  # fmt: skip
    try:
        sys.exit(report(training, places, options))
    finally:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)


def report(training: Training, places: Sequence[Place], options: argparse.Namespace) -> int:
    """Run all cases, print a line for each.  Returns the exit status."""
    signals = [KILL] * options.kills + [TERM] * options.terms + [GROUP] * options.groups
    used = {number: places[number % len(places)] for number in range(len(signals))}
    seconds = {}
    for place in dict.fromkeys([places[0], *used.values()]):
        name = f"reference-{time.time_ns()}"
        process = training.start(place, name)
        began = time.perf_counter()
        said, errors = process.communicate(timeout=600)
        if process.returncode:
            sys.exit(f"the uninterrupted training failed:\n{said}{errors}")
        seconds[place] = time.perf_counter() - began, place.root / "train" / name
        print(f"{place.title}: the uninterrupted training took {seconds[place][0]:.1f} s", flush=True)
    reference = seconds[places[0]][1]
    chance = random.Random(options.seed)
    failed = 0
    for number, how in enumerate(signals, 1):
        place = used[number - 1]
        after = chance.uniform(0, seconds[place][0])
        name = f"case-{number}-{time.time_ns()}"
        line = f"[{number}/{len(signals)}] {how} after {after:5.2f} s, {place.title}:"
        try:
            happened = training.case(place, name, how, after)
            different = differences(reference, place.root / "train" / name)
            outcome = f"DIFFERS in {'; '.join(different)}" if different else "equal"
            print(f"{line} {happened}, {outcome}", flush=True)
            failed += bool(different)
        except Failure as failure:
            print(f"{line} FAILED: {failure}", flush=True)
            failed += 1
        shutil.rmtree(place.root / "train" / name, ignore_errors=True)
    print(f"{len(signals) - failed} of {len(signals)} ended as the uninterrupted training, bit for bit")
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == [SLOW]:
        train_slowly(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
