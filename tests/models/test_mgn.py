"""MGN against its publication's description, written again on the copies' own blocks."""

import pytest
import torch
from torch import Tensor

from bdbnet.losses import BatchHardTripletLoss
from bdbnet.models import BDBNetwork, CheckpointError, MGNNetwork, ResNetBackbone, initialize_from, load_network
from bdbnet.training.criterion import BranchLosses

PARTS = {"whole": 1, "halves": 2, "thirds": 3}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def images(count: int = 2, height: int = 96) -> Tensor:
    return torch.randn(count, 3, height, 32)


def network(num_classes: int = 5, **settings) -> MGNNetwork:
    return MGNNetwork(num_classes, "resnet18", embedding_dim=8, **settings)


def load_by_key(backbone: ResNetBackbone, net: MGNNetwork, name: str) -> ResNetBackbone:
    """A plain backbone with the weights of one branch: what is shared, and the branch's own blocks."""
    state = net.backbone.state_dict()
    if name != "whole":
        own = iter(net.copies[name].state_dict().values())
        state |= {key: next(own) for key in state if key.startswith(("layer3.1.", "layer4."))}
        assert next(own, None) is None
    backbone.load_state_dict(state)
    return backbone.eval()


def reduced(net: MGNNetwork, name: str, pooled: Tensor) -> Tensor:
    linear, norm, _ = net.branches[name].reduction
    x = (pooled @ linear.weight.T + linear.bias - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    return (x * norm.weight + norm.bias).clamp(min=0)


def test_eight_vectors_by_hand():
    net, batch = network().eval(), images()
    for parameter in net.parameters():  # copies that differ
        parameter.data += 0.01 * torch.randn_like(parameter)
    expected = []
    with torch.no_grad():
        outputs, embedding = net(batch), net.embed(batch)
        for name, parts in PARTS.items():
            backbone = load_by_key(ResNetBackbone("resnet18", "none", 2 if name == "whole" else 1), net, name)
            features = backbone(batch)
            assert features.shape[2] == (3 if name == "whole" else 6)
            pooled = features.flatten(2).max(2).values
            torch.testing.assert_close(outputs[name].embedding, reduced(net, name, pooled))
            torch.testing.assert_close(outputs[name].logits, pooled @ net.branches[name].classifier.weight.T)
            expected.append(reduced(net, name, pooled))
            rows = features.shape[2] // parts
            for part in range(parts if parts > 1 else 0):
                stripe = features[:, :, part * rows : (part + 1) * rows].flatten(2).max(2).values
                key = f"{name}{part + 1}"
                logits = reduced(net, key, stripe) @ net.branches[key].classifier.weight.T
                assert outputs[key].embedding is None
                torch.testing.assert_close(outputs[key].logits, logits)
                expected.append(reduced(net, key, stripe))
    torch.testing.assert_close(embedding, torch.cat(expected, 1))
    assert net.branch_dims == (8,) * 8
    assert embedding.shape == (2, net.embedding_dim)


def test_eleven_losses():
    net = network()
    _, parts = BranchLosses(BatchHardTripletLoss(1.2), name="triplet")(net(images(4)), torch.tensor([0, 0, 1, 1]))
    assert len(parts) == 11
    assert {name for name in parts if name.startswith("triplet")} == {f"triplet_{name}" for name in PARTS}


def test_every_parameter_gets_a_gradient():
    net = network()
    loss, _ = BranchLosses(BatchHardTripletLoss(1.2))(net(images(4)), torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.copies.parameters())


def test_copies_start_as_the_backbone_and_go_their_own_way():
    net = network()
    for name in ("halves", "thirds"):
        own = net.copies[name][-1].conv2.weight
        assert torch.equal(own, net.backbone.layer4[-1].conv2.weight)
        assert own.data_ptr() != net.backbone.layer4[-1].conv2.weight.data_ptr()
    assert len(net.backbone_parameters()) == len([*net.backbone.parameters(), *net.copies.parameters()])


@pytest.mark.parametrize("last_stride", [1, 2])
def test_the_backbone_s_own_last_stride_has_no_effect(last_stride):
    net = MGNNetwork(0, ResNetBackbone("resnet18", "none", last_stride))
    strides = [
        net.backbone.layer4[0].conv1.stride,
        net.copies.halves[1].conv1.stride,
        net.copies.thirds[1].conv1.stride,
    ]
    assert strides == [(2, 2), (1, 1), (1, 1)]
    assert net.copies.halves[1].downsample[0].stride == (1, 1)


def test_weights_from_a_file_fill_the_copies_too(tmp_path):
    other = BDBNetwork(5, "resnet18")
    torch.save(other.state_dict(), tmp_path / "bdb.pt")
    net = network()
    assert initialize_from(net, tmp_path / "bdb.pt") == ["backbone"]
    for name in ("halves", "thirds"):
        assert torch.equal(net.copies[name][0].conv1.weight, other.backbone.layer3[1].conv1.weight)
        assert torch.equal(net.copies[name][-1].bn2.running_var, other.backbone.layer4[-1].bn2.running_var)


def test_copies_of_a_file_stay_their_own(tmp_path):
    trained = network()
    for parameter in trained.copies.parameters():
        parameter.data += 1
    torch.save(trained.state_dict(), tmp_path / "mgn.pt")
    net = network(num_classes=9)
    loaded = initialize_from(net, tmp_path / "mgn.pt")
    assert {"backbone", "copies.halves", "copies.thirds", "branches.whole", "branches.thirds3"} <= {*loaded}
    assert torch.equal(net.copies.thirds[-1].conv2.weight, trained.copies.thirds[-1].conv2.weight)


def test_a_file_is_evaluated_without_its_classifiers(tmp_path):
    trained, batch = network().eval(), images()
    torch.save(trained.state_dict(), tmp_path / "mgn.pt")
    evaluated = network(num_classes=0).eval()
    assert not any("classifier" in key for key in evaluated.state_dict())
    load_network(evaluated, tmp_path / "mgn.pt", classifiers="drop")
    with torch.no_grad():
        assert torch.equal(evaluated.embed(batch), trained.embed(batch))
        assert evaluated(batch)["halves1"] == (None, None)
    with pytest.raises(CheckpointError, match="classifier"):
        load_network(network(num_classes=9), tmp_path / "mgn.pt")


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(ValueError, match="the backbone is OSNetBackbone: choose a ResNet, such as backbone=resnet50"):
        MGNNetwork(5, "osnet_x0_25")


def test_parameters_with_resnet50():
    """The paper says that MGN has three times the parameters of the BDB Network; built as published it has 2.3 times."""
    with torch.device("meta"):
        net, bdb = MGNNetwork(751), BDBNetwork(751)
        own = sum(parameter.numel() for parameter in net.copies.parameters())
        counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (net, bdb)]
    heads = 8 * (2048 * 256 + 3 * 256) + 3 * 2048 * 751 + 5 * 256 * 751
    assert counts[0] == 23_508_032 + own + heads
    assert counts == [74_385_216, 32_275_998]
