"""The quadruplet loss against loops over all quadruplets, written from Chen et al. 2017, equation 5.

pytorch-metric-learning has no quadruplet loss to compare with.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import BatchHardTripletLoss, QuadrupletLoss
from loss_batches import (
    assert_does_not_depend_on_the_order,
    assert_finite_at_extremes,
    assert_full_precision_under_autocast,
    assert_same_value_and_gradient,
    assert_the_same_bit_for_bit_every_time,
    assert_zero_with_a_graph,
    batches,
    value_and_gradient,
)


def naive_quadruplet(points, labels, alpha1=1.0, alpha2=0.5):
    """Each anchor's worst term among its triplets, and among its quadruplets."""
    rows, names = list(points), labels.tolist()
    images = range(len(rows))
    distance = {(i, j): (rows[i] - rows[j]).norm() for i in images for j in images if i != j}
    number = {pair: length.item() for pair, length in distance.items()}
    near, far = [points.sum() * 0], [points.sum() * 0]
    for a in images:
        positives = [(a, p) for p in images if p != a and names[p] == names[a]]
        negatives = [(a, n) for n in images if names[n] != names[a]]
        others = [(k, m) for k, m in number if len({names[a], names[k], names[m]}) == 3]
        for terms, alpha, second in ((near, alpha1, negatives), (far, alpha2, others)):
            hardest = max(((number[p] - number[q], p, q) for p in positives for q in second), default=None)
            if hardest:
                term = alpha + distance[hardest[1]] - distance[hardest[2]]
                terms.append(max(0 * term, term))
    return sum(sum(terms) / max(len(terms) - 1, 1) for terms in (near, far))


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (1.0, 0.5), (0.3, 3.0)])
@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=False))
def test_equals_the_loop_over_quadruplets(batch, alphas):
    assert_same_value_and_gradient(
        QuadrupletLoss(*alphas), lambda x, y: naive_quadruplet(x, y, *alphas), *batch, tolerance=1e-10
    )


@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=True))
def test_equals_the_loop_over_quadruplets_with_equal_rows(batch):
    """The value alone: of several hardest pairs either may have the gradient."""
    expected = naive_quadruplet(*batch).item()
    value, gradient = value_and_gradient(QuadrupletLoss(), *batch)
    assert value == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(gradient).all()


@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=False))
def test_scales_embeddings_if_asked(batch):
    assert_same_value_and_gradient(
        QuadrupletLoss(normalize=True), lambda x, y: naive_quadruplet(F.normalize(x), y), *batch, tolerance=1e-10
    )


@pytest.mark.parametrize(("identity", "places", "distance"), [(5, [50, 50], 1), (7, [20], 2), (8, [21], 3)])
def test_the_second_term_takes_the_nearest_pair_of_two_other_identities(identity, places, distance):
    """That of 7 and 8 for an anchor of neither, of 8 and 9 for an anchor of 7, of 7 and 9 for an anchor of 8."""
    embeddings = torch.tensor([20.0, 21.0, 23.0, *places])[:, None]
    labels = torch.tensor([7, 8, 9] + [identity] * len(places))
    assert QuadrupletLoss(0.0, 100.0)(embeddings, labels).item() == 100 - distance


def test_with_two_identities_it_is_the_batch_hard_triplet_loss():
    embeddings = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 1, 0])
    triplet = BatchHardTripletLoss(0.7)(embeddings, labels).item()
    assert QuadrupletLoss(0.7, 9.0)(embeddings, labels).item() == pytest.approx(triplet, rel=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels):
    assert_zero_with_a_graph(QuadrupletLoss(), labels)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch(batch, seed):
    assert_does_not_depend_on_the_order(QuadrupletLoss(), *batch, seed)


@pytest.mark.parametrize("normalize", [False, True])
def test_is_finite_at_extremes(normalize):
    assert_finite_at_extremes(QuadrupletLoss(normalize=normalize))


@pytest.mark.parametrize("normalize", [False, True])
def test_is_computed_in_full_precision_under_autocast(normalize):
    def naive(embeddings, labels):
        return naive_quadruplet(F.normalize(embeddings) if normalize else embeddings, labels)

    assert_full_precision_under_autocast(QuadrupletLoss(normalize=normalize), naive)


def test_is_the_same_bit_for_bit_every_time():
    assert_the_same_bit_for_bit_every_time(QuadrupletLoss())


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "soft", None, True])
@pytest.mark.parametrize("argument", ["alpha1", "alpha2"])
def test_a_margin_that_makes_no_sense_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected a number of at least 0"):
        QuadrupletLoss(**{argument: value})


def test_shows_its_switches():
    assert repr(QuadrupletLoss(2, 1)) == "QuadrupletLoss(alpha1=2.0, alpha2=1.0, normalize=False)"
