"""Settings in: where ``conf/`` is, the resolvers it uses, and which ``_target_`` may be built from it."""

import atexit
import contextlib
import difflib
import functools
import gc
import importlib
import inspect
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from bdbnet import plugins
from bdbnet.command_line import (
    SEVERAL_DATASETS,
    check_form,
    is_multirun,
    keys_of,
    list_of_plugins,
    of_agent,
    one_dataset_each,
    one_logger_each,
    options_last,
    typed_plugins,
    with_override,
)
from bdbnet.command_line import quote_paths as quote_paths
from bdbnet.files import WriteError, is_about_writing
from bdbnet.help_text import FLAGS, asks_for_help, help_text
from bdbnet.missing import check_given
from bdbnet.renamed import TARGETS, rename_keys, with_todays_keys
from bdbnet.run_names import NAMED, name_sweep, register_resolvers, remember_former_keys
from bdbnet.run_names import run_name as run_name
from bdbnet.schema import BESIDE_CLASS, FILLED_IN, PASSED_ON, check, nearest
from bdbnet.settings import ConfigError as ConfigError
from bdbnet.settings import unnamed_settings
from bdbnet.stopping import Stopped, terminated_in_order

PACKAGE_DIR = Path(__file__).resolve().parent

#: Rooms whose public names a config may build.
ALLOWED_ROOMS = frozenset({"models", "losses", "loading", "training", "retrieval", "reporting"})

#: Modules of other libraries whose classes a config may build, and the base that those classes have in common.
LIBRARIES = {
    "torch.optim": "torch.optim.Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "pytorch_lightning.callbacks": "pytorch_lightning.callbacks.Callback",
    "pytorch_lightning.loggers": "pytorch_lightning.loggers.logger.Logger",
} | {
    f"pytorch_metric_learning.{part}": "torch.nn.Module"
    for part in ("distances", "losses", "miners", "reducers", "regularizers")
}

#: The one class of another library that a network is built with: the drop layer that drops nothing.
IDENTITY = "torch.nn.Identity"


def is_ours(error: BaseException) -> bool:
    """Whether an error is of a class that bdbnet raises on purpose: its message speaks to the user already."""
    return type(error).__module__.startswith("bdbnet.")


def config_dir() -> Path:
    """Folder of the Hydra groups: ``conf/`` of a checkout, else the copy that the wheel carries."""
    checkout = PACKAGE_DIR.parent.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else PACKAGE_DIR / "conf"


for _kind in ("loss", "backbone", "dataset"):
    plugins.reserve(_kind, (path.stem for path in (config_dir() / _kind).glob("*.yaml")))


register_resolvers()
OmegaConf.register_new_resolver("unnamed_settings", unnamed_settings, replace=True)
OmegaConf.register_new_resolver("class_name", lambda target: target.rpartition(".")[2], replace=True)


def check_target(target: str, *, ours_only: bool = False) -> None:
    """Refuse a ``_target_`` that a configuration may not build: a file of settings must not be able to run arbitrary code.

    Args:
        target: dotted path.
        ours_only: for what a checkpoint says: the classes of ``bdbnet.models`` and ``torch.nn.Identity`` alone. Otherwise, for
            what a user typed: the public names of bdbnet's rooms, the classes of ``LIBRARIES``, and what lies in a plugin.

    Raises:
        ConfigError: it is not on the list; the message says what is.
        PluginError: it is in a plugin, but not there.
    """
    if target == IDENTITY or _is_public_name(target, ours_only=ours_only):
        return
    if ours_only:
        raise ConfigError(
            f"_target_: {target} is not on the allow-list of what a file may build: the networks of bdbnet.models. A file never "
            f"names a plugin. Where the network really is of one, and you trust it, {_typed(target)}"
        )
    if _is_of_library(target):
        return
    if plugins.is_in_plugin(target):
        plugins.find(target)
        return
    top = target.partition(".")[0]
    raise ConfigError(
        f"_target_: {target} is not on the allow-list. Use a public name of bdbnet.{{{', '.join(sorted(ALLOWED_ROOMS))}}} or "
        f"a class of {', '.join(LIBRARIES)}. What is in a package of your own is allowed by naming that as a plugin: "
        f"plugins=[{top if plugins.may_be_plugin(top) else 'mypkg'}]."
    )


def _typed(target: str) -> str:
    """What to type for a network that lies in a plugin."""
    return (
        f"name both yourself: plugins=[{target.partition('.')[0]}], and model= and backbone= as they were in training "
        f"(for a backbone: backbone=custom backbone._target_={target})."
    )


