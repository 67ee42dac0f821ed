"""Where settings come from and what may be built from them."""

import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf, open_dict

from bdbnet import plugins
from bdbnet.command_line import one_logger_each, typed_plugins
from bdbnet.config import ConfigError, check_settings, check_target, command, config_dir, instantiate, quote_paths
from bdbnet.losses import BatchHardTripletLoss
from bdbnet.plugins import PluginError
from bdbnet.renamed import rename_keys

GROUPS = "dataset model backbone dropping loss augmentation optimizer schedule trainer callbacks logger evaluation experiment"


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, [*overrides, "run_name=x"] if name in ("train", "evaluate") else [*overrides])


def test_every_group_of_the_architecture_is_there():
    assert {path.name for path in config_dir().iterdir() if path.is_dir()} - {"sweeps", "hydra"} == set(GROUPS.split())


@pytest.mark.parametrize("group", [group for group in GROUPS.split() if group not in ("experiment", "logger")])
def test_every_choice_of_every_group_composes(group):
    for path in sorted((config_dir() / group).glob("*.yaml")):
        command = (
            "evaluate" if path.stem == "features" else "train"
        )  # embeddings from a file have no images to train on
        config = composed(command, f"{group}={path.stem}")
        OmegaConf.to_container(config, resolve=True)
        check_settings(config, command)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("dataset=market150", "synthetic_reid"),
        ("loss=tripel", "hard_triplet"),
        ("backbone=resnet51", "resnet50"),
        ("experiment=bdb_cutt", "bdb_cut"),
    ],
)
def test_a_misspelt_choice_is_answered_with_the_choices(override, named):
    with pytest.raises(MissingConfigException, match=named):
        composed("train", override)


@pytest.mark.parametrize("override", ["dropping.height_ration=0.3", "trainer.max_epoch=3", "los.margin=1"])
def test_a_misspelt_key_is_refused(override):
    with pytest.raises(ConfigCompositionException, match=override.split("=")[0].split(".")[-1]):
        composed("train", override)


def test_the_paper_s_recipe_is_the_default():
    config = composed("train", "dataset=market1501")
    assert (config.sampler.batch_size, config.sampler.images_per_identity) == (128, 4)
    assert (config.dropping.height_ratio, config.dropping.width_ratio) == (0.3, 1.0)
    assert list(config.dataset.image_size) == [384, 128]
    assert (config.trainer.max_epochs, config.optimizer.lr, config.optimizer.weight_decay) == (400, 1e-3, 5e-4)
    assert (config.loss.metric.margin, config.loss.label_smoothing) == ("soft", 0.1)
    assert config.augmentation.erasing == []
    assert list(config.model.branches) == ["global", "dropping"]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "bdbnet.models.bdb.torch.load",
        "bdbnet.config.command",
        "subprocess.run",
        "bdbnet.models.nothing",
        "torch.load",
        "bdbnet.training.runs.train",
        "",
    ],
)
def test_a_target_outside_the_allow_list_is_refused(target):
    with pytest.raises(ConfigError, match="allow-list"):
        check_target(target)
    with pytest.raises(ConfigError, match="allow-list"):
        instantiate(OmegaConf.create({"extra": [{"_target_": target}]}))


def test_allowed_targets_are_built():
    loss = instantiate(OmegaConf.create({"_target_": "bdbnet.losses.BatchHardTripletLoss", "margin": 0.5}))
    assert isinstance(loss, BatchHardTripletLoss)
    assert loss.margin == 0.5


def test_arguments_reach_the_object_uncopied():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = instantiate(OmegaConf.create({"_target_": "torch.optim.Adam", "lr": 0.1}), params=parameters)
    assert optimizer.param_groups[0]["params"][0] is parameters[0]


@pytest.mark.parametrize("arguments", [{"margin": -1}, {"margins": 1}])
def test_an_argument_that_a_class_refuses_is_a_config_error(arguments):
    with pytest.raises(ConfigError, match="margin"):
        instantiate(OmegaConf.create({"_target_": "bdbnet.losses.BatchHardTripletLoss", **arguments}))


