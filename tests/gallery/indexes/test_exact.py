import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndexError
from bdbnet.gallery.indexes.quality import measure_index, recall_against_exact


def naive_search(index, queries, k, allowed):
    """Double loop and explicit sort: per query the (distance, index) pairs of what may be found."""
    for i, query in enumerate(queries.astype(np.float64)):
        found = []
        for j, image in enumerate(index.embeddings.astype(np.float64)):
            left_out = -1 if allowed.not_cameras is None else allowed.not_cameras[i]
            if left_out >= 0 and index.cameras[j] == left_out:
                continue
            if allowed.after is not None and not index.times[j] >= allowed.after:
                continue
            if allowed.before is not None and not index.times[j] < allowed.before:
                continue
            if index.distance == "cosine":
                away = 1 - float(query @ image) / float(np.sqrt(query @ query) * np.sqrt(image @ image))
            else:
                away = float(np.sqrt(((query - image) ** 2).sum()))
            found.append((away, j))
        yield sorted(found)[:k]


@st.composite
def searches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images, dimensions = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    q, g = (rng.integers(-2, 3, (n, dimensions)).astype(np.float32) for n in (queries, images))
    times = np.where(rng.random(images) < 0.2, np.nan, rng.integers(0, 5, images))
    allowed = Filter(
        rng.integers(-1, 3, queries) if draw(st.booleans()) else None,
        draw(st.sampled_from([None, 0.0, 2.0])),
        draw(st.sampled_from([None, 3.0, -1.0])),
    )
    return q, g, rng.integers(-1, 3, images), times, draw(st.integers(1, 35)), allowed


@settings(max_examples=100, deadline=None)
@given(searches())
def test_search_equals_a_full_sort(search):
    q, g, cameras, times, k, allowed = search
    index = ExactIndex(g, cameras=cameras, times=times)
    indices, distances = index.search(q, k, allowed=allowed)
    assert indices.shape == distances.shape == (len(q), k)
    assert (indices.dtype, distances.dtype) == (np.int64, np.float32)
    for i, expected in enumerate(naive_search(index, q, k, allowed)):
        found = len(expected)
        assert indices[i].tolist() == [j for _, j in expected] + [-1] * (k - found)
        np.testing.assert_allclose(distances[i, :found], [away for away, _ in expected], rtol=1e-6)
        assert np.isinf(distances[i, found:]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_cosine_search_equals_a_full_sort(seed, k):
    rng = np.random.default_rng(seed)
    q, g = rng.standard_normal((3, 5)), rng.standard_normal((9, 5))
    index = ExactIndex(g, distance="cosine")
    indices, distances = index.search(q, k)
    for i, expected in enumerate(naive_search(index, q, k, Filter())):
        assert indices[i, : len(expected)].tolist() == [j for _, j in expected]
        np.testing.assert_allclose(distances[i, : len(expected)], [away for away, _ in expected], rtol=1e-5, atol=1e-7)


def test_order_of_the_gallery_changes_nothing_but_the_numbers():
    rng = np.random.default_rng(0)
    q, g, cameras = rng.standard_normal((4, 6)), rng.standard_normal((40, 6)), rng.integers(0, 3, 40)
    order = rng.permutation(40)
    allowed = Filter(np.array([0, 1, 2, -1]))
    plain = ExactIndex(g, cameras=cameras).search(q, 7, allowed=allowed)
    shuffled = ExactIndex(g[order], cameras=cameras[order]).search(q, 7, allowed=allowed)
    assert order[shuffled[0]].tolist() == plain[0].tolist()
    np.testing.assert_array_equal(shuffled[1], plain[1])


def test_tensors_are_taken_as_they_are():
    g = torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.bfloat16)
    indices, distances = ExactIndex(g, cameras=torch.tensor([0, 1, 1])).search(torch.tensor([[3.0]]), 2)
    assert indices.tolist() == [[1, 2]]
    assert distances.tolist() == [[1.0, 2.0]]


def test_a_query_is_its_own_nearest_at_distance_zero():
    g = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32) + 3
    for distance in ("euclidean", "cosine"):
        indices, distances = ExactIndex(g, distance=distance).search(g, 1)
        assert indices[:, 0].tolist() == list(range(50))
        assert not distances.any()