def _is_public_name(target: str, *, ours_only: bool) -> bool:
    match = re.fullmatch(r"bdbnet\.(\w+)\.(\w+)", target)
    if match is None or match[1] not in ({"models"} if ours_only else ALLOWED_ROOMS):
        return False
    room = importlib.import_module(f"bdbnet.{match[1]}")
    return match[2] in room.__all__ and (not ours_only or isinstance(getattr(room, match[2]), type))


def _is_of_library(target: str) -> bool:
    """Whether a dotted path is a public class of one of `LIBRARIES` that is of the library's kind."""
    module_name, _, name = target.rpartition(".")
    if module_name not in LIBRARIES or name.startswith("_"):
        return False
    base_module, _, base_name = LIBRARIES[module_name].rpartition(".")
    try:
        base = getattr(importlib.import_module(base_module), base_name)
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        package = module_name.partition(".")[0].replace("_", "-")
        raise ConfigError(f"_target_: {target} needs {package} ({error}): pip install {package}") from error
    return isinstance(found, type) and issubclass(found, base) and found is not base


def instantiate(config: DictConfig | ListConfig, *, ours_only: bool = False, **arguments: Any) -> Any:
    """Build the object that ``config`` describes, after checking every ``_target_`` in it.

    Args:
        config: class, as ``_target_``, and arguments; or a list of such.
        ours_only: the config comes from a checkpoint or a result, not from the user: see ``check_target``.
        arguments: further arguments, handed over as they are.

    Raises:
        ConfigError: a ``_target_`` is not on the allow-list, or an argument in the config is refused by its class.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    _check_targets(plain, ours_only=ours_only)
    name = plain.get("_target_", "config") if isinstance(plain, dict) else "config"
    try:
        if not arguments:
            return hydra.utils.instantiate(plain, _convert_="all")
        # Arguments go in by a plain call: Hydra would copy what it is handed, and a copied network is another network.
        return hydra.utils.instantiate({**cast(dict[str, Any], plain), "_partial_": True}, _convert_="all")(**arguments)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError | ImportError):
            raise (cause if is_ours(cause) else ConfigError(f"{name}: {cause}")) from cause
        raise
    except (TypeError, ValueError, ImportError) as error:
        if is_ours(error):
            raise
        raise ConfigError(f"{name}: {error}") from error


def check_class(node: DictConfig, key: str, *, ours_only: bool = False) -> None:
    """Refuse a group without an allowed ``_target_``.  Raises ConfigError that names the key, and see ``check_target``."""
    target = None if OmegaConf.is_missing(node, "_target_") else node.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{key}._target_ is missing: give the dotted path of a class, such as mypkg.MyClass")
    try:
        check_target(TARGETS.get(target, target), ours_only=ours_only)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def foreign_targets(node: Any) -> list[str]:
    """Every ``_target_`` in plain settings of a checkpoint that nothing but the user may name."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        own = target is None or (
            isinstance(target, str)
            and (target == IDENTITY or _is_public_name(TARGETS.get(target, target), ours_only=True))
        )
        return [
            *([] if own else [str(target)]),
            *(found for child in node.values() for found in foreign_targets(child)),
        ]
    return [found for child in node for found in foreign_targets(child)] if isinstance(node, list) else []


def locate(target: str) -> Any:
    """The class or function at the dotted path of an allowed ``_target_``."""
    module, _, name = TARGETS.get(target, target).rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments_of(cls: Any) -> dict[str, bool]:
    """Arguments of a class or function by name, and whether each has a default.

    Where a constructor hands ``**kwargs`` on, those of the next class count too.
    """
    return _signature(cls)[0]


def _signature(cls: Any) -> tuple[dict[str, bool], bool]:
    """See `arguments_of`; and whether it takes other arguments besides."""
    found: dict[str, bool] = {}
    makers = (
        [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)] if isinstance(cls, type) else [cls]
    )
    for maker in makers:
        parameters = [*inspect.signature(maker).parameters.values()]
        for parameter in parameters[isinstance(cls, type) :]:  # a class's __init__ begins with self
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default is not parameter.empty)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, True


