"""The schema: which keys and values each command takes, and what it says of others."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from bdbnet.config import ConfigError, check_settings, command, config_dir, flatten
from bdbnet.evaluation.embedder import NORMALIZATIONS, PRECISIONS
from bdbnet.loading import PROTOCOLS
from bdbnet.loading.datamodule import CACHES, ON_ERROR
from bdbnet.retrieval import DISTANCES, POOLINGS
from bdbnet.schema import ELSEWHERE, FILLED_IN, TABLES, UNUSED

NEEDED = {
    "prepare": ["dataset=market1501"],
    "embed": ["dataset=market1501"],
    "calibrate": ["dataset=market1501"],
    "visualize": ["dataset=market1501"],
    "evaluate": ["dataset=market1501"],
}

#: Rows of keys that the chosen groups do not have, but others.
OF_OTHER_CHOICES = {
    "dataset.reader", "dataset.manifest", "dataset.train_classes", "dataset.recall_at", "dataset.single_shot", "loss.per_class",
    "optimizer.fused", "schedule.interval", "schedule.monitor", "logger.logger", "logger.images", "loggers.*.logger",
    "loggers.*.images", "backbone.weights", "model", "backbone",
}  # fmt: skip


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, [*NEEDED.get(name, []), *overrides])


@pytest.fixture(scope="module")
def configs() -> dict[str, DictConfig]:
    return {name: composed(name) for name in TABLES}


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, list[DictConfig]]]:
    """``typed("train", "seed=2")``: exit status, errors and the configurations that the command was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bdbnet.config.check_given", lambda *_: None)  # the files of these lines are made up

    def run(name: str, *arguments: str) -> tuple[int, str, list[DictConfig]]:
        seen: list[DictConfig] = []

        def main(config: DictConfig) -> None:
            seen.append(config)

        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            command(name)(main)()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err.strip(), seen
        return 0, capsys.readouterr().err.strip(), seen

    return run


@pytest.mark.parametrize("name", TABLES)
def test_what_the_files_set_is_in_the_schema(name, configs):
    check_settings(configs[name], name)


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_of_a_key_that_the_command_has(name, configs):
    plain = OmegaConf.to_container(configs[name])
    there = {key for key, _ in flatten(plain)}
    there |= {".".join(key.split(".")[:place]) for key in there for place in range(1, key.count(".") + 1)}
    assert {row for row in TABLES[name] if row not in there} <= OF_OTHER_CHOICES
    assert {*UNUSED.get(name, ())} <= TABLES[name].keys()


