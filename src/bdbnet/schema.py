"""The schema of the configuration: the keys of every command, and which values each may have."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdbnet.settings import ConfigError, is_whole


class Kind(NamedTuple):
    """What a value may be.

    Attributes:
        advice: what to type instead of another one.
        fits: whether it is of this kind.
        builds: objects are built from it: every mapping in it that has a ``_target_`` is a class and its arguments.
        words: all that may be typed, or, of a kind that takes other values too, the words among them.
    """

    advice: str
    fits: Callable[[Any], bool]
    builds: bool = False
    words: tuple[str, ...] = ()

    def __or__(self, other: "Kind") -> "Kind":
        advice = f"{self.advice}, or {other.advice.removeprefix('give ')}"
        return Kind(
            advice,
            lambda value: self.fits(value) or other.fits(value),
            self.builds or other.builds,
            self.words + other.words,
        )


def whole(least: int | None = None, most: int | None = None) -> Kind:
    """A whole number in a range.

    >>> whole(1).advice, whole(1).fits(1), whole(1).fits(0), whole(1).fits(True)
    ('give a whole number of at least 1', True, False, False)
    """
    return Kind(
        f"give a whole number{_range(least, most)}",
        lambda value: is_whole(value, least) and (most is None or value <= most),
    )


def number(least: float | None = None, most: float | None = None, *, above: float | None = None) -> Kind:
    """A finite number in a range.

    >>> number(above=0).advice, number(0, 1).advice, number(0, 1).fits(0.5), number(above=0).fits(0)
    ('give a number above 0', 'give a number from 0 to 1', True, False)
    """

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (
            (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above)
        )

    return Kind(f"give a number{_range(least, most) if above is None else f' above {above:g}'}", fits)


def choice(*names: str) -> Kind:
    """One of some words."""
    return Kind(
        f"choose one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names, words=names
    )


def listed(advice: str, item: Kind, *, length: int | None = None, least: int = 0) -> Kind:
    """A list of values of one kind."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and length in (None, len(value))
            and all(map(item.fits, value))
        )

    return Kind(f"give a list of {advice}", fits, item.builds)


def _range(least: float | None, most: float | None) -> str:
    if most is not None:
        return f" from {least:g} to {most:g}" if isinstance(least, float) else f" from {least} to {most}"
    return "" if least is None else f" of at least {least}"


NULL = Kind("null", lambda value: value is None, words=("null",))
BOOLEAN = Kind("give true or false", lambda value: isinstance(value, bool), words=("true", "false"))
TEXT = Kind("give a name", lambda value: isinstance(value, str | int | float) and not isinstance(value, bool))
PATH = Kind("give a file or folder", lambda value: isinstance(value, str) and bool(value.strip()))
PATHS = PATH | listed("them", PATH, least=1)
SIZE = Kind(
    "give [height,width] in pixels",
    lambda value: isinstance(value, list) and len(value) == 2 and all(is_whole(side, 1) for side in value),
)
#: Further arguments of something that checks them itself.
ANYTHING = Kind("", lambda value: True)
ARGUMENTS = Kind("give arguments, as in {name: value}", lambda value: isinstance(value, Mapping))
CLASS = Kind(
    "give a class and its arguments, as in {_target_: mypkg.MyClass, size: 3}",
    lambda value: isinstance(value, Mapping) and "_target_" in value,
    builds=True,
)
CLASSES = listed("classes with their arguments, as in [{_target_: mypkg.MyClass, size: 3}]", CLASS)
_SWITCH_WITH_ARGUMENTS = Kind("give true, null or some of its settings", lambda v: isinstance(v, bool | Mapping | None))

