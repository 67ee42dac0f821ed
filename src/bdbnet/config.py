"""Settings in: where ``conf/`` is, the resolvers it uses, and which ``_target_`` may be built from it."""

import functools
import hashlib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdbnet.renamed import TARGETS, with_todays_keys
from bdbnet.settings import unnamed_settings

PACKAGE_DIR = Path(__file__).resolve().parent

#: What a config may build besides the public names of bdbnet's own rooms.
ALLOWED_TARGETS = frozenset(
    {
        "torch.nn.Identity",
        *(f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD")),
        *(f"pytorch_lightning.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger")),
        *(
            f"pytorch_lightning.callbacks.{name}"
            for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "StochasticWeightAveraging")
        ),
    }
)
ALLOWED_ROOMS = frozenset({"models", "losses", "loading", "training", "retrieval", "reporting"})

#: Keys whose values are files or folders, which may have any name.
PATH_KEYS = frozenset(
    {
        "archive",
        "backbone.weights",
        "checkpoint",
        "ckpt_path",
        "images",
        "index",
        "index_folder",
        "output",
        "queries",
        "root",
        "data_root",
        "output_root",
        "run",
        "summary",
        "weights_root",
        "compare",
    }
    | {"dataset.manifest", "dataset.root", "loading.cache_root"}
)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key and what to do."""


def is_ours(error: BaseException) -> bool:
    """Whether an error is of a class that bdbnet raises on purpose: its message speaks to the user already."""
    return type(error).__module__.startswith("bdbnet.")


def config_dir() -> Path:
    """Folder of the Hydra groups: ``conf/`` of a checkout, else the copy that the wheel carries."""
    checkout = PACKAGE_DIR.parent.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else PACKAGE_DIR / "conf"


def run_name(override_dirname: str) -> str:
    """Stable folder name of a run: its overrides, made safe for a file system.

    The same command line always gives the same name, so that a requeued or resumed job finds its own folder.

    >>> run_name("dataset=market1501,loss=hard_triplet")
    'dataset=market1501,loss=hard_triplet'
    >>> run_name("")
    'default'
    """
    name = re.sub(r"[^\w=,.+-]", "_", override_dirname) or "default"
    if len(name) <= 150:
        return name
    return f"{name[:130]}-{hashlib.sha256(override_dirname.encode()).hexdigest()[:12]}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("unnamed_settings", unnamed_settings, replace=True)


def check_target(target: str) -> None:
    """Refuse a ``_target_`` outside the allow-list: a config file must not be able to run arbitrary code."""
    if target in ALLOWED_TARGETS:
        return
    match = re.fullmatch(r"bdbnet\.(\w+)\.(\w+)", target)
    if match and match[1] in ALLOWED_ROOMS and match[2] in importlib.import_module(f"bdbnet.{match[1]}").__all__:
        return
    raise ConfigError(
        f"_target_: {target} is not on the allow-list. Use a public name of bdbnet.{{{', '.join(sorted(ALLOWED_ROOMS))}}} "
        f"or one of {', '.join(sorted(ALLOWED_TARGETS))}."
    )


def instantiate(config: DictConfig | ListConfig, **arguments: Any) -> Any:
    """Build the object that ``config`` describes, after checking every ``_target_`` in it.

    Raises:
        ConfigError: a ``_target_`` is not on the allow-list, or an argument in the config is refused by its class.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    _check_targets(plain)
    name = plain.get("_target_", "config") if isinstance(plain, dict) else "config"
    try:
        if not arguments:
            return hydra.utils.instantiate(plain, _convert_="all")
        # Arguments go in by a plain call: Hydra would copy what it is handed, and a copied network is another network.
        return hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all")(**arguments)  # type: ignore[dict-item]
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError):
            raise (cause if is_ours(cause) else ConfigError(f"{name}: {cause}")) from cause
        raise
    except (TypeError, ValueError) as error:
        if is_ours(error):
            raise
        raise ConfigError(f"{name}: {error}") from error


def _check_targets(node: Any) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            node["_target_"] = TARGETS.get(node["_target_"], node["_target_"])
            check_target(node["_target_"])
        for child in node.values():
            _check_targets(child)
    elif isinstance(node, list):
        for child in node:
            _check_targets(child)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Turn ``main(cfg)`` into a command with the config ``conf/<config_name>.yaml``.

    Errors that bdbnet raises on purpose, and those of the file system, end the command with one clear message and exit status 1;
    ``HYDRA_FULL_ERROR=1`` shows the trace instead. Anything else is a fault of ours and keeps its trace.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        setting = os.environ.get("HYDRA_FULL_ERROR")
        full_trace = setting == "1"

        def restore_setting() -> None:
            if setting is None:
                os.environ.pop("HYDRA_FULL_ERROR", None)
            else:
                os.environ["HYDRA_FULL_ERROR"] = setting

        def speaking(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def run(*config: DictConfig) -> Any:
                try:
                    return call(*config)
                except KeyboardInterrupt:
                    print("\ninterrupted", file=sys.stderr)
                    sys.exit(130)
                except Exception as error:
                    if full_trace or not _is_meant(error):
                        raise
                    print(f"\nerror: {_shortened(str(error))}", file=sys.stderr)
                    sys.exit(1)

            return run

        @functools.wraps(main)
        def composed(config: DictConfig) -> Any:
            restore_setting()  # the processes of other ranks start from here
            return speaking(main)(config)

        # Inside Hydra for what the command raises, outside for what Hydra does with the command line.
        start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(composed)

        def entry(*config: DictConfig) -> Any:
            warnings.formatwarning = _plain_warning
            renamed, notes = with_todays_keys(sys.argv[1:])
            for note in notes:
                print(f"note: {note}", file=sys.stderr)
            sys.argv[1:] = quote_paths(renamed)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, then, instead of printing half a trace and leaving
            try:
                return speaking(start)(*config)
            finally:
                restore_setting()

        return entry

    return decorate


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted keys.

    >>> flatten({"seed": 1, "trainer": {"max_epochs": 60, "extra": {}}})
    [('seed', 1), ('trainer.max_epochs', 60), ('trainer.extra', {})]
    """
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found += flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _plain_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as a user wants it: what it says, without the line of code that says it."""
    return f"warning: {message}\n"


def shown_path(path: str | Path) -> Path:
    """A path as a user would type it: relative to the working directory where it lies below it."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Put paths into quotes: Hydra's grammar would take a name like ``loss=none,seed=2`` or one with a space apart.

    >>> quote_paths(["run=outputs/train/loss=none,seed=2", "seed=2"])
    ['run="outputs/train/loss=none,seed=2"', 'seed=2']

    A number stays one: some keys are a folder to one command and a number to another.

    >>> quote_paths(["queries=20"])
    ['queries=20']
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if (
            key.lstrip("+") in PATH_KEYS
            and value
            and value[0] not in "\"'["
            and not value.isdigit()
            and value not in ("null", "last", "none", "imagenet")
        ):
            argument = f'{key}="' + value.replace('"', '\\"') + '"'
        quoted.append(argument)
    return quoted


def _is_meant(error: Exception) -> bool:
    """Whether an error speaks to the user: one of ours, of the file system, or of Hydra about the command line."""
    return is_ours(error) or isinstance(error, OSError | HydraException | OmegaConfBaseException)


def _shortened(message: str) -> str:
    """A message without the worker's trace that PyTorch puts before it and the search path that Hydra puts behind it."""
    if message.startswith("Caught "):
        message = re.split(r"\nbdbnet\.[\w.]+: ", message)[-1]
    return message.partition("\nConfig search path:")[0].strip()
