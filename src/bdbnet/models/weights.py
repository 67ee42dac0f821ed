"""Weights from files: safe reading, and strict loading.

A file may hold this project's checkpoint (written by Lightning, or a plain `state_dict` of a `BDBNetwork`),
torchreid's OSNet, a model of torchvision or timm, or the training checkpoint of another program. `load_network` restores a
whole network. Starting weights come in two steps: a backbone's own `weights` argument fills the backbone alone; for a file,
`initialize_from` then fills what the file holds of the branches too (torchreid's `fc` is our global branch).
"""

import argparse
import datetime
import hashlib
import pathlib
import pickle
import re
import typing
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import omegaconf
import omegaconf.base
import omegaconf.nodes
import safetensors.torch
import torch
import torchvision.models
from safetensors import SafetensorError
from torch import Tensor, nn

from bdbnet.missing import no_weights
from bdbnet.models.formats import known_format
from bdbnet.regular_files import require_regular
from bdbnet.renamed import todays_module

_CLASSIFIER, _COUNTER = ".classifier.", ".drop.step"
#: What to do with a file of fast-reid.
FAST_REID_HEADS = (
    "heads.* are the heads of fast-reid; only its ResNets with a batch-norm neck (BoT, SBS, AGW) are recognised, without "
    "model= and backbone=. The backbone of this file can start a training, such as backbone=resnet50 backbone.weights=<file>"
)
_SHOWN = 4  # keys that an error message lists of each kind
_ENTRIES = 8  # entries of a file that an error message lists
#: Entries under which programs put the weights: torchreid, Lightning, timm and many others; fast-reid, detectron2, DeiT.
_WEIGHTS = ("state_dict", "model", "model_state_dict")
#: What programs wrap around a network's keys: DataParallel, a LightningModule's attribute.
_WRAPPERS = ("module.", "model.", "extractor.")
#: How files that are no weights begin.
_OTHER_FILES = {
    b"<!doctype html": "a web page: the download led to a page instead of the file",
    b"<html": "a web page: the download led to a page instead of the file",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"\x89hdf": "an HDF5 file: convert it to PyTorch with the program that wrote it",
    b"\x1f\x8b": "a gzip archive: unpack it and give the file inside",
}
# torchvision's DenseNet files have keys such as norm.1, but its modules are called norm1.
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.")


@runtime_checkable
class _HasCopies(Protocol):
    """A network whose `copies` start as the last stages of its backbone."""

    copies: nn.ModuleDict

    def copy_backbone(self, names: Iterable[str]) -> None: ...


@runtime_checkable
class _OfAnotherLibrary(Protocol):
    """A backbone that wraps a model of another library, whose files have that library's keys."""

    def own_keys(self, state: dict[str, Tensor], source: str) -> dict[str, Tensor]: ...


@runtime_checkable
class _Extended(Protocol):
    """A backbone with layers that the network of its name does not have.

    Attributes:
        added_layers: their names.
        new_layers: names of those that the starting weights did not have.
    """

    added_layers: tuple[str, ...]
    new_layers: tuple[str, ...]


class CheckpointError(ValueError):
    """A file of weights that is missing, unreadable, unsafe to read or of another architecture."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, on the CPU, without running code from the file.

    Takes a plain `state_dict`, one under the key "state_dict" (Lightning, torchreid), "model" (fast-reid) or
    "model_state_dict", whatever stands beside it, safetensors, and both formats of `torch.save`. Of a Lightning checkpoint only
    the network is returned, without its "network.", "model." or "extractor." prefix; "module." (DataParallel) and
    "_orig_mod." (torch.compile) are taken off.

    Raises:
        CheckpointError: missing, empty, truncated or not a checkpoint; objects in it that need code to be rebuilt; no weights
            under one of these keys, with the keys that are there.
    """
    return _tensors(read_checkpoint(path), Path(path))


def left_unread(content: Any, path: Path) -> tuple[list[str], list[str]]:
    """What `read_state_dict` leaves out of the content of a file: keys beside the network's, and entries beside the weights."""
    name = _entry_of_weights(content)
    kept = {id(tensor) for tensor in _tensors(content, path).values()}
    state = content if name is None else content[name]
    keys = [str(key) for key, tensor in state.items() if id(tensor) not in kept]
    return keys, [] if name is None else [str(entry) for entry in content if entry not in (name, "bdbnet")]


