"""PCB against its publication's description, written again with plain tensor arithmetic, and the phases of refined pooling."""

import pytest
import torch
from torch import Tensor

from bdbnet.models import BDBNetwork, CheckpointError, PCBNetwork, initialize_from, load_network


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def images(count: int = 2, height: int = 96) -> Tensor:
    return torch.randn(count, 3, height, 32)


def network(refined: bool = False, **settings) -> PCBNetwork:
    """Six rows of the map for an image of 96 pixels."""
    return PCBNetwork(5, "resnet18", embedding_dim=8, refined=refined, **settings)


def reduced(state: dict[str, Tensor], name: str, pooled: Tensor) -> Tensor:
    """Reduction in eval mode: linear layer, batch normalisation by hand, ReLU."""
    key = f"branches.{name}.reduction"
    x = pooled @ state[f"{key}.0.weight"].T + state[f"{key}.0.bias"]
    x = (x - state[f"{key}.1.running_mean"]) / (state[f"{key}.1.running_var"] + 1e-5).sqrt()
    return (x * state[f"{key}.1.weight"] + state[f"{key}.1.bias"]).clamp(min=0)


def shifted(net: PCBNetwork) -> PCBNetwork:
    """In eval mode, with running statistics and biases that are not the initial ones."""
    for key, value in net.state_dict().items():
        if key.startswith("branches.") and value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("descriptor", ["pooled", "reduced"])
def test_stripes_by_hand(descriptor):
    net = shifted(network(descriptor=descriptor))
    batch, state = images(), net.state_dict()
    with torch.no_grad():
        features, outputs, embedding = net.backbone(batch), net(batch), net.embed(batch)
        rows = [features[:, :, row].mean(2) for row in range(6)]
        expected = (
            rows if descriptor == "pooled" else [reduced(state, f"part{n}", row) for n, row in enumerate(rows, 1)]
        )
    assert [*outputs] == [f"part{number}" for number in range(1, 7)]
    for number, row in enumerate(rows, start=1):
        output = outputs[f"part{number}"]
        classifier = f"branches.part{number}.classifier"
        logits = reduced(state, f"part{number}", row) @ state[f"{classifier}.weight"].T + state[f"{classifier}.bias"]
        assert output.embedding is None
        torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(embedding, torch.cat(expected, 1))
    assert net.branch_dims == (512 if descriptor == "pooled" else 8,) * 6
    assert embedding.shape == (2, net.embedding_dim)


@pytest.mark.parametrize("height", [64, 128, 224])
def test_any_height_is_cut_as_adaptive_pooling_cuts(height):
    net, batch = network().eval(), images(height=height)
    with torch.no_grad():
        expected = torch.nn.functional.adaptive_avg_pool2d(net.backbone(batch), (6, 1))[..., 0]
        torch.testing.assert_close(net.embed(batch), expected.transpose(1, 2).flatten(1))


def test_refined_parts_by_hand():
    net = network(refined=True).eval()
    torch.nn.init.normal_(net.pooling.scores.weight)
    net.pooling.on.fill_(True)
    batch = images()
    with torch.no_grad():
        features, embedding = net.backbone(batch), net.embed(batch).view(2, 6, 512)
        for image in range(2):
            vectors = features[image].flatten(1).T  # one of 512 for each position
            scores = vectors @ net.pooling.scores.weight[:, :, 0, 0].T + net.pooling.scores.bias
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            for part in range(6):
                average = sum(w * v for w, v in zip(shares[:, part], vectors, strict=True)) / shares[:, part].sum()
                torch.testing.assert_close(embedding[image, part], average, rtol=1e-4, atol=1e-5)


def test_a_position_that_surely_belongs_to_its_stripe_gives_the_stripes():
    """Where the part classifier is certain, refined pooling is the average over each part's positions."""
    pooling = network(refined=True).pooling
    torch.nn.init.zeros_(pooling.scores.weight)
    features = torch.randn(2, 512, 6, 2)
    with torch.no_grad():
        for part in range(6):
            features[:, part] = 0
            features[:, part, part] = 100
            pooling.scores.weight[part, part] = 1
    expected = features.mean(3).transpose(1, 2)
    torch.testing.assert_close(pooling(features), expected)


def test_a_part_that_no_position_belongs_to_has_a_finite_vector_and_gradient():
    pooling = network(refined=True).pooling
    with torch.no_grad():
        pooling.scores.bias[0] = -1000
    features = torch.randn(2, 512, 6, 2, requires_grad=True)
    pooled = pooling(features)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert features.grad.isfinite().all()


def phases_of(net: PCBNetwork, max_epochs: int) -> str:
    """A letter per epoch: u(niform), c(lassifier alone), t(ogether)."""
    letters = ""
    for epoch in range(max_epochs):
        net.begin_epoch(epoch, max_epochs)
        trains = next(net.backbone.parameters()).requires_grad
        letters += "u" if not net.pooling.on else "t" if trains else "c"
    return letters


