"""What other people's packages bring: losses, backbones, data sets, metrics, and whatever else a setting may name.

A plugin is a module that the *user* named: an installed package with an entry point of the group ``bdbnet.plugins``, a module
in the environment variable ``BDBNET_PLUGINS`` (separated by commas), or one in ``plugins=[mypkg]`` on the command line. A
checkpoint or a result never names one. What lies in a plugin can be used by its dotted path without registering it
(``loss.metric._target_=mypkg.MyLoss``, ``dataset.reader=mypkg.read_mine``); the functions below give it a short name besides
(``loss=mine``, ``backbone=mine``, ``dataset=mine``), and are the way to add a metric.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bdbnet.results import Metric, add_metric

if TYPE_CHECKING:
    import numpy as np

#: Group of entry points of installed packages: a module, or a function without arguments that registers.
GROUP = "bdbnet.plugins"
#: Environment variable with modules, separated by commas.
VARIABLE = "BDBNET_PLUGINS"

_Brought = TypeVar("_Brought", bound=Callable[..., Any])


class PluginError(ValueError):
    """A plugin that can't be used; the message names it."""


_named: dict[str, str] = {}  # module -> how the user named it
_loaded_entry_points: set[tuple[str, str]] = set()
_taken: dict[tuple[str, str], str] = {}  # kind and name -> what has it
_brought: dict[str, dict[str, Any]] = {"loss": {}, "backbone": {}, "dataset": {}, "metric": {}}


def loss(name: str) -> Callable[[_Brought], _Brought]:
    """Make a class ``loss(embeddings (N, D), labels (N,)) -> scalar`` the choice ``loss=<name>``.  Raises PluginError."""
    return _registering("loss", name, lambda path: {"defaults": ["pml"], "name": name, "metric": {"_target_": path}})


def backbone(name: str) -> Callable[[_Brought], _Brought]:
    """Make an ``nn.Module`` with ``out_channels``, (N, 3, H, W) -> (N, C, h, w), the choice ``backbone=<name>``.

    Raises PluginError.
    """
    return _registering("backbone", name, lambda path: {"defaults": ["custom"], "_target_": path})


def dataset(name: str) -> Callable[[_Brought], _Brought]:
    """Make a function ``(root, **options) -> Manifest`` the choice ``dataset=<name>``.  Raises PluginError."""
    return _registering("dataset", name, lambda path: {"defaults": ["custom"], "name": name, "reader": path})


def metric(
    name: str,
    *,
    title: str | None = None,
    unit: str = "%",
    better: Literal["higher", "lower"] = "higher",
    headline: bool = False,
) -> Callable[[_Brought], _Brought]:
    """Add a function of per-query facts to every evaluation.

    The function takes ``bdbnet.retrieval.QueryFacts`` and returns one value per query, (Q,), whose mean over the queries with a
    match is the metric, or one number.

    Args:
        name: of the metric in ``result.json``.
        title, unit, better: what tables show: its title (default: the name), ``%`` for a share between 0 and 1 or another unit,
            and whether ``higher`` or ``lower`` values are better.
        headline: it is plotted for a sweep, printed while training, and a comparison states a verdict on it.

    Raises:
        PluginError: the name is taken.
    """

    def register(function: _Brought) -> _Brought:
        known = name in _brought["metric"]  # the module was loaded again
        _add("metric", name, function, _path_of(function))
        if not known:
            try:
                add_metric(Metric(name, title or name, unit, better, headline=headline))
            except ValueError as error:
                del _brought["metric"][name], _taken["metric", name]
                raise PluginError(str(error)) from error
        return function

    return register


def metrics() -> Mapping[str, Callable[[Any], Any]]:
    """The metrics of all plugins: name -> function of the facts."""
    return dict(_brought["metric"])


def extra_metrics(facts: Any) -> dict[str, float]:
    """The plugins' metrics of these queries: name -> mean over the queries that have a match, or the number itself.

    Args:
        facts: ``bdbnet.retrieval.QueryFacts`` of Q queries.

    Raises:
        PluginError: a metric fails or returns something else; the message names it.
    """
    return means(metric_values(facts), facts.matches > 0)


def means(values: "Mapping[str, np.ndarray]", counted: "np.ndarray") -> dict[str, float]:
    """Each metric over the queries that count: values float64 (Q,) or (), counted bool (Q,).

    Raises:
        PluginError: a mean is NaN or infinite; the message names the metric.
    """
    import numpy as np

    found = {name: float(of[counted].mean() if of.ndim else of) for name, of in values.items()}
    for name, value in found.items():
        if not np.isfinite(value):
            raise PluginError(f"metric {name} of a plugin is {value}; expected finite numbers for queries with a match")
    return found


def metric_values(facts: Any) -> "dict[str, np.ndarray]":
    """The plugins' metrics of these queries, unreduced: name -> float64 (Q,) or ().  Raises PluginError."""
    import numpy as np  # takes as long as all the rest of this module

    queries, found = len(facts.matches), {}
    for name, values_of in _brought["metric"].items():
        try:
            values = np.asarray(values_of(facts), dtype=np.float64)
        except Exception as error:
            raise PluginError(f"metric {name} of a plugin fails: {type(error).__name__}: {error}") from error
        if values.shape not in ((), (queries,)):
            raise PluginError(
                f"metric {name} of a plugin returned shape {values.shape}; expected one value per query ({queries},) or one number"
            )
        found[name] = values
    return found