def keys_in(network: nn.Module, path: Path) -> dict[str, str]:
    """Key in a file -> key of `network`, of every tensor that `load_network` knows a place for.  Raises CheckpointError."""
    backbone = getattr(network, "backbone", None)
    other = backbone if isinstance(backbone, _OfAnotherLibrary) else None
    state = {key: tensor.clone() for key, tensor in read_state_dict(path).items()}
    named = _network_keys(state, other, str(path))
    ours = {tensor.untyped_storage().data_ptr(): key for key, tensor in named.items()}
    found = {key: ours.get(tensor.untyped_storage().data_ptr()) for key, tensor in state.items()}
    if other is not None:  # the library may have copied the tensors
        found = {key: name or next((of for of in named if of.endswith(f".{key}")), None) for key, name in found.items()}
    return {key: name for key, name in found.items() if name is not None}


def read_checkpoint(path: str | Path) -> Any:
    """Everything in a file that `torch.save` or safetensors wrote, on the CPU, if it is tensors and plain values alone.

    Plain are also what engines put beside the weights: NumPy arrays and numbers, argparse's and OmegaConf's settings, paths,
    dates.

    Raises:
        CheckpointError: as `read_state_dict`, and where a checkpoint of ours is not what was saved.
    """
    path = Path(path).expanduser()
    try:
        require_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path} {error.strerror}") from None
    if not path.is_file():
        raise CheckpointError(no_weights(path))
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: damaged or no safetensors file ({error}); copy or download it again"
            ) from error
    _refuse_other_files(path)
    try:
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: refused: it contains {found[1]}, which is neither a tensor nor a plain value, and loading it would run "
                "code from the file; if you trust its source, open it in an isolated environment with "
                'content = torch.load(path, weights_only=False) and save only its tensors: torch.save(content["state_dict"], '
                "new_path), or, where it holds a whole network, torch.save(content.state_dict(), new_path)"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint written by torch.save, or damaged") from error
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error})") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint; copy or download it again") from error
    _check_digests(content, path)
    return content


#: Entries of a checkpoint that have a digest of their own: who leaves one out, or changes another, still has a checkpoint.
_DIGESTED = ("state_dict", "averaging", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
_DIGESTS = "digests"
_checked: set[tuple[object, ...]] = set()  # files of this process whose digests were found right


def digests_of(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a checkpoint's entries, for its entry `bdbnet`; `read_checkpoint` compares them with the content.

    Of an entry with other things than tensors and plain values there is none.
    """
    found = {}
    for name in _DIGESTED:
        if name in checkpoint:
            with suppress(TypeError, ValueError, RuntimeError):  # of a file that someone made: whatever its tensors are
                found[name] = digest_of(checkpoint[name])
    return found


def digest_of(state: Any) -> str:
    """SHA-256 of tensors and plain values, nested in mappings (in any order) and sequences.

    Raises:
        TypeError: there is something else in it.
    """
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        parts = [part if isinstance(part, bytes) else pool.submit(_hash_of, part) for part in _parts(state)]
        return hashlib.sha256(
            b"".join(part if isinstance(part, bytes) else part.result() for part in parts)
        ).hexdigest()


def _parts(value: Any) -> Iterator[bytes | Tensor]:
    """What is in a nested value, in one order: a line for each thing, and the tensors, each behind its own line."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise TypeError("a tensor that is sparse, quantized or without content")
        yield f"tensor {value.dtype} {tuple(value.shape)}\n".encode()
        yield value
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for key in sorted(value, key=repr):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}\n".encode()
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, str | int | float | bool):
        yield f"{type(value).__name__} {value!r}\n".encode()
    else:
        raise TypeError(f"a {type(value).__name__}")


def _hash_of(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().data).digest()


def _check_digests(content: Any, path: Path) -> None:
    """Raise CheckpointError where an entry of a checkpoint is not what was saved. Those of earlier versions have no digests."""
    ours = content.get("bdbnet") if isinstance(content, dict) else None
    digests = ours.get(_DIGESTS) if isinstance(ours, dict) else None
    if not isinstance(digests, dict):
        return
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if key in _checked:
        return
    now = digests_of(content)
    wrong = [name for name, digest in digests.items() if name in content and now.get(name) != digest]
    if wrong:
        raise CheckpointError(
            f"{path}: damaged or edited: {', '.join(wrong)} not as saved there (SHA-256). Copy the file again. If you changed it "
            "on purpose, take the digests out: checkpoint['bdbnet'].pop('digests'), then torch.save"
        )
    _checked.add(key)


