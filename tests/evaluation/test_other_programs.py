"""Files of other programs load, and their embeddings are those that plain functions compute from the same weights."""

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import bdbnet
import other_programs as theirs
from bdbnet.models import BDBNetwork, CheckpointError, load_network, load_released_bdb
from bdbnet.models.formats import known_format

IMAGES = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def doubled(state: theirs.State) -> theirs.State:
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


@torch.no_grad()
def agrees(network, expected: Tensor) -> bool:
    found = network.double().embed(IMAGES)
    return found.shape == expected.shape and bool((found - expected).norm() <= 1e-8 * expected.norm())


def keeps(embedder: bdbnet.Embedder, folder) -> bool:
    """A saved folder gives the same embeddings, prepares images alike, and is the same embedder."""
    again = bdbnet.load(embedder.save(folder), device="cpu")
    crop = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    return (
        again.fingerprint == embedder.fingerprint
        and again.preprocessing == embedder.preprocessing
        and again.distance_name == embedder.distance_name
        and np.array_equal(again.embed([crop]), embedder.embed([crop]))
    )


class TestReleasedBDB:
    def test_a_model_of_its_layout_and_format_embeds_as_the_released_code(self, tmp_path):
        state = theirs.released_state("resnet50", classes=31)
        path = tmp_path / "model_best.pth.tar"
        torch.save({"state_dict": state, "epoch": 400}, path, _use_new_zipfile_serialization=False)
        network = load_released_bdb(path)
        assert isinstance(network, BDBNetwork)
        assert not network.training
        with torch.no_grad():
            expected = theirs.released_embedding(doubled(state), IMAGES)
        assert expected.shape == (2, 1536)
        assert agrees(network, expected)
        outputs = network.eval()(IMAGES)
        weight, bias = (state[f"softmax.{name}"].double() for name in ("weight", "bias"))
        assert torch.allclose(outputs["dropping"].logits, outputs["dropping"].embedding @ weight.T + bias)

    @pytest.mark.parametrize(
        ("classes", "size", "padded"),
        [(751, (384, 128), False), (767, (384, 128), False), (100, (256, 256), True), (98, (256, 256), False)],
    )
    def test_the_number_of_classes_says_how_images_are_prepared(self, tmp_path, classes, size, padded):
        state = {f"module.{key}": tensor for key, tensor in theirs.released_state("resnet18", classes).items()}
        torch.save({"state_dict": state}, tmp_path / "model.pth.tar", _use_new_zipfile_serialization=False)
        embedder = bdbnet.load(tmp_path / "model.pth.tar", device="cpu")
        assert embedder.preprocessing == bdbnet.Preprocessing(size, padded)
        assert embedder.distance_name == "euclidean"
        assert embedder.dimensions == 1536
        assert bdbnet.load(tmp_path / "model.pth.tar", image_size=(64, 32)).preprocessing.image_size == (64, 32)
        if classes == 751:
            assert keeps(bdbnet.load(tmp_path / "model.pth.tar", image_size=(64, 32), device="cpu"), tmp_path / "m")

    def test_what_is_assumed_of_other_classes_is_said(self, tmp_path):
        torch.save(theirs.released_state("resnet18", 1041), tmp_path / "model.pth.tar")
        with pytest.warns(UserWarning, match=r"1,041 training classes .* taken for persons at 384 x 128"):
            bdbnet.load(tmp_path / "model.pth.tar", device="cpu")

    def test_another_file_is_refused(self, tmp_path):
        torch.save({"stem.weight": torch.zeros(3, 4)}, tmp_path / "foreign.pth")
        with pytest.raises(CheckpointError, match=r"foreign.pth: not a model of the released BDB code.*stem\.weight"):
            load_released_bdb(tmp_path / "foreign.pth")
        state = theirs.released_state("resnet18")
        del state["reduction.1.running_mean"]
        torch.save(state, tmp_path / "part.pth")
        with pytest.raises(
            CheckpointError, match=r"1 missing in the file: branches\.dropping\.reduction\.1\.running_m"
        ):
            load_released_bdb(tmp_path / "part.pth")

    def test_it_can_start_a_training(self, tmp_path):
        torch.save(theirs.released_state("resnet18"), tmp_path / "model.pth.tar")
        network = BDBNetwork(5, "resnet18")
        with pytest.raises(CheckpointError, match="Only classifiers differ"):
            load_network(network, tmp_path / "model.pth.tar")
        load_network(network, tmp_path / "model.pth.tar", classifiers="drop")


