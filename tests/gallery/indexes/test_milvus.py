import importlib.util
import socket
import sys
import time

import numpy as np
import pytest

from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndexError
from bdbnet.gallery.indexes.milvus import MilvusIndex


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((300, 8)).astype(np.float32)
    times = np.where(rng.random(300) < 0.1, np.nan, 1e9 + rng.random(300))
    return embeddings, rng.standard_normal((20, 8)), {"cameras": rng.integers(-1, 4, 300), "times": times}


@pytest.fixture(scope="module")
def database(gallery, tmp_path_factory):
    uri = tmp_path_factory.mktemp("milvus") / "milvus.db"
    index = MilvusIndex(gallery[0], uri=uri, ef_search=300, **gallery[2])
    assert index.build_seconds is not None
    yield index, uri
    index.close()


@pytest.mark.parametrize(
    "allowed",
    [
        Filter(),
        Filter(np.arange(20) % 5 - 1),
        Filter(after=1e9 + 0.5),
        Filter(before=1e9 + 0.25),
        Filter(np.arange(20) % 4, 1e9 + 0.2, 1e9 + 0.6),
        Filter(after=2e9),
        Filter(cameras=(2,)),
        Filter(np.arange(20) % 4, after=1e9 + 0.2, cameras=(0, 3, 9)),
        Filter(cameras=(99,)),
    ],
)
def test_a_thorough_search_equals_the_exact_one(gallery, database, allowed):
    embeddings, queries, columns = gallery
    expected = ExactIndex(embeddings, **columns).search(queries, 50, allowed=allowed)
    for ours, exact in zip(database[0].search(queries, 50, allowed=allowed), expected, strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_a_gallery_is_stored_once(gallery, database):
    again = MilvusIndex(gallery[0], uri=database[1], **gallery[2])
    assert again.build_seconds is None
    assert again.collection == database[0].collection


def test_other_galleries_and_measures_share_the_database(gallery, database):
    embeddings, queries, _ = gallery
    index = MilvusIndex(embeddings, uri=database[1], distance="cosine", ef_search=300)
    assert index.build_seconds is not None
    assert index.collection != database[0].collection
    expected = ExactIndex(embeddings, distance="cosine").search(queries, 10)
    for ours, exact in zip(index.search(queries, 10), expected, strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_an_incomplete_collection_is_filled_anew(gallery, database):
    import pymilvus

    embeddings, queries, columns = gallery
    client = pymilvus.MilvusClient(uri=str(database[1]))
    client.delete(database[0].collection, ids=[3, 4])
    inserted: list[int] = []
    index = MilvusIndex(embeddings, uri=database[1], ef_search=300, progress=inserted.append, **columns)
    assert index.build_seconds is not None
    assert inserted == [300]
    np.testing.assert_array_equal(index.search(queries, 300)[0], ExactIndex(embeddings).search(queries, 300)[0])


def test_a_build_that_breaks_off_is_made_up_for(gallery, tmp_path, monkeypatch):
    embeddings, queries, _ = gallery
    monkeypatch.setattr("bdbnet.gallery.indexes.milvus._BATCH_BYTES", 100 * 4 * 8)

    def stop(done):
        if done == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MilvusIndex(embeddings, uri=tmp_path / "milvus.db", progress=stop)
    index = MilvusIndex(embeddings, uri=tmp_path / "milvus.db", ef_search=300)
    assert index.build_seconds is not None
    np.testing.assert_array_equal(index.search(queries, 9)[0], ExactIndex(embeddings).search(queries, 9)[0])
    index.close()


def test_a_build_that_breaks_off_before_its_index_is_made_up_for(gallery, tmp_path, monkeypatch):
    from pymilvus import MilvusClient

    embeddings, queries, _ = gallery

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MilvusClient, "create_index", stop)
        with pytest.raises(KeyboardInterrupt):
            MilvusIndex(embeddings, uri=tmp_path / "milvus.db")
    index = MilvusIndex(embeddings, uri=tmp_path / "milvus.db", ef_search=300)
    assert index.build_seconds is not None
    np.testing.assert_array_equal(index.search(queries, 9)[0], ExactIndex(embeddings).search(queries, 9)[0])
    index.close()


def test_the_collection_of_an_earlier_state_is_brought_up_to_date(gallery, tmp_path, monkeypatch):
    images, queries, _ = gallery

    def index_of(ids, number, history):
        return MilvusIndex(
            images[ids], uri=tmp_path / "milvus.db", ef_search=300, cameras=ids % 4, fingerprint=f"state {number}",
            ids=ids if history else None, history=history,
        )  # fmt: skip

    first = index_of(np.arange(200), 0, ())
    history, ids = [("state 0", 200)], np.arange(200)
    for number, (add, gone) in enumerate([(60, []), (0, [1, 2, 230]), (40, [*range(150, 210)])], 1):
        ids = np.concatenate([np.setdiff1d(ids, gone), np.arange(history[-1][1], history[-1][1] + add)])
        history.append((f"state {number}", history[-1][1] + add))
        if number == 3:  # killed when all is inserted, before what is gone is deleted
            with monkeypatch.context() as patch:
                patch.setattr("pymilvus.MilvusClient.delete", _stop)
                with pytest.raises(KeyboardInterrupt):
                    index_of(ids, number, tuple(history))
            add = 0
        index = index_of(ids, number, tuple(history))
        assert index.built.startswith(f"{add} images added and {len(gone)} taken out")
        for allowed in (Filter(), Filter(np.arange(20) % 4)):
            expected = ExactIndex(images[ids], cameras=ids % 4).search(queries, 30, allowed=allowed)
            for ours, exact in zip(index.search(queries, 30, allowed=allowed), expected, strict=True):
                np.testing.assert_array_equal(ours, exact)
        assert index_of(ids, number, tuple(history)).build_seconds is None
        assert index._client.list_collections() == [index.collection]
    first.close()
    index.close()


def _stop(*_, **__):
    raise KeyboardInterrupt


def test_a_closed_port_is_an_error_at_once(gallery):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(GalleryIndexError, match=rf"^{address}: no Milvus answered within 2 s"):
        MilvusIndex(gallery[0], uri=address, timeout=2)
    assert time.monotonic() - begin < 5


def test_a_server_that_never_answers_is_an_error_in_time(gallery):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(GalleryIndexError, match="no Milvus answered within 1 s"):
            MilvusIndex(gallery[0], uri=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=1)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uri": "gallery"}, "gallery: give a file whose name ends in .db"),
        ({"uri": "ftp://host"}, "ftp://host"),
        ({"uri": "x.db", "links": 0}, "links must be at least 1"),
    ],
)
def test_refuses_bad_settings(gallery, options, message):
    with pytest.raises(GalleryIndexError, match=message):
        MilvusIndex(gallery[0], **options)


def test_a_file_that_is_no_database_is_an_error(gallery, tmp_path):
    (tmp_path / "milvus.db").write_text("something else")
    with pytest.raises(GalleryIndexError, match=r"milvus\.db: is the file in use"):
        MilvusIndex(gallery[0], uri=tmp_path / "milvus.db")


def test_more_than_milvus_gives_is_refused(database, monkeypatch):
    monkeypatch.setattr("bdbnet.gallery.indexes.milvus._MOST", 100)
    with pytest.raises(GalleryIndexError, match="k=101: Milvus gives at most 100 images"):
        database[0].search(np.ones((1, 8)), 101)


def test_says_what_to_install(gallery, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "milvus_lite" else found(name, *a)
    )
    with pytest.raises(GalleryIndexError, match=r'Milvus Lite.*pip install "bdbnet\[milvus\]"'):
        MilvusIndex(gallery[0], uri="x.db")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(GalleryIndexError, match=r'pymilvus is not installed: pip install "bdbnet\[milvus\]"'):
        MilvusIndex(gallery[0], uri="x.db")
