"""Names of run folders: the settings of a run, safe for a file system, and never the same for two different command lines."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bdbnet.command_line import PATH_KEYS, is_multirun, is_no_path, with_override
from bdbnet.renamed import KEYS

#: Bytes of a name that file systems take.
LONGEST = 255
#: Commands whose folder bears the name of their settings.
NAMED = ("train", "evaluate", "embed", "calibrate", "search", "visualize")

_LONG, _KEPT = 150, 130  # characters of a name that stays as it is, and of one that is cut
_HASH = 12  # hexadecimal digits of the hash behind a name

#: A path in quotes; in one with a comma or an equals sign these would pass for other overrides.
_QUOTED = re.compile(
    rf'(?P<key>(?:^|,)\+*(?:{"|".join(map(re.escape, sorted(PATH_KEYS)))})=)"(?P<value>[^",=\\]*)"(?=,|$)'
)

#: Former names of keys on the command line of this process.
_typed_formerly: set[str] = set()


def remember_former_keys(arguments: Iterable[str]) -> None:
    """Note the keys of a command line that are typed under their former names: its folder bears those names too."""
    typed = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    _typed_formerly.update(typed & KEYS.keys())


def run_name(override_dirname: str, shown: str | None = None) -> str:
    """Stable folder name of a run: its overrides, made safe for a file system.

    The same command line always gives the same name, so that a requeued or resumed job finds its own folder: also a job whose
    command line has keys under their former names. Wherever the name does not say all, a hash of the whole follows.

    Args:
        override_dirname: the overrides, as Hydra joins them.
        shown: those of them that the name shows; None: all.

    >>> run_name("dataset=market1501,loss=hard_triplet")
    'dataset=market1501,loss=hard_triplet'
    >>> run_name("backbone.weights=a/b.pth"), run_name("backbone.weights=a_b.pth")
    ('backbone.weights=a_b.pth-fdf8c1ad402c', 'backbone.weights=a_b.pth')
    >>> run_name('index="a"'), run_name("")
    ('index=a', 'default')
    """
    whole = _under_former_keys(_paths_without_quotes(override_dirname))
    text = whole if shown is None else _under_former_keys(_paths_without_quotes(shown))
    safe = re.sub(r"[^\w=,.+-]", "_", text) or "default"
    complete = text == whole and safe in (text, "default")
    if complete and len(safe) <= _LONG and _bytes(safe) <= LONGEST and not _looks_hashed(safe):
        return safe
    return _with_hash(safe[:_KEPT], whole)


def folder_name(name: object, parent: str | None = None) -> str:
    """A name that a user typed, as the name of one folder: without separators and what file systems or pages stumble over.

    Args:
        name: as typed.
        parent: folder that it will be in; a folder of earlier versions there keeps its name, also one some levels deep.

    >>> folder_name("my run"), folder_name("a/b<script>")
    ('my run', 'a_b_script_-97a515524d52')
    """
    text = str(name)
    safe = "".join("_" if c in '/\\<>:"|?*' or not c.isprintable() else c for c in text)
    if not safe.strip(". "):
        safe = "_"
    if safe == text and _bytes(safe) <= LONGEST:
        return text
    levels = Path(text).parts
    deep = parent is not None and levels and not {"..", "/"} & {*levels}
    if deep and parent is not None and _bytes(max(levels, key=_bytes)) <= LONGEST and (Path(parent) / text).is_dir():
        return text
    return _with_hash(safe, text)


def name_sweep(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, of a sweep with a `run_name` that tells its jobs which keys were swept.

    The jobs may run in other processes, which know nothing but their own overrides.

    >>> name_sweep("train", ["-m", "model=bdb", "seed=1,2"])[-1]
    "run_name='${run_name:${hydra:job.override_dirname},[seed]}'"
    """
    given = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if (
        command not in NAMED
        or not is_multirun(arguments)
        or any(re.match(r"[+~]*run_name\b", argument) for argument in given)
    ):
        return [*arguments]
    swept = [override.get_key_element() for override in _parsed(given) if override.is_sweep_override()]
    if not swept:
        return [*arguments]
    return with_override(arguments, f"run_name='${{run_name:${{hydra:job.override_dirname}},[{','.join(swept)}]}}'")


