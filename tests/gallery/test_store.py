"""Folders of embeddings: what is written is what is read, and what can't be read says why."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.gallery import EmbeddingStore, ModelStamp, StoreError, check_same_model, write_store

STAMP = ModelStamp("f" * 64, "net.ckpt", {"model": {"pooling": "max"}}, 6, (64, 32))


def numbers(count: int, dimensions: int = 6) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, dimensions)).astype(np.float32)


def table_of(count: int) -> pd.DataFrame:
    columns = {"path": [f"{i}.jpg" for i in range(count)], "label": np.arange(count), "camera": np.arange(count) % 3}
    return pd.DataFrame(columns | {"time": np.where(np.arange(count) % 2, np.nan, 1.5)})


def written(folder: Path, count: int = 7, **options: object) -> Path:
    write_store(folder, [numbers(count)], table_of(count), root="photos", model=STAMP, **options)
    return folder


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), format=st.sampled_from(["safetensors", "parquet"]))
def test_any_blocks_come_back_as_one_matrix(sizes, format, tmp_path_factory):
    folder, count = tmp_path_factory.mktemp("store"), sum(sizes)
    blocks = np.split(numbers(count), np.cumsum(sizes)[:-1])
    write_store(folder, blocks, table_of(count), root="photos", model=STAMP, source="here", skipped=2, format=format)
    store = EmbeddingStore.open(folder)
    assert np.array_equal(store.embeddings, numbers(count))
    assert store.embeddings.dtype == np.float32
    assert not store.embeddings.flags.writeable
    pd.testing.assert_frame_equal(store.table, table_of(count), check_dtype=count > 0)
    assert (len(store), store.dimensions, store.source, store.skipped) == (count, 6, "here", 2)
    assert store.model == STAMP
    assert store.root == Path("photos").absolute()


def test_other_tools_read_both_formats(tmp_path):
    folder = written(tmp_path / "a")
    assert np.array_equal(safetensors.numpy.load_file(folder / "embeddings.safetensors")["embeddings"], numbers(7))
    assert isinstance(EmbeddingStore.open(folder).embeddings, np.memmap)
    table = pq.read_table(written(tmp_path / "b", format="parquet") / "embeddings.parquet").to_pandas()
    assert table["path"].tolist() == table_of(7)["path"].tolist()
    assert np.array_equal(np.stack(table["embedding"]), numbers(7))


def test_the_fingerprint_tells_tables_and_embeddings_apart_but_not_formats(tmp_path):
    one = EmbeddingStore.open(written(tmp_path / "a")).fingerprint
    assert EmbeddingStore.open(written(tmp_path / "b", format="parquet")).fingerprint == one
    write_store(tmp_path / "c", [numbers(7) + 1], table_of(7), root="photos", model=STAMP)
    write_store(tmp_path / "d", [numbers(7)], table_of(7).assign(camera=1), root="photos", model=STAMP)
    assert len({one, *(EmbeddingStore.open(tmp_path / name).fingerprint for name in "cd")}) == 3


@pytest.mark.parametrize("blocks", [[numbers(6)], [numbers(8)], [numbers(7, 5)], [numbers(7).astype(np.float64)]])
def test_blocks_that_do_not_fit_leave_no_store(blocks, tmp_path):
    with pytest.raises(ValueError, match=r"embeddings"):
        write_store(tmp_path, blocks, table_of(7), root="photos", model=STAMP)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.parquet"}
    with pytest.raises(ValueError, match="format='csv': choose one of safetensors, parquet"):
        written(tmp_path, format="csv")


def damage_size(folder: Path) -> None:
    file = folder / "embeddings.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def damage_header(folder: Path) -> None:
    file = folder / "embeddings.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)


def set_meta(**values: object):
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no such folder of embeddings"),
        (lambda folder: (folder / "meta.json").unlink(), r"holds no embeddings .*bdbnet.embed makes"),
        (lambda folder: (folder / "meta.json").rename(folder / "plan.json"), "is not complete.*command again"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "schema None, this version reads schema 1 and 2"),
        (set_meta(schema=3), "schema 3, this version reads schema 1 and 2"),
        (set_meta(model={}), "meta.json is damaged: model.fingerprint is missing"),
        (set_meta(count=8), "7 rows and embeddings"),
        (damage_size, r"embeddings.safetensors has 2\d\d bytes instead of 2\d\d"),
        (damage_header, "is damaged .SafetensorError"),
        (lambda folder: (folder / "manifest.parquet").unlink(), "manifest.parquet is not there.*overwrite=true"),
    ],
)
def test_a_folder_that_is_no_store_says_why_and_what_to_do(change, message, tmp_path):
    folder = written(tmp_path / "store")
    change(folder)
    with pytest.raises(StoreError, match=message) as error:
        EmbeddingStore.open(folder)
    assert str(folder) in str(error.value)


def test_embeddings_of_another_model_are_refused_by_what_differs():
    check_same_model(STAMP, replace(STAMP, checkpoint="copy.ckpt"))
    with pytest.raises(
        StoreError, match=r"net.ckpt.*they differ in image_size \(64, 32\) and \(8, 8\); flip False and True"
    ):
        check_same_model(STAMP, replace(STAMP, fingerprint="0", image_size=(8, 8), flip=True))
    with pytest.raises(StoreError, match="they differ in the weights"):
        check_same_model(STAMP, replace(STAMP, fingerprint="0"))


def flip_a_byte(file: Path, at: int = -2) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_other_embeddings_than_those_written_are_refused(format, tmp_path):
    folder = written(tmp_path, format=format)
    EmbeddingStore.open(folder)
    other = written(tmp_path / "other", format=format)
    lists = numbers(7)
    lists[[0, 1]] = lists[[1, 0]]
    write_store(other, [lists], table_of(7), root="photos", model=STAMP, format=format)
    shutil.copy(other / f"embeddings.{format}", folder)
    with pytest.raises(StoreError, match=r"damaged or was changed: .*embeddings.*overwrite=true"):
        EmbeddingStore.open(folder)
    assert len(EmbeddingStore.open(folder, verify=False)) == 7


def test_a_changed_byte_is_found_though_size_and_time_stay(tmp_path):
    folder = written(tmp_path / "store")
    assert EmbeddingStore.open(folder).fingerprint == EmbeddingStore.open(folder).fingerprint
    for name, at in (("embeddings.safetensors", -2), ("manifest.parquet", 40)):
        copy = tmp_path / name
        shutil.copytree(folder, copy)  # with the record that the original was verified
        status = (copy / name).stat()
        flip_a_byte(copy / name, at)
        os.utime(copy / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(StoreError, match="damaged"):
            EmbeddingStore.open(copy)


def test_a_store_is_hashed_once(tmp_path, monkeypatch):
    folder = written(tmp_path)
    EmbeddingStore.open(folder)
    with monkeypatch.context() as patch:
        patch.setattr("bdbnet.gallery.store.hashlib.sha256", lambda *_: pytest.fail("hashed again"))
        assert len(EmbeddingStore.open(folder)) == 7
    os.utime(folder / "embeddings.safetensors", (1, 1))
    hashed = []
    monkeypatch.setattr("bdbnet.gallery.store.np.ascontiguousarray", lambda block: hashed.append(len(block)) or block)
    EmbeddingStore.open(folder)
    EmbeddingStore.open(folder)
    assert hashed == [7]


def test_a_folder_that_can_not_be_written_to_is_opened(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError("read-only")

    folder = written(tmp_path)
    monkeypatch.setattr("bdbnet.gallery.store.write_atomically", refused)
    assert len(EmbeddingStore.open(folder)) == 7
    assert not (folder / ".verified.json").exists()


def test_a_table_without_paths_is_no_store(tmp_path):
    write_store(tmp_path, [numbers(2)], table_of(2).assign(path=[1, 2]), root="photos", model=STAMP)
    with pytest.raises(StoreError, match=r"manifest\.parquet is damaged: column path holds int64"):
        EmbeddingStore.open(tmp_path)
