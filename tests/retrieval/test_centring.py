"""Embeddings far from the origin: Euclidean distances keep their digits, and all others stay bit for bit as they were."""

import numpy as np
import pytest
import torch

from bdbnet.retrieval import (
    QueryExpansion,
    Search,
    distance_blocks,
    expand_queries,
    k_reciprocal_rerank,
    prepared,
    recall_at_k,
    reid_metrics,
    top_k,
)
from bdbnet.retrieval.knn import nearest_neighbours

QUERIES = 60


def far_set(offset: float, dtype=np.float32):
    """Embeddings (360, 32) around some identities with this in every dimension, their labels and cameras."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 30, 360)
    points = rng.standard_normal((30, 32))[labels] + 1.5 * rng.standard_normal((360, 32))
    return (points + offset).astype(dtype), labels, rng.integers(0, 4, 360)


def sides(embeddings, labels, cameras):
    return [part for values in (embeddings, labels, cameras) for part in (values[:QUERIES], values[QUERIES:])]


def distances(query, gallery, **options) -> np.ndarray:
    """All blocks together; the next one overwrites the last."""
    return np.concatenate([block.copy() for _, block in distance_blocks(query, gallery, **options)])


@pytest.fixture
def uncentred(monkeypatch):
    """Turns centring off while it is entered."""

    def off() -> None:
        monkeypatch.setattr("bdbnet.retrieval.matrices._LOST", np.inf)

    return off


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("chunk", [None, 0.05])
def test_metrics_are_those_of_double_precision(as_type, chunk, uncentred):
    embeddings, labels, cameras = far_set(1000)
    found = sides(as_type(embeddings), labels, cameras)
    exact = reid_metrics(*sides(embeddings.astype(np.float64), labels, cameras))
    assert reid_metrics(*found, chunk_memory_mb=chunk) == pytest.approx(exact, abs=1e-4)
    in_itself = recall_at_k(embeddings.astype(np.float64), labels)
    assert recall_at_k(as_type(embeddings), labels, chunk_memory_mb=chunk) == pytest.approx(in_itself, abs=1e-4)
    uncentred()
    assert reid_metrics(*found)["mAP"] != pytest.approx(exact["mAP"], abs=1e-3)


@pytest.mark.parametrize(
    ("away", "dtype", "moves"), [(20, np.float32, False), (40, np.float32, True), (4e4, np.float64, False)]
)
def test_only_what_would_lose_digits_is_moved(away, dtype, moves):
    """In float32 from 29 times the spread on: the root of 1e-4 by the precision's epsilon."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 16))
    points /= np.sqrt((points**2).sum(axis=1).mean())
    direction = np.full(16, 0.25)
    gallery = prepared((points + away * direction).astype(dtype))
    assert (gallery.offset is not None) is moves
    assert (gallery.without_offset is gallery) is not moves
    if moves:
        np.testing.assert_allclose(gallery.offset, away * direction, atol=0.1)


def test_embeddings_as_networks_give_them_keep_every_bit(uncentred):
    embeddings = np.maximum(far_set(0)[0], 0)  # after a ReLU the mean is about as long as the spread
    query, gallery = embeddings[:QUERIES], embeddings[QUERIES:]
    assert prepared(gallery).offset is None
    block = distances(query, gallery)
    found = block
    uncentred()
    block = distances(query, gallery)
    np.testing.assert_array_equal(found, block)


def test_cosine_distances_are_not_moved(uncentred):
    embeddings, labels, cameras = far_set(1000)
    given = sides(embeddings, labels, cameras)
    block = distances(*given[:2], distance="cosine", absolute=True)
    found, metrics = block, reid_metrics(*given, distance="cosine")
    expanded = expand_queries(*given[:2], QueryExpansion(3, 1.0), distance="cosine")
    uncentred()
    block = distances(*given[:2], distance="cosine", absolute=True)
    np.testing.assert_array_equal(found, block)
    assert metrics == reid_metrics(*given, distance="cosine")
    np.testing.assert_array_equal(expanded, expand_queries(*given[:2], QueryExpansion(3, 1.0), distance="cosine"))


def test_a_prepared_gallery_and_single_queries_give_the_same_distances():
    embeddings, *_ = far_set(1000)
    query, gallery = embeddings[:QUERIES], embeddings[QUERIES:]
    away = np.sqrt(((query[:, None].astype(np.float64) - gallery) ** 2).sum(axis=2))
    ready = prepared(gallery)
    for given in (gallery, ready):
        block = distances(query, given, absolute=True)
        np.testing.assert_allclose(block, away, rtol=1e-5)
    for number in (0, 7):
        block = distances(query[number : number + 1], ready, absolute=True)
        np.testing.assert_allclose(block, away[number, None], rtol=1e-5)
    assert ready.without_offset is ready.without_offset  # moved once


def test_copies_stay_equal_and_at_distance_zero():
    embeddings, *_ = far_set(1000)
    gallery = np.concatenate([embeddings, embeddings[::-1]])
    block = distances(embeddings, gallery, absolute=True)
    np.testing.assert_array_equal(block[:, : len(embeddings)], block[:, len(embeddings) :][:, ::-1])
    assert block.diagonal().max() < 0.02


@pytest.mark.parametrize("rerank", [None, {"k1": 8, "k2": 3}])
def test_lists_neighbours_and_re_ranking_are_those_of_the_set_at_the_origin(rerank):
    there, *_ = far_set(1000)
    here = there - np.float32(1000)  # exact
    found, expected = (top_k(x[:QUERIES], x[QUERIES:], 5, search=Search(rerank=rerank)) for x in (there, here))
    assert (found.indices == expected.indices).mean() > 0.99
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-2)
    near, expected_near = nearest_neighbours(there, 4), nearest_neighbours(here, 4)
    np.testing.assert_allclose(near.squared, expected_near.squared, rtol=1e-5)
    np.testing.assert_allclose(near.largest, expected_near.largest, rtol=1e-5)
    if rerank is not None:
        reranked = [k_reciprocal_rerank(x[:QUERIES], x[QUERIES:], **rerank) for x in (there, here)]
        assert (np.abs(reranked[0] - reranked[1]) < 1e-4).mean() > 0.99


@pytest.mark.parametrize("gallery", [False, True])
def test_expanded_queries_far_from_the_origin(gallery):
    embeddings, labels, cameras = far_set(1000)
    expansion = QueryExpansion(3, gallery=gallery)
    exact = reid_metrics(*sides(embeddings.astype(np.float64), labels, cameras), query_expansion=expansion)
    found = reid_metrics(*sides(embeddings, labels, cameras), query_expansion=expansion)
    assert found == pytest.approx(exact, abs=2e-3)