SEED = whole(0, 2**32 - 1)
_LONG = Kind(
    "give days:hours:minutes:seconds, such as 00:00:45:00",
    lambda value: isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None,
)
_DEVICES = Kind(
    "give the number of devices, a list of their numbers, or auto",
    lambda value: (
        (is_whole(value, -1) and value != 0)
        or (isinstance(value, str) and re.fullmatch(r"auto|-1|\d+(,\d+)*", value) is not None)
        or (isinstance(value, list) and bool(value) and all(is_whole(device, 0) for device in value))
    ),
)
_CUTOFFS = listed("whole numbers of at least 1, such as [1,5,10]", whole(1), least=1)
_SCALES = listed("factors above 0, such as [1,1.5]", number(above=0)) | NULL
_DECAY = Kind(
    "give a number above 0 and below 1, such as 0.999", lambda value: number(above=0).fits(value) and value < 1
)
_RATIO = Kind("give a number from 0 to 1", (number(0, 1) | NULL).fits)  # null: the data set gives none
_OVERRIDES = listed("settings, such as [backbone.weights=none]", TEXT)

Table = Mapping[str, Kind]


def _below(group: str, keys: Table) -> dict[str, Kind]:
    return {f"{group}.{key}": kind for key, kind in keys.items()}


_PLACES = {
    "data_root": PATH, "output_root": PATH, "plugins": ANYTHING, "run_name": TEXT, "sweep_name": TEXT,
}  # fmt: skip

_DATASET = _below("dataset", {
    "name": TEXT,
    "root": PATH | NULL,
    "reader": TEXT | NULL,
    "options": ARGUMENTS,
    "manifest": PATHS | NULL,
    "train_classes": number(0) | NULL,
    "protocol": choice("auto", "reid", "reid_multi_query", "reid_single_shot", "reid_reassociation", "retrieval"),
    "image_size": SIZE | NULL,
    "resize": SIZE | NULL,
    "test_size": SIZE | NULL,
    "pad_train": BOOLEAN | NULL,
    "pad_test": BOOLEAN | NULL,
    "drop_ratio": listed("two shares between 0 and 1: [height,width]", number(0, 1) | NULL, length=2),
    "erasing": CLASSES | NULL,
    "recall_at": _CUTOFFS,
    "single_shot": whole(1),
})  # fmt: skip

_NETWORK = {"model": CLASS | NULL, "backbone": CLASS | NULL, "backbone.weights": PATH | NULL}

_READING = {
    "num_workers": whole(0) | NULL,
    "test_batch_size": whole(1),
    "decode_margin": number(1) | NULL,
}  # fmt: skip
_CACHING = {"cache": choice("auto", "none", "packed", "device"), "cache_root": PATH}

_EMBEDDING = {
    "precision": choice("32-true", "bf16-mixed"),
    "normalize": choice("none", "joint", "per_branch"),
    "flip": BOOLEAN,
    "scales": _SCALES,
}  # fmt: skip
_EVALUATION = _EMBEDDING | {
    "every_n_epochs": whole(1),
    "before_training": BOOLEAN,
    "ap_at": whole(1) | NULL,
    "ranks": _CUTOFFS,
    "recall_at": _CUTOFFS,
    "query_pooling": choice("mean", "max"),
    "distance": choice("euclidean", "cosine"),
    "query_expansion": _SWITCH_WITH_ARGUMENTS,
    "rerank": _SWITCH_WITH_ARGUMENTS,
    "single_shot": whole(1),
    "top_k": whole(0),
    "chunk_memory_mb": number(above=0),
}
_LOGGERS = {
    key: kind
    for group in ("logger", "loggers.*")
    for key, kind in ((f"{group}.logger", CLASS | NULL), (f"{group}.images", BOOLEAN | NULL))
}
_DEVICE = {"accelerator": TEXT, "devices": _DEVICES}

