"""From a file of another program to a folder that `bdbnet.load` reads, with an account of what became of every key."""

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from bdbnet.checked import read_json
from bdbnet.config import ConfigError
from bdbnet.evaluation.embedder import Embedder, Origin
from bdbnet.evaluation.load import Wanted, open_embedder, recognised, weights_of
from bdbnet.evaluation.network import count_parameters
from bdbnet.evaluation.saved import RECORD, WEIGHTS, is_saved
from bdbnet.files import write_atomically
from bdbnet.models import CheckpointError, read_checkpoint, read_state_dict
from bdbnet.models.formats import known_format
from bdbnet.models.weights import digest_of, keys_in, left_unread
from bdbnet.results import read_result

_SHOWN = 12  # groups of keys that are listed
_TRAINING = "state of the training, which no embedding needs"
#: Parts of our names that only training uses -> why they are left out.
_OF_TRAINING = {
    ".classifier.": "classifier of the training identities, which no embedding needs",
    ".drop.": "counter of the drop layer, which no embedding needs",
}


@dataclass(frozen=True)
class Conversion:
    """What became of a file.

    Attributes:
        program: who wrote it.
        mapped: (group of keys in the file, group of ours) -> number of keys.
        left_out: (group of keys or entry of the file, why) -> number of keys.
        assumed: what the file does not say, as sentences.
    """

    program: str
    mapped: Mapping[tuple[str, str], int]
    left_out: Mapping[tuple[str, str], int]
    assumed: tuple[str, ...]


