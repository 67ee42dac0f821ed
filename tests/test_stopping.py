"""Signals that end a command, and processes that leave them to their parent."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bdbnet.loading.loader import WorkerLoader
from bdbnet.stopping import Stopped, terminated_in_order


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_status_is_that_of_shells(number, status):
    assert Stopped(number).code == status
    assert Stopped(number).signal is number


def test_sigterm_unwinds_like_any_exception_and_once():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with terminated_in_order():
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as timeout does, which tells the process and its group
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


class Told:
    """Receives SIGTERM while it is removed."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)


def test_a_signal_in_a_finalizer_is_not_lost(capsys):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with terminated_in_order():
            told = Told()
            del told  # errors are printed and ignored there
            with pytest.raises(Stopped):
                time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr() == ("", "")


def test_a_signal_in_the_last_finalizer_leaves_an_ended_command_alone():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with terminated_in_order():
            told = Told()
            del told
        time.sleep(0.1)  # this process would end
    finally:
        signal.signal(signal.SIGTERM, before)


class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, row):
        time.sleep(0.01)
        return os.getpid()


def test_workers_outlive_a_signal_to_all_and_obey_their_parent():
    loader = WorkerLoader(Pids(), batch_size=1, num_workers=1, persistent_workers=True)
    batches = iter(loader)
    worker = int(next(batches))
    for name in ("-TERM", "-INT", "-TERM"):
        subprocess.run(["kill", name, str(worker)], check=True)
    assert {int(batch) for batch in batches} == {worker}
    os.kill(worker, signal.SIGTERM)  # as PyTorch does with one that does not end
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"
    del batches, loader


def test_what_a_loader_was_told_to_do_in_its_workers_is_done():
    def set_threads(worker: int) -> None:
        os.environ["SEEN_BY_WORKER"] = str(worker)

    class Environment(Pids):
        def __getitem__(self, row):
            return int(os.environ["SEEN_BY_WORKER"])

    loader = WorkerLoader(Environment(), batch_size=40, num_workers=1, worker_init_fn=set_threads)
    assert next(iter(loader)).sum() == 0


def as_command(body: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    loads = ["triton._C.libtriton"] if importlib.util.find_spec("triton") else []
    code = f"""
import gc, os, signal
from bdbnet.config import command
@command('search', loads={loads})
def main(config): {body}
main()"""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder, check=False
    )


def test_a_command_that_is_terminated_says_so(tmp_path):
    # The garbage collector, which pauses while a command starts, is on again.
    done = as_command("print(gc.isenabled(), gc.get_freeze_count() > 0); os.kill(os.getpid(), 15)", folder=tmp_path)
    assert done.stdout == "True True\n"
    assert done.returncode == 143
    # Nothing else: Triton, which a training loads, reports what the collector has not seen at the end.
    assert done.stderr == "\ninterrupted. Run the same command again.\n"


def test_a_command_names_the_folder_where_the_system_names_no_file(tmp_path):
    done = as_command("raise OSError(28, 'No space left on device')", f"output_root={tmp_path}", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"\nerror: a file in {tmp_path} can't be written: No space left on device; free some space"
    )
    assert done.stderr.endswith("What was written before is kept. Run the same command again.\n")
