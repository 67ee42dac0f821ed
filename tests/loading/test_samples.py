from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bdbnet.datasets import Manifest
from bdbnet.loading import Draw, EvaluationTransform, ImageDataset, ImageError, TrainTransform

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def make_manifest(root: Path, *, boxes: bool = False) -> Manifest:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PIXELS).save(root / name)
    rows = {"path": ["a.png", "b.png", "c.png"], "label": [30, 10, 30], "camera": [0, 1, 2], "split": ["train"] * 3}
    if boxes:
        rows |= {"x1": [0, 1, 0], "y1": [0, 2, 0], "x2": [4, 3, 4], "y2": [6, 4, 6]}
    return Manifest.from_table(pd.DataFrame(rows), root, "three")


def test_batch_has_the_values_of_its_rows(tmp_path: Path) -> None:
    dataset = ImageDataset(
        make_manifest(tmp_path),
        EvaluationTransform((6, 4)),
        labels=np.array([1, 0, 1]),
        columns={"is_query": np.array([False, True, False])},
    )
    batch = dataset.__getitems__([Draw(1, 5, 7), Draw(2, 5, 8)])
    assert {name: values.tolist() for name, values in batch.items() if name not in ("image", "erased")} == {
        "label": [0, 1],
        "camera": [1, 2],
        "index": [1, 2],
        "position": [7, 8],
        "is_query": [True, False],
    }
    assert batch["image"].shape == (2, 3, 6, 4)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch["image"][1].permute(1, 2, 0), PIXELS)
    assert batch["erased"].shape == (2, 0, 4)
    assert dataset[2]["position"].tolist() == [2]
    assert len(dataset) == 3
    assert ImageDataset(make_manifest(tmp_path), EvaluationTransform(4))[0]["label"].tolist() == [30]


def test_box_of_the_row_is_cut_out(tmp_path: Path) -> None:
    sample = ImageDataset(make_manifest(tmp_path, boxes=True), EvaluationTransform(2))[1]
    np.testing.assert_array_equal(sample["image"][0].permute(1, 2, 0), PIXELS[2:4, 1:3])


def test_columns_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label has 2 values for the 3 images of three"):
        ImageDataset(make_manifest(tmp_path), EvaluationTransform(4), labels=np.array([0, 1]))


def test_randomness_depends_on_each_part_of_the_draw_and_nothing_else(tmp_path: Path) -> None:
    transform = TrainTransform((8, 8), resize=64)
    first = ImageDataset(make_manifest(tmp_path), transform, seed=3)
    second = ImageDataset(make_manifest(tmp_path), transform, seed=3)
    reference = first[Draw(0, 1, 2)]["image"]
    # What is drawn before, or beside it, does not matter.
    assert reference.equal(second.__getitems__([Draw(1, 0, 0), Draw(0, 1, 2)])["image"][1:])
    # The three files are equal, so that only the randomness can tell the samples apart.
    for draw in (Draw(0, 2, 2), Draw(0, 1, 3), Draw(2, 1, 2)):
        assert not reference.equal(first[draw]["image"])
    assert not reference.equal(ImageDataset(make_manifest(tmp_path), transform, seed=4)[Draw(0, 1, 2)]["image"])


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    dataset = ImageDataset(make_manifest(tmp_path), EvaluationTransform((6, 4)))
    (tmp_path / "c.png").unlink()
    with pytest.raises(ImageError, match=r"c\.png does not exist"):
        dataset[2]


def test_replace_takes_another_image_of_the_identity_and_says_so(tmp_path: Path) -> None:
    dataset = ImageDataset(make_manifest(tmp_path), EvaluationTransform((6, 4)), replace=True)
    assert dataset.__getitems__([0, 1])["replaced"].tolist() == [-1, -1]
    (tmp_path / "c.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"c\.png can't be read.*\n  replaced by .*a\.png"):
        batch = dataset.__getitems__([1, 2])
    assert batch["index"].tolist() == [1, 0]
    assert batch["label"].tolist() == [10, 30]
    assert batch["camera"].tolist() == [1, 0]
    assert batch["replaced"].tolist() == [-1, 2]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ImageError, match=r"b\.png does not exist.*No other image of its identity"):
        dataset[1]


def test_the_replacement_is_a_function_of_the_draw(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(9)]
    for name in names[1:]:
        Image.fromarray(PIXELS).save(tmp_path / name)
    rows = {"path": names, "label": 5, "camera": -1, "split": "train"}
    manifest = Manifest.from_table(pd.DataFrame(rows), tmp_path, "nine")

    def taken(seed: int) -> list[int]:
        dataset = ImageDataset(manifest, EvaluationTransform((6, 4)), seed=seed, replace=True)
        with pytest.warns(UserWarning, match="replaced by"):
            return dataset.__getitems__([Draw(0, 2, position) for position in range(20)])["index"].tolist()

    assert taken(1) == taken(1) != taken(2)
    assert set(taken(1)) <= set(range(1, 9))
    assert len(set(taken(1))) > 3
