"""Backbones by the names of torchvision and timm: their maps are the libraries' own, and networks on them train."""

import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SqueezeNet, SwinTransformer

from bdbnet.config import ConfigError, config_dir, instantiate
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.maps import MapError, energy_maps
from bdbnet.loading import Preprocessing
from bdbnet.models import (
    BatchDropBlock,
    BDBNetwork,
    CheckpointError,
    ImageSizeError,
    PCBNetwork,
    TimmBackbone,
    TorchvisionBackbone,
    initialize_from,
    load_network,
)

State = dict[str, Tensor]


def images(height: int = 64, width: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def lively(model: nn.Module) -> nn.Module:
    """Statistics and weights of normalisation that differ from their neutral start, so that a lost one shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, 0, 0.2, generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
    return model.eval()


def refuse(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


def logits_from_map(model: nn.Module, features: Tensor) -> Tensor:
    """What the model's own head makes of a feature map."""
    if isinstance(model, SqueezeNet):
        return model.classifier(features).flatten(1)
    pooled = nn.functional.adaptive_avg_pool2d(features, (1, 1))
    if isinstance(model, ConvNeXt):
        return model.classifier(pooled)
    return (model.head if isinstance(model, SwinTransformer) else model.classifier)(pooled.flatten(1))


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("squeezenet1_1", (512, 3, 1)),
            ("mobilenet_v3_small", (576, 2, 1)),
            ("mobilenet_v2", (1280, 2, 1)),
            ("densenet121", (1024, 2, 1)),
            ("convnext_tiny", (768, 2, 1)),
            ("swin_t", (768, 2, 1)),
        ],
    )
    def test_its_own_head_makes_its_own_logits_of_the_map(
        self, tmp_path: Path, name: str, shape: tuple[int, int, int]
    ) -> None:
        model = lively(torchvision.models.get_model(name, weights=None))
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        backbone = TorchvisionBackbone(name, tmp_path / "weights.pth").eval()
        with torch.no_grad():
            features = backbone(images())
            assert features.shape == (2, *shape)
            assert backbone.out_channels == shape[0]
            assert torch.equal(logits_from_map(model, features), model(images()))

    @pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "efficientnet_b0", "squeezenet1_0", "swin_v2_t"])
    def test_other_families(self, name: str) -> None:
        with torch.device("meta"):
            backbone = TorchvisionBackbone(name, "none")
            features = backbone(torch.empty(1, 3, 96, 64))
        assert features.dim() == 4
        assert features.shape[1] == backbone.out_channels
        assert features.shape[2] > features.shape[3]

    @pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
    def test_finding_the_channels_changes_neither_weights_nor_statistics_nor_the_random_state(self, name: str) -> None:
        torch.manual_seed(5)
        model = torchvision.models.get_model(name, weights=None)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        backbone = TorchvisionBackbone(name, "none")
        assert torch.equal(torch.rand(3), drawn)
        assert backbone.training
        assert all(module.training for module in backbone.modules())
        expected, state = model.state_dict(), backbone.state_dict()
        assert [*state] == [key for key in expected if key.startswith("features.")]
        assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())

    @pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "squeezenet", "deeplabv3_resnet50"])
    def test_names_without_a_map_list_some_with_one(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"{name}.*choose.*squeezenet1_1, mobilenet_v3_small, densenet121"):
            TorchvisionBackbone(name, "none")

    def test_features_that_are_no_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def flat(*_: Any, **__: Any) -> nn.Module:
            model = nn.Module()
            model.features = nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.Flatten())
            return model

        monkeypatch.setattr("torchvision.models.get_model", flat)
        with pytest.raises(ValueError, match=r"alexnet returned shape \(1, 512\); expected a feature map"):
            TorchvisionBackbone("alexnet", "none")

    def test_imagenet_weights_are_version_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state, urls = torchvision.models.mobilenet_v2(weights=None).state_dict(), []

        def give(url: str, **_: Any) -> State:
            urls.append(url)
            return state

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", give)
        backbone = TorchvisionBackbone("mobilenet_v2")
        assert urls == ["https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"]
        assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())

    def test_failed_download_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", refuse(urllib.error.URLError("no route"))
        )
        with pytest.raises(CheckpointError, match=r"squeezenet1_1 .*no route.*backbone\.weights=none.*local copy"):
            TorchvisionBackbone("squeezenet1_1")

    def test_real_squeezenet_computes_what_torchvision_does(self, shared_data: Path) -> None:
        path = shared_data / "weights" / "squeezenet1_1_imagenet.pth"
        config = OmegaConf.load(config_dir() / "backbone" / "torchvision.yaml")
        config.merge_with({"name": "squeezenet1_1", "weights": str(path)})
        backbone = instantiate(config).eval()
        model = torchvision.models.squeezenet1_1(weights=None).eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            assert backbone(images(224, 224, 1)).shape == (1, 512, 13, 13)
            assert torch.equal(backbone(images(224, 224, 1)), model.features(images(224, 224, 1)))
        network = BDBNetwork(5, TorchvisionBackbone("squeezenet1_1", "none"))
        assert initialize_from(network, path) == ["backbone"]
        assert torch.equal(network.backbone.features[0].weight, model.features[0].weight)
        with pytest.raises(
            CheckpointError, match=r"squeezenet1_1_imagenet\.pth: the checkpoint does not match the architecture"
        ):
            TorchvisionBackbone("squeezenet1_0", path)