def check_settings(config: DictConfig, command_name: str, typed: Collection[str] = ()) -> None:
    """Refuse keys that a command, or a class that its settings name, does not have, and values out of range.

    Args:
        config: composed settings of the command.
        command_name: of the command, such as ``train``.
        typed: keys that the user typed: those that would change nothing are refused too.

    Raises:
        ConfigError: names the key and what to type instead.
        PluginError: see ``check_target``.
    """
    for key, node in check(config, command_name, typed):
        target = str(node["_target_"])
        if target not in PASSED_ON.values():
            check_class(OmegaConf.create({"_target_": target}), key)
        known, takes_others = ({}, False) if target == IDENTITY else _signature(locate(target))
        for name in map(str, node):
            full = f"{key}.{name}"
            if full in FILLED_IN:
                raise ConfigError(f"{full} is filled in: leave it out")
            if takes_others or name in known or name.startswith("_") or full in BESIDE_CLASS:
                continue
            if choices := _choices_with(key, name):
                raise ConfigError(
                    f"{full}: {target} has no argument {name}; it is one of {key}={', '.join(choices)}. Leave it out (type ~{full} "
                    f"where experiment= sets it), or choose one of these"
                )
            near = nearest(full, [f"{key}.{each}" for each in known])
            advice = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"{full}: {target} has no argument {name}; {advice}")


def _choices_with(group: str, name: str) -> list[str]:
    """The choices of a group whose files have a key."""
    paths = sorted((config_dir() / group).glob("*.yaml"))
    return [path.stem for path in paths if name in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})]


def compose_settings(config_name: str, overrides: Sequence[str], *, of_hydra: bool = False) -> DictConfig:
    """The settings that a command has with these overrides, outside of the command itself; with `of_hydra` Hydra's own too.

    Raises HydraException.
    """
    if GlobalHydra.instance().is_initialized():
        return compose(config_name, [*overrides], return_hydra_config=of_hydra)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(config_name, [*overrides], return_hydra_config=of_hydra)


def without(node: DictConfig, keys: Iterable[str]) -> DictConfig:
    """A group of a configuration, resolved, without some of its keys."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.create({key: value for key, value in plain.items() if key not in {*keys}})


def is_set(node: Any, key: str) -> bool:
    """Whether a key is in a node of a configuration, with a value: neither null nor ``???``."""
    return node is not None and not OmegaConf.is_missing(node, key) and node.get(key) is not None


def _check_targets(node: Any, *, ours_only: bool) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            if not isinstance(node["_target_"], str) or node["_target_"] == "???":
                raise ConfigError(
                    f"_target_={node['_target_']}: give the dotted path of a class, such as mypkg.MyClass"
                )
            node["_target_"] = TARGETS.get(node["_target_"], node["_target_"])
            check_target(node["_target_"], ours_only=ours_only)
        for child in node.values():
            _check_targets(child, ours_only=ours_only)
    elif isinstance(node, list):
        for child in node:
            _check_targets(child, ours_only=ours_only)


def command(
    config_name: str, *, again: str = "Run the same command again.", loads: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Turn ``main(cfg)`` into a command with the config ``conf/<config_name>.yaml``.

    Errors that bdbnet raises on purpose, and those of the file system, end the command with one clear message and exit status 1;
    ``HYDRA_FULL_ERROR=1`` shows the trace instead. Anything else is a fault of ours and keeps its trace. Ctrl-C and SIGTERM end it
    with status 130 and 143.

    Args:
        again: what to do after it was stopped, or when it could not write a file.
        loads: modules that ``main`` uses, imported before it begins.
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
            def run(*arguments: Any, **options: Any) -> Any:
                try:
                    return call(*arguments, **options)
                except KeyboardInterrupt:
                    _tell_stopped(again, told=False)
                    sys.exit(130)
                except Stopped as stopped:
                    _tell_stopped(again, told=stopped.told)
                    sys.exit(stopped.code)
                except Exception as error:
                    if full_trace or not _is_meant(error):
                        raise
                    print(f"\nerror: {_message(error, again)}", file=sys.stderr)
                    sys.exit(1)

            return run

        @functools.wraps(main)
        def composed(config: DictConfig) -> Any:
            restore_setting()  # the processes of other ranks start from here

            def with_plugins(config: DictConfig) -> Any:
                _tell(rename_keys(config))
                plugins.load(list_of_plugins(config.get("plugins")))
                check_given(config, config_name)  # of a job of a sweep, which may run on another machine
                check_settings(config, config_name)
                for module in loads:
                    importlib.import_module(module)
                _collect_again()
                return main(config)

            try:
                return speaking(with_plugins)(config)
            except SystemExit as ended:
                if ended.code == 1:
                    _remove_unused_folder()
                raise

        # Inside Hydra for what the command raises, outside for what Hydra does with the command line.
        start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(composed)

        def entry(*config: DictConfig) -> Any:
            if "torch" not in sys.modules:
                # What a process imports stays: looking through it for garbage takes a sixth of the time of a start.
                gc.disable()
            warnings.formatwarning = _plain_warning
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    # Names of files may hold bytes that are no text; a log file shows each line when it is said.
                    stream.reconfigure(errors="backslashreplace", line_buffering=True)
            given = speaking(of_agent)(sys.argv[1:], os.environ, named=config_name in NAMED)
            sys.argv[1:] = options_last(given)
            renamed, notes = with_todays_keys(sys.argv[1:])
            _tell(notes)
            remember_former_keys(sys.argv[1:])
            quoted = quote_paths(renamed)
            if config_name in SEVERAL_DATASETS:
                quoted = speaking(one_dataset_each)(quoted, SEVERAL_DATASETS[config_name])
            if config_name == "reproduce":  # loggers are a group of its trainings, not its own
                spelled = [re.sub(r"^\+*logger=", "loggers=", argument) for argument in quoted]
            else:
                spelled = one_logger_each(quoted)
            sys.argv[1:] = name_sweep(config_name, spelled)
            CheckSettings.command = config_name
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, then, instead of printing half a trace and leaving

            def started(*config: DictConfig) -> Any:
                if not config:  # the command line counts
                    check_form(sys.argv[1:], config_name, config_dir())
                plugins.load(typed_plugins(sys.argv[1:]))  # before Hydra looks for the choices that they bring
                if not config and asks_for_help(sys.argv[1:]):
                    typed = [argument for argument in sys.argv[1:] if argument not in FLAGS]
                    with _explained(config_name):
                        text = help_text(config_name, typed, config_dir())
                    _print_for_reader(text)
                    return None
                checks = f"++hydra.callbacks.check_settings._target_={__name__}.{CheckSettings.__name__}"
                sys.argv[1:] = with_override(sys.argv[1:], checks)
                with _explained(config_name):
                    return start(*config)

            try:
                with terminated_in_order():
                    return speaking(started)(*config)
            finally:
                restore_setting()
                gc.enable()

        return entry

    return decorate


def _print_for_reader(text: str) -> None:
    """Print a text whose reader may leave early, as `head` and a pager do."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left when it ends, and say that it could not.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _remove_unused_folder() -> None:
    """Remove the folder of a run that was refused: nothing is in it but what was typed, and lists would show it as a run."""
    if not HydraConfig.initialized():  # called from Python
        return
    hydra_config = HydraConfig.get()
    folder, record = Path(hydra_config.runtime.output_dir), hydra_config.output_subdir
    if hydra_config.mode is RunMode.RUN and record is not None and [each.name for each in folder.iterdir()] == [record]:
        shutil.rmtree(folder)


