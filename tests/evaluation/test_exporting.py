"""Exported files compute what the embedder computes, or are not written."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bdbnet
from bdbnet.config import ConfigError
from bdbnet.datasets import load_manifest
from bdbnet.evaluation import exporting
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings
from bdbnet.evaluation.exporting import (
    ExportedNetwork,
    ExportError,
    ExportSettings,
    compare,
    export_embedder,
    load_exported,
)
from bdbnet.export import main
from bdbnet.models import BDBNetwork, BranchOutput, EmbeddingNetwork, OSNetBackbone, TimmBackbone

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 16, 3), dtype=np.uint8)


class Small(EmbeddingNetwork):
    """One convolution, exported in a second."""

    def __init__(self, factor: float = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 3, 2)
        self.branch_dims = (8, 8)
        self.factor = factor

    def forward(self, images: torch.Tensor) -> dict[str, BranchOutput]:
        return {"pooled": BranchOutput(self.embed(images), None)}

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone(images).relu()
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1) * self.factor


def small(settings: EmbeddingSettings | None = None, **preprocessing) -> Embedder:
    return Embedder(Small().eval(), bdbnet.Preprocessing((32, 16), **preprocessing), settings)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return load_manifest("synthetic_reid", tmp_path_factory.mktemp("figures"), **exporting._FIGURES)


@pytest.fixture(autouse=True)
def rendered_once(figures, monkeypatch):
    """The figures on which every file is checked; an export renders them anew."""
    monkeypatch.setattr(exporting, "load_manifest", lambda name, folder, **options: figures)


def embedded_by_file(path, format: str, images: np.ndarray) -> np.ndarray:
    return load_exported(path, format)(images)


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torch_export", ".pt2")])
def test_a_file_of_each_format_embeds_as_the_embedder_does(tmp_path, format, suffix):
    embedder = small(EmbeddingSettings(normalize="per_branch", flip=True))
    output = tmp_path / f"model{suffix}"
    report = embedder.export(output, input="pixels")
    for count in (1, 5):  # the batch may have any size
        found = embedded_by_file(output, format, IMAGES[:count])
        assert np.allclose(found, embedder.embed(IMAGES[:count]), atol=1e-5)
    assert report["agreement"]["least_cosine"] > 1 - 1e-5
    assert report["agreement"]["same_ranking"]
    assert report == json.loads((tmp_path / f"model{suffix}.json").read_text())
    assert report["fingerprint"] == embedder.fingerprint


def test_floats_are_normalised_by_the_caller_as_the_report_says(tmp_path):
    embedder = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channel_order="bgr")
    report = embedder.export(tmp_path / "model.onnx")
    said = report["preprocessing"]
    by_hand = (IMAGES[..., ::-1] / 255 - said["mean"]) / said["std"]
    found = embedded_by_file(tmp_path / "model.onnx", "onnx", by_hand.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.allclose(found, embedder.embed(IMAGES), atol=1e-5)
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(properties["images"])["shape"] == ["N", 3, 32, 16]
    assert properties["fingerprint"] == embedder.fingerprint


@pytest.mark.parametrize("source", [(16, 8), (50, 40), (64, 16)])
@pytest.mark.parametrize("padded", [False, True])
def test_resizing_in_the_file_is_that_of_the_embedder(source, padded):
    embedder = small(pad_to_square=padded)
    images = np.random.default_rng(1).integers(0, 256, (2, *source, 3), dtype=np.uint8)
    network = ExportedNetwork(embedder, pixels=True, source_size=source)
    resized = network._resized(torch.from_numpy(images).permute(0, 3, 1, 2).float(), *source)
    expected = np.stack([embedder.preprocessing.prepare(image) for image in images]).transpose(0, 3, 1, 2)
    difference = np.abs(resized.numpy() - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_a_file_that_resizes(tmp_path):
    embedder = small()
    embedder.export(tmp_path / "model.pt2", input="pixels", source_size=(50, 20))
    images = np.random.default_rng(1).integers(0, 256, (3, 50, 20, 3), dtype=np.uint8)
    found = embedded_by_file(tmp_path / "model.pt2", "torch_export", images)
    assert np.allclose(found, embedder.embed(images), atol=5e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_a_lower_precision_loses_is_measured(tmp_path, precision):
    report = small().export(tmp_path / "model.onnx", precision=precision)
    assert 0.9 < report["agreement"]["least_cosine"] < 1
    assert {*report["agreement"]["metrics"]} == {"pytorch", "exported"}
    assert report["settings"]["precision"] == precision


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    right = exporting.load_exported

    def wrong(path, format):
        run = right(path, format)
        return lambda images: np.roll(run(images), 1, axis=1)

    monkeypatch.setattr(exporting, "load_exported", wrong)
    with pytest.raises(
        ExportError, match=r"computes something else than PyTorch: least cosine similarity .*nothing is written"
    ):
        small().export(tmp_path / "model.pt2")
    monkeypatch.setattr(exporting, "load_exported", lambda *_: lambda images: np.full((len(images), 16), np.nan))
    with pytest.raises(ExportError, match="NaN or infinity; nothing is written"):
        small().export(tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_comparison_notices_a_swapped_ranking_and_forgives_ties(figures):
    manifest = figures
    embeddings = np.random.default_rng(0).normal(size=(len(manifest.table), 6)).astype(np.float32)
    assert compare(embeddings, embeddings, manifest, "euclidean")["same_ranking"]
    assert compare(embeddings, embeddings + 1e-7, manifest, "euclidean")["same_ranking"]
    gallery = np.flatnonzero(manifest.table["split"] == "gallery")
    moved = embeddings.copy()
    moved[gallery[0]] = moved[np.flatnonzero(manifest.table["split"] == "query")[0]]
    found = compare(embeddings, moved, manifest, "euclidean")
    assert not found["same_ranking"]
    assert found["least_cosine"] < 0.99
    assert not compare(embeddings, embeddings[:, :3], manifest, "euclidean")["finite"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format=tflite: choose one of onnx, openvino, torch_export"),
        ({"format": "torch_export", "precision": "int8"}, "precision=int8: format=torch_export has fp32"),
        ({"format": "openvino", "precision": "int8"}, "precision=int8: format=openvino has fp32, fp16"),
        ({"input": "bytes"}, "input=bytes: choose one of floats, pixels"),
        ({"source_size": (64, 32)}, "set input=pixels too"),
        ({"opset": 11}, "opset=11: choose one from 18 to 23"),
    ],
)
def test_settings_that_there_are_not(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ExportSettings(**arguments)


def test_outputs_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"output=model.bin: end it in .onnx \(onnx\)"):
        small().export("model.bin")
    with pytest.raises(ConfigError, match=r"a file of format=onnx ends in \.onnx"):
        export_embedder(small(), tmp_path / "model.pt2", ExportSettings())
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is there already\. Give another output=, or overwrite=true"):
        small().export(tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "mine"
    small().export(tmp_path / "model.pt2", overwrite=True)
    assert (tmp_path / "model.pt2").stat().st_size > 1000


def test_a_network_that_no_exporter_can_express_is_named(tmp_path):
    class Counting(Small):
        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return super().embed(images) * float(images.sum().item() > 0)

    with pytest.raises(ExportError, match="Counting on Conv2d can't be exported as torch_export, fp32"):
        Embedder(Counting().eval(), bdbnet.Preprocessing((32, 16))).export(tmp_path / "model.pt2")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "load_manifest", load_manifest)  # with figures of its own
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(BDBNetwork(0, OSNetBackbone(0.25)).eval().state_dict(), "bdb.pth")
    arguments = ["checkpoint=bdb.pth", "image_size=[64,32]", "output=out/model.onnx", "input=pixels"]
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    main()
    said = capsys.readouterr().out
    assert "input: uint8 [N, 64, 32, 3], RGB from 0 to 255" in said
    assert "the same rankings" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx.json"}
    embedder = bdbnet.load("bdb.pth", image_size=(64, 32), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)
    found = embedded_by_file("out/model.onnx", "onnx", images)
    assert np.allclose(found, embedder.embed(images), atol=1e-4)


def test_a_transformer_of_timm_takes_any_batch():
    network = BDBNetwork(0, TimmBackbone("vit_tiny_patch16_224", "none"), ["global"]).eval().requires_grad_(False)
    exported = ExportedNetwork(Embedder(network, bdbnet.Preprocessing((224, 224))), pixels=False).eval()
    images = torch.randn(3, 3, 224, 224)
    program = exporting._program(exported, images[:2]).module()
    assert torch.allclose(program(images), exported(images), atol=1e-5)
    assert torch.allclose(program(images[:1]), exported(images[:1]), atol=1e-5)
