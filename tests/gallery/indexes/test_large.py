"""Galleries that are read a block at a time: the same images are found as where all is compared at once."""

import numpy as np
import pytest

from bdbnet.gallery.indexes import exact as module
from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndexError
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.quality import measure_index, recall_against_exact
from bdbnet.gallery.rows import Rows


def gallery(offset: float = 0.0) -> np.ndarray:
    """Embeddings with repeated rows, of which some are at the limit of every k."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((400, 12)).astype(np.float32) + np.float32(offset)
    drawn[100:140] = drawn[:40]
    drawn[300:320] = drawn[7]
    return drawn


def in_parts(embeddings: np.ndarray) -> Rows:
    """The same rows in three parts, of which one has rows that no longer count."""
    filled = np.full((260, embeddings.shape[1]), np.nan, np.float32)
    live = np.sort(np.random.default_rng(1).permutation(260)[:200])
    filled[live] = embeddings[100:300]
    return Rows([embeddings[:100], filled, embeddings[300:]], [None, live, None], embeddings.shape[1])


@pytest.mark.parametrize(("distance", "offset"), [("euclidean", 0.0), ("euclidean", 3000.0), ("cosine", 0.0)])
@pytest.mark.parametrize("allowed", [Filter(), Filter(np.arange(30) % 5 - 1), Filter(np.arange(30) % 4, 0.2, 0.3)])
def test_a_large_gallery_is_searched_like_a_small_one(distance, offset, allowed, monkeypatch):
    embeddings = gallery(offset)
    rng = np.random.default_rng(2)
    queries = (embeddings[rng.integers(0, 400, 30)] + 0.1 * rng.standard_normal((30, 12))).astype(np.float32)
    columns = {"cameras": rng.integers(0, 4, 400), "times": rng.random(400)}
    whole = ExactIndex(embeddings, distance=distance, **columns).search(queries, 20, allowed=allowed)
    small = ExactIndex(in_parts(embeddings), distance=distance, **columns)
    assert isinstance(small.embeddings, np.ndarray)
    for ours, expected in zip(small.search(queries, 20, allowed=allowed), whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    for name, value in (("_LARGEST_AT_ONCE", 0), ("_ROWS_PER_PASS", 64), ("_QUERIES_PER_PASS", 7)):
        monkeypatch.setattr(module, name, value)
    for given in (embeddings, in_parts(embeddings)):
        index = ExactIndex(given, distance=distance, **columns)
        assert index.embeddings is given
        for ours, expected in zip(index.search(queries, 20, allowed=allowed), whole, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert index.search(queries, 500)[0][:, 399].min() >= 0


def test_a_large_gallery_is_measured_without_being_held_in_memory(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_AT_ONCE", 0)
    monkeypatch.setattr(Rows, "__array__", lambda *_, **__: pytest.fail("all of it was read into memory"))
    index = ExactIndex(in_parts(gallery()))
    assert len(index.sampled()) == 400
    assert recall_against_exact(index, index.sampled()) == 1
    assert measure_index(index, index.sampled()).queries == 400
    assert len(index.fingerprint) == 64


def test_a_row_that_can_not_be_compared_is_named_when_it_is_read(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_AT_ONCE", 0)
    monkeypatch.setattr(module, "_SAMPLED", 10)
    embeddings = gallery()
    queries = embeddings[:2].copy()
    for value, distance, message in (
        (np.nan, "euclidean", "NaN"),
        (np.inf, "cosine", "NaN"),
        (0, "cosine", "is all zeros"),
    ):
        embeddings[250] = value
        with pytest.raises(GalleryIndexError, match=f"gallery embedding 250 .*{message}"):
            ExactIndex(in_parts(embeddings), distance=distance).search(queries, 3)
        with pytest.raises(GalleryIndexError, match=f"gallery embedding 250 .*{message}"):
            FaissIndex(in_parts(embeddings), distance=distance, kind="hnsw")
    embeddings[250] = 3e19  # whose square is too large for its kind of number
    assert ExactIndex(in_parts(embeddings)).search(queries, 3)[0][0, 0] == 0
