"""What other people's packages may bring, and who may name them."""

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import bdbnet
from bdbnet import plugins
from bdbnet.config import ConfigError, check_target, config_dir, foreign_targets, instantiate
from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.network import build_network
from bdbnet.plugins import PluginError
from bdbnet.results import Metric, metric_of
from bdbnet.training.runs import train

LOSS = """
    import torch

    class Spread(torch.nn.Module):
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

        def forward(self, embeddings, labels):
            return self.scale * embeddings.square().mean()
"""
BACKBONE = """
    import torch

    class Tiny(torch.nn.Sequential):
        def __init__(self, width=8):
            super().__init__(torch.nn.Conv2d(3, width, 3, 4, 1), torch.nn.BatchNorm2d(width), torch.nn.ReLU())
            self.out_channels = width
"""


def loss(path: str):
    return instantiate(OmegaConf.create({"_target_": path, "scale": 2.0}))


def test_a_module_is_refused_until_the_user_names_it(plugin):
    plugin("mine", LOSS)
    with pytest.raises(ConfigError, match=r"allow-list.*plugins=\[mine\]"):
        loss("mine.Spread")
    plugins.load(["mine"])
    assert loss("mine.Spread").scale == 2.0


def test_what_lies_below_a_named_package_is_allowed_and_nothing_beside_it(plugin):
    plugin("mine.__init__", "import os")
    plugin("mine.losses", LOSS)
    plugin("mine_too", LOSS)
    plugins.load(["mine"])
    assert loss("mine.losses.Spread").scale == 2.0
    for target in (
        "mine_too.Spread",
        "mine.os.system",
        "mine.losses.torch.load",
        "mine.nothing",
        "mine.Spread.forward",
    ):
        with pytest.raises((ConfigError, PluginError), match=target.split(".")[0]):
            check_target(target)


def test_the_environment_names_plugins_too(plugin, monkeypatch):
    plugin("mine", LOSS)
    monkeypatch.setenv(plugins.VARIABLE, " mine, ")
    plugins.load()
    assert loss("mine.Spread").scale == 2.0


@pytest.mark.parametrize("value", ["mine:bring", "mine"])
def test_an_installed_package_names_itself_by_its_entry_point(value, plugin, monkeypatch):
    plugin("mine", LOSS + "\n    called = []\n\n    def bring():\n        called.append(1)\n")
    point = EntryPoint("its name", value, plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "bdbnet.plugins" else [])
    plugins.load()
    plugins.load()
    assert loss("mine.Spread").scale == 2.0
    assert sys.modules["mine"].called == ([1] if ":" in value else [])


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("mine", "1 / 0", r"plugins=\[mine\].*ZeroDivisionError: division by zero"),
        ("mine", "import not_there_at_all", r"plugins=\[mine\].*not_there_at_all"),
        ("absent", "", r"plugins=\[absent\].*no module absent"),
        ("mine.absent", "", r"plugins=\[mine.absent\].*no module mine.absent"),
        ("os", "", "os is no plugin"),
        ("bdbnet.config", "", "bdbnet is no plugin"),
        ("my-pkg", "", "dotted name"),
        ("", "", "dotted name"),
    ],
)
def test_a_plugin_that_does_not_import_is_named_with_its_own_error(name, source, said, plugin):
    plugin("mine.__init__" if name == "mine.absent" else "mine", source)
    with pytest.raises(PluginError, match=said):
        plugins.load([name])


def test_an_entry_point_that_fails_is_named_with_its_package(plugin, monkeypatch):
    plugin("mine", "raise RuntimeError('no licence')")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint("its name", "mine", group)])
    with pytest.raises(PluginError, match=r"its name \(mine\).*RuntimeError: no licence"):
        plugins.load()
    with pytest.raises(ConfigError, match="allow-list"):
        check_target("mine.Spread")


