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
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import bdbnet.files
from bdbnet.train import main as train

KILL, TERM, GROUP = "kill -9", "SIGTERM to the process", "SIGTERM to its group"
TIMES = ("seconds", "images_per_second", "waited_seconds")
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
PATIENCE = 600.0
TRIES = 10
#: Trainings are forked by a process that has imported all and computed nothing: threads of OpenMP do not survive a fork.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "pandas", "bdbnet.train", "bdbnet.training.runs"])
#: Four steps an epoch.
DATA = "{train_identities:8,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}"


@dataclass(frozen=True)
class Place:
    """Where a run folder lies, and how many seconds each file that is written there takes at least."""

    title: str
    root: Path
    delay: float = 0.0

    def folder(self, name: str) -> Path:
        return self.root / "train" / name

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"


class Training:
    """The training that all cases have in common.

    Args:
        arguments: of `bdbnet.train`.
        workers: processes that decode images, for runs that are not killed outright.
    """

    def __init__(self, arguments: Sequence[str], workers: int) -> None:
        self.arguments, self.workers = list(arguments), workers

    def start(self, place: Place, name: str, *more: str, workers: int = 0) -> BaseProcess:
        """Start it in a process group of its own, up to the moment at which it begins to train."""
        place.root.mkdir(parents=True, exist_ok=True)
        arguments = [
            *self.arguments,
            f"loading.num_workers={workers}",
            f"output_root={place.root}",
            f"run_name={name}",
            *more,
        ]
        log = place.log(name)
        log.write_text("")
        process = CONTEXT.Process(target=in_process, args=(arguments, log, place.delay))
        process.start()
        deadline = time.monotonic() + PATIENCE
        while "\nrun folder: " not in log.read_text() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    def case(self, place: Place, name: str, how: str, after: float) -> str | None:
        """Start, send the signal after so many seconds, resume.  Returns what happened, None where the run had ended before.

        Raises `Failure`.
        """
        process = self.start(place, name, workers=0 if how == KILL else self.workers)
        process.join(after)
        if process.is_alive() and process.pid is not None:
            (os.killpg if how == GROUP else os.kill)(process.pid, signal.SIGKILL if how == KILL else signal.SIGTERM)
        expected = -signal.SIGKILL if how == KILL else 128 + signal.SIGTERM
        ended(process, place.log(name), 0, expected)
        if process.exitcode == 0:
            return None
        step = step_of(place.folder(name))
        ended(self.start(place, name, "ckpt_path=last"), place.log(name), 0)
        return "no checkpoint yet" if step is None else f"resumed at step {step}"


def in_process(arguments: Sequence[str], log: Path, delay: float) -> None:
    """Body of a training process."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of its own workers, as where it is started from a shell
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if delay:
        write_slowly(delay)
    sys.argv = ["bdbnet.train", *arguments]
    train()


def ended(process: BaseProcess, log: Path, *statuses: int) -> None:
    """Wait for the end.  Raises `Failure` after another exit status or a traceback."""
    process.join(PATIENCE)
    said = log.read_text()
    if process.exitcode not in statuses:
        process.kill()
        raise Failure(f"exit status {process.exitcode} instead of {' or '.join(map(str, statuses))}\n{said}")
    if "Traceback" in said:
        raise Failure(f"a traceback:\n{said}")


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
    ours, theirs = (
        rows[[name for name in rows if name.partition("/")[0] not in TIMES]]
        for rows in (pd.read_csv(path / "history.csv") for path in (reference, folder))
    )
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


def write_slowly(delay: float) -> None:
    """Let each file that `bdbnet` writes take so many seconds: half of them for its content, a quarter before each rename."""

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

    bdbnet.files.os = SlowSystem()  # type: ignore[attr-defined,assignment]
    bdbnet.files._keep = kept_slowly


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
    settings = [
        "dataset=synthetic_reid", f"dataset.options={DATA}", f"data_root={options.data_root or folder / 'data'}",
        "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "backbone.weights=none", "sampler.batch_size=8",
        "trainer.accelerator=cpu", "trainer.precision=32-true", f"trainer.max_epochs={options.epochs}",
        "evaluation.every_n_epochs=1", "callbacks.checkpoint_every_seconds=0", "callbacks.progress=false",
    ]  # fmt: skip
    training = Training(settings, options.workers)
    try:
        sys.exit(report(training, places, options))
    finally:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)


def report(training: Training, places: Sequence[Place], options: argparse.Namespace) -> int:
    """Run all cases, print a line for each.  Returns the exit status."""
    signals = [KILL] * options.kills + [TERM] * options.terms + [GROUP] * options.groups
    used = [places[number % len(places)] for number in range(len(signals))]
    seconds: dict[Place, float] = {}
    for place in dict.fromkeys([places[0], *used]):
        process = training.start(place, "reference")
        began = time.perf_counter()
        ended(process, place.log("reference"), 0)
        seconds[place] = time.perf_counter() - began
        print(f"{place.title}: the uninterrupted training took {seconds[place]:.1f} s", flush=True)
    reference, chance, failed = places[0].folder("reference"), random.Random(options.seed), 0
    for number, (how, place) in enumerate(zip(signals, used), 1):
        after, name = chance.uniform(0, seconds[place]), f"case-{number}"
        line = f"[{number}/{len(signals)}] {how}, {place.title}:"
        try:
            for _ in range(TRIES):
                happened = training.case(place, name, how, after)
                if happened is not None:
                    break
                after *= chance.random()  # it was faster than the uninterrupted one
                shutil.rmtree(place.folder(name))
            else:
                raise Failure(f"it had always ended before the signal, {TRIES} times")
            line = f"[{number}/{len(signals)}] {how} after {after:5.2f} s, {place.title}:"
            different = differences(reference, place.folder(name))
            failed += bool(different)
            print(f"{line} {happened}, {f'DIFFERS in {chr(10).join(different)}' if different else 'equal'}", flush=True)
        except Failure as failure:
            failed += 1
            print(f"{line} FAILED: {failure}", flush=True)
        shutil.rmtree(place.folder(name), ignore_errors=True)
    print(f"{len(signals) - failed} of {len(signals)} ended as the uninterrupted training, bit for bit")
    return int(failed > 0)


if __name__ == "__main__":
    main()
