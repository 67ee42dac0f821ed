import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.retrieval import Matches, Search, distance_blocks, recall_at_k, reid_metrics
from bdbnet.retrieval import query_facts as module
from bdbnet.retrieval.query_facts import CameraPairCounter, query_facts, with_distances

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


def naive_facts(naive, q, g, ql, gl, qc, gc):
    """Facts of each query from its sorted list, straight from their definitions."""
    for i, row in enumerate(q):
        listed = naive.order(row, g, [not (gl[j] == ql[i] and gc[j] == qc[i]) for j in range(len(g))])
        places = [place for place, j in enumerate(listed, 1) if gl[j] == ql[i]]
        wrong = [j for j in listed if gl[j] != ql[i]]
        away = {j: np.linalg.norm(row.astype(float) - g[j]) for j in listed}
        match = listed[places[0] - 1] if places else -1
        yield {
            "matches": len(places),
            "ap": np.mean([n / place for n, place in enumerate(places, 1)]) if places else np.nan,
            "inp": len(places) / places[-1] if places else np.nan,
            "first_rank": places[0] if places else -1,
            "last_rank": places[-1] if places else -1,
            "match": match,
            "match_distance": away.get(match, np.nan),
            "negative": wrong[0] if wrong else -1,
            "negative_distance": away[wrong[0]] if wrong else np.nan,
        }


@settings(max_examples=60, deadline=None)
@given(reid_cases(), st.sampled_from([None, TINY_CHUNK]))
def test_facts_equal_their_definitions(naive, case, chunk):
    q, g, ql, gl, qc, gc = case
    facts = query_facts(distance_blocks(q, g, chunk_memory_mb=chunk), Matches(ql, gl, qc, gc))
    facts = with_distances(facts, q, g)
    for i, expected in enumerate(naive_facts(naive, *case)):
        for name, value in expected.items():
            assert getattr(facts, name)[i] == pytest.approx(value, nan_ok=True), name
    right = facts.margin > 0
    assert (facts.first_rank[right] == 1).all()


@settings(max_examples=40, deadline=None)
@given(reid_cases(), st.sampled_from([None, 1, 4]))
def test_their_means_are_the_metrics_to_the_last_digit(case, ap_at):
    q, g, ql, gl, qc, gc = case
    facts = query_facts(Search().blocks(q, g), Matches(ql, gl, qc, gc), ap_at=ap_at)
    valid = facts.matches > 0
    if valid.any():
        metrics = reid_metrics(*case, ranks=(1, 3), ap_at=ap_at)
        assert float(facts.ap[valid].mean()) == metrics["mAP"]
        assert float(facts.inp[valid].mean()) == metrics["mINP"]
        assert [float(np.mean(facts.first_rank[valid] <= k)) for k in (1, 3)] == [metrics["rank1"], metrics["rank3"]]
        assert valid.sum() == metrics["valid_queries"]
    assert np.isnan(facts.ap[~valid]).all()


def test_the_order_of_the_gallery_changes_indices_alone():
    rng = np.random.default_rng(0)
    q, g = rng.standard_normal((9, 4)), rng.standard_normal((31, 4))
    ql, gl, order = rng.integers(0, 5, 9), rng.integers(0, 6, 31), rng.permutation(31)
    facts = query_facts(distance_blocks(q, g), Matches(ql, gl))
    shuffled = query_facts(distance_blocks(q, g[order]), Matches(ql, gl[order]))
    np.testing.assert_array_equal(order[shuffled.match], facts.match)
    np.testing.assert_array_equal(order[shuffled.negative], facts.negative)
    np.testing.assert_array_equal(shuffled.ap, facts.ap)


def test_distances_piece_by_piece_are_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    q, g, labels = rng.standard_normal((7, 4)), rng.standard_normal((9, 4)), np.arange(9)
    facts = query_facts(distance_blocks(q, g), Matches(labels[:7] % 3, labels % 4))
    at_once = with_distances(facts, q, g)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 2)
    np.testing.assert_array_equal(with_distances(facts, q, g).margin, at_once.margin)


def test_a_set_searched_in_itself_leaves_out_the_query():
    rng = np.random.default_rng(1)
    rows, labels = rng.standard_normal((25, 3)), rng.integers(0, 7, 25)
    facts = query_facts(Search().blocks(rows, rows), Matches(labels, labels, same_set=True))
    valid = facts.matches > 0
    assert (facts.match != np.arange(25)).all()
    metrics = recall_at_k(rows, labels, (1, 2))
    assert float(np.mean(facts.first_rank[valid] <= 2)) == metrics["recall@2"]
    assert valid.sum() == metrics["valid_queries"]


def test_cosine_distances_are_real_ones():
    q, g = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    facts = query_facts(distance_blocks(q, g, distance="cosine"), Matches(np.array([7]), np.array([7, 8, 8])))
    facts = with_distances(facts, q, g, distance="cosine")
    assert (facts.match[0], facts.match_distance[0]) == (0, pytest.approx(1))
    assert (facts.negative[0], facts.negative_distance[0]) == (1, 0)
    assert facts.margin[0] == pytest.approx(-1)


@settings(max_examples=40, deadline=None)
@given(reid_cases(), st.sampled_from([None, TINY_CHUNK]))
def test_camera_pairs_are_searches_in_one_camera_s_images(naive, case, chunk):
    q, g, ql, gl, qc, gc = case
    counter = CameraPairCounter(ql, gl, qc, gc)
    facts = query_facts(counter.counted(distance_blocks(q, g, chunk_memory_mb=chunk)), Matches(ql, gl, qc, gc))
    np.testing.assert_array_equal(facts.ap, query_facts(distance_blocks(q, g), Matches(ql, gl, qc, gc)).ap)
    found = counter.result()
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
