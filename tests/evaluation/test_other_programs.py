"""Files of other programs load, and their embeddings are those that plain functions compute from the same weights."""

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


def test_no_other_format_is_seen_in_ours():
    assert known_format(BDBNetwork(5, "resnet18").state_dict()) is None
