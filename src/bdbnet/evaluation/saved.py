"""An embedder in a folder: `model.safetensors`, `bdbnet.json` and a `README.md` that says what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import safetensors.torch

from bdbnet.checked import Holds, Plain, checked, read_json
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.card import model_card
from bdbnet.loading import Preprocessing
from bdbnet.models import CheckpointError, read_checkpoint
from bdbnet.models.weights import digest_of
from bdbnet.renamed import with_todays_names
from bdbnet.results import RunSettings, versions, write_atomically

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

SCHEMA = 1
RECORD, WEIGHTS, CARD = "bdbnet.json", "model.safetensors", "README.md"


class _Groups(TypedDict):
    """Groups of a configuration that a network is built from."""

    model: Mapping[str, Any]
    backbone: Mapping[str, Any]


class _Settings(TypedDict):
    """Of `EmbeddingSettings`."""

    precision: str
    normalize: str
    flip: bool
    scales: tuple[float, ...]


class _Provenance(TypedDict, total=False):
    """See `Origin.provenance`."""

    epochs: int
    program: str
    assumed: tuple[str, ...]
    trained_on: str
    terms: str
    published: Mapping[str, float]


class _Record(TypedDict):
    """What the record says."""

    source: str
    network: Annotated[_Groups, Holds(Plain)]
    preprocessing: Preprocessing
    settings: _Settings
    distance: Literal["euclidean", "cosine"]
    threshold: float | None
    calibration: NotRequired[Mapping[str, Any]]
    trained_with: Annotated[RunSettings, Holds(Plain)] | None
    metrics: Mapping[str, float] | None
    protocol: Mapping[str, Any] | None
    provenance: NotRequired[Annotated[Mapping[str, Any], Holds(_Provenance)] | None]


def is_saved(folder: Path) -> bool:
    """Whether `save_embedder` wrote this folder."""
    return (folder / RECORD).is_file()


def require_place(folder: Path) -> None:
    """Raise CheckpointError where an embedder can't be saved without mixing it with other files."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: a file; give a new or empty folder")
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in others if name not in (RECORD, WEIGHTS, CARD)]
    if others and not is_saved(folder):
        raise CheckpointError(f"{folder}: the folder holds {', '.join(others[:3])}; give a new or empty one")


def save_embedder(embedder: "Embedder", folder: str | Path) -> Path:
    """Write an embedder into a folder, which `bdbnet.load` reads on any machine; the record comes last.

    Raises:
        CheckpointError: the folder holds other files, or the network is one that its source alone names.
        OSError: the folder can't be written to.
    """
    place = Path(folder).expanduser()
    if not embedder.origin.network:
        raise CheckpointError(
            f"{embedder.origin.source}: a pretrained network as it is needs no folder; load it by its name"
        )
    require_place(place)
    place.mkdir(parents=True, exist_ok=True)
    (place / RECORD).unlink(missing_ok=True)  # from here on it is no saved embedder, until all of it is there again
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in embedder.network.state_dict().items()}
    write_atomically(place / WEIGHTS, safetensors.torch.save(state, {"format": "pt"}))
    record = {
        "schema": SCHEMA,
        "source": Path(embedder.origin.source).name,
        "fingerprint": embedder.fingerprint,
        "digest": digest_of(state),
        "dimensions": embedder.dimensions,
        "network": embedder.origin.network,
        "preprocessing": asdict(embedder.preprocessing),
        "settings": asdict(embedder.settings),
        "distance": embedder.distance_name,
        "threshold": embedder.threshold,
        "trained_with": embedder.origin.trained_with,
        "metrics": embedder.origin.metrics,
        "protocol": embedder.origin.protocol,
        "versions": versions(),
    }
    if embedder.calibration is not None:  # versions that know no calibration read folders without one
        record["calibration"] = embedder.calibration.record()
    if embedder.origin.provenance is not None:
        record["provenance"] = embedder.origin.provenance
    write_atomically(place / CARD, model_card(embedder, _threshold(embedder)).encode())
    write_atomically(place / RECORD, (json.dumps(record, indent=2, default=str) + "\n").encode())
    return place


def read_saved(folder: Path) -> tuple[dict[str, Any], Path]:
    """The record of a saved embedder, its preprocessing as such, and a file of its weights that `load_network` reads.

    Raises:
        CheckpointError: a file is missing, damaged or of another schema.
    """
    try:
        content = read_json(folder / RECORD)
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise CheckpointError(f"{folder / RECORD}: schema {found}, this version reads schema {SCHEMA}")
        record: dict[str, Any] = {**checked(content, _Record)}
        calibration = record.get("calibration")
        record["calibration"] = None if calibration is None else Calibration.from_json(calibration)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged ({error}): save it again") from error
    record["network"] = with_todays_names(record["network"])
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is not there: copy the folder again")
    return record, folder / WEIGHTS


def check_weights(record: Mapping[str, Any], weights: Path) -> None:
    """Raise CheckpointError unless the weights are those that were saved with the record; older records do not say."""
    if record.get("digest", "") not in ("", digest_of(read_checkpoint(weights))):
        raise CheckpointError(
            f"{weights}: damaged or edited: not the weights that were saved there. Copy the folder again"
        )


def _threshold(embedder: "Embedder") -> str:
    calibration = embedder.calibration
    if calibration is None or embedder.threshold != calibration.threshold:
        return "not calibrated" if embedder.threshold is None else str(embedder.threshold)
    low, high = calibration.reached.interval
    return (
        f"{calibration.threshold:.4g}, chosen for a false match rate of {calibration.fmr:g} on {calibration.chosen_on.data}; on "
        f"{calibration.held_out.identities} other identities {calibration.reached.value:.2g} ({low:.2g} to {high:.2g})"
    )
