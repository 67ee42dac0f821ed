"""OSNet against a second implementation from the publication's description, and against torchreid's real files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bdbnet.models import BDBNetwork, CheckpointError, OSNetBackbone, load_network, read_state_dict
from bdbnet.models.backbones.osnet import WIDTHS

State = dict[str, Tensor]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def pointwise(state: State, name: str, x: Tensor) -> Tensor:
    return norm(state, f"{name}.bn", torch.einsum("oi,nihw->nohw", state[f"{name}.conv.weight"][:, :, 0, 0], x))


def light(state: State, name: str, x: Tensor) -> Tensor:
    x = torch.einsum("oi,nihw->nohw", state[f"{name}.conv1.weight"][:, :, 0, 0], x)
    padded, filters = F.pad(x, (1, 1, 1, 1)), state[f"{name}.conv2.weight"]
    rows, columns = x.shape[2:]
    x = sum(  # type: ignore[assignment]
        padded[:, :, i : i + rows, j : j + columns] * filters[:, 0, i, j][:, None, None]
        for i in range(3)
        for j in range(3)
    )
    return norm(state, f"{name}.bn", x).relu()


def gate(state: State, name: str, x: Tensor) -> Tensor:
    squeezed = x.mean((2, 3)) @ state[f"{name}.fc1.weight"][:, :, 0, 0].T + state[f"{name}.fc1.bias"]
    weights = squeezed.relu() @ state[f"{name}.fc2.weight"][:, :, 0, 0].T + state[f"{name}.fc2.bias"]
    return x / (1 + (-weights).exp())[:, :, None, None]


def block(state: State, name: str, x: Tensor) -> Tensor:
    start, total = pointwise(state, f"{name}.conv1", x).relu(), torch.tensor(0.0)
    for depth, letter in enumerate("abcd", start=1):
        stream = start
        for place in range(depth):
            stream = light(state, f"{name}.conv2{letter}" + (f".{place}" if depth > 1 else ""), stream)
        total = total + gate(state, f"{name}.gate", stream)
    shortcut = pointwise(state, f"{name}.downsample", x) if f"{name}.downsample.conv.weight" in state else x
    return (pointwise(state, f"{name}.conv3", total) + shortcut).relu()


def osnet_by_hand(state: State, images: Tensor) -> Tensor:
    x = norm(state, "conv1.bn", F.conv2d(images, state["conv1.conv.weight"], stride=2, padding=3)).relu()
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)  # zeros are neutral after a ReLU
    for stage in ("conv2", "conv3", "conv4"):
        x = block(state, f"{stage}.1", block(state, f"{stage}.0", x))
        if stage != "conv4":
            x = pointwise(state, f"{stage}.2.0", x).relu()
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    return pointwise(state, "conv5", x).relu()


@pytest.mark.parametrize("width", [0.25, 0.75])
def test_equals_a_second_implementation_in_float64(width: float) -> None:
    torch.manual_seed(0)
    backbone = OSNetBackbone(width).double()
    backbone(torch.randn(4, 3, 64, 32, dtype=torch.float64))  # statistics that differ from 0 and 1
    backbone.eval()
    images = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    torch.testing.assert_close(backbone(images), osnet_by_hand(backbone.state_dict(), images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", WIDTHS)
def test_feature_map(width: float) -> None:
    with torch.device("meta"):
        backbone = OSNetBackbone(width)
        assert backbone.out_channels == 512 * width
        assert backbone(torch.empty(2, 3, 256, 128)).shape == (2, 512 * width, 16, 8)


@pytest.mark.parametrize(("width", "millions"), [(1.0, 2.2), (0.75, 1.3), (0.5, 0.6), (0.25, 0.2)])
def test_parameters_are_as_published(width: float, millions: float) -> None:
    with torch.device("meta"):
        network = BDBNetwork(0, OSNetBackbone(width), branches=["global"])
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions


def test_imagenet_weights_are_no_file() -> None:
    with pytest.raises(ValueError, match="no ImageNet weights of OSNet"):
        OSNetBackbone(0.25, weights="imagenet")


def test_unknown_width_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"1\.0, 0\.75, 0\.5, 0\.25"):
        OSNetBackbone(0.3)


@pytest.mark.parametrize(("name", "identities"), [("market1501", 751), ("msmt17", 1041)])
def test_torchreid_files_load_strictly_and_compute_what_the_publication_says(
    shared_data: Path, name: str, identities: int
) -> None:
    path = shared_data / "weights" / f"osnet_x0_25_{name}.pth"
    network = BDBNetwork(identities, "osnet_x0_25", branches=["global"])
    load_network(network, path)
    network.double().eval()
    state = {key: tensor.double() for key, tensor in read_state_dict(path).items()}
    images = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    pooled = osnet_by_hand(state, images).mean((2, 3))
    reduced = (pooled @ state["fc.0.weight"].T + state["fc.0.bias"])[:, :, None, None]
    embedding = norm(state, "fc.1", reduced).relu()[:, :, 0, 0]
    logits = embedding @ state["classifier.weight"].T + state["classifier.bias"]
    output = network(images)["global"]
    torch.testing.assert_close(output.embedding, embedding, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.logits, logits, rtol=1e-10, atol=1e-10)
    assert torch.equal(OSNetBackbone(0.25, path).state_dict()["conv5.conv.weight"].double(), state["conv5.conv.weight"])


def test_file_of_another_width_is_refused(shared_data: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not match the architecture[\s\S]*with another shape"):
        OSNetBackbone(0.5, shared_data / "weights" / "osnet_x0_25_msmt17.pth")
