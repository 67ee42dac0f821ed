"""The command that writes other programs' networks into our folder, and its account of every key."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import bdbnet
import other_programs as theirs
from bdbnet.config import ConfigError
from bdbnet.convert import main
from bdbnet.evaluation.conversion import _with_result, account, convert
from bdbnet.evaluation.load import Wanted
from bdbnet.models import BDBNetwork
from bdbnet.results import read_result

ZOO = "bdb_osnet_x0_25_synthetic"
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CROP = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run("checkpoint=...")``: exit status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


@pytest.fixture
def released(tmp_path):
    path = tmp_path / "market.pth.tar"
    torch.save({"state_dict": theirs.released_state("resnet18"), "epoch": 400}, path)
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "osnet.pth"
    torch.save({"state_dict": theirs.torchreid_osnet("plain")}, path)
    return path


def test_a_file_of_another_program_becomes_a_folder_of_ours(run, tmp_path, released):
    status, said, errors = run("checkpoint=market.pth.tar", "output=model")
    assert (status, errors) == (0, "")
    for line in (
        "written by the released code of the Batch DropBlock Network",
        "backbone.4.* -> backbone.layer1.*",
        "res_part2.* -> branches.dropping.bottleneck.*",
        "global_softmax.*: classifier of the training identities",
        "epoch: state of the training",
        "751 training identities are of a data set of persons",
        "resized to 384 x 128 (bilinear), RGB, mean 0.485, 0.456, 0.406",
        "embedding: 1,536 numbers, compared by euclidean distance",
    ):
        assert line in said
    folder, file = bdbnet.load(tmp_path / "model", device="cpu"), bdbnet.load(released, device="cpu")
    assert np.array_equal(folder.embed([CROP]), file.embed([CROP]))
    assert folder.fingerprint == file.fingerprint


def test_every_key_is_accounted_for(released):
    found = account(str(released), Wanted())
    kept, dropped = sum(found.mapped.values()), sum(found.left_out.values())
    assert kept + dropped == len(theirs.released_state("resnet18")) + 1  # and the epoch


def test_what_lies_beside_the_network_is_listed(tmp_path):
    state = {f"network.{key}": tensor for key, tensor in BDBNetwork(3, "resnet18").state_dict().items()}
    content = {
        "state_dict": {**state, "loss.centers": torch.zeros(3, 4)},
        "model": {"older": torch.zeros(1)},
        "pytorch-lightning_version": "2",
    }
    torch.save(content, tmp_path / "lightning.ckpt")
    found = account(str(tmp_path / "lightning.ckpt"), Wanted(model="bdb", backbone="resnet18", image_size=(64, 32)))
    assert found.program == "bdbnet"
    assert found.left_out["loss.*", "beside the network, such as parameters of a loss"] == 1
    assert found.left_out["model", "state of the training, which no embedding needs"] == 1
    assert sum(found.mapped.values()) + sum(found.left_out.values()) == len(state) + 3


def test_a_typed_network_of_another_program_has_its_own_keys(small):
    wanted = Wanted(model="baseline", backbone="osnet_x0_25", image_size=(64, 32))
    found, by_keys = account(str(small), wanted), account(str(small), Wanted())
    assert (found.program, found.mapped, found.left_out) == (by_keys.program, by_keys.mapped, by_keys.left_out)
    assert found.assumed == ()


def test_an_output_that_holds_something_is_left_alone_unless_the_user_says_so(run, tmp_path, small):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("years of work")
    status, _, errors = run("checkpoint=osnet.pth", "output=model")
    assert status == 1
    assert "output=model: the folder holds thesis.tex; give another one, or replace with overwrite=true" in errors
    assert run("checkpoint=osnet.pth", "output=model", "overwrite=true", "image_size=[64,32]")[0] == 0
    assert (tmp_path / "model" / "thesis.tex").read_text() == "years of work"
    status, _, errors = run("checkpoint=osnet.pth", "output=model")
    assert status == 1
    assert "holds a saved network" in errors
    assert bdbnet.load(tmp_path / "model", device="cpu").preprocessing.image_size == (64, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "osnet.pth"]


def test_half_the_size_computes_in_full_precision(run, tmp_path, small):
    assert run("checkpoint=osnet.pth", "output=half", "half=true", "image_size=[64,32]")[0] == 0
    weights = tmp_path / "half" / "model.safetensors"
    assert safetensors.torch.load_file(weights)["backbone.conv1.conv.weight"].dtype == torch.float16
    embedder, full = (bdbnet.load(path, image_size=(64, 32), device="cpu") for path in (weights.parent, small))
    assert {tensor.dtype for tensor in embedder.network.parameters()} == {torch.float32}
    assert embedder.fingerprint == json.loads((tmp_path / "half" / "bdbnet.json").read_text())["fingerprint"]
    np.testing.assert_allclose(embedder.embed([CROP]), full.embed([CROP]), rtol=0.05, atol=0.02)
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0x10
    weights.write_bytes(content)
    with pytest.raises(bdbnet.models.CheckpointError, match="damaged or edited"):
        bdbnet.load(tmp_path / "half")


def test_numbers_beyond_float16_stay_and_a_threshold_of_other_weights_goes(tmp_path, small):
    embedder = bdbnet.load(small, image_size=(64, 32), device="cpu")
    name = "branches.global_.reduction.1.running_var"
    embedder.network.state_dict()[name][0] = 70_000.0
    embedder.threshold = 0.5
    embedder.save(tmp_path / "model")
    with (
        pytest.warns(UserWarning, match=rf"{name}: holds numbers above 65,504, .*: kept in float32"),
        pytest.warns(UserWarning, match="the threshold was chosen before the weights were rounded, and is left out"),
    ):
        convert(str(tmp_path / "model"), tmp_path / "half", Wanted(), half=True)
    again = bdbnet.load(tmp_path / "half", device="cpu")
    assert again.threshold is None
    assert again.network.state_dict()[name][0] == 70_000.0


def test_a_measurement_before_rounding_says_so(tmp_path):
    path = EXPERIMENTS / "zoo" / "result.json"
    embedder = bdbnet.load(ZOO, device="cpu")
    next(embedder.network.parameters()).mul_(1 + 2**-20)  # the zoo's weights are rounded already
    embedder.save(tmp_path / ZOO)
    made = convert(str(tmp_path / ZOO), tmp_path / "half", Wanted(), half=True, result=path)
    assert made.origin.protocol["note"] == "measured before the weights were rounded to float16"


def test_a_result_of_another_network_or_of_another_use_is_noticed(tmp_path):
    path = EXPERIMENTS / "zoo" / "result.json"
    embedder = bdbnet.load(ZOO, device="cpu")
    found = read_result(path)
    assert _with_result(embedder, path).metrics == found.metrics
    other = replace(found, checkpoint="runs/other.ckpt").write(tmp_path / "other.json")
    with pytest.warns(UserWarning, match=rf"measured of runs/other\.ckpt, while this is {ZOO}"):
        _with_result(embedder, other)
    for setting, value, said in (
        ("flip", True, "flip True, this one False"),
        ("scales", (1.0, 1.5), r"scales \(1.0, 1.5\), this one \(1.0,\)"),
        ("normalize", "joint", "normalisation joint, this one none"),
        ("pad_to_square", True, "padding to a square True, this one False"),
    ):
        changed = replace(found, protocol=replace(found.protocol, **{setting: value})).write(tmp_path / "changed.json")
        with pytest.raises(ConfigError, match=said):
            _with_result(embedder, changed)


def test_what_was_measured_and_the_terms_come_into_the_card(run, tmp_path):
    path = EXPERIMENTS / "zoo" / "result.json"
    status, _, errors = run(f"checkpoint={ZOO}", "output=model", f"result={path}", "terms='CC BY-NC 4.0; no resale'")
    assert (status, errors) == (0, "")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| Rank-1 | 52.4 %" in card
    assert "on synthetic_reid; images of 64 x 32 pixels" in card
    assert "Terms of the weights: CC BY-NC 4.0; no resale." in card
    status, _, errors = run(f"checkpoint={ZOO}", "output=other", f"result={path}", "image_size=[96,48]")
    assert status == 1
    assert (
        "result.json: measured of another network or in another way (image size (64, 32), this one (96, 48))" in errors
    )
    status, _, errors = run(f"checkpoint={ZOO}", "output=other", "result=nowhere.json")
    assert (status, "nowhere.json: no result there" in errors) == (1, True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=model"], "checkpoint= is missing: give a file of weights"),
        (["checkpoint=osnet.pth"], "output= is missing: give the folder to write"),
        (["checkpoint=missing.pth", "output=model"], "missing.pth: no such file of weights"),
        (
            ["checkpoint=foreign.pth", "output=model"],
            "foreign.pth: the architecture of these weights is not recognised",
        ),
        (
            ["checkpoint=osnet.pth", "output=foreign.pth"],
            "output=foreign.pth: a file; give a folder, new or empty",
        ),
        (
            ["checkpoint=osnet.pth", "output=model", "timm=resnet18", "model=baseline", "backbone=resnet18"],
            "timm=resnet18 names the whole network: leave out model= and backbone=",
        ),
        (["checkpoint=timm:resnet18", "output=model"], "timm:resnet18: a pretrained network as it is needs no folder"),
    ],
)
def test_what_can_not_be_converted_is_said(run, tmp_path, small, arguments, message):
    torch.save({"stem.weight": torch.zeros(3, 4)}, tmp_path / "foreign.pth")
    status, _, errors = run(*arguments)
    assert (status, message in errors) == (1, True), errors
    assert not (tmp_path / "model").exists()


def test_a_folder_of_ours_is_converted_again(run, tmp_path, small):
    assert run("checkpoint=osnet.pth", "output=model", "image_size=[64,32]")[0] == 0
    status, said, _ = run("checkpoint=model", "output=again")
    assert status == 0
    assert "written by bdbnet" in said
    assert "branches.global_.*" in said
    assert bdbnet.load("again").fingerprint == bdbnet.load("model").fingerprint
