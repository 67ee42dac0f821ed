"""Embedding into a folder: what is there already is not made again, and nothing else than asked for is there."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from bdbnet.config import ConfigError
from bdbnet.evaluation.embedder import EmbeddingError
from bdbnet.gallery import EmbeddingStore, StoreError
from bdbnet.gallery.embedding import build_embedder, stamp_of
from bdbnet.gallery.shards import Outcome, Ranks, embed_into, ranks_of_environment
from bdbnet.loading.sources import find_images
from small_files import touch


def embed(folder, embedder, images, **options) -> Outcome:
    settings = {"shard_size": 16, "batch_size": 8, "num_workers": 0, "progress": False}
    return embed_into(folder, embedder, images, **settings | options)


def assert_same_store(folder, other: EmbeddingStore) -> None:
    store = EmbeddingStore.open(folder)
    assert np.array_equal(store.embeddings, other.embeddings)
    pd.testing.assert_frame_equal(store.table, other.table)
    assert store.fingerprint == other.fingerprint
    assert not (folder / "shards").exists()


def test_shards_and_formats_make_the_same_store(embedder, photos, photo_store, tmp_path):
    for number, options in enumerate([{}, {"shard_size": 24, "format": "parquet"}, {"shard_size": 1000}]):
        outcome = embed(tmp_path / str(number), embedder, find_images(photos), **options)
        assert (outcome.embedded, outcome.missing) == (51, 0)
        assert_same_store(tmp_path / str(number), photo_store)


def test_hidden_files_of_others_stay(embedder, photos, tmp_path):
    (tmp_path / ".my.notes.txt").write_text("kept")
    (tmp_path / ".table.parquet.of.mine").mkdir()
    embed(tmp_path, embedder, find_images(photos))
    assert (tmp_path / ".my.notes.txt").read_text() == "kept"


def test_the_store_knows_where_its_images_and_network_are(photo_store, photos, embedder):
    assert photo_store.root == photos
    assert photo_store.source == str(photos)
    assert photo_store.model == replace(stamp_of(embedder), checkpoint=Path(embedder.origin.source).name)
    assert photo_store.table["path"].tolist() == sorted(photo_store.table["path"])
    assert photo_store.embeddings.shape == (51, 512)


def test_a_run_that_stopped_goes_on_with_the_first_missing_shard(embedder, photos, photo_store, tmp_path, monkeypatch):
    images, folder, calls = find_images(photos), tmp_path / "store", []
    whole = type(embedder).embed_files

    def fail_later(self, images, batches, **options):
        calls.append(batches)
        for number, part in enumerate(whole(self, images, batches, **options)):
            if number == 5:  # in the middle of the third shard
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(type(embedder), "embed_files", fail_later)
    with pytest.raises(KeyboardInterrupt):
        embed(folder, embedder, images)
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["000000.safetensors", "000001.safetensors"]
    with pytest.raises(StoreError, match="is not complete"):
        EmbeddingStore.open(folder)
    assert embed(folder, embedder, images).embedded == 51 - 32
    assert [batch[0] for batch in calls[1]] == [32, 40, 48]
    assert_same_store(folder, photo_store)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert embed(folder, embedder, images) == Outcome(0, pytest.approx(0, abs=0.1), 0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_gpu_out_of_memory_is_told_with_what_to_lower(embedder, photos, tmp_path, monkeypatch):
    def full(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(embedder), "embed_prepared", full)
    with pytest.raises(EmbeddingError, match=r"for 8 images of 64 x 32 at once: lower loading\.test_batch_size"):
        embed(tmp_path, embedder, find_images(photos))


def test_killed_between_the_last_shard_and_the_end(embedder, photos, photo_store, tmp_path, monkeypatch):
    images, folder = find_images(photos), tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr("bdbnet.gallery.shards.write_store", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            embed(folder, embedder, images)
    (folder / ".embeddings.safetensors.abc").touch()
    assert embed(folder, embedder, images).embedded == 0
    assert_same_store(folder, photo_store)
    assert not (folder / ".embeddings.safetensors.abc").exists()


def test_processes_share_the_shards(embedder, photos, photo_store, tmp_path):
    images = find_images(photos)
    outcomes = [embed(tmp_path, embedder, images, ranks=Ranks(rank, 3)) for rank in (2, 0, 1)]
    assert [(outcome.embedded, outcome.missing) for outcome in outcomes] == [(16, 3), (19, 1), (16, 0)]
    assert_same_store(tmp_path, photo_store)
    assert embed(tmp_path, embedder, images, ranks=Ranks(2, 3)).embedded == 0


def test_something_else_in_the_folder_is_refused(embedder, make_config, photos, photo_store, tmp_path):
    folder = tmp_path / "store"
    mine = tmp_path / "mine"
    shutil.copytree(photos, mine)
    embed(folder, embedder, find_images(mine))

    def refused(message: str, other=embedder, images=mine, **options) -> None:
        with pytest.raises(StoreError, match=message) as error:
            embed(folder, other, find_images(images), **options)
        assert "overwrite=true" in str(error.value)
        assert "output=" in str(error.value)

    refused(r"they differ in flip False and True", build_embedder(make_config("evaluation.flip=true")))
    refused(
        r"was built from 51 images of .*mine, not from 1 image of .*001\.jpg\. mode=add embeds",
        images=mine / "day" / "001.jpg",
    )
    refused("was begun with shard_size=16, not 24", shard_size=24)
    refused("was begun with format=safetensors, not parquet", format="parquet")
    os.utime(mine / "day" / "001.jpg", (1, 1))
    refused(r"was built from 51 images of .*mine, of which some have changed since\. mode=add .* mode=sync")
    (mine / "day" / "001.jpg").unlink()
    refused(r"was built from 51 images of .*, not from 50 images of ")
    assert EmbeddingStore.open(folder).fingerprint == photo_store.fingerprint
    (folder / "notes.txt").touch()
    assert embed(folder, embedder, find_images(mine), overwrite=True).embedded == 50
    assert len(EmbeddingStore.open(folder)) == 50
    assert (folder / "notes.txt").exists()
    (folder / "plan.json").unlink()
    refused("holds embeddings, and no plan.json")
    (folder / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=r"plan.json is damaged .*overwrite=true"):
        embed(folder, embedder, find_images(mine))


def test_unreadable_images_are_left_out_counted_and_listed(embedder, photos, photo_store, tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "store"
    shutil.copytree(photos, mine)
    touch(mine, "day/005x.jpg", "zzz.jpg")
    with pytest.raises(ValueError, match=r"day/005x.jpg can't be read"):
        embed(folder, embedder, find_images(mine))
    embed(folder, embedder, find_images(mine), skip_unreadable=True)
    store = EmbeddingStore.open(folder)
    assert store.skipped == 2
    assert store.table["path"].tolist() == photo_store.table["path"].tolist()
    np.testing.assert_allclose(store.embeddings, photo_store.embeddings, rtol=1e-4, atol=1e-5)
    skipped = pd.read_csv(folder / "skipped.csv")
    assert skipped["path"].tolist() == ["day/005x.jpg", "zzz.jpg"]
    assert skipped["reason"].str.contains("can't be read").all()
    with pytest.raises(EmbeddingError, match=r"no image can be read; the first: .*zzz.jpg"):
        embed(tmp_path / "none", embedder, find_images(mine / "zzz.jpg"), skip_unreadable=True)


def test_what_a_table_knows_stands_beside_the_embeddings(embedder, photos, tmp_path):
    (tmp_path / "my.csv").write_text("path,label,camera,time\nday/003.jpg,7,1,\nday/001.jpg,9,0,1970-01-02\n")
    embed(tmp_path / "store", embedder, find_images(tmp_path / "my.csv", root=photos))
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.table["label"].tolist() == [7, 9]
    assert store.table["camera"].tolist() == [1, 0]
    assert np.array_equal(store.table["time"], [np.nan, 86400], equal_nan=True)
    assert store.root == photos


def test_a_damaged_shard_is_named(embedder, photos, tmp_path):
    images = find_images(photos)
    embed(tmp_path, embedder, images, ranks=Ranks(0, 2))
    shard = tmp_path / "shards" / "000002.safetensors"
    tensors = safetensors.numpy.load_file(shard)
    good = shard.read_bytes()
    shard.write_bytes(good[:-8])
    with pytest.raises(StoreError, match=r"000002.safetensors is damaged .*delete it"):
        embed(tmp_path, embedder, images)
    tensors["rows"] += 1
    shard.write_bytes(safetensors.numpy.save(tensors, {"unreadable": "{}"}))
    with pytest.raises(StoreError, match=r"000002.safetensors is damaged .other rows than its own"):
        embed(tmp_path, embedder, images)
    shard.unlink()
    assert embed(tmp_path, embedder, images).embedded == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size=0: give a whole number"),
        ({"batch_size": 1.5}, "loading.test_batch_size=1.5: give a whole number"),
        ({"format": "npy"}, "format=npy: choose one of safetensors, parquet"),
        ({"overwrite": True, "ranks": Ranks(1, 2)}, "overwrite=true: several processes"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(options, message, embedder, photos, tmp_path):
    with pytest.raises(ConfigError, match=message):
        embed(tmp_path / "store", embedder, find_images(photos), **options)
    assert not (tmp_path / "store").exists()


def test_processes_are_numbered_by_torchrun_or_by_slurm():
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2"}
    assert ranks_of_environment({}) == Ranks(0, 1, 0, 1)
    assert ranks_of_environment(slurm) == Ranks(3, 4, 1, 2)
    assert ranks_of_environment(slurm | {"RANK": "0", "WORLD_SIZE": "2"}) == Ranks(0, 2)
    assert ranks_of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Ranks()  # a batch script without srun
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "a", "WORLD_SIZE": "2"}):
        with pytest.raises(ConfigError, match=r"RANK=., WORLD_SIZE=2: these variables"):
            ranks_of_environment(wrong)
