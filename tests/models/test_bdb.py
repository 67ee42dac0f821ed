"""The network against the paper's description, written again with plain tensor arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from bdbnet.models import BatchDropBlock, BDBNetwork, FeatureDroppingBranch, GlobalBranch
from bdbnet.models.bdb import MODULES

State = dict[str, Tensor]


class PaperByHand:
    """Section 3 of the paper on the weights of a network, with its own normalisation, pooling and residual blocks."""

    def __init__(self, state: State, *, training: bool, dropped: Tensor | None, pooling: str = "max") -> None:
        self.state, self.training, self.dropped, self.pooling = state, training, dropped, pooling

    def norm(self, name: str, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        if self.training:
            mean = x.mean(axes)
            variance = (x * x).mean(axes) - mean * mean
        else:
            mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        scale = self.state[f"{name}.weight"] / (variance + 1e-5).sqrt()
        shift = self.state[f"{name}.bias"] - mean * scale
        view = (-1, *(1,) * (x.dim() - 2))
        return x * scale.view(view) + shift.view(view)

    def residual(self, name: str, x: Tensor, stride: int) -> Tensor:
        kernels = [key for key in (f"{name}.conv{i}.weight" for i in (1, 2, 3)) if key in self.state]
        strided = 1 if len(kernels) == 3 else 0  # the 3x3 convolution of a bottleneck, the first of a basic block
        out = x
        for place, key in enumerate(kernels):
            kernel = self.state[key]
            out = F.conv2d(out, kernel, stride=stride if place == strided else 1, padding=kernel.shape[-1] // 2)
            out = self.norm(f"{name}.bn{place + 1}", out)
            out = out.clamp(min=0) if place < len(kernels) - 1 else out
        if f"{name}.downsample.0.weight" in self.state:
            shortcut = self.state[f"{name}.downsample.0.weight"][:, :, 0, 0]
            x = self.norm(f"{name}.downsample.1", torch.einsum("oi,nihw->nohw", shortcut, x[:, :, ::stride, ::stride]))
        return (out + x).clamp(min=0)

    def backbone(self, images: Tensor) -> Tensor:
        x = F.conv2d(images, self.state["backbone.conv1.weight"], stride=2, padding=3)
        x = self.norm("backbone.bn1", x).clamp(min=0)
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)  # zeros are neutral after a ReLU
        for stage, stride in enumerate((1, 2, 2, 1), start=1):  # stage 4 does not down-sample
            place = 0
            while f"backbone.layer{stage}.{place}.conv1.weight" in self.state:
                x = self.residual(f"backbone.layer{stage}.{place}", x, stride if place == 0 else 1)
                place += 1
        return x

    def head(self, branch: str, pooled: Tensor) -> tuple[Tensor, Tensor]:
        s, name = self.state, f"branches.{MODULES[branch]}"
        reduced = pooled @ s[f"{name}.reduction.0.weight"].T + s[f"{name}.reduction.0.bias"]
        embedding = self.norm(f"{name}.reduction.1", reduced).clamp(min=0)
        return embedding, embedding @ s[f"{name}.classifier.weight"].T + s[f"{name}.classifier.bias"]

    def __call__(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        features = self.backbone(images)
        x = self.residual("branches.dropping.bottleneck", features, 1)
        if self.dropped is not None:
            x = torch.where(self.dropped, torch.zeros((), dtype=x.dtype), x)
        pooled = (
            x.flatten(2).sort().values[:, :, -1] if self.pooling == "max" else x.flatten(2).sum(2) / x[0, 0].numel()
        )
        return {"global": self.head("global", features.flatten(2).mean(2)), "dropping": self.head("dropping", pooled)}


def lively(network: nn.Module) -> nn.Module:
    """Normalisation that differs from its neutral start, so that a wrong one shows.

    What a residual block adds is made small, as training does: 50 random layers at full strength would amplify float32
    rounding to 1e-4 in train mode, in any implementation.
    """
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, 0, 0.2, generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                (module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight *= 0.1
    return network


def close(ours: Tensor, reference: Tensor, tolerance: float) -> bool:
    return bool((ours.double() - reference).abs().max() <= tolerance * reference.abs().max().clamp(min=1))


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(
    scope="module", params=[(name, dtype) for name in ("resnet18", "resnet50") for dtype in TOLERANCES], ids=str
)
def network(request: pytest.FixtureRequest) -> BDBNetwork:
    name, dtype = request.param
    torch.manual_seed(0)
    network = lively(BDBNetwork(5, name, dropping=BatchDropBlock(0.3, 1.0, seed=7))).to(dtype)
    with torch.no_grad():
        for _ in range(2):  # statistics that differ from 0 and 1
            network(torch.randn(8, 3, 64, 32, dtype=dtype))
    return network


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_equals_the_papers_description(network: BDBNetwork, training: bool) -> None:
    network.train(training)
    state = {key: tensor.double() for key, tensor in network.state_dict().items()}
    dtype = network.backbone.conv1.weight.dtype
    tolerance = TOLERANCES[dtype]
    images = torch.randn(8, 3, 64, 32, dtype=dtype, generator=torch.Generator().manual_seed(3))
    dropped = None
    if training:
        dropped = network.branches["dropping"].drop.dropped((8, network.backbone.out_channels, 4, 2))
        assert dropped.sum() == round(0.3 * 4) * 2
    reference = PaperByHand(state, training=training, dropped=dropped)(images.double())
    for name, output in network(images).items():
        assert close(output.embedding, reference[name][0], tolerance)
        assert close(output.logits, reference[name][1], tolerance)


class Stub(nn.Module):
    """A backbone of one convolution, for tests of what stands on the backbone."""

    def __init__(self, out_channels: int = 16) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(3, out_channels, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu()


def test_average_pooling_of_the_dropping_branch() -> None:
    branch = FeatureDroppingBranch(16, 5, 32, nn.Identity(), "avg").double().eval()
    features = torch.randn(2, 16, 4, 3, dtype=torch.float64)
    state = {f"branches.dropping.{key}": tensor for key, tensor in branch.state_dict().items()}
    by_hand = PaperByHand(state, training=False, dropped=None, pooling="avg")
    x = by_hand.residual("branches.dropping.bottleneck", features, 1)
    embedding, logits = by_hand.head("dropping", x.flatten(2).sum(2) / 12)
    torch.testing.assert_close(branch(features).embedding, embedding)
    torch.testing.assert_close(branch(features).logits, logits)


def test_embedding_is_joined_in_the_order_of_branches() -> None:
    for branches in (["global", "dropping"], ["dropping", "global"], ["global"], ["dropping"]):
        network = BDBNetwork(5, Stub(), branches).eval()
        images = torch.randn(2, 3, 32, 16)
        outputs = network(images)
        assert list(outputs) == branches
        assert torch.equal(network.embed(images), torch.cat([outputs[name].embedding for name in branches], dim=1))
        assert network.embed(images).shape == (2, network.embedding_dim)
    assert BDBNetwork(5, Stub()).embedding_dim == 1536
    assert BDBNetwork(5, Stub(), embedding_dims={"global": 8, "dropping": 9}).embedding_dim == 17


def test_batch_of_one_in_eval_mode() -> None:
    network = BDBNetwork(5, Stub()).eval()
    assert network.embed(torch.randn(1, 3, 32, 16)).shape == (1, 1536)
    assert network(torch.randn(1, 3, 32, 16))["dropping"].logits.shape == (1, 5)


def test_without_classes_there_are_no_logits() -> None:
    outputs = BDBNetwork(0, Stub())(torch.randn(2, 3, 32, 16))
    assert [output.logits for output in outputs.values()] == [None, None]


def test_drop_layer_acts_in_training_between_bottleneck_and_pooling() -> None:
    class Everything(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features * 0 + 3

    branch = FeatureDroppingBranch(16, 0, 8, Everything())
    branch.reduction = nn.Identity()
    assert torch.equal(branch.embed(torch.randn(2, 16, 4, 4)), torch.full((2, 16), 3.0))


@pytest.mark.parametrize("branches", [[], ["global", "globe"], ["global", "global"], "global"])
def test_branches_that_make_no_network(branches: list[str]) -> None:
    with pytest.raises(ValueError, match="choose one or more of global, dropping, each once"):
        BDBNetwork(5, Stub(), branches)


def test_unknown_pooling_backbone_and_dimension_list_the_choices() -> None:
    with pytest.raises(ValueError, match="'median'; choose from max, avg, gem"):
        BDBNetwork(5, Stub(), pooling="median")
    with pytest.raises(ValueError, match=r"'vgg'; choose from resnet18, .*osnet_x0_25"):
        BDBNetwork(5, "vgg")
    with pytest.raises(ValueError, match="embedding_dims"):
        BDBNetwork(5, Stub(), embedding_dims={"part": 3})


def test_start_of_the_heads_is_the_released_codes() -> None:
    torch.manual_seed(0)
    wide, drop = GlobalBranch(512, 800), FeatureDroppingBranch(512, 800)
    for tensor, deviation in (
        (wide.reduction[0].weight, (2 / 512) ** 0.5),  # kaiming, fan in
        (drop.reduction[0].weight, (2 / 1024) ** 0.5),  # kaiming, fan out
        (wide.classifier.weight, (2 / 800) ** 0.5),
        (drop.classifier.weight, (2 / 800) ** 0.5),
    ):
        assert abs(tensor.std() / deviation - 1) < 0.02
    for head in (wide, drop):
        assert abs(head.reduction[1].weight.mean() - 1) < 0.005
        assert 0.015 < head.reduction[1].weight.std() < 0.025
        assert not head.reduction[0].bias.any()
        assert not head.classifier.bias.any()


def test_keys_of_the_state_dict_stay() -> None:
    with torch.device("meta"):
        keys = BDBNetwork(5, "resnet18").state_dict().keys()
    assert {
        "backbone.conv1.weight",
        "backbone.layer4.1.bn2.running_var",
        "branches.global_.reduction.0.weight",
        "branches.global_.reduction.1.running_mean",
        "branches.global_.classifier.bias",
        "branches.dropping.bottleneck.conv3.weight",
        "branches.dropping.drop.step",
        "branches.dropping.reduction.0.bias",
        "branches.dropping.classifier.weight",
    } <= {*keys}
    assert {key.split(".")[0] for key in keys} == {"backbone", "branches"}


def test_compiled_in_one_graph_that_serves_every_step() -> None:
    network = BDBNetwork(5, Stub())
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        for _ in range(3):
            compiled(torch.randn(4, 3, 32, 16))["dropping"].logits.sum().backward()
    assert network.branches["dropping"].drop.step == 3
