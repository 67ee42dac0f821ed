import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries


def naive_expansion(query, gallery, k, alpha, distance, same_set):
    def unit(vector):
        return vector / np.sqrt(sum(x * x for x in vector))

    expanded = []
    for i, q in enumerate(query):
        keys = []
        for j, g in enumerate(gallery):
            if same_set and i == j:
                continue
            away = -(unit(q) @ unit(g)).round(12) if distance == "cosine" else sum((q - g) ** 2)
            keys.append((away, j))
        total, weights = (unit(q) if distance == "cosine" else q).copy(), 1.0
        for _, j in sorted(keys)[:k]:
            weight = max(unit(q) @ unit(gallery[j]), 0) ** alpha if alpha else 1.0
            total += weight * (unit(gallery[j]) if distance == "cosine" else gallery[j])
            weights += weight
        expanded.append(total / weights)
    return np.array(expanded)


@st.composite
def searches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    same_set = draw(st.booleans())
    queries, images = draw(st.integers(2, 9)), draw(st.integers(1, 30))
    # In general position: equal cosines of different vectors come out in either order.
    q, g = (rng.standard_normal((n, 3)) for n in (queries, images))
    if same_set:
        g = q
    k = draw(st.integers(1, len(g) - same_set))
    return q, g, same_set, k


@settings(max_examples=80, deadline=None)
@given(
    searches(),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([None, 5e-4]),
)
def test_equals_the_definition(search, alpha, distance, chunk):
    q, g, same_set, k = search
    found = expand_queries(q, g, QueryExpansion(k, alpha), distance=distance, same_set=same_set, chunk_memory_mb=chunk)
    np.testing.assert_allclose(found, naive_expansion(q, g, k, alpha, distance, same_set), atol=1e-10)


def test_ties_are_taken_in_gallery_order():
    gallery = np.array([[0.0, 2.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    found = expand_queries(np.zeros((1, 2)), gallery, QueryExpansion(k=2))
    assert found.tolist() == [[0.0, 2 / 3]]


def test_the_query_itself_is_no_neighbour_in_its_own_set_but_its_copies_are():
    x = np.array([[0.0], [3.0], [0.0], [9.0]])
    found = expand_queries(x, x, QueryExpansion(k=1), same_set=True)
    assert found.tolist() == [[0.0], [1.5], [0.0], [6.0]]


def test_images_on_the_other_side_have_no_weight():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0], [3.0, 3.0]])
    found = expand_queries(query, gallery, QueryExpansion(k=2, alpha=2.0))
    np.testing.assert_allclose(found, [[(1 + 0.5 * 3) / 1.5, 0.5 * 3 / 1.5]])


def test_many_neighbours_are_averaged_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 4), dtype=np.float32) for n in (30, 50))
    whole = expand_queries(q, g, QueryExpansion(k=20))
    monkeypatch.setattr("bdbnet.retrieval.query_expansion._IMAGES_MB", 0)
    np.testing.assert_array_equal(expand_queries(q, g, QueryExpansion(k=20)), whole)
    assert whole.dtype == np.float32


def test_tensors_of_half_precision_are_widened():
    rng = np.random.default_rng(0)
    q, g = (torch.from_numpy(rng.standard_normal((n, 4))).half() for n in (3, 9))
    found = expand_queries(q, g, QueryExpansion(k=2))
    np.testing.assert_array_equal(found, expand_queries(q.float(), g.float(), QueryExpansion(k=2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k of query expansion"),
        ({"k": 1.5}, "got 1.5"),
        ({"alpha": -1.0}, "alpha of query expansion"),
        ({"alpha": float("nan")}, "got nan"),
    ],
)
def test_refuses_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        QueryExpansion(**options)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {}, "k=3 needs as many gallery images, but there are 2: choose a smaller k"),
        (3, {"same_set": True}, "besides the query, but there are 2"),
        (4, {"same_set": True}, "one size, got 3 and 4"),
        (4, {"distance": "manhattan"}, "distance"),
    ],
)
def test_refuses_sets_that_do_not_fit(count, options, message):
    with pytest.raises(ValueError, match=message):
        expand_queries(np.ones((3, 2)), np.ones((count, 2)), QueryExpansion(k=3), **options)


def test_refuses_zeros_where_cosines_are_needed():
    gallery = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert expand_queries(gallery[:1], gallery, QueryExpansion(k=2)).shape == (1, 2)
    with pytest.raises(ValueError, match="gallery embedding 1 is all zeros"):
        expand_queries(gallery[:1], gallery, QueryExpansion(k=2, alpha=1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_queries_stay_on_the_device():
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 4), dtype=np.float32) for n in (5, 50))
    found = expand_queries(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), QueryExpansion(k=3, alpha=1.0))
    assert found.device.type == "cuda"
    np.testing.assert_allclose(found.cpu(), expand_queries(q, g, QueryExpansion(k=3, alpha=1.0)), atol=1e-5)