@pytest.mark.parametrize("kind", ["loss", "backbone", "dataset", "metric"])
def test_two_plugins_with_one_name_are_refused_naming_both(kind, plugin):
    source = f"from bdbnet import plugins\n\n@plugins.{kind}('same')\ndef brought(): ...\n"
    plugin("first", source)
    plugin("second", source)
    with pytest.raises(PluginError, match=rf"{kind} same: first.brought and second.brought"):
        plugins.load(["first", "second"])


@pytest.mark.parametrize(("kind", "name"), [("loss", "margin"), ("backbone", "resnet50"), ("dataset", "market1501")])
def test_a_name_of_bdbnet_s_own_is_refused(kind, name, plugin):
    plugin("mine", f"from bdbnet import plugins\n\n@plugins.{kind}('{name}')\ndef brought(): ...\n")
    with pytest.raises(PluginError, match=f"bdbnet's own {kind}={name} and mine.brought"):
        plugins.load(["mine"])


def test_registered_names_are_choices_of_their_groups(plugin):
    plugin(
        "mine",
        """
        from bdbnet import plugins

        @plugins.loss("mine_loss")
        class Loss: ...

        @plugins.backbone("mine_net")
        class Net: ...

        @plugins.dataset("mine_data")
        def read(root): ...
    """,
    )
    plugins.load(["mine"])
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", ["loss=mine_loss", "backbone=mine_net", "dataset=mine_data", "run_name=x"])
    assert (config.loss.name, config.loss.metric._target_, config.loss.softmax_weight) == (
        "mine_loss",
        "mine.Loss",
        1.0,
    )
    assert (config.backbone._target_, config.backbone.weights) == ("mine.Net", "none")
    assert (config.dataset.reader, config.dataset.protocol) == ("mine.read", "auto")


# Data sets


READER = """
    import pandas as pd
    from bdbnet.datasets import Manifest

    def read(root, split="query"):
        rows = [("a.png", 0, "train"), ("b.png", 1, split), ("c.png", 1, "gallery")]
        return Manifest(pd.DataFrame(rows, columns=["path", "label", "split"]).assign(camera=-1), root, "mine")

    def any_options(root, **options):
        return read(root, **options)

    def no_manifest(root):
        return {}

    def fails(root):
        raise KeyError("images")

    number = 3
"""


@pytest.mark.parametrize("reader", ["read", "any_options"])
def test_a_reader_of_a_plugin_reads(reader, plugin, tmp_path):
    plugin("mine", READER)
    plugins.load(["mine"])
    manifest = load_manifest("custom", tmp_path, reader=f"mine.{reader}", split="test")
    assert isinstance(manifest, Manifest)
    assert list(manifest.table["split"]) == ["train", "test", "gallery"]


@pytest.mark.parametrize(
    ("reader", "options", "said"),
    [
        ("mine.read", {"split": "train"}, r"dataset.reader=mine.read returned no query images"),
        (
            "mine.no_manifest",
            {},
            r"dataset.reader=mine.no_manifest returned a dict; expected a bdbnet.datasets.Manifest",
        ),
        ("mine.fails", {}, r"dataset.reader=mine.fails fails: KeyError: 'images'"),
        ("mine.number", {}, r"dataset.reader=mine.number is a int; expected a function"),
        ("mine.read", {"spilt": 1}, r"dataset.reader=mine.read has no option spilt: its options are split"),
    ],
)
def test_a_reader_that_can_t_be_used_is_named(reader, options, said, plugin, tmp_path):
    plugin("mine", READER)
    plugins.load(["mine"])
    with pytest.raises(DatasetError, match=said):
        load_manifest("custom", tmp_path, reader=reader, **options)


def test_a_reader_in_no_plugin_is_refused(plugin, tmp_path):
    plugin("mine", READER)
    with pytest.raises(PluginError, match=r"plugins=\[mine\]"):
        load_manifest("custom", tmp_path, reader="mine.read")


# Metrics


FACTS = SimpleNamespace(matches=np.array([2, 0, 1]), first_rank=np.array([1, -1, 5]))