def test_words_of_the_schema_are_those_of_the_code(configs):
    def takes(key: str, names: Sequence[str], name: str = "train") -> bool:
        advice = TABLES[name][key].advice
        return advice == f"choose one of {', '.join(names)}"

    assert takes("evaluation.normalize", NORMALIZATIONS)
    assert takes("evaluation.precision", PRECISIONS)
    assert takes("evaluation.distance", DISTANCES)
    assert takes("evaluation.query_pooling", POOLINGS)
    assert takes("loading.cache", CACHES)
    assert takes("loading.on_error", ON_ERROR)
    assert takes("dataset.protocol", ["auto", *PROTOCOLS])


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", ["lr=3e-4"], "lr: bdbnet.train has no such key; did you mean optimizer.lr?"),
        ("train", ["+lr=3e-4"], "lr: bdbnet.train has no such key; did you mean optimizer.lr?"),
        ("train", ["-m", "+lr=1,2"], "lr: bdbnet.train has no such key; did you mean optimizer.lr?"),
        ("train", ["-m", "lr=1,2"], "lr: bdbnet.train has no such key; did you mean optimizer.lr?"),
        ("train", ["++evaluation.reranking=true"], "did you mean evaluation.rerank?"),
        ("train", ["evaluation.reranking=true", "loss=none"], "did you mean evaluation.rerank?"),
        ("train", ["dropping.height_ration=0.3"], "did you mean dropping.height_ratio?"),
        ("train", ["+optimizer.wieght_decay=1"], "has no argument wieght_decay; did you mean optimizer.weight_decay?"),
        ("train", ["optimizer.amsgrad=true"], "can be added: write +optimizer.amsgrad=true"),
        ("train", ["trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
        ("train", ["+trainer.logger=false"], "trainer.logger is decided by logger"),
        ("train", ["+model.num_classes=3"], "model.num_classes is filled in"),
        ("train", ["dropping=none", "+dropping.height_ratio=0.3"], "torch.nn.Identity has no argument height_ratio"),
        ("train", ["model=mgn", "model.head=bnneck"],
         "model.head: bdbnet.models.MGNNetwork has no argument head; it is one of model=baseline, bdb, dropping. Leave it out"),
        ("train", ["experiment=bdb_agw", "model=pcb", "backbone=resnet50"],
         "PCBNetwork has no argument head; it is one of model=baseline, bdb, dropping. Leave it out (type ~model.head where exp"),
        ("train", ["backbone=torchvision", "+backbone.token=class"],
         "backbone.token: bdbnet.models.TorchvisionBackbone has no argument token; it is one of backbone=timm, vit."),
        ("train", ["callbacks.extra=[{_target_:pytorch_lightning.callbacks.EarlyStopping,monitr:mAP}]"],
         "did you mean callbacks.extra.monitor?"),
        ("train", ["callbacks.extra=[{_target_:os.system,command:ls}]"], "allow-list"),
        ("evaluate", ["+flip=true"], "did you mean evaluation.flip?"),
        ("evaluate", ["+loss=margin"], "bdbnet.evaluate has no such key; it is one of bdbnet.train"),
        ("evaluate", ["+sampler.batch_size=8"], "did you mean loading.test_batch_size? (it is one of bdbnet.train)"),
        ("evaluate", ["evaluation.every_n_epochs=3"], "bdbnet.evaluate does not use it"),
        ("prepare", ["dataset=market1501", "chek_images=false"], "did you mean check_images?"),
        ("prepare", ["dataset=market1501", "dataset.image_size=[64,32]"], "bdbnet.prepare does not use it"),
        ("embed", ["dataset.root=photos"], "dataset.root: no dataset is chosen; write dataset=CHOICE too"),
        ("train", ["dataset=features"], "they go with bdbnet.evaluate features=FILE"),
        ("embed", ["+normalise=joint"], "did you mean evaluation.normalize?"),
        ("search", ["engin=exact"], "did you mean engine?"),
        ("search", ["ivf.probes=3"], "ivf.probes has an effect with engine=faiss_ivf alone, not with exact"),
        ("report", ["run=a", "qeries=3"], "did you mean queries?"),
        ("reproduce", ["table=3", "seed=[1]"], "did you mean seeds?"),
        ("train", ["dataset=Market1501"], "no such choice; did you mean dataset=market1501? Choices: c"),
        ("train", ["-m", "loss=hard_triplet,margins"], "did you mean loss=margin?"),
        ("train", ["logger=[{_target_:pytorch_lightning.loggers.CSVLogger},{_target_:pytorch_lightning.loggers.WandbLogger}]"],
         "give the name of a choice, or leave logger= out. Choices: csv, mlflow, tensorboard, wandb"),
        ("evaluate", ["dataset=null"], "dataset=null: give the name of a choice, or leave dataset= out"),
        ("train", ["loss=[margin,none]"], "a run has one loss; for a run with each of them: -m loss=margin,none"),
        ("train", ["--dataset", "market1501"], "--dataset market1501: write dataset=market1501"),
        ("train", ["--dataset=market1501"], "--dataset=market1501: write dataset=market1501"),
        ("train", ["--batch-size", "32"], "--batch-size 32: write sampler.batch_size=32"),
        ("train", ["-lr", "0.1"], "-lr 0.1: write optimizer.lr=0.1"),
        ("train", ["market1501"], "market1501: write dataset=market1501"),
        ("train", ["seed"], "seed: write seed=VALUE"),
        ("train", ["-s", "market1501"], "-s market1501: write dataset=market1501"),
        ("train", ["--height", "64"], "--height 64: write dataset.image_size=[64,WIDTH]"),
        ("embed", ["--width=32"], "--width=32: write image_size=[HEIGHT,32] or dataset.image_size=[HEIGHT,32]"),
        ("train", ["checkpoint=a.pth"], "did you mean backbone.weights or ckpt_path? (it is one of bdbnet.evaluate"),
        ("train", ["resume=a.pth"], "did you mean ckpt_path?"),
        ("train", ["width=64"], "width: bdbnet.train has no such key; did you mean dataset.image_size?"),
        ("evaluate", ["weights=a.pth"], "did you mean checkpoint"),
        ("train", ["+model.nothing_like_it=1"], "has no argument nothing_like_it; it has num_classes, "),
        ("train", ["nonsense"], "nonsense: settings are written KEY=VALUE"),
        ("train", ["-m", "dropping.height_ratio=0.1,", "0.3"], "0.1, 0.3: write it without a space: dropping.height_ratio=0.1,0.3"),
        ("train", ["seed=1,2"], "seed=1,2: several values. For a run with each of them add -m; for one run with a list"),
        ("train", ["loss=margin,none"], "loss=margin,none: several values. For a run with each of them add -m"),
        ("train", ["-m", "seed=1,2", "--cfg", "job"], "--cfg shows the settings of one run: leave -m out"),
        ("train", ["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_job=2"],
         "hydra.launcher.n_job: hydra/launcher=joblib has no such key; did you mean hydra.launcher.n_jobs?"),
        ("train", ["-m", "seed=1,2", "hydra.launcher.n_jobs=2"], "hydra/launcher=basic has no such key; choose the launcher"),
        ("train", ["hydra.launchr.n_jobs=2"], "hydra.launchr.n_jobs: hydra.launchr has no such key"),
        ("train", ["hydra/launcher=submitit_slurm", "hydra.launcher.additional_parameters.account=lab"],
         "write +hydra.launcher.additional_parameters.account=lab"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_refused_with_what_to_type(name, arguments, said, typed, tmp_path):
    status, error, seen = typed(name, *arguments)
    assert said in error
    assert error.startswith("error: ")
    assert (status, seen) == (1, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["+optimizer.amsgrad=true", "+trainer.limit_train_batches=3", "+dataset.options.split=2"]),
        ("train", ["loss=pml", "+loss.metric.m=0.3", "+loss.per_class=true"]),
        ("train", ["schedule=torch", "schedule._target_=torch.optim.lr_scheduler.StepLR", "+schedule.step_size=20"]),
        ("train", ["logger=[tensorboard,csv]", "+logger.logger.prefix=a"]),
        ("train", ["backbone.weights=my weights,v=2.pth", "dataset=table", "dataset.manifest=[a.csv,b.csv]"]),
        ("train", ["optimizer._target_=torch.optim.Rprop", "~optimizer.weight_decay"]),
        ("evaluate", ["checkpoint=a.pth", "experiment=market1501_osnet_cpu"]),
        # as Lightning starts the processes of further devices
        ("train", ["++hydra.callbacks.check_settings._target_=bdbnet.config.CheckSettings", "hydra.job.name=train_ddp_process_1",
                   "hydra.output_subdir=null", 'backbone.weights="a=b.pth"']),
        ("evaluate", ["+evaluation.rerank={k1:30}", "evaluation.scales=[1,1.5]", "image_size=[256,128]"]),
        ("search", ["engine=faiss_ivf", "ivf.probes=3", "after=2024-05-31"]),
        ("reproduce", ["table=3", "logger=wandb"]),
        ("reproduce", ["table=3", "logger=[wandb,tensorboard]"]),
        ("reproduce", ["table=[3,7a]", "figure=7a", "overrides=['a=1']", "max_hours=0.5"]),
    ],
)  # fmt: skip
def test_what_is_passed_on_is_taken(name, arguments, typed):
    status, error, seen = typed(name, *arguments)
    assert (status, error, len(seen)) == (0, "", 1)


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ("evaluation.top_k=3,-1", "evaluation.top_k=-1: give a whole number of at least 0"),
        ("dropping.height_ratio=0.3,1.5", "dropping.height_ratio=1.5: give a number from 0 to 1"),
    ],
)
def test_every_job_of_a_sweep_is_checked_before_the_first_starts(swept, said, typed, tmp_path):
    status, error, seen = typed("train", "-m", swept)
    assert (status, seen) == (1, [])
    assert error == f"error: {said}"
    assert list(tmp_path.iterdir()) == []


