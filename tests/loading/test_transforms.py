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
from bdbnet.loading import Cutout, EvaluationTransform, RandomErasing, TrainTransform, normalize, transforms_for
from bdbnet.loading.transforms import IMAGENET_MEAN, IMAGENET_STD, pad_to_square


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("source", [(128, 64), (300, 200), (37, 91), (256, 128), (1, 1)])
@pytest.mark.parametrize("size", [(384, 128), (256, 128), (224, 224)])
def test_resize_equals_torchvision(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = random_image(*source)
    expected = functional.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    result, _ = EvaluationTransform(size)(image)
    assert result.dtype == torch.uint8
    assert result.equal(functional.pil_to_tensor(expected))


def test_flip_mirrors_left_and_right() -> None:
    image, generator = random_image(6, 4), np.random.default_rng(0)
    plain = TrainTransform((6, 4), flip=0.0)(image, generator)[0]
    assert plain.equal(functional.pil_to_tensor(image))
    assert TrainTransform((6, 4), flip=1.0)(image, generator)[0].equal(plain.flip(2))


def test_half_of_the_images_are_flipped() -> None:
    image, generator = random_image(6, 4), np.random.default_rng(1)
    plain, transform = functional.pil_to_tensor(image), TrainTransform((6, 4))
    flipped = sum(not transform(image, generator)[0].equal(plain) for _ in range(1000))
    assert 450 < flipped < 550


def test_crops_are_parts_of_the_resized_image_and_reach_every_place() -> None:
    image, generator = random_image(8, 8), np.random.default_rng(2)
    full, transform = functional.pil_to_tensor(image), TrainTransform((6, 5), resize=8, flip=0.0)
    places = {(top, left): full[:, top : top + 6, left : left + 5] for top in range(3) for left in range(4)}
    seen = set()
    for _ in range(300):
        crop = transform(image, generator)[0]
        seen |= {place for place, part in places.items() if part.equal(crop)}
    assert seen == set(places)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (5, 5), (1, 4)])
def test_padding_is_black_with_the_image_in_the_middle(height: int, width: int) -> None:
    image, side = random_image(height, width), max(height, width)
    padded = np.asarray(pad_to_square(image)).astype(int)
    top, left = (side - height) // 2, (side - width) // 2
    assert padded.shape == (side, side, 3)
    np.testing.assert_array_equal(padded[top : top + height, left : left + width], np.asarray(image))
    assert padded.sum() == np.asarray(image).astype(int).sum()


def test_person_protocol() -> None:
    train, test = transforms_for("reid", (12, 4), flip=0.0)
    image = random_image(20, 10)
    assert train(image, np.random.default_rng(0))[0].equal(test(image)[0])
    assert test(image)[0].shape == (3, 12, 4)


def test_retrieval_protocol() -> None:
    train, test = transforms_for("retrieval", 14, resize=16, pad_test=False)
    image = random_image(20, 10)
    assert train(image, np.random.default_rng(0))[0].shape == (3, 14, 14)
    assert train.pad_to_square
    assert test(image)[0].equal(EvaluationTransform(16)(image)[0])
    _, padded = transforms_for("retrieval", 14, resize=16)
    assert padded(image)[0].equal(EvaluationTransform(16)(pad_to_square(image))[0])
    assert transforms_for("retrieval", 14)[1].image_size == (14, 14)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="choose reid or retrieval"):
        transforms_for("person", 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no meaning for protocol reid"):
        transforms_for("reid", 8, resize=9)
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


def test_train_transform_gives_one_row_per_eraser_and_the_same_crop_without_them() -> None:
    image = random_image(20, 20)
    plain = TrainTransform(16, resize=20)
    erasing = TrainTransform(16, resize=20, erasing=[Cutout(1.0, 4), RandomErasing(0.0)])
    for seed in range(20):
        expected, nothing = plain(image, np.random.default_rng(seed))
        result, erased = erasing(image, np.random.default_rng(seed))
        assert result.equal(expected)
        assert nothing.shape == (0, 4)
        assert erased.shape == (2, 4)
        assert erased.dtype == torch.int64
        assert erased[0, 2] > 0
        assert erased[1].tolist() == [0, 0, 0, 0]


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
    image, size = random_image(20, 10), (96, 80)
    built = TrainTransform(size, flip=settings["flip"], erasing=settings["erasing"])
    expected = TrainTransform(size, erasing=erasing)
    for seed in range(20):
        for result, reference in zip(
            built(image, np.random.default_rng(seed)), expected(image, np.random.default_rng(seed))
        ):
            assert result.equal(reference)


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