class TestTimm:
    @pytest.mark.parametrize(
        ("name", "size", "shape"),
        [
            ("resnet18", (64, 32), (512, 2, 1)),
            ("mobilenetv3_small_050", (64, 32), (288, 2, 1)),
            ("vit_tiny_patch16_224", (64, 32), (192, 4, 2)),
            ("swin_tiny_patch4_window7_224", (64, 32), (768, 2, 1)),
            ("test_mambaout", (64, 32), (64, 2, 1)),
            ("test_vit_relpos", (160, 160), (96, 10, 10)),
            ("efficientnet_b0", (64, 32), (1280, 2, 1)),
            ("ghostnet_100", (64, 32), (960, 2, 1)),
            ("hrnet_w18_small", (64, 32), (2048, 2, 1)),
            ("deit_tiny_distilled_patch16_224", (64, 32), (192, 4, 2)),
            ("mixer_s32_224", (224, 224), (512, 7, 7)),
        ],
    )
    def test_map(self, name: str, size: tuple[int, int], shape: tuple[int, int, int]) -> None:
        with torch.device("meta"):
            backbone = TimmBackbone(name, "none")
            assert backbone(torch.empty(2, 3, *size)).shape == (2, *shape)
        assert backbone.out_channels == shape[0]

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("resnet18", (512, 2, 1)),
            ("efficientnet_b0", (320, 2, 1)),
            ("ghostnet_100", (160, 2, 1)),
            ("hrnet_w18_small", (1024, 2, 1)),
            ("vit_tiny_patch16_224", (192, 4, 2)),
            ("swin_tiny_patch4_window7_224", (768, 2, 1)),
        ],
    )
    def test_map_of_the_last_stage(self, name: str, shape: tuple[int, int, int]) -> None:
        with torch.device("meta"):
            backbone = TimmBackbone(name, "none", map="last_stage")
            assert backbone(torch.empty(2, 3, 64, 32)).shape == (2, *shape)
        assert backbone.out_channels == shape[0]

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
    def test_the_map_follows_the_last_norm(self, name: str) -> None:
        torch.manual_seed(0)
        backbone = lively(TimmBackbone(name, "none"))
        torch.manual_seed(0)
        before = lively(TimmBackbone(name, "none", map="last_stage"))
        with torch.no_grad():
            expected = backbone.model.norm(before(images()).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(backbone(images()), expected, rtol=1e-4, atol=1e-5)

    def test_another_map_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"map=neck .*choose one of head, last_stage"):
            TimmBackbone("resnet18", "none", map="neck")

    def test_a_model_whose_head_sees_no_map(self) -> None:
        with (
            torch.device("meta"),
            pytest.raises(ValueError, match=r"pit_ti_224 sees no feature map .*backbone\.map=last_stage"),
        ):
            TimmBackbone("pit_ti_224", "none")

    @pytest.mark.parametrize(
        "name", ["test_vit", "test_efficientnet", "test_resnet", "deit_tiny_distilled_patch16_224"]
    )
    def test_what_only_the_head_uses_is_left_out(self, name: str) -> None:
        model = timm.create_model(name)
        backbone = TimmBackbone(name, "none")
        kept = {key.removeprefix("model.") for key in backbone.state_dict()}
        assert kept < {*model.state_dict()}
        assert not any(key.startswith(("head", "fc", "classifier")) for key in kept)
        size = (160, 160) if name.startswith("test_") else (64, 32)
        backbone(images(*size)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in backbone.parameters())

    @pytest.mark.parametrize(
        ("name", "map"),
        [
            ("resnet18", "head"),
            ("resnet18", "last_stage"),
            ("efficientnet_b0", "head"),
            ("mobilenetv3_small_050", "last_stage"),
        ],
    )
    def test_output_stride(self, name: str, map: str) -> None:
        with torch.device("meta"):
            backbone = TimmBackbone(name, "none", map, output_stride=16)
            assert backbone(torch.empty(2, 3, 64, 32)).shape == (2, backbone.out_channels, 4, 2)

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hrnet_w18_small", "mobilenetv3_small_050"])
    def test_output_stride_that_timm_does_not_offer(self, name: str) -> None:
        with torch.device("meta"), pytest.raises(ValueError, match=rf"can't set output_stride=16 of {name}"):
            TimmBackbone(name, "none", output_stride=16)

    @pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet"])
    @pytest.mark.parametrize("map", ["head", "last_stage"])
    @pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
    def test_timms_own_files(self, tmp_path: Path, name: str, map: str, file: str) -> None:
        model = lively(timm.create_model(name, num_classes=7))
        if file.endswith(".bin"):
            torch.save(model.state_dict(), tmp_path / file)
        else:
            safetensors.torch.save_file(model.state_dict(), tmp_path / file)
        backbone = TimmBackbone(name, tmp_path / file, map).eval()
        batch = images(160, 160)
        with torch.no_grad():
            if map == "head":
                features = model.forward_features(batch)
                features = features if features.dim() == 4 else features[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
            else:
                features = model.forward_intermediates(batch, intermediates_only=True)[-1]
            assert torch.equal(backbone(batch), features)
        network = BDBNetwork(5, TimmBackbone(name, "none", map), ["global"])
        assert initialize_from(network, tmp_path / file) == ["backbone"]
        assert all(torch.equal(t, backbone.state_dict()[key]) for key, t in network.backbone.state_dict().items())

    def test_timms_file_of_another_model(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.bin")
        with pytest.raises(
            CheckpointError, match=r"other\.bin: does not hold timm's weights of test_vit .*Its first keys: conv1"
        ):
            TimmBackbone("test_vit", tmp_path / "other.bin")

    @pytest.mark.parametrize("map", ["head", "last_stage"])
    @pytest.mark.parametrize(("name", "other"), [("resnet34", "resnet18"), ("resnet18", "resnet34")])
    def test_timms_file_of_a_smaller_or_larger_model(self, name: str, other: str, map: str, tmp_path: Path) -> None:
        torch.save(timm.create_model(other).state_dict(), tmp_path / "other.bin")
        with pytest.raises(CheckpointError, match=rf"other\.bin: does not hold timm's weights of {name} "):
            TimmBackbone(name, tmp_path / "other.bin", map)

    def test_real_efficientnet_computes_what_timm_does(self, shared_data: Path) -> None:
        path = shared_data / "weights" / "tf_efficientnet_lite0_imagenet.pth"
        model = timm.create_model("tf_efficientnet_lite0").eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        backbone = TimmBackbone("tf_efficientnet_lite0", path).eval()
        with torch.no_grad():
            assert torch.equal(backbone(images(96, 64)), model.forward_features(images(96, 64)))

    @pytest.mark.parametrize("name", ["resnet18", "test_mambaout"])
    def test_its_own_head_makes_its_own_logits_of_the_map(self, name: str) -> None:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        torch.manual_seed(0)
        backbone = TimmBackbone(name, "none").eval()
        with torch.no_grad():
            features = backbone(images())
            if name == "test_mambaout":
                features = features.permute(0, 2, 3, 1)
            assert torch.equal(model.forward_head(features), model(images()))

    def test_tokens_of_a_transformer_lie_as_the_patches_do(self) -> None:
        backbone = TimmBackbone("test_vit", "none").eval()
        for place in range(len(backbone.model.blocks)):
            backbone.model.blocks[place] = nn.Identity()  # each token keeps to its patch
        batch, other = images(), images()
        other[..., 16:] += 1
        changed = (backbone(batch) - backbone(other)).abs().amax((0, 1)) > 0
        assert changed.tolist() == [[False, True]] * 4

    def test_unknown_name_lists_similar_ones(self) -> None:
        with pytest.raises(ValueError, match=r"timm [\d.]+\S* has no model 'resnet-18'; choose, e\.g\., ") as caught:
            TimmBackbone("resnet-18", "none")
        similar = str(caught.value).partition("e.g., ")[2].split(", ")
        assert "resnet18" in similar
        assert len(similar) <= 5
        with pytest.raises(ValueError, match=r"'resnet18\.imagnet'"):
            TimmBackbone("resnet18.imagnet", "none")
        with pytest.raises(ValueError, match=r"e\.g\., resnet18, vit_tiny_patch16_224"):
            TimmBackbone("???", "none")

    def test_without_timm_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        config = OmegaConf.load(config_dir() / "backbone" / "timm.yaml")
        with pytest.raises(ConfigError, match=r'bdbnet\.models\.TimmBackbone: .*pip install "bdbnet\[timm\]"'):
            instantiate(config)

    def test_model_without_a_feature_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm, "create_model", refuse(RuntimeError("features_only not implemented")))
        with pytest.raises(ValueError, match=r"no feature map of resnet18 \(features_only not implemented\)"):
            TimmBackbone("resnet18", "none", map="last_stage")

    def test_pretrained_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state, asked = timm.create_model("resnet18").state_dict(), []

        def give(repository: str, *_: Any, **__: Any) -> State:
            asked.append(repository)
            return {**state}

        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", give)
        backbone = TimmBackbone("resnet18.tv_in1k", "imagenet")
        assert asked == ["timm/resnet18.tv_in1k"]
        assert all(
            torch.equal(tensor, state[key.removeprefix("model.")]) for key, tensor in backbone.state_dict().items()
        )

    @pytest.mark.parametrize("error", [FileNotFoundError("no route"), KeyError("no route")])
    def test_failed_download_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse(error))
        with pytest.raises(CheckpointError, match=r"mobilenetv3_small_050 .*no route.*backbone\.weights=none"):
            TimmBackbone("mobilenetv3_small_050")

    @pytest.mark.parametrize(
        ("name", "height", "message"),
        [
            ("test_vit_relpos", 64, r"64 x 32 .*trained with 160 x 160: set dataset\.image_size"),
            ("levit_128s", 64, r"64 x 32 .*trained with 224 x 224"),  # no assertion: fails where shapes meet
            ("test_vit", 60, r"60 x 32 \(.*divisible by patch size.*trained with 160 x 160"),
        ],
    )
    def test_images_of_another_size_than_the_model_takes(self, name: str, height: int, message: str) -> None:
        with pytest.raises(ImageSizeError, match=message):
            TimmBackbone(name, "none").eval()(images(height))

    def test_other_faults_are_not_taken_for_one_of_size(self) -> None:
        with pytest.raises(RuntimeError, match="channels"):
            TimmBackbone("resnet18", "none")(torch.randn(2, 4, 64, 32))
        with pytest.raises(RuntimeError, match="channels"):
            TimmBackbone("test_vit_relpos", "none")(torch.randn(2, 4, 160, 160))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TorchvisionBackbone, "squeezenet1_1"),
        (TorchvisionBackbone, "mobilenet_v3_small"),
        (TimmBackbone, "mobilenetv3_small_050"),
        (TimmBackbone, "test_vit"),
        (TimmBackbone, "test_mambaout"),
    ],
)
class TestNetworks:
    def test_trains_embeds_and_comes_back_from_a_checkpoint(
        self, tmp_path: Path, kind: type[nn.Module], name: str
    ) -> None:
        torch.manual_seed(0)
        network = BDBNetwork(5, kind(name, "none"))
        before = {key: parameter.clone() for key, parameter in network.named_parameters()}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        outputs = network(images(count=4))
        labels = torch.arange(4)
        torch.stack(
            [nn.functional.cross_entropy(output.logits, labels) for output in outputs.values()]
        ).sum().backward()
        optimizer.step()
        without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
        assert not without  # one would stop training on several GPUs
        changed = [key for key, parameter in network.named_parameters() if not torch.equal(parameter, before[key])]
        assert len([key for key in changed if key.startswith("backbone.")]) > len(before) / 3
        assert torch.isfinite(network.eval().embed(images())).all()

        torch.save(
            {"state_dict": {f"network.{key}": t for key, t in network.state_dict().items()}}, tmp_path / "a.ckpt"
        )
        other = BDBNetwork(5, kind(name, "none")).eval()
        load_network(other, tmp_path / "a.ckpt")
        assert other.embed(images(count=1)).shape == (1, 1536)
        assert torch.equal(other.embed(images()), network.embed(images()))
        backbone = kind(name, tmp_path / "a.ckpt").eval()
        assert torch.equal(backbone(images()), network.backbone(images()))

    @torch.no_grad()
    def test_memory_format_and_bfloat16_keep_the_embedding(self, kind: type[nn.Module], name: str) -> None:
        torch.manual_seed(0)
        network = BDBNetwork(5, kind(name, "none")).eval()
        embeddings = network.embed(images())
        scale = embeddings.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            assert (network.embed(images()).float() - embeddings).abs().max() < 0.05 * scale
        network = network.to(memory_format=torch.channels_last)
        last = network.embed(images().to(memory_format=torch.channels_last))
        assert (last - embeddings).abs().max() < 1e-4 * scale


