"""`embed mode=add` and `mode=sync`: what is embedded, kept and removed, and what a new gallery of the same images would hold."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bdbnet.datasets import DatasetError
from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery import EmbeddingStore, StoreError
from bdbnet.gallery.embedding import build_embedder
from bdbnet.gallery.live import state_of
from bdbnet.gallery.shards import embed_into
from bdbnet.gallery.updating import STAGING, Update, update_store
from bdbnet.loading.sources import Images, find_images

OPTIONS = {"shard_size": 4, "batch_size": 4, "num_workers": 0, "progress": False}


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """Waiting for the disk is most of the time that these tests would take."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def draw(root: Path, *names: str, seed: int = 0) -> None:
    for name in names:
        pixels = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (16, 8, 3), np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def new(folder: Path, embedder: Embedder, images, **options) -> EmbeddingStore:
    embed_into(folder, embedder, find_images(images), **OPTIONS | options)
    return EmbeddingStore.open(folder)


def updated(
    folder: Path, embedder: Embedder, images, *, sync: bool, root=None, **options
) -> tuple[EmbeddingStore, Update]:
    update = update_store(folder, embedder, find_images(images, root=root), sync=sync, **OPTIONS | options)
    assert not (folder / STAGING).exists()
    return EmbeddingStore.open(folder), update


def counts(update: Update) -> tuple[int, int, int, int]:
    return update.embedded, update.added, update.replaced, update.removed