def _collect_again() -> None:
    """End the pause of the garbage collector in which a command started, and leave what was imported out of its rounds."""
    if not gc.isenabled():
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries report what is left at the end of a process as a leak
        gc.enable()


class CheckSettings(Callback):
    """Checks the settings before Hydra makes the run's folder, and those of all jobs of a sweep before the first one starts.

    Of one run also that the files it is given are there, before a library is imported to check anything else.
    """

    command = ""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check([config], given=True)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._check(_jobs(config))

    def _check(self, configs: Iterable[DictConfig], *, given: bool = False) -> None:
        try:
            for config in configs:
                rename_keys(config)
                plugins.load(list_of_plugins(config.get("plugins")))
                if given:
                    check_given(config, self.command)
                check_settings(config, self.command, keys_of(as_typed(config)))
        except Exception as error:
            if not _is_meant(error):
                raise
            raise _Refused(error) from error


class _Refused(BaseException):
    """Carries an error through Hydra, which would make a warning of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def as_typed(config: DictConfig) -> list[str]:
    """The overrides of a command line; one of them may be an interpolation, which only a job can resolve."""
    return cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))


def _jobs(config: DictConfig) -> Iterator[DictConfig]:
    """The settings of every job of a sweep; none where another sweeper than Hydra's own makes them up as it goes."""
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return
    loader = GlobalHydra.instance().config_loader()
    typed = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *as_typed(config)]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    for job in BasicSweeper.split_arguments(parsed, None)[0]:
        yield loader.load_sweep_config(config, list(job))


@contextlib.contextmanager
def _explained(config_name: str) -> Iterator[None]:
    """What Hydra says of a key or a choice that is not there, with what to type instead."""
    try:
        yield
    except _Refused as refused:
        raise _in_our_words(refused.error, config_name) from refused.error
    except HydraException as error:
        raise _in_our_words(error, config_name) from error


