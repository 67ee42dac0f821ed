"""The centre loss against loops and against gradient descent by autograd."""

import pytest
import torch

from bdbnet.losses.center import CenterLoss


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([3, 0, 3, 3, 1, 0])  # groups of three, two and one; identity 2 has none
    return torch.randn(6, 5, generator=generator, dtype=torch.float64), labels


def test_equals_the_loop():
    embeddings, labels = batch()
    loss = CenterLoss(4, 5).double().eval()
    total = sum(
        sum((x - c) ** 2 for x, c in zip(row, loss.centers[label].tolist()))
        for row, label in zip(embeddings.tolist(), labels.tolist())
    )
    assert loss(embeddings, labels).item() == pytest.approx(total / 6, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), embeddings.requires_grad_())


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]])
def test_the_centres_move_as_by_gradient_descent_with_their_own_rate(order):
    loss = CenterLoss(4, 5, rate=0.5).double()
    centers = loss.centers.clone().requires_grad_()
    optimizer = torch.optim.SGD([centers], lr=0.5)
    for seed in range(3):
        embeddings, labels = batch(seed)
        optimizer.zero_grad()
        ((embeddings - centers[labels]) ** 2).sum(1).mean().backward()
        optimizer.step()
        loss(embeddings[order], labels[order])
    torch.testing.assert_close(loss.centers, centers.detach())


def test_the_step_changes_no_gradient_and_none_is_made_in_eval_mode():
    embeddings, labels = batch()
    loss = CenterLoss(4, 5).double()
    start = loss.centers.clone()
    points = embeddings.clone().requires_grad_()
    loss(points, labels).backward()
    torch.testing.assert_close(points.grad, 2 / 6 * (embeddings - start[labels]))
    moved = loss.centers.clone()
    assert torch.equal(moved[2], start[2])
    assert not torch.equal(moved[3], start[3])
    loss.eval()(embeddings, labels)
    assert torch.equal(loss.centers, moved)


def test_is_float32_under_autocast_and_compiles_with_its_step():
    embeddings, labels = batch()
    plain, traced = CenterLoss(4, 5), CenterLoss(4, 5)
    traced.load_state_dict(plain.state_dict())
    compiled = torch.compile(traced, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(embeddings.bfloat16(), labels).dtype == torch.float32
        compiled(embeddings.bfloat16(), labels)
    assert torch.equal(plain.centers, traced.centers)


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="rate: expected a number of at least 0"):
        CenterLoss(4, 5, rate=-1)
