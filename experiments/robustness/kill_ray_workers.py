"""A sweep on Ray whose workers are killed, and cells of `reproduce` on two of them: every job ends with the numbers of one process.

    python experiments/robustness/kill_ray_workers.py --help

Starts a Ray cluster of two nodes, with a processor each, on this machine. A sweep of ten trainings (five height ratios, two
seeds) runs there, and at the same time in one process without Ray. Workers in the middle of a training are killed: kill -9,
SIGTERM, and a whole node, whose place another one takes. Weights, history and metrics of all ten have to be those without Ray,
bit for bit. Then two jobs of `reproduce` divide the cells of a table between them; a sweep whose cluster is not there, and one
with a job that fails, have to say so. The exit status is 1 if something differs.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kill_training import DATA, differences

KILLS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
PATIENCE = 900.0
TRIES = 5


def command(name: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """`python -m bdbnet.NAME ARGUMENTS`, started; what it says goes to ``log``."""
    with log.open("wb") as file:
        line = [sys.executable, "-m", f"bdbnet.{name}", *arguments]
        return subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)


class Node:
    """`ray start` on this machine, with one processor: the head of a cluster, or a further node of one.

    Args:
        address: of the cluster.
        head: whether this node makes it.
    """

    def __init__(self, address: str, log: Path, *, head: bool = False) -> None:
        place = (
            ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
            if head
            else [f"--address={address}"]
        )
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--num-cpus=1", "--block"]
        for _ in range(TRIES):  # Ray gives a node half a minute, which on a busy machine is too short
            with log.open("wb") as file:
                self.process = subprocess.Popen([*line, "--disable-usage-stats"], stdout=file, stderr=subprocess.STDOUT)
            while self.process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return
                time.sleep(0.2)
        raise RuntimeError(log.read_text())

    def raylet(self) -> int | None:
        """The process whose children run the jobs."""
        return next((pid for pid in children(self.process.pid) if b"raylet/raylet" in command_line(pid)), None)

    def workers(self) -> list[int]:
        """Processes that run a job now."""
        raylet = self.raylet()
        return [] if raylet is None else [pid for pid in children(raylet) if command_line(pid).startswith(b"ray::_run")]

    def kill(self) -> None:
        for pid in [self.raylet(), *self.workers()]:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            if int(path.read_text().partition("PPid:")[2].split()[0]) == parent:
                found.append(int(path.parent.name))
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Cluster:
    """Two nodes, of which the second can be replaced."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("", 0))
            self.address = f"{socket.gethostbyname(socket.gethostname())}:{free.getsockname()[1]}"
        self._folder = folder
        self.nodes = [Node(self.address, folder / "head.log", head=True)]
        try:
            self.nodes.append(Node(self.address, folder / "node.log"))
        except BaseException:
            self.stop()
            raise

    def replace(self) -> None:
        self.nodes[1].kill()
        self.nodes.append(Node(self.address, self._folder / "another.log"))

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()


def in_training(sweep: Path, before: set[Path]) -> Path | None:
    """A run folder with a checkpoint and no result, other than those in which a worker was killed before."""
    folders = {path.parent for path in sweep.glob("*/last.ckpt") if not (path.parent / "result.json").is_file()}
    return min(folders - before, default=None)


def worker_of(nodes: Sequence[Node], folder: Path) -> int | None:
    """The process of these nodes that holds the lock of a run folder."""
    for pid in [pid for node in nodes for pid in node.workers()]:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if handle.readlink().is_relative_to(folder):
                    return pid
            except OSError:
                continue
    return None


