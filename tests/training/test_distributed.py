"""Losses over gathered rows: the ranks' averaged gradient is the single process's gradient."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch.nn.parallel import DistributedDataParallel

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.maps import class_maps, energy_maps, similarity_maps
from bdbnet.loading import Preprocessing
from bdbnet.losses import BatchHardTripletLoss
from bdbnet.models import BDBNetwork, BranchOutput
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


def on_ranks(main: Callable[[int, int, int, str], None], world_size: int, folder: Path) -> None:
    """Run `main(rank, world_size, port, folder)` in a process for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(main, (world_size, port, str(folder)), nprocs=world_size)


@pytest.mark.end_to_end
@pytest.mark.parametrize("world_size", [2, 4])
def test_gradient_over_ranks_equals_that_of_one_process(world_size, tmp_path):
    on_ranks(rank_main, world_size, tmp_path)
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
    on_ranks(train_on_a_rank, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = trained(slice(None), lambda module: module)
    assert not torch.equal(
        alone["criterion.metric.global.proxies"], Trained().state_dict()["criterion.metric.global.proxies"]
    )
    for name, values in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], values, atol=1e-10), name


# Activation maps while a training runs on several ranks


def network_and_images() -> tuple[Embedder, torch.Tensor]:
    torch.manual_seed(5)
    network = BDBNetwork(4, "osnet_x0_25", embedding_dims={"global": 8, "dropping": 8})
    images = torch.randint(0, 256, (4, 3, 64, 32), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    return Embedder(network, Preprocessing((64, 32))), images


def maps_of(embedder: Embedder, images: torch.Tensor) -> dict[str, np.ndarray]:
    embedder.network.eval()
    found = {f"energy {name}": values for name, values in energy_maps(embedder, images).items()}
    found |= {f"class {name}": values for name, values in class_maps(embedder, images, [0, 1, 2, 3])[0].items()}
    left, right = similarity_maps(embedder, images[:2], images[2:])
    return found | {f"left {name}": left[name] for name in left} | {f"right {name}": right[name] for name in right}


def maps_on_a_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    embedder, images = network_and_images()
    step = DistributedDataParallel(embedder.network.train())
    outputs = step(embedder.preprocessing.normalize(images[2 * rank : 2 * rank + 2]))
    sum(output.embedding.square().mean() for output in outputs.values()).backward()
    if rank == 0:  # the others do not take part in it
        np.savez(Path(folder) / "maps.npz", **maps_of(embedder, images))
        torch.save(embedder.network.state_dict(), Path(folder) / "network.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.end_to_end
def test_maps_of_a_rank_are_those_of_one_process(tmp_path):
    on_ranks(maps_on_a_rank, 2, tmp_path)
    embedder, images = network_and_images()
    embedder.network.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    alone = maps_of(embedder, images)
    with np.load(tmp_path / "maps.npz") as on_a_rank:
        assert {*on_a_rank} == {*alone}
        for name, values in alone.items():
            assert values.any()
            np.testing.assert_allclose(on_a_rank[name], values, rtol=1e-4, atol=1e-7, err_msg=name)