def test_the_option_of_a_sweep_may_stand_anywhere(typed):
    for arguments in (
        ["seed=1,2", "-m", "loss=none"],
        ["-m", "seed=1,2", "loss=none"],
        ["loss=none", "seed=1,2", "-m"],
    ):
        assert [(seen.seed, seen.loss.name) for seen in typed("train", *arguments)[2]] == [(1, "none"), (2, "none")]


def test_a_sweep_of_good_values_starts(typed):
    assert len(typed("train", "-m", "evaluation.top_k=3,0")[2]) == 2


def test_a_file_of_the_user_s_is_checked_too(configs):
    config = configs["train"].copy()
    with open_dict(config):
        config.evaluation.reranking = True
    with pytest.raises(ConfigError, match=r"evaluation\.reranking: .*did you mean evaluation\.rerank\?"):
        check_settings(config, "train")


VALUES = {
    "train": {
        "seed": ([0, 2**32 - 1], [-1, 2**32, 1.5, True, "a", None]),
        "backbone_rate": ([None, 0.1], [0, -1, "half"]),
        "averaging.decay": ([None, 0.999], [0, 1, -0.1, 1.5, True, "slow"]),
        "overwrite": ([True], ["yes", 1, None]),
        "evaluations": ([[], ["cuhk03_detect"]], ["cuhk03_detect", [""], [3]]),
        "union": ([[], ["msmt17_v2"]], ["msmt17_v2", [""], [3]]),
        "sampler.balance": (["per_set"], ["set", None]),
        "dataset.image_size": ([[64, 32]], [64, [64], [64, 0], ["a", "b"]]),
        "dataset.drop_ratio": ([[0.3, 1], [None, None]], [[0.3], [1.5, 1], 0.3]),
        "dataset.root": (["a"], [3, "", ["a"]]),
        "sampler.batch_size": ([8], [0, "a", 8.0]),
        "sampler.epoch": (["images"], ["all", None]),
        "loading.num_workers": ([None, 0], [-1, "auto"]),
        "loading.decode_margin": ([None, 1, 1.5], [0.5, "a"]),
        "evaluation.ranks": ([[1]], [[], [0], 1]),
        "evaluation.scales": ([None, [1, 1.5]], [1.5, [0], [float("inf")]]),
        "evaluation.rerank": ([None, True, {"k1": 3}], ["yes", 3]),
        "evaluation.chunk_memory_mb": ([0.5], [0, float("nan")]),
        "loss.metric": ([None], ["triplet", 3]),
        "loss.label_smoothing": ([0, 0.1], [-0.1, 2]),
        "dropping.height_ratio": ([None, 0, 0.3, 1], [-0.1, 1.5, "a", True]),
        "optimizer.lr": ([0.1], ["fast", -1, None]),
        "schedule.interval": (["step"], ["batch"]),
        "trainer.max_epochs": ([1], [0, 1.5, -1]),
        "trainer.max_time": ([None, "00:00:45:00"], ["5m", 45]),
        "trainer.devices": ([1, -1, "auto", "2", [0, 1]], [0, "all", [], None]),
        "trainer.deterministic": ([True, "warn"], ["no"]),
        "callbacks.extra": ([[]], ["EarlyStopping", None]),
    },
    "evaluate": {"analysis": ([True], ["yes"]), "image_size": ([224, [256, 128], None], [0, [256], "big"])},
    "embed": {"on_error": (["skip"], ["ignore"]), "split": ([None, "train"], ["valid"])},
    "serve": {"port": ([0, 8765], [-1, 70000, "http"]), "distance": ([None, "cosine"], ["near"])},
    "search": {"k": ([1], [0, "ten"]), "after": ([None, 3, "2024-05-31"], [True])},
    "export": {"opset": ([18, 23], [17, 24]), "precision": (["int8"], ["bf16"]), "source_size": ([None, [256, 128]], [224])},
    "report": {"queries": ([0], [-1, "many"]), "top": ([1], [0])},
    "reproduce": {
        "claims": ([None, "paper", "my.yaml"], [["paper"]]),
        "seeds": ([[1, 2]], [1, [1, 1], [], ["a"]]),
        "max_hours": ([None, 0.5], ["soon", -1]),
        "worker": ([None, 0], [-1, "a"]),
        "overrides": ([["a=1"]], ["a=1"]),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in VALUES.items() for key in keys])
