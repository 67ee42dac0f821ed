import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdbnet.datasets import images
from bdbnet.datasets.images import ImageError, image_size, image_suffixes, read_image, readable_formats, unread_images
from bdbnet.loading import EvaluationTransform, TrainTransform

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = PIXELS, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_rgb_is_untouched(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PIXELS)


def test_greyscale_repeats_its_channel(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", PIXELS[..., 0]))
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_black_and_white(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", np.array([[True, False]])))
    np.testing.assert_array_equal(image, [[[255] * 3, [0] * 3]])


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 255, 256, 128 * 256, 65_535]], dtype=np.uint16)
    image = read_image(save(tmp_path / name, values))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_32_bit_whole_numbers_within_16_bits_are_scaled_and_others_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.tiff", np.array([[0, 65_535]], dtype=np.int32))
    np.testing.assert_array_equal(read_image(good)[0, :, 1], [0, 255])
    bad = save(tmp_path / "bad.tiff", np.array([[0, 65_536]], dtype=np.int32))
    with pytest.raises(ImageError, match=r"bad\.tiff.*8 or 16 bits"):
        read_image(bad)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.tiff.*8 or 16 bits"):
        read_image(save(tmp_path / "a.tiff", np.zeros((2, 2), dtype=np.float32)))


def test_cmyk_jpeg_has_the_colours_of_the_rgb_one(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 60, 20), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.jpg", flat, mode="CMYK", quality=100))
    np.testing.assert_allclose(image, flat, atol=3)


def test_palette_keeps_its_colours(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(colours).quantize(4).save(path)
    np.testing.assert_array_equal(read_image(path), colours)


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    alpha = np.full((6, 4, 1), 255, dtype=np.uint8)
    alpha[0] = 0
    image = read_image(save(tmp_path / "a.png", np.concatenate([PIXELS, alpha], axis=2)))
    assert (image[0] == 255).all()
    np.testing.assert_array_equal(image[1:], PIXELS[1:])


def test_transparent_palette_colour_lies_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)
    np.testing.assert_array_equal(read_image(path), [[[255] * 3, [40, 50, 60]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # only the upper left quarter is white
    # How a camera stores the upright scene under each orientation tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(stored), exif=exif, quality=100)
    np.testing.assert_allclose(read_image(path), upright, atol=2)


def test_damaged_exif_does_not_lose_a_sound_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(path).shape == (6, 4, 3)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist: check"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0", bytes(1000)])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"fake\.jpg can't be read .*copy it again"):
        read_image(path)


def test_folder_named_like_an_image(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=r"folder\.jpg can't be read"):
        read_image(tmp_path / "folder.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_image_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = save(tmp_path / name, np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"a\.\w+ can't be read"):
        read_image(path)


def test_a_failing_image_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(path: Path, **options: object) -> None:
        calls.append(path)
        raise OSError("disk error")

    (tmp_path / "a.jpg").write_bytes(b"some bytes")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="disk error"):
        read_image(tmp_path / "a.jpg")
    assert len(calls) == 1


def test_programs_are_never_started(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not one of JPEG"):
        read_image(path)


def test_pixel_cap_is_an_error_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert read_image(path).shape == (6, 4, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"bomb\.png has 4 x 6 pixels, the limit is 23: scale it down"):
        read_image(path)


def test_pillows_own_bomb_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ImageError, match=r"bomb\.png has too many pixels"):
        read_image(path)


def test_pillow_never_warns_about_an_image_that_is_accepted() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_box_excludes_right_and_lower_edge(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png"), box=(1, 2, 3, 6))
    np.testing.assert_array_equal(image, PIXELS[2:6, 1:3])


def test_box_over_the_border_is_cut_to_the_image(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png"), box=(2, 3, 9, 9))
    np.testing.assert_array_equal(image, PIXELS[3:, 2:])


def test_box_beside_the_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png \(4 x 6 pixels\) has nothing in its box x1=4.*correct the box"):
        read_image(save(tmp_path / "a.png"), box=(4, 0, 9, 9))


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft shapes with some fine grain, as a camera gives them."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return np.clip(soft + generator.normal(0, 3, soft.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_jpeg_decoder_equals_pillow(tmp_path: Path, mode: str, subsampling: int) -> None:
    path = save(tmp_path / "a.jpg", photograph(61, 83), mode=mode, quality=88, subsampling=subsampling)
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, box=(5, 7, 60, 50)), expected[7:50, 5:60])