def named_of_job(override_dirname: str, swept: Sequence[str] = (), *, _root_: DictConfig) -> str:
    """The resolver `run_name`: the name of the job that Hydra runs now.

    A job of a sweep shows what was swept. A training whose folder an earlier version named keeps that.

    Args:
        override_dirname: Hydra's.
        swept: keys that vary between the jobs; those of `hydra.sweeper.params` are added.
    """
    if HydraConfig.instance().cfg is None:
        return run_name(override_dirname)
    hydra = HydraConfig.get()
    unnamed = {*hydra.job.config.override_dirname.exclude_keys}
    typed: Any = OmegaConf.to_container(hydra.overrides.task)  # as typed: one of them may be an interpolation
    overrides = [each for each in _parsed(typed) if each.key_or_group not in unnamed]
    whole = _in_order(overrides) if _order_counts(overrides) else override_dirname
    shown = None if whole == override_dirname else override_dirname
    sweep = hydra.mode == RunMode.MULTIRUN
    if sweep:
        keys = {*swept, *(hydra.sweeper.get("params") or ())}
        varied = sorted(str(each.input_line) for each in overrides if each.get_key_element() in keys)
        shown = ",".join(varied) or shown
    name = run_name(whole, shown)
    if hydra.job.config_name == "train":
        parent = Path(hydra.sweep.dir) if sweep else Path(str(_root_.get("output_root"))) / "train"
        former = _former_name(override_dirname)
        if former != name and not (parent / name).exists() and _is_of(parent / former, overrides, unnamed):
            return former
    return name


def register_resolvers() -> None:
    """Make the resolvers `run_name` and `folder_name` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_name", named_of_job, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def _parsed(arguments: Sequence[str]) -> list[Override]:
    """Overrides; none where one of them is wrong, of which Hydra speaks."""
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException:
        return []


def _in_order(overrides: Iterable[Override]) -> str:
    return ",".join(str(override.input_line) for override in overrides)


def _order_counts(overrides: Sequence[Override]) -> bool:
    """Whether the same overrides in another order, of which Hydra's name knows nothing, would be other settings."""
    keys = [override.key_or_group for override in overrides]
    groups = [override.key_or_group for override in overrides if isinstance(override.value(), dict)]
    return len({*keys}) < len(keys) or any(key.startswith(f"{group}.") for group in groups for key in keys)


def _former_name(override_dirname: str) -> str:
    """What earlier versions called a folder: without a hash where characters were replaced, and with all that jobs share."""
    text = _under_former_keys(override_dirname)
    name = re.sub(r"[^\w=,.+-]", "_", text) or "default"
    return name if len(name) <= _LONG else f"{name[:_KEPT]}-{_hash(text)}"


def _is_of(folder: Path, overrides: Sequence[Override], unnamed: set[str]) -> bool:
    """Whether Hydra wrote into a folder that it is of a job with these overrides."""
    try:
        listed = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return False
    if not isinstance(listed, list):
        return False
    there = [each for each in _parsed([str(line) for line in listed]) if each.key_or_group not in unnamed]
    before, now = ([str(each.input_line) for each in lines] for lines in (there, overrides))
    return before == now if _order_counts(overrides) else sorted(before) == sorted(now)


def _paths_without_quotes(text: str) -> str:
    """Overrides without the quotes that every path gets; they stay where the value would mean something else."""
    return _QUOTED.sub(
        lambda match: match[0] if is_no_path(match["value"]) else f"{match['key']}{match['value']}", text
    )


def _under_former_keys(text: str) -> str:
    for former in _typed_formerly:
        text = re.sub(rf"(^|,){re.escape(KEYS[former])}=", rf"\g<1>{former}=", text)
    return text


def shortened(name: str, longest: int) -> str:
    """A name of at most so many bytes: itself, or its beginning with a hash of all of it.

    >>> shortened("dataset=market1501", 20), shortened("dataset=market1501", 17)
    ('dataset=market1501', 'data-4bc84d586d68')
    """
    return name if _bytes(name) <= longest else _with_hash(name, name, longest)


def _with_hash(stem: str, whole: str, longest: int = LONGEST) -> str:
    tail = f"-{_hash(whole)}"
    return stem.encode(errors="replace")[: longest - len(tail)].decode(errors="ignore") + tail


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_HASH]


def _looks_hashed(name: str) -> bool:
    return without_hash(name) != name


def without_hash(name: str) -> str:
    """A name without the hash behind it.

    >>> without_hash("seed=1-97a515524d52"), without_hash("seed=1")
    ('seed=1', 'seed=1')
    """
    return re.sub(rf"-[0-9a-f]{{{_HASH}}}$", "", name)


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))
