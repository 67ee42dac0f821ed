"""Losses over gathered rows: the ranks' averaged gradient is the single process's gradient."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.nn.parallel import DistributedDataParallel

from bdbnet.losses import BatchHardTripletLoss
from bdbnet.models import BranchOutput
from bdbnet.training.criterion import BranchLosses


def loss_and_gradient(weight: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    weight = weight.clone().requires_grad_()
    output = {"global": BranchOutput(images @ weight, images @ weight[:, :4])}
    total, _ = BranchLosses(BatchHardTripletLoss())(output, labels)
    total.backward()
    return total.item(), weight.grad


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    return torch.randn(8, 5, generator=generator, dtype=torch.float64), images, torch.arange(16) // 4


def rank_main(rank: int, world_size: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    weight, images, labels = problem()
    share = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)
    loss, gradient = loss_and_gradient(weight, images[share], labels[share])
    mean = torch.tensor([loss], dtype=torch.float64)
    dist.all_reduce(gradient)  # what DistributedDataParallel does: the mean over ranks
    dist.all_reduce(mean)
    if rank == 0:
        torch.save({"gradient": gradient / world_size, "loss": mean / world_size}, Path(folder) / "rank0.pt")
    dist.destroy_process_group()


@pytest.mark.end_to_end
@pytest.mark.parametrize("world_size", [2, 4])
def test_gradient_over_ranks_equals_that_of_one_process(world_size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, (world_size, port, str(tmp_path)), nprocs=world_size)
    found = torch.load(tmp_path / "rank0.pt", weights_only=True)
    loss, gradient = loss_and_gradient(*problem())
    assert torch.allclose(found["gradient"], gradient, atol=1e-12)
    assert found["loss"].item() == pytest.approx(loss, abs=1e-12)


# A loss with parameters: steps of whole trainings


class Trained(torch.nn.Module):
    """A network and a loss with proxies, as the LightningModule holds both; one process or two see the same batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = torch.nn.Linear(8, 5, dtype=torch.float64)
        self.criterion = BranchLosses({"global": ProxyAnchorLoss(4, 5, alpha=8).double()}, softmax_weight=0)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.criterion({"global": BranchOutput(self.network(images), None)}, labels)[0]


def trained(share: slice, wrap: Callable[[Trained], torch.nn.Module]) -> dict[str, torch.Tensor]:
    module = Trained()
    step = wrap(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    _, images, labels = problem()
    for _ in range(4):
        optimizer.zero_grad()
        step(images[share], labels[share]).backward()
        optimizer.step()
    return module.state_dict()


def train_on_a_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    share = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)
    torch.save(trained(share, DistributedDataParallel), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.end_to_end
def test_a_loss_with_proxies_trains_alike_on_one_process_and_on_two(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train_on_a_rank, (2, port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = trained(slice(None), lambda module: module)
    assert not torch.equal(
        alone["criterion.metric.global.proxies"], Trained().state_dict()["criterion.metric.global.proxies"]
    )
    for name, values in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], values, atol=1e-10), name
