"""Data sets that bring a protocol of their own, evaluated by a small trained network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdbnet.config import ConfigError
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.results import Result


def picture(file: Path, seed: int, size: tuple[int, int] = (16, 32)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def evaluated(tiny_config, finished_run, tmp_path) -> Callable[..., Result]:
    def run(*overrides: str) -> Result:
        checkpoint = f"checkpoint={finished_run}/last.ckpt"
        return evaluate(tiny_config(checkpoint, *overrides, command="evaluate"), tmp_path / "result")

    return run


def vehicleid(root: Path, images: dict[int, int]) -> Path:
    """Vehicle -> number of test images; one of them trains."""
    listed = [vehicle for vehicle, count in images.items() for _ in range(count)]
    lists = root / "train_test_split"
    lists.mkdir(parents=True)
    (lists / "train_list.txt").write_text("0000000 99\n")
    (lists / "test_list_800.txt").write_text("".join(f"{n:07d} {vehicle}\n" for n, vehicle in enumerate(listed, 1)))
    for number in range(1 + len(listed)):
        picture(root / "image" / f"{number:07d}.jpg", number)
    return root


def test_vehicleid_draws_ten_galleries_and_asks_for_the_rest(evaluated, tmp_path):
    root = vehicleid(tmp_path / "vehicles", {1: 3, 2: 2, 5: 4})
    result = evaluated("dataset=vehicleid_small", f"dataset.root={root}", "dataset.options.check_counts=false")
    assert (result.protocol.task, result.protocol.single_shot) == ("reid_single_shot", 10)
    assert set(result.metrics) == {"rank1", "rank5", "rank10", "valid_queries"}
    assert result.metrics["valid_queries"] == 9 - 3
    assert 0 <= result.metrics["rank1"] <= result.metrics["rank5"] == 1  # of three vehicles


def test_a_vehicle_with_one_image_is_named(evaluated, tmp_path):
    root = vehicleid(tmp_path / "vehicles", {1: 3, 2: 1})
    with pytest.raises(
        ConfigError, match=r"1 identities have one test image alone, the first is 2 \(image/0000004.jpg\)"
    ):
        evaluated("dataset=vehicleid_small", f"dataset.root={root}", "dataset.options.check_counts=false")


def test_crops_of_a_video_are_cut_in_memory(evaluated, tmp_path):
    video = tmp_path / "video"
    for frame in range(1, 6):
        picture(video / "img1" / f"{frame:06d}.png", frame, (60, 40))
    (video / "gt").mkdir()
    boxes = [f"{frame},{person},{1 + 20 * person},1,16,32,1,1,1\n" for frame in range(1, 6) for person in (0, 1)]
    (video / "gt" / "gt.txt").write_text("".join(boxes))
    before = sorted(video.rglob("*"))
    result = evaluated("dataset=mot", f"dataset.root={video}", "dataset.options.after=2")
    assert (result.protocol.task, result.protocol.dataset) == ("reid_reassociation", "video_after2")
    assert result.metrics["valid_queries"] == 4  # two people in frames 1 and 3, searched for in frames 3 and 5
    assert result.metrics["rank5"] == 1  # of two people
    assert sorted(video.rglob("*")) == before
