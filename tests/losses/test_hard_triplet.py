"""The batch-hard triplet loss against a double loop written from Hermans et al. 2017, equation 5."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet import losses
from bdbnet.losses import BatchHardTripletLoss, pairwise_distances


def naive_batch_hard(embeddings: list[list[float]], labels: list[int], margin: float | str) -> float:
    terms = []
    for a, anchor in enumerate(embeddings):
        positives = [math.dist(anchor, x) for i, x in enumerate(embeddings) if labels[i] == labels[a] and i != a]
        negatives = [math.dist(anchor, x) for i, x in enumerate(embeddings) if labels[i] != labels[a]]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            terms.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, gap + margin))
    return sum(terms) / len(terms) if terms else 0.0


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups of 1 to 7 images per identity, in any order."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    labels = torch.tensor([identity for identity, size in enumerate(sizes) for _ in range(size)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = torch.randperm(len(labels), generator=generator)
    embeddings = torch.randn(len(labels), draw(st.integers(1, 9)), generator=generator, dtype=torch.float64)
    return embeddings, labels[order]


@pytest.mark.parametrize("margin", ["soft", 0.0, 0.3])
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_equals_the_double_loop(batch, margin):
    embeddings, labels = batch
    loss = BatchHardTripletLoss(margin)
    expected = naive_batch_hard(embeddings.tolist(), labels.tolist(), margin)
    assert loss(embeddings, labels).item() == pytest.approx(expected, abs=1e-10)
    assert loss(embeddings.float(), labels).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch(batch, seed):
    embeddings, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = BatchHardTripletLoss()
    assert loss(embeddings[order], labels[order]).item() == pytest.approx(loss(embeddings, labels).item(), abs=1e-12)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    embeddings = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda x: BatchHardTripletLoss()(x, labels), embeddings)
    assert torch.autograd.gradcheck(lambda x: BatchHardTripletLoss(0.5, normalize=True)(x, labels), embeddings)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels):
    embeddings = torch.randn(len(labels), 3, requires_grad=True)
    loss = BatchHardTripletLoss()(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_an_empty_batch_is_a_zero():
    assert BatchHardTripletLoss().forward(torch.zeros(1, 3)[:1], torch.zeros(1)).item() == 0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e16])
@pytest.mark.parametrize("dimension", [2, 4096])
def test_is_finite_at_extremes(scale, dimension):
    embeddings = (torch.randn(8, dimension, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = BatchHardTripletLoss()(embeddings, torch.arange(8) // 2)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_identical_embeddings_have_zero_distance_and_zero_gradient():
    embeddings = torch.full((6, 5), 3.7, requires_grad=True)
    pairwise_distances(embeddings).sum().backward()
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    # Far from the origin bfloat16 products would lose the differences altogether.
    embeddings = 100 + torch.randn(16, 64)
    labels = torch.arange(16) // 4
    outside = BatchHardTripletLoss()(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = BatchHardTripletLoss()(embeddings, labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert inside.item() == pytest.approx(naive_batch_hard(embeddings.tolist(), labels.tolist(), "soft"), abs=1e-5)


@pytest.mark.parametrize("margin", [-0.1, "hard", None, True])
def test_a_margin_that_makes_no_sense_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        BatchHardTripletLoss(margin)


def test_the_gradient_is_the_same_bit_for_bit_every_time():
    """Also with several threads, where sums in the order in which threads arrive would differ from run to run."""

    def gradient() -> torch.Tensor:
        embeddings = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)).requires_grad_()
        BatchHardTripletLoss()(embeddings, torch.arange(64) // 4).backward()
        return embeddings.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(50))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["BatchHardTripletLoss", "LiftedStructureLoss", "MarginLoss", "HistogramLoss", "ContrastiveLoss",
                                  "QuadrupletLoss", "NPairsLoss"])  # fmt: skip
def test_a_network_that_diverged_shows_in_every_loss(name):
    embeddings = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    embeddings[3, 2] = torch.nan
    assert not torch.isfinite(getattr(losses, name)()(embeddings, torch.arange(8) // 2))
