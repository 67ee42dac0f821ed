import numpy as np
import pytest
import torch
from torch import nn

from bdbnet.evaluation import maps as evaluation_maps
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings
from bdbnet.evaluation.load import Wanted, open_embedder
from bdbnet.evaluation.maps import (
    MapError,
    class_maps,
    energy_maps,
    half_energy_area,
    similarity_maps,
    united,
)
from bdbnet.loading import Preprocessing
from bdbnet.models import BDBNetwork, BranchOutput, EmbeddingNetwork, MGNNetwork, PCBNetwork, PooledNetwork, TimmNetwork

SIZE = (32, 16)
REGION = (slice(1, 3), slice(0, 2))  # rows and columns of the map


class Region(EmbeddingNetwork):
    """A network that looks at one region of its map alone, and is linear there."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.AvgPool2d(4)  # a map of 8 x 4 with the three colours as channels
        self.head = nn.Linear(12, 5, bias=False)
        self.classifier = nn.Linear(5, 4, bias=False)
        for layer in (self.head, self.classifier):
            nn.init.uniform_(layer.weight, 0, 1, generator=torch.Generator().manual_seed(1))
        self.branch_dims = (5,)

    def embed(self, images):
        return self.head(self.backbone(images)[:, :, REGION[0], REGION[1]].flatten(1))

    def forward(self, images):
        embedding = self.embed(images)
        return {"pooled": BranchOutput(embedding, self.classifier(embedding))}


def embedder_of(network, size=SIZE, **options):
    network.eval().requires_grad_(False)
    return Embedder(network, Preprocessing(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), **options)


def images_of(count, seed=0, size=SIZE):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="module")
def bdb():
    torch.manual_seed(0)
    return embedder_of(BDBNetwork(6, "osnet_x0_25", embedding_dims={"global": 16, "dropping": 24}), (64, 32))


def outside(maps):
    rest = maps.copy()
    rest[:, REGION[0], REGION[1]] = 0
    return rest


class TestOneKnownRegion:
    """A network that is linear in one region: the map is that region, and its sum is the score."""

    embedder = embedder_of(Region())

    def test_of_a_pair(self):
        a, b = images_of(3), images_of(3, seed=1)
        left, right = similarity_maps(self.embedder, a, b)
        embeddings = [self.embedder.network.embed(side / 255.0).double() for side in (a, b)]
        products = (embeddings[0] * embeddings[1]).sum(1).numpy()
        for maps in (left["backbone"], right["backbone"]):
            assert maps.shape == (3, 8, 4)
            assert not outside(maps).any()
            assert (maps[:, REGION[0], REGION[1]] > 0).all()
            np.testing.assert_allclose(maps.sum((1, 2)), products, rtol=1e-5)

    def test_of_an_identity(self):
        images = images_of(2)
        maps, chosen = class_maps(self.embedder, images, [3, 0], method="hirescam")
        assert chosen.tolist() == [3, 0]
        assert not outside(maps["backbone"]).any()
        logits = self.embedder.network(images / 255.0)["pooled"].logits
        np.testing.assert_allclose(maps["backbone"].sum((1, 2)), logits[[0, 1], [3, 0]].numpy(), rtol=1e-5)

    def test_energy_is_that_of_the_map(self):
        images = images_of(2)
        naive = (nn.functional.avg_pool2d(images / 255.0, 4).double() ** 2).sum(1)
        np.testing.assert_allclose(energy_maps(self.embedder, images)["backbone"], naive.numpy(), rtol=1e-5)


def pooled_features(network, images):
    """Each branch's own map, from the network's parts."""
    features = network.backbone(images)
    return {"global": features, "dropping": network.branches["dropping"].bottleneck(features)}


def test_energy_is_that_of_each_branch(bdb):
    images = images_of(2, size=(64, 32))
    maps = energy_maps(bdb, images)
    assert [*maps] == ["global", "dropping"]
    with torch.no_grad():
        expected = pooled_features(bdb.network, bdb.preprocessing.normalize(images))
    for name, features in expected.items():
        np.testing.assert_allclose(maps[name], (features**2).sum(1).numpy(), rtol=1e-4)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    """What a position contributes is the change of the score when the map is scaled there."""
    torch.manual_seed(0)
    network = BDBNetwork(6, "osnet_x0_25", embedding_dims={"global": 16, "dropping": 24}).double()
    embedder = embedder_of(network, (64, 32))
    monkeypatch.setattr(evaluation_maps, "_inputs", lambda _, images: images.double() / 255)
    a, b = images_of(1, size=(64, 32)), images_of(1, seed=5, size=(64, 32))
    left, _ = similarity_maps(embedder, a, b)
    maps, _ = class_maps(embedder, a, [2], method="hirescam")
    with torch.no_grad():
        features = pooled_features(network, a.double() / 255)
        other = network.embed(b.double() / 255)
        for name, columns in (("global", slice(0, 16)), ("dropping", slice(16, 40))):
            branch = network.branches["global_" if name == "global" else name]
            head = branch if name == "global" else _Rest(branch)

            def scores(features, head=head, columns=columns):
                embedding = head.embed(features)
                return float((embedding * other[:, columns]).sum()), float(head.classifier(embedding)[0, 2])

            for row, column in ((0, 0), (1, 1), (3, 0), (2, 1)):
                moved = []
                for step in (1e-6, -1e-6):
                    scaled = features[name].clone()
                    scaled[:, :, row, column] *= 1 + step
                    moved.append(scores(scaled))
                pair, logit = ((up - down) / 2e-6 for up, down in zip(*moved, strict=True))
                assert left[name][0, row, column] == pytest.approx(max(pair, 0), rel=1e-4, abs=1e-6)
                assert maps[name][0, row, column] == pytest.approx(max(logit, 0), rel=1e-4, abs=1e-6)


class _Rest(nn.Module):
    """A dropping branch behind its bottleneck."""

    def __init__(self, branch):
        super().__init__()
        self.reduction, self.classifier = branch.reduction, branch.classifier

    def embed(self, features):
        return self.reduction(features.amax((2, 3)))


def test_grad_cam_is_that_of_its_publication(bdb):
    """Channels weighed by the mean gradient, added up, where above zero; by average pooling both methods agree."""
    images = images_of(2, size=(64, 32))
    maps, chosen = class_maps(bdb, images)
    inputs = bdb.preprocessing.normalize(images)
    logits = sum(output.logits for output in bdb.network(inputs).values())
    assert chosen.tolist() == logits.argmax(1).tolist()
    for name, features in pooled_features(bdb.network, inputs).items():
        leaf = features.detach().requires_grad_()
        branch = bdb.network.branches["global_" if name == "global" else name]
        scores = branch.classifier(branch.embed(leaf) if name == "global" else _Rest(branch).embed(leaf))
        (gradient,) = torch.autograd.grad(scores[[0, 1], chosen.tolist()].sum(), leaf)
        naive = np.zeros(leaf.shape[:1] + leaf.shape[2:])
        for image in range(2):
            for channel in range(leaf.shape[1]):
                naive[image] += float(gradient[image, channel].mean()) * leaf[image, channel].detach().numpy()
        np.testing.assert_allclose(maps[name], naive.clip(0), rtol=1e-3, atol=1e-6)
    by_position, _ = class_maps(bdb, images, method="hirescam")
    np.testing.assert_allclose(by_position["global"], maps["global"], rtol=1e-3, atol=1e-6)


def test_equal_images_agree_wherever_they_are_active(bdb):
    images = images_of(2, size=(64, 32))
    left, right = similarity_maps(bdb, images, images)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
        assert left[name].any(axis=(1, 2)).all()


def test_pairs_may_change_sides(bdb):
    a, b = images_of(2, size=(64, 32)), images_of(2, seed=3, size=(64, 32))
    left, right = similarity_maps(bdb, a, b)
    other_left, other_right = similarity_maps(bdb, b, a)
    for name in left:
        np.testing.assert_allclose(left[name], other_right[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(right[name], other_left[name], rtol=1e-4, atol=1e-7)


def test_cosine_distance_compares_directions(bdb):
    """Of vectors of unit length the contributions of a linear network add up to the cosine similarity."""
    embedder = embedder_of(Region(), distance="cosine")
    a, b = images_of(2), images_of(2, seed=1)
    left, _ = similarity_maps(embedder, a, b)
    similarity = nn.functional.cosine_similarity(*(embedder.network.embed(side / 255.0) for side in (a, b)))
    np.testing.assert_allclose(left["backbone"].sum((1, 2)), similarity.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("normalize", "distance"), [("none", "cosine"), ("joint", "euclidean"), ("per_branch", "cosine")]
)
def test_a_branch_counts_as_much_as_in_the_distance(normalize, distance):
    """Of a branch with a hundredth of the other's length hardly anything is left, unless each branch has unit length."""
    torch.manual_seed(0)
    network = BDBNetwork(0, "osnet_x0_25", embedding_dims={"global": 16, "dropping": 24})
    a, b = images_of(1, size=(64, 32)), images_of(1, seed=5, size=(64, 32))
    totals = []
    for factor in (1.0, 0.01):
        with torch.no_grad():
            network.branches["dropping"].reduction[1].weight.mul_(factor)
            network.branches["dropping"].reduction[1].bias.mul_(factor)
        embedder = embedder_of(network, (64, 32), settings=EmbeddingSettings(normalize=normalize), distance=distance)
        left, _ = similarity_maps(embedder, a, b)
        totals.append(left["dropping"].sum() / left["global"].sum())
    assert totals[1] / totals[0] == pytest.approx(1.0 if normalize == "per_branch" else 1e-4, rel=0.02)


