"""The table of settings: which a resumed run must share, which make another training, which a reader sees."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key and what to do."""


class Setting(NamedTuple):
    """A row of `SETTINGS`: what one key, or all keys below a group, count for.

    Attributes:
        resume: it has to be as in the checkpoint that a training resumes from.
        cell: it tells apart the cells of ``bdbnet.reproduce``; ``file``: by the file's name, without the folder; ``own``: unless
            it is equal to what it follows.
        report: a table of runs shows it where it varies; ``own``: unless it is equal to what it follows.
        name: it is part of the run folder's name where the user types it.
        follows: the key whose value it has unless the user sets it.
        first: its value in trainings from before there was this key, which have no other cell and may be resumed; None where there
            are none.
    """

    resume: bool
    cell: Literal["yes", "no", "file", "own"]
    report: Literal["yes", "no", "own"]
    name: bool
    follows: str | None = None
    first: str | int | None = None


#: Rows by key or group; of a key the row of its own counts, else that of the nearest group above it.
SETTINGS = {
    #                                          resume  cell   report  name
    "":                                Setting(False, "yes",  "yes",  True),   # whatever is not listed
    # Names, places and what is done beside a training.
    "analysis":                        Setting(False, "no",   "no",   False),
    "calibrate":                       Setting(False, "no",   "no",   False),
    "callbacks":                       Setting(False, "no",   "yes",  True),
    "callbacks.checkpoint_every_seconds": Setting(False, "no", "no",  False),
    "callbacks.progress":              Setting(False, "no",   "no",   False),
    "ckpt_path":                       Setting(False, "no",   "no",   False),
    "data_root":                       Setting(False, "no",   "no",   False),
    "evaluations":                     Setting(False, "no",   "yes",  True),   # beside the run's own
    "logger":                          Setting(False, "no",   "no",   False),
    "loggers":                         Setting(False, "no",   "no",   False),
    "on_error":                        Setting(False, "yes",  "yes",  False),
    "other_ranks":                     Setting(False, "no",   "no",   False),
    "output":                          Setting(False, "yes",  "yes",  False),
    "output_root":                     Setting(False, "no",   "no",   False),
    "overwrite":                       Setting(False, "no",   "no",   False),
    "plugins":                         Setting(False, "no",   "no",   False),
    "run_name":                        Setting(False, "no",   "no",   False),
    "sweep_name":                      Setting(False, "no",   "no",   False),
    "verify":                          Setting(False, "yes",  "yes",  False),
    # What is trained.
    "augmentation":                    Setting(True,  "yes",  "yes",  True),
    "averaging":                       Setting(True,  "yes",  "yes",  True),
    "backbone":                        Setting(True,  "yes",  "yes",  True),
    "backbone.weights":                Setting(False, "file", "yes",  True),
    "backbone_rate":                   Setting(True,  "yes",  "yes",  True),
    "dataset":                         Setting(True,  "yes",  "yes",  True),
    "dataset.drop_ratio":              Setting(True,  "no",   "no",   True),   # counts where it has an effect: in dropping
    "dataset.erasing":                 Setting(True,  "no",   "no",   True),   # likewise: in augmentation
    "dataset.manifest":                Setting(True,  "file", "no",   True),
    "dataset.options.manifest":        Setting(True,  "file", "no",   True),
    "dataset.options.workers":         Setting(False, "no",   "no",   True),
    "dataset.recall_at":               Setting(True,  "no",   "no",   True),   # likewise: in evaluation
    "dataset.root":                    Setting(False, "no",   "no",   True),
    "dataset.test_size":               Setting(True,  "yes",  "no",   True),   # the protocol says it
    "dropping":                        Setting(True,  "yes",  "yes",  True),
    "dropping.seed":                   Setting(True,  "own",  "own",  True, follows="seed"),
    "loss":                            Setting(True,  "yes",  "yes",  True),
    "loss.metric.seed":                Setting(True,  "own",  "own",  True, follows="seed"),
    "model":                           Setting(True,  "yes",  "yes",  True),
    "model.head":                      Setting(True,  "yes",  "yes",  True, first="linear"),
    "optimizer":                       Setting(True,  "yes",  "yes",  True),
    "optimizer.fused":                 Setting(False, "yes",  "yes",  True),
    "sampler":                         Setting(True,  "yes",  "yes",  True),
    "sampler.balance":                 Setting(True,  "yes",  "yes",  True, first="none"),
    "schedule":                        Setting(True,  "yes",  "yes",  True),
    "schedule.max_epochs":             Setting(True,  "yes",  "own",  True, follows="trainer.max_epochs"),
    "seed":                            Setting(True,  "no",   "no",   True),   # runs that differ in it are one line
    "trainer.max_epochs":              Setting(True,  "yes",  "yes",  True),
    "union":                           Setting(False, "yes",  "yes",  True),   # compared by the fingerprint
    # How it is evaluated. What history.csv holds of earlier epochs must have been evaluated alike.
    "evaluation.ap_at":                Setting(True,  "yes",  "yes",  True),
    "evaluation.before_training":      Setting(False, "no",   "yes",  True),
    "evaluation.chunk_memory_mb":      Setting(False, "no",   "yes",  True),
    "evaluation.distance":             Setting(False, "yes",  "yes",  True, first="euclidean"),
    "evaluation.every_n_epochs":       Setting(False, "no",   "yes",  True),
    "evaluation.normalize":            Setting(True,  "yes",  "yes",  True),
    "evaluation.precision":            Setting(True,  "yes",  "yes",  True),
    "evaluation.ranks":                Setting(True,  "no",   "yes",  True),   # which are listed
    "evaluation.recall_at":            Setting(True,  "no",   "yes",  True),
    "evaluation.single_shot":          Setting(False, "yes",  "yes",  True, first=100),
    "evaluation.top_k":                Setting(False, "no",   "yes",  True),
    # The machine's share of the work.
    "accelerator":                     Setting(False, "yes",  "yes",  False),
    "batch_size":                      Setting(False, "yes",  "yes",  False),
    "index_folder":                    Setting(False, "yes",  "yes",  False),
    "loading.cache":                   Setting(False, "no",   "no",   False),
    "loading.cache_root":              Setting(False, "no",   "no",   False),
    "loading.num_workers":             Setting(False, "no",   "no",   False),
    "loading.test_batch_size":         Setting(False, "no",   "yes",  True),
    "num_workers":                     Setting(False, "yes",  "yes",  False),
    "printed":                         Setting(False, "yes",  "yes",  False),
    "trainer.accelerator":             Setting(False, "no",   "no",   False),
    "trainer.benchmark":               Setting(False, "no",   "no",   True),
    "trainer.channels_last":           Setting(False, "no",   "yes",  True),
    "trainer.compile":                 Setting(False, "no",   "yes",  True),
    "trainer.deterministic":           Setting(False, "no",   "yes",  True),
    # Not the value is compared on resuming, but the number of processes: `training/resuming.py`.
    "trainer.devices":                 Setting(False, "no",   "yes",  True),
    "trainer.join_seconds":            Setting(False, "no",   "no",   False),
    "trainer.log_every_n_steps":       Setting(False, "no",   "no",   True),
    "trainer.max_time":                Setting(False, "no",   "no",   False),
    "trainer.num_nodes":               Setting(False, "no",   "yes",  True),
    "trainer.strategy":                Setting(False, "no",   "yes",  True),
    "trainer.sync_batchnorm":          Setting(False, "yes",  "yes",  True),   # compared there, too
}  # fmt: skip


def setting_of(key: str) -> Setting:
    """The row of a dotted key: its own, else that of the nearest group above it.

    >>> setting_of("dropping.height_ratio") == SETTINGS["dropping"], setting_of("my_switch") == SETTINGS[""]
    (True, True)
    """
    while key and key not in SETTINGS:
        key = key.rpartition(".")[0]
    return SETTINGS[key]


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a setting's value is a whole number, of at least ``least`` where that is given."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def unnamed_settings(*also: str) -> Sequence[str]:
    """Keys that the name of a run folder leaves out, because they change no result; ``also`` are a command's own."""
    return [*(key for key, setting in SETTINGS.items() if not setting.name), *also]
