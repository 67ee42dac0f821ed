"""Images of a user's own in the folders of Market-1501."""

from pathlib import Path

import pytest

from bdbnet.datasets import DatasetError, load_manifest
from small_files import touch

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"


def test_any_numbers_in_the_naming_of_market1501(tmp_path: Path) -> None:
    touch(tmp_path / "mine", f"{TRAIN}/00012_c12s1_1.png", f"{QUERY}/7_c12_1.webp")
    touch(tmp_path / "mine", f"{GALLERY}/7_c1.JPG", f"{GALLERY}/-1_c1.jpg", f"{GALLERY}/notes.txt")
    manifest = load_manifest("market_layout", tmp_path)
    assert manifest.name == "mine"
    assert manifest.table.to_numpy().tolist() == [
        [f"{TRAIN}/00012_c12s1_1.png", 12, 12, "train"],
        [f"{QUERY}/7_c12_1.webp", 7, 12, "query"],
        [f"{GALLERY}/7_c1.JPG", 7, 1, "gallery"],
    ]
    assert manifest.name_of(12) == "00012"


@pytest.mark.parametrize("pattern", [r"([a-z]+)-(\w+)-.*", r"(?P<identity>[a-z]+)-(?P<camera>\w+)-(\d)"])
def test_a_pattern_with_names_for_identities_and_cameras(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, f"{TRAIN}/zoe-door-1.jpg", f"{QUERY}/anna-gate-2.jpg", f"{GALLERY}/anna-door-1.jpg")
    manifest = load_manifest("market_layout", tmp_path, pattern=pattern)
    assert manifest.table[["label", "camera"]].to_numpy().tolist() == [[1, 0], [0, 1], [0, 0]]
    assert (manifest.name_of(0), manifest.name_of(1)) == ("anna", "zoe")


def test_a_pattern_without_a_camera(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/1-a.jpg", f"{QUERY}/2-a.jpg", f"{GALLERY}/2-b.jpg")
    manifest = load_manifest("market_layout", tmp_path, pattern=r"(\d+)-.*")
    assert not manifest.has_cameras
    assert manifest.table["label"].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, r"query: can't read identity and camera from the file name 'cat.jpg' by the pattern .*set dataset.options.pattern"),
        (r"(\d+", r"dataset.options.pattern=\(\\d\+: not a regular expression \(missing \)"),
        (r"\d+_c1", "has no group for the identity. Write one such as"),
        (r"(\d+)_c(?P<camera>\d)", "has no group for the identity"),
        (r"(\d+)_c(\d*).*", "can't read identity and camera from the file name 'cat.jpg'"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_named(tmp_path: Path, pattern: str | None, expected: str) -> None:
    touch(tmp_path, f"{TRAIN}/1_c1.jpg", f"{QUERY}/cat.jpg", f"{GALLERY}/2_c2.jpg")
    with pytest.raises(DatasetError, match=expected):
        load_manifest("market_layout", tmp_path, pattern=pattern)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((f"{TRAIN}/1_c1.jpg", f"{QUERY}/2_c1.jpg"), f"but not {GALLERY}"),
        ((f"{TRAIN}/1_c1.jpg", f"{QUERY}/2_c1.jpg", f"{GALLERY}/a/2_c2.jpg"), f"{GALLERY} holds no images"),
        ((f"{TRAIN}/1_c1.jpg", f"{QUERY}/2_c1.jpg", f"{GALLERY}/-1_c2.jpg"), "holds no images but junk"),
    ],
)
def test_folders_without_images(tmp_path: Path, files: tuple[str, ...], expected: str) -> None:
    with pytest.raises(DatasetError, match=expected):
        load_manifest("market_layout", touch(tmp_path, *files))


def test_two_spellings_of_one_number_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/1_c1.jpg", f"{QUERY}/01_c2.jpg", f"{GALLERY}/01_c3.jpg")
    with pytest.raises(
        DatasetError, match=r"the identities 1 and 01 are one number\. Write it alike in all file names"
    ):
        load_manifest("market_layout", tmp_path)
