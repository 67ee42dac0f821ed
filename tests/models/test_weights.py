"""Weights from files: what is read, what is refused, and what a refusal says."""

import argparse
import collections
import datetime
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision.models
from omegaconf import OmegaConf
from torch import Tensor, nn

from bdbnet.models import (
    BatchDropout,
    BDBNetwork,
    CheckpointError,
    OSNetBackbone,
    ResNetBackbone,
    TorchvisionBackbone,
    initialize_from,
    load_network,
    read_checkpoint,
    read_state_dict,
)
from bdbnet.models.weights import digest_of, digests_of


def osnet_network(
    num_classes: int = 5, branches: tuple[str, ...] = ("global", "dropping"), **options: Any
) -> BDBNetwork:
    return BDBNetwork(num_classes, "osnet_x0_25", branches, **options)


def torchreid_state(num_classes: int = 7) -> dict[str, Tensor]:
    """An OSNet x0.25 with torchreid's key names and random values."""
    roots = {"branches.global_.reduction": "fc", "branches.global_.classifier": "classifier", "backbone.": ""}
    state = {}
    for key, tensor in osnet_network(num_classes, ("global",)).state_dict().items():
        root = next(root for root in roots if key.startswith(root))
        state[roots[root] + key.removeprefix(root)] = tensor
    return state


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in state.items())