def test_fingerprint_follows_the_content():
    g = np.random.default_rng(0).standard_normal((5, 3))
    prints = {
        ExactIndex(g).fingerprint,
        ExactIndex(g + 1e-9).fingerprint,
        ExactIndex(g, cameras=np.zeros(5, int)).fingerprint,
        ExactIndex(g, times=np.zeros(5)).fingerprint,
    }
    assert len(prints) == 4
    assert ExactIndex(g.copy()).fingerprint in prints
    assert ExactIndex(g, fingerprint="known").fingerprint == "known"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": "manhattan"}, "distance must be one of"),
        ({"cameras": [1, 2]}, "gallery cameras must have shape"),
        ({"times": [1.0, 2.0]}, "gallery times must have shape"),
        ({"embeddings": [[1.0, np.nan], [1.0, 2.0]]}, "gallery embedding 0 contains NaN"),
        ({"embeddings": [[1.0, 1.0], [0.0, 0.0]], "distance": "cosine"}, "gallery embedding 1 is all zeros"),
        ({"embeddings": np.empty((0, 2))}, "no gallery embeddings"),
    ],
)
def test_refuses_a_bad_gallery(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExactIndex(**{"embeddings": np.ones((3, 2)), **arguments})


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "message"),
    [
        (np.ones((1, 2)), 0, None, "k must be at least 1"),
        (np.ones((1, 3)), 1, None, "query embeddings have 3 dimensions, gallery embeddings 2"),
        (np.array([[np.inf, 1.0]]), 1, None, "query embedding 0 contains NaN or infinity"),
        (np.ones((1, 2)), 1, Filter(after=1.0), "the gallery has no times"),
        (np.ones((1, 2)), 1, Filter(np.array([1])), "the gallery has no cameras"),
    ],
)
def test_refuses_a_bad_search(queries, k, allowed, message):
    with pytest.raises(GalleryIndexError, match=message):
        ExactIndex(np.ones((3, 2))).search(queries, k, allowed=allowed)


def test_not_cameras_are_one_for_each_query():
    with pytest.raises(ValueError, match="not_cameras must have shape"):
        ExactIndex(np.ones((3, 2)), cameras=np.zeros(3, int)).search(np.ones((2, 2)), 1, allowed=Filter(np.array([1])))


class HalfBlind(ExactIndex):
    """Finds the nearest image and otherwise the farthest ones."""

    def _nearest(self, queries, k, allowed):
        order = np.argsort(((queries[:, None] - self.embeddings) ** 2).sum(2), axis=1)
        return np.concatenate([order[:, :1], order[:, ::-1][:, : k - 1]], axis=1)


def test_recall_is_the_share_of_the_exact_neighbours():
    rng = np.random.default_rng(0)
    q, g = rng.standard_normal((30, 4)), rng.standard_normal((100, 4))
    assert recall_against_exact(ExactIndex(g), q) == 1
    assert recall_against_exact(HalfBlind(g), q, k=4) == 0.25
    assert recall_against_exact(HalfBlind(g), q, k=4, sample=1) == 0.25
    assert recall_against_exact(HalfBlind(g[:4]), q, k=10) == 1  # there are no others
    quality = measure_index(HalfBlind(g), q, k=5, sample=20)
    assert (quality.k, quality.recall, quality.queries) == (5, 0.2, 20)
    assert quality.latency_ms > 0
    assert quality.queries_per_second > 0
    assert str(quality).startswith("recall@5 0.2000 over 20 queries, ")


def test_equally_near_images_are_as_good():
    class Backwards(ExactIndex):
        def _nearest(self, queries, k, allowed):
            return np.tile(np.arange(len(self))[::-1][:k], (len(queries), 1))

    assert recall_against_exact(Backwards(np.ones((9, 2))), np.zeros((1, 2)), k=3) == 1
    with pytest.raises(ValueError, match="sample must be at least 1"):
        recall_against_exact(Backwards(np.ones((9, 2))), np.zeros((1, 2)), sample=0)
