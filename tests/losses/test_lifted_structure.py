"""The lifted structure loss against loops written from Oh Song et al. 2016, equation 4."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import LiftedStructureLoss
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


def naive_lifted_structure(points, labels, margin=1.0):
    rows, names = list(points), labels.tolist()
    pairs = [(i, j) for j in range(len(rows)) for i in range(j) if names[i] == names[j]]
    total = points.sum() * 0
    for i, j in pairs:
        negatives = [
            torch.exp(margin - (rows[end] - rows[k]).norm())
            for end in (i, j)
            for k in range(len(rows))
            if names[k] != names[end]
        ]
        if negatives:
            excess = torch.log(sum(negatives)) + (rows[i] - rows[j]).norm()
            total = total + max(0 * excess, excess) ** 2
    return total / (2 * max(len(pairs), 1))


@pytest.mark.parametrize("margin", [0.0, 1.0])
@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=False))
def test_equals_the_double_loop(batch, margin):
    assert_same_value_and_gradient(
        LiftedStructureLoss(margin), lambda x, y: naive_lifted_structure(x, y, margin), *batch, tolerance=1e-10
    )


@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=True))
def test_equals_the_double_loop_with_equal_rows(batch):
    """To the root of float64's precision, with which the distance matrix knows that two rows are equal."""
    assert_same_value_and_gradient(LiftedStructureLoss(), naive_lifted_structure, *batch, tolerance=1e-6)


@settings(max_examples=10, deadline=None)
@given(batch=batches(degenerate=False))
def test_scales_embeddings_if_asked(batch):
    assert_same_value_and_gradient(
        LiftedStructureLoss(normalize=True),
        lambda x, y: naive_lifted_structure(F.normalize(x), y),
        *batch,
        tolerance=1e-10,
    )


def test_a_pair_that_is_apart_from_its_negatives_costs_nothing():
    embeddings = torch.tensor([[0.0], [1.0], [9.0], [9.5]])
    assert LiftedStructureLoss()(embeddings, torch.tensor([4, 4, 2, 2])).item() == 0


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels):
    assert_zero_with_a_graph(LiftedStructureLoss(), labels)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch(batch, seed):
    assert_does_not_depend_on_the_order(LiftedStructureLoss(), *batch, seed)


@pytest.mark.parametrize("normalize", [False, True])
def test_is_finite_at_extremes(normalize):
    assert_finite_at_extremes(LiftedStructureLoss(normalize=normalize))


@pytest.mark.parametrize("normalize", [False, True])
def test_is_computed_in_full_precision_under_autocast(normalize):
    def naive(embeddings, labels):
        return naive_lifted_structure(F.normalize(embeddings) if normalize else embeddings, labels)

    assert_full_precision_under_autocast(LiftedStructureLoss(normalize=normalize), naive)


def test_is_the_same_bit_for_bit_every_time():
    assert_the_same_bit_for_bit_every_time(LiftedStructureLoss())


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_pytorch_metric_learning(normalize):
    """With the same distances: its default ones are of unit-length embeddings."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    peer = losses.LiftedStructureLoss(neg_margin=1, distance=distances.LpDistance(normalize_embeddings=normalize))
    embeddings, labels = fixed_batch()
    loss = LiftedStructureLoss(normalize=normalize)
    assert loss(embeddings, labels).item() == pytest.approx(peer(embeddings, labels).item(), rel=1e-5)


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan, "soft", None, True])
def test_a_margin_that_makes_no_sense_is_refused(margin):
    with pytest.raises(ValueError, match="margin: expected a number of at least 0"):
        LiftedStructureLoss(margin)


def test_shows_its_switches():
    assert repr(LiftedStructureLoss(0.5)) == "LiftedStructureLoss(margin=0.5, normalize=False)"
