"""Commands that are killed or told to stop, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forked_commands import Command

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = [
    "dataset.options={train_identities:4,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1}",
    "dataset.image_size=[64,32]", "backbone=osnet_x0_25", "sampler.batch_size=8", "trainer.accelerator=cpu",
]  # fmt: skip

pytestmark = pytest.mark.end_to_end


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BDBNET", "HYDRA", "PYTHON"))}
    return kept | {"PYTHONPATH": str(CHECKOUT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_killed_trainings_end_as_if_nothing_had_happened(tmp_path):
    script = CHECKOUT / "experiments" / "robustness" / "kill_training.py"
    done = subprocess.run(
        [sys.executable, script, "--kills=1", "--terms=0", "--groups=1", "--epochs=2", "--delay=0.3", f"--folder={tmp_path}"],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 ended as the uninterrupted training, bit for bit" in done.stdout


def test_a_sweep_that_is_terminated_stops_as_a_whole_and_says_how_to_resume(tmp_path):
    arguments = [*TINY, "loading.num_workers=1", "trainer.max_epochs=200", "seed=1,2"]
    process = Command("train", "-m", *arguments, folder=tmp_path, log=tmp_path / "log")
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline and process.running:
        time.sleep(0.01)
    assert "run folder: " in process.logs[0].read_text(), "a log file shows each line when it is said"
    process.send(signal.SIGTERM, group=True)
    returncode, said, errors = process.wait()
    assert returncode == 143, said + errors
    assert "Interrupted in epoch" in said
    assert "The jobs that were to follow are not run. Resume with the same command and ckpt_path=last." in errors
    assert "Traceback" not in errors
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    assert said.count("run folder: ") == 1
