"""Results out: ``result.json``, the one record of what was measured, under which protocol, from which config and data."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bdbnet.renamed import with_todays_names

SCHEMA = 1
ANALYSIS_SCHEMA = 1

# Files of a run folder.
RESULT = "result.json"
HISTORY = "history.csv"
TOP_K = "topk.parquet"
REPORT = "report.html"
ANALYSIS = "analysis.json"
PER_QUERY = "per_query.parquet"
CAMERA_PAIRS = "camera_pairs.csv"
LAST = "last.ckpt"
BEST = "best.ckpt"


class ResultError(ValueError):
    """A result file that cannot be used; the message names it."""


@dataclass(frozen=True)
class Protocol:
    """How a number was measured. Two numbers may share a table cell only if their protocols are equal.

    Attributes:
        task: ``reid`` (single query, cameras), ``reid_multi_query``, ``reid_single_shot`` or ``retrieval`` (Recall@K).
        dataset: key of the dataset evaluated on.
        image_size: height and width of the network's input, pixels.
        precision: arithmetic of the embedding, ``32-true`` or ``bf16-mixed``.
        normalize: scaling of the embedding before distances: ``none``, ``joint`` or ``per_branch``.
        ap_at: rank at which average precision is cut, None for the full list.
        flip: embeddings of an image and its mirror image are averaged.
        rerank: k1, k2 and lambda of k-reciprocal re-ranking, None where there is none.
        pad_to_square: the shorter side of every image is padded before it is resized.
        decode_margin: how many times as large as needed JPEGs stayed that were decoded to a part of their size; None: all
            were decoded in full.
        query_pooling: multi-query: ``mean`` or ``max`` over the embeddings of a query's images; None for single queries.
        measure: ``euclidean`` or ``cosine``.
        scales: factors by which every image is resized; the embeddings are averaged; empty: the image as it is.
        query_expansion: k and alpha of query expansion, None where there is none.
        single_shot: random galleries with one image per identity, over which Rank-k is averaged; None: the whole gallery.
    """

    task: str
    dataset: str
    image_size: tuple[int, int]
    precision: str = "32-true"
    normalize: str = "none"
    ap_at: int | None = None
    flip: bool = False
    rerank: Mapping[str, float] | None = None
    pad_to_square: bool = False
    decode_margin: float | None = 2.0
    query_pooling: str | None = None
    measure: str = "euclidean"
    scales: tuple[float, ...] = ()
    query_expansion: Mapping[str, float] | None = None
    single_shot: int | None = None


@dataclass(frozen=True)
class Result:
    """One run's record.

    Attributes:
        kind: ``train`` or ``evaluate``.
        metrics: fractions in 0..1 (and ``valid_queries``), of the checkpoint that ``checkpoint`` names.
        checkpoint: ``last``, or the path of the file that was evaluated.
        data: name, fingerprint and counts of the dataset evaluated on; ``train`` adds those of the training rows.
        plain: the same metrics without re-ranking and query expansion, where there was either.
        before: the same metrics of the network before training, where they were asked for.
        best: metrics and epoch of the best checkpoint. It was chosen on the test set, which its ``note`` says.
        seconds: wall-clock seconds per phase; ``images_per_second`` likewise.
    """

    kind: str
    metrics: Mapping[str, float]
    protocol: Protocol
    checkpoint: str
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int
    plain: Mapping[str, float] | None = None
    before: Mapping[str, float] | None = None
    best: Mapping[str, Any] | None = None
    epochs: int | None = None
    parameters: int | None = None
    embedding_dim: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    hardware: Mapping[str, Any] = field(default_factory=lambda: hardware())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def write(self, path: str | Path) -> Path:
        """Write the record; a reader sees the old file or the whole new one, never a part."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False, default=str) + "\n"
        return write_atomically(Path(path), text.encode())


def read_result(path: str | Path) -> Result:
    """Read a ``result.json``.

    Raises:
        ResultError: the file is missing, half-written, or of another schema; the message names it.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: no result there ({error.strerror}); a run writes it when it ends") from error
    except ValueError as error:
        raise ResultError(f"{path}: not a complete result ({error}); run the training or evaluation again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise ResultError(f"{path}: schema {found}, this version reads schema {SCHEMA}; measure again")
    try:
        protocol = dict(record.pop("protocol"))
        protocol["image_size"] = tuple(protocol["image_size"])
        protocol["scales"] = tuple(protocol.get("scales", ()))
        record["config"] = with_todays_names(record["config"])
        return Result(protocol=Protocol(**protocol), **record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"{path}: not a record of this schema ({error}); measure again") from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file through a temporary one beside it and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a number."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in (
        "bdbnet",
        "torch",
        "torchvision",
        "pytorch-lightning",
        "torchmetrics",
        "numpy",
        "pillow",
        "simplejpeg",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, usable cores and GPUs of this machine."""
    import torch

    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"processor": processor, "cores": cores, "gpus": gpus}
