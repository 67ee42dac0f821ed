"""The contrastive loss against a double loop written from Hadsell et al. 2006, equation 4."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import ContrastiveLoss
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


def naive_contrastive(points, labels, margin=1.0):
    rows, names = list(points), labels.tolist()
    positives, negatives = [points.sum() * 0], [points.sum() * 0]
    for j in range(len(rows)):
        for i in range(j):
            distance = (rows[i] - rows[j]).norm()
            if names[i] == names[j]:
                positives.append(distance**2 / 2)
            else:
                negatives.append(max(0 * distance, margin - distance) ** 2 / 2)
    return sum(sum(terms) / max(len(terms) - 1, 1) for terms in (positives, negatives))


@pytest.mark.parametrize("margin", [0.0, 1.0, 3.0])
@settings(max_examples=15, deadline=None)
@given(batch=batches(degenerate=False))
def test_equals_the_double_loop(batch, margin):
    assert_same_value_and_gradient(
        ContrastiveLoss(margin), lambda x, y: naive_contrastive(x, y, margin), *batch, tolerance=1e-10
    )


@settings(max_examples=15, deadline=None)
@given(batch=batches(degenerate=True))
def test_equals_the_double_loop_with_equal_rows(batch):
    """To the root of float64's precision, with which the distance matrix knows that two rows are equal."""
    assert_same_value_and_gradient(ContrastiveLoss(), naive_contrastive, *batch, tolerance=1e-6)


@settings(max_examples=15, deadline=None)
@given(batch=batches(degenerate=False))
def test_scales_embeddings_if_asked(batch):
    assert_same_value_and_gradient(
        ContrastiveLoss(normalize=True), lambda x, y: naive_contrastive(F.normalize(x), y), *batch, tolerance=1e-10
    )


def test_each_kind_of_pair_counts_alone():
    embeddings = torch.tensor([[0.0], [0.4]])
    assert ContrastiveLoss()(embeddings, torch.tensor([0, 0])).item() == pytest.approx(0.4**2 / 2)
    assert ContrastiveLoss()(embeddings, torch.tensor([0, 1])).item() == pytest.approx(0.6**2 / 2)


def test_one_image_is_a_zero_with_a_graph():
    assert_zero_with_a_graph(ContrastiveLoss(), [5])


@settings(max_examples=30, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch(batch, seed):
    assert_does_not_depend_on_the_order(ContrastiveLoss(), *batch, seed)


@pytest.mark.parametrize("normalize", [False, True])
def test_is_finite_at_extremes(normalize):
    assert_finite_at_extremes(ContrastiveLoss(normalize=normalize))


@pytest.mark.parametrize("normalize", [False, True])
def test_is_computed_in_full_precision_under_autocast(normalize):
    def naive(embeddings, labels):
        return naive_contrastive(F.normalize(embeddings) if normalize else embeddings, labels)

    assert_full_precision_under_autocast(ContrastiveLoss(normalize=normalize), naive)


def test_is_the_same_bit_for_bit_every_time():
    assert_the_same_bit_for_bit_every_time(ContrastiveLoss())


@pytest.mark.parametrize("margin", [1.0, 9.0])
def test_equals_pytorch_metric_learning_pair_by_pair(margin):
    """That library's terms are not squared, and its mean leaves out the terms that are zero: only its terms are taken."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distance = pytest.importorskip("pytorch_metric_learning.distances").LpDistance(normalize_embeddings=False)
    reducer = pytest.importorskip("pytorch_metric_learning.reducers").DoNothingReducer()
    embeddings, labels = fixed_batch()
    terms = losses.ContrastiveLoss(0, margin, distance=distance, reducer=reducer)(embeddings, labels)
    expected = sum((terms[kind]["losses"] ** 2).mean() / 2 for kind in ("pos_loss", "neg_loss"))
    assert ContrastiveLoss(margin)(embeddings, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan, "soft", None, True])
def test_a_margin_that_makes_no_sense_is_refused(margin):
    with pytest.raises(ValueError, match="margin: expected a number of at least 0"):
        ContrastiveLoss(margin)


def test_shows_its_switches():
    assert repr(ContrastiveLoss(0.5, normalize=True)) == "ContrastiveLoss(margin=0.5, normalize=True)"
