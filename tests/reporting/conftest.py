"""A synthetic run folder: a table dataset of drawn images, its result, history and ranking lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from bdbnet.datasets import DatasetError, Manifest
from bdbnet.results import Protocol, Result, read_result

QUERIES, GALLERY = 6, 12


def draw(path: Path, label: int) -> None:
    image = Image.new("RGB", (16, 32), (40 * label % 256, 90, 200 - 20 * label))
    ImageDraw.Draw(image).ellipse((4, 2 + label, 12, 10 + label), fill=(250, 230, 80))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def manifest_of(root: Path) -> Manifest:
    """Query i shows identity i on camera 0; gallery image j shows identity j % 6 on camera 1 or 2."""
    rows = [(f"query/{i}.png", i, 0, "query") for i in range(QUERIES)]
    rows += [(f"gallery/{j}.png", j % 6, 1 + j // 6, "gallery") for j in range(GALLERY)]
    rows += [("train/0.png", 50, 0, "train")]
    return Manifest.from_table(pd.DataFrame(rows, columns=["path", "label", "camera", "split"]), root, "drawn")


def read_drawn(root: Path, **options: object) -> Manifest:
    if not root.is_dir():
        raise DatasetError(f"no folder {root}")
    return manifest_of(root)


def ranking_of(manifest: Manifest) -> pd.DataFrame:
    """Query i meets its identity first at rank i + 1; query 5 not within the first 5."""
    rows = []
    for i in range(QUERIES):
        others = [j for j in range(GALLERY) if j % 6 != i]
        found = [*others[:i], i, *others[i:]][:5]
        for place, j in enumerate(found):
            paths = (f"query/{i}.png", f"gallery/{j}.png")
            rows.append((i, place + 1, 6 + j, 0.5 + 0.25 * place, *paths, i, j % 6, 0, 1 + j // 6, j % 6 == i))
    columns = [
        "query_index",
        "rank",
        "gallery_index",
        "distance",
        "query_path",
        "gallery_path",
        "query_label",
        "gallery_label",
    ]
    return pd.DataFrame(rows, columns=[*columns, "query_camera", "gallery_camera", "correct"])


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished training run `tmp_path/loss=none,seed=3` on the dataset `tmp_path/images`."""
    root = tmp_path / "images"
    manifest = manifest_of(root)
    for path, label in zip(manifest.paths, manifest.table["label"]):
        draw(Path(path), label % 10)
    monkeypatch.setattr("bdbnet.reporting.run_folder.load_manifest", lambda name, root, **o: read_drawn(Path(root)))
    folder = tmp_path / "loss=none,seed=3"
    folder.mkdir()
    metrics = {"rank1": 0.9121, "mAP": 0.75, "valid_queries": 6.0}
    counts = {str(role): {str(k): int(v) for k, v in row.items()} for role, row in manifest.counts().iterrows()}
    Result(
        kind="train",
        metrics=metrics,
        protocol=Protocol("reid", "drawn", (32, 16)),
        checkpoint="last",
        data={"name": "drawn", "fingerprint": manifest.fingerprint, "counts": counts},
        config={
            "seed": 3,
            "dataset": {"name": "drawn", "root": str(root), "options": {}},
            "trainer": {"max_epochs": 2},
        },
        seed=3,
        before={"rank1": 0.95, "mAP": 0.05, "valid_queries": 6.0},
        best={"metrics": metrics | {"rank1": 0.934}, "epoch": 1, "note": "chosen on the test set"},
        epochs=2,
        parameters=2_210_000,
        embedding_dim=512,
        seconds={"train": 187.0},
        images_per_second={"train": 312.5},
    ).write(folder / "result.json")
    history = {"epoch": [1, 2], "seconds": [1.0, 1.0], "images_per_second": [300.0, 310.0]}
    history |= {"learning_rate": [1e-4, 1e-4], "loss": [3.0, 2.0], "loss/triplet_global": [1.0, 0.5]}
    history |= {"loss/softmax_global": [2.0, 1.5], "rank1": [np.nan, 0.9121], "mAP": [np.nan, 0.75]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    ranking_of(manifest).to_parquet(folder / "topk.parquet", index=False)
    return folder


@pytest.fixture
def change_result(run_folder: Path):
    """A function that changes fields of the run's result on disk."""

    def change(**fields: object) -> None:
        path = run_folder / "result.json"
        replace(read_result(path), **fields).write(path)

    return change
