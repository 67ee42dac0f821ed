"""Fixtures that every part's tests share."""

import os
from pathlib import Path

import pytest

# Two cores, several test processes: one thread each is faster than all of them fighting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real datasets and weights; tests that need it skip where it is absent."""
    checkout = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("BDBNET_SHARED_DATA", checkout.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set BDBNET_SHARED_DATA to a folder that has them")
    return folder
