import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval.knn import nearest_neighbours, smallest


def first_columns(block, k):
    columns = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    return np.lexsort((columns, block))[:, :k]


@st.composite
def blocks(draw):
    """Rows short and long compared with `k`, of distinct, of equal and of infinite values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, count = draw(st.integers(0, 5)), draw(st.integers(1, 700))
    k = draw(st.integers(1, min(count, 30)) | st.integers(1, count))
    kind = draw(st.sampled_from(["distinct", "equal", "few values"]))
    highest = {"distinct": 10**6, "equal": 1, "few values": 4}[kind]
    block = rng.integers(0, highest, (rows, count)).astype(draw(st.sampled_from([np.float32, np.float64])))
    block[rng.random(block.shape) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))] = np.inf
    return block, k


@settings(max_examples=150, deadline=None)
@given(blocks(), st.booleans())
def test_smallest_equals_a_full_sort(case, as_tensor):
    block, k = case
    found = smallest(torch.from_numpy(block) if as_tensor else block, k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, first_columns(block, k))


def test_smallest_of_sorted_rows_of_equal_rows_and_of_one_value_at_the_end():
    block = np.tile(np.arange(5000, dtype=np.float32), (4, 1))
    block[1] = block[1, ::-1]
    block[2] = 7
    block[3] = 7
    block[3, -1] = 1  # outside of the whole groups of columns
    found = smallest(block, 3)
    assert found.tolist() == [[0, 1, 2], [4999, 4998, 4997], [0, 1, 2], [4999, 0, 1]]


def test_smallest_takes_any_memory_layout():
    block = np.random.default_rng(0).random((2000, 6))
    np.testing.assert_array_equal(smallest(block.T, 2), first_columns(block.T, 2))


@pytest.mark.parametrize("k", [0, 4])
def test_smallest_refuses_a_k_that_the_columns_do_not_have(k):
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        smallest(np.zeros((2, 3)), k)


@st.composite
def sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dimensions = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    points = rng.integers(-3, 4, (count, dimensions)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return points, draw(st.integers(1, count))


@settings(max_examples=100, deadline=None)
@given(sets(), st.sampled_from([None, 0.0005, 0.001]))
def test_neighbours_equal_a_full_sort(case, chunk):
    points, k = case
    squared = ((points[:, None] - points) ** 2).sum(2)
    found = nearest_neighbours(points, k, chunk_memory_mb=chunk)
    order = first_columns(squared, k)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.squared, np.take_along_axis(squared, order, 1))
    np.testing.assert_array_equal(found.largest, squared.max(1))
    assert found.squared.dtype == found.largest.dtype == points.dtype


def test_neighbours_of_clusters_in_several_panels_and_strips(monkeypatch):
    monkeypatch.setattr("bdbnet.retrieval.knn._LARGEST_PANEL", 70)
    monkeypatch.setattr("bdbnet.retrieval.knn._STRIP", 150)
    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((40, 8)), 15, axis=0) + 0.1 * rng.standard_normal((600, 8))
    points = points.astype(np.float32)
    exact = ((points[:, None].astype(np.float64) - points) ** 2).sum(2)
    found = nearest_neighbours(points, 21)
    np.testing.assert_array_equal(found.indices, first_columns(exact, 21))
    np.testing.assert_allclose(found.squared, np.sort(exact, axis=1)[:, :21], atol=1e-5)
    np.testing.assert_allclose(found.largest, exact.max(1), rtol=1e-5)


def test_copies_are_at_distance_zero_and_equally_far_from_others():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, 37), dtype=np.float32)
    points[200:260] = points[:60]
    points[290:] = points[5]
    found = nearest_neighbours(points, 15, chunk_memory_mb=0.05)
    assert found.indices[5, :12].tolist() == [5, 205, *range(290, 300)]
    assert found.squared[205, :12].tolist() == [0.0] * 12
    np.testing.assert_array_equal(found.indices[:60], found.indices[200:260])
    copies = {i: 200 + i for i in range(60) if i != 5}
    for row in found.indices:
        places = {int(image): place for place, image in enumerate(row)}
        for original, copy in copies.items():
            if original in places and places[original] < 14:
                assert places[copy] == places[original] + 1


def test_progress_counts_every_image_once():
    done: list[int] = []
    nearest_neighbours(np.random.default_rng(0).random((50, 3)), 2, chunk_memory_mb=0.01, progress=done.append)
    assert len(done) > 1
    assert sum(done) == 50


@pytest.mark.parametrize(
    ("k", "options", "message"),
    [
        (0, {}, "k must be from 1 to 3"),
        (4, {}, "k must be from 1 to 3"),
        (1, {"chunk_memory_mb": 1e-9}, "chunk_memory_mb"),
    ],
)
def test_refuses_bad_arguments(k, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(np.eye(3), k, **options)


def test_refuses_bad_embeddings_by_row():
    points = np.eye(3)
    points[1, 0] = np.nan
    with pytest.raises(ValueError, match="image embedding 1 contains NaN"):
        nearest_neighbours(points, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_neighbours():
    points = np.random.default_rng(0).integers(-3, 4, (500, 6)).astype(np.float32)
    found = nearest_neighbours(torch.from_numpy(points).cuda(), 9, chunk_memory_mb=0.1)
    for ours, theirs in zip(found, nearest_neighbours(points, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
