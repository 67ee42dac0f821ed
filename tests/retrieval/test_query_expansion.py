import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import Search, rank_queries, reid_metrics
from bdbnet.retrieval.matches import Matches
from bdbnet.retrieval.query_expansion import QueryExpansion, expand_queries, expand_sets


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
        ({"gallery": 1}, "gallery of query expansion must be true or false, got 1"),
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


@settings(max_examples=60, deadline=None)
@given(
    searches(),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from([None, 5e-4]),
)
def test_an_expanded_gallery_equals_the_definition(search, alpha, distance, chunk):
    """Each image's mean with its k nearest among the queries and the gallery, itself not among them."""
    q, g, same_set, k = search
    both = q if same_set else np.concatenate([q, g])
    expected = naive_expansion(both, both, k, alpha, distance, same_set=True)
    asked, shown = expand_sets(
        q, g, QueryExpansion(k, alpha, gallery=True), distance=distance, same_set=same_set, chunk_memory_mb=chunk
    )
    np.testing.assert_allclose(asked, expected[: len(q)], atol=1e-10)
    np.testing.assert_allclose(shown, expected if same_set else expected[len(q) :], atol=1e-10)
    assert (asked is shown) == same_set


def test_ranks_as_an_expansion_of_all_images_by_hand_does():
    """As fast-reid: unit vectors, of each image the qe_k = k + 1 nearest of all, itself first, weighted by cosine ** alpha."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 12, 90)
    x = 0.7 * rng.standard_normal((12, 8))[labels] + rng.standard_normal((90, 8))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = []
    for similarities in unit @ unit.T:
        nearest = np.argsort(-similarities, kind="stable")[:5]
        means.append((similarities[nearest, None] ** 3 * unit[nearest]).mean(axis=0))
    expanded = np.array(means)
    tags = labels[:20], labels[20:], None, None
    expected = reid_metrics(expanded[:20], expanded[20:], *tags, distance="cosine")
    found = reid_metrics(x[:20], x[20:], *tags, distance="cosine", query_expansion=QueryExpansion(4, 3.0, gallery=True))
    assert found == pytest.approx(expected, abs=1e-12)
    assert found != reid_metrics(x[:20], x[20:], *tags, distance="cosine", query_expansion=QueryExpansion(4, 3.0))


def test_facts_are_of_the_expanded_gallery():
    q, g = np.array([[0.0], [10.0]]), np.array([[1.0], [3.0], [12.0]])
    matches = Matches(np.array([0, 1]), np.array([0, 0, 1]))
    facts = rank_queries(q, g, matches, Search(query_expansion=QueryExpansion(1, gallery=True)), facts=True).facts
    # Means with the nearest of all: 0.5 and 11 of the queries, 0.5, 2 and 11 of the gallery.
    assert facts.match_distance.tolist() == [0.0, 0.0]
    assert facts.negative_distance.tolist() == [10.5, 9.0]


def test_a_set_expanded_as_a_whole_can_be_re_ranked_in_itself():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3))
    matches = Matches(np.arange(12) // 3, np.arange(12) // 3, same_set=True)
    by_hand = expand_sets(x, x, QueryExpansion(2), same_set=True)[0]
    rerank = {"k1": 4, "k2": 2}
    whole = Search(query_expansion=QueryExpansion(2, gallery=True), rerank=rerank)
    expected = rank_queries(by_hand, by_hand, matches, Search(rerank=rerank)).ranks
    assert rank_queries(x, x, matches, whole).ranks.ranks.tolist() == expected.ranks.tolist()
    with pytest.raises(ValueError, match="gallery: true"):
        rank_queries(x, x, matches, Search(query_expansion=QueryExpansion(2), rerank=rerank))


def test_neighbours_among_all_images_may_be_as_many_as_there_are():
    q, g = np.ones((2, 1)), np.ones((2, 1))
    assert expand_queries(q, g, QueryExpansion(3, gallery=True)).shape == (2, 1)
    with pytest.raises(
        ValueError, match="k=4 needs as many images of queries and gallery besides the query, but there are 3"
    ):
        expand_queries(q, g, QueryExpansion(4, gallery=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_queries_stay_on_the_device():
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 4), dtype=np.float32) for n in (5, 50))
    found = expand_queries(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), QueryExpansion(k=3, alpha=1.0))
    assert found.device.type == "cuda"
    np.testing.assert_allclose(found.cpu(), expand_queries(q, g, QueryExpansion(k=3, alpha=1.0)), atol=1e-5)