#: Keys of each command: dotted key -> what its value may be. Below a class its arguments are keys too; ``*`` is any name.
TABLES: dict[str, Table] = {
    "train": _PLACES | _DATASET | _NETWORK | {
        "seed": SEED,
        "backbone_rate": number(above=0) | NULL,
        "averaging.decay": _DECAY | NULL,
        "ckpt_path": PATH | NULL,
        "other_ranks": BOOLEAN,
        "overwrite": BOOLEAN,
        "evaluations": listed("data sets, such as [cuhk03_detect,msmt17_v2]",
                              Kind("", lambda value: isinstance(value, str) and bool(value.strip()))),
        "union": listed("data sets, such as [msmt17_v2]",
                        Kind("", lambda value: isinstance(value, str) and bool(value.strip()))),
        "dropping": CLASS,
        "dropping.height_ratio": _RATIO,
        "dropping.width_ratio": _RATIO,
        "loss.name": TEXT,
        "loss.per_class": BOOLEAN,
        "loss.metric": CLASS | NULL,
        "loss.metric_weight": number(0),
        "loss.softmax_weight": number(0),
        "loss.label_smoothing": number(0, 1),
        "loss.center_weight": number(0) | NULL,
        "loss.center_rate": number(0) | NULL,
        "augmentation.flip": number(0, 1),
        "augmentation.erasing": CLASSES | NULL,
        "optimizer": CLASS,
        "optimizer.fused": BOOLEAN | NULL,
        "optimizer.lr": number(0),
        "schedule": CLASS,
        "schedule.interval": choice("epoch", "step"),
        "schedule.monitor": TEXT | NULL,
        **_LOGGERS,
        **_below("sampler", {
            "batch_size": whole(1), "images_per_identity": whole(1), "epoch": choice("identities", "images"),
            "balance": choice("none", "per_set"),
        }),
        **_below("loading", _READING | _CACHING | {"on_error": choice("raise", "replace")}),
        **_below("evaluation", _EVALUATION),
        **_below("callbacks", {
            "progress": BOOLEAN, "checkpoint_every_n_epochs": whole(1), "checkpoint_every_seconds": number(0),
            "extra": CLASSES,
        }),
        **_below("trainer", _DEVICE | {
            "max_epochs": whole(1),
            "max_time": _LONG | NULL,
            "num_nodes": whole(1),
            "join_seconds": number(above=0),
            "strategy": TEXT,
            "precision": choice("auto", "32-true", "bf16-mixed", "16-mixed", "64-true"),
            "channels_last": BOOLEAN | choice("auto"),
            "accumulate_grad_batches": whole(1),
            "gradient_clip_val": number(0) | NULL,
            "deterministic": BOOLEAN | choice("warn"),
            "log_every_n_steps": whole(0),
            "compile": BOOLEAN | choice("auto", "reduce-overhead"),
            "benchmark": BOOLEAN | choice("auto"),
            "sync_batchnorm": BOOLEAN,
        }),
    },
    "evaluate": _PLACES | _DATASET | _NETWORK | {
        "checkpoint": PATH | NULL,
        "features": PATH | NULL,
        "queries": PATH | NULL,
        "evaluations": listed("data sets, such as [cuhk03_detect,msmt17_v2]",
                              Kind("", lambda value: isinstance(value, str) and bool(value.strip()))),
        "image_size": SIZE | whole(1) | NULL,
        "analysis": BOOLEAN,
        "calibrate": BOOLEAN,
        "fmr": number(above=0) | NULL,
        "overwrite": BOOLEAN,
        "seed": SEED,
        **_LOGGERS,
        **_below("loading", _READING | _CACHING),
        **_below("evaluation", _EVALUATION | {"distance": choice("euclidean", "cosine") | NULL}),
        **_below("trainer", _DEVICE),
    },
    "prepare": _DATASET | {
        "dataset.erasing": ANYTHING,  # of training, and its classes take seconds to import
        "archive": PATHS | NULL,
        "check_images": BOOLEAN,
        "union": listed("data sets, such as [msmt17_v2]",
                        Kind("", lambda value: isinstance(value, str) and bool(value.strip()))),
        "data_root": PATH,
        "plugins": ANYTHING,
    },
    "embed": _PLACES | _DATASET | _NETWORK | {
        "checkpoint": PATH | NULL,
        "images": PATH | NULL,
        "split": choice("query", "gallery", "train", "test", "all") | NULL,
        "root": PATH | NULL,
        "output": PATH,
        "mode": choice("new", "add", "sync"),
        "format": choice("safetensors", "parquet"),
        "shard_size": whole(1),
        "overwrite": BOOLEAN,
        "on_error": choice("raise", "skip"),
        "accelerator": TEXT,
        "image_size": SIZE | whole(1) | NULL,
        "pad_to_square": BOOLEAN | NULL,
        **_below("evaluation", _EMBEDDING),
        **_below("loading", _READING),
    },
    "convert": _NETWORK | {
        "checkpoint": PATH | NULL,
        "output": PATH | NULL,
        "image_size": SIZE | whole(1) | NULL,
        "pad_to_square": BOOLEAN | NULL,
        "timm": TEXT | NULL,
        "half": BOOLEAN,
        "result": PATH | NULL,
        "terms": TEXT | NULL,
        "overwrite": BOOLEAN,
        "plugins": ANYTHING,
    },
    "calibrate": _PLACES | _DATASET | _NETWORK | {
        "checkpoint": PATH | NULL,
        "split": choice("test", "train"),
        "held_out": choice("half", "test", "train"),
        "fmr": number(above=0),
        "prior": number(above=0),
        "distance": choice("euclidean", "cosine") | NULL,
        "embeddings": PATHS | NULL,
        "output": PATH,
        "overwrite": BOOLEAN,
        "seed": SEED,
        "accelerator": TEXT,
        "image_size": SIZE | whole(1) | NULL,
        "pad_to_square": BOOLEAN | NULL,
        **_below("evaluation", _EMBEDDING),
        **_below("loading", _READING),
    },
    "visualize": _PLACES | _DATASET | _NETWORK | {
        "checkpoint": PATHS | NULL,
        "names": listed("names", TEXT) | NULL,
        "images": PATH | NULL,
        "root": PATH | NULL,
        "what": listed("activation, class, similarity, masks, ranking or area",
                       choice("activation", "class", "similarity", "masks", "ranking", "area"), least=1),
        "count": whole(1),
        "top": whole(1),
        "identity": whole(0) | NULL,
        "method": TEXT,
        "tokens": BOOLEAN,
        "format": listed("png, pdf or svg", choice("png", "pdf", "svg")),
        "dpi": whole(50, 1200),
        "distance": choice("euclidean", "cosine") | NULL,
        "accelerator": TEXT,
        "image_size": SIZE | whole(1) | NULL,
        "pad_to_square": BOOLEAN | NULL,
        "overwrite": BOOLEAN,
        "seed": SEED,
        **_below("loading", _READING),
    },
    "search": {key: kind for key, kind in (_PLACES | _NETWORK).items() if key != "data_root"} | {
        "index": PATH | NULL,
        "images": PATH | NULL,
        "root": PATH | NULL,
        "queries": PATH | NULL,
        "checkpoint": PATH | NULL,
        "k": whole(1),
        "engine": choice("exact", "faiss_ivf", "faiss_hnsw", "milvus"),
        "distance": choice("euclidean", "cosine") | NULL,
        "same_camera": BOOLEAN,
        "verify": BOOLEAN,
        "on_error": choice("raise", "skip"),
        "overwrite": BOOLEAN,
        "after": TEXT | NULL,
        "before": TEXT | NULL,
        "ivf.lists": whole(1) | NULL,
        "ivf.probes": whole(1),
        "hnsw.links": whole(1),
        "hnsw.ef_search": whole(1),
        "milvus.uri": TEXT | NULL,
        "milvus.timeout": number(above=0),
        "index_folder": PATH | NULL,
        "printed": whole(0),
        "pictures": whole(0),
        "batch_size": whole(1),
        "num_workers": whole(0) | NULL,
        "accelerator": TEXT,
    },
    "export": _NETWORK | {
        "checkpoint": PATH | NULL,
        "output": PATH | NULL,
        "format": choice("onnx", "openvino", "torch_export") | NULL,
        "input": choice("floats", "pixels"),
        "source_size": SIZE | NULL,
        "precision": choice("fp32", "fp16", "int8"),
        "opset": whole(18, 23),
        "overwrite": BOOLEAN,
        "image_size": SIZE | whole(1) | NULL,
        "pad_to_square": BOOLEAN | NULL,
        "plugins": ANYTHING,
        **_below("evaluation", _EMBEDDING),
    },
    "serve": _NETWORK | {
        "index": PATH | NULL,
        "checkpoint": PATH | NULL,
        "host": TEXT,
        "port": whole(0, 65_535),
        "token": TEXT | NULL,
        "k": whole(1, 500),
        "distance": choice("euclidean", "cosine") | NULL,
        "index_folder": PATH | NULL,
        "verify": BOOLEAN,
        "accelerator": TEXT,
        "max_upload_mb": number(above=0),
        "max_pixels": whole(1, 80_000_000),
        "requests_per_second": number(above=0) | NULL,
        "workers": whole(1) | NULL,
        "waiting": whole(0),
        "timeout": number(above=0),
        "plugins": ANYTHING,
    },
    "report": {
        "run": PATH | NULL,
        "compare": PATH | NULL,
        "queries": whole(0),
        "top": whole(1),
        "maps": BOOLEAN,
        "checkpoint": PATH | NULL,
        "pdf": BOOLEAN,
        "seed": whole(0),
        "overwrite": BOOLEAN,
    },
    "dashboard": {
        "project": TEXT | NULL,
        "entity": TEXT | NULL,
        "views": listed("views: run, height_ratio, paper", choice("run", "height_ratio", "paper"), least=1),
        "dry_run": BOOLEAN,
        "output": PATH,
        "table": TEXT | listed("tables, such as [2,3]", TEXT),
        "budget": TEXT,
        "seeds": listed("whole numbers, such as [1,2,3]", SEED, least=1),
        "overrides": _OVERRIDES,
        "runs_root": PATH,
        "data_root": PATH,
        "weights_root": PATH,
    },
    "reproduce": {
        "table": TEXT | listed("tables, such as [2,3]", TEXT) | NULL,
        "figure": TEXT | listed("figures, such as [7a,7b]", TEXT) | NULL,
        "claims": TEXT | NULL,
        "budget": TEXT | listed("budgets, such as [smoke,cpu]", TEXT, least=1),
        "seeds": Kind(
            "give a list of different whole numbers of at least 0, such as seeds=[1,2,3]",
            lambda value: isinstance(value, list) and bool(value) and all(map(SEED.fits, value))
            and len(set(value)) == len(value),
        ),
        "list": BOOLEAN,
        "overwrite": BOOLEAN,
        "overrides": _OVERRIDES,
        "loggers": TEXT | listed("loggers, such as [wandb,tensorboard]", TEXT, least=1) | NULL,
        "retry": BOOLEAN,
        "max_hours": number(0) | NULL,
        "version": TEXT | NULL,
        "summary": PATH | NULL,
        "worker": whole(0) | NULL,
        "data_root": PATH,
        "weights_root": PATH,
        "output_root": PATH,
        "runs_root": PATH,
    },
}  # fmt: skip

