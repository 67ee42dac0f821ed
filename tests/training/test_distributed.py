"""What several processes compute together is what one process computes: losses, batch statistics, trainings, maps."""

import inspect
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_metric_learning.losses as pml
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bdbnet.losses
from bdbnet.config import ConfigError
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.maps import class_maps, energy_maps, similarity_maps
from bdbnet.loading import Preprocessing
from bdbnet.losses import BatchHardTripletLoss
from bdbnet.losses.center import CenterLoss
from bdbnet.models import BDBNetwork, BranchOutput
from bdbnet.training.callbacks import FiniteLossGuard, NotFiniteError
from bdbnet.training.criterion import BranchLosses
from bdbnet.training.sync_norm import BatchNormOverRanks, GlobalBatchNorm, check_replaceable
from forked_commands import CONTEXT

pytestmark = pytest.mark.end_to_end
Found = dict[str, torch.Tensor]


# Every loss: the mean of the ranks' gradients is the gradient of one process

#: Arguments that a loss of pytorch-metric-learning does not work without, beside numbers of identities and dimensions.
PML_ARGUMENTS: dict[str, dict[str, Any]] = {
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
    "P2SGradLoss": {"descriptors_dim": 5, "num_classes": 4},
}
#: Those that take no (embeddings, labels), or keep what they have seen: their loss is not one of a batch.
NOT_OF_A_BATCH = {
    "CrossBatchMemory", "GenericPairLoss", "ManifoldLoss", "MultipleLosses", "SelfSupervisedLoss", "VICRegLoss", "BaseLossWrapper",
    "BaseMetricLossFunction", "EmbeddingRegularizerMixin", "WeightRegularizerMixin",
}  # fmt: skip


def losses() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for name in bdbnet.losses.__all__:
        if isinstance(made := getattr(bdbnet.losses, name), type):
            yield name, made
    yield "CenterLoss", lambda: CenterLoss(4, 5)
    yield "MarginLoss, learnt", lambda: bdbnet.losses.MarginLoss(learn_beta=True, num_classes=4, nu=0.1)
    for name, made in inspect.getmembers(pml, inspect.isclass):
        if name not in NOT_OF_A_BATCH:
            settings = dict(PML_ARGUMENTS.get(name, {}))
            if "embedding_size" in {
                key for kind in made.__mro__ for key in inspect.signature(kind.__init__).parameters
            }:
                settings |= {"num_classes": 4, "embedding_size": 5}
            yield f"pml.{name}", lambda made=made, settings=settings: made(**settings)


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    return torch.randn(8, 5, generator=generator, dtype=torch.float64), images, torch.arange(16) // 4


def gradients_of_losses(share: slice, size: int) -> Found:
    """Loss and mean gradients over `size` ranks, of which this one has `share` of the batch."""
    found = {}
    for name, make in losses():
        torch.manual_seed(7)
        metric = make().double()
        torch.manual_seed(8)  # of those that draw while they compute
        start, images, labels = problem()
        weight = start.clone().requires_grad_()
        images, labels = images[share], labels[share]
        loss, _ = BranchLosses(metric)({"global": BranchOutput(images @ weight, images @ weight[:, :4])}, labels)
        own = dict(metric.named_parameters())
        gradients = torch.autograd.grad(loss, [weight, *own.values()], allow_unused=True, materialize_grads=True)
        for part, value in zip(["loss", "weight", *own], [loss.detach().clone(), *gradients]):
            if size > 1:  # what DistributedDataParallel does
                dist.all_reduce(value)
            found[f"{name}: {part}"] = value / size
    return found


# A loss with parameters: steps of whole trainings


class Trained(nn.Module):
    """A network and a loss with proxies, as the LightningModule holds both; one process or several see the same batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Linear(8, 5, dtype=torch.float64)
        self.criterion = BranchLosses(
            {"global": pml.ProxyAnchorLoss(4, 5, alpha=8).double()}, softmax_weight=0,
            center={"global": CenterLoss(4, 5).double()}, center_weight=0.01,
        )  # fmt: skip

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.criterion({"global": BranchOutput(self.network(images), None)}, labels)[0]


def trained_with_proxies(share: slice, wrap: Callable[[nn.Module], nn.Module]) -> Found:
    module = Trained()
    step = wrap(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    _, images, labels = problem()
    for _ in range(4):
        optimizer.zero_grad()
        step(images[share], labels[share]).backward()
        optimizer.step()
    return dict(module.state_dict())


# Batch statistics of all ranks


class Normalised(nn.Module):
    """Convolutions with batch normalisation below both losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.reduction = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5, momentum=None))
        self.classifier = nn.Linear(5, 4)
        self.criterion = BranchLosses(BatchHardTripletLoss())

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        embedding = self.reduction(self.backbone(images).mean((2, 3)))
        return self.criterion({"global": BranchOutput(embedding, self.classifier(embedding))}, labels)[0]


