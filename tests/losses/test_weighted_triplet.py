"""The weighted regularised triplet loss against loops written from Ye et al., equations 12 and 13."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import WeightedTripletLoss
from loss_batches import (
    assert_does_not_depend_on_the_order,
    assert_finite_at_extremes,
    assert_same_value_and_gradient,
    assert_zero_with_a_graph,
    batches,
)


def naive(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    terms = []
    for a in range(len(labels)):
        far, near = [], []
        for i in range(len(labels)):
            squared = (embeddings[a] - embeddings[i]).square().sum()
            distance = squared.sqrt() if squared > 0 else squared * 0
            if i != a:
                (far if labels[i] == labels[a] else near).append(distance)
        if far and near:
            positive = sum(d * d.exp() for d in far) / sum(d.exp() for d in far)
            negative = sum(d * (-d).exp() for d in near) / sum((-d).exp() for d in near)
            terms.append(torch.log1p((positive - negative).exp()))
    return torch.stack(terms).mean() if terms else embeddings.sum() * 0


@settings(max_examples=30, deadline=None)
@given(batch=batches(degenerate=False))
def test_equals_the_loops(batch):
    assert_same_value_and_gradient(WeightedTripletLoss(), naive, *batch, tolerance=1e-7)


@settings(max_examples=15, deadline=None)
@given(batch=batches(degenerate=True))
def test_equal_images_count_as_any_others(batch):
    embeddings, labels = batch
    assert WeightedTripletLoss()(*batch).item() == pytest.approx(naive(embeddings, labels).item(), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order(batch, seed):
    assert_does_not_depend_on_the_order(WeightedTripletLoss(), *batch, seed)


def test_is_finite_at_extremes():
    assert_finite_at_extremes(WeightedTripletLoss())


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [5]])
def test_without_both_pairs_it_is_a_zero_with_a_graph(labels):
    assert_zero_with_a_graph(WeightedTripletLoss(), labels)


def test_is_float32_under_autocast_and_compiles():
    embeddings, labels = torch.randn(8, 4).bfloat16(), torch.arange(8) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert WeightedTripletLoss()(embeddings, labels).dtype == torch.float32
    compiled = torch.compile(WeightedTripletLoss(), fullgraph=True, backend="eager")
    assert math.isfinite(compiled(embeddings.float(), labels).item())
