"""Files and folders that a command is given and that are not there: what is said, and told before torch is imported."""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdbnet.files import similar_file
from bdbnet.settings import ConfigError
from bdbnet.zoo_entries import ENTRIES, is_named

#: Values of keys of files that are none.
_WORDS = frozenset({"last", "none", "imagenet"})


def no_source(source: str) -> str:
    """Of a network's source that is neither a file or folder nor a name."""
    return (
        f"{source}: no such file of weights. A source is a checkpoint, a file of weights, a folder that Embedder.save wrote, "
        f"hub:USER/NAME for one on a hub, timm:NAME or torchvision:NAME for a pretrained network, or a network of the zoo "
        f"({', '.join(ENTRIES)}){_similar_source(source)}"
    )


def _similar_source(source: str) -> str:
    file = similar_file(source)
    known = difflib.get_close_matches(source, ENTRIES, n=1, cutoff=0.8)
    if known and (file is None or not Path(source).suffix):  # the zoo's names have no suffix, files do
        return f". Did you mean {known[0]}?"
    return f". Did you mean {file}?" if file else ""


def no_weights(path: str | Path) -> str:
    """Of a file of weights."""
    if str(path) in ENTRIES:
        return f"{path}: no such file; names of the zoo go with checkpoint=. Give its file, such as ~/.cache/bdbnet/{path}.pth"
    return f"{path}: no such file{_similar(path)}"


def no_features(path: str | Path) -> str:
    """Of a file of embeddings."""
    return f"{path}: no such file of embeddings{_similar(path)}"


def _similar(path: str | Path) -> str:
    near = similar_file(path)
    return f"; did you mean {near}?" if near else ""


def no_images(images: str | Path) -> str:
    """Of what `images=` names."""
    several = "; of several images name their folder, or a table with a column path" if "," in str(images) else ""
    return f"images={images}: there is no such file or folder{several}"


def no_embeddings(folder: str | Path) -> str:
    """Of a folder of embeddings."""
    return f"{folder}: there is no such folder of embeddings; python -m bdbnet.embed makes one"


def no_checkpoint(path: str | Path) -> str:
    """Of the checkpoint that a training resumes from."""
    return f"ckpt_path={path}: no such file; ckpt_path=last resumes from the run's own last checkpoint"


def no_run(folder: str | Path, key: str = "run") -> str:
    """Of the folder of a run."""
    return f"{key}={folder}: no such folder. Give the folder that a training or an evaluation wrote."


_Texts = Mapping[str, Callable[[str], str]]
_NETWORK: _Texts = {"checkpoint": no_source}
_IMAGES: _Texts = {"images": no_images}

#: Command -> key of files or folders that it reads -> what is said where one is not there.
_READ: Mapping[str, _Texts] = {
    "train": {"backbone.weights": lambda path: f"backbone.weights={no_weights(path)}", "ckpt_path": no_checkpoint},
    "evaluate": {**_NETWORK, "features": no_features, "queries": no_features},
    "calibrate": _NETWORK,
    "embed": {**_IMAGES, **_NETWORK},
    "visualize": {**_IMAGES, **_NETWORK},
    "convert": _NETWORK,
    "export": _NETWORK,
    "search": {"index": no_embeddings, "queries": no_embeddings, **_IMAGES},
    "serve": {"index": no_embeddings},
    "report": {"run": no_run, "compare": lambda folder: no_run(folder, "compare")},
}

#: Commands that read the data set that is chosen; `prepare` makes it.
_READ_DATASET = ("train", "evaluate", "calibrate", "embed", "visualize")


def check_given(config: DictConfig, command: str) -> None:
    """Refuse files and folders that are not there.

    Raises:
        ConfigError: what the command itself would say after it has imported torch.
        DatasetError: the same of a data set.
    """
    for key, text in _READ.get(command, {}).items():
        for path in _typed(config, key):
            if path not in _WORDS and not (key == "checkpoint" and is_named(path)) and not _is_there(path):
                raise ConfigError(text(path))
    name = next(_typed(config, "dataset.name"), None)
    if command in _READ_DATASET and name is not None and not [*_typed(config, "dataset.reader")]:
        root = next(_typed(config, "dataset.root"), None)
        try:
            manifest = OmegaConf.select(config, "dataset.options.manifest")
        except OmegaConfBaseException:
            return  # whoever reads it says what can't be resolved
        given = list(manifest) if OmegaConf.is_list(manifest) else [] if manifest is None else [manifest]
        # The package stands above this module; it imports no torch, and whoever reads a data set needs it anyway.
        importlib.import_module("bdbnet.datasets").require_given(name, root, given)


def _typed(config: DictConfig, key: str) -> Iterator[str]:
    """The texts of a key that has one or a list; none of what can't be resolved yet."""
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return
    yield from (each for each in (value if OmegaConf.is_list(value) else [value]) if isinstance(each, str))


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return True  # whoever reads it says what is wrong with it