@pytest.mark.parametrize("split", [[2, 2], [3, 1]], ids=["two ranks", "an odd share"])
def test_maps_do_not_depend_on_the_rest_of_the_batch(bdb, split):
    images = images_of(4, size=(64, 32))
    whole, apart = energy_maps(bdb, images), [energy_maps(bdb, part) for part in images.split(split)]
    classes, _ = class_maps(bdb, images)
    classes_apart = [class_maps(bdb, part)[0] for part in images.split(split)]
    for name in whole:
        np.testing.assert_allclose(whole[name], np.concatenate([part[name] for part in apart]), rtol=1e-4, atol=1e-7)
        joined = np.concatenate([part[name] for part in classes_apart])
        np.testing.assert_allclose(classes[name], joined, rtol=1e-3, atol=1e-6)


def test_maps_of_a_network_that_is_trained_compiled_are_the_same():
    embedder, images = embedder_of(Region()), images_of(2)
    before = energy_maps(embedder, images), class_maps(embedder, images, [0, 1])[0]
    forward = torch.compile(embedder.network.forward, backend="eager")  # as the training does
    forward(images / 255.0)
    after = energy_maps(embedder, images), class_maps(embedder, images, [0, 1])[0]
    forward(images / 255.0)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one["backbone"], other["backbone"])