def test_progressive_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", photograph(61, 83), progressive=True)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize(("height", "width"), [(480, 360), (1001, 1337), (256, 1100), (511, 511), (2050, 2049)])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("margin", [1.0, 2.0])
def test_large_jpeg_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, height: int, width: int, pad: bool, margin: float
) -> None:
    path = save(tmp_path / "a.jpg", photograph(height, width), quality=92)
    transform = EvaluationTransform(256, pad_to_square=pad)
    full, reduced = read_image(path), read_image(path, excess=transform.excess, margin=margin)
    side = max(height, width) if pad else min(height, width)
    factor = max(factor for factor in (1, 2, 4, 8) if factor == 1 or side >= 256 * margin * factor)
    assert reduced.shape[:2] == (round(height / factor), round(width / factor))
    difference = np.abs(transform.prepare(full).astype(int) - transform.prepare(reduced))
    assert difference.mean() <= (3 if margin == 2 else 7)


@pytest.mark.parametrize(
    ("margin", "size", "mean"), [(2, 112, 1), (2, 56, 3), (2, 28, 3), (1, 112, 5), (1, 56, 5), (1, 28, 7)]
)
def test_decoding_keeps_its_tolerance_on_real_photographs(
    shared_data: Path, tmp_path: Path, margin: float, size: int, mean: float
) -> None:
    """At 2, 4 and 8 times the needed size, in levels of 255, on average over photographs."""
    archive = shared_data / "cub100_small.zip"
    if not archive.is_file():
        pytest.skip("no cub100_small.zip in the folder of real data")
    transform, means = EvaluationTransform(size, pad_to_square=True), []
    with zipfile.ZipFile(archive) as source:
        for name in [name for name in source.namelist() if name.endswith(".jpg")][::200]:
            path = Path(source.extract(name, tmp_path))
            full, reduced = read_image(path), read_image(path, excess=transform.excess, margin=margin)
            assert (reduced.shape[0] < full.shape[0]) == (full.shape[0] >= 2 * margin * size)
            means.append(np.abs(transform.prepare(full).astype(int) - transform.prepare(reduced)).mean())
    assert len(means) >= 20
    assert np.mean(means) <= mean


def test_colours_are_smoothed_only_where_it_shows(tmp_path: Path) -> None:
    """Less than one level of 255 on average from 1.5 times the needed size on, no difference below."""
    path = save(tmp_path / "a.jpg", photograph(300, 400), quality=90)
    for size, allowed in ((220, 0.0), (200, 1.0), (160, 1.0)):
        transform = EvaluationTransform(size)
        full, fast = read_image(path), read_image(path, excess=transform.excess)
        assert fast.shape == full.shape
        difference = np.abs(transform.prepare(full).astype(int) - transform.prepare(fast)).mean()
        assert difference <= allowed
        assert (difference > 0) == (allowed > 0)


def test_files_with_a_box_and_other_formats_keep_their_size(tmp_path: Path) -> None:
    def four_times(height: int, width: int) -> float:
        sizes.append((height, width))
        return 4.0

    sizes: list[tuple[int, int]] = []
    path = save(tmp_path / "a.jpg", photograph(64, 64))
    assert read_image(path, excess=four_times).shape == (32, 32, 3)
    assert read_image(path, excess=four_times, box=(0, 10, 64, 30)).shape == (20, 64, 3)
    assert sizes == [(64, 64), (20, 64)]
    assert read_image(save(tmp_path / "a.png", photograph(64, 64)), excess=four_times).shape == (64, 64, 3)


def test_photographs_with_exif_are_decoded_to_less_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    plain = save(tmp_path / "plain.jpg", photograph(600, 800))
    path = save(tmp_path / "a.jpg", photograph(600, 800), exif=exif)
    excess = EvaluationTransform(128).excess
    reduced = read_image(path, excess=excess)
    assert reduced.shape == (300, 400, 3)
    np.testing.assert_array_equal(reduced, read_image(plain, excess=excess))


def test_excess_is_measured_after_padding() -> None:
    plain, padded = TrainTransform((384, 128)), TrainTransform(224, resize=256, pad_to_square=True)
    assert plain.excess(768, 10_000) == 2
    assert plain.excess(128, 64) == pytest.approx(1 / 3)
    assert padded.excess(100, 512) == padded.excess(512, 512) == 2


@pytest.mark.parametrize("suffix", image_suffixes())
def test_every_suffix_that_is_listed_is_read(tmp_path, suffix):
    """Pillow knows each suffix, and reads what it wrote under it."""
    path = tmp_path / f"a{suffix}"
    Image.new("1" if suffix == ".pbm" else "RGB", (8, 16), "white").save(path)
    assert read_image(path).shape == (16, 8, 3)
    assert image_size(path) == (16, 8)


def test_formats_that_were_not_built_into_pillow_are_not_listed(monkeypatch):
    assert ".jp2" in image_suffixes()
    monkeypatch.delitem(Image.OPEN, "JPEG2000")
    assert ".jp2" not in image_suffixes()
    assert "JPEG2000" not in readable_formats()
    assert unread_images(["a.jp2"]) == "1 image(s) in formats that are not read here (1 .jp2)"
