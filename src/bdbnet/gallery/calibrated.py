"""A calibrated embedder: from the images of a data set, embedded or stored already, to a folder with the threshold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.calibrating import Comparison, calibrate, comparison_of
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.feature_sets import align
from bdbnet.evaluation.features import Side
from bdbnet.gallery.embedding import build_embedder, stamp_of
from bdbnet.gallery.store import EmbeddingStore, check_same_model
from bdbnet.gallery.stored_features import read_stored
from bdbnet.loading.datamodule import test_rows
from bdbnet.loading.from_config import read_manifest, settle_protocol
from bdbnet.reporting.calibration import write_calibration


def calibrate_embedder(config: DictConfig, folder: Path) -> Calibration:
    """Calibrate the network of `config.checkpoint` on images of `config.dataset`; `folder` gets the embedder with its threshold.

    Raises:
        ConfigError, CheckpointError, DatasetError, CalibrationError, StoreError, FeatureError: see there.
    """
    embedder = build_embedder(config)
    if config.distance is not None:
        embedder.distance_name = config.distance
    if not embedder.origin.network:
        raise ConfigError(
            f"checkpoint={config.checkpoint}: a pretrained network as it is has no folder to keep a "
            "threshold in; give a checkpoint or a file of weights"
        )
    manifest = read_manifest(config.dataset)
    settle_protocol(config.dataset, manifest)
    stored = _stored(config.embeddings, embedder)
    chosen_on = _comparison(config, embedder, manifest, config.split, stored)
    if config.held_out == "half":
        chosen_on, held_out = chosen_on.halves(config.seed)
    elif config.held_out == config.split:
        raise ConfigError(f"held_out={config.held_out}: the threshold is chosen on these; use half, or another split")
    else:
        held_out = _comparison(config, embedder, manifest, config.held_out, stored)
        if shared := np.intersect1d(chosen_on.query_labels, held_out.query_labels).size:
            raise ConfigError(
                f"held_out={config.held_out}: {shared} of its identities are among those of split={config.split}; use held_out=half"
            )
    calibration = calibrate(
        chosen_on, held_out, fmr=config.fmr, distance=embedder.distance_name, prior=config.prior, made_for=embedder.made_for,
        seed=config.seed,
    )  # fmt: skip
    embedder.threshold, embedder.calibration = calibration.threshold, calibration
    embedder.save(folder)
    write_calibration(calibration, folder)
    return calibration


def _stored(folders: str | Sequence[str] | None, embedder: Embedder) -> Side | None:
    """All rows of the folders of `bdbnet.embed` together."""
    if folders is None:
        return None
    sides = []
    for folder in [folders] if isinstance(folders, str) else folders:
        side = read_stored(Path(folder).expanduser())
        if side is None:
            raise ConfigError(f"embeddings={folder}: no folder that python -m bdbnet.embed made")
        check_same_model(EmbeddingStore.open(folder).model, stamp_of(embedder))
        sides.append(side)
    known = {"paths": np.concatenate([side.known["paths"] for side in sides])}
    source = ", ".join(side.source for side in sides)
    return Side(np.concatenate([side.embeddings for side in sides]), known, source, {"paths": "path"})


def _comparison(
    config: DictConfig, embedder: Embedder, manifest: Manifest, split: str, stored: Side | None
) -> Comparison:
    if split == "train":
        manifest.require("train")
        table = manifest.subset("train").table.reset_index(drop=True)
    else:
        manifest.require("query", "gallery")
        table = test_rows(manifest)
    if stored is None:
        embeddings = embedder.embed(
            manifest.with_rows(table), batch_size=config.loading.test_batch_size, num_workers=config.loading.num_workers
        )
    else:
        embeddings = align({"": stored}, manifest, table).embeddings
    return comparison_of(embeddings, table, manifest, split)
