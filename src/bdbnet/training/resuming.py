"""Run folders of training: whether a run may start there, and the checkpoint from which it resumes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pytorch_lightning.utilities import rank_zero_only

from bdbnet.config import ConfigError, flatten
from bdbnet.evaluation.load import trained_with
from bdbnet.loading.entries import without_places
from bdbnet.missing import no_checkpoint
from bdbnet.models import CheckpointError, load_network, read_checkpoint
from bdbnet.results import BEST, HISTORY, LABEL_NAMES, LAST, PER_QUERY, PREVIOUS, REPORT, RESULT, TOP_K
from bdbnet.settings import is_whole, setting_of
from bdbnet.training.checkpoint_files import REQUEUED
from bdbnet.training.checkpoints import clear_auxiliary
from bdbnet.training.module import TrainingModule


def prepare_folder(folder: Path, ckpt_path: str | None, *, overwrite: bool) -> Path | None:
    """Make the run folder and find the checkpoint to resume from.

    Args:
        folder: of the run; made if it does not exist.
        ckpt_path: None, ``last``, or a file.
        overwrite: an earlier run may be deleted, by ``clear_folder`` once all settings have proved usable.

    Raises:
        ConfigError: both are given; an earlier run is there without ``overwrite`` or ``ckpt_path``; or ``ckpt_path`` is no file.
    """
    if overwrite and ckpt_path is not None:
        raise ConfigError(f"overwrite=true deletes the run that ckpt_path={ckpt_path} would resume: leave one out")
    folder.mkdir(parents=True, exist_ok=True)
    if ckpt_path is None and _is_requeued(folder, overwrite=overwrite):
        return latest_checkpoint(folder)
    if ckpt_path == "last":
        found = latest_checkpoint(folder)
        if found is None:
            print(f"ckpt_path=last: no {folder / LAST}; training starts at the first epoch")
        return found
    if ckpt_path is not None:
        path = Path(ckpt_path).expanduser()
        if not path.is_file():
            raise ConfigError(no_checkpoint(ckpt_path))
        return path
    if _has_checkpoint(folder) and not overwrite:
        raise ConfigError(
            f"{folder} holds an earlier run with these settings. Resume it: ckpt_path=last. Replace it: overwrite=true. "
            "Keep both: run_name=<another name>."
        )
    return None


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier run."""
    for name in (LAST, BEST, RESULT, HISTORY, TOP_K, PER_QUERY, LABEL_NAMES, REPORT):
        (folder / name).unlink(missing_ok=True)
    clear_auxiliary(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a run folder that is furthest on; the one before it where that can't be read, which is said.

    Raises:
        CheckpointError: there are some, but none can be read.
    """
    newest = [path for path in (folder / LAST, *sorted(folder.glob(REQUEUED))) if path.is_file()]
    previous = [path for path in [folder / PREVIOUS] if path.is_file()]
    if len(newest) + len(previous) <= 1:  # read once, when it is checked
        return next(iter(newest + previous), None)
    steps: dict[Path, int] = {}
    damaged: list[CheckpointError] = []
    for path in newest + previous:
        if path in previous and steps:
            continue
        try:
            steps[path] = int(read_checkpoint(path)["global_step"])
        except (CheckpointError, LookupError, TypeError, ValueError) as error:
            damaged.append(error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: no checkpoint"))
    if not steps:
        raise damaged[0]
    found = max(steps, key=lambda path: steps[path])
    for problem in damaged:
        print(f"{problem}\nIt is left out: the checkpoint before it is {found}.")
    if found.name == PREVIOUS and (folder / LAST).is_file() and not cast(Any, rank_zero_only).rank:
        print(f"The damaged one is kept as {set_aside(folder / LAST)}.")  # else it would be the next one's predecessor
    return found


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint; its new place."""
    return path.replace(path.with_name(f"{path.name}.damaged"))


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def _is_requeued(folder: Path, *, overwrite: bool) -> bool:
    """Whether SLURM has queued this job again: what is in the folder is its own work, to be continued unasked."""
    if not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return False
    return any(folder.glob(REQUEUED)) or (_has_checkpoint(folder) and not overwrite)


def check_resumable(
    module: TrainingModule, path: Path, ranks: int = 1, *, other_ranks: bool = False, same_on_ranks: bool = False
) -> None:
    """Refuse a checkpoint that this run can't resume from, before anything is changed.

    The state of the optimizer and the schedule comes from the checkpoint, so the settings that shape it have to be the same.

    Args:
        ranks: processes that train together now.
        other_ranks: there may have been another number of them.
        same_on_ranks: batch-norm statistics are those of all processes' images; if the checkpoint's were too, as one
            process's always are, any number may resume.

    Raises:
        CheckpointError: damaged, of another network, or without optimizer state.
        ConfigError: the checkpoint's run had other data or settings; the message names them.
    """
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, dict) or not {"optimizer_states", "bdbnet", "state_dict"} <= checkpoint.keys():
        raise CheckpointError(
            f"{path}: contains no optimizer state. Resume from a last.ckpt, or start a new run from these weights with "
            f"backbone.weights={path}"
        )
    settings, trained_on = trained_with(checkpoint["bdbnet"], str(path)), checkpoint["bdbnet"].get("fingerprint")
    _refuse_other_sets(settings, module.record.config, path)
    if trained_on is not None and trained_on != module.record.fingerprint:
        raise ConfigError(
            f"{path} was trained on other data: the dataset has changed since (fingerprint {str(trained_on)[:12]}, now "
            f"{str(module.record.fingerprint)[:12]}). Restore it, or start a new run from its weights with backbone.weights={path}"
        )
    load_network(module.network, path)
    then, now = ({key: value for key, value in flatten(config) if setting_of(key).resume}
                 for config in (settings, module.record.config))  # fmt: skip
    then, now = (_Completed(flat) for flat in (then, now))
    changed = sorted(key for key in then.keys() | now.keys() if then[key] != now[key])
    if changed:
        shown = "; ".join(f"{key} was {then[key]}, is {now[key]}" for key in changed[:6])
        raise ConfigError(
            f"{path} was trained with other settings: {shown}. Resume with those settings, or start a new run from its "
            f"weights with backbone.weights={path}"
        )
    before = _ranks(checkpoint["bdbnet"])
    synced = bool(settings.get("trainer", {}).get("sync_batchnorm"))
    scopes = {getattr(layer, "mask_scope", "global") for layer in module.network.modules()}
    own_masks = bool(scopes - {"global"})
    if other_ranks or (not own_masks and (synced or before == 1) and (same_on_ranks or ranks == 1)):
        return  # statistics were those of all images, and will be
    if before not in (None, ranks):
        own = (
            f"each process draws its own masks (mask_scope={'/'.join(sorted(scopes - {'global'}))})"
            if own_masks
            else "batch-norm statistics are those of a process's own images"
        )
        raise ConfigError(
            f"{path} was trained by {_processes(before)}, this run has {ranks}: {own}, so the numbers would change. "
            f"Resume with trainer.devices={before}, or ask for it: other_ranks=true"
        )
    if synced is not same_on_ranks and ranks > 1:
        raise ConfigError(
            f"{path} was trained with trainer.sync_batchnorm={str(synced).lower()}, so the numbers would change. Resume with that, "
            "or ask for it: other_ranks=true"
        )


class _Completed(dict[str, Any]):
    """Settings by key, of which those that there were not yet have the value that they had without a key."""

    def __missing__(self, key: str) -> Any:
        return setting_of(key).first


def _refuse_other_sets(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError where a training was on another union of data sets, wherever these lie."""
    before, here = ([without_places(str(entry)) for entry in config.get("union") or []] for config in (then, now))
    if before != here:
        first, own = (str(config["dataset"]["name"]) for config in (then, now))
        raise ConfigError(
            f"{path} was trained on {' and '.join([first, *before])}, this run is on {' and '.join([own, *here])}. Resume with the "
            f"same dataset=, or start a new run from its weights with backbone.weights={path}"
        )


def _ranks(record: Mapping[str, Any]) -> int | None:
    """The number of processes that wrote a checkpoint; None where an older one leaves that open (devices=auto)."""
    if is_whole(record.get("ranks"), 1):
        return int(record["ranks"])
    trainer = record["config"].get("trainer", {})
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    devices = len(devices) if isinstance(devices, list) else devices
    return devices * nodes if is_whole(devices, 1) and is_whole(nodes, 1) else None


def _processes(count: int | None) -> str:
    return "1 process" if count == 1 else f"{count} processes"