#: Groups whose further keys are arguments of a class that no ``_target_`` names.
PASSED_ON = {"trainer": "pytorch_lightning.Trainer"}

#: Arguments of ``PASSED_ON`` that are decided elsewhere -> the key that does.
ELSEWHERE = {
    "trainer.callbacks": "callbacks.extra",
    "trainer.check_val_every_n_epoch": "evaluation.every_n_epochs",
    "trainer.default_root_dir": "output_root",
    "trainer.enable_progress_bar": "callbacks.progress",
    "trainer.logger": "logger",
}

#: Keys beside a ``_target_`` that are no arguments of the class.
BESIDE_CLASS = frozenset({"backbone.weights", "optimizer.fused", "schedule.interval", "schedule.monitor"})

#: Arguments of a class that a command fills in.
FILLED_IN = frozenset(
    {"model.backbone", "model.dropping", "model.num_classes", "optimizer.params", "schedule.optimizer"}
)

#: Keys that a command has because it shares their group with others, and that change nothing there.
_OF_TRAINING = ("dataset.drop_ratio", "dataset.erasing", "dataset.pad_train")
UNUSED: Mapping[str, Collection[str]] = {
    "evaluate": (*_OF_TRAINING, "evaluation.before_training", "evaluation.every_n_epochs"),
    "embed": (*_OF_TRAINING, "dataset.recall_at"),
    "calibrate": (*_OF_TRAINING, "dataset.recall_at"),
    "visualize": (*_OF_TRAINING, "dataset.recall_at"),
    "prepare": (*_OF_TRAINING, "dataset.recall_at", "dataset.image_size", "dataset.resize", "dataset.test_size",
                "dataset.pad_test"),
}  # fmt: skip

