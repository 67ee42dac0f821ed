import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import (
    KReciprocal,
    Matches,
    QueryExpansion,
    Search,
    expand_queries,
    k_reciprocal_rerank,
    positive_ranks,
    rank_queries,
    rankings,
    recall_at_k,
    reid_metrics,
    top_k,
)
from bdbnet.retrieval.rankings import QueryFacts

TINY_CHUNK = 1e-3  # MiB: a few queries at a time


@st.composite
def reid_cases(draw):
    """Whole-numbered embeddings in few dimensions, so that distances are exact and often equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, images, dimensions = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 5))
    identities, cameras, spread = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(0, 3))

    def side(count):
        rows = rng.integers(-spread, spread + 1, (count, dimensions)).astype(np.float32)
        return rows, rng.integers(0, identities, count), rng.integers(0, cameras, count)

    (q, ql, qc), (g, gl, gc) = side(queries), side(images)
    gl[rng.random(images) < draw(st.sampled_from([0.0, 0.3]))] = -5  # distractors
    return q, g, ql, gl, qc, gc


def shuffled_case(seed=0, queries=23, images=61, dimensions=7):
    rng = np.random.default_rng(seed)
    q, g = (rng.standard_normal((n, dimensions)) for n in (queries, images))
    ql, gl = rng.integers(0, 8, queries), rng.integers(0, 9, images)
    return q, g, ql, gl, rng.integers(0, 3, queries), rng.integers(0, 3, images)


def facts_of(q, g, matches, search=None, **options) -> QueryFacts:
    found = rank_queries(q, g, matches, search, facts=True, **options).facts
    assert found is not None
    return found


def naive_facts(naive, q, g, ql, gl, qc, gc):
    """Facts of each query from its sorted list, straight from their definitions."""
    for i, row in enumerate(q):
        listed = naive.order(row, g, [not (gl[j] == ql[i] and gc[j] == qc[i]) for j in range(len(g))])
        places = [place for place, j in enumerate(listed, 1) if gl[j] == ql[i]]
        wrong = [j for j in listed if gl[j] != ql[i]]
        away = {j: np.linalg.norm(row.astype(float) - g[j]) for j in listed}
        match = listed[places[0] - 1] if places else -1
        r = len(places)
        yield (
            listed,
            {
                "matches": r,
                "ap": np.mean([n / place for n, place in enumerate(places, 1)]) if places else np.nan,
                "inp": r / places[-1] if places else np.nan,
                "map_at_r": sum(n / place for n, place in enumerate(places, 1) if place <= r) / r if places else np.nan,
                "r_precision": sum(place <= r for place in places) / r if places else np.nan,
                "first_rank": places[0] if places else -1,
                "last_rank": places[-1] if places else -1,
                "match": match,
                "match_distance": away.get(match, np.nan),
                "negative": wrong[0] if wrong else -1,
                "negative_distance": away[wrong[0]] if wrong else np.nan,
            },
        )


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.sampled_from([None, TINY_CHUNK]), st.integers(1, 45))
def test_one_pass_gives_what_sorted_lists_say(naive, case, chunk, k):
    q, g, ql, gl, qc, gc = case
    search = Search(chunk_memory_mb=chunk)
    found = rank_queries(q, g, Matches(ql, gl, qc, gc), search, top_k=k, facts=True, camera_pairs=True)
    for i, (listed, expected) in enumerate(naive_facts(naive, *case)):
        for name, value in expected.items():
            assert getattr(found.facts, name)[i] == pytest.approx(value, nan_ok=True), name
        shown = listed[:k]
        missing = k - len(shown)
        assert found.top_k.indices[i].tolist() == shown + [-1] * missing
        assert found.top_k.distances[i].tolist() == pytest.approx(
            [*np.linalg.norm(g[shown].astype(float) - q[i], axis=1), *[np.inf] * missing]
        )
    right = found.facts.margin > 0
    assert (found.facts.first_rank[right] == 1).all()
    check_camera_pairs(naive, case, found.camera_pairs)


def check_camera_pairs(naive, case, found):
    """They are searches in one camera's images."""
    q, g, ql, gl, qc, gc = case
    for a, camera in enumerate(found.query_cameras):
        for b, other in enumerate(found.gallery_cameras):
            asked, shown = qc == camera, gc == other
            expected = naive.reid(q[asked], g[shown], ql[asked], gl[shown], qc[asked], gc[shown])
            if expected is None:
                assert found.queries[a, b] == 0
                assert np.isnan([found.rank1[a, b], found.mean_ap[a, b]]).all()
            else:
                assert found.queries[a, b] == expected["valid_queries"]
                assert found.rank1[a, b] == pytest.approx(expected["rank1"])
                assert found.mean_ap[a, b] == pytest.approx(expected["mAP"])


