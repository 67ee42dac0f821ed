"""The N-pair loss against loops written from Sohn 2016, equation 6, with means over the images of the other identities."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import NPairsLoss
from loss_batches import (
    assert_does_not_depend_on_the_order,
    assert_finite_at_extremes,
    assert_full_precision_under_autocast,
    assert_same_value_and_gradient,
    assert_the_same_bit_for_bit_every_time,
    assert_zero_with_a_graph,
    batches,
    fixed_batch,
)


def naive_npairs(points, labels, l2_weight=0.001, raw=None):
    """``raw``: the embeddings whose lengths are penalised, if not the same."""
    raw = points if raw is None else raw
    rows, names = list(points), labels.tolist()
    images = range(len(rows))
    terms, used = [points.sum() * 0], []
    for a in images:
        positives = [p for p in images if p != a and names[p] == names[a]]
        others = [[n for n in images if names[n] == name] for name in set(names) - {names[a]}]
        if positives and others:
            used.append(raw[a] @ raw[a])
            for p in positives:
                tuplet = sum(sum(torch.exp(rows[a] @ (rows[n] - rows[p])) for n in c) / len(c) for c in others)
                terms.append(torch.log1p(tuplet))
    return sum(terms) / max(len(terms) - 1, 1) + l2_weight * sum(used) / max(len(used), 1)


@pytest.mark.parametrize("l2_weight", [0.0, 0.3])
@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_equals_the_loops(batch, l2_weight):
    assert_same_value_and_gradient(
        NPairsLoss(l2_weight=l2_weight), lambda x, y: naive_npairs(x, y, l2_weight), *batch, tolerance=1e-10
    )


@settings(max_examples=15, deadline=None)
@given(batch=batches(degenerate=False))
def test_scales_embeddings_if_asked_but_penalises_their_length_before(batch):
    assert_same_value_and_gradient(
        NPairsLoss(normalize=True), lambda x, y: naive_npairs(F.normalize(x), y, raw=x), *batch, tolerance=1e-10
    )


def test_bounds_the_mean_of_the_published_loss_over_all_draws():
    """Two images each of three identities: the positives of the other two can be drawn in four ways."""
    x, labels = fixed_batch(6, 5, per_identity=2)
    x = x.double() / 3
    published = []
    for anchor in range(6):
        first, second = ([i for i in range(6) if labels[i] == c] for c in range(3) if c != labels[anchor])
        for n in first:
            for m in second:
                tuplet = sum(torch.exp(x[anchor] @ (x[negative] - x[anchor ^ 1])) for negative in (n, m))
                published.append(torch.log1p(tuplet))
    mean = sum(published).item() / len(published)
    assert mean < NPairsLoss(l2_weight=0.0)(x, labels).item() < mean * 1.2


def test_a_negative_far_ahead_of_the_positive_is_exact_to_the_last_digits():
    embeddings = torch.tensor([[1.0], [-1.0], [20.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(21)) + math.log1p(math.exp(-19))) / 2
    assert NPairsLoss(l2_weight=0.0)(embeddings, torch.tensor([0, 0, 1])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels):
    assert_zero_with_a_graph(NPairsLoss(l2_weight=0.5), labels)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch(batch, seed):
    assert_does_not_depend_on_the_order(NPairsLoss(), *batch, seed)


@pytest.mark.parametrize("normalize", [False, True])
def test_is_finite_at_extremes(normalize):
    assert_finite_at_extremes(NPairsLoss(normalize=normalize))


@pytest.mark.parametrize("normalize", [False, True])
def test_is_computed_in_full_precision_under_autocast(normalize):
    def naive(embeddings, labels):
        return naive_npairs(F.normalize(embeddings) if normalize else embeddings, labels, l2_weight=0)

    assert_full_precision_under_autocast(NPairsLoss(l2_weight=0.0, normalize=normalize), naive)


def test_is_the_same_bit_for_bit_every_time():
    assert_the_same_bit_for_bit_every_time(NPairsLoss())


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_pytorch_metric_learning_where_the_images_of_an_identity_coincide(normalize):
    """That library takes one pair of each identity and drops the rest, so both agree where all its pairs are the same.

    Its products are of unit-length embeddings by default, and its penalty is the length, not the square: left out here.
    """
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    peer = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=normalize))
    embeddings, labels = fixed_batch(8, 16, per_identity=1)
    embeddings, labels = embeddings.repeat_interleave(3, dim=0) / 3, labels.repeat_interleave(3)
    loss = NPairsLoss(l2_weight=0.0, normalize=normalize)
    assert loss(embeddings, labels).item() == pytest.approx(peer(embeddings, labels).item(), rel=1e-5)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan, "soft", None, True])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ValueError, match="l2_weight: expected a number of at least 0"):
        NPairsLoss(l2_weight=weight)


def test_shows_its_switches():
    assert repr(NPairsLoss(l2_weight=0.5)) == "NPairsLoss(l2_weight=0.5, normalize=False)"
