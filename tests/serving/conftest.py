"""A small served gallery of rendered images with cameras and times, and a client of its application."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from bdbnet.config import config_dir
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.load import Wanted, open_embedder
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from bdbnet.models import BDBNetwork, OSNetBackbone
from bdbnet.serving.running import open_app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

OPTIONS = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 3, "cameras": 2, "distractors": 3,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip
HOST = "http://127.0.0.1:8765"


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest("synthetic_reid", tmp_path_factory.mktemp("data") / "synthetic_reid", **OPTIONS)


@pytest.fixture(scope="session")
def make_embedder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Embedder]:
    """``make_embedder(seed)``: a small network with random weights, in a file."""
    folder = tmp_path_factory.mktemp("weights")

    def build(seed: int) -> Embedder:
        torch.manual_seed(seed)
        network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"]).eval()
        torch.save(network.state_dict(), folder / f"random{seed}.pth")
        return open_embedder(
            str(folder / f"random{seed}.pth"), Wanted("baseline", "osnet_x0_25", [64, 32]), device="cpu"
        )

    return build


@pytest.fixture(scope="session")
def embedder(make_embedder: Callable[[int], Embedder]) -> Embedder:
    return make_embedder(0)


@pytest.fixture(scope="session")
def gallery_table(rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of 19 gallery images, each an hour of 1 January 2024 later than the one before."""
    table = rendered.subset("gallery").table.drop(columns="split")
    table["time"] = [f"2024-01-01T{number:02d}:00:00" for number in range(len(table))]
    path = tmp_path_factory.mktemp("tables") / "gallery.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def make_store(gallery_table: Path, rendered: Manifest) -> Callable[..., Path]:
    """``make_store(folder, embedder)``: the gallery's embeddings in a folder."""

    def build(folder: Path, embedder: Embedder) -> Path:
        embed_into(
            folder, embedder, find_images(gallery_table, root=rendered.root), batch_size=8, num_workers=0,
            overwrite=folder.exists(), progress=False,
        )  # fmt: skip
        return folder

    return build


@pytest.fixture(scope="session")
def stored(make_store: Callable[..., Path], embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery that is only read."""
    return make_store(tmp_path_factory.mktemp("stores") / "gallery", embedder)


def settings(*overrides: str) -> DictConfig:
    """Configuration of the command."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("serve", ["accelerator=cpu", "workers=1", *overrides])


@pytest.fixture(scope="session")
def make_client(embedder: Embedder) -> Callable[..., TestClient]:
    """``make_client(folder, "key=value", token=...)``: a client of the server, without a network between them."""

    def build(folder: Path, *overrides: str, token: str | None = None, host: str = HOST) -> TestClient:
        config = settings(
            f"index={folder}", f"checkpoint={embedder.origin.source}", "requests_per_second=null", *overrides
        )
        app, _ = open_app(config, token)
        return TestClient(app, base_url=host)

    return build


@pytest.fixture(scope="session")
def client(make_client: Callable[..., TestClient], stored: Path) -> TestClient:
    return make_client(stored)


def encoded(pixels: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Helpers that tests of this folder share."""
    return SimpleNamespace(encoded=encoded, settings=settings)