#: Keys of `evaluate` that have an effect with a network alone, and not with ``features=``.
OF_NETWORK = (
    "checkpoint", "image_size", "model", "backbone", "loading", "trainer", "evaluation.precision", "evaluation.flip",
    "evaluation.scales",
)  # fmt: skip

#: Groups of one choice: group -> key and the values with which its keys have an effect.
_WITH = {
    "ivf": ("engine", ("faiss_ivf",)),
    "hnsw": ("engine", ("faiss_hnsw", "milvus")),
    "milvus": ("engine", ("milvus",)),
}


class Built(NamedTuple):
    """A class and its arguments in a configuration: its key, and the plain mapping with its ``_target_``."""

    key: str
    node: Mapping[str, Any]


def check(config: DictConfig, command: str, typed: Collection[str] = ()) -> list[Built]:
    """Refuse keys that a command does not have, and values out of range.

    A key that a file sets and that only training has is let pass: a file of ``experiment=`` serves several commands.

    Args:
        config: composed settings of the command. What can't be resolved yet, such as the folder of a run, is not looked at.
        command: name of its table in ``TABLES``.
        typed: keys that the user typed: one that would change nothing is refused.

    Returns:
        The classes with their arguments that the settings name, for whoever can look the classes up.

    Raises:
        ConfigError: names the key and what to type instead.
    """
    if command != "evaluate" and OmegaConf.select(config, "dataset.name") == "features":
        raise ConfigError(
            "dataset=features: embeddings from a file have no images; they go with bdbnet.evaluate features=FILE"
        )
    table, built = TABLES[command], []
    passed_on: dict[str, dict[str, Any]] = {}
    for key, value in _leaves(config, table):
        kind = _kind_of(key, table)
        if kind is not None:
            _check_value(key, value, kind, table)
            built += _classes(key, value) if kind.builds else []
        elif command == "evaluate" and key not in typed and _kind_of(key, TABLES["train"]) is not None:
            continue
        elif _is_passed_on(key):
            if key in ELSEWHERE:
                raise ConfigError(f"{key} is decided by {ELSEWHERE[key]}: leave it out")
            group, _, name = key.partition(".")
            passed_on.setdefault(group, {"_target_": PASSED_ON[group]})[name] = value
        else:
            raise unknown_key(key, command, known_keys(config, command))
    built += [Built(group, node) for group, node in passed_on.items()]
    for key in typed:
        if key in UNUSED.get(command, ()):
            raise ConfigError(f"{key}: bdbnet.{command} does not use it; leave it out")
        if command == "evaluate" and config.get("features") is not None and key.startswith(OF_NETWORK):
            raise ConfigError(f"{key} is a setting of a network: with features= there is none, so leave it out")
        owner, values = _WITH.get(key.partition(".")[0], ("", ()))
        if command == "search" and owner and config.get(owner) not in values:
            raise ConfigError(f"{key} has an effect with {owner}={' or '.join(values)} alone, not with {config[owner]}")
    return built