def test_no_hook_stays(bdb):
    images = images_of(1, size=(64, 32))
    embeddings = bdb.embed_prepared(images)
    class_maps(bdb, images)
    with pytest.raises(MapError):
        class_maps(bdb, images, [99])
    assert not any(module._forward_hooks for module in bdb.network.modules())
    torch.testing.assert_close(bdb.embed_prepared(images), embeddings, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (lambda: PCBNetwork(4, "osnet_x0_25", parts=2, embedding_dim=8), ["backbone"]),
        (lambda: MGNNetwork(4, "resnet18", embedding_dim=8), ["whole", "halves", "thirds"]),
    ],
)
def test_every_network_has_maps(network, names):
    embedder = embedder_of(network(), (64, 32))
    images = images_of(2, size=(64, 32))
    for maps in (
        energy_maps(embedder, images),
        class_maps(embedder, images, [1, 2])[0],
        similarity_maps(embedder, images, images.flip(0))[0],
    ):
        assert [*maps] == names
        assert all(one.ndim == 3 and one.shape[1] > 1 and (one >= 0).all() for one in maps.values())


class TestTransformers:
    @pytest.fixture(scope="class")
    @staticmethod
    def vit():
        timm = pytest.importorskip("timm")
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 32), depth=2)
        return embedder_of(TimmNetwork(model), (64, 32))

    def test_no_map_without_tokens(self, vit):
        with pytest.raises(MapError, match=r"has no feature map .*tokens=true takes the tokens of its last block"):
            energy_maps(vit, images_of(1, size=(64, 32)))

    def test_tokens_lie_in_a_grid(self, vit):
        images = images_of(2, size=(64, 32))
        assert energy_maps(vit, images, tokens=True)["backbone"].shape == (2, 4, 2)
        left, _ = similarity_maps(vit, images, images.flip(0), tokens=True)
        assert left["backbone"].shape == (2, 4, 2)
        assert left["backbone"].any()

    def test_other_networks_have_none(self, bdb):
        with pytest.raises(MapError, match="is no transformer of timm"):
            energy_maps(bdb, images_of(1, size=(64, 32)), tokens=True)