def load_network(network: nn.Module, path: str | Path, *, classifiers: Literal["keep", "drop"] = "keep") -> None:
    """Restore a whole network from `path`, strictly. torchreid's OSNet is a network with `branches=["global"]`.

    With `classifiers="drop"` the classifiers of the file are left out and those of the network, if any, stay as they
    are: for evaluation, where the number of training identities does not matter.

    Raises:
        CheckpointError: as `read_state_dict`, and when a key is missing, left over or of another shape.
    """
    if classifiers not in ("keep", "drop"):
        raise ValueError(f"classifiers must be 'keep' or 'drop', got {classifiers!r}")
    backbone = getattr(network, "backbone", None)
    other = backbone if isinstance(backbone, _OfAnotherLibrary) else None
    state, own = _network_keys(read_state_dict(path), other, str(path)), network.state_dict()
    # The drop layer's counter is not a weight: the network's drop layer may differ from the file's, or be absent.
    exempt = {key for key in {*state} ^ {*own} if key.endswith(_COUNTER)}
    if classifiers == "drop":
        exempt |= {key for key in {*state, *own} if _CLASSIFIER in key}
    chosen = {key: tensor for key, tensor in state.items() if key not in exempt}
    load_strictly(network, chosen | {key: own[key] for key in exempt & {*own}}, str(path))


def training_identities(path: str | Path) -> int:
    """How many identities the classifiers in a file of weights know; 0 where it has none.

    Raises:
        CheckpointError: see `read_state_dict`.
    """
    ends = (".classifier.weight", "softmax.weight")  # the second in the released BDB code
    state = read_state_dict(path)
    found = {tensor.shape[0] for key, tensor in state.items() if f".{key}".endswith(ends) and tensor.ndim == 2}
    return found.pop() if len(found) == 1 else 0


def initialize_from(network: nn.Module, path: str | Path) -> list[str]:
    """Starting weights for a network: the backbone, and every branch that the file holds too, each loaded strictly.

    Classifiers, drop layers and branches that the file does not have, or has with another head ("linear" or "bnneck"), stay as
    initialised; branches of the file that the network does not have are left out. Copies of the backbone's last stages (MGN)
    that the file does not have are filled from the backbone.

    Returns:
        Names of the modules that were loaded, such as ["backbone", "branches.global_"].

    Raises:
        CheckpointError: as `read_state_dict`, and when the file lacks the backbone or a part has other keys or shapes.
    """

    def is_weight(key: str) -> bool:
        return _CLASSIFIER not in key and not key.endswith(_COUNTER)

    state = _network_keys(read_state_dict(path), getattr(network, "backbone", None), str(path))
    own = network.state_dict()
    branches = {".".join(key.split(".")[:2]): None for key in own if key.startswith(("branches.", "copies."))}
    parts = ["backbone", *(name for name in branches if _has(f"{name}.", state) and _has_same_head(name, state, own))]
    chosen = tuple(f"{name}." for name in parts)
    state |= _of_new_layers(getattr(network, "backbone", None), state)
    weights = {key: tensor for key, tensor in state.items() if key.startswith(chosen) and is_weight(key)}
    rest = {key: tensor for key, tensor in own.items() if not (key.startswith(chosen) and is_weight(key))}
    load_strictly(network, rest | weights, str(path))
    if isinstance(network, _HasCopies):
        network.copy_backbone([name for name in network.copies if f"copies.{name}" not in parts])
    return parts


def _has(start: str, state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(start) for key in state)


def _has_same_head(branch: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether both end in a `BNNeck`, or neither."""
    return _has(f"{branch}.neck.", state) == _has(f"{branch}.neck.", own)


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fill a backbone from the backbone's part of the file, strictly but for layers that the backbone adds to its network."""
    state = _network_keys(read_state_dict(path), backbone, str(path))
    state |= _of_new_layers(backbone, state)
    load_strictly(backbone, _below("backbone.", state), str(path))


def load_imagenet(backbone: nn.Module, name: str) -> None:
    """Fill a backbone from the weights of torchvision's model `name`, strictly; they are downloaded once.

    IMAGENET1K_V1 where there is one, so that results stay comparable, else torchvision's default.

    Raises:
        CheckpointError: the download failed, or the weights have other keys or shapes than the backbone.
    """
    choices = torchvision.models.get_model_weights(name)
    weights = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, refused, folder not writable; a hash that differs
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({error}); "
            "use backbone.weights=none to start from random weights, or backbone.weights=<file> with a local copy"
        ) from error
    named = _network_keys(state)
    named |= _of_new_layers(backbone, named)
    load_strictly(backbone, _below("backbone.", named), f"torchvision's ImageNet weights of {name}")


