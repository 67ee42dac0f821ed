"""The margin loss against loops written from Wu et al. 2017, section 4, given the drawn negatives; and the drawing."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdbnet.losses import MarginLoss, pair_masks, pairwise_distances
from bdbnet.losses.margin import sampling_probabilities
from loss_batches import batches


def naive_margin(points, labels, triplets, *, alpha=0.2, beta=1.2, normalize=True, nu=0.0):
    """Scalars of autograd, one triplet at a time; ``beta`` is a number or one per identity."""
    rows = [point / max(point.norm().item(), 1e-12) if not point.any() else point / point.norm() for point in points]
    rows = rows if normalize else list(points)
    total, above = points.sum() * 0, 0
    for a, p, n in zip(*(indices.tolist() for indices in triplets)):
        boundary = beta[labels[a]] if isinstance(beta, torch.Tensor) else beta
        for term in (
            alpha + (rows[a] - rows[p]).norm() - boundary,
            alpha - (rows[a] - rows[n]).norm() + boundary,
        ):
            if term.item() > 0:
                total, above = total + term, above + 1
        total = total + nu * boundary
    return total / max(above, 1)


def naive_probabilities(distances: list[float], dimension: int, *, cutoff=0.5, nonzero_loss_cutoff=1.4) -> list[float]:
    """Of one anchor's negatives."""
    logs = []
    for distance in distances:
        d = max(distance, cutoff)
        log_q = (dimension - 2) * math.log(d) + (dimension - 3) / 2 * math.log(1 - d * d / 4) if d < 2 else math.inf
        logs.append(-log_q if distance < nonzero_loss_cutoff else -math.inf)
    if max(logs) == -math.inf:
        return [1 / len(logs)] * len(logs)
    weights = [math.exp(log - max(logs)) for log in logs]
    return [weight / sum(weights) for weight in weights]


