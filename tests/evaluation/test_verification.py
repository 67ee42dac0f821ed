import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from bdbnet.evaluation import verification as module
from bdbnet.evaluation.verification import (
    PairCounts,
    at_false_positive_rate,
    coarse_histogram,
    equal_error,
    pair_distances,
    roc_points,
)
from bdbnet.retrieval import Matches, distance_blocks

TINY_CHUNK = 1e-3  # MiB: a few queries at a time


def case(seed: int, queries: int = 17, images: int = 43, spread: float = 1.0):
    """Identities around centres of their own, three cameras, and distractors that share the label -1."""
    rng = np.random.default_rng(seed)
    ql, gl = rng.integers(0, 8, queries), rng.integers(0, 8, images)
    centres = spread * rng.standard_normal((8, 4))
    q, g = (centres[labels] + rng.standard_normal((len(labels), 4)) for labels in (ql, gl))
    gl[rng.random(images) < 0.2] = -1
    return q, g, ql, gl, rng.integers(0, 3, queries), rng.integers(0, 3, images)


def counted(q, g, ql, gl, qc=None, gc=None, *, seed=0, chunk=None, same_set=False):
    blocks = distance_blocks(q, g, absolute=True, chunk_memory_mb=chunk)
    return pair_distances(blocks, Matches(ql, gl, qc, gc, same_set=same_set), seed=seed)


def naive_pairs(q, g, ql, gl, qc, gc):
    """(distance, is positive, query, gallery image) of all pairs that count, by double loop."""
    return [
        (np.linalg.norm(a - b), ql[i] == gl[j], i, j)
        for i, a in enumerate(q)
        for j, b in enumerate(g)
        if not (ql[i] == gl[j] and qc[i] == gc[j])
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, TINY_CHUNK]), st.sampled_from([2**20, 50]))
def test_every_share_below_a_threshold_is_exact(seed, chunk, at_once):
    data = case(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS_AT_ONCE", at_once)
        counts = counted(*data, chunk=chunk).everything
    pairs = naive_pairs(*data)
    right, wrong = (np.array([d for d, positive, *_ in pairs if positive is kind]) for kind in (np.True_, np.False_))
    assert counts.positives.sum() == len(right)
    assert counts.negatives.sum() == len(wrong)
    true, false = counts.rates()
    for threshold, a, b in zip(counts.thresholds, true, false):
        # Embeddings in float64 are put into bins as float32.
        assert a == np.mean(right.astype(np.float32) < threshold)
        assert b == np.mean(wrong.astype(np.float32) < threshold)
        assert counts.rates_at(threshold) == (a, b)
    assert counts.rates_at(0.0) == (0, 0)
    distances = np.sort([d for d, *_ in pairs])
    below = counts.thresholds[np.searchsorted(counts.thresholds, distances.astype(np.float32), "right")]
    assert (below / distances < 1 + 2**-11).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_curve_is_that_of_scikit_learn(seed):
    data = case(seed, 30, 60)
    counts = counted(*data).everything
    pairs = naive_pairs(*data)
    false, true, _ = roc_curve([p for _, p, *_ in pairs], [-d for d, *_ in pairs], drop_intermediate=False)
    reached = np.array([true[np.searchsorted(false, f, "right") - 1] for f in counts.rates()[1]])
    # Neighbours in one bin can't be told apart; there are few of them, of about a hundred pairs of one identity.
    assert np.abs(counts.rates()[0] - reached).max() < 0.1
    rate, point = equal_error(counts)
    crossing = int(np.argmin(np.abs(1 - true - false)))
    assert rate == pytest.approx((1 - true[crossing] + false[crossing]) / 2, abs=0.03)
    assert point.false_positive_rate == pytest.approx(rate, abs=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 99))