def _of_new_layers(backbone: nn.Module | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layers that a backbone adds to its network and `state` lacks, as they are initialised; `new_layers` names them."""
    if backbone is None or not isinstance(backbone, _Extended):
        return {}
    new = [name for name in backbone.added_layers if not any(key.startswith(f"backbone.{name}.") for key in state)]
    backbone.new_layers = tuple(new)
    starts = tuple(f"{name}." for name in new)
    return {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items() if key.startswith(starts)}


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """`load_state_dict` that first compares all keys and shapes, so that a refused file changes nothing.

    Raises:
        CheckpointError: names `source` and the first keys that are missing, left over or of another shape, with both
            shapes.
    """
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 lack this counter, which does not affect results.
    state = {key: tensor for key, tensor in own.items() if key.endswith("num_batches_tracked")} | state
    missing = [f"{key} {tuple(own[key].shape)}" for key in own if key not in state]
    left_over = [f"{key} {tuple(state[key].shape)}" for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the network"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    kinds = {"missing in the file": missing, "only in the file": left_over, "with another shape": reshaped}
    faults = [
        f"  {len(keys)} {kind}: {'; '.join(keys[:_SHOWN])}{'; ...' if len(keys) > _SHOWN else ''}"
        for kind, keys in kinds.items()
        if keys
    ]
    if faults:
        heading = f"{source}: the checkpoint does not match the architecture of {type(module).__name__}"
        differing = {*own} ^ {*state} | {key for key in own if key in state and own[key].shape != state[key].shape}
        raise CheckpointError("\n".join([heading, *faults, _advice(differing)]))
    module.load_state_dict(state)


def _advice(differing: Iterable[str]) -> str:
    """What to do about keys that a file and a network do not share."""
    differing = list(differing)
    if all(_CLASSIFIER in f".{key}" for key in differing):
        return "Only classifiers differ, so the number of training identities does: load without classifiers."
    if any(key.startswith("heads.") for key in differing):
        return FAST_REID_HEADS
    return "Choose the backbone, width and branches that the file was trained with."


def _refuse_other_files(path: Path) -> None:
    """Raise CheckpointError for files that are known and hold no weights that can be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
        names: list[str] = []
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return  # whoever reads it says what is wrong
    for beginning, kind in _OTHER_FILES.items():
        if start.startswith(beginning):
            raise CheckpointError(f"{path}: not a checkpoint but {kind}")
    if not is_zip:
        return
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise CheckpointError(
            f"{path}: refused: a TorchScript archive (torch.jit.save), which holds a program beside the weights; if you trust its "
            "source, save only its tensors in an isolated environment: "
            'torch.save(torch.jit.load(path, map_location="cpu").state_dict(), new_path)'
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path}: not a checkpoint but a zip archive of {', '.join(names[:_SHOWN]) or 'nothing'}"
            f"{', ...' if len(names) > _SHOWN else ''}: unpack it and give the file of weights inside"
        )


