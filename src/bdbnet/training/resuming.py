"""Run folders of training: whether a run may start there, and the checkpoint from which it resumes."""

from pathlib import Path

from bdbnet.config import ConfigError, flatten
from bdbnet.evaluation.load import trained_with
from bdbnet.models import CheckpointError, load_network, read_checkpoint
from bdbnet.results import BEST, HISTORY, LAST, REPORT, RESULT, TOP_K
from bdbnet.settings import setting_of
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
    last = folder / LAST
    if ckpt_path == "last":
        if not last.is_file():
            print(f"ckpt_path=last: no {last}; training starts at the first epoch")
        return last if last.is_file() else None
    if ckpt_path is not None:
        path = Path(ckpt_path).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"ckpt_path={ckpt_path}: no such file; ckpt_path=last resumes from the run's own last checkpoint"
            )
        return path
    if last.is_file() and not overwrite:
        raise ConfigError(
            f"{folder} holds an earlier run with these settings. Resume it: ckpt_path=last. Replace it: overwrite=true. "
            "Keep both: run_name=<another name>."
        )
    return None


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier run."""
    names = (LAST, BEST, RESULT, HISTORY, TOP_K, REPORT)
    for path in (*(folder / name for name in names), *folder.glob("hpc_ckpt_*.ckpt")):
        path.unlink(missing_ok=True)


def check_resumable(module: TrainingModule, path: Path) -> None:
    """Refuse a checkpoint that this run can't resume from, before anything is changed.

    The state of the optimizer and the schedule comes from the checkpoint, so the settings that shape it have to be the same.

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
    if trained_on is not None and trained_on != module.record.fingerprint:
        raise ConfigError(
            f"{path} was trained on other data: the dataset has changed since (fingerprint {str(trained_on)[:12]}, now "
            f"{str(module.record.fingerprint)[:12]}). Restore it, or start a new run from its weights with backbone.weights={path}"
        )
    load_network(module.network, path)
    then, now = ({key: value for key, value in flatten(config) if setting_of(key).resume}
                 for config in (settings, module.record.config))  # fmt: skip
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        shown = "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed[:6])
        raise ConfigError(
            f"{path} was trained with other settings: {shown}. Resume with those settings, or start a new run from its "
            f"weights with backbone.weights={path}"
        )