def convert(
    source: str,
    output: str | Path,
    wanted: Wanted,
    *,
    half: bool = False,
    overwrite: bool = False,
    result: str | Path | None = None,
    terms: str | None = None,
) -> Embedder:
    """Write the embedder of any source that `bdbnet.load` reads into a folder.

    Args:
        half: keep the weights as float16, half the size; they are computed with in float32, rounded. Tensors with values that
            float16 does not hold stay float32. Where rounding changes a weight, calibration and threshold are dropped.
        overwrite: replace a network that the folder holds; other files in it stay.
        result: a `result.json` of `bdbnet.evaluate` of this network, whose metrics and protocol the record and the card shall say.
            It does not name weights, so what it does say is compared: the number of parameters, the length of the embedding, how
            images are prepared, the embedding's settings and the distance. Another file name of the checkpoint is warned of.
        terms: of the weights, for the record and the card.

    Raises:
        ConfigError: the output holds something and `overwrite` is not set; a result of a network that differs in what is
            compared.
        CheckpointError: see `bdbnet.load`.
        ResultError: no result can be read there.
    """
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={output}: a file; give a folder, new or empty")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not overwrite:
        what = "a saved network" if is_saved(folder) else ", ".join(there[:3])
        raise ConfigError(f"output={output}: the folder holds {what}; give another one, or replace with overwrite=true")
    embedder = open_embedder(source, wanted, device="cpu")
    if result is not None:
        embedder.origin = _with_result(embedder, result)
    if terms is not None:
        provenance = {**(embedder.origin.provenance or {}), "terms": terms}
        embedder.origin = replace(embedder.origin, provenance=provenance)
    if half and _rounded(embedder):
        _forget_measured(embedder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        made = embedder.save(Path(place) / folder.name)
        if half:
            _halve(made)
        folder.mkdir(exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        # The record comes last: until it is there, the folder is no saved network.
        for path in sorted(made.iterdir(), key=lambda path: path.name == RECORD):
            path.replace(folder / path.name)
    return embedder


def _as_half(tensor: Tensor) -> Tensor:
    """As float16; as it is where that turns a number into infinity, or where it is no float32."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def _rounded(embedder: Embedder) -> bool:
    """Round the weights to what float16 holds; whether that changed any.  Warns of tensors that stay as they are."""
    changed, kept = False, []
    for key, tensor in embedder.network.state_dict().items():
        half = _as_half(tensor).to(tensor.dtype)
        if half is tensor and tensor.dtype == torch.float32:
            kept.append(key)
        changed |= not torch.equal(tensor, half)
        tensor.copy_(half)
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        warnings.warn(
            f"half=true: {', '.join(kept[:3])}{more}: holds numbers above {torch.finfo(torch.float16).max:,.0f}, which float16 "
            "does not: kept in float32",
            stacklevel=3,
        )
    return changed


def _forget_measured(embedder: Embedder) -> None:
    """Drop what was chosen for the weights before they were rounded, and mark what was measured of them."""
    if embedder.calibration is not None or embedder.threshold is not None:
        embedder.calibration = embedder.threshold = None
        warnings.warn(
            "half=true: the threshold was chosen before the weights were rounded, and is left out: calibrate the new folder "
            "with python -m bdbnet.calibrate",
            stacklevel=3,
        )
    if embedder.origin.protocol:
        notes = [embedder.origin.protocol.get("note"), "measured before the weights were rounded to float16"]
        protocol = {**embedder.origin.protocol, "note": "; ".join(filter(None, notes))}
        embedder.origin = replace(embedder.origin, protocol=protocol)


def _with_result(embedder: Embedder, path: str | Path) -> Origin:
    """The origin with what an evaluation measured.  Raises ConfigError unless it is of such a network, used alike."""
    found = read_result(path)
    protocol, preprocessing, settings = found.protocol, embedder.preprocessing, embedder.settings
    if found.kind != "evaluate" or protocol.from_features:
        raise ConfigError(
            f"result={path}: of a training or of features; give the result.json that bdbnet.evaluate checkpoint= wrote"
        )
    compared = {
        "parameters": (found.parameters, count_parameters(embedder.network)),
        "numbers an embedding": (found.embedding_dim, embedder.dimensions),
        "image size": (tuple(protocol.image_size or ()), preprocessing.image_size),
        "padding to a square": (protocol.pad_to_square, preprocessing.pad_to_square),
        "other preprocessing": (protocol.preprocessing or {}, preprocessing.unusual()),
        "precision": (protocol.precision, settings.precision),
        "normalisation": (protocol.normalize, settings.normalize),
        "flip": (protocol.flip, settings.flip),
        "scales": (protocol.scales or (1.0,), settings.scales),
        "distance": (protocol.measure, embedder.distance_name),
    }
    if apart := [f"{name} {theirs}, this one {ours}" for name, (theirs, ours) in compared.items() if theirs != ours]:
        raise ConfigError(
            f"result={path}: measured of another network or in another way ({'; '.join(apart)}). Give the result.json of "
            f"python -m bdbnet.evaluate checkpoint={embedder.origin.source}"
        )
    measured, source = (Path(name).name for name in (found.checkpoint, embedder.origin.source))
    if measured != source:
        warnings.warn(
            f"result={path}: measured of {found.checkpoint}, while this is {embedder.origin.source}: make sure that both are the "
            "same network",
            stacklevel=3,
        )
    return replace(embedder.origin, metrics=found.metrics, protocol=protocol.record())


def account(source: str, wanted: Wanted) -> Conversion:
    """What of a source goes where.  Raises CheckpointError."""
    path = weights_of(source)
    if path is None:
        raise CheckpointError(f"{source}: a pretrained network as it is needs no folder; load it by its name")
    content, state = read_checkpoint(path), read_state_dict(path)
    ours = (isinstance(content, dict) and "bdbnet" in content) or is_saved(path.parent)
    typed = wanted.model is not None and wanted.backbone is not None and not ours
    format = known_format(state, source) if typed else None if ours else recognised(path, source, wanted).format
    keys = dict(zip(state, state)) if format is None else format.keys
    program = "bdbnet" if format is None else format.program
    if typed:
        keys = keys_in(open_embedder(source, wanted, device="cpu").network, path)
        if format is None and any(theirs != our for theirs, our in keys.items()):
            program = "a program that is not known"
    mapped: Counter[tuple[str, str]] = Counter()
    left_out: Counter[tuple[str, str]] = Counter()
    for theirs, our in keys.items():
        why = next((why for part, why in _OF_TRAINING.items() if part in f".{our}"), None)
        if why is None:
            mapped[_groups(theirs, our)] += 1
        else:
            left_out[_groups(theirs, our)[0], why] += 1
    reasons = {} if format is None else format.left_out
    for key in state:
        if key not in keys:
            left_out[_head(key), reasons.get(key, "no part of the network")] += 1
    unread, beside = left_unread(content, path)
    for key in unread:
        left_out[_head(key), "beside the network, such as parameters of a loss"] += 1
    for name in beside:
        left_out[name, _TRAINING] += 1
    assumed = () if format is None or typed else format.assumed
    return Conversion(program, mapped, left_out, assumed)


def account_text(found: Conversion) -> str:
    """An account for people."""
    total = sum(found.mapped.values())
    lines = [f"written by {found.program}", f"mapped {total} keys:"]
    lines += _listed((f"{theirs} -> {ours}", count) for (theirs, ours), count in found.mapped.items())
    lines.append("left out:" if found.left_out else "left out: nothing")
    lines += _listed((f"{group}: {why}", count) for (group, why), count in found.left_out.items())
    if found.assumed:
        lines += ["assumed:", *(f"  {said}" for said in found.assumed)]
    return "\n".join(lines)


def preprocessing_text(embedder: Embedder) -> str:
    """How images are prepared and embeddings compared, for people."""
    preprocessing = embedder.preprocessing
    size = " x ".join(map(str, preprocessing.image_size))
    padded = "padded to a square, then " if preprocessing.pad_to_square else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return (
        f"preprocessing: {padded}resized to {size} ({preprocessing.interpolation}), {preprocessing.channel_order.upper()}, "
        f"mean {mean}, deviation {std}\nembedding: {embedder.dimensions:,} numbers, compared by {embedder.distance_name} distance"
    )


def _listed(rows: Iterable[tuple[str, int]]) -> list[str]:
    rows = list(rows)
    more = [f"  ... and {len(rows) - _SHOWN} more groups"] if len(rows) > _SHOWN else []
    return [f"  {count:4}  {text}" for text, count in rows[:_SHOWN]] + more


def _groups(theirs: str, ours: str) -> tuple[str, str]:
    """The beginnings by which two names of a key differ.

    >>> _groups("backbone.4.0.bn1.weight", "backbone.layer1.0.bn1.weight"), _groups("conv1.weight", "backbone.conv1.weight")
    (('backbone.4.*', 'backbone.layer1.*'), ('*', 'backbone.*'))
    >>> _groups("backbone.conv1.weight", "backbone.conv1.weight")
    ('backbone.*', 'backbone.*')
    """
    if theirs == ours:
        return _head(theirs), _head(theirs)
    left, right = theirs.split("."), ours.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return ".".join([*left, "*"]), ".".join([*right, "*"])


def _head(key: str) -> str:
    """The group of a key: its first part, of branches and heads the first two."""
    parts = key.split(".")
    depth = 2 if parts[0] in ("branches", "heads", "copies", "network") and len(parts) > 2 else 1
    return ".".join([*parts[:depth], "*"]) if len(parts) > depth else key


def _halve(folder: Path) -> None:
    """Rewrite the weights of a saved network as float16, and their digest in its record."""
    state = safetensors.torch.load_file(folder / WEIGHTS)
    state = {key: _as_half(tensor) for key, tensor in state.items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state, {"format": "pt"}))
    record = read_json(folder / RECORD)
    content = json.dumps(record | {"digest": digest_of(state)}, indent=2) + "\n"
    write_atomically(folder / RECORD, content.encode())