def _plain_values() -> list[Any]:
    """Classes and functions that rebuild plain values without running anything of a file's choosing, for `torch.load`."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numpy: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDSU"}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        numpy += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    paths: list[Any] = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
        # A path of another system can be named, but not opened.
        for kind in [pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath]
    ]
    settings: list[Any] = [
        omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.base.ContainerMetadata, omegaconf.base.Metadata,
        (typing.Any, "typing.Any"),
        *(getattr(omegaconf.nodes, f"{kind}Node") for kind in ("Any", "String", "Integer", "Float", "Boolean", "Path")),
    ]  # fmt: skip
    return [
        # PyTorch's reader fills no other dictionary than a plain one.
        argparse.Namespace, (lambda *_: {}, "collections.defaultdict"), list, dict, int, float, str, bool,
        datetime.datetime, datetime.date, datetime.timedelta, *numpy, *paths, *settings,
    ]  # fmt: skip


_PLAIN = _plain_values()


def _entry_of_weights(content: Any) -> str | None:
    """The entry of a checkpoint that holds the weights; None where they are all of it."""
    entries = content if isinstance(content, dict) else {}
    return next((name for name in _WEIGHTS if isinstance(entries.get(name), dict) and entries[name]), None)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    entries = content if isinstance(content, dict) else {}
    name = _entry_of_weights(content)
    state = content if name is None else entries[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: not a file of weights: it holds no state_dict (tensors by key){_entries(content, name)}"
        )
    for key, tensor in state.items():
        if kind := _unusable(tensor):
            raise CheckpointError(
                f"{path}: {key} is {kind}; save the weights as ordinary tensors of numbers: torch.save(model.state_dict(), path)"
            )
    state = {str(key).replace("_orig_mod.", ""): value for key, value in state.items()}
    own = _below("network.", state)
    state = own or state
    # A LightningModule may have a loss with parameters beside its network.
    beside = name is not None and "pytorch-lightning_version" in entries
    while not own and (inside := _unwrapped(state, _WRAPPERS if name else _WRAPPERS[:1], beside=beside)):
        state = inside
    state = _unwrapped(state, _WRAPPERS[:1], beside=False) or state
    return {todays_module(key): tensor for key, tensor in state.items()}


def _unusable(tensor: Tensor) -> str:
    """Why a tensor is no weight that a network of ours can take; "" for one that it can."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "a nested tensor" if tensor.is_nested else "a sparse tensor"
    if tensor.is_meta:
        return "a tensor without numbers (on the device meta)"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    return "complex" if tensor.is_complex() else ""


def _unwrapped(state: dict[str, Tensor], wrappers: Iterable[str], *, beside: bool) -> dict[str, Tensor]:
    """The keys below the first of `wrappers` that has all of them or, with `beside`, some; empty where there is none."""
    inner = (_below(prefix, state) for prefix in wrappers)
    return next((found for found in inner if found and (beside or len(found) == len(state))), {})


def _entries(content: Any, name: str | None) -> str:
    """What a file holds instead of weights, and how to take them out where one of its entries looks like them.

    `name` is the entry where weights were looked for.
    """
    if not isinstance(content, dict):
        return f" but a {type(content).__name__}"
    if not content:
        return ", it is empty"
    listed = [f"{key} ({_kind(value)})" for key, value in content.items()]
    text = f". Its keys: {', '.join(listed[:_ENTRIES])}{f', ... ({len(listed)})' if len(listed) > _ENTRIES else ''}"
    if name is not None:
        other = next(key for key, value in content[name].items() if not isinstance(value, Tensor))
        return f"{text}. In {name}, {other} is a {_kind(content[name][other])}, not a tensor"
    weights = next((key for key, value in content.items() if _kind(value).endswith("tensors")), None)
    if weights is None:
        return text
    return f"{text}. To use those of {weights}: torch.save(torch.load(path, weights_only=True)[{weights!r}], new_path)"


def _kind(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(part, Tensor) for part in value.values()):
        return f"{len(value)} tensors"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, dict | list) else type(value).__name__


def _network_keys(state: dict[str, Tensor], backbone: object = None, source: str = "") -> dict[str, Tensor]:
    """Keys of other programs (see `known_format`) and of torchvision's models as the keys that `BDBNetwork` uses; its own stay.

    A `backbone` of another library translates that library's keys itself; `source` is what its messages call the file.
    """
    # As starting weights, files in torchvision's layout give the backbone alone.
    if backbone is None or "conv1.weight" not in state:
        found = known_format(state)
        if found is not None:
            return found.translate(state)
    if any(key.startswith("backbone.") for key in state):
        return state
    if isinstance(backbone, _OfAnotherLibrary):
        return {f"backbone.{key}": tensor for key, tensor in backbone.own_keys(state, source).items()}
    if "conv1.conv.weight" in state:
        roots = {"fc": "branches.global_.reduction", "classifier": "branches.global_.classifier"}
        parts = ((*key.partition("."), tensor) for key, tensor in state.items())
        return {f"{roots.get(root, f'backbone.{root}')}.{rest}": tensor for root, _, rest, tensor in parts}
    if any(key.startswith("features.") for key in state):  # Swin's norm is not part of its features
        kept = [key for key in state if key.startswith(("features.", "norm."))]
        return {"backbone." + _OLD_DENSENET.sub(r"\1", key): state[key] for key in kept}
    heads = ("fc.", "classifier.")  # torchvision's and torchreid's
    return {f"backbone.{key}": tensor for key, tensor in state.items() if not key.startswith(heads)}


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