def test_former_keys_in_a_file_of_the_user_are_renamed():
    config = composed("train", "dataset=market1501")
    with open_dict(config):
        config.evaluation.measure = "cosine"
    assert rename_keys(config) == [
        "evaluation.measure= is now called evaluation.distance=; the old name works for one more version"
    ]
    assert config.evaluation.distance == "cosine"
    assert "measure" not in config.evaluation
    assert rename_keys(config) == []


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        ("run=a=b,c=d", 'run="a=b,c=d"'),
        ('run="a=b"', 'run="a=b"'),
        ("checkpoint=my file (1).ckpt", 'checkpoint="my file (1).ckpt"'),
        ('archive=a"b', 'archive="a\\"b"'),
        ("run=", "run="),
        ("ckpt_path=null", "ckpt_path=null"),
        ("ckpt_path=last", "ckpt_path=last"),
        ("backbone.weights=none", "backbone.weights=none"),
        ("seed=5", "seed=5"),
        ("--help", "--help"),
    ],
)
def test_only_paths_are_quoted(typed, handed_on):
    assert quote_paths([typed]) == [handed_on]


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler", "torch.optim.lr_scheduler.math", "torch.optim.adam.Adam",
        "pytorch_lightning.callbacks.os", "pytorch_lightning.callbacks.Callback", "pytorch_lightning.loggers.os.system",
        "pytorch_lightning.Trainer", "pytorch_metric_learning.losses.base_metric_loss_function", "torch.nn.Linear",
        "pytorch_metric_learning.utils.common_functions.torch_load", "torch.optim._functional", "bdbnet.plugins.load",
    ],
)  # fmt: skip
def test_of_other_libraries_only_classes_of_the_right_kind_are_allowed(target):
    with pytest.raises(ConfigError, match="allow-list"):
        check_target(target)


@pytest.mark.parametrize(
    "target",
    [
        *(
            f"torch.optim.{name}"
            for name in ("Adam", "AdamW", "SGD", "RAdam", "NAdam", "Adagrad", "RMSprop", "Adafactor")
        ),
        *(f"torch.optim.lr_scheduler.{name}" for name in ("OneCycleLR", "ReduceLROnPlateau", "StepLR")),
        *(
            f"pytorch_lightning.callbacks.{name}"
            for name in ("EarlyStopping", "LearningRateMonitor", "ModelCheckpoint")
        ),
        *(
            f"pytorch_lightning.loggers.{name}"
            for name in ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")
        ),
        *(f"pytorch_metric_learning.{name}" for name in ("losses.CircleLoss", "miners.MultiSimilarityMiner")),
        *(f"pytorch_metric_learning.{name}" for name in ("distances.LpDistance", "reducers.MeanReducer")),
    ],
)
def test_the_classes_of_well_known_libraries_are_allowed_to_the_user_and_to_no_checkpoint(target):
    check_target(target)
    with pytest.raises(ConfigError, match="allow-list"):
        check_target(target, ours_only=True)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(ConfigError, match="pip install pytorch-metric-learning"):
        check_target("pytorch_metric_learning.losses.CircleLoss")


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        (["logger=[wandb,tensorboard]"], ["logger=wandb", "+logger@loggers.tensorboard=tensorboard"]),
        (["logger=[csv]"], ["logger=csv"]),
        (["+logger=['csv',\"wandb\"]"], ["logger=csv", "+logger@loggers.wandb=wandb"]),
        (["logger=[a, b,a]"], ["logger=a", "+logger@loggers.b=b"]),
        (["logger=wandb", "logger.logger.offline=false"], ["logger=wandb", "logger.logger.offline=false"]),
        (["logger=wandb,csv", "logger=[]"], ["logger=wandb,csv", "logger=[]"]),
    ],
)
def test_a_list_of_loggers_is_spelled_out(typed, handed_on):
    assert one_logger_each(typed) == handed_on


def test_loggers_of_a_list_have_keys_of_their_own():
    typed = ["logger=[wandb,tensorboard]", "logger.logger.offline=false", "loggers.tensorboard.logger.name=tb"]
    config = composed("train", *one_logger_each(typed))
    assert config.logger.logger.offline is False
    assert config.loggers.tensorboard.logger.name == "tb"


@pytest.mark.parametrize("value", ["{a: 1}", "3", "[1]"])
def test_plugins_that_are_no_list_of_names_are_refused(value):
    with pytest.raises(PluginError, match=r"plugins=.*plugins=\[mypkg\]"):
        plugins.load(typed_plugins([f"plugins={value}"]))


class MeantError(ValueError):
    """Stands for the errors that bdbnet raises on purpose."""


MeantError.__module__ = "bdbnet.somewhere"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (MeantError("a.jpg: empty file"), 1, "error: a.jpg: empty file"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            MeantError(
                "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
                "bdbnet.loading.images.ImageError: b.jpg: truncated"
            ),
            1,
            "error: b.jpg: truncated",
        ),
    ],
)
def test_errors_that_are_meant_are_one_message(raised, status, said, monkeypatch, capsys):
    def main(config):
        raise raised

    monkeypatch.setattr(sys, "argv", ["prepare"])
    with pytest.raises(SystemExit) as stop:
        command("prepare")(main)(OmegaConf.create({}))
    assert stop.value.code == status
    assert said in (err := capsys.readouterr().err)
    assert "Traceback" not in err


def test_a_fault_of_ours_keeps_its_trace():
    def main(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command("prepare")(main)(OmegaConf.create({}))
