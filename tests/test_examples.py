"""The example is short, is the method of the package, and runs."""

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from bdbnet.datasets import Manifest, load_manifest
from bdbnet.losses import BatchHardTripletLoss
from bdbnet.models import BDBNetwork
from bdbnet.retrieval import reid_metrics

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "bdb_minimal.py"
SIZE = (32, 16)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bdb_minimal", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fits_150_lines_and_needs_no_framework():
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 150
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported == {"argparse", "collections", "numpy", "torch", "PIL", "torchvision", "bdbnet"}
    assert re.findall(r"bdbnet\S* import .*", text) == ["bdbnet.datasets import Manifest, load_manifest"]


def test_it_trains_and_prints_rank1(example, tmp_path, monkeypatch, capsys):
    few = {"train_identities": 16, "test_identities": 6, "distractors": 4, "workers": 1}
    monkeypatch.setattr(example, "load_manifest", partial(load_manifest, **few))
    arguments = ["--epochs", "2", "--size", "32", "16", "--data-folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    example.main()
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"^epoch +\d+  loss ([\d.]+)$", printed, re.MULTILINE)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    (rank1,) = re.findall(r"^Rank-1 ([\d.]+)%$", printed, re.MULTILINE)
    assert 0 <= float(rank1) <= 100


@pytest.mark.parametrize(("ratios", "rows", "columns"), [((0.3, 1.0), 7, 8), ((0.5, 0.5), 12, 4), ((0.0, 1.0), 0, 8)])
def test_the_mask_is_one_rectangle(example, ratios, rows, columns):
    layer = example.BatchDropBlock(*ratios)
    tops = set()
    for _ in range(50):
        dropped = layer.mask(24, 8) == 0
        down, across = dropped.nonzero().unbind(1)
        assert int(dropped.sum()) == rows * columns
        if rows:
            assert (int(down.max() - down.min()) + 1, int(across.max() - across.min()) + 1) == (rows, columns)
            tops.add(int(down.min()))
    assert not rows or len(tops) > 5


def test_a_batch_shares_the_mask_in_training_alone(example):
    layer, features = example.BatchDropBlock(), torch.rand(4, 3, 10, 5) + 1
    result = layer(features)
    dropped = result == 0
    assert int(dropped[0, 0].sum()) == 3 * 5
    assert torch.equal(dropped, dropped[:1, :1].expand(4, 3, -1, -1))
    assert torch.equal(result[~dropped], features[~dropped])
    assert torch.equal(layer.eval()(features), features)


def test_the_triplet_loss_is_that_of_the_package(example):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        labels = torch.arange(8).repeat_interleave(4)[torch.randperm(32, generator=generator)]
        one, other = (torch.rand(32, 64, generator=generator).requires_grad_() for _ in range(2))
        other.data.copy_(one.data)
        ours, theirs = example.batch_hard_triplet(one, labels), BatchHardTripletLoss()(other, labels)
        assert torch.allclose(ours, theirs, rtol=1e-5)
        ours.backward()
        theirs.backward()
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_the_network_is_that_of_the_package(example):
    torch.manual_seed(0)
    small, images, labels = example.BDBNetwork(5), torch.rand(8, 3, 64, 32), torch.arange(8) // 2
    package = BDBNetwork(5, backbone="resnet18")
    names = {
        "reduce_global": "branches.global_.reduction", "classify_global": "branches.global_.classifier",
        "reduce_dropping": "branches.dropping.reduction", "classify_dropping": "branches.dropping.classifier",
        "bottleneck": "branches.dropping.bottleneck",
    }  # fmt: skip
    layers = dict(enumerate(["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]))

    def renamed(key: str) -> str:
        root, _, rest = key.partition(".")
        if root == "backbone":
            place, _, rest = rest.partition(".")
            return f"backbone.{layers[int(place)]}.{rest}"
        return f"{names[root]}.{rest}"

    state = {renamed(key): tensor for key, tensor in small.state_dict().items()}
    package.load_state_dict(state | {"branches.dropping.drop.step": torch.tensor(0)})
    small.drop.height_ratio = package.branches["dropping"].drop.height_ratio = 0.0  # the masks' places are random
    expected = package(images)
    embeddings = small(images)
    for embedding, output in zip(embeddings, expected.values(), strict=True):
        assert torch.allclose(embedding, output.embedding, atol=1e-5)
    total = sum(
        BatchHardTripletLoss()(output.embedding, labels) + F.cross_entropy(output.logits, labels, label_smoothing=0.1)
        for output in expected.values()
    )
    assert torch.allclose(small.loss(images, labels), total, rtol=1e-4)


def test_batches_are_p_identities_of_k_images(example):
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [3] * 9 + [4])
    batches = list(example.identity_batches(labels, identities=2))
    assert [len(rows) for rows in batches] == [8, 8]
    drawn = labels[torch.cat(batches)].view(4, 4)
    assert (drawn == drawn[:, :1]).all()
    assert len(drawn[:, 0].unique()) == 4
    for rows in torch.cat(batches).view(4, 4):
        images = int((labels == labels[rows[0]]).sum())
        assert len(rows.unique()) == min(images, 4)


def test_rank1_is_that_of_the_package(example, tmp_path):
    options = {"train_identities": 4, "test_identities": 8, "distractors": 4, "image_size": SIZE, "workers": 1}
    dataset = load_manifest("synthetic_reid", tmp_path, **options)
    query, gallery = dataset.subset("query"), dataset.subset("gallery")
    torch.manual_seed(0)
    network = example.BDBNetwork(4)
    for rows in example.read_images(gallery, SIZE).split(50):
        network(rows)  # fills the running statistics of batch normalisation
    found = example.rank1(network, query, gallery, SIZE, "cpu")
    with torch.no_grad():
        q, g = (torch.cat(network(example.read_images(part, SIZE)), dim=1) for part in (query, gallery))

    def columns(part: Manifest) -> list[np.ndarray]:
        table: pd.DataFrame = part.table
        return [table["label"].to_numpy(), table["camera"].to_numpy()]

    (q_label, q_camera), (g_label, g_camera) = columns(query), columns(gallery)
    expected = reid_metrics(q, g, q_label, g_label, q_camera, g_camera)["rank1"]
    assert 0 < expected < 1
    assert found == pytest.approx(expected)
