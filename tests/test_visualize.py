import csv
import sys

import numpy as np
import pytest
from PIL import Image

from bdbnet.figures import activation_maps_figure, overlay, upsampled
from bdbnet.reporting.visualizing import names_of
from bdbnet.visualize import main

BUNDLED = "bdb_osnet_x0_25_synthetic"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Figures of two people, in two sizes, as a table that knows them."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = [("path", "label", "camera")]
    for number in range(4):
        pixels = rng.integers(0, 256, (64 + 16 * (number % 2), 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", number // 2, number % 2))
    with (folder / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(...)``: exit status, output and errors of the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualize", "format=[png]", "dpi=60", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capsys.readouterr())

    return typed


def test_every_kind_is_drawn_kept_as_numbers_and_shown_on_a_page(run, photos, tmp_path):
    kinds = "activation,similarity,masks,ranking,area"
    code, out, err = run(
        f"checkpoint=[{BUNDLED},{BUNDLED}]",
        "names=[A,B]",
        f"images={photos}/people.csv",
        f"what=[{kinds}]",
        "run_name=all",
    )
    assert (code, err) == (0, "")
    folder = tmp_path / "outputs/visualize/all"
    drawn = {"activation.png", "similarity.png", "masks.png", "ranking.png"}
    assert {path.name for path in folder.iterdir()} >= drawn | {"maps.npz", "areas.csv", "visualize.html"}
    arrays = np.load(folder / "maps.npz")
    assert arrays["activation/A/global"].shape == (4, 4, 2)
    assert arrays["similarity/B/dropping"].shape == (6, 4, 2)  # three pairs
    np.testing.assert_array_equal(arrays["activation/A/global"], arrays["activation/B/global"])
    masks = arrays["masks/A/step 1"]
    assert masks.dtype == bool
    assert 0 < masks.mean() < 1
    page = (folder / "visualize.html").read_text()
    assert page.count("<picture>") == 4
    assert "Where two images agree" in page
    assert "A, global" in out
    assert "A, all branches" in out
    assert "+0.0 (+0.0 to +0.0)" in out  # of the same network
    assert len((folder / "areas.csv").read_text().splitlines()) == 5

    code, _, err = run(f"checkpoint={BUNDLED}", f"images={photos}", "run_name=all")
    assert code == 1
    assert "holds results of other settings" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images=PHOTOS"], "checkpoint= is missing"),
        ([f"checkpoint={BUNDLED}"], "set exactly one of images=FOLDER_OR_TABLE or dataset=NAME"),
        (
            [f"checkpoint={BUNDLED}", "images=PHOTOS/0.png", "what=[similarity]"],
            "give a folder or table with at least two",
        ),
        (
            [f"checkpoint={BUNDLED}", "images=PHOTOS", "what=[class]"],
            "has no classifiers, which maps of an identity need",
        ),
        ([f"checkpoint={BUNDLED}", "images=PHOTOS", "what=[heat]"], "give a list of activation, class"),
        ([f"checkpoint={BUNDLED}", "images=PHOTOS", "tokens=true"], "is no transformer of timm"),
        ([f"checkpoint={BUNDLED}", "images=nowhere"], "there is no such file or folder"),
        (
            [f"checkpoint=[{BUNDLED},{BUNDLED}]", "images=PHOTOS", "names=[a]"],
            "give a different name for each of the 2",
        ),
        ([f"checkpoint={BUNDLED}", "dataset=synthetic_reid", "images=PHOTOS"], "set exactly one"),
    ],
)
def test_what_can_not_be_shown_is_said(run, photos, arguments, said):
    code, _, err = run(*(argument.replace("PHOTOS", str(photos)) for argument in arguments))
    assert code == 1
    assert said in err


def test_names():
    assert names_of(["a/last.ckpt", "b/last.ckpt"], None) == ["a", "b"]
    assert names_of(["timm:vit_tiny_patch16_224", "x/y/net.pth"], None) == ["vit_tiny_patch16_224", "net"]
    assert names_of(["a/net.pth", "a/net.pth"], None) == ["1: net", "2: net"]


class TestFigure:
    def test_between_two_values_there_is_nothing_beyond_them(self):
        values = np.zeros((3, 2), np.float32)
        values[1, 0] = 1
        large = upsampled(values, 90, 40)
        assert large.shape == (90, 40)
        assert large.min() == 0
        assert large.max() <= 1
        assert large[45, 5] > large[45, 35]
        np.testing.assert_array_equal(upsampled(np.full((2, 2), 0.5), 8, 6), np.full((8, 6), 0.5, np.float32))

    def test_bright_where_the_map_is_high_and_grey_where_it_is_dropped(self):
        picture = np.full((60, 30, 3), 90, np.uint8)
        values, mask = np.array([[0.0], [1.0]]), np.array([[True], [False]])
        pixels = overlay(picture, values, 1.0, mask)
        assert (pixels[:20] == 90).all()
        assert pixels[50].mean() > 120
        assert overlay(picture, np.zeros((2, 1)), 0.0).mean() < 90

    def test_a_column_for_each_name_with_its_values(self):
        images = [np.zeros((40, 20, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)]
        figure = activation_maps_figure(
            images, {"one": [np.ones((2, 1))] * 2, "two": [np.full((4, 2), 7.25)] * 2}, unit="u"
        )
        shown = [text.get_text() for text in figure.texts]
        assert shown == ["image", "one", "two", "u"]
        bars = [axes for axes in figure.axes if axes.axison]
        labels = [[label.get_text() for label in axes.get_xticklabels()] for axes in bars]
        assert labels == [["0", "1"], ["0", "7.25"]]
        with pytest.raises(ValueError, match=r"2 images, but other numbers of maps: \{'one': 1\}"):
            activation_maps_figure(images, {"one": [np.ones((2, 1))]})
        with pytest.raises(ValueError, match="at least one image and one map"):
            activation_maps_figure([], {})


def test_queries_of_a_data_set_and_its_gallery(run, tmp_path):
    tiny = (
        "train_identities:2,test_identities:4,images_per_camera:2,cameras:2,distractors:2,image_size:[32,16],workers:1"
    )
    what = "what=[similarity,ranking,area]"
    data = ("dataset=synthetic_reid", f"dataset.options={{{tiny}}}")
    code, out, err = run(f"checkpoint={BUNDLED}", *data, what, "count=2", "top=3", "run_name=d")
    assert (code, err) == (0, "")
    arrays = np.load(tmp_path / "outputs/visualize/d/maps.npz")
    assert arrays["similarity/bdb_osnet_x0_25_synthetic/global"].shape[0] == 4
    assert [values.shape[0] for name, values in arrays.items() if name.startswith("ranking/")] == [3, 3]
    assert "over 18 images" in out
