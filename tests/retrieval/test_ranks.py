import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import Matches, Search, distance_blocks, positive_ranks, top_k
from bdbnet.retrieval.distances import DISTANCES, _device_blocks
from bdbnet.retrieval.matrices import Prepared
from bdbnet.retrieval.ranks import _before_in_all


@st.composite
def searches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images, dimensions = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    q, g = (rng.integers(-2, 3, (n, dimensions)).astype(np.float32) for n in (queries, images))
    tags = [rng.integers(0, 3, n) for n in (queries, images, queries, images)]
    return q, g, draw(st.integers(1, 35)), tags


@settings(max_examples=50, deadline=None)
@given(searches(), st.booleans(), st.sampled_from([None, 1e-3]))
def test_top_k_equals_a_full_sort(naive, search, filtered, chunk):
    q, g, k, (ql, gl, qc, gc) = search
    names = ("query_labels", "gallery_labels", "query_cameras", "gallery_cameras")
    options = dict(zip(names, (ql, gl, qc, gc), strict=True)) if filtered else {}
    indices, distances = top_k(q, g, k, search=Search(chunk_memory_mb=chunk), **options)
    assert indices.shape == distances.shape == (len(q), k)
    for i, row in enumerate(q):
        keep = ~((gl == ql[i]) & (gc == qc[i])) if filtered else np.ones(len(g), bool)
        expected = naive.order(row, g, keep)[:k]
        found = len(expected)
        assert indices[i].tolist() == expected + [-1] * (k - found)
        np.testing.assert_allclose(distances[i, :found], np.linalg.norm(g[expected] - row, axis=1), rtol=1e-6)
        assert np.isinf(distances[i, found:]).all()


def test_top_k_in_the_own_set_leaves_out_the_query():
    x = np.array([[0.0], [0.0], [3.0]])
    indices, distances = top_k(x, None, 3)
    assert indices.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1]]
    assert distances.tolist() == [[0.0, 3.0, np.inf], [0.0, 3.0, np.inf], [3.0, 3.0, np.inf]]


def test_top_k_in_the_own_set_takes_labels_and_cameras_once():
    x = np.array([[0.0], [1.0], [2.0], [4.0]])
    indices, _ = top_k(x, None, 2, query_labels=[1, 1, 1, 2], query_cameras=[0, 0, 1, 0])
    assert indices.tolist() == [[2, 3], [2, 3], [1, 0], [2, 1]]


def test_distances_of_near_copies_are_accurate():
    # |q|^2 + |g|^2 - 2 q.g in float32 would give 0 or about 0.03 here.
    g = np.full((2, 512), 3.0, np.float32)
    g[1, 0] += 1e-3
    _, distances = top_k(g[:1], g, 2)
    assert distances[0].tolist() == pytest.approx([0.0, float(g[1, 0]) - 3.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k must be"), ({"query_labels": np.zeros(3, int)}, "labels and cameras of both sets")],
)
def test_top_k_refuses_bad_arguments(options, message):
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        top_k(x, x.copy(), **{"k": 1, **options})


def test_ranks_of_any_distance():
    distances = np.array([[3.0, 1.0, 1.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    matches = Matches(np.array([1, 7]), np.array([1, 2, 1, 2, 1]), np.array([0, 0]), np.array([1, 1, 1, 1, 0]))
    found = positive_ranks([(0, distances)], matches)
    assert found.ranks.tolist() == [2, 4]
    assert found.offsets.tolist() == [0, 2, 2]


def test_positives_and_left_out_images_of_a_query():
    matches = Matches(np.array([5]), np.array([5, 4, 5, 5]), np.array([2]), np.array([2, 2, 0, 2]))
    positives, left_out = matches.of(0)
    assert positives.tolist() == [2]
    assert left_out.tolist() == [0, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_are_the_distances_without_the_query_norm(dtype):
    rng = np.random.default_rng(0)
    q, g = (rng.integers(-9, 10, (n, 5)).astype(dtype) for n in (70, 31))
    blocks = [(begin, block.copy()) for begin, block in distance_blocks(q, g, chunk_memory_mb=0.001)]
    assert len(blocks) > 3
    assert [begin for begin, _ in blocks] == np.cumsum([0] + [len(block) for _, block in blocks])[:-1].tolist()
    whole = np.concatenate([block for _, block in blocks])
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, ((q[:, None] - g[None]) ** 2).sum(2) - (q**2).sum(1)[:, None])


def test_torch_products_are_full_precision_whatever_the_session_allows():
    rng = np.random.default_rng(0)
    q, g = (torch.from_numpy(rng.standard_normal((n, 64), dtype=np.float32)) for n in (9, 31))
    norms = (g**2).sum(1)
    queries, images = (Prepared(side, (side**2).sum(1), *[torch.empty(0)] * 3) for side in (q, g))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = np.concatenate([block.clone() for _, block in _device_blocks(queries, images, 4, False)])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(found[:, :31], norms.numpy() - 2 * q.numpy() @ g.numpy().T, atol=1e-4)
    assert found.shape[1] % 128 == 0
    assert np.isinf(found[:, 31:]).all()


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("distance", DISTANCES)
def test_absolute_blocks_are_the_distances(distance, form):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 5)) for n in (7, 31))
    g[3] = q[2]
    whole = [block.copy() for _, block in distance_blocks(form(q), form(g), distance=distance, absolute=True)]
    if distance == "euclidean":
        expected = np.sqrt(((q[:, None] - g) ** 2).sum(2))
    else:
        expected = 1 - (q @ g.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(np.concatenate(whole), expected, atol=1e-7)
    assert np.concatenate(whole).min() >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_neighbours():
    rng = np.random.default_rng(0)
    q, g = (rng.integers(-3, 4, (n, 6)).astype(np.float32) for n in (40, 90))
    found = top_k(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), 9)
    for ours, theirs in zip(found, top_k(q, g, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("width", [1, 2, 3, 64, 101])
def test_rows_ranked_together_rank_as_each_alone(width):
    rng = np.random.default_rng(width)
    distances = rng.integers(0, 6, (5, width)).astype(np.float32)  # ties everywhere
    counts = np.minimum([2, 0, 1, 3, 1], width)
    columns = np.concatenate([np.sort(rng.permutation(width)[:count]) for count in counts])
    rows = np.repeat(np.arange(5), counts)
    values = distances[rows, columns]
    order = np.lexsort((values, rows))
    columns, values = columns[order], values[order]
    distances[rows, columns] = np.nan
    found = _before_in_all(distances, rows, columns, values)
    naive = [
        np.sum((distances[r] < v) | ((distances[r] == v) & (np.arange(width) < c)))
        for r, c, v in zip(rows, columns, values)
    ]
    assert found.tolist() == naive