def assert_same_content(store: EmbeddingStore, other: EmbeddingStore) -> None:
    """Up to the order of the rows; an embedding depends on its batch in the last digits."""
    tables = [
        each.table.assign(at=range(len(each))).sort_values("path").reset_index(drop=True) for each in (store, other)
    ]
    pd.testing.assert_frame_equal(*(table.drop(columns="at") for table in tables))
    found, expected = (
        np.asarray(each.embeddings)[table["at"]] for each, table in zip((store, other), tables, strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert store.root == other.root


def test_add_embeds_new_paths_alone_and_sync_makes_it_a_new_gallery_of_the_folder(embedder, tmp_path):
    photos, folder = tmp_path / "photos", tmp_path / "store"
    draw(photos, "a.png", "b.png", "c/d.png", "e.png", "f.png")
    first = new(folder, embedder, photos)
    draw(photos, "b.png", seed=1)  # changed
    draw(photos, "g.png", "c/h.png")
    (photos / "a.png").unlink()
    store, update = updated(folder, embedder, photos, sync=False)
    assert counts(update) == (2, 2, 0, 0)
    assert store.table["path"].tolist() == [*first.table["path"], "c/h.png", "g.png"]
    assert np.array_equal(store.embeddings[:5], first.embeddings)
    assert updated(folder, embedder, photos, sync=False)[1].embedded == 0
    assert EmbeddingStore.open(folder).fingerprint == store.fingerprint
    os.utime(photos / "g.png", (5, 5))  # touched: its content was noted
    store, update = updated(folder, embedder, photos, sync=True)
    assert counts(update) == (1, 0, 1, 1)
    assert store.table["path"].tolist() == ["c/d.png", "e.png", "f.png", "c/h.png", "g.png", "b.png"]
    assert_same_content(store, new(tmp_path / "other", embedder, photos))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert counts(updated(folder, embedder, photos, sync=True)[1]) == (0, 0, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    assert len(first) == 5
    assert np.isfinite(first.embeddings).all()


NAMES = st.sets(st.sampled_from([f"{number}.png" for number in range(6)]), min_size=1, max_size=3)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["draw", "delete", "add", "sync", "replace", "remove"]), NAMES), max_size=10
    )
)
def test_any_changes_leave_what_a_dictionary_holds(steps, embedder, tmp_path_factory):
    """A dictionary from path to the version of the image, to which the same is done; below 0 for embeddings that were given."""
    folder, photos = (tmp_path_factory.mktemp(name) for name in ("store", "photos"))
    files, version = dict.fromkeys(["0.png", "1.png", "x.png"], 0), 0
    draw(photos, *files)
    new(folder, embedder, photos)
    held = dict(files)
    for what, names in [*steps, ("sync", {"x.png"})]:
        store, version = EmbeddingStore.open(folder), version + 1
        if what == "draw":
            draw(photos, *names, seed=version)
            files |= dict.fromkeys(names, version)
        elif what == "delete":
            for name in names & files.keys():
                (photos / name).unlink()
                del files[name]
        elif what == "add":
            updated(folder, embedder, photos, sync=False)
            held = files | held
        elif what == "sync" and files.keys() & held.keys():
            updated(folder, embedder, photos, sync=True)
            held = dict(files)
        elif what == "replace":
            store.replace(
                np.full((len(names), store.dimensions), -version, np.float32), pd.DataFrame({"path": sorted(names)})
            )
            held |= dict.fromkeys(names, -version)
        elif what == "remove" and (there := names & held.keys()) and there != held.keys():
            store.remove(there)
            held = {name: version for name, version in held.items() if name not in there}
        store = EmbeddingStore.open(folder)
        found = dict(zip(store.table["path"], np.asarray(store.embeddings), strict=True))
        assert found.keys() == held.keys()
        for name, expected in held.items():
            if expected < 0:
                assert (found[name] == expected).all()
    expected = dict(zip(sorted(held), embedder.embed([photos / name for name in sorted(held)]), strict=True))
    assert held == files
    for name in files:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_sync_takes_over_what_the_table_says_now_without_embedding_again(embedder, tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "my.csv"
    table.write_text("path,label,camera\na.png,1,0\nb.png,2,0\nc.png,3,1\n")
    first = new(tmp_path / "store", embedder, table)
    table.write_text("path,label,camera\na.png,1,0\nb.png,7,0\nc.png,3,1\n")
    store, update = updated(tmp_path / "store", embedder, table, sync=True)
    assert counts(update) == (0, 0, 1, 0)
    assert store.table["label"].tolist() == [1, 3, 7]
    assert np.array_equal(np.asarray(store.embeddings), first.embeddings[[0, 2, 1]])
    table.write_text("path,time\na.png,1\nb.png,\nc.png,3\n")
    store, update = updated(tmp_path / "store", embedder, table, sync=True)
    assert counts(update) == (0, 0, 3, 0)
    assert [*store.table.columns] == ["path", "time"]
    assert np.array_equal(np.asarray(store.embeddings), first.embeddings)


def test_images_of_several_folders_share_a_gallery(embedder, tmp_path):
    draw(tmp_path, "day1/a.png", "day1/b.png", "day2/a.png", "day2/c.png")
    new(tmp_path / "store", embedder, tmp_path / "day1")
    store, update = updated(tmp_path / "store", embedder, tmp_path / "day2", sync=False)
    assert counts(update) == (2, 2, 0, 0)
    assert store.root == tmp_path
    assert store.table["path"].tolist() == ["day1/a.png", "day1/b.png", "day2/a.png", "day2/c.png"]
    assert store.source == f"{tmp_path / 'day1'}, {tmp_path / 'day2'}"
    (tmp_path / "day2" / "a.png").unlink()
    store, update = updated(tmp_path / "store", embedder, tmp_path / "day2", sync=True)
    assert counts(update) == (0, 0, 0, 1)  # of day1 nothing is removed
    shutil.copytree(tmp_path / "day2", tmp_path / "other" / "day2")
    with pytest.raises(StoreError, match=r"none of its 3 images .*mode=sync would replace them all.*overwrite=true"):
        updated(tmp_path / "store", embedder, _table(tmp_path), sync=True, root=tmp_path)
    assert len(EmbeddingStore.open(tmp_path / "store")) == 3


def _table(root: Path) -> Path:
    (root / "x.csv").write_text("path\nother/day2/c.png\n")
    return root / "x.csv"


def test_a_gallery_whose_images_were_moved_goes_on(embedder, tmp_path):
    draw(tmp_path / "old", "a.png", "b.png")
    new(tmp_path / "store", embedder, tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "now")
    draw(tmp_path / "now", "c.png")
    store, update = updated(tmp_path / "store", embedder, tmp_path / "now", sync=True)
    assert counts(update) == (1, 1, 0, 0)
    assert store.root == tmp_path / "now"
    (tmp_path / "now").rename(tmp_path / "again")
    Image.new("RGB", (8, 16)).save(tmp_path / "again" / "a.png")  # changed too
    with pytest.raises(StoreError, match=r"1 of the 3 files .*again are others \(a\.png\)\. .*, mode=sync\."):
        updated(tmp_path / "store", embedder, tmp_path / "again", sync=False)
    store, update = updated(tmp_path / "store", embedder, tmp_path / "again", sync=True)
    assert (counts(update), store.root) == ((1, 0, 1, 0), tmp_path / "again")


@pytest.mark.parametrize("sync", [False, True])
def test_other_images_of_the_same_names_are_not_taken_for_moved_ones(sync, embedder, tmp_path):
    draw(tmp_path / "day1", "a.png")
    store = new(tmp_path / "store", embedder, tmp_path / "day1")
    (tmp_path / "day1").rename(tmp_path / "away")
    Image.new("RGB", (8, 16)).save(tmp_path / "away" / "a.png")
    with pytest.raises(
        StoreError, match=r"1 of the 1 files of .*away are others \(a\.png\)\. .*output=<another folder>.* a link"
    ):
        updated(tmp_path / "store", embedder, tmp_path / "away", sync=sync)
    (tmp_path / "store" / "files.parquet").unlink()  # which earlier versions did not write
    with pytest.raises(StoreError, match=r"\(a\.png\) it is not known whether they are the same\. .*day1 a link"):
        updated(tmp_path / "store", embedder, tmp_path / "away", sync=sync)
    assert EmbeddingStore.open(tmp_path / "store").fingerprint == store.fingerprint
    (tmp_path / "day1").symlink_to(tmp_path / "away")
    assert updated(tmp_path / "store", embedder, tmp_path / "away", sync=sync)[1].added == 0


def test_images_are_added_to_those_that_were_deleted(embedder, tmp_path):
    draw(tmp_path, "day1/a.png", "day2/b.png")
    new(tmp_path / "store", embedder, tmp_path / "day1")
    shutil.rmtree(tmp_path / "day1")
    store, update = updated(tmp_path / "store", embedder, tmp_path / "day2", sync=False)
    assert (update.added, store.root, store.table["path"].tolist()) == (1, tmp_path, ["day1/a.png", "day2/b.png"])


def test_a_gallery_of_an_earlier_version_is_added_to_and_synced(embedder, tmp_path):
    draw(tmp_path / "photos", "a.png", "b.png")
    new(tmp_path / "store", embedder, tmp_path / "photos", format="parquet")
    (tmp_path / "store" / "files.parquet").unlink()  # which earlier versions did not write
    draw(tmp_path / "photos", "c.png")
    assert counts(updated(tmp_path / "store", embedder, tmp_path / "photos", sync=False)[1]) == (1, 1, 0, 0)
    store, update = updated(tmp_path / "store", embedder, tmp_path / "photos", sync=True)
    assert counts(update) == (2, 0, 2, 0)
    assert update.unknown == 2
    assert counts(updated(tmp_path / "store", embedder, tmp_path / "photos", sync=True)[1]) == (0, 0, 0, 0)
    assert_same_content(store, new(tmp_path / "other", embedder, tmp_path / "photos"))


def test_another_network_columns_or_the_same_image_twice_are_refused(embedder, make_config, tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "one.csv").write_text("path,label\na.png,1\n")
    store = new(tmp_path / "store", embedder, tmp_path / "one.csv")
    other = build_embedder(make_config("image_size=[32,16]"))
    for network, table, message in (
        (other, "path,label\nb.png,1\n", r"can't be extended by this network: .*image_size .*output=<another folder>"),
        (embedder, "path\nb.png\n", "Give label for all of them or for none"),
    ):
        (tmp_path / "more.csv").write_text(table)
        with pytest.raises(StoreError, match=message):
            updated(tmp_path / "store", network, tmp_path / "more.csv", sync=False)
    assert EmbeddingStore.open(tmp_path / "store").fingerprint == store.fingerprint
    (tmp_path / "more.csv").write_text("path,label\nb.png,1\nc.png,2\nb.png,1\n")
    with pytest.raises(DatasetError, match=r"more\.csv, row 3, column path: 'b\.png' .*already in row 1"):
        updated(tmp_path / "store", embedder, tmp_path / "more.csv", sync=False)
    images = find_images(tmp_path / "one.csv")
    twice = images.manifest.with_rows(images.manifest.table.iloc[[0, 0]].reset_index(drop=True))
    doubled = Images(twice, images.table.iloc[[0, 0]].reset_index(drop=True), images.source)
    with pytest.raises(StoreError, match=r"one\.csv: rows 1 and 2 are the same image, a\.png"):
        update_store(tmp_path / "store", embedder, doubled, sync=False, **OPTIONS)
    (tmp_path / "more.csv").write_text("path,label\nb.png,1\n")
    with pytest.raises(StoreError, match="none of its 1 images"):
        updated(tmp_path / "store", embedder, tmp_path / "more.csv", sync=True)


def test_what_was_embedded_before_a_kill_is_not_embedded_again(embedder, tmp_path, monkeypatch):
    photos, folder = tmp_path / "photos", tmp_path / "store"
    draw(photos, "a.png", "b.png")
    before = new(folder, embedder, photos)
    draw(photos, *(f"{number:02d}.png" for number in range(12)))
    whole = type(embedder).embed_files

    def killed(self, images, batches, **options):
        for number, part in enumerate(whole(self, images, batches, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(type(embedder), "embed_files", killed)
        with pytest.raises(KeyboardInterrupt):
            updated(folder, embedder, photos, sync=True)
    assert EmbeddingStore.open(folder).fingerprint == before.fingerprint
    rows: list[int] = []

    def counted(self, images, batches, **options):
        rows.extend(row for batch in batches for row in batch)
        return whole(self, images, batches, **options)

    monkeypatch.setattr(type(embedder), "embed_files", counted)
    store, _ = updated(folder, embedder, photos, sync=True)
    assert rows == [8, 9, 10, 11]
    assert len(store) == 14
    draw(photos, "x.png", "y.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdbnet.gallery.updating.change", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            updated(folder, embedder, photos, sync=True)
    draw(photos, "x.png", seed=3)  # what was embedded of it no longer holds
    (photos / "y.png").unlink()
    store, update = updated(folder, embedder, photos, sync=True)
    assert counts(update) == (1, 1, 0, 0)
    assert_same_content(store, new(tmp_path / "other", embedder, photos))


def test_images_that_can_not_be_read_are_listed_and_tried_again(embedder, tmp_path):
    photos, folder = tmp_path / "photos", tmp_path / "store"
    draw(photos, "a.png", "b.png")
    new(folder, embedder, photos)
    (photos / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.png can't be read"):
        updated(folder, embedder, photos, sync=False)
    store, update = updated(folder, embedder, photos, sync=False, skip_unreadable=True)
    assert (counts(update), store.skipped) == ((0, 0, 0, 0), 1)
    assert pd.read_csv(folder / "skipped.csv")["path"].tolist() == ["c.png"]
    (photos / "b.png").write_bytes(b"")
    draw(photos, "c.png")
    store, update = updated(folder, embedder, photos, sync=True, skip_unreadable=True)
    assert (counts(update), store.skipped) == ((1, 1, 0, 1), 1)
    assert pd.read_csv(folder / "skipped.csv")["path"].tolist() == ["b.png"]
    draw(photos, "b.png")
    assert updated(folder, embedder, photos, sync=True)[0].skipped == 0
    assert not (folder / "skipped.csv").exists()


def test_what_could_not_be_read_of_another_folder_stays_listed(embedder, tmp_path):
    draw(tmp_path, "day1/a.png", "day2/b.png")
    (tmp_path / "day1" / "bad.png").write_bytes(b"")
    new(tmp_path / "store", embedder, tmp_path / "day1", skip_unreadable=True)
    for sync in (False, True):
        store, _ = updated(tmp_path / "store", embedder, tmp_path / "day2", sync=sync)
        assert store.skipped == 1
        assert pd.read_csv(tmp_path / "store" / "skipped.csv")["path"].tolist() == ["day1/bad.png"]


def test_a_gallery_that_was_extended_is_not_taken_for_a_new_one(embedder, tmp_path):
    draw(tmp_path / "photos", "a.png", "b.png")
    new(tmp_path / "store", embedder, tmp_path / "photos").remove(["a.png"])
    with pytest.raises(StoreError, match="was extended or changed since it was made: mode=add"):
        new(tmp_path / "store", embedder, tmp_path / "photos")
    assert len(new(tmp_path / "store", embedder, tmp_path / "photos", overwrite=True)) == 2
    assert {path.name for path in (tmp_path / "store").iterdir()} == {
        "embeddings.safetensors", "files.parquet", "manifest.parquet", "meta.json", "plan.json", ".lock", ".verified.json",
    }  # fmt: skip
    assert state_of(tmp_path / "store").count == 2
