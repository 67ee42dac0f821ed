"""Real data that the dataset tests share."""

from pathlib import Path

import pytest

from bdbnet.datasets.archives import extract_archives


@pytest.fixture(scope="session")
def market1501_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Market-1501, extracted once from the authors' archive by `extract_archives`."""
    archive = shared_data / "Market-1501-v15.09.15.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in the folder of real data")
    return extract_archives([archive], tmp_path_factory.mktemp("market1501") / "root", progress=False)
