"""The embedder: every kind of input gives the embedding of the image, and what is no image is named."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from bdbnet import Embedder, EmbeddingSettings, Preprocessing
from bdbnet.datasets import Manifest, load_manifest
from bdbnet.evaluation.embedder import EmbeddingError, scale_embeddings
from bdbnet.evaluation.inputs import InputError
from bdbnet.models import BDBNetwork

SIZE = (64, 32)


@pytest.fixture(scope="module")
def network() -> BDBNetwork:
    torch.manual_seed(0)
    return BDBNetwork(num_classes=0, backbone="osnet_x0_25").eval()


@pytest.fixture
def embedder(network) -> Embedder:
    return Embedder(network, Preprocessing(SIZE))


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """RGB arrays of different sizes."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 20), (64, 32), (9, 31), (128, 64), (1, 1))
    ]


def prepared(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images / 255 - mean) / std


# Settings


def test_without_a_switch_the_embedding_is_the_network_s(embedder, network):
    images = prepared(3)
    with torch.no_grad():
        expected = network.embed(normalised(images))
    torch.testing.assert_close(embedder.embed_prepared(images), expected, rtol=1e-4, atol=1e-5)


def test_flip_averages_an_image_and_its_mirror_image(network):
    images = prepared(3)
    embedder = Embedder(network, Preprocessing(SIZE), EmbeddingSettings(flip=True, normalize="per_branch"))
    with torch.no_grad():
        raw = (network.embed(normalised(images)) + network.embed(normalised(images.flip(3)))) / 2
    expected = scale_embeddings(raw, network.branch_dims, "per_branch")
    torch.testing.assert_close(embedder.embed_prepared(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedder.embed_prepared(images), embedder.embed_prepared(images.flip(3)))


def test_scales_average_sizes(network):
    images = prepared(2)
    embedder = Embedder(network, Preprocessing(SIZE), EmbeddingSettings(scales=(1, 1.5)))
    larger = torch.nn.functional.interpolate(normalised(images), (96, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = (network.embed(normalised(images)) + network.embed(larger)) / 2
    torch.testing.assert_close(embedder.embed_prepared(images), expected, rtol=1e-4, atol=1e-5)


def test_preprocessing_is_data(network, crops):
    plain = Embedder(network, Preprocessing(SIZE)).embed(crops)
    reversed_ = [np.ascontiguousarray(crop[..., ::-1]) for crop in crops]
    # The statistics stand in the order of the channels, so those of BGR are reversed too.
    mean, std = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)
    bgr = Embedder(network, Preprocessing(SIZE, channel_order="bgr", mean=mean, std=std)).embed(crops)
    as_rgb = Embedder(network, Preprocessing(SIZE, mean=mean, std=std)).embed(reversed_)
    np.testing.assert_allclose(bgr, as_rgb, rtol=1e-4, atol=1e-5)
    for other in (Preprocessing(SIZE, interpolation="bicubic"), Preprocessing(SIZE, pad_to_square=True)):
        assert not np.allclose(Embedder(network, other).embed(crops), plain, atol=1e-3)
    with pytest.raises(ValueError, match="interpolation=cubic: choose one of bilinear"):
        Preprocessing(SIZE, interpolation="cubic")
    with pytest.raises(ValueError, match=r"std=.*give a number for each of three channels"):
        Preprocessing(SIZE, std=(0, 1, 1))


# Inputs


def test_every_kind_of_input_gives_the_same_embedding(embedder, crops, tmp_path):
    expected = embedder.embed(crops)
    assert (expected.shape, expected.dtype) == ((5, 1536), np.float32)
    paths = [tmp_path / f"{number}.png" for number in range(len(crops))]
    for path, crop in zip(paths, crops, strict=True):
        Image.fromarray(crop).save(path)
    mixed = [crops[0], Image.fromarray(crops[1]), str(paths[2]), paths[3], torch.from_numpy(crops[4]).permute(2, 0, 1)]
    table = tmp_path / "table.csv"
    table.write_text("path\n" + "".join(f"{path.name}\n" for path in paths))
    for images in (mixed, paths, (crop for crop in crops), tmp_path, table):
        np.testing.assert_allclose(embedder.embed(images), expected, rtol=1e-4, atol=1e-5)
    same_size = np.stack([crops[1], crops[1][::-1]])
    stacked = embedder.embed(same_size)
    np.testing.assert_allclose(stacked[0], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(embedder.embed(torch.from_numpy(same_size).permute(0, 3, 1, 2)), stacked)
    for alone in (crops[1], Image.fromarray(crops[1]), paths[1], torch.from_numpy(crops[1]).permute(2, 0, 1)):
        np.testing.assert_allclose(embedder.embed(alone), expected[[1]], rtol=1e-4, atol=1e-5)


def test_a_manifest_is_embedded_in_its_order(embedder, tmp_path):
    manifest = load_manifest(
        "synthetic_reid", tmp_path / "data", train_identities=4, test_identities=4, images_per_camera=2, cameras=2,
        distractors=2, image_size=[32, 16], workers=1,
    )  # fmt: skip
    assert isinstance(manifest, Manifest)
    expected = embedder.embed(manifest.paths)
    np.testing.assert_allclose(embedder.embed(manifest, batch_size=3, num_workers=1), expected, rtol=1e-4, atol=1e-5)


def test_batches_are_bounded_and_play_no_part(embedder, crops, monkeypatch):
    expected = embedder.embed(crops * 3)
    seen = []
    whole = Embedder.embed_prepared
    monkeypatch.setattr(
        Embedder, "embed_prepared", lambda self, images: seen.append(len(images)) or whole(self, images)
    )
    np.testing.assert_allclose(embedder.embed(crops * 3, batch_size=4), expected, rtol=1e-4, atol=1e-5)
    assert seen == [4, 4, 4, 3]


def test_endless_input_is_taken_batch_by_batch(embedder, crops):
    taken = []

    def images():
        for number in range(100):
            taken.append(number)
            yield crops[1]
            if number == 60:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder.embed(images(), batch_size=8)
    assert len(taken) == 61


def test_arrays_that_can_t_be_written_to_are_taken(embedder, crops):
    fixed = [crop.copy() for crop in crops]
    for crop in fixed:
        crop.flags.writeable = False
    np.testing.assert_array_equal(embedder.embed(fixed), embedder.embed(crops))


@pytest.mark.parametrize("given", [None, 5, {"a": "b.jpg"}])
def test_what_holds_no_images_is_refused(embedder, given):
    with pytest.raises(InputError):
        embedder.embed(given)


def test_the_cosine_of_zeros_is_refused(network):
    cosine = Embedder(network, Preprocessing(SIZE), distance="cosine")
    with pytest.raises(InputError, match="of zeros has no direction"):
        cosine.distance(np.zeros((1, cosine.dimensions)), np.ones((2, cosine.dimensions)))


def test_nothing_gives_no_rows(embedder):
    for images in ([], (), np.empty((0, 8, 8, 3), np.uint8), torch.empty((0, 3, 8, 8), dtype=torch.uint8)):
        assert embedder.embed(images).shape == (0, 1536)
    frame = np.zeros((9, 9, 3), np.uint8)
    for boxes in ([], np.empty((0, 4)), torch.empty((0, 4))):
        assert embedder.embed_boxes(frame, boxes).shape == (0, 1536)


def test_modes_of_pil_are_converted_as_files_are(embedder, tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (20, 10, 4), dtype=np.uint8)
    for number, image in enumerate((Image.fromarray(rgba), Image.fromarray(rgba[..., 0]))):
        image.save(tmp_path / f"{number}.png")
        np.testing.assert_array_equal(embedder.embed([image]), embedder.embed([tmp_path / f"{number}.png"]))


def test_boxes_are_crops_cut_at_the_frame(embedder, crops):
    frame = crops[3]  # 128 x 64
    boxes = [[0, 0, 64, 128], [10.2, 20.7, 30.1, 60.5], [-7, -9, 12, 30], [50, 100, 500, 400]]
    expected = embedder.embed([frame, frame[20:61, 10:31], frame[:30, :12], frame[100:, 50:]])
    np.testing.assert_allclose(embedder.embed_boxes(frame, boxes), expected, rtol=1e-4, atol=1e-5)
    one = embedder.embed_boxes(frame, torch.tensor(boxes[0]))
    np.testing.assert_allclose(one, expected[:1], rtol=1e-4, atol=1e-5)


def test_threads_may_share_an_embedder(embedder, crops):
    expected = embedder.embed(crops)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(embedder.embed(crops))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for embeddings in found:
        np.testing.assert_array_equal(embeddings, expected)


RGB = np.zeros((8, 4, 3), np.uint8)
BAD_IMAGES = {
    r"images\[1\]: float64; expected uint8": RGB.astype(float),
    r"images\[1\]: array of shape \(8, 4\).*greyscale image: np.repeat": RGB[..., 0],
    r"images\[1\]: array of shape \(8, 4, 1\).*greyscale": RGB[..., :1],
    r"images\[1\]: array of shape \(8, 4, 4\).*RGBA": np.zeros((8, 4, 4), np.uint8),
    r"images\[1\]: array of shape \(3, 8, 5\).*transpose": np.zeros((3, 8, 5), np.uint8),
    r"images\[1\]: an image of 0 x 4 pixels": RGB[:0],
    r"images\[1\]: an image of 8 x 0 pixels": torch.zeros((3, 8, 0), dtype=torch.uint8),
    r"images\[1\]: tensor of shape \(8, 4, 3\); expected \(3, H, W\)": torch.from_numpy(RGB),
    r"images\[1\]: torch.float32; expected uint8": torch.zeros(3, 8, 4),
    r"images\[1\]: NoneType; expected a path": None,
    r"image nowhere.jpg does not exist": "nowhere.jpg",
}


@pytest.mark.parametrize("message", BAD_IMAGES)
def test_what_is_no_image_is_named(embedder, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed([RGB, BAD_IMAGES[message]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 4, 8], [0, np.nan, 3, 3]], r"box 1 \(0, nan, 3, 3\) holds NaN"),
        ([[4, 0, 9, 9]], r"box 0 .* has no pixel in the frame of 4 x 8 pixels"),
        ([[3, 3, 2, 5]], "box 0 .*with x1 < x2"),
        ([[1, 2, 3]], r"boxes of shape \(1, 3\)"),
        ([["a", "b", "c", "d"]], "expected numbers"),
    ],
)
def test_boxes_that_can_not_be_cut_are_named(embedder, boxes, message):
    with pytest.raises(InputError, match=message):
        embedder.embed_boxes(RGB, boxes)
    with pytest.raises(InputError, match="frame: float64"):
        embedder.embed_boxes(RGB.astype(float), [[0, 0, 1, 1]])


def test_an_embedding_with_nan_is_named(embedder, monkeypatch):
    monkeypatch.setattr(
        embedder,
        "embed_prepared",
        lambda images: torch.full((len(images), 1536), torch.nan).index_fill_(0, torch.tensor(0), 0),
    )
    with pytest.raises(EmbeddingError, match=r"embedding of images\[1\] holds NaN or infinity"):
        embedder.embed([RGB, RGB])


# Comparing


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_distances_are_those_of_the_definition(network, name):
    embedder = Embedder(network, Preprocessing(SIZE), distance=name)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 1536)), rng.standard_normal((4, 1536))
    expected = [
        [
            np.sqrt(((x - y) ** 2).sum()) if name == "euclidean" else 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            for y in b
        ]
        for x in a
    ]
    np.testing.assert_allclose(embedder.distance(a, b), expected)
    np.testing.assert_allclose(embedder.distance(a[0], b), expected[0])
    np.testing.assert_allclose(embedder.distance(a, b[1]), np.array(expected)[:, 1])
    assert embedder.distance(a[2], b[3]) == pytest.approx(expected[2][3])
    with pytest.raises(InputError, match=r"b has shape \(4, 1535\): expected embeddings \(N, 1536\)"):
        embedder.distance(a, b[:, 1:])


def test_same_needs_a_threshold_and_says_so(network):
    a = np.zeros((1, 1536))
    with pytest.raises(EmbeddingError, match="no threshold is known"):
        Embedder(network, Preprocessing(SIZE)).same(a, a)
    embedder = Embedder(network, Preprocessing(SIZE), threshold=0.5)
    assert embedder.same(a, np.stack([a[0], a[0] + 1])).tolist() == [[True, False]]
    assert embedder.same(a[0], a[0] + 1, threshold=50)