class TestArea:
    def test_by_a_naive_loop(self):
        maps = np.random.default_rng(0).gamma(0.3, size=(20, 6, 3))
        for found, one in zip(half_energy_area(maps), maps, strict=True):
            rest, used = one.sum() / 2, 0.0
            for value in sorted(one.ravel(), reverse=True):
                if value >= rest:
                    used += rest / value
                    break
                rest, used = rest - value, used + 1
            assert found == pytest.approx(used / one.size)

    def test_extremes(self):
        peak = np.zeros((1, 4, 4))
        peak[0, 2, 1] = 7
        assert half_energy_area(peak)[0] == pytest.approx(1 / 32)
        assert half_energy_area(np.full((1, 3, 5), 0.2))[0] == pytest.approx(0.5)
        assert np.isnan(half_energy_area(np.zeros((1, 2, 2)))[0])
        assert half_energy_area(np.empty((0, 2, 2))).shape == (0,)

    def test_scale_and_order_do_not_matter(self):
        maps = np.random.default_rng(1).random((5, 4, 4))
        shuffled = np.random.default_rng(2).permutation(maps.reshape(5, 16), axis=1).reshape(5, 2, 8)
        np.testing.assert_allclose(half_energy_area(1000 * shuffled), half_energy_area(maps))

    def test_united_branches_count_alike(self):
        left, right = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
        left[0, 0, 0], right[0, 1, 1] = 100, 1
        both = united({"global": left, "dropping": right})
        assert both.tolist() == [[[0.5, 0], [0, 0.5]]]
        assert half_energy_area(both)[0] == pytest.approx(0.25)
        with pytest.raises(MapError, match="maps of other sizes"):
            united({"a": left, "b": np.zeros((1, 3, 2))})


def test_what_can_not_be_shown_is_said(bdb, tmp_path):
    images = images_of(2, size=(64, 32))
    with pytest.raises(MapError, match="identity=6: the network was trained on 6 identities, 0 to 5"):
        class_maps(bdb, images, [0, 6])
    with pytest.raises(MapError, match="1 identities for 2 images"):
        class_maps(bdb, images, [0])
    with pytest.raises(MapError, match="choose one of gradcam, hirescam, gradcam\\+\\+"):
        class_maps(bdb, images, method="magic")
    with pytest.raises(MapError, match="1 images on one side and 2 on the other"):
        similarity_maps(bdb, images[:1], images)
    with pytest.raises(MapError, match="choose energy or class"):
        bdb.maps([np.zeros((4, 4, 3), np.uint8)], "heat")
    with pytest.raises(MapError, match=r"has no classifiers.*loaded with its classifiers"):
        class_maps(embedder_of(BDBNetwork(0, "osnet_x0_25"), (64, 32)), images)
    pooled = embedder_of(PooledNetwork(BDBNetwork(0, "osnet_x0_25").backbone), (64, 32))
    with pytest.raises(MapError, match="has no classifiers"):
        class_maps(pooled, images)


def test_classifiers_are_loaded_where_they_are_wanted(bdb, tmp_path):
    torch.save(bdb.network.state_dict(), tmp_path / "network.pth")
    with_them = open_embedder(tmp_path / "network.pth", Wanted(image_size=[64, 32], classifiers=True), device="cpu")
    assert with_them.network.branches["dropping"].classifier.out_features == 6
    without = open_embedder(tmp_path / "network.pth", Wanted(image_size=[64, 32]), device="cpu")
    assert without.network.branches["dropping"].classifier is None
    assert (
        with_them.embed([np.zeros((9, 9, 3), np.uint8)]).tolist()
        == without.embed([np.zeros((9, 9, 3), np.uint8)]).tolist()
    )


def test_images_of_any_size(bdb):
    pixels = [np.full((height, 20, 3), height, np.uint8) for height in (10, 30, 50)]
    maps = bdb.maps(pixels)
    assert maps["global"].shape == maps["dropping"].shape
    assert len(maps["global"]) == 3
    left, right = bdb.similarity_maps(pixels[:2], pixels[1:])
    assert left["global"].shape == right["global"].shape


@pytest.mark.parametrize("method", ["gradcam++", "layercam"])
def test_methods_of_the_package_for_them(bdb, method):
    pytest.importorskip("pytorch_grad_cam")
    maps, _ = class_maps(bdb, images_of(2, size=(64, 32)), [1, 4], method=method)
    assert [*maps] == ["global", "dropping"]
    assert all(one.shape == (2, 64, 32) and one.min() >= 0 and one.max() <= 1 for one in maps.values())