def test_metrics_of_plugins_are_means_over_the_queries_with_a_match(plugin):
    plugin(
        "mine",
        """
        from bdbnet import plugins

        @plugins.metric("top3", title="Match in 3")
        def top3(facts):
            return (facts.first_rank >= 1) & (facts.first_rank <= 3)

        @plugins.metric("worst", unit="rank", better="lower")
        def worst(facts):
            return facts.first_rank.max()
    """,
    )
    plugins.load(["mine"])
    assert plugins.extra_metrics(FACTS) == {"top3": 0.5, "worst": 5.0}
    assert plugins.metric_values(FACTS)["top3"].tolist() == [1, 0, 0]
    assert metric_of("top3") == Metric("top3", "Match in 3")
    assert metric_of("worst") == Metric("worst", "worst", "rank", "lower")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("facts.first_rank[:2]", r"metric odd .*shape \(2,\).*\(3,\)"),
        ("facts.nothing", "metric odd .*AttributeError"),
        ("'x'", "odd"),
        ("facts.first_rank * float('nan')", "metric odd"),
        ("float('nan')", "metric odd"),
    ],
)
def test_a_metric_that_can_t_be_used_is_named(body, said, plugin):
    plugin("mine", f"from bdbnet import plugins\n\n@plugins.metric('odd')\ndef odd(facts):\n    return {body}\n")
    plugins.load(["mine"])
    with pytest.raises(PluginError, match=said):
        plugins.extra_metrics(FACTS)


# Backbones


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x", r"Odd has no out_channels"),
        ("self.out_channels = 'eight'", r"Odd has no out_channels"),
        (
            "self.out_channels = 8; self.output = lambda x: x.mean((2, 3))",
            r"returned shape \(2, 3\); expected a feature map \(N, C, H, W\)",
        ),
        (
            "self.out_channels = 8; self.output = lambda x: x",
            r"returned shape \(2, 3, 64, 32\); expected a feature map.*\(2, 8, H, W\)",
        ),
        ("self.out_channels = 8; self.output = lambda x: [x]", r"returned a list"),
        (
            "from bdbnet.models import FeatureMap; self.out_channels = 3; self.output = lambda x: FeatureMap(x, x[:, :, 0, :2])",
            r"returned a token of shape \(2, 3, 2\); expected \(2, 3\)",
        ),
        ("self.out_channels = 8; self.output = lambda x: x[9]", r"Odd fails on images \(2, 3, 64, 32\): IndexError"),
    ],
)
def test_a_backbone_that_is_none_is_refused_before_training(body, said, plugin, tiny_config):
    plugin(
        "mine",
        f"""
        import torch

        class Odd(torch.nn.Module):
            def __init__(self, x=None):
                super().__init__()
                {body}

            def forward(self, images):
                return self.output(images)
    """,
    )
    plugins.load(["mine"])
    config = tiny_config("backbone=custom", "backbone._target_=mine.Odd")
    with pytest.raises(ConfigError, match=said):
        build_network(config, 4)


def test_what_is_no_module_is_no_backbone(plugin, tiny_config):
    plugin("mine", "def make():\n    return 3\n")
    plugins.load(["mine"])
    with pytest.raises(ConfigError, match=r"mine.make is a int; expected a torch.nn.Module"):
        build_network(tiny_config("backbone=custom", "backbone._target_=mine.make"), 4)


def test_trying_a_backbone_leaves_it_as_it_was(plugin, tiny_config):
    plugin("mine", BACKBONE)
    plugins.load(["mine"])
    network, _ = build_network(tiny_config("backbone=custom", "backbone._target_=mine.Tiny", "+backbone.width=12"), 4)
    assert network.backbone.out_channels == 12
    assert network.backbone.training
    assert torch.equal(network.backbone[1].running_mean, torch.zeros(12))


def test_a_backbone_without_weights_of_its_own_starts_from_a_file(plugin, tiny_config, tmp_path):
    plugin("mine", BACKBONE)
    plugins.load(["mine"])
    choice = ["backbone=custom", "backbone._target_=mine.Tiny", "model=baseline"]
    network, _ = build_network(tiny_config(*choice), 4)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    again, loaded = build_network(tiny_config(*choice, f"backbone.weights={tmp_path / 'weights.pth'}"), 4)
    assert "backbone" in loaded
    assert torch.equal(again.backbone[0].weight, network.backbone[0].weight)