def unknown_key(key: str, command: str, known: Collection[str]) -> ConfigError:
    """The error for a key that a command does not have, with the nearest ones that it has."""
    near = nearest(key, known)
    above = [key, *(key[: match.start()] for match in re.finditer(r"\.", key))]  # a key below one that takes any
    others = [
        name for name, table in TABLES.items() if name != command and any(_kind_of(part, table) for part in above)
    ]
    elsewhere = f"it is one of bdbnet.{', bdbnet.'.join(others)}"
    if near:
        advice = f"did you mean {' or '.join(near)}?" + (f" ({elsewhere})" if others else "")
    else:
        advice = elsewhere if others else f"python -m bdbnet.{command} --help lists all keys"
    return ConfigError(f"{key}: bdbnet.{command} has no such key; {advice}")


def known_keys(config: DictConfig, command: str) -> list[str]:
    """Every key that a command has, arguments of the chosen classes among them."""
    table = TABLES[command]
    keys = [key for key in table if "*" not in key and not table[key].builds and key not in UNUSED.get(command, ())]
    for key, kind in table.items():
        node = OmegaConf.select(config, key) if kind.builds and "*" not in key else None
        if isinstance(node, DictConfig):
            keys += [f"{key}.{name}" for name in map(str, node) if not name.startswith("_")]
    return [*dict.fromkeys(keys)]


