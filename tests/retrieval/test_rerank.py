import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from bdbnet.retrieval import rerank
from bdbnet.retrieval.metrics import summarize_reid
from bdbnet.retrieval.ranks import Matches, positive_ranks
from bdbnet.retrieval.rerank import (
    KReciprocal,
    k_reciprocal_rerank,
    k_reciprocal_rerank_distances,
    reranked_blocks,
)


def squared_distances(a, b):
    return np.array([[sum((float(x) - float(y)) ** 2 for x, y in zip(p, q, strict=True)) for q in b] for p in a])


def published(squared, queries, k1, k2, lambda_value):
    """The paper's sections 3.2 to 3.4 set by set over a dense matrix of squared distances of queries, then gallery."""
    count = len(squared)
    distances = np.zeros((count, count))
    for i in range(count):
        farthest = max(squared[j][i] for j in range(count))
        for j in range(count):
            distances[i, j] = squared[j][i] / farthest if farthest > 0 else 0
    order = [sorted(range(count), key=lambda j, row=row: (row[j], j)) for row in distances]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    half = int(np.around(k1 / 2))
    encodings = np.zeros((count, count))
    for i in range(count):
        core = reciprocal(i, k1)
        members = set(core)
        for candidate in core:
            own = reciprocal(candidate, half)
            if len(own & core) > 2 / 3 * len(own):
                members |= own
        total = sum(np.exp(-distances[i, j]) for j in members)
        for j in members:
            encodings[i, j] = np.exp(-distances[i, j]) / total
    if k2 != 1:
        encodings = np.array([np.mean([encodings[j] for j in order[i][:k2]], axis=0) for i in range(count)])
    result = np.zeros((queries, count))
    for i in range(queries):
        for j in range(count):
            least = sum(min(a, b) for a, b in zip(encodings[i], encodings[j], strict=True))
            jaccard = 1 - least / (2 - least)
            result[i, j] = (1 - lambda_value) * jaccard + lambda_value * distances[i, j]
    return result


