"""The ResNet backbone: shape of the feature map, torchvision's arithmetic, starting weights."""

import urllib.error
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torchvision.models

from bdbnet.models import CheckpointError, ResNetBackbone


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet101", 2048), ("resnet152", 2048)],
)
def test_feature_map_of_a_person_image(name: str, channels: int) -> None:
    with torch.device("meta"):
        backbone = ResNetBackbone(name, weights="none")
        assert backbone.out_channels == channels
        assert backbone(torch.empty(2, 3, 384, 128)).shape == (2, channels, 24, 8)


def test_stride_two_is_torchvision_and_its_file_loads_without_the_classifier(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18(weights=None).eval()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    backbone = ResNetBackbone("resnet18", tmp_path / "resnet18.pth", last_stride=2).eval()
    resnet.avgpool, resnet.fc = torch.nn.Identity(), torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images).flatten(1), resnet(images))


def test_file_of_another_resnet_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(
        CheckpointError, match=r"resnet18\.pth: the checkpoint does not match the architecture[\s\S]*missing in"
    ):
        ResNetBackbone("resnet34", tmp_path / "resnet18.pth")


@pytest.mark.parametrize(
    ("error", "words"), [(urllib.error.URLError("no route"), "no route"), (OSError(28, "full"), "full")]
)
def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: OSError, words: str) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(CheckpointError, match=rf"{words}[\s\S]*backbone\.weights=none[\s\S]*local copy"):
        ResNetBackbone("resnet18")


def test_imagenet_weights_are_version_one_and_loaded_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    state, urls = torchvision.models.resnet18(weights=None).state_dict(), []

    def give(url: str, **_: Any) -> dict[str, torch.Tensor]:
        urls.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
    backbone = ResNetBackbone("resnet18", "imagenet")
    assert urls == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())


def test_unknown_name_stride_and_file() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet34, resnet50, resnet101, resnet152"):
        ResNetBackbone("resnet20")
    with pytest.raises(ValueError, match="last_stride"):
        ResNetBackbone("resnet18", "none", last_stride=3)
    with pytest.raises(CheckpointError, match="imagnet: no such file"):
        ResNetBackbone("resnet18", "imagnet")