@pytest.mark.parametrize(
    ("phases", "max_epochs", "expected"),
    [
        ((60, 5, 5), 70, "u" * 60 + "c" * 5 + "t" * 5),
        ((60, 5, 5), 14, "u" * 12 + "ct"),
        ((60, 5, 5), 3, "uct"),
        ((60, 5, 5), 2, "ut"),
        ((60, 5, 5), 1, "u"),
        ((1, 0, 1), 4, "uutt"),
        ((1, 1, 0), 4, "uucc"),
        ((1, 0, 0), 3, "uuu"),
    ],
)
def test_phases_are_shares_of_the_epochs(phases, max_epochs, expected):
    assert phases_of(network(refined=True, phases=phases), max_epochs) == expected


def step(net: PCBNetwork) -> dict[str, Tensor]:
    """The state after one step of SGD on the softmax of all parts."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    labels = torch.arange(4)
    loss = sum(torch.nn.functional.cross_entropy(output.logits, labels) for output in net(images(4)).values())
    loss.backward()
    optimizer.step()
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(("epoch", "moved"), [(0, "network"), (1, "pooling"), (2, "everything")])
def test_what_a_phase_trains(epoch, moved):
    net = network(refined=True)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.begin_epoch(epoch, 3)
    after = step(net.train())
    changed = {key for key in before if not torch.equal(before[key], after[key])} - {"pooling.on"}
    pooling = {"pooling.scores.weight", "pooling.scores.bias"}
    rest = {*before} - pooling - {"pooling.on"}
    expected = {"network": rest, "pooling": pooling, "everything": rest | pooling}[moved]
    assert changed == expected  # running statistics of batch normalisation are among them


def test_evaluation_between_epochs_does_not_thaw_the_statistics():
    net = network(refined=True)
    net.begin_epoch(1, 3)
    net.eval().train()
    assert not net.backbone.bn1.training
    assert net.pooling.training
    net.begin_epoch(2, 3)
    assert net.backbone.bn1.training


def test_without_refined_pooling_there_are_no_phases():
    net = network()
    net.begin_epoch(1, 2)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any("pooling" in key for key in net.state_dict())


def test_a_file_says_whether_pooling_was_refined(tmp_path):
    trained = network(refined=True)
    trained.begin_epoch(2, 3)
    torch.save(trained.state_dict(), tmp_path / "rpp.pt")
    evaluated = PCBNetwork(0, "resnet18", embedding_dim=8, refined=True)
    load_network(evaluated, tmp_path / "rpp.pt", classifiers="drop")
    batch = images()
    with torch.no_grad():
        assert torch.equal(evaluated.eval().embed(batch), trained.eval().embed(batch))
    with pytest.raises(CheckpointError, match=r"pooling\.scores"):
        load_network(network(), tmp_path / "rpp.pt")


def test_starting_weights_do_not_skip_the_phases(tmp_path):
    trained = network(refined=True)
    trained.begin_epoch(2, 3)
    torch.save(trained.state_dict(), tmp_path / "rpp.pt")
    fresh = network(refined=True)
    assert initialize_from(fresh, tmp_path / "rpp.pt") == ["backbone", *(f"branches.part{n}" for n in range(1, 7))]
    assert not fresh.pooling.on
    assert torch.equal(fresh.branches.part6.reduction[0].weight, trained.branches.part6.reduction[0].weight)


def test_the_backbone_of_another_network_starts_it(tmp_path):
    other = BDBNetwork(5, "resnet18")
    torch.save(other.state_dict(), tmp_path / "bdb.pt")
    net = network()
    assert initialize_from(net, tmp_path / "bdb.pt") == ["backbone"]
    assert torch.equal(net.backbone.conv1.weight, other.backbone.conv1.weight)


def test_without_identities_there_are_no_classifiers():
    net = PCBNetwork(0, "osnet_x0_25")
    assert not any("classifier" in key for key in net.state_dict())
    assert all(output == (None, None) for output in net(images()).values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": 0}, "parts must be at least 1"),
        ({"descriptor": "raw"}, "descriptor 'raw'; choose from pooled, reduced"),
        ({"backbone": "resnet7"}, "backbone 'resnet7'"),
        ({"phases": (1, 2)}, "three shares"),
        ({"phases": (0, 1, 1)}, "first above 0"),
        ({"phases": (1, -1, 1)}, "three shares"),
    ],
)
def test_bad_arguments(settings, said):
    with pytest.raises(ValueError, match=said):
        PCBNetwork(5, **{"backbone": "osnet_x0_25", **settings})


def test_parameters_with_resnet50():
    """Six reductions of 2048 x 256 and six classifiers of 751 identities on the backbone's 23.5 M."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in PCBNetwork(751, refined=refined).parameters()) for refined in (False, True)]
    backbone, head = 23_508_032, 2048 * 256 + 256 + 2 * 256 + 256 * 751 + 751
    assert counts == [backbone + 6 * head, backbone + 6 * head + 6 * 2049]
