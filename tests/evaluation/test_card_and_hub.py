"""What a saved embedder says of itself, and its way to a model hub and back."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

import bdbnet
import other_programs as theirs
from bdbnet.evaluation.card import model_card
from bdbnet.evaluation.hub import HubError
from bdbnet.models import BDBNetwork, CheckpointError, OSNetBackbone
from bdbnet.models.zoo import ENTRIES, zoo_path
from bdbnet.results import Protocol, Result, read_result

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
TRAINED = {
    "model": {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"], "pooling": "max"},
    "backbone": {"_target_": "bdbnet.models.OSNetBackbone", "width": 0.25, "weights": "none"},
    "dataset": {"name": "market1501", "image_size": [64, 32]},
    "trainer": {"max_epochs": 400},
    "loss": {"name": "hard_triplet"},
    "seed": 3,
}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with last.ckpt, best.ckpt and their record."""
    torch.manual_seed(0)
    state = BDBNetwork(0, OSNetBackbone(0.25)).state_dict()
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        content = {f"network.{key}": tensor for key, tensor in state.items()}
        torch.save({"state_dict": content, "bdbnet": {"config": TRAINED}}, folder / name)
    protocol = Protocol("reid", "market1501", (64, 32), flip=True)
    metrics = {"rank1": 0.912, "rank5": 0.97, "mAP": 0.75}
    best = {
        "metrics": {"rank1": 0.95, "mAP": 0.8},
        "epoch": 7,
        "note": "selected on the test set; optimistically biased",
    }
    counts = {role: {"identities": 1, "images": 1, "cameras": 1} for role in ("train", "query", "gallery")}
    data = {"name": "market1501", "fingerprint": "0", "cameras": True, "counts": counts}
    Result("train", metrics, protocol, "last", data, TRAINED, seed=3, best=best).write(folder / "result.json")
    return folder


def test_the_card_says_what_was_trained_measured_and_meant(run, tmp_path):
    card = (bdbnet.load(run / "last.ckpt", device="cpu").save(tmp_path / "model") / "README.md").read_text()
    for said in (
        "library_name: bdbnet", "BDBNetwork on OSNetBackbone", "1536 (512 + 1024) numbers", "resized to 64 x 32 pixels",
        "Market-1501", "research use only", "Epochs: 400", "| Rank-1 | 91.2", "| mAP | 75.0",
        "single query, matches from other cameras only, on market1501; images of 64 x 32 pixels", "averaged with the mirror image",
        "not proof of identity", "## Licence",
        bdbnet.load(run / "last.ckpt", device="cpu").fingerprint,
    ):  # fmt: skip
        assert said in card, said
    best = (bdbnet.load(run / "best.ckpt", device="cpu").save(tmp_path / "best") / "README.md").read_text()
    assert "| Rank-1 | 95.0" in best
    assert "selected on the test set" in best
    assert "Epochs: 7 of 400" in best
    again = bdbnet.load(tmp_path / "model", device="cpu")
    assert again.origin.metrics == {"rank1": 0.912, "rank5": 0.97, "mAP": 0.75}


def test_a_card_of_weights_of_which_nothing_is_known(run, tmp_path):
    torch.save(torch.load(run / "last.ckpt", weights_only=True)["state_dict"], tmp_path / "bare.pth")
    embedder = bdbnet.load(tmp_path / "bare.pth", image_size=(64, 32), device="cpu")
    card = (embedder.save(tmp_path / "model") / "README.md").read_text()
    assert "nothing is known but their shapes: bdbnet did not train them.\nData: not known" in card
    assert "Nothing is recorded with this model" in card


