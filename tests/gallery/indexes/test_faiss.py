import sys

import numpy as np
import pytest

from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndexError
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.quality import recall_against_exact

ALL = {"ivf": {"lists": 20, "probes": 20}, "hnsw": {"ef_search": 600}}


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 24))
    embeddings = (centres[rng.integers(0, 40, 600)] + 0.4 * rng.standard_normal((600, 24))).astype(np.float32)
    queries = (centres[rng.integers(0, 40, 30)] + 0.4 * rng.standard_normal((30, 24))).astype(np.float32)
    times = np.where(rng.random(600) < 0.1, np.nan, rng.random(600))
    return embeddings, queries, {"cameras": rng.integers(0, 4, 600), "times": times}


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "allowed",
    [
        Filter(),
        Filter(np.arange(30) % 5 - 1),
        Filter(after=0.5),
        Filter(np.arange(30) % 4, 0.2, 0.6),
        Filter(after=0.98),
        Filter(after=2.0),
    ],
)
def test_a_thorough_search_equals_the_exact_one(gallery, kind, distance, allowed):
    embeddings, queries, columns = gallery
    index = FaissIndex(embeddings, kind=kind, distance=distance, **ALL[kind], **columns)
    expected = ExactIndex(embeddings, distance=distance, **columns).search(queries, 40, allowed=allowed)
    for ours, exact in zip(index.search(queries, 40, allowed=allowed), expected, strict=True):
        np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_usual_settings_find_nearly_all(gallery, kind):
    embeddings, queries, _ = gallery
    assert recall_against_exact(FaissIndex(embeddings, kind=kind), queries) > 0.99


def test_few_lists_miss_some_but_give_as_many_as_there_are(gallery):
    embeddings, queries, columns = gallery
    index = FaissIndex(embeddings, lists=200, probes=1, **columns)
    assert recall_against_exact(index, queries, k=2) < 0.95
    indices, distances = index.search(queries, 600, allowed=Filter(np.zeros(30, int)))
    there = int((columns["cameras"] != 0).sum())
    assert (indices >= 0).sum(1).tolist() == [there] * 30
    assert np.isinf(distances[:, there:]).all()


@pytest.mark.parametrize(("kind", "build"), [("ivf", {"lists": 7}), ("hnsw", {"links": 8})])
def test_a_kept_index_is_read_again_until_something_changes(gallery, tmp_path, kind, build):
    embeddings, queries, _ = gallery
    first = FaissIndex(embeddings, kind=kind, folder=tmp_path)
    assert first.build_seconds is not None
    again = FaissIndex(embeddings, kind=kind, folder=tmp_path, probes=3, ef_search=50)
    assert again.build_seconds is None
    assert again.settings != first.settings
    np.testing.assert_array_equal(
        first.search(queries, 5)[0], FaissIndex(embeddings, kind=kind, folder=tmp_path).search(queries, 5)[0]
    )
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path, **build).build_seconds is not None
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path).build_seconds is not None
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path, distance="cosine").build_seconds is not None
    changed = FaissIndex(embeddings[:-1], kind=kind, folder=tmp_path)
    assert changed.build_seconds is not None
    assert changed.search(queries, 5)[0].max() < 599
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert names == {f"faiss-{kind}.index", f"faiss-{kind}.json"}


@pytest.mark.parametrize("damaged", ["faiss-ivf.index", "faiss-ivf.json"])
def test_a_damaged_file_is_built_anew(gallery, tmp_path, damaged):
    embeddings, queries, _ = gallery
    expected = FaissIndex(embeddings, folder=tmp_path).search(queries, 5)[0]
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 2])
    index = FaissIndex(embeddings, folder=tmp_path)
    assert index.build_seconds is not None
    np.testing.assert_array_equal(index.search(queries, 5)[0], expected)


def test_one_image_is_a_gallery():
    for kind in ("ivf", "hnsw"):
        indices, distances = FaissIndex(np.ones((1, 3), np.float32), kind=kind).search(np.zeros((2, 3)), 2)
        assert indices.tolist() == [[0, -1], [0, -1]]
        np.testing.assert_allclose(distances[:, 0], np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pq"}, "kind must be one of ivf, hnsw"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"lists": 601}, "lists=601: the gallery has 600 images"),
    ],
)
def test_refuses_bad_settings(gallery, options, message):
    with pytest.raises(GalleryIndexError, match=message):
        FaissIndex(gallery[0], **options)


def test_says_what_to_install(gallery, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(GalleryIndexError, match=r'pip install "bdbnet\[faiss\]"'):
        FaissIndex(gallery[0])
