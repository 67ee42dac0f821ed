from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from bdbnet.datasets import DatasetError, Manifest
from bdbnet.loading import Cutout, RandomErasing, ReIDDataModule, SamplerError, default_workers, transforms_for
from data_modules import data_module

SIZE = (8, 4)
SETTINGS = {"batch_size": 4, "images_per_identity": 2, "test_batch_size": 3, "num_workers": 0}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """6 train identities of 3 images (labels with gaps), 5 test images in mixed order: 2 query, 2 gallery, 1 both."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = [("g0.png", 1, 2, "gallery"), ("q0.png", 1, 1, "query")]
    rows += [(f"{label}_{camera}.png", 10 * label, camera, "train") for label in range(6) for camera in range(3)]
    rows += [("t0.png", 3, 1, "test"), ("g1.png", 2, 1, "gallery"), ("q1.png", 2, 2, "query")]
    for path, *_ in rows:
        Image.fromarray(generator.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(root / path)
    return Manifest.from_table(pd.DataFrame(rows, columns=["path", "label", "camera", "split"]), root, "tiny")


def make(manifest: Manifest, **changes: object) -> ReIDDataModule:
    return data_module(
        manifest, *transforms_for("reid", SIZE, erasing=[Cutout(0.5, 4), RandomErasing()]), **SETTINGS | changes
    )


class Recorder(pl.LightningModule):
    """Notes what every training step sees; its one weight stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, list[int], float]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        total = batch["image"].double().sum().item()
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist(), total))
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert batch["image"].dtype == torch.uint8  # the embedder normalises

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    data: ReIDDataModule, folder: Path, *callbacks: pl.Callback, epochs: int = 2, checkpoint: Path | None = None
) -> list[tuple[int, int, list[int], float]]:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen


def test_training_batch(manifest: Manifest) -> None:
    data = make(manifest)
    loader = data.train_dataloader()
    assert len(loader) == 3
    raw = next(iter(loader))
    assert raw["image"].dtype == torch.uint8
    assert raw["erased"].shape == (4, 2, 4)
    batch = data.on_after_batch_transfer(raw, 0)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (4, 3, *SIZE)),
        "label": (torch.int64, (4,)),
        "camera": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
        "position": (torch.int64, (4,)),
    }
    assert batch["position"].tolist() == [0, 1, 2, 3]
    table = data.train_manifest.table.iloc[batch["index"].numpy()]
    assert (batch["label"] * 10).tolist() == table["label"].tolist()
    assert batch["camera"].tolist() == table["camera"].tolist()
    assert data.train_paths(batch["index"]) == [manifest.root / path for path in table["path"]]
    assert data.num_classes == 6
    assert "erased" in raw  # the loader's own batch is left alone


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(manifest: Manifest, channels_last: bool) -> None:
    data = make(manifest, channels_last=channels_last)
    image = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)["image"]
    assert image.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert image.is_contiguous() != channels_last