def choice(group: str, name: str) -> dict[str, Any] | None:
    """The settings of a registered loss or backbone, as its group in a configuration; None where there is none."""
    brought = _brought.get(group, {}).get(name)
    return None if brought is None else {"_target_": _path_of(brought)}


def reader(name: str) -> Callable[..., Any] | None:
    """The reader that a plugin registered as this data set; None where none did."""
    found: Callable[..., Any] | None = _brought["dataset"].get(name)
    return found


def load(names: Iterable[str] = ()) -> None:
    """Import the plugins that are installed, those in ``BDBNET_PLUGINS``, and ``names``, each once.

    Args:
        names: dotted names of modules that the user typed.

    Raises:
        PluginError: one is no module's name, is missing, or fails while it is imported; the message names it and its error.
    """
    for point in entry_points(group=GROUP):
        if (key := (point.name, point.value)) not in _loaded_entry_points:
            _load_entry_point(point)
            _loaded_entry_points.add(key)
    variable = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    for name, said in [
        *((name, f"{VARIABLE}={name}") for name in variable if name),
        *((n, f"plugins=[{n}]") for n in names),
    ]:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise PluginError(f"{said}: give the dotted name of a module, such as plugins=[mypkg]")
        if name not in _named:
            _import(name, said)
            _named[name] = said


def may_be_plugin(package: str) -> bool:
    """Whether a package of this name can be a plugin: Python's own modules and bdbnet can't."""
    return package.isidentifier() and package not in sys.stdlib_module_names and package != "bdbnet"


def is_in_plugin(path: str) -> bool:
    """Whether a dotted path lies in a module that the user named as a plugin."""
    return any(path.startswith(f"{module}.") for module in _named)


def find(path: str) -> Any:
    """The object at a dotted path: a name in a plugin's module, or in a module below it.

    Raises:
        PluginError: no plugin that the user named has it.
    """
    module_name, _, name = path.rpartition(".")
    if not is_in_plugin(path):
        top = path.partition(".")[0]
        raise PluginError(f"{path} is in no plugin: name its package with plugins=[{top}] on the command line")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise PluginError(f"plugin module {module_name} fails: {error}") from error
        raise PluginError(f"{path}: {module_name} is no module") from error
    except Exception as error:
        raise PluginError(f"plugin module {module_name} fails: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise PluginError(f"{path}: module {module_name} has no {name}") from None


def _load_entry_point(point: EntryPoint) -> None:
    origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
    said = f"plugin {point.name} ({point.value}) of {origin}"
    _named[point.module] = said
    try:
        brought = point.load()
        if callable(brought):
            brought()
    except PluginError:
        raise
    except Exception as error:
        del _named[point.module]
        raise PluginError(
            f"{said} can't be loaded: {type(error).__name__}: {error}. HYDRA_FULL_ERROR=1 shows where; uninstall it to go without"
        ) from error


def _import(name: str, said: str) -> None:
    top = name.partition(".")[0]
    if not may_be_plugin(top):
        raise PluginError(f"{said}: {top} is no plugin; name the package that brings something to bdbnet")
    here = str(Path.cwd())
    if not {"", here} & {*sys.path}:
        sys.path.append(here)  # as `python -m` has it
    try:
        importlib.import_module(name)
    except PluginError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise PluginError(
                f"{said}: there is no module {error.name}. Install it, or run in the folder that holds it"
            ) from error
        raise PluginError(
            f"{said} can't be imported: {type(error).__name__}: {error}. HYDRA_FULL_ERROR=1 shows where"
        ) from error


def _registering(kind: str, name: str, node: Callable[[str], dict[str, Any]]) -> Callable[[_Brought], _Brought]:
    def register(brought: _Brought) -> _Brought:
        from hydra.core.config_store import ConfigStore

        path = _path_of(brought)
        _add(kind, name, brought, path)
        ConfigStore.instance().store(group=kind, name=name, node=node(path), provider="a plugin")
        return brought

    return register


def reserve(kind: str, names: Iterable[str]) -> None:
    """Keep bdbnet's own names, such as the loss `margin`, from being taken.  Raises PluginError where a plugin has one already."""
    for name in names:
        _take(kind, name, f"bdbnet's own {kind}={name}")


def _add(kind: str, name: str, brought: Any, path: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][\w@.-]*", name):
        raise PluginError(
            f"{kind} {name!r} of a plugin ({path}): a name begins with a letter and has letters, digits, _ . - @"
        )
    _take(kind, name, path)
    _brought[kind][name] = brought


def _take(kind: str, name: str, by: str) -> None:
    taken = _taken.setdefault((kind, name), by)
    if taken != by:  # the same twice is a module that was loaded again
        raise PluginError(
            f"two of the name {kind} {name}: {taken} and {by}. Rename one, or leave one of the plugins out"
        )


def _path_of(brought: Any) -> str:
    return f"{brought.__module__}.{brought.__qualname__}"
