"""Fingerprints of networks, as they were first written: stored galleries and calibrations stay comparable."""

import pytest
import torch

import bdbnet
from bdbnet.models import BDBNetwork, OSNetBackbone

TRAINED = {
    "model": {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"], "pooling": "max"},
    "backbone": {"_target_": "bdbnet.models.OSNetBackbone", "width": 0.25, "weights": "none"},
    "dropping": {"_target_": "bdbnet.models.BatchDropBlock", "height_ratio": 0.3, "width_ratio": 1.0, "seed": 1},
    "dataset": {"name": "cub200", "image_size": [64, 48], "test_size": [64, 64], "pad_test": True},
    "evaluation": {"distance": "cosine"},
    "seed": 3,
}


def counted(network: torch.nn.Module) -> torch.nn.Module:
    """The network with weights of whole sixteenths, the same on every machine."""
    for number, (key, tensor) in enumerate(sorted(network.state_dict().items())):
        values = torch.arange(tensor.numel(), dtype=torch.float64).mul(7).add(number).remainder(13).sub(6)
        tensor.copy_((values.abs() + 1 if key.endswith("running_var") else values / 16).view(tensor.shape))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("osnet_x0_25_market1501.pth", "b871eef5f550d7f322bbfded39c35a62917f94e657c03185db3a0467f3e5cee1"),
        ("osnet_x0_25_msmt17.pth", "6450c4253ac02ac66788c64d87a0fef04420d349b95d106c1588a74a539d20de"),
    ],
)
def test_published_weights(shared_data, name, fingerprint):
    assert bdbnet.load(shared_data / "weights" / name, device="cpu").fingerprint == fingerprint


def test_a_file_in_torchreids_format(tmp_path):
    network = counted(BDBNetwork(5, OSNetBackbone(0.5), ["global"]))
    names = {"branches.global_.reduction": "fc", "branches.global_.classifier": "classifier", "backbone.": ""}
    state = {}
    for key, tensor in network.state_dict().items():
        ours = next(name for name in names if key.startswith(name))
        state[names[ours] + key.removeprefix(ours)] = tensor
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "osnet.pth.tar")
    found = bdbnet.load(tmp_path / "osnet.pth.tar", device="cpu").fingerprint
    assert found == "e8c5c6a3657f9e7bfa2e49ecdac93316e856664d99b5633ab9550610b8054d5a"


def test_bare_weights_of_a_bdb_network(tmp_path):
    network = counted(BDBNetwork(5, OSNetBackbone(0.25)))
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    embedder = bdbnet.load(tmp_path / "bare.pth", image_size=(64, 32), device="cpu")
    assert embedder.fingerprint == "03b1ac4145f926c18e2f6460f6969d5b42daead667c330c88f9e3377b0432f64"
    folder = embedder.save(tmp_path / "saved")
    assert bdbnet.load(folder, device="cpu").fingerprint == embedder.fingerprint


def test_a_checkpoint_of_a_training(tmp_path):
    state = counted(BDBNetwork(7, OSNetBackbone(0.25))).state_dict()
    content = {"state_dict": {f"network.{key}": tensor for key, tensor in state.items()}, "epoch": 3}
    torch.save({**content, "bdbnet": {"config": TRAINED}}, tmp_path / "last.ckpt")
    found = bdbnet.load(tmp_path / "last.ckpt", device="cpu").fingerprint
    assert found == "b9eba44c22cf2000403f7847b2ff7efab2dcc5d85463dfeaddddce28af479bb6"


def test_a_pretrained_network_of_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: counted(create(name, **options)))
    found = bdbnet.load("timm:mobilenetv3_small_050", device="cpu").fingerprint
    assert found == "5b979c28620800a6924b665824745e391e0a851997ae8e593ae527453f1241ab"
