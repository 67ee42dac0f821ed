"""A few rendered images, a small network with random weights, and their embeddings."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bdbnet.config import config_dir
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.embedding import build_embedder
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from bdbnet.models import BDBNetwork, OSNetBackbone

OPTIONS = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 3, "cameras": 2, "distractors": 3,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip
DATASET = ["dataset=synthetic_reid", *(f"dataset.options.{k}={v}".replace(" ", "") for k, v in OPTIONS.items())]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a rendered re-ID set: 24 train, 8 query and 19 gallery images."""
    root = tmp_path_factory.mktemp("data")
    load_manifest("synthetic_reid", root / "synthetic_reid", **OPTIONS)
    return root


@pytest.fixture(scope="session")
def rendered(data_root: Path) -> Manifest:
    return load_manifest("synthetic_reid", data_root / "synthetic_reid", **OPTIONS)


@pytest.fixture(scope="session")
def photos(rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered images in two folders, without anything that says what they show."""
    root = tmp_path_factory.mktemp("photos")
    for number, path in enumerate(rendered.paths):
        place = root / ("day" if number % 2 else "night/late") / f"{number:03d}{Path(path).suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, place)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bare weights of a small OSNet with one branch, drawn at random."""
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"]).eval()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def make_config(data_root: Path, weights: Path) -> Callable[..., DictConfig]:
    """``make_config("key=value", ..., command="embed")``: the configuration of a command on the CPU."""

    def build(*overrides: str, command: str = "embed") -> DictConfig:
        shared = [
            f"checkpoint={weights}", "model=baseline", "backbone=osnet_x0_25", "image_size=[64,32]", f"data_root={data_root}",
            "run_name=test", "loading.num_workers=0", "loading.test_batch_size=8",
        ]  # fmt: skip
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(command, [*shared, *overrides])

    return build


@pytest.fixture(scope="session")
def embedder(make_config: Callable[..., DictConfig]) -> Embedder:
    return build_embedder(make_config("accelerator=cpu"))


@pytest.fixture(scope="session")
def photo_store(embedder: Embedder, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """The embeddings of `photos`; only to be read."""
    folder = tmp_path_factory.mktemp("stores") / "photos"
    embed_into(folder, embedder, find_images(photos), batch_size=8, num_workers=0)
    return EmbeddingStore.open(folder)


@pytest.fixture(scope="session")
def dataset_overrides() -> list[str]:
    """What names the rendered set on a command line."""
    return DATASET