#: Words of other programs that look like no key of ours, or like one that means something else, and the keys for them.
OTHER_WORDS: Mapping[str, Collection[str]] = {
    "checkpoint": ("backbone.weights", "ckpt_path"),
    "load_weights": ("checkpoint", "backbone.weights"),
    "weights": ("checkpoint", "backbone.weights"),
    "resume": ("ckpt_path", "checkpoint"),
    "height": ("image_size", "dataset.image_size"),
    "width": ("image_size", "dataset.image_size"),
    "save_dir": ("output_root",),
    "eval_freq": ("evaluation.every_n_epochs",),
}


def nearest(key: str, known: Collection[str]) -> list[str]:
    """The keys that someone who typed ``key`` may have meant, at most three, nearest first.

    >>> nearest("lr", ["optimizer.lr", "seed"]), nearest("evaluation.reranking", ["evaluation.rerank", "evaluation.ranks"])
    (['optimizer.lr'], ['evaluation.rerank'])
    >>> nearest("epochs", ["trainer.max_epochs", "seed", "model"]), nearest("nothing_like_it", ["seed"])
    (['trainer.max_epochs'], [])
    >>> nearest("height", ["dropping.height_ratio", "dataset.image_size"])
    ['dataset.image_size']
    """
    name = key.rpartition(".")[2].lower()
    if meant := [each for each in OTHER_WORDS.get(key.lower(), ()) if each in known]:
        return meant
    short = {each: each.rpartition(".")[2] for each in known}
    same = [each for each in known if short[each] == name]
    longer = [each for each in known if short[each].startswith(f"{name}_") or short[each].endswith(f"_{name}")]
    if same or longer:
        return [*same, *sorted(longer, key=len)][:3]
    whole_key = difflib.get_close_matches(key.lower(), known, 1, 0.75)
    if whole_key:
        return whole_key
    names = difflib.get_close_matches(name, sorted({*short.values()}), 1, 0.7)
    return [each for each in known if short[each] in names][:3]


_UNRESOLVED = object()


def _leaves(node: DictConfig, table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key and plain value of everything that has a row or lacks one; what is missing (``???``) has no value yet."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        if key == "hydra" or OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
            inside = OmegaConf.is_dict(value) and _kind_of(key, table) is None and not _is_passed_on(key)
            if inside and (value or _is_group(key, table)):
                yield from _leaves(value, table, f"{key}.")
            else:
                yield key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException:
            yield key, _UNRESOLVED


def _check_value(key: str, value: Any, kind: Kind, table: Table) -> None:
    if value is _UNRESOLVED:
        return
    if not kind.fits(value):
        raise ConfigError(f"{key}={_shown(value)}: {kind.advice}")
    if kind.builds and isinstance(value, Mapping):
        for name, argument in value.items():
            if (own := table.get(f"{key}.{name}")) is not None and argument != "???":
                _check_value(f"{key}.{name}", argument, own, table)


def _classes(key: str, value: Any) -> list[Built]:
    """Every mapping with a ``_target_`` in a value."""
    if isinstance(value, Mapping):
        own = [Built(key, value)] if value.get("_target_", "???") != "???" else []
        return own + [found for name, child in value.items() for found in _classes(f"{key}.{name}", child)]
    return [found for child in value for found in _classes(key, child)] if isinstance(value, list) else []


def _kind_of(key: str, table: Table) -> Kind | None:
    group, _, rest = key.partition(".")
    return table.get(key) or table.get(f"{group}.*.{rest.partition('.')[2]}")


def _is_group(key: str, table: Table) -> bool:
    """Whether there are keys below this one."""
    return any(row.startswith((f"{key}.", f"{key}*.")) for row in table)


def _is_passed_on(key: str) -> bool:
    group, dot, name = key.partition(".")
    return group in PASSED_ON and bool(dot) and "." not in name


def _shown(value: Any) -> str:
    """A value as it is typed.

    >>> _shown([1, None, True, {"k": "a"}])
    '[1,null,true,{k:a}]'
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