def test_the_card_of_a_file_of_another_program(tmp_path, monkeypatch):
    torch.save({"state_dict": theirs.torchreid_osnet("plain")}, tmp_path / "osnet.pth.tar")
    card = (bdbnet.load(tmp_path / "osnet.pth.tar", device="cpu").save(tmp_path / "model") / "README.md").read_text()
    for said in (
        "The weights come from a file of torchreid; bdbnet did not train them.", "Data: not known, and so are its terms.",
        "- images are resized to 256 x 128 pixels, as torchreid's models are trained", "Nothing is recorded",
        "mean 0.485, 0.456, 0.406",
        "not proof of identity", "## Licence", bdbnet.load(tmp_path / "model", device="cpu").fingerprint,
    ):  # fmt: skip
        assert said in card, said
    content = (tmp_path / "osnet.pth.tar").read_bytes()
    entry = replace(ENTRIES["osnet_x0_25_market1501"], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(ENTRIES, "osnet_x0_25_market1501", entry)
    monkeypatch.setenv("BDBNET_CACHE", str(tmp_path))
    (tmp_path / entry.file).write_bytes(content)
    bdbnet.load("osnet_x0_25_market1501", device="cpu").save(tmp_path / "zoo")
    again = (
        bdbnet.load(tmp_path / "zoo", device="cpu").save(tmp_path / "again") / "README.md"
    )  # nothing is lost on the way
    for said in (
        "Published by its authors on market1501, not measured by bdbnet: Rank-1 91.2, mAP 75.", "Data: Market-1501.",
        "research use only; the images show real people", "Terms of the weights: torchreid, MIT;", "a file of torchreid;",
    ):  # fmt: skip
        assert said in again.read_text(), said


def test_the_card_of_the_network_that_travels_with_bdbnet_says_what_was_measured():
    folder = zoo_path("bdb_osnet_x0_25_synthetic")
    measured = read_result(Path(__file__).parents[2] / "experiments" / "zoo" / "result.json")
    embedder = bdbnet.load("bdb_osnet_x0_25_synthetic", device="cpu")
    assert embedder.origin.metrics == measured.metrics
    assert Protocol(**{**embedder.origin.protocol, "image_size": (64, 32), "scales": ()}) == measured.protocol
    published = ENTRIES["bdb_osnet_x0_25_synthetic"].published
    assert {name: round(100 * measured.metrics[name], 1) for name in published} == published
    assert (folder / "README.md").read_text() == model_card(embedder, "not calibrated")
    assert "they show no real people" in (folder / "README.md").read_text()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A model hub in a folder."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            if token == "wrong":
                raise PermissionError("401: the token is not known\nmore")

        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
            (root / repo).mkdir(parents=True, exist_ok=exist_ok)
            (root / repo / "private").write_text(str(private))
            return f"address of {repo}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, revision: str | None) -> None:
            shutil.copytree(folder_path, root / repo_id / (revision or "main"), dirs_exist_ok=True)

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        place = root / repo / (revision or "main")
        if not place.is_dir():
            raise FileNotFoundError(f"404: {repo}")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_to_a_hub_and_back(run, hub):
    embedder = bdbnet.load(run / "last.ckpt", device="cpu")
    assert embedder.push_to_hub("anna/people") == "address of anna/people"
    assert (hub / "anna/people/private").read_text() == "True"
    assert {path.name for path in (hub / "anna/people/main").iterdir()} == {
        "model.safetensors",
        "bdbnet.json",
        "README.md",
    }
    again = bdbnet.load("hub:anna/people", device="cpu")
    assert again.fingerprint == embedder.fingerprint
    assert np.array_equal(again.embed(IMAGES), embedder.embed(IMAGES))
    embedder.push_to_hub("anna/people@v2", private=False)
    assert bdbnet.load("hub:anna/people@v2", device="cpu").fingerprint == embedder.fingerprint


def test_what_a_hub_refuses(run, hub):
    embedder = bdbnet.load(run / "last.ckpt", device="cpu")
    with pytest.raises(
        HubError, match=r"could not be uploaded \(PermissionError: 401: the token is not known\)\. Log in"
    ):
        embedder.push_to_hub("anna/people", token="wrong")
    with pytest.raises(CheckpointError, match="write hub:user/name"):
        embedder.push_to_hub("people")
    with pytest.raises(HubError, match=r"hub:anna/none could not be downloaded .*404"):
        bdbnet.load("hub:anna/none")
    (hub / "anna/other/main").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"holds no bdbnet\.json"):
        bdbnet.load("hub:anna/other")