BICUBIC = {"interpolation": "bicubic"}
FILES = {
    "osnet_x0_25": (
        lambda: theirs.torchreid_osnet("plain"), theirs.osnet_embedding, bdbnet.Preprocessing((256, 128)), "euclidean",
    ),
    "osnet_ibn_x1_0": (
        lambda: theirs.torchreid_osnet("ibn", 1.0), theirs.osnet_embedding, bdbnet.Preprocessing((256, 128)), "euclidean",
    ),
    **{f"osnet_ain_x{width}": (
        lambda width=width: theirs.torchreid_osnet("ain", width), theirs.osnet_embedding, bdbnet.Preprocessing((256, 128)),
        "euclidean",
    ) for width in (1.0, 0.75, 0.5, 0.25)},
    "torchreid_resnet50": (
        lambda: theirs.torchreid_resnet("resnet50", False), theirs.torchreid_resnet_embedding,
        bdbnet.Preprocessing((256, 128)), "euclidean",
    ),
    "torchreid_resnet18_fc512": (
        lambda: theirs.torchreid_resnet("resnet18", True), theirs.torchreid_resnet_embedding,
        bdbnet.Preprocessing((256, 128)), "euclidean",
    ),
    "fast_reid_bot_R18": (
        lambda: theirs.fast_reid_state("resnet18"), theirs.fast_reid_embedding,
        bdbnet.Preprocessing((256, 128), **BICUBIC), "cosine",
    ),
    "fast_reid_sbs_R50": (
        lambda: theirs.fast_reid_state("resnet50", attends=True), theirs.fast_reid_embedding,
        bdbnet.Preprocessing((384, 128), **BICUBIC), "cosine",
    ),
    "fast_reid_agw_R18-ibn": (
        lambda: theirs.fast_reid_state("resnet18", attends=True, ibn=True, inner=3), theirs.fast_reid_embedding,
        bdbnet.Preprocessing((256, 128), **BICUBIC), "cosine",
    ),
    "fast_reid_reduced": (
        lambda: theirs.fast_reid_state("resnet18", reduced=96), theirs.fast_reid_embedding,
        bdbnet.Preprocessing((256, 128), **BICUBIC), "cosine",
    ),
    "oml_vit": (
        lambda: theirs.vit_state(384), theirs.vit_embedding, bdbnet.Preprocessing((224, 224), **BICUBIC), "euclidean",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*a ViT without classifier")
@pytest.mark.parametrize("name", FILES)
def test_embeddings_are_those_of_the_program_that_wrote_the_file(tmp_path, name):
    make, embedding, preprocessing, distance = FILES[name]
    state, path = make(), tmp_path / f"{name}.pth"
    torch.save(
        {"model": state, "optimizer": {}, "iteration": 3} if name.startswith("fast") else {"state_dict": state}, path
    )
    embedder = bdbnet.load(path, device="cpu")
    assert embedder.preprocessing == preprocessing
    assert embedder.distance_name == distance
    small = (
        IMAGES if preprocessing.image_size != (224, 224) else torch.nn.functional.interpolate(IMAGES[:1], (224, 224))
    )
    assert name == "oml_vit" or keeps(embedder, tmp_path / "model")  # large; a tiny one of timm is kept below
    with torch.no_grad():
        expected = embedding(doubled(state), small)
        found = embedder.network.double().embed(small)
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-8 * float(expected.norm())


def test_extractors_of_open_metric_learning_lose_the_prefixes_of_lightning(tmp_path):
    state = theirs.fill(theirs.resnet_shapes("resnet18"))
    content = {
        "state_dict": {f"model.model.{key}": tensor for key, tensor in state.items()},
        "pytorch-lightning_version": "2",
    }
    torch.save(content, tmp_path / "resnet.ckpt")
    with pytest.warns(UserWarning, match=r"a ResNet without head: taken for .* 224 x 224 pixels; set image_size="):
        embedder = bdbnet.load(tmp_path / "resnet.ckpt", device="cpu")
    assert embedder.preprocessing == bdbnet.Preprocessing((224, 224))
    with torch.no_grad():
        expected = theirs.resnet_map(doubled(state), IMAGES, last_stride=2).mean((2, 3))
    assert agrees(embedder.network, expected)


def test_a_vit_without_classifier_may_be_one_of_timm():
    found = known_format(theirs.vit_state(384))
    assert re.match(
        r"a ViT without classifier: taken for DINO's.*timm=NAME .*vit_small_patch16_224", found.uncertain[0]
    )
    assert known_format(theirs.vit_state(192)) is None  # DINO has no tiny one


def test_what_tells_sbs_from_agw_is_said_where_nothing_tells_it(tmp_path):
    torch.save({"model": theirs.fast_reid_state("resnet18", attends=True)}, tmp_path / "model_final.pth")
    with pytest.warns(UserWarning, match=r"SBS and AGW have the same keys: .*image_size=\[256,128\]"):
        assert bdbnet.load(tmp_path / "model_final.pth", device="cpu").preprocessing.image_size == (384, 128)


def test_the_mean_and_deviation_of_a_file_are_used(tmp_path):
    state = theirs.fast_reid_state("resnet18")
    state["pixel_mean"], state["pixel_std"] = torch.full((1, 3, 1, 1), 127.5), torch.full((1, 3, 1, 1), 51.0)
    torch.save({"model": state}, tmp_path / "model.pth")
    preprocessing = bdbnet.load(tmp_path / "model.pth", device="cpu").preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.2,) * 3)


