"""A calibrated embedder: from the images of a data set, embedded or stored already, to a folder with the threshold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.calibrating import Comparison, calibrate, comparison_of, identities_of, require_identities
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

_USUAL = {"fmr": "1e-3", "prior": "0.5"}


def calibrate_embedder(config: DictConfig, folder: Path) -> Calibration:
    """Calibrate the network of `config.checkpoint` on images of `config.dataset`; `folder` gets the embedder with its threshold.

    Raises:
        ConfigError, CheckpointError, DatasetError, CalibrationError, StoreError, FeatureError: see there.
    """
    if config.held_out == config.split:
        raise ConfigError(f"held_out={config.held_out}: the threshold is chosen on these; use half, or another split")
    for key in ("fmr", "prior"):
        if config[key] >= 1:
            raise ConfigError(f"{key}={config[key]}: give a share between 0 and 1, such as {key}={_USUAL[key]}")
    manifest = read_manifest(config.dataset)
    settle_protocol(config.dataset, manifest, trained=True)
    embedder = build_embedder(config)
    if config.distance is not None:
        embedder.distance_name = config.distance
    if not embedder.origin.network:
        raise ConfigError(
            f"checkpoint={config.checkpoint}: a pretrained network as it is has no folder to keep a "
            "threshold in; give a checkpoint or a file of weights"
        )
    stored = _stored(config.embeddings, embedder)
    # All that can be refused is, before images are embedded.
    table = _rows(manifest, config.split)
    if config.held_out == "half":
        require_identities(identities_of(table) // 2, manifest.name, config.split)
        chosen_on, held_out = _comparison(config, embedder, manifest, table, config.split, stored).halves(config.seed)
    else:
        other = _rows(manifest, config.held_out)
        for split, rows in ((config.split, table), (config.held_out, other)):
            require_identities(identities_of(rows), manifest.name, split)
        if shared := np.intersect1d(table["label"], other["label"]).size:
            raise ConfigError(
                f"held_out={config.held_out}: {shared} of its identities are among those of split={config.split}; use held_out=half"
            )
        chosen_on = _comparison(config, embedder, manifest, table, config.split, stored)
        held_out = _comparison(config, embedder, manifest, other, config.held_out, stored)
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


def _rows(manifest: Manifest, split: str) -> pd.DataFrame:
    if split == "train":
        manifest.require("train")
        return manifest.subset("train").table.reset_index(drop=True)
    manifest.require("query", "gallery")
    return test_rows(manifest)


def _comparison(
    config: DictConfig, embedder: Embedder, manifest: Manifest, table: pd.DataFrame, split: str, stored: Side | None
) -> Comparison:
    if stored is None:
        embeddings = embedder.embed(
            manifest.with_rows(table), batch_size=config.loading.test_batch_size, num_workers=config.loading.num_workers
        )
    else:
        embeddings = align({"": stored}, manifest, table).embeddings
    return comparison_of(embeddings, table, manifest, split)
