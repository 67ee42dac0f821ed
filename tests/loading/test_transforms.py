from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from bdbnet.config import instantiate
from bdbnet.loading import (
    Cutout,
    EvaluationTransform,
    RandomErasing,
    TrainTransform,
    normalize,
    show_on_device,
    transforms_for,
)
from bdbnet.loading.transforms import IMAGENET_MEAN, IMAGENET_STD, covered, pad_to_square


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(
    transform: TrainTransform, image: np.ndarray, generator: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One sample of a transform, and its rectangles to erase."""
    view = transform.draw(np.random.default_rng(0) if generator is None else generator)
    shown = np.empty((*transform.image_size, 3), dtype=np.uint8)
    transform.show(transform.prepare(image), view, shown)
    return shown, view.erased


@pytest.mark.parametrize("source", [(128, 64), (300, 200), (37, 91), (256, 128), (1, 1)])
@pytest.mark.parametrize("size", [(384, 128), (256, 128), (224, 224)])
def test_resize_equals_torchvision(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = random_image(*source)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = functional.resize(tensor, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    result = sample(EvaluationTransform(size), image)[0]
    np.testing.assert_array_equal(result, expected.permute(1, 2, 0))
    pillow = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pillow - result).max() <= 2
    if source == (128, 64) and size[1] == 128:
        np.testing.assert_array_equal(pillow, result)


def test_flip_mirrors_left_and_right() -> None:
    image = random_image(6, 4)
    plain = sample(TrainTransform((6, 4), flip=0.0), image)[0]
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(sample(TrainTransform((6, 4), flip=1.0), image)[0], image[:, ::-1])


def test_half_of_the_images_are_flipped() -> None:
    generator, transform = np.random.default_rng(1), TrainTransform((6, 4))
    assert 450 < sum(transform.draw(generator).flipped for _ in range(1000)) < 550


def test_crops_are_parts_of_the_resized_image_and_reach_every_place() -> None:
    image, generator = random_image(8, 8), np.random.default_rng(2)
    transform = TrainTransform((6, 5), resize=8, flip=0.0)
    places = {(top, left): image[top : top + 6, left : left + 5] for top in range(3) for left in range(4)}
    seen = set()
    for _ in range(300):
        crop = sample(transform, image, generator)[0]
        seen |= {place for place, part in places.items() if np.array_equal(part, crop)}
    assert seen == set(places)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (5, 5), (1, 4)])
def test_padding_is_black_with_the_image_in_the_middle(height: int, width: int) -> None:
    image, side = random_image(height, width), max(height, width)
    padded = pad_to_square(image).astype(int)
    top, left = (side - height) // 2, (side - width) // 2
    assert padded.shape == (side, side, 3)
    np.testing.assert_array_equal(padded[top : top + height, left : left + width], image)
    assert padded.sum() == image.astype(int).sum()


@pytest.mark.parametrize("protocol", ["reid", "reid_multi_query", "reid_single_shot"])
def test_person_protocol(protocol: str) -> None:
    train, test = transforms_for(protocol, (12, 4), flip=0.0)
    image = random_image(20, 10)
    np.testing.assert_array_equal(sample(train, image)[0], sample(test, image)[0])
    assert sample(test, image)[0].shape == (12, 4, 3)
    assert not train.pad_to_square


def test_retrieval_protocol() -> None:
    train, test = transforms_for("retrieval", 14, resize=16, pad_test=False)
    image = random_image(20, 10)
    assert sample(train, image)[0].shape == (14, 14, 3)
    assert train.pad_to_square
    np.testing.assert_array_equal(sample(test, image)[0], sample(EvaluationTransform(16), image)[0])
    _, padded = transforms_for("retrieval", 14, resize=16)
    expected = sample(EvaluationTransform(16), pad_to_square(image))[0]
    np.testing.assert_array_equal(sample(padded, image)[0], expected)
    assert transforms_for("retrieval", 14)[1].image_size == (14, 14)


def test_size_of_test_images_and_padding_can_be_overruled() -> None:
    train, test = transforms_for("retrieval", 14, resize=16, test_size=14, pad_train=False)
    assert (train.prepared_size, train.image_size, test.image_size) == ((16, 16), (14, 14), (14, 14))
    assert not train.pad_to_square
    assert test.pad_to_square
    assert transforms_for("reid", 14, resize=16)[0].prepared_size == (16, 16)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        ValueError, match="choose one of reid, reid_multi_query, reid_single_shot, reid_reassociation, retrieval"
    ):
        transforms_for("person", 8)
    with pytest.raises(ValueError, match=r"resize \(7, 7\) is smaller than image_size \(8, 8\)"):
        TrainTransform(8, resize=7)
    with pytest.raises(ValueError, match=r"flip is 1\.5"):
        TrainTransform(8, flip=1.5)
    with pytest.raises(ValueError, match="image_size is"):
        EvaluationTransform((8, 0))
    with pytest.raises(ValueError, match="image_size is"):
        EvaluationTransform((8, 8, 3))
    with pytest.raises(ValueError, match=r"Cutout\.probability is -1"):
        Cutout(probability=-1)
    with pytest.raises(ValueError, match=r"Cutout\.size is 0"):
        Cutout(size=0)
    with pytest.raises(ValueError, match=r"RandomErasing\.area"):
        RandomErasing(area=(0.4, 0.02))
    with pytest.raises(ValueError, match=r"RandomErasing\.ratio"):
        RandomErasing(ratio=(0.0, 2.0))


erasers = st.one_of(
    st.builds(Cutout, st.just(1.0), st.integers(1, 80), st.booleans()),
    st.builds(RandomErasing, st.just(1.0)),
)


@given(eraser=erasers, height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_erased_rectangles_lie_inside(eraser: Cutout | RandomErasing, height: int, width: int, seed: int) -> None:
    top, left, rows, columns = eraser(height, width, np.random.default_rng(seed))
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    assert (rows == 0) == (columns == 0)


@pytest.mark.parametrize("eraser", [Cutout(0.3), RandomErasing(0.3), Cutout(0.3, overhang=False)])
def test_erasers_apply_with_their_probability(eraser: Cutout | RandomErasing) -> None:
    generator = np.random.default_rng(0)
    applied = sum(eraser(384, 128, generator) != (0, 0, 0, 0) for _ in range(2000))
    assert 0.26 < applied / 2000 < 0.34


def test_cutout_centres_are_uniform_and_the_square_hangs_over_the_border() -> None:
    generator, eraser, counts = np.random.default_rng(0), Cutout(1.0, size=4), np.zeros((10, 8))
    for _ in range(8000):
        top, left, rows, columns = eraser(10, 8, generator)
        assert rows == 4 or top == 0 or top + rows == 10
        # The centre is known from whichever edge was not cut off.
        centre_y = top + 2 if rows == 4 or top > 0 else rows - 2
        centre_x = left + 2 if columns == 4 or left > 0 else columns - 2
        counts[centre_y, centre_x] += 1
    assert (np.abs(counts - 100) < 5 * np.sqrt(100)).all()


def test_cutout_without_overhang_is_whole_or_nothing() -> None:
    generator, eraser = np.random.default_rng(0), Cutout(1.0, size=4, overhang=False)
    tops = {eraser(10, 8, generator)[0] for _ in range(500)}
    assert tops == set(range(7))
    assert all(eraser(10, 8, generator)[2:] == (4, 4) for _ in range(100))
    assert eraser(4, 8, generator) == (0, 0, 0, 0)


def test_random_erasing_keeps_area_and_ratio() -> None:
    generator, eraser = np.random.default_rng(0), RandomErasing(1.0)
    boxes = np.array([eraser(400, 400, generator) for _ in range(2000)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 400**2, boxes[:, 2] / boxes[:, 3]
    assert area.min() > 0.019
    assert area.max() < 0.403
    assert ratio.min() > 0.29
    assert ratio.max() < 3.4
    # Uniform in area; few rectangles are refused for their length at this size.
    assert abs(np.median(area) - 0.21) < 0.02


def test_random_erasing_gives_up_where_nothing_fits() -> None:
    assert RandomErasing(1.0)(1, 1, np.random.default_rng(0)) == (0, 0, 0, 0)


def test_one_row_per_eraser_and_the_same_crop_without_them() -> None:
    plain = TrainTransform(16, resize=20)
    erasing = TrainTransform(16, resize=20, erasing=[Cutout(1.0, 4), RandomErasing(0.0)])
    for seed in range(20):
        expected, view = plain.draw(np.random.default_rng(seed)), erasing.draw(np.random.default_rng(seed))
        assert view[:3] == expected[:3]
        assert expected.erased.shape == (0, 4)
        assert view.erased.shape == (2, 4)
        assert view.erased.dtype == np.int64
        assert view.erased[0, 2] > 0
        assert view.erased[1].tolist() == [0, 0, 0, 0]


def test_a_view_on_the_device_equals_one_from_the_host() -> None:
    """Cropped, mirrored and plain, on the CPU as the device."""
    images = np.stack([random_image(20, 24, seed) for seed in range(5)])
    transform, generator = TrainTransform((13, 9), resize=(20, 24)), np.random.default_rng(0)
    rows = generator.integers(5, size=40)
    views = [transform.draw(generator) for _ in rows]
    expected = np.empty((40, 13, 9, 3), dtype=np.uint8)
    for row, view, out in zip(rows, views, expected):
        transform.show(images[row], view, out)
    table = torch.tensor([(row, view.top, view.left, view.flipped) for row, view in zip(rows, views)])
    result = show_on_device(torch.from_numpy(images), table, transform.image_size)
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(result.permute(0, 2, 3, 1), expected)
    assert {view.flipped for view in views} == {True, False}


@pytest.mark.parametrize(
    ("name", "erasing"),
    [
        ("none", []),
        ("cutout", [Cutout()]),
        ("random_erasing", [RandomErasing()]),
        ("both", [Cutout(), RandomErasing()]),
    ],
)
def test_shipped_augmentations_are_the_published_ones(name: str, erasing: list[Cutout | RandomErasing]) -> None:
    settings = instantiate(OmegaConf.load(Path(__file__).parents[2] / "conf" / "augmentation" / f"{name}.yaml"))
    assert settings["flip"] == 0.5
    size = (96, 80)
    built = TrainTransform(size, flip=settings["flip"], erasing=settings["erasing"])
    expected = TrainTransform(size, erasing=erasing)
    for seed in range(20):
        drawn, reference = (transform.draw(np.random.default_rng(seed)) for transform in (built, expected))
        assert drawn[:3] == reference[:3]
        np.testing.assert_array_equal(drawn.erased, reference.erased)


def naive_normalize(images: torch.Tensor, erased: torch.Tensor) -> torch.Tensor:
    result = images.double() / 255
    for image, boxes in zip(result, erased):
        for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD)):
            image[channel] = (image[channel] - mean) / std
        for top, left, rows, columns in boxes.tolist():
            image[:, top : top + rows, left : left + columns] = 0
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rectangles", [0, 1, 3])
def test_normalize_equals_the_naive_loop(layout: torch.memory_format, rectangles: int) -> None:
    generator = np.random.default_rng(rectangles)
    images = torch.from_numpy(generator.integers(0, 256, (5, 3, 11, 7), dtype=np.uint8)).contiguous(
        memory_format=layout
    )
    before = images.clone()
    choose = [Cutout(0.7, 6), RandomErasing(0.7), Cutout(1.0, 3)][:rectangles]
    boxes = [[eraser(11, 7, generator) for eraser in choose] for _ in range(5)]
    erased = torch.tensor(boxes, dtype=torch.int64).reshape(5, rectangles, 4)
    result, expected = normalize(images, erased), naive_normalize(images, erased)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.double(), expected, atol=2e-6, rtol=0)
    assert (result[expected == 0] == 0).all()
    assert images.equal(before)


@given(boxes=st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=4, max_size=4))
def test_the_mask_of_a_device_covers_what_the_host_erases(boxes: list[tuple[int, int, int, int]]) -> None:
    erased = torch.tensor(boxes).reshape(2, 2, 4)
    expected = normalize(torch.full((2, 3, 11, 7), 200, dtype=torch.uint8), erased) == 0
    assert covered(erased, 11, 7).expand(2, 3, 11, 7).equal(expected)


def test_normalize_without_rectangles_and_after_inference_mode() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    with torch.inference_mode():
        first = normalize(images)
    weight = torch.ones(1, requires_grad=True)
    (normalize(images) * weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, first.sum().reshape(1), rtol=1e-4, atol=1e-3)


def test_normalize_refuses_floats() -> None:
    with pytest.raises(TypeError, match=r"needs uint8 images, not torch\.float32"):
        normalize(torch.zeros(1, 3, 2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize_on_cuda_equals_cpu_and_does_not_wait(layout: torch.memory_format) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 16), dtype=torch.uint8).contiguous(memory_format=layout)
    erased = torch.tensor([[[0, 0, 8, 8]], [[0, 0, 0, 0]], [[30, 10, 2, 6]], [[5, 5, 20, 3]]])
    device_images, device_erased = images.cuda(), erased.cuda()
    normalize(device_images, device_erased)  # the constants are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = normalize(device_images, device_erased)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_contiguous(memory_format=layout)
    torch.testing.assert_close(result.cpu(), normalize(images, erased), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eraser", [lambda *_: 5, lambda height, width: (0, 0, 0, 0), lambda *_: "abcd", dict])
def test_what_chooses_no_rectangle_is_no_eraser(eraser):
    with pytest.raises(ValueError, match=r"erasing\[0\]=.*(can't erase|chooses no rectangle)"):
        TrainTransform((8, 4), erasing=[eraser])