def kill(cluster: Cluster, sweep: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Kill workers by turns until the sweep has ended.  Returns what was done."""
    done: list[str] = []
    folders: set[Path] = set()
    while process.poll() is None:
        folder = in_training(sweep, folders)
        nodes = cluster.nodes[1:] if len(done) == len(KILLS) else cluster.nodes
        if folder is None or (pid := worker_of(nodes, folder)) is None:
            time.sleep(0.05)
            continue
        if len(done) < len(KILLS):
            how, number = list(KILLS.items())[len(done)]
            os.kill(pid, number)
        elif len(done) == len(KILLS):
            how = "a node killed, another one added"
            cluster.replace()
        else:
            break
        folders.add(folder)
        done.append(f"{how} in {folder.name}")
        print(done[-1], flush=True)
    process.wait(PATIENCE)
    return done


def jobs(sweep: Path) -> dict[str, Path]:
    return {path.parent.name.partition("-")[0]: path.parent for path in sweep.glob("*/result.json")}


def check(good: bool, what: str, problems: list[str]) -> None:
    print(f"{'ok' if good else 'FAILED'}: {what}", flush=True)
    problems += [] if good else [what]


def killed_sweep(cluster: Cluster, settings: Sequence[str], root: Path, problems: list[str]) -> None:
    swept = ["dropping.height_ratio=0.1,0.3,0.5,0.7,0.9", "seed=1,2"]
    alone = command("train", "-m", *settings, *swept, f"output_root={root / 'alone'}", log=root / "alone.log")
    began = time.perf_counter()
    log = root / "ray.log"
    process = command(
        "train", "-m", *settings, *swept, f"output_root={root / 'ray'}", "hydra/launcher=ray",
        f"hydra.launcher.address={cluster.address}", log=log,
    )  # fmt: skip
    sweep = root / "ray" / "sweeps" / "default"
    done = kill(cluster, sweep, process)
    print(f"the sweep on Ray took {time.perf_counter() - began:.0f} s", flush=True)
    alone.wait(PATIENCE)
    said = log.read_text(errors="replace")
    check(
        process.returncode == 0 and "Traceback" not in said,
        f"the sweep ended with status {process.returncode}",
        problems,
    )
    check(len(done) == len(KILLS) + 1, f"{len(done)} kills", problems)
    check(said.count("is run again") >= len(done), f"jobs run again: {said.count('is run again')}", problems)
    ours, theirs = jobs(sweep), jobs(root / "alone" / "sweeps" / "default")
    check(
        len(ours) == 10 == len([*sweep.glob("*/last.ckpt")]) and ours.keys() == theirs.keys(),
        f"{len(ours)} results, each once",
        problems,
    )
    different = {name: found for name in ours if (found := differences(theirs[name], ours[name]))}
    check(
        not different,
        f"{len(ours) - len(different)} of 10 equal those without Ray, bit for bit {different or ''}",
        problems,
    )


def cells(cluster: Cluster, table: str, options: Sequence[str], root: Path, problems: list[str]) -> None:
    log = root / "cells.log"
    arguments = [f"table={table}", "budget=smoke", *options, f"output_root={root / 'cells'}"]
    command(
        "reproduce", "-m", *arguments, "worker=0,1", "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", log=log,
    ).wait(PATIENCE)  # fmt: skip
    results = [*(root / "cells").rglob("result.json")]
    listed = root / "list.log"
    state = command("reproduce", *arguments, "list=true", log=listed).wait(PATIENCE)
    said = log.read_text(errors="replace")
    # Each of two nodes on one machine forwards the lines of both.
    trained = {line for line in said.splitlines() if "run folder: " in line}
    pids = {line.partition("pid=")[2].split(")")[0].split(",")[0] for line in trained}
    check(state == 0 and len(results) > 1, f"reproduce table={table}: {len(results)} cells have a result", problems)
    check(len(trained) == len(results), f"each was trained once, by {len(pids)} workers", problems)
    check(len(pids) == 2, "both workers trained", problems)


def refusals(cluster: Cluster, settings: Sequence[str], root: Path, problems: list[str]) -> None:
    log = root / "gone.log"
    process = command(
        "train", "-m", *settings, "seed=1,2", f"output_root={root / 'gone'}", "hydra/launcher=ray",
        "hydra.launcher.address=127.0.0.1:9", log=log,
    )  # fmt: skip
    said = f"{process.wait(PATIENCE)}: {log.read_text(errors='replace').strip().splitlines()[-1]}"
    check("1: error: hydra.launcher.address=127.0.0.1:9: no Ray cluster answers" in said, said, problems)
    log = root / "fails.log"
    process = command(
        "train", "-m", *settings, "seed=1", "backbone.weights=none,/nowhere.pth", f"output_root={root / 'fails'}",
        "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", log=log,
    )  # fmt: skip
    said = f"{process.wait(PATIENCE)}: {log.read_text(errors='replace').partition('error: 1 of 2')[2]}"
    check(said.startswith("1:  jobs have no result") and "/nowhere.pth" in said, said.strip(), problems)
    check(len([*(root / "fails").rglob("result.json")]) == 1, "the other job is done", problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of each training (default: %(default)s)")
    parser.add_argument("--table", default="4", help="of reproduce (default: %(default)s)")
    parser.add_argument("--options", nargs="*", default=[], help="more arguments of reproduce")
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one, removed afterwards)")
    parser.add_argument("--data-root", help="of the rendered data (default: FOLDER/data)")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="kill-ray-workers-"))
    data = f"data_root={options.data_root or root / 'data'}"
    settings = [
        "dataset=synthetic_reid", f"dataset.options={DATA}", data, "dataset.image_size=[64,32]", "backbone=osnet_x0_25",
        "backbone.weights=none", "sampler.batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true",
        f"trainer.max_epochs={options.epochs}", "callbacks.progress=false", "loading.num_workers=0",
    ]  # fmt: skip
    problems: list[str] = []
    root.mkdir(parents=True, exist_ok=True)
    if "RAY_AUTH_MODE" not in os.environ:  # all nodes need the same token
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    cluster = Cluster(root)
    try:
        killed_sweep(cluster, settings, root, problems)
        cells(cluster, options.table, [data, *options.options], root, problems)
        refusals(cluster, settings, root, problems)
    finally:
        cluster.stop()
        if options.folder is None:
            shutil.rmtree(root, ignore_errors=True)
    print("all as in one process" if not problems else f"{len(problems)} differ")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
