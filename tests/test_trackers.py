"""The adapter for trackers, by the calls that they make, without these packages; and its page."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bdbnet
from bdbnet.evaluation.inputs import InputError
from bdbnet.models import BDBNetwork, OSNetBackbone
from bdbnet.trackers import TrackerEmbedder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a small network, drawn at random, in a folder that says what they are of."""
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"]).eval()
    from bdbnet.evaluation.embedder import Embedder, Origin
    from bdbnet.loading import Preprocessing

    group = {"model": {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global"]},
             "backbone": {"_target_": "bdbnet.models.OSNetBackbone", "width": 0.25}}  # fmt: skip
    embedder = Embedder(network, Preprocessing((64, 32)), origin=Origin("random", group))
    return embedder.save(tmp_path_factory.mktemp("tracker") / "model")


@pytest.fixture(scope="module")
def embedder(weights):
    return bdbnet.load(weights)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_boxes_of_a_bgr_frame_become_unit_vectors_of_its_rgb_crops(embedder, frame):
    boxes = np.array([[10.5, 5, 40, 90, 0.9, 0], [100, 20, 150, 119, 0.5, 2]])
    features = TrackerEmbedder(embedder).get_features(boxes, frame)
    assert features.shape == (2, embedder.dimensions)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    expected = embedder.embed(
        [np.ascontiguousarray(frame[5:90, 10:40, ::-1]), np.ascontiguousarray(frame[20:119, 100:150, ::-1])]
    )
    np.testing.assert_allclose(
        features, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    rgb = TrackerEmbedder(embedder, color="rgb")
    np.testing.assert_allclose(rgb(boxes, np.ascontiguousarray(frame[..., ::-1])), features, atol=1e-6)
    assert not np.allclose(rgb(boxes, frame), features, atol=1e-4)


def test_detections_are_read_by_their_boxes(embedder, frame):
    reid, boxes = TrackerEmbedder(embedder, batch_size=1), np.array([[0, 0, 30, 60], [5, 5, 50, 70]], np.float32)
    features = reid.get_features(boxes, frame)
    for call in (reid.extract_features, reid.extract_embeddings):
        np.testing.assert_array_equal(call(SimpleNamespace(xyxy=boxes, confidence=None), frame), features)
    np.testing.assert_array_equal(reid.get_features(torch.from_numpy(boxes), frame), features)
    np.testing.assert_allclose(reid.get_features([0, 0, 30, 60], frame), features[:1], atol=1e-5)


@pytest.mark.parametrize("boxes", [np.empty((0, 4)), np.empty((0, 6), np.float32), [], np.empty(0)])
def test_no_boxes_give_no_rows(boxes, embedder, frame):
    features = TrackerEmbedder(embedder).get_features(boxes, frame)
    assert (features.shape, features.dtype) == ((0, embedder.dimensions), np.float32)


def test_boxes_partly_outside_are_cut_and_those_without_a_pixel_get_zeros(embedder, frame):
    reid = TrackerEmbedder(embedder)
    boxes = np.array([[-20, -5, 30, 60], [200, 10, 260, 90], [0, 0, 30, 60], [np.nan, 0, 5, 5], [9, 9, 9, 20]])
    features = reid.get_features(boxes, frame)
    np.testing.assert_allclose(features[0], features[2], atol=1e-6)
    assert not features[[1, 3, 4]].any()
    assert not reid.get_features(boxes[[1]], frame).any()


@pytest.mark.parametrize(
    ("boxes", "change", "message"),
    [
        ([[1, 2, 3]], lambda frame: frame, r"boxes of shape \(1, 3\)"),
        ([[1, 2, 30, 40]], lambda frame: frame[..., 0], "greyscale"),
        ([[1, 2, 30, 40]], lambda frame: frame / 255, "expected uint8"),
    ],
)
def test_what_is_no_frame_or_box_is_named(boxes, change, message, embedder, frame):
    with pytest.raises(InputError, match=message):
        TrackerEmbedder(embedder).get_features(boxes, change(frame))
    with pytest.raises(ValueError, match="choose bgr"):
        TrackerEmbedder(embedder, color="yuv")
