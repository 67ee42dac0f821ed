"""What the pages of the documentation find in the folder in which their code runs."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "tools"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with a network (``last.ckpt``, with a threshold), photos, and the result of an evaluation."""
    import bdbnet
    from bdbnet.results import Protocol, Result

    folder = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    places = [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "query.jpg",
        *(f"photos/zoe/camera{camera}_{n:03}.jpg" for camera in (1, 2) for n in (0, 1)),
    ]
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 32, 3), np.uint8)).save(folder / place)
    found = bdbnet.load("bdb_osnet_x0_25_synthetic", device="cpu")
    network = bdbnet.Embedder(found.network, found.preprocessing, found.settings, threshold=20.0, origin=found.origin)
    network.save(folder / "last.ckpt")
    protocol = Protocol("reid", "synthetic_reid", (64, 32))
    result = Result("train", {"rank1": 0.5, "mAP": 0.4}, protocol, "last", {}, {}, seed=1)
    result.write(folder / "outputs" / "train" / "bdb" / "result.json")
    return folder


@pytest.fixture
def workplace(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, which is the working folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BDBNET_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def exported(workplace) -> Path:
    """`model.onnx` as the export tutorial's command writes it, of a network that is exported in seconds: the command itself runs
    in tests/evaluation."""
    import torch
    from torch import nn

    import bdbnet
    from bdbnet.models import BranchOutput, EmbeddingNetwork

    class Small(EmbeddingNetwork):
        branch_dims = (384, 384)

        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 384, 8, 8)

        def forward(self, images: torch.Tensor) -> dict[str, BranchOutput]:
            return {"pooled": BranchOutput(self.embed(images), None)}

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            features = self.backbone(images)
            return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)

    embedder = bdbnet.Embedder(Small().eval(), bdbnet.Preprocessing((64, 32)))
    embedder.export("model.onnx", input="pixels", source_size=(128, 64))
    return workplace / "model.onnx"


@pytest.fixture
def mypkg(plugin) -> None:
    """The package that pages name where a reader has one of his own."""
    plugin(
        "mypkg",
        """
        from torch import nn


        class MyBackbone(nn.Module):
            out_channels = 8
        """,
    )
