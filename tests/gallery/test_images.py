"""Which images a gallery is made of."""

import shutil

import pytest

from bdbnet.datasets import DatasetError
from bdbnet.loading.sources import dataset_images, find_images


def test_parts_of_a_dataset(make_config, rendered, dataset_overrides):
    def part(split: str):
        return dataset_images(make_config(*dataset_overrides).dataset, split)

    counts = {split: len(part(split)) for split in ("query", "gallery", "train", "test", "all")}
    assert counts == {"query": 8, "gallery": 19, "train": 24, "test": 27, "all": 51}
    assert part("all").table["path"].tolist() == rendered.table["path"].tolist()
    tested = part("test").table
    assert tested["path"].tolist() == [*part("query").table["path"], *part("gallery").table["path"]]
    assert {"label", "camera"} <= {*tested.columns}
    with pytest.raises(DatasetError, match="split=val: choose one of query, gallery, train, test, all"):
        part("val")


def test_a_folder_that_is_moved_has_the_same_images(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    assert find_images(tmp_path / "copy").manifest.fingerprint == find_images(photos).manifest.fingerprint
