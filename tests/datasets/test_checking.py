"""Every image opened once: what is found, whatever is wrong with it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bdbnet.datasets import Manifest, SplitCounts
from bdbnet.datasets.checking import check_images
from bdbnet.datasets.inspection import duplicates_across, inspect_images, inspect_table, remarks


def save(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make(
    root: Path, splits: str, labels: list[int], *, cameras: list[int] | None = None, **boxes: list[int]
) -> Manifest:
    """Images 0.png, 1.png, ... of the splits named by their first letters (train, query, gallery, e for test)."""
    names = {"t": "train", "q": "query", "g": "gallery", "e": "test"}
    rows = {"path": [f"{number}.png" for number in range(len(splits))], "label": labels,
            "camera": cameras or [-1] * len(splits), "split": [names[split] for split in splits], **boxes}  # fmt: skip
    for number in range(len(splits)):
        save(root / f"{number}.png", number)
    return Manifest.from_table(pd.DataFrame(rows), root, "toy")


def test_sound_images_give_distinct_digests(tmp_path: Path) -> None:
    checked = check_images(make(tmp_path, "ttee", [1, 1, 2, 2]), progress=False)
    assert checked.unreadable == {}
    assert checked.clipped == []
    assert len(set(checked.digests)) == 4
    assert all(len(digest) == 32 for digest in checked.digests)


def test_every_unreadable_image_is_named(tmp_path: Path) -> None:
    manifest = make(tmp_path, "tttee", [1, 1, 1, 2, 2])
    (tmp_path / "1.png").unlink()
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    checked = check_images(manifest, progress=False)
    assert list(checked.unreadable) == [1, 3]
    assert "1.png does not exist" in checked.unreadable[1]
    assert "3.png can't be read" in checked.unreadable[3]
    assert [digest == "" for digest in checked.digests] == [False, True, False, True, False]
    findings, _ = inspect_images(manifest, progress=False)
    assert len(findings) == 1
    assert str(findings[0]).startswith("2 images can't be read:")
    assert "loading.on_error=replace" in findings[0].fix


def test_many_unreadable_images_are_counted_and_some_shown(tmp_path: Path) -> None:
    manifest = make(tmp_path, "t" * 30, [1] * 30)
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(b"")
    (finding,), _ = inspect_images(manifest, progress=False)
    assert finding.problem.startswith("30 images can't be read:")
    assert finding.problem.count("can't be read (") == 10
    assert finding.problem.endswith("... and 20 more")


def test_boxes_over_the_border_are_noted_and_beside_the_image_refused(tmp_path: Path) -> None:
    boxes = {"x1": [0, 5, 40], "y1": [0, 5, 0], "x2": [30, 31, 50], "y2": [20, 20, 20]}
    checked = check_images(make(tmp_path, "ttt", [1, 2, 3], **boxes), progress=False)
    assert checked.clipped == [1]
    assert "nothing in its box x1=40" in checked.unreadable[2]


@pytest.mark.parametrize("same_box", [True, False])
def test_equal_files_in_train_and_test(tmp_path: Path, same_box: bool) -> None:
    boxes = {"x1": [0] * 4, "y1": [0] * 4, "x2": [9] * 4, "y2": [9, 9, 9 if same_box else 8, 9]}
    manifest = make(tmp_path, "ttee", [1, 1, 2, 2], **boxes)
    save(tmp_path / "2.png", 0)
    save(tmp_path / "3.png", 2)
    findings, _ = inspect_images(manifest, progress=False)
    assert len(findings) == int(same_box)
    if same_box:
        assert "1 test images are also in the training set" in findings[0].problem
        assert "the first is 2.png (as 0.png)" in findings[0].problem


def test_equal_or_unreadable_files_within_a_role_are_no_duplicates(tmp_path: Path) -> None:
    manifest = make(tmp_path, "ttee", [1, 1, 2, 2])
    assert duplicates_across(manifest, np.array(["a", "a", "b", "b"])) == []
    assert duplicates_across(manifest, np.array(["", "x", "", "y"])) == []
    assert len(duplicates_across(manifest, np.array(["a", "b", "b", "b"]))) == 1


def test_table_findings(tmp_path: Path) -> None:
    assert inspect_table(make(tmp_path, "ttqg", [1, 1, 2, 2], cameras=[0, 1, 0, 1]), {}) == []
    one_camera = make(tmp_path, "ttqg", [1, 1, 2, 2], cameras=[0, 0, 1, 1])
    (unmatched,) = inspect_table(one_camera, {})
    assert (
        "1 queries of 1 identities have no image of their identity under another camera in the gallery"
        in unmatched.problem
    )
    assert remarks(one_camera) == ["1 training identities were seen by one camera only"]
    (alone,) = inspect_table(make(tmp_path, "teee", [1, 2, 2, 3]), {})
    assert "1 queries of 1 identities have no image of their identity among the other test images" in alone.problem
    (shared,) = inspect_table(make(tmp_path, "ttee", [5, 7, 7, 7]), {})
    assert "1 identities have images in both train and test, the first is 7 (1.png)" in shared.problem
    published = {"train": SplitCounts(1, 3, 0)}
    (counts,) = inspect_table(make(tmp_path, "ttee", [1, 1, 2, 2]), published)  # type: ignore[arg-type]
    assert "not the complete toy: train has 2 images, published 3" in counts.problem
    assert remarks(make(tmp_path, "tee", [1, 2, 2])) == [
        "1 training identities have a single image: batches repeat it",
        "the images have no cameras: the retrieval protocol (Recall@K) is used",
    ]


def test_rows_of_a_role_that_are_missing_or_mixed(tmp_path: Path) -> None:
    (missing,) = inspect_table(make(tmp_path, "tt", [1, 1]), {})
    assert "there are no query and no gallery images" in missing.problem
    (mixed,) = inspect_table(make(tmp_path, "tteeg", [1, 1, 2, 2, 2]), {})
    assert "some gallery images have split test" in mixed.problem


def test_many_equal_files_are_one_finding(tmp_path: Path) -> None:
    rows = {"path": [f"{number}.png" for number in range(60_000)], "label": 1, "camera": -1}
    split = ["train" if number % 2 else "test" for number in range(60_000)]
    manifest = Manifest.from_table(pd.DataFrame({**rows, "split": split}), tmp_path, "toy")
    (finding,) = duplicates_across(manifest, np.full(60_000, "the same"))
    assert "30,000 test images are also in the training set" in finding.problem


def test_labeled_mistaken_for_detected_is_one_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bdbnet.datasets.inspection.mistaken_kind", lambda manifest: "use dataset=cuhk03_label")
    published = {"train": SplitCounts(1, 3, 0)}
    (finding,) = inspect_table(make(tmp_path, "ttee", [1, 1, 2, 2]), published)  # type: ignore[arg-type]
    assert finding.fix == "use dataset=cuhk03_label"
