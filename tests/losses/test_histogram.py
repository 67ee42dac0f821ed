"""The histogram loss against loops written from Ustinova and Lempitsky 2016, equations 1 to 4."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import HistogramLoss
from loss_batches import batches


def naive_histogram(points: torch.Tensor, labels: torch.Tensor, bins: int, *, normalize: bool = True) -> torch.Tensor:
    """Scalars of autograd: one unordered pair, one node at a time, without the publication's sorting."""
    rows = [point / point.norm() if normalize and point.any() else point for point in points]
    step = 2 / (bins - 1)
    nodes = [-1 + step * r for r in range(bins)]
    similarities = {True: [], False: []}
    for i in range(len(rows)):
        for j in range(i):
            similarities[labels[i].item() == labels[j].item()].append((rows[i] * rows[j]).sum().clamp(-1, 1))

    def histogram(values: list[torch.Tensor]) -> list[torch.Tensor | float]:
        heights: list[torch.Tensor | float] = []
        for node in nodes:
            near = [value for value in values if abs(value.item() - node) < step]
            heights.append(sum(1 - (value - node).abs() / step for value in near) / len(values))
        return heights

    loss = points.sum() * 0
    if similarities[True] and similarities[False]:
        below = 0.0
        for positive, negative in zip(histogram(similarities[True]), histogram(similarities[False])):
            below = below + positive
            loss = loss + negative * below
    return loss


@settings(max_examples=30, deadline=None)
@given(batch=batches(degenerate=False), bins=st.sampled_from([2, 3, 11, 150]), normalize=st.booleans())
def test_equals_the_loops(batch, bins, normalize):
    embeddings, labels = batch
    if not normalize:
        embeddings = embeddings / (1.1 * embeddings.norm(dim=1).max())
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    value = HistogramLoss(bins, normalize=normalize)(ours, labels)
    expected = naive_histogram(theirs, labels, bins, normalize=normalize)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    single = HistogramLoss(bins, normalize=normalize)(embeddings.float(), labels)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected.item(), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(batch=batches(degenerate=True), bins=st.sampled_from([2, 3, 150]))
def test_equals_the_loops_with_equal_rows_and_zero_vectors(batch, bins):
    embeddings, labels = batch
    embeddings.requires_grad_()
    value = HistogramLoss(bins)(embeddings, labels)
    value.backward()
    assert value.item() == pytest.approx(naive_histogram(embeddings.detach(), labels, bins).item(), abs=1e-10)
    assert torch.isfinite(embeddings.grad).all()


@settings(max_examples=20, deadline=None)
@given(batch=batches(degenerate=True), seed=st.integers(0, 1000))
def test_does_not_depend_on_the_order_of_the_batch_or_the_names(batch, seed):
    embeddings, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = HistogramLoss()
    shuffled = loss(embeddings[order], 1000 - 3 * labels[order])
    assert shuffled.item() == pytest.approx(loss(embeddings, labels).item(), abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(batch=batches(degenerate=True))
def test_is_a_probability(batch):
    value = HistogramLoss()(*batch).item()
    assert -1e-12 <= value <= 1 + 1e-12


@pytest.mark.parametrize("order", ["right", "wrong"])
def test_is_zero_where_all_pairs_are_in_order_and_one_where_none_is(order):
    axes = torch.eye(4).repeat(3, 1)
    labels = torch.arange(12) % 4 if order == "right" else torch.arange(12) // 4
    if order == "wrong":
        axes, labels = axes[[0, 1, 4, 5]], torch.tensor([0, 0, 1, 1])
    # Right: positives at 1, negatives at 0. Wrong: positives at 0, negatives at 0 or 1.
    assert HistogramLoss(101)(axes, labels).item() == pytest.approx(0 if order == "right" else 1, abs=1e-6)


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    embeddings = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda x: HistogramLoss(20)(x, labels), embeddings)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels):
    embeddings = torch.randn(len(labels), 3, requires_grad=True)
    loss = HistogramLoss()(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1e16])
@pytest.mark.parametrize("dimension", [2, 4096])
@pytest.mark.parametrize("normalize", [True, False])
def test_is_finite_at_extremes(scale, dimension, normalize):
    embeddings = (torch.randn(8, dimension, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = HistogramLoss(normalize=normalize)(embeddings, torch.arange(8) // 2)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarities_that_rounding_puts_beyond_one_stay_in_the_last_bin(dtype):
    """Identical embeddings: all pairs at 1, where a random positive is as similar as a random negative."""
    for dimension in (3, 7, 1000):
        embeddings = torch.full((8, dimension), 3.7, dtype=dtype, requires_grad=True)
        loss = HistogramLoss()(embeddings, torch.arange(8) // 2)
        loss.backward()
        assert loss.item() == pytest.approx(1, abs=1e-6)
        assert torch.isfinite(embeddings.grad).all()


def test_dot_products_beyond_one_are_clamped_and_keep_their_gradient():
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.3], [2.0, 0.4]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    loss = HistogramLoss(5, normalize=False)(embeddings, labels)  # negatives 2 and 1.92, both counted as 1
    loss.backward()
    assert loss.item() == pytest.approx(naive_histogram(embeddings, labels, 5, normalize=False).item(), abs=1e-6)
    assert embeddings.grad[2].any()


def test_is_computed_in_float32_under_autocast():
    embeddings = 1 + torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) // 4
    outside = HistogramLoss()(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HistogramLoss()(embeddings, labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    half = embeddings.bfloat16()
    assert torch.equal(HistogramLoss()(half, labels), HistogramLoss()(half.float(), labels))


def test_a_diverged_network_gives_nan_instead_of_an_index_error():
    assert HistogramLoss()(torch.full((4, 3), torch.nan), torch.tensor([0, 0, 1, 1])).isnan()


def test_the_gradient_is_the_same_bit_for_bit_every_time():
    """Also with several threads, where sums in the order in which threads arrive would differ from run to run."""

    def gradient() -> torch.Tensor:
        embeddings = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)).requires_grad_()
        HistogramLoss()(embeddings, torch.arange(64) // 4).backward()
        return embeddings.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("bins", [51, 101, 151])
def test_equals_pytorch_metric_learning(bins):
    """Its ``n_bins`` counts the gaps between nodes. It takes pairs of valid triplets alone, so every identity here has
    two images or more; and a similarity of exactly 1 is beyond its last bin, so no two rows here are equal."""
    peer = pytest.importorskip("pytorch_metric_learning.losses").HistogramLoss(n_bins=bins - 1)
    embeddings = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(20) // 4
    assert HistogramLoss(bins)(embeddings, labels).item() == pytest.approx(peer(embeddings, labels).item(), abs=1e-5)


@pytest.mark.parametrize("bins", [1, 0, -5, 2.5, "150", None, True])
def test_bins_that_make_no_sense_are_refused(bins):
    with pytest.raises(ValueError, match="bins"):
        HistogramLoss(bins)


def test_its_description_has_all_switches():
    assert repr(HistogramLoss(101, normalize=False)) == "HistogramLoss(bins=101, normalize=False)"