# What a checkpoint says


def test_a_checkpoint_of_a_plugin_s_network_builds_nothing_until_the_user_names_it(plugin, tiny_config, tmp_path):
    plugin("mine", BACKBONE)
    plugins.load(["mine"])
    config = tiny_config("backbone=custom", "backbone._target_=mine.Tiny", "trainer.max_epochs=1")
    trained = train(config, tmp_path / "run")
    asked = [f"checkpoint={tmp_path / 'run' / 'last.ckpt'}", "dataset=synthetic_reid", "plugins=[mine]"]

    refused = tiny_config(*asked, command="evaluate")
    with pytest.raises(
        ConfigError, match=r"mine.Tiny is not on the allow-list.*plugins=\[mine\], and model= and backbone="
    ):
        evaluate(refused, tmp_path / "refused")

    allowed = tiny_config(*asked, "model=bdb", "backbone=custom", "backbone._target_=mine.Tiny", command="evaluate")
    allowed.dataset.options = config.dataset.options
    assert evaluate(allowed, tmp_path / "evaluated").metrics == pytest.approx(trained.metrics)


def test_a_file_of_another_program_builds_nothing_of_a_plugin(plugin, tiny_config, tmp_path):
    """A result or a saved folder may name what it likes: an installed plugin is no licence for a file."""
    plugin("mine", BACKBONE)
    plugins.load(["mine"])
    config = tiny_config("backbone=custom", "backbone._target_=mine.Tiny", "trainer.max_epochs=1")
    train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"mine.Tiny is not on the allow-list"):
        bdbnet.load(tmp_path / "run" / "last.ckpt")
    found = bdbnet.load(
        tmp_path / "run" / "last.ckpt", model=config.model, backbone={"_target_": "mine.Tiny"}, image_size=(64, 32)
    )
    folder = found.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"mine.Tiny is not on the allow-list"):
        bdbnet.load(folder)


ATTACKS = [
    "os.system", "subprocess.run", "torch.load", "torch.hub.load", "bdbnet.config.command", "bdbnet.training.runs.train",
    "bdbnet.plugins.load", "mine.Tiny", "torch.optim.Adam", "pytorch_lightning.callbacks.LambdaCallback",
    "pytorch_metric_learning.losses.CircleLoss", "bdbnet.reporting.wandb_logger", "bdbnet.models.read_checkpoint",
    "bdbnet.models.bdb.torch.load", "bdbnet.loading.Cutout", "builtins.eval", "",
]  # fmt: skip


@pytest.mark.parametrize("target", ATTACKS)
@pytest.mark.parametrize("part", ["backbone", "dropping", "model", "nested"])
def test_a_checkpoint_names_networks_of_bdbnet_alone(target, part, plugin, tiny_config):
    plugin("mine", BACKBONE)
    plugins.load(["mine"])
    config = tiny_config()
    named = {"_target_": target}
    if part == "nested":
        OmegaConf.update(config, "model.embedding_dims", {"global": named}, force_add=True)
    else:
        config[part]._target_ = target
    with pytest.raises(ConfigError, match="allow-list"):
        build_network(config, 4, ours_only=True)
    assert foreign_targets(
        OmegaConf.to_container(config.model if part == "nested" else config[part], resolve=True)
    ) == [target]


def test_every_network_of_ours_is_built_from_a_checkpoint_s_words(tiny_config):
    for overrides in (["model=bdb", "dropping=none"], ["model=pcb"], ["model=bdb", "dropping=dropout"]):
        network, _ = build_network(tiny_config(*overrides), 4, ours_only=True)
        assert isinstance(network, torch.nn.Module)


@pytest.mark.parametrize("target", [3, None, ["os.system"], "???"])
def test_a_target_that_is_no_path_is_refused(target):
    with pytest.raises(ConfigError, match="_target_"):
        instantiate(OmegaConf.create([{"_target_": target}]), ours_only=True)
