"""Heads and poolings of the branches, against their formulas written again."""

import shutil

import pytest
import torch
from torch import nn

from bdbnet.models import BDBNetwork, FeatureDroppingBranch, GlobalBranch
from bdbnet.models.heads import BNNeck, GeM, global_max_pool


class Stub(nn.Module):
    """A backbone of one convolution."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu()


@pytest.mark.parametrize("power", [1.0, 3.0, 6.5])
def test_gem_is_the_generalised_mean(power):
    gem = GeM().double()
    with torch.no_grad():
        gem.p.fill_(power)
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    for image in range(2):
        for channel in range(3):
            values = [max(value, 1e-6) ** power for value in features[image, channel].flatten().tolist()]
            expected = (sum(values) / len(values)) ** (1 / power)
            assert gem(features)[image, channel].item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(gem, features.clone().requires_grad_())


def test_gem_is_float32_under_autocast_and_finite_on_an_empty_map():
    gem = GeM()
    features = torch.rand(2, 3, 4, 5).bfloat16()
    features[0] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = gem(features.requires_grad_())
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled[1], gem(features.float())[1])  # the floor of an empty map is rounded
    pooled.sum().backward()
    assert torch.isfinite(gem.p.grad).all()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduced", [None, 6])
def test_bnneck_gives_the_losses_what_is_before_and_after_the_normalisation(training, reduced):
    torch.manual_seed(0)
    neck = BNNeck(8, 5, reduced).double().train(training)
    nn.init.uniform_(neck.norm.weight, 0.5, 1.5)
    nn.init.uniform_(neck.norm.running_mean)
    pooled = torch.randn(7, 8, dtype=torch.float64)
    feature = pooled if reduced is None else pooled @ neck.reduction.weight.T
    mean, variance = feature.mean(0), feature.var(0, unbiased=False)
    if not training:
        mean, variance = neck.norm.running_mean.clone(), neck.norm.running_var.clone()
    normalised = (feature - mean) / (variance + 1e-5).sqrt() * neck.norm.weight
    output = neck(pooled)
    torch.testing.assert_close(output.embedding, feature)
    torch.testing.assert_close(output.logits, normalised @ neck.classifier.weight.T)
    assert training or torch.allclose(neck.embed(pooled), normalised)


def test_bnneck_has_no_trained_bias():
    neck = BNNeck(8, 5)
    assert {name for name, parameter in neck.named_parameters() if parameter.requires_grad} == {
        "norm.weight",
        "classifier.weight",
    }
    assert not neck.norm.bias.any()
    assert BNNeck(8, 0)(torch.randn(3, 8)).logits is None


@pytest.mark.parametrize("branches", [["global"], ["dropping"], ["global", "dropping"]])
def test_bnneck_on_every_model(branches):
    network = BDBNetwork(5, Stub(), branches, head="bnneck").eval()
    images = torch.randn(2, 3, 32, 16)
    assert network.branch_dims == (16,) * len(branches)
    assert network.embed(images).shape == (2, network.embedding_dim)
    outputs = network(images)
    assert [output.embedding.shape for output in outputs.values()] == [(2, 16)] * len(branches)
    reduced = BDBNetwork(5, Stub(), branches, head="bnneck", embedding_dims={"global": 6})
    assert reduced.branch_dims == tuple(6 if name == "global" else 16 for name in branches)


def pools(**settings: str) -> tuple[str, str]:
    network = BDBNetwork(5, Stub(), **settings)
    return network.branches["global_"].pooling, network.branches["dropping"].pooling


def test_pooling_is_of_the_dropping_branch_and_gem_of_both():
    assert pools() == ("avg", "max")
    assert pools(pooling="avg") == ("avg", "avg")
    assert pools(pooling="gem") == ("gem", "gem")
    assert pools(pooling="gem", global_pooling="avg") == ("avg", "gem")
    assert pools(global_pooling="gem") == ("gem", "max")
    assert pools(global_pooling="max") == ("max", "max")


@pytest.mark.parametrize("branch", [GlobalBranch, FeatureDroppingBranch])
def test_unknown_heads_and_poolings_list_the_choices(branch):
    with pytest.raises(ValueError, match="'neck'; choose from linear, bnneck"):
        branch(16, 5, 8, head="neck")
    with pytest.raises(ValueError, match="'mid'; choose from max, avg, gem"):
        branch(16, 5, 8, pooling="mid")


def test_vectors_of_a_backbone_are_pooled_already():
    branch = GlobalBranch(16, 5, None, head="bnneck").eval()
    vectors = torch.randn(3, 16)
    assert torch.equal(branch(vectors).embedding, vectors)

    class Encoder(Stub):
        pools = True

    with pytest.raises(ValueError, match=r"gives a vector for each image.*backbone=timm"):
        BDBNetwork(5, Encoder())


def test_the_default_draws_its_weights_as_ever():
    """A new choice takes no random number from those that were there before."""
    torch.manual_seed(0)
    default = BDBNetwork(5, Stub()).state_dict()
    torch.manual_seed(0)
    chosen = BDBNetwork(5, Stub(), pooling="gem", head="linear").state_dict()
    assert all(torch.equal(default[key], chosen[key]) for key in default)
    assert {*chosen} - {*default} == {"branches.global_.gem.p", "branches.dropping.gem.p"}


@pytest.mark.parametrize("branches", [["global"], ["global", "dropping"]])
def test_compiled_in_one_graph(branches):
    network = BDBNetwork(5, Stub(), branches, pooling="gem", head="bnneck")
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    compiled(torch.randn(4, 3, 32, 16))["global"].logits.sum().backward()
    assert network.branches["global_"].gem.p.grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_max_pooling_is_the_maximum_of_each_map_and_its_gradient_goes_to_one_place(layout):
    features = torch.randint(0, 3, (2, 3, 4, 5)).bfloat16().contiguous(memory_format=layout)  # with ties
    pooled = global_max_pool(features.requires_grad_())
    assert torch.equal(pooled, global_max_pool(features.detach()))
    pooled.sum().backward()
    for image in range(2):
        for channel in range(3):
            chosen = features.grad[image, channel].nonzero()
            assert len(chosen) == 1
            assert (
                features[image, channel][tuple(chosen[0])]
                == max(features[image, channel].flatten())
                == pooled[image, channel]
            )


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_max_pooling_compiled_in_bfloat16_has_the_gradients_of_the_layer():
    """A compiled step computes the map anew for its backward pass, in another precision than that of the maximum."""
    torch.manual_seed(0)
    weight, images = torch.randn(1, 4, 1, 1, requires_grad=True), torch.rand(2, 4, 6, 3, dtype=torch.bfloat16)

    def compute() -> torch.Tensor:
        return global_max_pool(((images * weight).bfloat16() * 1.7).relu()).float().square().sum()

    torch._dynamo.reset()
    found, expected = (
        torch.autograd.grad(each(), weight)[0] for each in (torch.compile(compute, dynamic=False), compute)
    )
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