class TestTimm:
    @pytest.fixture
    def state(self) -> theirs.State:
        pytest.importorskip("timm")
        return theirs.vit_state() | theirs.fill({"head.weight": (7, 192), "head.bias": (7,)})

    @pytest.mark.parametrize("where", ["folder", "file", "named"])
    def test_a_card_beside_the_file_or_the_user_says_the_model(self, tmp_path, state, where):
        file = tmp_path / "pytorch_model.bin"
        torch.save(state, file)
        if where != "named":
            card = {"input_size": [3, 224, 224], "mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bilinear"}
            content = {"architecture": "vit_tiny_patch16_224", "global_pool": "token", "pretrained_cfg": card}
            (tmp_path / "config.json").write_text(json.dumps(content))
        model = "timm:vit_tiny_patch16_224" if where == "named" else None
        embedder = bdbnet.load(tmp_path if where == "folder" else file, model=model, device="cpu")
        mean, std = ((0.5,) * 3, (0.5,) * 3) if where == "named" else ((0.4,) * 3, (0.3,) * 3)
        interpolation = "bicubic" if where == "named" else "bilinear"
        expected = bdbnet.Preprocessing((224, 224), mean=mean, std=std, interpolation=interpolation)
        assert embedder.preprocessing == expected
        assert embedder.distance_name == "cosine"
        if where == "folder":
            assert keeps(embedder, tmp_path / "model")
        images = torch.nn.functional.interpolate(IMAGES, (224, 224))
        with torch.no_grad():
            vector = theirs.vit_embedding(doubled(state), images)
            found = embedder.network.double().embed(images)
        assert float((found - vector).norm()) <= 1e-8 * float(vector.norm())

    def test_what_is_wrong_is_said(self, tmp_path, state):
        file, card = tmp_path / "pytorch_model.bin", tmp_path / "config.json"
        torch.save(state, file)
        with pytest.raises(
            CheckpointError,
            match=r"not recognised.*put its config\.json beside the file, or give its name: .*timm:NAME",
        ):
            bdbnet.load(file, device="cpu")
        for content, message in (
            ("{", r"config\.json is damaged .*download it again"),
            ('{"architecture": "vit_of_dreams"}', "has no model 'vit_of_dreams'; choose, e.g.,"),
            ('{"architecture": "resnet18"}', "does not match the architecture"),
            (
                '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 3}}',
                "model_args sets depth, which is not supported",
            ),
        ):
            card.write_text(content)
            with pytest.raises(CheckpointError, match=message):
                bdbnet.load(file, device="cpu")


def test_parts_that_no_network_here_has_are_refused(tmp_path):
    state = theirs.fast_reid_state("resnet18")
    state["backbone.layer1.0.se.fc.0.weight"] = torch.zeros(4, 64)
    torch.save({"model": state}, tmp_path / "se.pth")
    with pytest.raises(CheckpointError, match=r"se\.pth: .* not recognised.*only its ResNets with a batch-norm neck"):
        bdbnet.load(tmp_path / "se.pth", device="cpu")


def test_no_other_format_is_seen_in_ours():
    assert known_format(BDBNetwork(5, "resnet18").state_dict()) is None
