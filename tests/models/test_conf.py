"""Every file of the groups model, backbone and dropping builds what it is named after."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bdbnet.models import as_feature_map

CONF = Path(__file__).resolve().parents[2] / "conf"


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in files("backbone") if name != "custom"])
def test_backbones(name: str) -> None:
    config = OmegaConf.load(CONF / "backbone" / f"{name}.yaml")
    config.weights = "none"
    with torch.device("meta"):
        backbone = instantiate(config)
        rows, columns = {"torchvision": (3, 1), "timm": (2, 1)}.get(name, (4, 2))
        found = as_feature_map(backbone(torch.empty(1, 3, 64, 32)))
        assert found.map.shape == (1, backbone.out_channels, rows, columns)
        assert (found.token is not None) == (name == "vit")


@pytest.mark.parametrize("name", files("dropping"))
def test_drop_layers_take_their_ratios_from_the_dataset(name: str) -> None:
    layer = OmegaConf.load(CONF / "dropping" / f"{name}.yaml")
    config = OmegaConf.create({"seed": 4, "dataset": {"drop_ratio": [0.25, 0.5]}, "dropping": layer})
    drop = instantiate(config.dropping)
    if name == "none":
        assert isinstance(drop, torch.nn.Identity)
    else:
        assert type(drop).__name__.lower() == name.replace("_", "")
        assert (drop.height_ratio, drop.width_ratio, drop.seed) == (0.25, 0.5, 4)
        alone = type(drop)(0.25, 0.5, seed=4)
        assert layer.mask_scope is None
        assert str(drop) == str(alone)


def test_drop_layers_take_scope_and_rescaling() -> None:
    layer = OmegaConf.load(CONF / "dropping" / "dropblock.yaml")
    overrides = {"height_ratio": 0.5, "width_ratio": 0.5, "seed": 0, "mask_scope": "rank", "rescale": False}
    drop = instantiate(OmegaConf.merge(layer, overrides))
    assert (drop.mask_scope, drop.rescale) == ("rank", False)


@pytest.mark.parametrize(
    ("name", "branches"), [("bdb", ["global", "dropping"]), ("baseline", ["global"]), ("dropping", ["dropping"])]
)
def test_models(name: str, branches: list[str]) -> None:
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(CONF / "model" / f"{name}.yaml"), num_classes=5, backbone="osnet_x0_25")
    assert [*network.branch_names] == branches


@pytest.mark.parametrize(("name", "parts"), [("pcb", (2048,) * 6), ("pcb_rpp", (2048,) * 6), ("mgn", (256,) * 8)])
def test_competing_methods(name: str, parts: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(CONF / "model" / f"{name}.yaml"), num_classes=5, backbone="resnet50")
    assert network.branch_dims == parts
    refined = getattr(network, "pooling", None) is not None
    assert refined == (name == "pcb_rpp")
    assert not refined or network.phases == (60, 5, 5)


def test_every_model_is_built_by_a_test_above() -> None:
    assert files("model") == ["baseline", "bdb", "dropping", "mgn", "pcb", "pcb_rpp"]