SEARCHES = {
    "plain": Search(),
    "cosine": Search("cosine"),
    "expanded": Search(query_expansion=QueryExpansion(2, 1.0)),
    "re-ranked": Search(rerank={"k1": 5, "k2": 2}),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("same_set", [False, True])
def test_what_is_asked_for_together_is_what_is_asked_for_alone(name, same_set):
    q, g, ql, gl, qc, gc = shuffled_case()
    if same_set:
        q, ql, qc = g, gl, gc
    matches = Matches(ql, gl, qc, gc, same_set=same_set)
    together = rank_queries(q, g, matches, SEARCHES[name], top_k=4, facts=True, camera_pairs=True)
    for options in ({"top_k": 4}, {"facts": True}, {"camera_pairs": True}):
        alone = rank_queries(q, g, matches, SEARCHES[name], **options)
        np.testing.assert_array_equal(alone.ranks.ranks, together.ranks.ranks)
        for one, other in zip(alone[1:], together[1:], strict=True):
            for a, b in zip(one or (), other or ()):
                np.testing.assert_array_equal(a, b)
        assert [part is None for part in alone[1:]].count(False) == 1
    if same_set:
        assert (together.facts.match != np.arange(len(q))).all()
        assert (together.top_k.indices != np.arange(len(q))[:, None]).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_order_of_queries_and_of_gallery_changes_places_alone(name):
    q, g, ql, gl, qc, gc = shuffled_case()
    rng = np.random.default_rng(1)
    asked, shown = rng.permutation(len(q)), rng.permutation(len(g))
    found = rank_queries(q, g, Matches(ql, gl, qc, gc), SEARCHES[name], top_k=5, facts=True)
    shuffled = rank_queries(
        q[asked], g[shown], Matches(ql[asked], gl[shown], qc[asked], gc[shown]), SEARCHES[name], top_k=5, facts=True
    )
    places = np.append(shown, -1)
    np.testing.assert_array_equal(places[shuffled.top_k.indices], found.top_k.indices[asked])
    for field in ("match", "negative"):
        np.testing.assert_array_equal(places[getattr(shuffled.facts, field)], getattr(found.facts, field)[asked])
    np.testing.assert_array_equal(shuffled.facts.ap, found.facts.ap[asked])
    np.testing.assert_allclose(shuffled.facts.margin, found.facts.margin[asked], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(reid_cases(), st.sampled_from([None, 1, 4]))
def test_means_of_the_facts_are_the_metrics_to_the_last_digit(case, ap_at):
    q, g, ql, gl, qc, gc = case
    facts = facts_of(q, g, Matches(ql, gl, qc, gc), ap_at=ap_at)
    valid = facts.matches > 0
    if valid.any():
        metrics = reid_metrics(*case, ranks=(1, 3), ap_at=ap_at)
        assert float(facts.ap[valid].mean()) == metrics["mAP"]
        assert float(facts.inp[valid].mean()) == metrics["mINP"]
        assert [float(facts.hits(k)[valid].mean()) for k in (1, 3)] == [metrics["rank1"], metrics["rank3"]]
        assert valid.sum() == metrics["valid_queries"]
    for values in (facts.ap, facts.inp, facts.map_at_r, facts.r_precision, facts.hits(1)):
        assert np.isnan(values[~valid]).all()


def test_distances_of_the_facts_are_those_that_were_ranked_by():
    q, g, ql, gl, qc, gc = shuffled_case()
    matches = Matches(ql, gl, qc, gc)
    reranked = k_reciprocal_rerank(q, g, k1=5, k2=2)
    facts = facts_of(q, g, matches, SEARCHES["re-ranked"])
    there = facts.match >= 0
    np.testing.assert_array_equal(facts.match_distance[there], reranked[there, facts.match[there]])
    expanded = expand_queries(q, g, QueryExpansion(2, 1.0))
    facts = facts_of(q, g, matches, SEARCHES["expanded"])
    away = np.linalg.norm(expanded - g[facts.negative], axis=1)
    np.testing.assert_allclose(facts.negative_distance, away, rtol=1e-12)
    # ... but those of the lists are of the embeddings as they are.
    nearest = rank_queries(q, g, matches, SEARCHES["expanded"], top_k=1).top_k
    np.testing.assert_allclose(nearest.distances[:, 0], np.linalg.norm(q - g[nearest.indices[:, 0]], axis=1))


def test_distances_piece_by_piece_are_the_same(monkeypatch):
    q, g, ql, gl, _, _ = shuffled_case()
    at_once = rank_queries(q, g, Matches(ql, gl), top_k=3, facts=True)
    monkeypatch.setattr(rankings, "_PAIRS_AT_ONCE", 2)
    in_pieces = rank_queries(q, g, Matches(ql, gl), top_k=3, facts=True)
    np.testing.assert_array_equal(in_pieces.facts.margin, at_once.facts.margin)
    np.testing.assert_array_equal(in_pieces.top_k.distances, at_once.top_k.distances)


def test_a_set_searched_in_itself_leaves_out_the_query():
    rng = np.random.default_rng(1)
    rows, labels = rng.standard_normal((25, 3)), rng.integers(0, 7, 25)
    facts = facts_of(rows, rows, Matches(labels, labels, same_set=True))
    valid = facts.matches > 0
    assert (facts.match != np.arange(25)).all()
    metrics = recall_at_k(rows, labels, (1, 2))
    assert float(np.mean(facts.first_rank[valid] <= 2)) == metrics["recall@2"]
    assert valid.sum() == metrics["valid_queries"]


def test_cosine_distances_are_real_ones():
    q, g = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    facts = facts_of(q, g, Matches(np.array([7]), np.array([7, 8, 8])), Search("cosine"))
    assert (facts.match[0], facts.match_distance[0]) == (0, pytest.approx(1))
    assert (facts.negative[0], facts.negative_distance[0]) == (1, 0)
    assert facts.margin[0] == pytest.approx(-1)


def test_queries_for_which_nothing_counts_have_empty_lists():
    q, g = np.zeros((2, 1)), np.array([[1.0], [2.0]])
    matches = Matches(np.array([3, 4]), np.array([3, 3]), np.array([0, 0]), np.array([0, 0]))
    found = rank_queries(q, g, matches, top_k=3, facts=True, camera_pairs=True)
    assert found.ranks.counts.tolist() == [0, 0]
    assert found.top_k.indices.tolist() == [[-1, -1, -1], [0, 1, -1]]
    assert np.isinf(found.top_k.distances[0]).all()
    assert found.facts.negative.tolist() == [-1, 0]
    assert np.isnan(found.facts.negative_distance).tolist() == [True, False]
    assert found.camera_pairs.queries.tolist() == [[0]]


def test_nothing_but_ranks_is_kept_unless_it_is_asked_for():
    q, g, ql, gl, qc, gc = shuffled_case()
    matches = Matches(ql, gl, qc, gc)
    found = rank_queries(q, g, matches)
    assert found[1:] == (None, None, None)
    expected = positive_ranks(Search().blocks(q, g), matches)
    np.testing.assert_array_equal(found.ranks.ranks, expected.ranks)


def test_re_ranking_runs_once_whatever_is_asked_for(monkeypatch):
    calls = []
    encode = rankings.Search.order
    monkeypatch.setattr(rankings.Search, "order", lambda *given: calls.append(1) or encode(*given))
    q, g, ql, gl, qc, gc = shuffled_case()
    search = Search(rerank=KReciprocal(5, 2))
    rank_queries(q, g, Matches(ql, gl, qc, gc), search, top_k=3, facts=True, camera_pairs=True)
    assert len(calls) == 1


def test_no_matrix_of_queries_and_gallery_is_held():
    rng = np.random.default_rng(0)
    q, g = rng.standard_normal((1000, 3)), rng.standard_normal((4000, 3))
    ql, gl, qc, gc = (rng.integers(0, most, len(side)) for most in (200, 3) for side in (q, g))
    search = Search(chunk_memory_mb=0.5)
    tracemalloc.start()
    try:
        rank_queries(q, g, Matches(ql, gl, qc, gc), search, top_k=5, facts=True, camera_pairs=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < q.itemsize * len(q) * len(g) / 10


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_nan_is_refused_by_row(side):
    q, g, ql, gl, _, _ = shuffled_case()
    (q if side == "query" else g)[3, 1] = np.nan
    with pytest.raises(ValueError, match=f"{side} embedding 3 contains NaN"):
        rank_queries(q, g, Matches(ql, gl), top_k=2, facts=True)


def test_pairs_of_cameras_need_cameras():
    q, g, ql, gl, _, _ = shuffled_case()
    with pytest.raises(ValueError, match="need the cameras of queries and gallery"):
        rank_queries(q, g, Matches(ql, gl), camera_pairs=True)


def test_top_k_is_the_same_pass():
    q, g, ql, gl, qc, gc = shuffled_case()
    found = rank_queries(q, g, Matches(ql, gl, qc, gc), top_k=6).top_k
    tags = {"query_labels": ql, "gallery_labels": gl, "query_cameras": qc, "gallery_cameras": gc}
    for ours, theirs in zip(found, top_k(torch.from_numpy(q), torch.from_numpy(g), 6, **tags), strict=True):
        np.testing.assert_array_equal(ours, theirs)
