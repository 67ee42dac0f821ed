"""Galleries that grow: any changes leave what a gallery made of the final images would hold, and readers keep their state."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.files import LockedError
from bdbnet.gallery import EmbeddingStore, ModelStamp, StoreError, live, write_store
from bdbnet.gallery import store as store_module
from bdbnet.gallery.live import state_of, writing
from bdbnet.gallery.rows import Rows

STAMP = ModelStamp("f" * 64, "net.ckpt", {"model": {"pooling": "max"}}, 6, (64, 32))


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """Waiting for the disk is most of the time that these tests would take."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr(live, "versions", dict)


def rows_of(names: list[int], version: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Embeddings and table of some images; another version has other embeddings."""
    embeddings = np.array([[name, version, name * version, 1, 0, -name] for name in names], np.float32).reshape(-1, 6)
    table = pd.DataFrame({"path": [f"{name}.jpg" for name in names], "label": names, "camera": [n % 3 for n in names]})
    return embeddings, table.assign(time=[np.nan if name % 2 else name / 2 for name in names])


def made(folder: Path, names: list[int], format: str = "safetensors") -> EmbeddingStore:
    embeddings, table = rows_of(names)
    write_store(folder, [embeddings], table, root=folder, model=STAMP, source="here", format=format)
    return EmbeddingStore.open(folder)


def content(store: EmbeddingStore) -> dict[str, tuple[float, ...]]:
    """What is known of each path."""
    facts = np.column_stack([store.table[["label", "camera", "time"]], np.asarray(store.embeddings)])
    assert store.table["path"].is_unique
    return {
        path: tuple(np.nan_to_num(row, nan=-9).tolist()) for path, row in zip(store.table["path"], facts, strict=True)
    }


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "replace", "remove"]), st.sets(st.integers(0, 11), min_size=1, max_size=6)),
    max_size=8,
)


@settings(max_examples=8, deadline=None)
@given(first=st.sets(st.integers(0, 11)), changes=CHANGES, most=st.sampled_from([1, 3, 100]), parquet=st.booleans())
def test_any_changes_leave_what_a_new_gallery_of_the_final_images_holds(
    first, changes, most, parquet, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("store")
    format = "parquet" if parquet else "safetensors"
    order = sorted(first)  # names, in the order in which they were added
    version = dict.fromkeys(order, 0)
    earlier = made(folder, order, format)
    before = content(earlier)
    used = set(range(len(order)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "_most_rows", lambda state: most)
        for number, (what, chosen) in enumerate(changes, 1):
            store = EmbeddingStore.open(folder)
            if what == "remove":
                names = [name for name in order if name in chosen]
                if not names or len(names) == len(order):
                    continue
                store = store.remove(f"{name}.jpg" for name in names)
                order = [name for name in order if name not in chosen]
            else:
                names = sorted(chosen if what == "replace" else chosen - {*order})
                if not names:
                    continue
                store = getattr(store, what)(*rows_of(names, number), model=STAMP)
                order = [name for name in order if name not in names] + names
                version |= dict.fromkeys(names, number)
            known = dict(zip(store.table["path"], store.ids, strict=True))
            if what != "remove":  # their numbers are new
                assert not used & {int(known[f"{name}.jpg"]) for name in names}
            used |= {*store.ids.tolist()}
    store = EmbeddingStore.open(folder)
    assert store.table["path"].tolist() == [f"{name}.jpg" for name in order]
    expected = [rows_of([name], version[name]) for name in order]
    if order:
        assert np.array_equal(np.asarray(store.embeddings), np.concatenate([each[0] for each in expected]))
        pd.testing.assert_frame_equal(store.table, pd.concat([each[1] for each in expected], ignore_index=True))
        some = np.arange(len(order))[::-2]
        assert np.array_equal(store.embeddings[some], np.asarray(store.embeddings)[some])
    assert content(earlier) == before  # who had it open
    if store.history:
        needed = {name for part in state_of(folder).parts for name in part.part.names}
        assert files_in(folder) - {".lock", ".verified.json", "meta.json"} == needed


def test_many_small_additions_make_few_parts(tmp_path):
    store = made(tmp_path, [1000])
    for name in range(12):
        store = store.add(*rows_of([name]))
    assert len(state_of(tmp_path).parts) <= 5
    assert store.table["path"].tolist() == ["1000.jpg", *(f"{name}.jpg" for name in range(12))]
    assert store.ids.tolist() == [*range(13)]
    assert [number for _, number in store.history] == [*range(1, 14)]
    assert store.history[-1][0] == store.fingerprint


def test_a_copy_with_a_changed_byte_is_refused_and_an_addition_hashes_only_what_is_new(tmp_path, monkeypatch):
    made(tmp_path / "a", [1, 2, 3])
    hashed = []
    with monkeypatch.context() as patch:
        patch.setattr("bdbnet.gallery.store.digest_of", lambda table, rows: hashed.append(len(rows)) or "x")
        EmbeddingStore.open(tmp_path / "a")
        with pytest.raises(StoreError, match="damaged or was changed"):
            EmbeddingStore.open(tmp_path / "a").add(*rows_of([7, 8]))
    assert hashed == [2]
    store = EmbeddingStore.open(tmp_path / "a").remove(["2.jpg"])
    for name in sorted(files_in(tmp_path / "a")):
        if name.endswith((".safetensors", "manifest.parquet", ".rows.parquet", ".npy")):
            shutil.rmtree(tmp_path / "b", ignore_errors=True)
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            damaged = bytearray((tmp_path / "b" / name).read_bytes())
            damaged[-9] ^= 1
            (tmp_path / "b" / name).write_bytes(damaged)
            with pytest.raises(StoreError, match="damaged"):
                EmbeddingStore.open(tmp_path / "b")
            if name.endswith(".npy"):
                (tmp_path / "b" / name).write_bytes(damaged.replace(b"}", b"{"))
                with pytest.raises(StoreError, match=r"damaged .*npy is no array"):
                    EmbeddingStore.open(tmp_path / "b")
            (tmp_path / "b" / name).unlink()
            with pytest.raises(StoreError, match=f"{name} is not there"):
                EmbeddingStore.open(tmp_path / "b")
    assert content(EmbeddingStore.open(tmp_path / "a")) == content(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": []}, "parts is empty"),
        ({"count": 9}, "meta.json says 9 images, its parts hold 3"),
        ({"next_id": -1}, "next_id is -1"),
        ({"history": [["x"]]}, r"history\[0\] is a list of 1"),
    ],
)
def test_damaged_descriptions_of_parts_are_named(change, message, tmp_path):
    made(tmp_path, [1, 2]).add(*rows_of([5]))
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(StoreError, match=message):
        EmbeddingStore.open(tmp_path)
    meta["parts"][0]["embeddings"] = "../secret.safetensors"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=r"names the file '\.\./secret"):
        EmbeddingStore.open(tmp_path)


def test_what_can_not_be_added_is_named_and_changes_nothing(tmp_path):
    store = made(tmp_path, [1, 2])
    embeddings, table = rows_of([3, 4])
    boxes = {"x1": 0, "y1": 0, "x2": 5, "y2": 5}
    for given_embeddings, given_table, message in (
        (
            embeddings[:, :5],
            table,
            r"\(2, 5\) float32 for 2 rows can't be added to .*expected \(2, 6\).*output=<another",
        ),
        (embeddings[:1], table, r"expected \(2, 6\) float32"),
        (embeddings.astype(np.float64), table, "expected"),
        (embeddings * np.nan, table, "embedding 0 holds NaN"),
        (embeddings, table.assign(path="3.jpg"), "rows 1 and 2 are the same image, 3.jpg"),
        (embeddings, table.assign(path=["9.jpg", "2.jpg"]), r"already holds 2.jpg .and 0 more of the 2"),
        (embeddings, table.drop(columns="label"), "Give label for all of them or for none"),
        (embeddings, table.assign(**boxes), "Give x1 y1 x2 y2 for all of them or for none"),
        (embeddings, table.drop(columns="path"), "no column path"),
        (embeddings, table.assign(label=["a", "b"]), "table of the images can't be used"),
        (embeddings, table.assign(camera=[np.nan, 1]), "column camera has empty cells|can't be used"),
    ):
        with pytest.raises(StoreError, match=message):
            store.add(given_embeddings, given_table)
    with pytest.raises(StoreError, match="they differ in the weights"):
        store.add(embeddings, table, model=replace(STAMP, fingerprint="0"))
    with pytest.raises(StoreError, match=r"holds no image 'x' .and not 1 more of the 3"):
        store.remove(["1.jpg", "x", "y"])
    with pytest.raises(StoreError, match="no image would be left"):
        store.remove(["1.jpg", "2.jpg"])
    assert EmbeddingStore.open(tmp_path).fingerprint == store.fingerprint
    filled = store.add(embeddings, table.drop(columns=["camera", "time"]))
    assert filled.table["camera"].tolist() == [1, 2, -1, -1]
    assert filled.table["time"].isna().tolist() == [True, False, True, True]


def test_an_image_that_stands_twice_in_a_gallery_is_removed_and_replaced_as_one(tmp_path):
    embeddings, table = rows_of([1, 2, 1])
    write_store(tmp_path, [embeddings], table, root=tmp_path, model=STAMP)
    store = EmbeddingStore.open(tmp_path).replace(*rows_of([1], 5))
    assert store.table["path"].tolist() == ["2.jpg", "1.jpg"]
    assert np.array_equal(np.asarray(store.embeddings), np.concatenate([rows_of([2])[0], rows_of([1], 5)[0]]))


def test_boxes_tell_images_of_one_path_apart(tmp_path):
    boxes = pd.DataFrame({"path": ["a.jpg"] * 2, "x1": [0, 4], "y1": 0, "x2": [4, 8], "y2": 8})
    write_store(tmp_path, [rows_of([1, 2])[0]], boxes, root=tmp_path, model=STAMP)
    store = EmbeddingStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"already holds a\.jpg \(box 4 0 8 8\)"):
        store.add(rows_of([3])[0], boxes[1:])
    store = store.add(rows_of([3])[0], boxes[:1].assign(x1=1)).replace(rows_of([9])[0], boxes[1:])
    assert store.table["x1"].tolist() == [0, 1, 4]
    assert np.asarray(store.embeddings)[:, 0].tolist() == [1, 3, 9]
    assert len(store.add(*_other_path(boxes)).remove(["a.jpg"])) == 1


def _other_path(boxes: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    return rows_of([7])[0], boxes[:1].assign(path="b.jpg")


def test_a_second_writer_is_told_to_wait(tmp_path):
    store = made(tmp_path, [1, 2])
    found: list[BaseException | None] = []

    def other() -> None:
        try:
            store.add(*rows_of([3]))
            found.append(None)
        except LockedError as error:
            found.append(error)

    for _ in range(2):
        thread = threading.Thread(target=other)
        if not found:
            with writing(tmp_path):
                thread.start()
                thread.join()
        else:
            thread.start()
            thread.join()
    assert "another process extends this gallery now. Wait" in str(found[0])
    assert found[1] is None


def test_a_change_that_breaks_off_leaves_the_old_state_and_the_next_one_cleans_up(tmp_path, monkeypatch):
    store = made(tmp_path, [*range(8)]).add(*rows_of([20, 21]))
    before, there = content(store), files_in(tmp_path)
    for name in ("write_part", "combined", "write_atomically"):
        calls, real = [], getattr(live, name)

        def broken(*arguments: object, real=real, calls=calls, name=name, **options: object):
            calls.append(arguments)
            if name != "write_atomically" or str(arguments[0]).endswith("meta.json"):
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(live, name, broken)
            with pytest.raises(KeyboardInterrupt):
                store.replace(*rows_of([3, 30], 1))
        assert calls
        assert content(EmbeddingStore.open(tmp_path)) == before
    assert files_in(tmp_path) > there
    store = store.remove(["0.jpg"])
    needed = {name for part in state_of(tmp_path).parts for name in part.part.names}
    assert files_in(tmp_path) == needed | {"meta.json", ".lock", ".verified.json"}
    assert len(store) == len(before) - 1


def test_a_reader_that_is_overtaken_looks_again(tmp_path, monkeypatch):
    store = made(tmp_path, [1, 2]).replace(*rows_of([1, 2, 3]))
    real, overtaken = store_module.open_parts, []

    def late(folder, meta):
        if len(overtaken) < 2:
            overtaken.append(meta)
            monkeypatch.setattr(store_module, "open_parts", real)
            store.replace(*rows_of([1, 2, 3], len(overtaken)))  # which deletes what `meta` names
            monkeypatch.setattr(store_module, "open_parts", late)
        return real(folder, meta)

    monkeypatch.setattr(store_module, "open_parts", late)
    assert np.asarray(EmbeddingStore.open(tmp_path).embeddings)[:, 1].tolist() == [2, 2, 2]
    assert len(overtaken) == 2


def test_rows_are_taken_like_those_of_an_array():
    parts = [np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(100, 106, dtype=np.float32).reshape(2, 3)]
    rows = Rows(parts, [np.array([0, 2, 3]), None], 3)
    whole = np.concatenate([parts[0][[0, 2, 3]], parts[1]])
    assert rows.shape == whole.shape
    assert rows.size == whole.size
    for index in (slice(None), slice(1, 4), slice(3, 5), slice(0, 0), slice(None, None, 2), slice(-2, None), 4, -1,
                  [1, -1, 0], np.array([[1, 2], [3, 4]]), whole[:, 0] > 5):  # fmt: skip
        assert np.array_equal(rows[index], whole[np.asarray(index) if isinstance(index, list) else index])
    assert np.array_equal(np.asarray(rows), whole)
    assert np.asarray(rows, np.float64).dtype == np.float64
    assert [(begin, len(block)) for begin, block in rows.blocks(2)] == [(0, 2), (2, 1), (3, 2)]
    with pytest.raises(IndexError, match="row 5"):
        rows[5]
    with pytest.raises(IndexError, match="mask"):
        rows[np.ones(3, bool)]


def test_a_folder_that_can_not_be_written_to_is_left_alone(tmp_path, monkeypatch):
    store = made(tmp_path, [1, 2])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("bdbnet.gallery.parts.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        store.add(*rows_of([3]))
    assert EmbeddingStore.open(tmp_path).fingerprint == store.fingerprint