class TestClassToken:
    @torch.no_grad()
    def test_the_token_is_what_timm_pools_and_the_map_that_without_it(self) -> None:
        torch.manual_seed(0)
        model = lively(timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)).eval()
        backbone, plain = (
            TimmBackbone("vit_tiny_patch16_224", "none", token=token).eval() for token in ("class", None)
        )
        for each in (backbone, plain):
            each.model.load_state_dict(model.state_dict())
        found = backbone(images())
        assert torch.equal(found.token, model(images()))
        assert torch.equal(found.map, plain(images()))
        assert found.map.shape == (2, 192, 4, 2)

    def test_the_global_branch_takes_the_token_and_the_dropping_branch_the_map(self) -> None:
        torch.manual_seed(0)
        network = BDBNetwork(3, TimmBackbone("test_vit", "none", token="class"), head="bnneck").eval()
        found, outputs = network.backbone(images(96, 64)), network(images(96, 64))
        assert torch.equal(outputs["global"].embedding, found.token)
        assert torch.equal(outputs["dropping"].embedding, network.branches.dropping(found.map).embedding)
        parts = network.embed(images(96, 64)).split(network.branch_dims, dim=1)
        assert torch.equal(parts[0], network.branches.global_.neck.norm(found.token))
        outputs["global"].embedding.sum().backward()
        unused = [name for name, parameter in network.backbone.named_parameters() if parameter.grad is None]
        assert not unused  # one would stop training on several GPUs

    def test_the_drop_layer_leaves_the_token_alone(self) -> None:
        torch.manual_seed(0)
        network = BDBNetwork(3, TimmBackbone("test_vit", "none", token="class"), dropping=BatchDropBlock(1.0, 1.0))
        outputs = network.train()(images(96, 64, count=4))
        assert network.branches.dropping.map(network.backbone(images(96, 64)).map).count_nonzero() == 0
        assert outputs["global"].embedding.count_nonzero() > 0

    def test_stripes_are_of_the_map(self) -> None:
        torch.manual_seed(0)
        backbone = TimmBackbone("test_vit", "none", token="class").eval()
        network = PCBNetwork(3, backbone, parts=2).eval()
        halves = backbone(images(96, 64)).map.unflatten(2, (2, 3)).mean((3, 4))
        torch.testing.assert_close(network.embed(images(96, 64)), halves.transpose(1, 2).flatten(1))

    def test_a_token_has_no_map_but_the_last_blocks_tokens_have(self) -> None:
        network = BDBNetwork(3, TimmBackbone("test_vit", "none", token="class"), ["global"]).eval()
        embedder = Embedder(network, Preprocessing((96, 64)))
        pixels = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
        with pytest.raises(MapError, match=r"no feature map \(its output is \(1, 64\)\): tokens=true"):
            energy_maps(embedder, pixels)
        assert energy_maps(embedder, pixels, tokens=True)["global"].shape == (2, 6, 4)

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("swin_tiny_patch4_window7_224", {"token": "class"}, r"has no class token: leave out backbone\.token"),
            ("test_vit", {"token": "mean"}, "token=mean of a backbone of timm: choose class, or null"),
            ("test_vit", {"token": "class", "map": "last_stage"}, "beside map=head alone"),
        ],
    )
    def test_a_token_that_there_is_not(self, name: str, settings: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TimmBackbone(name, "none", **settings)

    def test_a_token_is_not_pooled(self) -> None:
        backbone = TimmBackbone("test_vit", "none", token="class")
        with pytest.raises(ValueError, match=r"leave model\.global_pooling out, or set backbone\.token=null"):
            BDBNetwork(3, backbone, ["global"], global_pooling="gem")


def test_channels_that_the_dropping_branch_cannot_divide() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("rexnet_100", "none", map="last_stage")
        assert backbone.out_channels == 185
        assert BDBNetwork(5, backbone, ["global"]).embedding_dim == 512
        with pytest.raises(ValueError, match=r"185 output channels.*model=baseline"):
            BDBNetwork(5, backbone)