def test_values_are_of_their_type_and_range(name, key, configs):
    def check(value: object) -> None:
        config = configs[name].copy()
        with open_dict(config):
            OmegaConf.update(config, key, value, merge=False)
        check_settings(config, name)

    right, wrong = VALUES[name][key]
    for value in right:
        check(value)
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^{key}=.*: (give|choose) "):
            check(value)


def test_what_is_decided_elsewhere_is_an_argument_of_what_it_is_passed_to():
    from pytorch_lightning import Trainer

    from bdbnet.config import arguments_of

    assert {key.partition(".")[2] for key in ELSEWHERE} <= arguments_of(Trainer).keys()
    assert not FILLED_IN & {row for table in TABLES.values() for row in table}


def test_a_sweep_over_files_has_a_job_for_each(typed, tmp_path):
    (tmp_path / "a=1,b=2").mkdir()
    run = tmp_path / "a=1,b=2" / "last.ckpt"
    run.touch()
    _, error, seen = typed("evaluate", "-m", f"checkpoint=a.pth,{run},'c,d.pth'")
    assert (error, [config.checkpoint for config in seen]) == ("", ["a.pth", str(run), "c,d.pth"])
    _, error, seen = typed("train", "-m", "dataset=table", "dataset.manifest=a.csv,my b.csv,[c.csv,d.csv]")
    assert (error, [config.dataset.manifest for config in seen]) == ("", ["a.csv", "my b.csv", ["c.csv", "d.csv"]])
    _, error, seen = typed("train", "-m", "backbone.weights=none,w.pth")
    assert (error, [config.backbone.weights for config in seen]) == ("", ["none", "w.pth"])


def test_options_may_follow_the_settings(typed):
    code, error, seen = typed("train", "seed=1,2", "-m")
    assert (code, error, [config.seed for config in seen]) == (0, "", [1, 2])
    assert typed("train", "seed=3", "--cfg", "job")[0] == 0


def test_a_path_with_commas_is_one_path_without_a_sweep(typed):
    _, error, seen = typed("evaluate", "checkpoint=x/loss=none,seed=2/my last.ckpt")
    assert (error, seen[0].checkpoint) == ("", "x/loss=none,seed=2/my last.ckpt")


def test_options_of_hydra_stay(typed, tmp_path: Path):
    status, _, seen = typed("train", "--cfg", "job", "--package", "sampler")
    assert (status, seen, list(tmp_path.iterdir())) == (0, [], [])
