"""The sum of metric and softmax losses against the formulas written out."""

import math

import pytest
import torch

from bdbnet.losses import BatchHardTripletLoss
from bdbnet.losses.center import CenterLoss
from bdbnet.models import BranchOutput
from bdbnet.training.criterion import BranchLosses, LossError


def naive_smoothed_softmax(logits: list[list[float]], labels: list[int], smoothing: float) -> float:
    """Cross-entropy against a target of 1 - s on the identity plus s / C on every class (Szegedy et al. 2016)."""
    total = 0.0
    for row, label in zip(logits, labels):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for place, value in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing if place == label else 0)
            total -= target * (value - log_sum)
    return total / len(labels)


@pytest.fixture
def outputs() -> dict[str, BranchOutput]:
    torch.manual_seed(0)
    return {
        name: BranchOutput(torch.randn(6, dim, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64))
        for name, dim in (("global", 4), ("dropping", 7))
    }


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_branch_has_both_losses(outputs, smoothing):
    triplet = BatchHardTripletLoss()
    criterion = BranchLosses(triplet, name="triplet", metric_weight=2.0, softmax_weight=0.5, label_smoothing=smoothing)
    total, parts = criterion(outputs, LABELS)
    assert set(parts) == {"triplet_global", "softmax_global", "triplet_dropping", "softmax_dropping"}
    expected = 0.0
    for name, output in outputs.items():
        softmax = naive_smoothed_softmax(output.logits.tolist(), LABELS.tolist(), smoothing)
        assert parts[f"softmax_{name}"].item() == pytest.approx(softmax, abs=1e-10)
        assert parts[f"triplet_{name}"].item() == triplet(output.embedding, LABELS).item()
        expected += 2 * parts[f"triplet_{name}"].item() + 0.5 * softmax
    assert total.item() == pytest.approx(expected, abs=1e-10)


def test_without_a_metric_loss_the_softmax_is_left(outputs):
    total, parts = BranchLosses(None)(outputs, LABELS)
    assert set(parts) == {"softmax_global", "softmax_dropping"}
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()))


def test_a_head_without_logits_or_embedding_takes_part_with_the_other(outputs):
    mixed = {
        "a": BranchOutput(outputs["global"].embedding, None),
        "b": BranchOutput(None, outputs["dropping"].logits),
    }
    assert set(BranchLosses(BatchHardTripletLoss(), name="t")(mixed, LABELS)[1]) == {"t_a", "softmax_b"}


def test_is_float32_under_autocast():
    torch.manual_seed(0)
    output = {"global": BranchOutput(torch.randn(6, 4).bfloat16(), torch.randn(6, 3).bfloat16())}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = BranchLosses(BatchHardTripletLoss())(output, LABELS)
    assert total.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in parts.values())


@pytest.mark.parametrize(
    "settings",
    [{"metric_weight": -1}, {"label_smoothing": 1.0}, {"softmax_weight": 0}, {"softmax_weight": 0, "metric_weight": 0}],
)
def test_nothing_to_train_with_is_refused(settings):
    with pytest.raises(ValueError):
        BranchLosses(None, **settings)


def vector(embeddings, labels):
    return embeddings.square().sum(1)


def number(embeddings, labels):
    return 3.0


def failing(embeddings, labels):
    return embeddings @ labels.double()[:2]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (vector, r"vector returned shape \(6,\); expected a scalar"),
        (number, r"number returned a float; expected a scalar"),
        (failing, r"failing fails on embeddings \(6, 4\) and labels \(6,\): RuntimeError"),
    ],
)
def test_a_metric_loss_that_gives_no_scalar_is_named(metric, said, outputs):
    with pytest.raises(LossError, match=said):
        BranchLosses(metric)(outputs, LABELS)


@pytest.mark.parametrize("metric", [lambda embeddings: 0, lambda embeddings, labels, images: 0, torch.nn.ReLU(), 3])
def test_a_metric_loss_of_another_signature_is_refused_before_training(metric):
    with pytest.raises(LossError, match=r"expected loss\(embeddings \(N, D\), labels \(N,\)\)"):
        BranchLosses(metric)


def test_every_branch_may_have_a_loss_of_its_own(outputs):
    class Scaled(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.full((dim,), 2.0, dtype=torch.float64))

        def forward(self, embeddings, labels):
            return (self.scale * embeddings).mean()

    criterion = BranchLosses({"global": Scaled(4), "dropping": Scaled(7)}, name="scaled")
    _, parts = criterion(outputs, LABELS)
    assert parts["scaled_dropping"].item() == pytest.approx(2 * outputs["dropping"].embedding.mean().item())
    assert [name for name, _ in criterion.named_parameters()] == ["metric.global.scale", "metric.dropping.scale"]


def test_losses_of_others_are_computed_in_float32_under_autocast():
    seen = []

    def product(embeddings, labels):
        seen.append((embeddings @ embeddings.T).dtype)
        return embeddings.mean()

    output = {"global": BranchOutput(torch.randn(6, 4).bfloat16(), None)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        BranchLosses(product)(output, LABELS)
    assert seen == [torch.float32]


def test_a_centre_loss_is_added_to_the_others(outputs):
    triplet, center = (
        BatchHardTripletLoss(),
        {"global": CenterLoss(3, 4).double(), "dropping": CenterLoss(3, 7).double()},
    )
    alone, parts = BranchLosses(triplet, name="triplet")(outputs, LABELS)
    starts = {name: loss.centers.clone() for name, loss in center.items()}
    total, all_parts = BranchLosses(triplet, name="triplet", center=center, center_weight=0.01)(outputs, LABELS)
    assert {*all_parts} - {*parts} == {"center_global", "center_dropping"}
    for name, output in outputs.items():
        expected = (output.embedding - starts[name][LABELS]).square().sum() / 6
        assert all_parts[f"center_{name}"].item() == pytest.approx(expected.item())
    assert total.item() == pytest.approx(alone.item() + 0.01 * sum(all_parts[f"center_{n}"].item() for n in outputs))


def test_a_centre_loss_goes_with_the_softmax_alone(outputs):
    center = {"global": CenterLoss(3, 4).double()}
    assert {*BranchLosses(None, center=center)(outputs, LABELS)[1]} == {
        "softmax_global",
        "softmax_dropping",
        "center_global",
    }
    with pytest.raises(ValueError, match="center_weight"):
        BranchLosses(None, center=center, center_weight=-1)