def fast_reid_state(backbone: nn.Module) -> dict[str, Tensor]:
    """A model of fast-reid on a backbone: its layout."""
    return {
        "pixel_mean": torch.zeros(1, 3, 1, 1),
        **{f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()},
        "heads.bottleneck.0.weight": torch.ones(512),
        "heads.weight": torch.ones(7, 512),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


class TestReading:
    state: ClassVar = {"a.weight": torch.arange(4.0), "b": torch.tensor(3)}

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
            lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
            lambda state: {
                "state_dict": {f"network._orig_mod.{key}": tensor for key, tensor in state.items()}
                | {"losses.beta": torch.ones(1)},
                "hyper_parameters": {"model": {"branches": ["global"]}},
            },
            lambda state: {"model": state, "optimizer": {"state": {}}, "iteration": 9},
            lambda state: {"epoch": 3, "model_state_dict": state},
            lambda state: {
                "state_dict": {f"model.{key}": tensor for key, tensor in state.items()}
                | {"criterion.centers": torch.ones(2)},
                "pytorch-lightning_version": "2.6.4",
            },
            lambda state: {"state_dict": {f"module.extractor.{key}": tensor for key, tensor in state.items()}},
        ],
        ids=[
            "plain",
            "torchreid",
            "DataParallel",
            "compiled",
            "Lightning",
            "fast-reid",
            "tutorials",
            "other Lightning modules",
            "open-metric-learning",
        ],
    )
    @pytest.mark.parametrize("zipped", [True, False])
    def test_layouts(self, path: Path, wrap: Callable[[dict[str, Tensor]], Any], zipped: bool) -> None:
        torch.save(wrap(self.state), path, _use_new_zipfile_serialization=zipped)
        assert equal(read_state_dict(path), self.state)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("key", ["state_dict", "model"])
    def test_what_engines_write_beside_the_weights_is_read(self, path: Path, key: str, zipped: bool) -> None:
        """As torchreid, fast-reid, timm and Lightning modules with a configuration of OmegaConf save them."""
        network = nn.Linear(4, 2)
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        meters: Any = collections.defaultdict(list, {"loss": [0.3]})
        torch.save(
            {
                key: self.state,
                "epoch": 60,
                "rank1": np.float64(0.9),
                "cmc": np.array([0.5, 0.7], np.float32),
                "labels": np.array(["a", "b"]),
                "optimizer": optimizer.state_dict(),
                "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3]).state_dict(),
                "args": argparse.Namespace(lr=0.1, output=Path("log")),
                "meters": meters,
                "time": datetime.datetime(2020, 1, 2),
                "hyper_parameters": OmegaConf.create({"model": {"name": "resnet50", "dims": [1, 2.5, True, None]}}),
            },
            path,
            _use_new_zipfile_serialization=zipped,
        )
        assert equal(read_state_dict(path), self.state)
        content = read_checkpoint(path)
        assert content["rank1"] == 0.9
        assert content["cmc"].tolist() == pytest.approx([0.5, 0.7])
        assert str(content["args"].output) == "log"
        assert content["hyper_parameters"].model.name == "resnet50"

    def test_names_of_numpy_before_its_second_version(self, path: Path) -> None:
        torch.save({"state_dict": self.state, "rank1": np.float64(0.9)}, path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        assert b"numpy._core.multiarray" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert read_checkpoint(path)["rank1"] == 0.9

    def test_an_array_of_objects_is_refused(self, path: Path) -> None:
        torch.save({"state_dict": self.state, "names": np.array([{"a": 1}, None], object)}, path)
        with pytest.raises(CheckpointError, match=r"weights\.pth: "):
            read_state_dict(path)

    def test_other_keys_are_named_with_the_way_to_take_the_weights_out(self, path: Path) -> None:
        torch.save({"epoch": 7, "params": self.state, "optimizer": {"state": {}}}, path)
        with pytest.raises(
            CheckpointError,
            match=r"Its keys: epoch \(int\), params \(2 tensors\), optimizer \(dict of 1\)\. To use those of params: "
            r"torch\.save\(torch\.load\(path, weights_only=True\)\['params'\], new_path\)",
        ):
            read_state_dict(path)
        torch.save({"state_dict": {**self.state, "epoch": 3}}, path)
        with pytest.raises(CheckpointError, match=r"In state_dict, epoch is a int, not a tensor"):
            read_state_dict(path)
        torch.save([self.state], path)
        with pytest.raises(CheckpointError, match="but a list"):
            read_state_dict(path)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
    def test_torchscript_is_told_from_a_damaged_file(self, path: Path) -> None:
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
        with pytest.raises(
            CheckpointError,
            match=r"weights\.pth: refused: a TorchScript archive.*torch\.jit\.load.*state_dict\(\), new_path",
        ):
            read_state_dict(path)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"  <!DOCTYPE html><html>Sign in", "a web page: the download led to a page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
            (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
            (b"\x1f\x8b\x08" + bytes(20), "gzip archive: unpack it"),
        ],
    )
    def test_known_files_of_another_kind(self, path: Path, content: bytes, said: str) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"weights\.pth: not a checkpoint but .*{said}"):
            read_state_dict(path)

    def test_zip_archive_around_a_file_of_weights(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("osnet.pth", b"1")
        with pytest.raises(CheckpointError, match=r"a zip archive of osnet\.pth: unpack it and give the file"):
            read_state_dict(path)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
    def test_truncated(self, path: Path, zipped: bool, share: float) -> None:
        torch.save({"a": torch.randn(300)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(CheckpointError, match=rf"{path.name}: .*damaged"):
            read_state_dict(path)

    def test_empty_missing_and_folder(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"weights\.pth: no such file"):
            read_state_dict(path)
        path.touch()
        with pytest.raises(CheckpointError, match=r"weights\.pth: the file is empty"):
            read_state_dict(path)
        with pytest.raises(CheckpointError, match="no such file"):
            read_state_dict(path.parent)

    @pytest.mark.parametrize("content", [b"just text\n" * 50, b"\x89PNG\r\n" + bytes(200), b"PK\x03\x04" + bytes(200)])
    def test_another_kind_of_file(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights\.pth: .*not a checkpoint"):
            read_state_dict(path)

    @pytest.mark.parametrize("content", [{}, [1, 2], {"a": 3}, {"state_dict": {"a": "b"}}, torch.ones(3)])
    def test_no_state_dict(self, path: Path, content: object) -> None:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"weights\.pth: .*no state_dict"):
            read_state_dict(path)

    @pytest.mark.parametrize(
        ("tensor", "kind"),
        [
            (torch.eye(3).to_sparse(), "a sparse tensor"),
            (torch.eye(3).to_sparse_csr(), "a sparse tensor"),
            (torch.eye(3).to("meta"), "without numbers"),
            (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantised"),
            (torch.eye(3, dtype=torch.complex64), "complex"),
        ],
    )
    def test_tensors_that_no_network_takes_are_named(self, path: Path, tensor: Tensor, kind: str) -> None:
        torch.save({"state_dict": {"good": torch.ones(2), "conv.weight": tensor}}, path)
        with pytest.raises(CheckpointError, match=rf"weights\.pth: (conv\.weight is .*{kind}|refused)"):
            read_state_dict(path)

    @pytest.mark.parametrize("zipped", [True, False, None])
    def test_code_is_refused_and_not_run(self, path: Path, zipped: bool | None) -> None:
        witness = path.parent / "ran"

        class Code:
            def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
                return os.system, (f"touch {witness}",)

        if zipped is None:
            path.write_bytes(pickle.dumps({"state_dict": Code()}, protocol=2))
        else:
            torch.save({"state_dict": Code()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"weights\.pth: refused.*system.*weights_only=False.*state_dict\(\)"):
            read_state_dict(path)
        assert not witness.exists()

    def test_whole_module_is_refused(self, path: Path) -> None:
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(CheckpointError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
            read_state_dict(path)


class TestWholeNetworks:
    def test_own_checkpoint_restores_everything(self, path: Path) -> None:
        trained, network = osnet_network(), osnet_network()
        trained(torch.randn(2, 3, 32, 16))
        torch.save({"state_dict": {f"network.{key}": t for key, t in trained.state_dict().items()}}, path)
        load_network(network, path)
        assert equal(network.state_dict(), trained.state_dict())
        assert network.branches["dropping"].drop.step == 1

    def test_torchreid_osnet_is_the_global_branch(self, path: Path) -> None:
        state = torchreid_state(7)
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
        network = osnet_network(7, ("global",))
        load_network(network, path)
        assert torch.equal(network.branches["global_"].reduction[1].weight, state["fc.1.weight"])
        assert torch.equal(network.branches["global_"].classifier.bias, state["classifier.bias"])
        assert torch.equal(network.backbone.conv5.conv.weight, state["conv5.conv.weight"])

    @pytest.mark.parametrize("num_classes", [0, 3])
    def test_classifiers_can_be_left_out(self, path: Path, num_classes: int) -> None:
        trained, network = osnet_network(5), osnet_network(num_classes)
        before = {key: t.clone() for key, t in network.state_dict().items() if ".classifier." in key}
        torch.save(trained.state_dict(), path)
        with pytest.raises(CheckpointError, match="load without classifiers"):
            load_network(network, path)
        load_network(network, path, classifiers="drop")
        images = torch.randn(2, 3, 32, 16)
        assert torch.equal(network.eval().embed(images), trained.eval().embed(images))
        assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())
        with pytest.raises(ValueError, match="'keep' or 'drop'"):
            load_network(network, path, classifiers="some")  # type: ignore[arg-type]

    @pytest.mark.parametrize(("saved", "asked"), [(None, nn.Identity()), (nn.Identity(), BatchDropout(0.3, 1.0))])
    def test_another_drop_layer_does_not_matter(self, path: Path, saved: nn.Module, asked: nn.Module) -> None:
        torch.save(osnet_network(dropping=saved).state_dict(), path)
        load_network(osnet_network(dropping=asked), path)

    def test_other_architecture_lists_keys_and_shapes_and_changes_nothing(self, path: Path) -> None:
        torch.save(osnet_network().state_dict(), path)
        network = BDBNetwork(5, OSNetBackbone(0.5))
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        with pytest.raises(CheckpointError) as caught:
            load_network(network, path)
        message = str(caught.value)
        assert message.startswith(f"{path}: the checkpoint does not match the architecture")
        assert "backbone.conv1.conv.weight (16, 3, 7, 7) in the file, (32, 3, 7, 7) in the network" in message
        assert "Choose the backbone" in message
        assert len(message) < 1500
        assert equal(before, network.state_dict())

    def test_advice_fits_the_file(self, path: Path) -> None:
        """Only where classifiers differ is leaving them out of use; fast-reid's heads are ours in no case."""
        torch.save(osnet_network(5).state_dict(), path)
        with pytest.raises(CheckpointError, match="Only classifiers differ") as caught:
            load_network(osnet_network(6), path)
        assert "Choose the backbone" not in str(caught.value)
        with pytest.raises(CheckpointError, match="Choose the backbone") as caught:
            load_network(osnet_network(5, ("global",)), path)
        assert "classifiers" not in str(caught.value).splitlines()[-1]
        network = BDBNetwork(5, ResNetBackbone("resnet18", "none"), ["global"])
        torch.save({"model": fast_reid_state(network.backbone)}, path)
        with pytest.raises(CheckpointError, match=r"heads\.\* are the heads of fast-reid.*backbone\.weights"):
            load_network(network, path)

    def test_missing_and_left_over_branches(self, path: Path) -> None:
        torch.save(osnet_network(5, ("global",)).state_dict(), path)
        with pytest.raises(
            CheckpointError, match=r"missing in the file: branches\.dropping\.bottleneck\.conv1\.weight"
        ):
            load_network(osnet_network(), path)
        torch.save(osnet_network().state_dict(), path)
        with pytest.raises(CheckpointError, match=r"only in the file: branches\.dropping"):
            load_network(osnet_network(5, ("global",)), path)


class TestStartingWeights:
    def test_torchreid_fills_backbone_and_global_branch(self, path: Path) -> None:
        state, network = torchreid_state(), osnet_network()
        torch.save(state, path)
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        assert initialize_from(network, path) == ["backbone", "branches.global_"]
        after = network.state_dict()
        assert torch.equal(after["backbone.conv2.0.gate.fc1.weight"], state["conv2.0.gate.fc1.weight"])
        assert torch.equal(after["branches.global_.reduction.0.weight"], state["fc.0.weight"])
        untouched = [key for key in before if "classifier" in key or key.startswith("branches.dropping")]
        assert all(torch.equal(after[key], before[key]) for key in untouched)

    def test_branch_that_the_network_lacks_is_left_out(self, path: Path) -> None:
        torch.save(torchreid_state(), path)
        assert initialize_from(osnet_network(5, ("dropping",)), path) == ["backbone"]

    def test_torchvision_fills_the_backbone(self, path: Path) -> None:
        resnet = torchvision.models.resnet18(weights=None)
        # Older files lack this counter.
        torch.save({k: t for k, t in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
        network = BDBNetwork(5, ResNetBackbone("resnet18", "none"))
        assert initialize_from(network, path) == ["backbone"]
        assert torch.equal(network.backbone.layer4[0].conv1.weight, resnet.layer4[0].conv1.weight)

    def test_fast_reid_fills_the_backbone(self, path: Path) -> None:
        trained = ResNetBackbone("resnet18", "none")
        torch.save({"model": fast_reid_state(trained), "iteration": 3}, path)
        network = BDBNetwork(5, ResNetBackbone("resnet18", "none"))
        assert initialize_from(network, path) == ["backbone"]
        assert equal(network.backbone.state_dict(), trained.state_dict())
        assert equal(ResNetBackbone("resnet18", path).state_dict(), trained.state_dict())

    @pytest.mark.parametrize("head", ["fc", "classifier"])
    def test_a_resnet_of_torchreid_fills_the_backbone(self, path: Path, head: str) -> None:
        trained = ResNetBackbone("resnet18", "none")
        state = {**trained.state_dict(), f"{head}.weight": torch.ones(7, 512), f"{head}.bias": torch.ones(7)}
        torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}, "rank1": np.float32(0.8)}, path)
        assert equal(ResNetBackbone("resnet18", path).state_dict(), trained.state_dict())

    def test_torchvision_features_fill_the_backbone_and_the_head_is_left_out(self, path: Path) -> None:
        for name in ("squeezenet1_1", "mobilenet_v3_small"):
            model = torchvision.models.get_model(name, weights=None)
            torch.save(model.state_dict(), path)
            network = BDBNetwork(5, TorchvisionBackbone(name, "none"))
            before = {key: tensor.clone() for key, tensor in network.branches.state_dict().items()}
            assert initialize_from(network, path) == ["backbone"]
            assert equal(network.backbone.features.state_dict(), model.features.state_dict())
            assert equal(network.branches.state_dict(), before)

    def test_old_names_in_torchvisions_files_of_densenet(self, path: Path) -> None:
        model = torchvision.models.densenet121(weights=None)
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): tensor
            for key, tensor in model.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
        torch.save(state, path)
        backbone = TorchvisionBackbone("densenet121", path)
        assert equal(backbone.features.state_dict(), model.features.state_dict())

    def test_features_of_another_model_are_refused(self, path: Path) -> None:
        torch.save(torchvision.models.squeezenet1_0(weights=None).state_dict(), path)
        with pytest.raises(
            CheckpointError, match=r"does not match the architecture of TorchvisionBackbone[\s\S]*another shape"
        ):
            TorchvisionBackbone("squeezenet1_1", path)
        with pytest.raises(
            CheckpointError, match=r"does not match the architecture of ResNetBackbone[\s\S]*features\.0"
        ):
            ResNetBackbone("resnet18", path)

    def test_own_checkpoint_fills_backbone_and_branches_but_no_counter(self, path: Path) -> None:
        trained, network = osnet_network(5), osnet_network(9)
        trained(torch.randn(2, 3, 32, 16))
        torch.save(trained.state_dict(), path)
        assert initialize_from(network, path) == ["backbone", "branches.global_", "branches.dropping"]
        images = torch.randn(2, 3, 32, 16)
        assert torch.equal(network.eval().embed(images), trained.eval().embed(images))
        assert network.branches["dropping"].drop.step == 0
        backbone = OSNetBackbone(0.25, path)
        assert torch.equal(backbone.conv5.conv.weight, trained.backbone.conv5.conv.weight)

    def test_branches_with_another_head_start_anew(self, path: Path) -> None:
        torch.save(torchreid_state(), path)
        network = osnet_network(head="bnneck")
        before = {key: tensor.clone() for key, tensor in network.branches.state_dict().items()}
        assert initialize_from(network, path) == ["backbone"]
        assert equal(network.branches.state_dict(), before)
        torch.save(network.state_dict(), path)
        assert initialize_from(osnet_network(), path) == ["backbone"]
        assert initialize_from(osnet_network(head="bnneck"), path) == [
            "backbone",
            "branches.global_",
            "branches.dropping",
        ]

    def test_other_architecture_changes_nothing(self, path: Path) -> None:
        torch.save(torchreid_state(), path)
        for network in (BDBNetwork(5, OSNetBackbone(0.5)), osnet_network(embedding_dims={"global": 64})):
            before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
            with pytest.raises(CheckpointError, match="does not match the architecture"):
                initialize_from(network, path)
            assert equal(before, network.state_dict())


class TestDigests:
    """A checkpoint says what was saved in it, so that a changed byte is found: torch.load finds none."""

    @pytest.fixture
    def checkpoint(self) -> dict[str, Any]:
        torch.manual_seed(0)
        state = {"network.a": torch.randn(40, 3), "network.b": torch.tensor(3), "network.c": torch.randn(5).bfloat16()}
        optimizer = {
            "state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.randn(40)}},
            "param_groups": [{"lr": 0.1}],
        }
        entries = {"epoch": 3, "state_dict": state, "optimizer_states": [optimizer], "callbacks": {"a": "/some/where"}}
        return entries | {"bdbnet": {"config": {}, "digests": digests_of(entries)}}

    def test_what_was_saved_is_read_by_us_and_by_torch(self, path: Path, checkpoint: dict[str, Any]) -> None:
        torch.save(checkpoint, path)
        assert equal(read_state_dict(path), {name: checkpoint["state_dict"][f"network.{name}"] for name in "abc"})
        assert torch.load(path, weights_only=True)["bdbnet"]["digests"].keys() == {
            "epoch", "state_dict", "optimizer_states",
        }  # fmt: skip

    @pytest.mark.parametrize("changed", ["network.a", "exp_avg"])
    def test_a_changed_byte_is_found(self, path: Path, checkpoint: dict[str, Any], changed: str) -> None:
        torch.save(checkpoint, path)
        tensors = checkpoint["state_dict"] | checkpoint["optimizer_states"][0]["state"][0]
        content = path.read_bytes()
        number = tensors[changed].numpy().tobytes()
        assert content.count(number) == 1
        at = content.index(number) + 5
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        torch.load(path, weights_only=True)
        entry = "state_dict" if changed == "network.a" else "optimizer_states"
        with pytest.raises(CheckpointError, match=rf"weights.pth: damaged or edited: {entry} not as saved.*pop"):
            read_checkpoint(path)

    def test_each_entry_has_its_own(self, path: Path, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"] = {"a": "elsewhere"}
        del checkpoint["optimizer_states"]
        torch.save(checkpoint, path)
        assert read_checkpoint(path)["epoch"] == 3
        checkpoint["epoch"] = 4
        torch.save(checkpoint, path)
        with pytest.raises(CheckpointError, match="damaged or edited: epoch not as saved"):
            read_checkpoint(path)
        checkpoint["bdbnet"].pop("digests")
        torch.save(checkpoint, path)
        assert read_checkpoint(path)["epoch"] == 4

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.eye(3).to_sparse(),
            torch.empty(3, device="meta"),
            torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        ],
    )
    def test_a_tensor_of_another_kind_is_refused(self, path: Path, checkpoint: dict[str, Any], tensor: Tensor) -> None:
        checkpoint["state_dict"]["network.a"] = tensor
        torch.save(checkpoint, path)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)

    def test_the_digest_knows_values_shapes_types_and_places_but_no_order_of_keys(self) -> None:
        one = {"a": torch.zeros(2, 3), "b": [1, (None, "x")]}
        assert digest_of(dict(reversed(one.items()))) == digest_of(one)
        assert digest_of(one | {"a": torch.zeros(3, 2).T}) == digest_of(one)
        others = [
            one | {"a": torch.zeros(3, 2)}, one | {"a": torch.zeros(2, 3).double()}, one | {"a": torch.ones(2, 3)},
            one | {"b": [1, None, "x"]}, one | {"b": [1.0, (None, "x")]}, {"b": one["a"], "a": one["b"]}, one | {"c": 1},
        ]  # fmt: skip
        assert len({digest_of(one), *map(digest_of, others)}) == 1 + len(others)
        with pytest.raises(TypeError):
            digest_of({"a": Path()})
        assert digests_of({"state_dict": {"a": Path()}, "epoch": 1}).keys() == {"epoch"}

    def test_a_file_is_hashed_once(
        self, path: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.save(checkpoint, path)
        read_checkpoint(path)
        monkeypatch.setattr("bdbnet.models.weights.digest_of", lambda state: pytest.fail("hashed again"))
        read_checkpoint(path)