def trained_with_batch_norm(share: slice, wrap: Callable[[nn.Module], nn.Module], size: int, *, synced: bool) -> Found:
    """Losses, statistics and weights after three epochs of four steps."""
    module = Normalised().double()
    if synced:
        module = BatchNormOverRanks().apply(module)
    step = wrap(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn(4, 16, 3, 12, 12, generator=generator).double(), torch.arange(16) // 4
    images += labels[:, None, None, None] * 0.5  # shares of a batch differ in their means
    epochs = torch.zeros(3, dtype=torch.float64)
    for epoch in range(3):
        for batch in images:
            optimizer.zero_grad()
            loss = step(batch[share], labels[share])
            loss.backward()
            optimizer.step()
            epochs[epoch] += loss.detach() / 4
    if size > 1:
        dist.all_reduce(epochs)
    assert [type(layer).__name__ for layer in BatchNormOverRanks().revert(module).backbone][1] == "BatchNorm2d"
    return {"losses": epochs / size, **module.state_dict()}


SHARES = {1: (10,), 2: (7, 3), 4: (4, 3, 2, 1)}


def normalised_unequally(rank: int, size: int) -> Found:
    """The layer on ten images of which every rank has another number."""
    generator = torch.Generator().manual_seed(6)
    values, pull = torch.randn(2, 10, 3, 4, 2, generator=generator, dtype=torch.float64) + 5
    layer = BatchNormOverRanks().apply(nn.BatchNorm2d(3).double())
    own = values.split(SHARES[size])[rank].clone().requires_grad_()
    result = layer(own)
    result.backward(pull.split(SHARES[size])[rank])
    return {"result": result.detach(), "gradient": own.grad, "mean": layer.running_mean, "variance": layer.running_var}


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


def maps_beside_training(rank: int) -> tuple[dict[str, np.ndarray], Found]:
    """Maps that the first of two ranks makes after a step of both, and the network they are of."""
    embedder, images = network_and_images()
    step = DistributedDataParallel(embedder.network.train())
    outputs = step(embedder.preprocessing.normalize(images[2 * rank : 2 * rank + 2]))
    sum(output.embedding.square().mean() for output in outputs.values()).backward()
    if rank == 0:  # the others do not take part in it
        return maps_of(embedder, images), embedder.network.state_dict()
    return {}, {}


# A loss that is NaN on one rank


def stopped_by(rank: int, size: int, folder: str) -> str:
    """What a rank says where the loss of the second one is NaN."""
    guard = FiniteLossGuard()
    data = SimpleNamespace(train_paths=lambda rows: [Path(f"{row}.jpg") for row in rows])
    strategy = SimpleNamespace(checkpoint_io=None)
    trainer = SimpleNamespace(
        current_epoch=2, global_rank=rank, world_size=size, default_root_dir=folder, datamodule=data, strategy=strategy
    )
    loss = torch.tensor(torch.nan if rank == 1 else 1.0)
    outputs = {"loss": loss, "parts": {"softmax_global": loss}}
    guard.on_train_batch_end(trainer, None, outputs, {"index": torch.tensor([rank, 9])}, 5)
    try:
        guard.on_train_epoch_end(trainer, None)
    except NotFiniteError as error:
        return str(error)
    return "nothing"


# Two and four processes compute all of it, each set once


def all_of_a_rank(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    share = slice(rank * 16 // size, (rank + 1) * 16 // size)
    found = {
        "losses": gradients_of_losses(share, size),
        "proxies": trained_with_proxies(share, DistributedDataParallel),
        "synced": trained_with_batch_norm(share, DistributedDataParallel, size, synced=True),
        "own": trained_with_batch_norm(share, DistributedDataParallel, size, synced=False),
        "unequal": normalised_unequally(rank, size),
        "nan": stopped_by(rank, size, folder),
    }
    if size == 2:
        maps, network = maps_beside_training(rank)
        np.savez(Path(folder) / f"maps{rank}.npz", **maps)
        found["network"] = network
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request, tmp_path_factory) -> tuple[list[dict[str, Found]], Path]:
    """What each of several processes has found, and the folder where they wrote it."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method = CONTEXT.get_start_method()
    mp.start_processes(all_of_a_rank, (request.param, port, str(folder)), nprocs=request.param, start_method=method)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)], folder


def test_gradients_of_every_loss_over_ranks_equal_those_of_one_process(ranks):
    (first, *_), _ = ranks
    alone = gradients_of_losses(slice(None), 1)
    assert len({name.partition(":")[0] for name in alone}) > 35
    for name, values in alone.items():
        torch.testing.assert_close(
            first["losses"][name], values, rtol=1e-6, atol=1e-6, msg=lambda why, n=name: f"{n}: {why}"
        )
    assert all(values.isfinite().all() for values in alone.values())


def test_a_loss_with_proxies_trains_alike_on_one_process_and_on_several(ranks):
    (first, *others), _ = ranks
    alone = trained_with_proxies(slice(None), lambda module: module)
    proxies = "criterion.metric.global.proxies"
    assert not torch.equal(alone[proxies], Trained().state_dict()[proxies])
    for name, values in alone.items():
        assert all(torch.equal(first["proxies"][name], other["proxies"][name]) for other in others)
        assert torch.allclose(first["proxies"][name], values, atol=1e-10), name


def test_with_statistics_of_all_ranks_a_training_is_that_of_one_process(ranks):
    (first, *others), _ = ranks
    alone = trained_with_batch_norm(slice(None), lambda module: module, 1, synced=False)
    assert alone.keys() == first["synced"].keys()
    for name, values in alone.items():
        torch.testing.assert_close(
            first["synced"][name], values, rtol=0, atol=1e-9, msg=lambda why, n=name: f"{n}: {why}"
        )
        assert all(torch.allclose(first["synced"][name], other["synced"][name], atol=1e-12) for other in others)
    # Without them it is another training.
    assert (first["own"]["losses"] - alone["losses"]).abs().max() > 1e-2
    assert (first["own"]["backbone.1.running_mean"] - alone["backbone.1.running_mean"]).abs().max() > 1e-2


def test_statistics_count_images_not_ranks(ranks):
    found, _ = ranks
    alone = normalised_unequally(0, 1)
    for name in ("result", "gradient"):
        joined = torch.cat([rank["unequal"][name] for rank in found])
        torch.testing.assert_close(joined, alone[name], rtol=0, atol=1e-10)
    for rank in found:
        for name in ("mean", "variance"):
            torch.testing.assert_close(rank["unequal"][name], alone[name], rtol=0, atol=1e-10)


def test_a_loss_that_is_nan_on_one_rank_stops_all_with_one_message(ranks):
    found, _ = ranks
    (text,) = {rank["nan"] for rank in found}
    assert f"the loss is nan in epoch 3, step 6, on process 2 of {len(found)} (softmax_global = nan)" in text
    assert "1.jpg\n  9.jpg" in text
    assert "trainer.precision=32-true" in text


def test_maps_of_a_rank_are_those_of_one_process(ranks):
    (first, *others), folder = ranks
    if len(others) > 1:
        return  # two ranks make them
    embedder, images = network_and_images()
    embedder.network.load_state_dict(first["network"])
    alone = maps_of(embedder, images)
    with np.load(folder / "maps0.npz") as on_a_rank:
        assert {*on_a_rank} == {*alone}
        for name, values in alone.items():
            assert values.any()
            np.testing.assert_allclose(on_a_rank[name], values, rtol=1e-4, atol=1e-7, err_msg=name)


def test_a_layer_that_does_more_than_normalise_is_not_replaced():
    class Activated(nn.BatchNorm2d):
        def forward(self, values):
            return super().forward(values).relu()

    with pytest.raises(
        ConfigError, match=r"trainer.sync_batchnorm=true: the network's layer 1 is a .*Activated.*backbone"
    ):
        check_replaceable(nn.Sequential(nn.BatchNorm2d(2), Activated(2)))
    check_replaceable(BDBNetwork(2, "osnet_x0_25"))
    assert isinstance(BatchNormOverRanks().apply(nn.Sequential(nn.BatchNorm1d(2)))[0], GlobalBatchNorm)