def test_test_batches_hold_queries_then_gallery_each_once(manifest: Manifest) -> None:
    data = make(manifest)
    assert data.test_table["path"].tolist() == ["q0.png", "t0.png", "q1.png", "g0.png", "g1.png"]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    assert [len(batch["image"]) for batch in batches] == [3, 2]
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert joined["index"].tolist() == [0, 1, 2, 3, 4]
    assert joined["is_query"].tolist() == [True, True, True, False, False]
    assert joined["label"].tolist() == [1, 3, 2, 1, 2]
    assert joined["camera"].tolist() == [1, 1, 2, 2, 1]
    pixels = np.asarray(Image.open(manifest.root / "q1.png").resize(SIZE[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(joined["image"][2].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_train_and_test_without_repeats(
    manifest: Manifest, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaders(rank: int, ranks: int) -> ReIDDataModule:
        data = make(manifest, batch_size=8)
        monkeypatch.setattr(data, "_rank", lambda: (rank, ranks))
        return data

    parts = [loaders(rank, world_size) for rank in range(world_size)]
    test_rows = [batch["index"] for part in parts for batch in part.test_dataloader()]
    assert sorted(torch.cat(test_rows).tolist()) == [0, 1, 2, 3, 4]
    single = next(iter(loaders(0, 1).train_dataloader()))
    shares = [next(iter(part.train_dataloader())) for part in parts]
    for name, expected in single.items():
        assert torch.cat([share[name] for share in shares]).equal(expected), name


def test_workers_do_not_change_a_single_bit(manifest: Manifest) -> None:
    runs = []
    for workers in (0, 1, 2):
        loader = make(manifest, num_workers=workers, epoch="images").train_dataloader()
        loader.batch_sampler.set_epoch(1)
        runs.append(list(loader))
    for run in runs[1:]:
        assert len(run) == len(runs[0])
        for batch, expected in zip(run, runs[0]):
            assert batch.keys() == expected.keys()
            assert all(batch[name].equal(expected[name]) for name in expected)


def test_lightning_tells_the_sampler_the_epoch(manifest: Manifest, tmp_path: Path) -> None:
    seen = fit(make(manifest), tmp_path)
    assert [step[:2] for step in seen] == [(epoch, number) for epoch in range(2) for number in range(3)]
    sampler = make(manifest).train_dataloader().batch_sampler
    for epoch in range(2):
        expected = sampler.batches(epoch).reshape(3, -1).tolist()
        assert [step[2] for step in seen if step[0] == epoch] == expected
    assert seen[0][2] != seen[3][2]


@pytest.mark.parametrize(("workers", "cache"), [(0, "none"), (1, "none"), (1, "packed"), (0, "device")])
@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(
    manifest: Manifest, tmp_path: Path, workers: int, cache: str, stop: int
) -> None:
    """Stopped inside the first epoch and at its end; workers prefetch before Lightning sets the epoch."""
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    full = fit(make(manifest), tmp_path, keep)
    data = make(manifest, num_workers=workers, cache=cache, cache_root=tmp_path / "cache")
    resumed = fit(data, tmp_path, checkpoint=tmp_path / f"step={stop}.ckpt")
    assert resumed == full[stop:]


def test_a_loader_made_after_the_fit_starts_at_the_first_batch(manifest: Manifest, tmp_path: Path) -> None:
    data = make(manifest)
    fit(data, tmp_path, epochs=1)
    assert [batch["position"][0].item() for batch in data.train_dataloader()] == [0, 4, 8]


def test_missing_parts_are_named(manifest: Manifest) -> None:
    def only(*splits: str) -> ReIDDataModule:
        table = manifest.table[manifest.table["split"].isin(splits)]
        return make(Manifest.from_table(table, manifest.root, "part"))

    with pytest.raises(DatasetError, match="has no training images"):
        only("query", "gallery").train_dataloader()
    with pytest.raises(DatasetError, match="has no query images"):
        only("gallery", "train").test_dataloader()
    with pytest.raises(DatasetError, match="has no gallery images"):
        only("query").val_dataloader()
    assert [len(batch["image"]) for batch in only("query", "gallery").test_dataloader()] == [3, 1]


def test_settings_that_do_not_fit_are_refused(manifest: Manifest) -> None:
    with pytest.raises(SamplerError, match=r"sampler\.batch_size=5 .*sampler\.images_per_identity=2"):
        make(manifest, batch_size=5).train_dataloader()
    with pytest.raises(SamplerError, match="needs 8 identities"):
        make(manifest, batch_size=16).train_dataloader()
    with pytest.raises(ValueError, match="seed is -1"):
        make(manifest, seed=-1)


def test_default_workers_follow_cores_and_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 1), (4, 2), (16, 8), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers() == expected
    assert default_workers(local_ranks=8) == 4
    assert default_workers(local_ranks=100) == 1
