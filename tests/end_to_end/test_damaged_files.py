"""A short run of the fuzz in experiments/robustness."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "experiments" / "robustness" / "fuzz_files.py"


@pytest.mark.end_to_end
def test_damaged_files_end_in_clean_errors(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT / "src"), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "20"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("all "))
    cases, valid, clean, *faults = map(int, re.findall(r"\d+", row))
    assert faults == [0, 0, 0, 0]
    assert valid + clean == cases
    assert min(valid, clean) > 2  # neither is everything refused, nor is nothing damaged
