import io

import numpy as np
import pytest
from PIL import Image

from bdbnet.figures import RankedImage, RankingList, ranking_lists_figure, read_thumbnail


def picture(colour=(200, 30, 30), size=(32, 64)) -> np.ndarray:
    return np.full((size[1], size[0], 3), colour, dtype=np.uint8)


def test_thumbnail_of_an_array_fits_the_size_and_keeps_its_shape():
    assert read_thumbnail(picture(size=(100, 400)), 200).size == (50, 200)


def test_thumbnail_is_never_enlarged():
    assert read_thumbnail(picture(size=(8, 16)), 200).size == (8, 16)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "image.tiff"
    Image.fromarray(picture()).convert(mode).save(path)
    assert read_thumbnail(path).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((4, 4), 128 << 8, dtype=np.uint16)).save(path)
    assert np.asarray(read_thumbnail(path)).tolist() == np.full((4, 4, 3), 128).tolist()


def test_rotation_of_exif_is_applied(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(size=(64, 32))).save(path, exif=exif)
    assert read_thumbnail(path).size == (32, 64)


def test_missing_file_is_told_from_unreadable_ones(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_thumbnail(tmp_path / "absent.jpg")
    broken = tmp_path / "broken.jpg"
    for content in (b"", b"not an image"):
        broken.write_bytes(content)
        with pytest.raises(OSError, match=r"broken\.jpg"):
            read_thumbnail(broken)
    Image.fromarray(picture(size=(64, 64))).save(broken)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError):
        read_thumbnail(broken)
    broken.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"broken\.jpg"):
        read_thumbnail(broken)


def test_figure_borders_captions_and_missing_images(tmp_path):
    results = [RankedImage(picture(), 0.25, True), RankedImage(tmp_path / "absent.jpg", 0.5, False)]
    figure = ranking_lists_figure([RankingList(picture(), results, "Eve")], top=2)
    query, right, wrong = figure.axes
    assert query.get_title() == "Eve"
    assert right.get_title().startswith("1 ✓ 0.25")
    assert wrong.get_title().startswith("2 ✗ 0.5")
    green, red = (axes.spines["left"].get_edgecolor() for axes in (right, wrong))
    assert green[1] > green[0]
    assert red[0] > red[1]
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()
    assert [text.get_text() for text in wrong.texts] == ["image\nnot found"]
    figure.savefig(io.BytesIO(), format="png")


def test_lists_shorter_than_top_leave_the_rest_empty():
    lists = [RankingList(picture(), [RankedImage(picture(), 1.0, True)] * length) for length in (3, 1)]
    assert len(ranking_lists_figure(lists, top=3).axes) == 2 + 3 + 1


@pytest.mark.parametrize(("lists", "top"), [([], 5), ([RankingList(picture(), [])], 0)])
def test_nothing_to_draw_is_an_error(lists, top):
    with pytest.raises(ValueError, match="at least one ranking list"):
        ranking_lists_figure(lists, top=top)
