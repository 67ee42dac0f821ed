"""Batches of embeddings for the tests of the metric losses, and what every loss is asked of them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@st.composite
def batches(draw: st.DrawFn, *, degenerate: bool | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 embeddings of 1 to 4 identities with 1 to 7 images each, in any order.

    Degenerate ones have equal rows, of one identity or of two, and a zero vector; by default some are, some are not. At
    least 3 dimensions, where rows meet by chance too seldom to matter to the last digits of a distance.
    """
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    labels = torch.tensor([identity for identity, size in enumerate(sizes) for _ in range(size)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    embeddings = torch.randn(len(labels), draw(st.integers(3, 9)), generator=generator, dtype=torch.float64)
    if draw(st.booleans()) if degenerate is None else degenerate:
        originals, copies = torch.randint(len(labels), (2, 3), generator=generator)
        embeddings[copies] = embeddings[originals]
        embeddings[torch.randint(len(labels), (1,), generator=generator)] = 0
    return embeddings, labels


def fixed_batch(images: int = 32, dimension: int = 64, per_identity: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32, non-negative as after a ReLU, with identities that lie a little apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) // per_identity
    centres = torch.randn(int(labels[-1]) + 1, dimension, generator=generator)
    return (centres[labels] + torch.randn(images, dimension, generator=generator)).relu(), labels


def value_and_gradient(loss: Loss, embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    points = embeddings.clone().requires_grad_()
    value = loss(points, labels)
    value.backward()
    return value.item(), points.grad


def assert_same_value_and_gradient(loss: Loss, naive: Loss, embeddings, labels, *, tolerance: float) -> None:
    value, gradient = value_and_gradient(loss, embeddings, labels)
    expected, expected_gradient = value_and_gradient(naive, embeddings, labels)
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def assert_does_not_depend_on_the_order(loss: Loss, embeddings, labels, seed: int) -> None:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    assert loss(embeddings[order], labels[order]).item() == pytest.approx(loss(embeddings, labels).item(), abs=1e-6)


def assert_finite_at_extremes(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(1)
    for dimension in (2, 4096):
        noise = torch.randn(8, dimension, generator=generator)
        for embeddings in (noise * 0, noise * 1e-20, noise * 1e16, noise * 0 + 3.7, 1e4 + noise * 1e-4):
            for labels in (torch.arange(8) // 2, torch.arange(8) // 6, torch.zeros(8), torch.arange(8)):
                for dtype in (torch.float32, torch.bfloat16):
                    value, gradient = value_and_gradient(loss, embeddings.to(dtype), labels)
                    assert torch.isfinite(torch.tensor(value))
                    assert torch.isfinite(gradient).all()


def assert_zero_with_a_graph(loss: Loss, labels: list[int]) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(2))
    with torch.autograd.set_detect_anomaly(True):  # not even a NaN that a mask takes away again
        value, gradient = value_and_gradient(loss, embeddings, torch.tensor(labels))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(embeddings))


def assert_full_precision_under_autocast(loss: Loss, naive: Loss) -> None:
    """Far from the origin, where bfloat16 products would lose the differences altogether."""
    embeddings, labels = fixed_batch()
    embeddings = embeddings * 0.1 + 30
    outside = loss(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(embeddings, labels)
        from_half = loss(embeddings.bfloat16(), labels)
    assert inside.dtype == from_half.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(from_half, loss(embeddings.bfloat16().float(), labels))
    assert loss(embeddings.double(), labels).dtype == torch.float64
    assert inside.item() == pytest.approx(naive(embeddings.double(), labels).item(), rel=1e-5)


def assert_the_same_bit_for_bit_every_time(loss: Loss) -> None:
    """Also with several threads, where sums in the order in which threads arrive would differ from run to run."""
    embeddings, labels = fixed_batch(64, 1024)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        value, gradient = value_and_gradient(loss, embeddings, labels)
        for _ in range(10):
            again, again_gradient = value_and_gradient(loss, embeddings, labels)
            assert again == value
            assert torch.equal(again_gradient, gradient)
    finally:
        torch.set_num_threads(threads)