def test_halves_share_no_identity_and_no_distractor(seed, split):
    data = case(seed)
    _, _, ql, gl, _, _ = data
    found = counted(*data, seed=split)
    query_half, gallery_half = module._halves(ql, gl, split)
    for identity in np.unique(ql):
        assert len({*query_half[ql == identity], *gallery_half[gl == identity]}) == 1
    sizes = [len(np.unique(ql[query_half == half])) for half in (0, 1)]
    assert abs(sizes[0] - sizes[1]) <= 1
    strangers = gallery_half[~np.isin(gl, ql)]
    assert abs(np.sum(strangers == 0) - np.sum(strangers == 1)) <= 1
    pairs = naive_pairs(*data)
    for half, counts in enumerate((found.first, found.second)):
        inside = [(d, p) for d, p, i, j in pairs if query_half[i] == gallery_half[j] == half]
        assert counts.positives.sum() == sum(p for _, p in inside)
        assert counts.negatives.sum() == sum(not p for _, p in inside)
        cut = counts.thresholds[len(counts.thresholds) // 2]
        assert counts.negatives[: len(counts.thresholds) // 2 + 1].sum() == sum(
            not p and np.float32(d) < cut for d, p in inside
        )


def test_of_the_next_camera_alone_every_pair_counts_once():
    """Images that are left out may be of other identities, and lie in the other half."""
    q, g, ql, gl, qc, gc = case(3)
    blocks = distance_blocks(q, g, absolute=True)
    counts = pair_distances(blocks, Matches(ql, gl, qc, gc, next_camera=True))
    there = gc == qc[:, None] + 1
    same = ql[:, None] == gl
    assert counts.everything.positives.sum() == (there & same).sum()
    assert counts.everything.negatives.sum() == (there & ~same).sum()
    assert all((part.negatives >= 0).all() for part in counts)
    distances = np.linalg.norm(q[:, None] - g, axis=2).astype(np.float32)
    true, false = counts.everything.rates()
    assert false[7] == np.mean(distances[there & ~same] < counts.everything.thresholds[7])
    assert true[7] == np.mean(distances[there & same] < counts.everything.thresholds[7])


def test_a_set_searched_in_itself_counts_every_pair_from_both_sides():
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((13, 3)), rng.integers(0, 4, 13)
    counts = counted(rows, rows, labels, labels, same_set=True).everything
    same = sum(labels[i] == labels[j] for i in range(13) for j in range(i))
    assert counts.positives.sum() == 2 * same
    assert counts.negatives.sum() == 13 * 12 - 2 * same
    assert counts.thresholds[0] > 0.01  # nobody was compared with itself


def test_the_order_of_the_pairs_does_not_matter():
    q, g, ql, gl, qc, gc = case(5)
    order = np.random.default_rng(0).permutation(len(g))
    here = counted(q, g, ql, gl, qc, gc).everything
    there = counted(q, g[order], ql, gl[order], qc, gc[order]).everything
    for a, b in zip(here, there):
        np.testing.assert_array_equal(a, b)


def test_a_negative_zero_is_a_zero():
    blocks = [(0, np.array([[-0.0, 0.0, 2.0]], np.float32))]
    counts = pair_distances(blocks, Matches(np.array([1]), np.array([1, 2, 2])))
    assert counts.everything.positives.tolist() == [1, 0]
    assert counts.everything.negatives.tolist() == [1, 1]


def counts_of(positives, negatives) -> PairCounts:
    return PairCounts(np.arange(1.0, len(positives) + 1), np.array(positives), np.array(negatives))


@pytest.mark.parametrize(
    ("positives", "negatives", "rate", "threshold"),
    [
        ([4, 0, 0], [0, 0, 9], 0.0, 1),  # apart
        ([0, 2, 2], [2, 2, 0], 0.75, 2),  # the wrong way round: on the line from (0.5, 1) to (1, 0.5)
        ([3, 0, 1, 0], [0, 1, 0, 3], 0.25, 2),
        ([5], [7], 0.5, 1),  # all at one distance
    ],
)
def test_equal_error_rate(positives, negatives, rate, threshold):
    found, point = equal_error(counts_of(positives, negatives))
    assert found == pytest.approx(rate)
    assert point.threshold == threshold


def test_the_point_of_a_false_positive_rate():
    counts = counts_of([5, 3, 1, 1], [0, 1, 4, 995])
    assert at_false_positive_rate(counts, 1e-3) == (2.0, 0.8, 0.001)
    assert at_false_positive_rate(counts, 0.004).threshold == 2
    assert at_false_positive_rate(counts, 0.005).threshold == 3
    with pytest.raises(ValueError, match=r"rate of 0\.0001 needs 10,000 negative pairs, there are 1,000"):
        at_false_positive_rate(counts, 1e-4)
    with pytest.raises(ValueError, match=r"more than 0\.001 of the negative pairs are at the smallest distance"):
        at_false_positive_rate(counts_of([5, 3], [500, 500]), 1e-3)


@pytest.mark.parametrize(
    ("positives", "negatives", "name"), [([0, 0], [1, 2], "positive"), ([1, 2], [0, 0], "negative")]
)
def test_without_pairs_of_a_kind_there_are_no_rates(positives, negatives, name):
    for ask in (PairCounts.rates, equal_error, roc_points, lambda counts: counts.rates_at(1.0)):
        with pytest.raises(ValueError, match=f"there are no {name} pairs"):
            ask(counts_of(positives, negatives))


def test_few_points_stand_for_the_whole_curve():
    rng = np.random.default_rng(0)
    counts = counts_of(np.sort(rng.integers(0, 50, 5000))[::-1], np.sort(rng.integers(0, 90, 5000)))
    false, true = roc_points(counts, 100)
    assert 40 < len(false) <= 100
    assert (np.diff(false) > 0).all()
    assert (np.diff(true) >= 0).all()
    assert (false[-1], true[-1]) == (1, 1)
    every_true, every_false = counts.rates()
    for f, t in zip(false, true):
        assert t == every_true[every_false == f].max()
    assert len(roc_points(counts_of([1, 2, 3], [1, 0, 5]))[0]) == 2


def test_coarse_histogram_shares_out_all_pairs():
    edges, right, wrong = coarse_histogram(counted(*case(3)).everything, 20)
    assert len(edges) == 21
    assert right.sum() == pytest.approx(1)
    assert wrong.sum() == pytest.approx(1)
    middle = (edges[1:] + edges[:-1]) / 2
    assert right @ middle < wrong @ middle
