"""Packed caches: the same batches, and every way in which what lies there may be something else."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn

from bdbnet.datasets import Manifest
from bdbnet.datasets.union import TrainingSets
from bdbnet.loading import (
    CacheError,
    Cutout,
    EvaluationTransform,
    ImageError,
    PackedImages,
    RandomErasing,
    ReIDDataModule,
    TrainTransform,
    open_or_pack,
    packed,
    transforms_for,
)
from bdbnet.loading.packed_batches import PackedBatches
from data_modules import data_module

REID: dict[str, Any] = {"protocol": "reid", "image_size": (24, 12)}
RETRIEVAL: dict[str, Any] = {"protocol": "retrieval", "image_size": (20, 20), "resize": (24, 24)}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return written(tmp_path, "twenty")


def written(folder: Path, name: str, seed: int = 0) -> Manifest:
    """4 identities of 4 JPEGs of different sizes, large and small, and 4 test images."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(20):
        height, width = generator.integers(10, 90, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
        split = "train" if number < 16 else "query" if number % 2 else "gallery"
        rows.append((f"{number}.jpg", number // 4, number % 2, split))
    return Manifest.from_table(pd.DataFrame(rows, columns=["path", "label", "camera", "split"]), folder, name)


def make(manifest: Manifest, protocol: dict[str, Any] = REID, **settings: Any) -> ReIDDataModule:
    transforms = transforms_for(**protocol, erasing=[Cutout(0.5, 6), RandomErasing()])
    shared = {"batch_size": 8, "images_per_identity": 4, "test_batch_size": 3, "num_workers": 0, "seed": 7}
    return data_module(manifest, *transforms, **shared | {"cache_root": manifest.root / "cache"} | settings)


def batches(data: ReIDDataModule, epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """All training batches of an epoch, then all test batches, as the network gets them."""
    train = data.train_dataloader()
    train.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    for loader in (train, data.test_dataloader()):
        for batch in loader:
            yield data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)


@pytest.mark.parametrize("protocol", [REID, RETRIEVAL])
def test_same_batches_for_any_cache_and_number_of_workers(manifest: Manifest, protocol: dict[str, Any]) -> None:
    expected = list(batches(make(manifest, protocol)))
    assert len({batch["image"].sum().item() for batch in expected}) == len(expected) > 3
    runs: list[dict[str, Any]] = [{"num_workers": 1}, {"num_workers": 4}]
    runs += [{"cache": "packed", "num_workers": workers} for workers in (0, 1, 4)]
    runs += [{"cache": "device", "num_workers": workers} for workers in (0, 1)]
    for settings in runs:
        for batch, reference in zip(batches(make(manifest, protocol, **settings)), expected, strict=True):
            assert batch.keys() == reference.keys()
            for name, values in reference.items():
                assert batch[name].equal(values), (settings, name)


@pytest.mark.parametrize("cache", ["packed", "device"])
def test_same_batches_of_a_union_for_any_cache(manifest: Manifest, tmp_path: Path, cache: str) -> None:
    (tmp_path / "second").mkdir()
    sets = TrainingSets((manifest, written(tmp_path / "second", "others", seed=1)))
    expected = list(batches(make(manifest, sets=sets)))
    assert {int(label) for batch in expected[:-2] for label in batch["label"]} == {*range(8)}
    for workers in (0, 1):
        for batch, reference in zip(
            batches(make(manifest, sets=sets, cache=cache, num_workers=workers)), expected, strict=True
        ):
            assert all(batch[name].equal(values) for name, values in reference.items())
    folders = {path.name.partition("-")[0] for path in (manifest.root / "cache").iterdir() if path.is_dir()}
    assert folders == {"twenty", "others"}  # of each set what it has by itself


def test_the_cache_is_read_instead_of_the_files(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    expected = list(batches(make(manifest, cache="packed")))
    times = {path: path.stat() for path in manifest.root.glob("*.jpg")}
    for path, status in times.items():  # other bytes of the same size and time
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for batch, reference in zip(batches(make(manifest, cache="packed")), expected, strict=True):
        assert batch["image"].equal(reference["image"])
    assert "rebuilding it" not in capsys.readouterr().out


def pack(
    manifest: Manifest, size: tuple[int, int] = (6, 4), *, root: Path | None = None, name: str = "toy", **options: Any
) -> PackedImages:
    def prepare(row: int) -> np.ndarray:
        prepared.append(row)
        return np.full((*size, 3), row, dtype=np.uint8)

    prepared: list[int] = []
    transform = TrainTransform(size)
    settings = {"decode_margin": 2.0, **options}
    where = (manifest.root if root is None else root) / "cache"
    result = open_or_pack(where, name, manifest, transform, prepare, **settings)
    result.made = len(prepared)  # type: ignore[attr-defined]
    return result


def test_a_cache_is_made_once_and_survives_pickling(manifest: Manifest) -> None:
    first = pack(manifest)
    assert first.made == 20  # type: ignore[attr-defined]
    assert [image[0, 0, 0] for image in first.images] == list(range(20))
    again = pack(manifest)
    assert again.made == 0  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < 1000
    np.testing.assert_array_equal(copy.images, first.images)
    assert sorted(path.name for path in first.folder.iterdir()) == ["cache.json", "images.npy"]
    assert re.fullmatch(r"toy-[0-9a-f]{8}-6x4", first.folder.name)
    assert [path for path in first.folder.parent.iterdir() if path.is_dir()] == [first.folder]


def cut_off(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(500)


def without_facts(folder: Path) -> None:
    (folder / "cache.json").unlink()


def garbled_facts(folder: Path) -> None:
    (folder / "cache.json").write_text("{")


def older_format(folder: Path) -> None:
    facts = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**facts, "format": 0}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut_off, "incomplete"), (without_facts, "incomplete"), (garbled_facts, "incomplete"), (older_format, "other")],
)
def test_a_damaged_cache_is_made_again_with_a_word(
    manifest: Manifest, damage: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(pack(manifest).folder)
    again = pack(manifest)
    assert again.made == 20  # type: ignore[attr-defined]
    assert again.images[19, 0, 0, 0] == 19
    out = capsys.readouterr().out
    assert str(again.folder) in out
    assert said in out
    assert "rebuilding it" in out


def test_a_cache_of_changed_files_is_made_again(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    pack(manifest)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(manifest.root / "0.jpg")
    assert pack(manifest).made == 20  # type: ignore[attr-defined]
    assert "was built from other images or settings: rebuilding it" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["fewer rows", "another label", "another size", "another setting"])
def test_a_cache_of_another_dataset_or_size_in_its_place(
    manifest: Manifest, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, options = manifest.table.copy(), {}
    if change == "fewer rows":
        table = table.iloc[:-1]
    elif change == "another label":
        table.loc[3, "label"] = 9
    elif change == "another setting":
        options = {"decode_margin": None}
    wanted = pack(manifest).folder
    shutil.rmtree(wanted)
    size = (8, 4) if change == "another size" else (6, 4)
    other = pack(Manifest.from_table(table, manifest.root, "toy"), size, **options)
    shutil.move(other.folder, wanted)
    assert pack(manifest).made == 20  # type: ignore[attr-defined]
    said = {"fewer rows": "holds 19 images of 6 x 4", "another size": "of 8 x 4"}
    assert said.get(change, "was built from other images or settings") in capsys.readouterr().out


def test_datasets_and_settings_do_not_share_a_cache(
    manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another table of the same name, a copy in another folder, another setting: each has its own."""
    table = Manifest.from_table(manifest.table.iloc[:-1], manifest.root, "toy")
    copy = Manifest.from_table(manifest.table, tmp_path_factory.mktemp("copy"), "toy")
    for _ in range(2):
        folders = [pack(part, root=manifest.root).folder for part in (manifest, table, copy)]
        folders.append(pack(manifest, decode_margin=None).folder)
        assert len({*folders}) == 4
    assert pack(manifest).made == pack(manifest, decode_margin=None).made == 0  # type: ignore[attr-defined]


def test_a_process_that_comes_late_does_not_get_other_pixels(manifest: Manifest) -> None:
    """As a worker that is started anew, when another run has made the cache again."""
    sent = pickle.dumps(pack(manifest))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(manifest.root / "0.jpg")
    pack(manifest)
    with pytest.raises(CacheError, match="was replaced while this run used it"):
        pickle.loads(sent)


def test_a_folder_of_the_user_in_its_place_is_left_alone(manifest: Manifest) -> None:
    folder = pack(manifest).folder
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(CacheError, match=r"holds mine\.txt: move it away"):
        pack(manifest)
    assert (folder / "mine.txt").read_text() == "precious"


def test_other_interpolation_is_another_cache(manifest: Manifest) -> None:
    pixels = []
    for interpolation in ("bilinear", "bicubic"):
        data = make(manifest, cache="packed", decode_margin=None)
        data.test_transform = EvaluationTransform((24, 12), interpolation=interpolation)
        pixels.append(torch.cat([batch["image"] for batch in data.test_dataloader()]))
    assert not torch.equal(*pixels)


def test_a_long_name_is_shortened(manifest: Manifest) -> None:
    assert len(pack(manifest, name="+".join(["a name"] * 60)).folder.name) < 100


def test_home_folder_in_the_path(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pack(manifest, root=Path("~/caches")).folder.parent.parent == tmp_path / "home" / "caches"


def test_what_a_killed_process_left_behind_is_removed(manifest: Manifest) -> None:
    made = pack(manifest).folder
    shutil.rmtree(made)
    folder = made.with_name(f".{made.name}.4711-abcdef00.part")
    folder.mkdir()
    (folder / "images.npy").write_bytes(bytes(1000))
    pack(manifest)
    assert not folder.exists()


def test_a_complete_cache_where_nothing_can_be_written(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(manifest)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(packed, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert pack(manifest).made == 0  # type: ignore[attr-defined]


def test_an_error_or_an_interruption_leaves_nothing(manifest: Manifest) -> None:
    def fail(row: int) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_pack(manifest.root / "cache", "toy", manifest, TrainTransform(4), fail, decode_margin=2.0)
    (manifest.root / "3.jpg").unlink()
    with pytest.raises(ImageError, match=r"3\.jpg does not exist"):
        list(batches(make(manifest, cache="packed")))
    assert not [path for path in (manifest.root / "cache").iterdir() if path.is_dir()]


def test_unreadable_images_are_noted_and_replaced(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest.root / "3.jpg").write_bytes(b"damaged")
    settings: dict[str, Any] = {"on_error": "replace", "epoch": "images"}
    plain = make(manifest, **settings)
    with pytest.warns(UserWarning, match="replaced by"):
        expected = list(batches(plain))
    assert plain.replaced == 1
    assert 3 not in torch.cat([batch["index"] for batch in expected if "is_query" not in batch])
    for cache in ("packed", "device"):
        data = make(manifest, cache=cache, **settings)
        with pytest.warns(UserWarning, match="replaced by"):
            found = list(batches(data))
        for batch, reference in zip(found, expected, strict=True):
            assert all(batch[name].equal(values) for name, values in reference.items())
        assert data.replaced == 1
    # A run that wants every image does not take a cache that lacks one.
    with pytest.raises(ImageError, match=r"3\.jpg can't be read"):
        list(batches(make(manifest, cache="packed")))
    assert "lacks 1 images" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    (manifest.root / "cache").write_text("a file is in the way")
    with pytest.raises(CacheError, match=r"toy-.*-6x4 can't be written .*loading\.cache_root"):
        pack(manifest)
    (manifest.root / "cache").unlink()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CacheError, match=r"Read-only file system.*that is writable, or loading\.cache=none"):
        pack(manifest)


def test_a_full_disk_is_an_error_and_leaves_nothing(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"can't be written \(No space left on device\).* 1 MiB of free space"):
        pack(manifest)
    assert not [path for path in (manifest.root / "cache").iterdir() if path.is_dir()]


def test_training_images_that_do_not_fit_the_device(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(manifest, cache="device")
    data.train_dataloader()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    with pytest.raises(CacheError, match=r"16 training images take 0 MiB, more than half .*loading\.cache=packed"):
        data._device_images(torch.device("cuda"))


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, data: ReIDDataModule, free: int) -> None:
    """Let a data module be that of a trainer on a GPU with so many free bytes."""
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda", 0)),
        global_rank=0,
        world_size=1,
        num_devices=1,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # type: ignore[assignment]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))


SIZE = 20 * 24 * 12 * 3  # of all images of `manifest`, prepared


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (
            4 * SIZE,
            r"device \(the 20 prepared images take 0 MiB, at most a quarter of the 0 MiB that are free on cuda:0\)",
        ),
        (4 * SIZE - 1, r"packed \(the 20 prepared images take 0 MiB, more than a quarter "),
    ],
)
def test_auto_asks_the_gpu(
    free: int, chosen: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(manifest, cache="auto")
    on_a_gpu(monkeypatch, data, free)
    assert data.cache == chosen.split()[0]
    assert re.match(f"loading.cache=auto: {chosen}", capsys.readouterr().out)
    assert data.cache == chosen.split()[0]
    assert not capsys.readouterr().out


def test_an_evaluation_counts_the_test_images_alone(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(manifest, cache="auto")
    on_a_gpu(monkeypatch, data, 4 * SIZE - 1)
    assert data.trainer is not None
    data.trainer.state.fn = TrainerFn.VALIDATING
    assert data.cache == "device"
    assert f"the {len(data.test_table)} prepared images" in capsys.readouterr().out


def test_auto_reads_files_on_a_cpu(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    for batch, reference in zip(batches(make(manifest, cache="auto")), batches(make(manifest)), strict=True):
        assert all(batch[name].equal(values) for name, values in reference.items())
    assert capsys.readouterr().out.startswith("loading.cache=auto: none (on cpu reading image files takes less time")
    assert not (manifest.root / "cache").exists()


def test_auto_does_without_a_cache_that_can_not_be_written(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest.root / "cache").write_text("a file is in the way")
    data = make(manifest, cache="auto")
    on_a_gpu(monkeypatch, data, SIZE)
    images = data.train_dataloader().dataset
    assert "loading.cache=auto: none (the cache " in capsys.readouterr().out
    assert (images.packed, images.on_device) == (None, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("cache", ["auto", "device"])
def test_a_gpu_without_room_after_all(
    cache: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    data = make(manifest, cache=cache)
    on_a_gpu(monkeypatch, data, 100 * SIZE)
    monkeypatch.setattr(torch, "empty", full)
    if cache == "device":
        with pytest.raises(
            CacheError, match=r"16 training images .* than cuda:0 has room for: use loading\.cache=packed"
        ):
            data.train_dataloader()
        return
    images = data.train_dataloader().dataset
    assert "loading.cache=auto: packed (the 16 training images take" in capsys.readouterr().out
    assert images.packed is not None  # type: ignore[attr-defined]
    assert not images.on_device  # type: ignore[attr-defined]


def test_test_batches_of_a_cache_are_those_of_a_loader_and_can_be_kept(manifest: Manifest) -> None:
    dataset = make(manifest, cache="packed").test_dataloader().dataset
    loader, rows = PackedBatches(dataset, range(1, 4, 2), 1), range(1, 4, 2)
    expected = [dataset.__getitems__([row]) for row in rows]
    next(iter(loader))
    loader.keep({"of": torch.zeros(1)})  # in an iteration that is broken off
    for number, batch in enumerate(loader):
        assert batch.keys() == expected[number].keys()
        for name, values in expected[number].items():
            assert batch[name].dtype == values.dtype
            assert batch[name].equal(values)
        assert batch["image"].stride() == expected[number]["image"].stride()
        assert not loader.is_kept
        loader.keep(batch)
    dataset.packed = None  # nothing is read any more
    assert [batch["index"].tolist() for batch in loader] == [[1], [3]]


@pytest.mark.parametrize(("free", "kept"), [(4 * 4 * 24 * 12 * 3, True), (4 * 4 * 24 * 12 * 3 - 1, False)])
def test_test_images_stay_on_the_device_where_they_fit(
    free: int, kept: bool, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(manifest, cache="device")
    monkeypatch.setattr("bdbnet.loading.datamodule.free_memory", lambda device: free)
    loader = data.test_dataloader()
    first = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    assert data.test_dataloader() is loader
    assert loader.is_kept == kept  # type: ignore[union-attr]
    said = "the 4 test images stay in the packed cache: they take 0 MiB, more than a quarter"
    assert (said in capsys.readouterr().out) != kept
    again = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    for batch, reference in zip(again, first, strict=True):
        assert (batch["image"] is reference["image"]) == kept
        assert all(batch[name].equal(values) for name, values in reference.items())


def test_settings_that_do_not_exist_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match=r"loading\.cache is 'disk': choose one of auto, none, packed, device"):
        make(manifest, cache="disk")
    with pytest.raises(ValueError, match=r"loading\.decode_margin is 0\.5: give a number of at least 1, or null"):
        make(manifest, decode_margin=0.5)
    with pytest.raises(ValueError, match=r"loading\.on_error is 'skip': choose one of raise, replace"):
        make(manifest, on_error="skip")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("protocol", [REID, RETRIEVAL])
def test_batches_cut_out_on_cuda_equal_those_of_the_host(manifest: Manifest, protocol: dict[str, Any]) -> None:
    host, device = make(manifest, protocol), make(manifest, protocol, cache="device")
    for batch, reference in zip(device.train_dataloader(), host.train_dataloader(), strict=True):
        moved = device.on_after_batch_transfer({name: values.cuda() for name, values in batch.items()}, 0)
        expected = host.on_after_batch_transfer(reference, 0)
        torch.testing.assert_close(moved["image"].cpu(), expected["image"], atol=1e-6, rtol=0)