@st.composite
def cases(draw):
    """Few points on a grid, so with copies and equal distances, or clusters in general position."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images = draw(st.integers(1, 6)), draw(st.integers(1, 18))
    dimensions = draw(st.integers(1, 5))
    if draw(st.booleans()):
        points = rng.integers(-2, 3, (queries + images, dimensions)).astype(float)
    else:
        points = rng.integers(0, 3, (queries + images, 1)) + rng.standard_normal((queries + images, dimensions))
    k1 = draw(st.integers(1, queries + images - 1))
    k2 = draw(st.integers(1, min(queries + images, k1 + 2)))
    settings = {"k1": k1, "k2": k2, "lambda_value": draw(st.sampled_from([0.0, 0.3, 1.0]))}
    return points[:queries], points[queries:], settings


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([None, 1e-3]))
def test_equals_the_published_method(case, chunk):
    q, g, options = case
    points = np.concatenate([q, g])
    expected = published(squared_distances(points, points), len(q), **options)[:, len(q) :]
    found = k_reciprocal_rerank(q, g, chunk_memory_mb=chunk, **options)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_given_distances_equal_the_published_method(case):
    q, g, options = case
    points = np.concatenate([q, g])
    squared = squared_distances(points, points)
    n = len(q)
    expected = published(squared, n, **options)[:, n:]
    found = k_reciprocal_rerank_distances(squared[:n, n:], squared[:n, :n], squared[n:, n:], **options)
    np.testing.assert_allclose(found, expected, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(cases())
def test_a_set_searched_in_itself_counts_once(case):
    q, g, options = case
    points = np.concatenate([q, g])
    expected = published(squared_distances(points, points), len(points), **options)
    np.testing.assert_allclose(k_reciprocal_rerank(points, points, **options), expected, atol=1e-10)


def clusters(dtype=np.float32):
    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((12, 16)), 8, axis=0) + 0.5 * rng.standard_normal((96, 16))
    points = rng.permutation(points).astype(dtype)
    return points[:20], points[20:]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
def test_precision_and_type_of_embeddings(dtype, tolerance, as_type):
    q, g = clusters(dtype)
    points = np.concatenate([q, g])
    expected = published(squared_distances(points, points), len(q), 8, 3, 0.3)[:, len(q) :]
    found = k_reciprocal_rerank(as_type(q), as_type(g), k1=8, k2=3)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_half_precision_is_widened():
    q, g = (torch.from_numpy(x).half() for x in clusters())
    np.testing.assert_array_equal(k_reciprocal_rerank(q, g, k1=8), k_reciprocal_rerank(q.float(), g.float(), k1=8))


def test_blocks_are_the_rows_of_the_whole_matrix():
    q, g = clusters(np.float64)
    settings = KReciprocal(k1=8, k2=3, lambda_value=0.5)
    blocks = [(begin, block.copy()) for begin, block in reranked_blocks(q, g, settings, chunk_memory_mb=0.003)]
    assert len(blocks) > 3
    assert [begin for begin, _ in blocks] == np.cumsum([0] + [len(block) for _, block in blocks])[:-1].tolist()
    whole = k_reciprocal_rerank(q, g, k1=8, k2=3, lambda_value=0.5)
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), whole, atol=1e-12)


def test_distances_kept_from_the_search_for_neighbours_change_no_digit(monkeypatch):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 16), dtype=np.float32) for n in (70, 150))
    kept = k_reciprocal_rerank(q, g, k1=8)
    monkeypatch.setattr(rerank, "_KEPT_MB", 0)
    np.testing.assert_array_equal(k_reciprocal_rerank(q, g, k1=8), kept)


def test_ranks_are_those_of_the_published_method(naive):
    q, g = clusters(np.float64)
    rng = np.random.default_rng(1)
    query_labels, gallery_labels = rng.integers(0, 5, 20), rng.integers(0, 5, 76)
    query_cameras, gallery_cameras = rng.integers(0, 3, 20), rng.integers(0, 3, 76)
    matches = Matches(query_labels, gallery_labels, query_cameras, gallery_cameras)
    blocks = reranked_blocks(q, g, KReciprocal(k1=8), chunk_memory_mb=0.01)
    found = summarize_reid(positive_ranks(blocks, matches))
    points = np.concatenate([q, g])
    distances = published(squared_distances(points, points), 20, 8, 6, 0.3)[:, 20:]
    # The reference ranks embeddings: on a line, as far from the query at 0 as the distances say.
    expected = [
        naive.reid(
            np.zeros((1, 1)),
            row[:, None],
            query_labels[[i]],
            gallery_labels,
            query_cameras[[i]],
            gallery_cameras,
        )
        for i, row in enumerate(distances)
    ]
    valid = [value for value in expected if value is not None]
    for name in ("rank1", "rank5", "mAP", "mINP"):
        assert found[name] == pytest.approx(np.mean([value[name] for value in valid]))


def test_equal_embeddings_are_all_at_distance_zero():
    found = k_reciprocal_rerank(np.ones((2, 3)), np.ones((4, 3)), k1=5, k2=2)
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_inputs_stay_as_they_are():
    q, g = clusters()
    before = q.copy(), g.copy()
    k_reciprocal_rerank(q, g, k1=8)
    np.testing.assert_array_equal(q, before[0])
    np.testing.assert_array_equal(g, before[1])


def test_progress_counts_images_and_queries(monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "file": io.StringIO(), "disable": False})
            self.wanted = options["disable"]
            bars.append(self)

    monkeypatch.setattr("bdbnet.retrieval.rerank.tqdm", Bar)
    q, g = clusters()
    for shown in (True, False):
        k_reciprocal_rerank(q, g, k1=8, progress=shown, chunk_memory_mb=0.01)
        assert bars[-1].n == bars[-1].total == 20 + 96
    assert [bar.wanted for bar in bars] == [None, True]  # None: where a terminal shows it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 0}, "k1 of k-reciprocal re-ranking must be a whole number"),
        ({"k1": 2.5}, "k1 .* got 2.5"),
        ({"k2": 0}, "k2 of k-reciprocal re-ranking"),
        ({"k2": True}, "k2 .* got True"),
        ({"lambda_value": -0.1}, "lambda_value .* from 0 to 1"),
        ({"lambda_value": float("nan")}, "lambda_value .* got nan"),
        ({"k1": 6}, "k1=6 needs 7 images, but queries and gallery together have 6: choose a smaller k1"),
        ({"k1": 2, "k2": 7}, "k2=7 needs 7 images"),
        ({"k1": 2, "k2": 2, "chunk_memory_mb": 0}, "chunk_memory_mb"),
    ],
)
def test_refuses_bad_arguments_at_once(options, message):
    points = np.random.default_rng(0).random((6, 2))
    chunk = options.pop("chunk_memory_mb", None)
    with pytest.raises(ValueError, match=message):
        reranked_blocks(points[:2], points[2:], KReciprocal(**options), chunk_memory_mb=chunk)


def test_refuses_bad_embeddings_by_set_and_row():
    q, g = clusters()
    g[3, 0] = np.nan
    with pytest.raises(ValueError, match="gallery embedding 3 contains NaN"):
        k_reciprocal_rerank(q, g)
    with pytest.raises(ValueError, match="query embedding 3 contains NaN"):
        k_reciprocal_rerank(g, q)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_gallery": np.ones(3)}, "query_gallery must have shape"),
        ({"query_query": np.ones((2, 3))}, r"query_query must have shape \(2, 2\)"),
        ({"gallery_gallery": np.ones((2, 2))}, r"gallery_gallery must have shape \(3, 3\)"),
        ({"gallery_gallery": np.diag([0, -1.0, 0])}, r"gallery_gallery\[1, 1\] is -1"),
        ({"query_query": np.diag([0, np.nan])}, r"query_query\[1, 1\] is nan"),
        ({"k1": 5}, "k1=5 needs 6 images"),
    ],
)
def test_refuses_bad_distances(changes, message):
    given = {"query_gallery": np.ones((2, 3)), "query_query": np.ones((2, 2)), "gallery_gallery": np.ones((3, 3))}
    with pytest.raises(ValueError, match=message):
        k_reciprocal_rerank_distances(**{**given, "k1": 2, "k2": 2, **changes})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_distances():
    q, g = clusters()
    found = k_reciprocal_rerank(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), k1=8)
    np.testing.assert_allclose(found, k_reciprocal_rerank(q, g, k1=8), atol=1e-5)