def spread(distances: list[float], dimension: int, anchors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Many images of one identity at one point of the sphere, and one identity more at each of the distances from it."""
    negatives = torch.zeros(len(distances), dimension, dtype=torch.float64)
    for row, distance in enumerate(distances):
        cosine = 1 - distance**2 / 2
        negatives[row, 0], negatives[row, 1 + row % (dimension - 1)] = cosine, math.sqrt(1 - cosine**2)
    point = torch.eye(dimension, dtype=torch.float64)[:1].expand(anchors, -1)
    labels = torch.cat([torch.zeros(anchors, dtype=torch.int64), torch.arange(1, 1 + len(distances))])
    return torch.cat([point, negatives]), labels


@pytest.mark.parametrize("normalize", [True, False])
@settings(max_examples=25, deadline=None)
@given(batch=batches(degenerate=False))
def test_equals_the_loops(batch, normalize):
    embeddings, labels = batch
    loss = MarginLoss(normalize=normalize)
    triplets = loss.triplets(embeddings, labels)
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    value = loss(ours, labels)
    expected = naive_margin(theirs, labels, triplets, normalize=normalize)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(batch=batches(degenerate=True), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_equals_the_loops_with_equal_rows_and_zero_vectors(batch, dtype):
    embeddings, labels = batch
    # Zero is at distance 1 from every point of the sphere: with 0.2 and 1.2 its terms would be rounding around zero.
    loss = MarginLoss(0.3, 1.1)
    embeddings = embeddings.to(dtype).requires_grad_()
    triplets = loss.triplets(embeddings, labels)
    value = loss(embeddings, labels)
    value.backward()
    # Equal rows are at distance zero only up to the square root of the precision.
    tolerance = 1e-7 if dtype == torch.float64 else 2e-3
    expected = naive_margin(embeddings.detach().double(), labels, triplets, alpha=0.3, beta=1.1)
    assert value.item() == pytest.approx(expected.item(), abs=tolerance)
    assert torch.isfinite(embeddings.grad).all()


@settings(max_examples=25, deadline=None)
@given(batch=batches(degenerate=False), per_class=st.booleans())
def test_a_learnt_beta_equals_the_loops(batch, per_class):
    embeddings, labels = batch
    loss = MarginLoss(0.3, 1.0, learn_beta=True, num_classes=6 if per_class else None, nu=0.05).double()
    with torch.no_grad():
        loss.beta.add_(torch.linspace(-0.2, 0.2, len(loss.beta)))
    theirs = loss.beta.detach().clone().requires_grad_()
    expected = naive_margin(
        embeddings,
        labels,
        loss.triplets(embeddings, labels),
        alpha=0.3,
        beta=theirs if per_class else theirs.expand(6),
        nu=0.05,
    )
    value = loss(embeddings, labels)
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    value.backward()
    if expected.requires_grad:
        expected.backward()
        torch.testing.assert_close(loss.beta.grad, theirs.grad, rtol=0, atol=1e-10)
    else:
        assert not loss.beta.grad.any()


@settings(max_examples=25, deadline=None)
@given(batch=batches(degenerate=True))
def test_every_ordered_positive_pair_gets_one_negative(batch):
    embeddings, labels = batch
    anchors, positives, negatives = MarginLoss().triplets(embeddings, labels)
    identities = len(labels.unique())
    expected = [
        (a, p)
        for a in range(len(labels))
        for p in range(len(labels))
        if a != p and labels[a] == labels[p] and identities > 1
    ]
    assert list(zip(anchors.tolist(), positives.tolist())) == expected
    assert (labels[anchors] != labels[negatives]).all()


@pytest.mark.parametrize(
    ("dimension", "distances"),
    [
        (3, [0.2, 0.5, 0.8, 1.1, 1.39, 1.5, 2.0]),
        (16, [0.5, 0.52, 0.55, 0.6, 0.7, 1.0, 1.41]),
        (512, [0.9 + k / 512 for k in range(8)]),
        (1024, [1.2 + k / 512 for k in range(8)] + [1.45]),
        (4096, [0.8 + k / 8192 for k in range(8)] + [1.9]),
        (512, [1.41, 1.5, 1.6, 1.7]),
    ],
    ids=["3", "16", "512", "1024", "4096", "all far"],
)
def test_draws_in_proportion_to_one_over_the_density(dimension, distances):
    """80,000 draws: no frequency is five standard deviations off its probability."""
    embeddings, labels = spread(distances, dimension, 284)
    anchors, _, negatives = MarginLoss(seed=3).triplets(embeddings, labels)
    drawn = torch.bincount(negatives[anchors < 284] - 284, minlength=len(distances))
    total = int(drawn.sum())
    assert total == 284 * 283
    for count, probability in zip(drawn.tolist(), naive_probabilities(distances, dimension)):
        deviation = math.sqrt(total * probability * (1 - probability))
        assert abs(count - total * probability) <= 5 * deviation, (count / total, probability)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dimension", [2, 3, 128, 512, 1024, 4096])
def test_probabilities_neither_over_nor_underflow(dimension, dtype):
    """At 4,096 dimensions weights span exp(4000), and one matrix-wide shift would leave most anchors with nothing."""
    generator = torch.Generator().manual_seed(0)
    distances = 2 * torch.rand(40, 40, generator=generator, dtype=torch.float64)
    distances[0] = 1.5 + distances[0] / 4  # an anchor without a near negative
    distances[1] = 1.2 + distances[1] / 20  # one whose negatives are all beyond 1.2
    labels = torch.arange(40) // 4
    _, negative = pair_masks(labels)
    ours = sampling_probabilities(distances.to(dtype), negative, dimension)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(40, dtype=dtype))
    for anchor in range(40):
        theirs = naive_probabilities(distances[anchor][negative[anchor]].tolist(), dimension)
        theirs = torch.tensor(theirs, dtype=torch.float64)
        atol = 1e-10 if dtype == torch.float64 else 2e-3
        torch.testing.assert_close(ours[anchor][negative[anchor]].double(), theirs, rtol=0, atol=atol)
        assert not ours[anchor][~negative[anchor]].any()


@pytest.mark.parametrize("end", [0.0, 1 - 2**-24])
def test_the_ends_of_the_random_numbers_draw_negatives_too(end, monkeypatch):
    """Once in millions of draws: with an off-by-one they would land on an image of probability zero, or a row off."""
    embeddings, labels = spread([1.5, 0.6, 1.9, 0.7, 1.6], 8, 3)
    monkeypatch.setattr(MarginLoss, "_uniform", lambda self, amount, device: torch.full((amount,), end).double())
    for order in (torch.arange(8), torch.arange(8).flip(0), torch.tensor([3, 0, 4, 1, 5, 2, 6, 7])):
        _, _, negatives = MarginLoss().triplets(embeddings[order], labels[order])
        assert set(labels[order][negatives].tolist()) <= {2, 4}  # the two within the cutoff


def test_the_largest_distance_may_be_drawn():
    distances = torch.tensor([[0.0, 2.0, 1.9999999]])
    probabilities = sampling_probabilities(distances, torch.tensor([[False, True, True]]), 1024, nonzero_loss_cutoff=2)
    assert probabilities.tolist() == [[0, 0, 1]]


def batch_of(images: int, dimension: int = 16, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(images, dimension, generator=torch.Generator().manual_seed(seed)), torch.arange(images) // 4


def sequence(loss: MarginLoss, steps: int) -> list[torch.Tensor]:
    embeddings, labels = batch_of(32)
    drawn = []
    for _ in range(steps):
        drawn.append(loss.triplets(embeddings, labels)[2])
        loss(embeddings, labels)
    return drawn


def test_seed_and_step_alone_choose_the_draws():
    first, again, other = (sequence(MarginLoss(seed=seed), 4) for seed in (5, 5, 6))
    torch.manual_seed(99)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not any(torch.equal(first[0], later) for later in first[1:])


def test_the_measured_negatives_are_those_announced():
    embeddings, labels = batch_of(32)
    embeddings = embeddings.double()
    loss = MarginLoss()
    for _ in range(3):
        expected = naive_margin(embeddings, labels, loss.triplets(embeddings, labels))
        assert loss(embeddings, labels).item() == pytest.approx(expected.item(), abs=1e-10)


def test_a_checkpoint_restores_the_sequence():
    loss = MarginLoss(seed=5)
    sequence(loss, 3)
    resumed = MarginLoss(seed=5)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert all(map(torch.equal, sequence(loss, 3), sequence(resumed, 3)))
    assert resumed.step.item() == 6
    assert resumed.step.dtype == torch.int64


def test_eval_does_not_advance_the_sequence():
    loss = MarginLoss().eval()
    first, second = sequence(loss, 2)
    assert torch.equal(first, second)
    assert loss.step.item() == 0


def test_normalisation_off_draws_on_the_sphere_all_the_same():
    embeddings, labels = batch_of(32)
    stretched = embeddings * torch.linspace(0.1, 30, 32)[:, None]
    for on, off in zip(
        MarginLoss().triplets(embeddings, labels), MarginLoss(normalize=False).triplets(stretched, labels)
    ):
        assert torch.equal(on, off)
    assert MarginLoss()(stretched, labels).item() == pytest.approx(MarginLoss()(embeddings, labels).item(), abs=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [5]], ids=["one identity", "no positives", "one image"])
@pytest.mark.parametrize("options", [{}, {"learn_beta": True, "nu": 0.1}, {"learn_beta": True, "num_classes": 6}])
def test_without_a_valid_pair_it_is_a_zero_with_a_graph(labels, options):
    embeddings = torch.randn(len(labels), 3, requires_grad=True)
    loss = MarginLoss(**options)
    value = loss(embeddings, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))
    assert all(not parameter.grad.any() for parameter in loss.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1e16])
@pytest.mark.parametrize("dimension", [2, 4096])
@pytest.mark.parametrize("normalize", [True, False])
def test_is_finite_at_extremes(scale, dimension, normalize):
    embeddings = (torch.randn(8, dimension, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = MarginLoss(normalize=normalize)(embeddings, torch.arange(8) // 2)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_identical_embeddings_cost_the_boundary_and_have_no_gradient():
    embeddings = torch.full((8, 5), 3.7, requires_grad=True)
    loss = MarginLoss()(embeddings, torch.arange(8) // 2)
    loss.backward()
    assert loss.item() == pytest.approx(1.4, abs=1e-6)  # the negatives' terms alone: alpha - 0 + beta
    torch.testing.assert_close(embeddings.grad, torch.zeros_like(embeddings), rtol=0, atol=1e-5)


def test_is_computed_in_float32_under_autocast():
    embeddings, labels = batch_of(16, 64)
    outside = MarginLoss()(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = MarginLoss()(embeddings, labels)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    half = embeddings.bfloat16()
    assert torch.equal(MarginLoss()(half, labels), MarginLoss()(half.float(), labels))


def test_the_gradient_is_the_same_bit_for_bit_every_time():
    """Also with several threads, where sums in the order in which threads arrive would differ from run to run."""

    def gradients() -> torch.Tensor:
        embeddings, labels = batch_of(64, 1024)
        embeddings = embeddings.relu().requires_grad_()
        loss = MarginLoss(learn_beta=True, num_classes=16)
        loss(embeddings, labels).backward()
        return torch.cat([embeddings.grad.flatten(), loss.beta.grad])

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradients()
        assert all(torch.equal(gradients(), first) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("options", [{}, {"learn_beta": True}, {"learn_beta": True, "num_classes": 8, "nu": 0.1}])
def test_equals_pytorch_metric_learning_for_the_same_triplets(options):
    """Its own drawing is not compared: it shifts all anchors' logarithms by one number, so weights underflow.

    A learnt global beta is compared without nu, which that library does not divide by the number of terms.
    """
    peer = pytest.importorskip("pytorch_metric_learning.losses").MarginLoss(**options)
    embeddings, labels = batch_of(32)
    loss = MarginLoss(**options)
    triplets = loss.triplets(embeddings, labels)
    assert loss(embeddings, labels).item() == pytest.approx(peer(embeddings, labels, triplets).item(), abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_network_draws_negatives_without_an_index_error(value):
    embeddings, labels = batch_of(32)
    embeddings[2, 1] = value
    for loss in (MarginLoss(), MarginLoss(normalize=False)):
        anchors, _, negatives = loss.triplets(embeddings, labels)
        assert (labels[anchors] != labels[negatives]).all()
        loss(embeddings, labels)


@pytest.mark.parametrize("learn_beta", [True, False])
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_without_a_beta_are_refused(label, learn_beta):
    with pytest.raises(ValueError, match=r"labels.*0 \.\. 3"):
        MarginLoss(learn_beta=learn_beta, num_classes=4)(torch.randn(4, 3), torch.tensor([0, 0, 1, label]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"beta": math.nan}, "beta"),
        ({"beta": "1.2"}, "beta"),
        ({"nu": -1.0, "learn_beta": True}, "nu"),
        ({"nu": 0.1}, "nu"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 7.0}, "num_classes"),
        ({"cutoff": 0}, "cutoff"),
        ({"cutoff": 1.5}, "cutoff"),
        ({"nonzero_loss_cutoff": 2.1}, "nonzero_loss_cutoff"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        MarginLoss(**options)


def test_its_description_has_all_switches():
    text = repr(MarginLoss(learn_beta=True, num_classes=7, nu=0.01))
    for part in ("alpha=0.2", "learnt", "nu=0.01", "num_classes=7", "normalize=True", "cutoff=0.5", "seed=0"):
        assert part in text


def test_distances_of_the_sphere_reach_the_drawing():
    """The cutoff counts on the unit sphere, whatever the length of the embeddings."""
    embeddings, labels = spread([0.6, 1.5], 8, 3)
    scaled = embeddings * 50
    assert pairwise_distances(scaled).max() > 2
    _, _, negatives = MarginLoss(normalize=False).triplets(scaled, labels)
    assert negatives.unique().tolist() == [3]
