"""The ResNet backbone: shape of the feature map, torchvision's arithmetic, starting weights."""

import urllib.error
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torchvision.models

from bdbnet.models import (
    BDBNetwork,
    CheckpointError,
    MGNNetwork,
    ResNetBackbone,
    initialize_from,
    load_network,
    recognise,
)
from bdbnet.models.backbones.non_local import NonLocal


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


def mixed(layer: NonLocal, features: torch.Tensor) -> torch.Tensor:
    """What a non-local block gives, position by position, in evaluation mode."""
    images, _, rows, columns = features.shape
    places = [(row, column) for row in range(rows) for column in range(columns)]

    def at(convolution: Any, image: int, place: tuple[int, int]) -> torch.Tensor:
        return convolution.weight[:, :, 0, 0] @ features[image][:, place[0], place[1]] + convolution.bias

    result = features.clone()
    for image in range(images):
        for row, column in places:
            theta, total = at(layer.theta, image, (row, column)), 0
            for other in places:
                total = total + theta @ at(layer.phi, image, other) / len(places) * at(layer.g, image, other)
            out: Any = layer.W[0].weight[:, :, 0, 0] @ total + layer.W[0].bias
            norm: Any = layer.W[1]
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            result[image, :, row, column] += (out - norm.running_mean) * scale + norm.bias
    return result


@pytest.mark.parametrize("inner", [1, 3])
def test_a_non_local_block_is_a_sum_over_all_positions(inner: int) -> None:
    torch.manual_seed(0)
    layer = NonLocal(6, inner).double().eval()
    norm: Any = layer.W[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    features = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(features), mixed(layer, features))


def test_non_local_blocks_add_nothing_at_the_start_and_stand_behind_the_last_blocks() -> None:
    torch.manual_seed(0)
    plain = ResNetBackbone("resnet18", "none").eval()
    backbone = ResNetBackbone("resnet18", "none", non_local=[0, 1, 2, 0]).eval()
    backbone.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(backbone(images), plain(images))
    added = {key.partition(".")[0] for key in backbone.state_dict()} - {
        key.partition(".")[0] for key in plain.state_dict()
    }
    assert added == {*backbone.added_layers} == {"NL_2", "NL_3"}
    assert backbone.get_submodule("NL_3.0.theta").out_channels == 128  # half of 256

    seen: list[str] = []
    for name, module in backbone.named_modules():
        if name in ("layer2.0", "layer2.1", "NL_2.0", "layer3.0", "NL_3.0", "layer3.1", "NL_3.1", "layer4.0"):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    torch.nn.init.ones_(backbone.get_submodule("NL_2.0.W.1").weight)
    assert not torch.equal(backbone(images), plain(images))
    assert seen == ["layer2.0", "layer2.1", "NL_2.0", "layer3.0", "NL_3.0", "layer3.1", "NL_3.1", "layer4.0"]


def test_weights_without_non_local_blocks_start_a_network_that_has_some(tmp_path: Path, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "imagenet.pth")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: resnet.state_dict())
    for weights in (tmp_path / "imagenet.pth", "imagenet"):
        backbone = ResNetBackbone("resnet18", weights, non_local=[0, 2, 0, 0])
        assert backbone.new_layers == ("NL_2",)
        assert torch.equal(backbone.conv1.weight, resnet.conv1.weight)
    network = BDBNetwork(3, backbone)
    assert initialize_from(network, tmp_path / "imagenet.pth") == ["backbone"]

    torch.save(network.state_dict(), tmp_path / "own.pth")
    other = BDBNetwork(3, ResNetBackbone("resnet18", tmp_path / "own.pth", non_local=[0, 2, 0, 0]))
    assert other.backbone.new_layers == ()
    assert initialize_from(other, tmp_path / "own.pth") == ["backbone", "branches.global_", "branches.dropping"]
    assert torch.equal(other.backbone.get_submodule("NL_2.1.g").weight, backbone.get_submodule("NL_2.1.g").weight)
    found = recognise(network.state_dict(), "own.pth").backbone
    assert (found["non_local"], found["non_local_channels"]) == ([0, 2, 0, 0], 64)

    torch.save(BDBNetwork(3, ResNetBackbone("resnet18", "none")).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"missing in the file: backbone\.NL_2"):  # a network is restored whole
        load_network(other, tmp_path / "plain.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"non_local": [0, 2, 3]}, r"non_local=\[0, 2, 3\]: give a number of blocks for each of the four stages"),
        ({"non_local": [0, 2, 3, 0]}, r"non_local=\[0, 2, 3, 0\]: the stages of resnet18 have \[2, 2, 2, 2\] blocks"),
        ({"non_local": [0, 1, 0, 0], "non_local_channels": 0}, "non_local_channels=0"),
    ],
)
def test_non_local_blocks_that_a_network_cannot_have(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetBackbone("resnet18", "none", **settings)


def test_mgn_refuses_non_local_blocks() -> None:
    with pytest.raises(ValueError, match=r"leave backbone\.non_local out"):
        MGNNetwork(3, ResNetBackbone("resnet18", "none", non_local=[0, 1, 0, 0]))