def _in_our_words(error: Exception, config_name: str) -> Exception:
    message = str(error)
    if match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", message):
        group, name = match.groups()
        choices = re.findall(r"^\t(\S+)$", message.partition("Config search path")[0], re.MULTILINE)
        near = difflib.get_close_matches(name.lower(), choices, 1)
        advice = f"did you mean {group}={near[0]}? " if near else ""
        return ConfigError(f"{group}={name}: there is no such choice; {advice}Choices: {', '.join(choices)}")
    if match := re.match(r"Ambiguous value for argument '([^=']+)=(.*)'\n", message):
        key, values = match.groups()
        one = "" if (config_dir() / key).is_dir() else f"; for one run with a list of them: {key}=[{values}]"
        return ConfigError(f"{key}={values}: several values. For a run with each of them add -m{one}")
    if match := re.match(r"Could not override '([^']+)'", message):
        return _not_there(match[1], config_name)
    return error


def _not_there(key: str, config_name: str) -> ConfigError:
    """The error for a key that Hydra found nothing at: one that no one has, or one that has to be added with ``+``."""
    groups = [argument.partition(",")[0] for argument in sys.argv[1:] if _is_group(argument)]
    value = next((text.partition("=")[2] for text in sys.argv[1:] if text.startswith(f"{key}=")), "null")
    try:
        config = compose_settings(config_name, groups)
    except HydraException:
        config = compose_settings(config_name, [])
    group, below, _ = key.partition(".")
    if group == "hydra":
        return _not_of_hydra(key, value, compose_settings(config_name, groups, of_hydra=True))
    if below and group not in config and (config_dir() / group).is_dir():
        return ConfigError(f"{key}: no {group} is chosen; write {group}=CHOICE too. --help lists the choices")
    try:
        written = yaml.safe_load(value)
    except yaml.YAMLError:
        written = value
    with flag_override(config, "struct", False):
        OmegaConf.update(config, key, written, force_add=True)
    try:
        check_settings(config, config_name, [key])
    except ConfigError as error:
        return error
    return ConfigError(f"{key} is not among the settings, but can be added: write +{key}={value}")


def _not_of_hydra(key: str, value: str, config: DictConfig) -> ConfigError:
    """The error for a key that is none of Hydra's, or of the launcher or sweeper that is chosen."""
    above, _, _ = key.rpartition(".")
    node = OmegaConf.select(config, above)
    if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
        return ConfigError(f"{key} can be added: write +{key}={value}")
    chosen = config.hydra.runtime.choices
    part = above.removeprefix("hydra.").partition(".")[0]
    owner = f"hydra/{part}={chosen[f'hydra/{part}']}" if f"hydra/{part}" in chosen else above
    known = [f"{above}.{name}" for name in map(str, node or ()) if not name.startswith("_")]
    near = nearest(key, known)
    advice = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'none'}"
    if part == "launcher" and not known:
        advice = "choose the launcher that has it too, such as hydra/launcher=joblib"
    return ConfigError(f"{key}: {owner} has no such key; {advice}")


def _is_group(argument: str) -> bool:
    key, equals, value = argument.partition("=")
    return bool(equals and value) and key.replace("/", "").isidentifier() and (config_dir() / key).is_dir()


def _tell_stopped(again: str, *, told: bool) -> None:
    """Say how to go on after Ctrl-C or SIGTERM; of a single run that may have been ``told`` already."""
    if is_multirun(sys.argv[1:]):
        print(f"\nThe jobs that were to follow are not run. {again}", file=sys.stderr)
    elif not told:
        print(f"\ninterrupted. {again}", file=sys.stderr)


def _message(error: Exception, again: str) -> str:
    """What an error says, and where a file could not be written, what is kept."""
    if not isinstance(error, OSError) or not is_about_writing(error):
        return _shortened(str(error))
    if not isinstance(error, WriteError):
        roots = [value for key, _, value in (each.partition("=") for each in sys.argv[1:]) if key == "output_root"]
        error = WriteError(error.filename or f"a file in {(roots or ['outputs'])[-1].strip(chr(34))}", error)
    return f"{error}. What was written before is kept. {again}"


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain data, with its interpolations resolved."""
    settled: Any = OmegaConf.to_container(config, resolve=True)
    return cast(dict[str, Any], settled)


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


def _is_meant(error: Exception) -> bool:
    """Whether an error speaks to the user: one of ours, of the file system, or of Hydra about the command line."""
    return is_ours(error) or isinstance(error, OSError | HydraException | OmegaConfBaseException)


def _shortened(message: str) -> str:
    """A message without the worker's trace that PyTorch puts before it and the search path that Hydra puts behind it."""
    if message.startswith("Caught "):
        message = re.split(r"\nbdbnet\.[\w.]+: ", message)[-1]
    return message.partition("\nConfig search path:")[0].strip()
