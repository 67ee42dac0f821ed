"""From every source to an embedder, and a clear word where there is none."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import bdbnet
from bdbnet.config import ConfigError, locate
from bdbnet.evaluation.embedder import Origin
from bdbnet.models import BDBNetwork, CheckpointError, OSNetBackbone, ResNetBackbone, TimmBackbone
from bdbnet.renamed import with_todays_names
from data_modules import data_module

CROPS = [
    np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 20), (64, 32), (50, 70))
]


def osnet_file(path, width: float = 0.25):
    """Random weights in torchreid's format."""
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=5, backbone=OSNetBackbone(width=width), branches=["global"])
    names = {"branches.global_.reduction": "fc", "branches.global_.classifier": "classifier"}
    state = {}
    for key, tensor in network.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key.removeprefix("backbone.")] = tensor
    torch.save(state, path)
    return path


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.0])
def test_torchreid_files_are_recognised(tmp_path, width):
    embedder = bdbnet.load(osnet_file(tmp_path / "osnet.pth", width), device="cpu")
    assert (embedder.dimensions, embedder.preprocessing.image_size) == (512, (256, 128))
    assert embedder.network.backbone.out_channels == 512 * width
    assert not embedder.network.training
    assert embedder.embed(CROPS).shape == (3, 512)


@pytest.mark.parametrize(
    ("make", "branches"),
    [
        (lambda: ResNetBackbone("resnet18", weights="none"), ("global", "dropping")),
        (lambda: ResNetBackbone("resnet34", weights="none"), ("dropping",)),
        (lambda: OSNetBackbone(0.25), ("global",)),
    ],
)
def test_bare_weights_of_ours_are_recognised(tmp_path, make, branches):
    torch.manual_seed(0)
    network = BDBNetwork(0, make(), branches, embedding_dims={"dropping": 96}).eval()
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match=r"image_size= is missing: .*bare.pth is a file of bare weights"):
        bdbnet.load(tmp_path / "bare.pth")
    embedder = bdbnet.load(tmp_path / "bare.pth", image_size=(64, 32), device="cpu")
    expected = bdbnet.Embedder(network, bdbnet.Preprocessing((64, 32))).embed(CROPS)
    np.testing.assert_allclose(embedder.embed(CROPS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, r"They are a resnet18 without the branches .* backbone\.weights"),
        ({"heads.weight": torch.ones(3, 512)}, r"the heads of fast-reid"),
    ],
)
def test_weights_without_an_embedding_are_offered_as_starting_weights(tmp_path, extra, said):
    state = {f"backbone.{key}": t for key, t in ResNetBackbone("resnet18", weights="none").state_dict().items()}
    torch.save({"model": state | extra, "iteration": 4}, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=said) as caught:
        bdbnet.load(tmp_path / "model_final.pth", device="cpu")
    assert "model=baseline" not in str(caught.value)


def test_a_checkpoint_of_a_training_says_everything(finished_run):
    embedder = bdbnet.load(finished_run / "last.ckpt", device="cpu")
    assert embedder.preprocessing == bdbnet.Preprocessing((64, 32))
    assert embedder.dimensions == 1536
    assert embedder.origin.trained_with["dataset"]["name"] == "synthetic_reid"
    with pytest.raises(ConfigError, match=r"model= and backbone=: leave out, .*last.ckpt knows its own network"):
        bdbnet.load(finished_run / "last.ckpt", model="bdb", backbone="resnet18")
    larger = bdbnet.load(finished_run / "last.ckpt", image_size=[96, 48])
    assert larger.preprocessing.image_size == (96, 48)


def test_a_checkpoint_of_an_earlier_version_still_loads(finished_run, tmp_path):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    config = content["bdbnet"]["config"]
    config["backbone"]["_target_"] = "bdbnet.models.OSNetTrunk"
    config["evaluation"]["measure"] = config["evaluation"].pop("distance")
    torch.save(content, tmp_path / "old.ckpt")
    old, new = bdbnet.load(tmp_path / "old.ckpt"), bdbnet.load(finished_run / "last.ckpt")
    assert (old.fingerprint, old.distance_name) == (new.fingerprint, "euclidean")


def test_former_names_hold_below_the_configuration_of_a_training_too():
    old = {"trained_with": {"evaluation": {"measure": "cosine"}, "backbone": {"_target_": "bdbnet.models.TimmTrunk"}}}
    backbone = {"_target_": "bdbnet.models.TimmBackbone", "map": "last_stage", "output_stride": None}
    assert with_todays_names(old) == {"trained_with": {"evaluation": {"distance": "cosine"}, "backbone": backbone}}


def test_a_backbone_of_timm_from_before_it_had_a_choice_of_maps_gives_what_it_gave(finished_run, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = BDBNetwork(0, TimmBackbone("vit_tiny_patch16_224", "none", map="last_stage"), ["global"]).eval()
    tokens = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(-1,), dynamic_img_size=True
    ).eval()
    tokens.load_state_dict(
        {key.removeprefix("model."): tensor for key, tensor in network.backbone.state_dict().items()}
    )
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    del content["bdbnet"]["digests"]
    config = content["bdbnet"]["config"]
    config["model"]["branches"] = ["global"]
    config["backbone"] = {
        "_target_": "bdbnet.models.TimmBackbone",
        "name": "vit_tiny_patch16_224",
        "weights": "imagenet",
    }
    content["state_dict"] = {f"network.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save(content, tmp_path / "old.ckpt")
    old = bdbnet.load(tmp_path / "old.ckpt", device="cpu")
    batch = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(old.network.backbone(batch), tokens(batch)[-1])
    config["backbone"] |= {"map": "last_stage", "output_stride": None}
    torch.save(content, tmp_path / "new.ckpt")
    assert bdbnet.load(tmp_path / "new.ckpt", device="cpu").fingerprint == old.fingerprint
    config["backbone"]["map"] = "head"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"missing in the file: backbone\.model\."):
        bdbnet.load(tmp_path / "other.ckpt", device="cpu")


@pytest.mark.parametrize(
    ("module", "name", "today"),
    [
        ("models", "OSNetTrunk", "bdbnet.models.OSNetBackbone"),
        ("retrieval", "ExactIndex", "bdbnet.gallery.indexes.ExactIndex"),
        ("retrieval", "MEASURES", "bdbnet.retrieval.DISTANCES"),
    ],
)
def test_former_names_are_still_imported_with_a_warning(module, name, today):
    package = importlib.import_module(f"bdbnet.{module}")
    with pytest.warns(DeprecationWarning, match=f"bdbnet.{module}.{name} is now {today}"):
        found = getattr(package, name)
    assert found is locate(today)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = package.Nonsense


@pytest.mark.parametrize("group", ["model", "backbone", "dropping"])
def test_words_of_a_file_are_never_looked_up(finished_run, tmp_path, group):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["bdbnet"]["config"][group]["name"] = "${oc.env:HOME}"
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=r"odd.ckpt: refused, its settings hold an interpolation"):
        bdbnet.load(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "sklearn.svm.SVC", "pytest.main"])
def test_a_checkpoint_builds_nothing_but_our_own(finished_run, tmp_path, target):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    content["bdbnet"]["config"]["backbone"] = {"_target_": target}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ConfigError, match=target):
        bdbnet.load(tmp_path / "evil.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("config"), "bdbnet.config is missing"),
        (lambda entry: entry.update(config=5), "bdbnet.config is 5; expected a mapping"),
        (lambda entry: entry["config"].pop("model"), "bdbnet.config.model is missing"),
        (lambda entry: entry["config"].update(backbone=[]), "bdbnet.config.backbone is a list of 0"),
        (lambda entry: entry["config"].update(x=torch.ones(1)), "bdbnet.config.x is a Tensor"),
        (lambda entry: entry["config"].update({5: 1}), "bdbnet.config has the key 5"),
        (lambda entry: entry["config"]["dataset"].update(test_size="big"), "bdbnet.config.dataset.test_size is 'big'"),
        (
            lambda entry: entry["config"]["dataset"].update(test_size=[0, 5]),
            r"bdbnet.config.dataset.test_size\[0\] is 0",
        ),
        (lambda entry: entry["config"].update(dataset=[1]), "bdbnet.config.dataset is a list of 1"),
        (
            lambda entry: entry["config"].update(evaluation={"distance": "odd"}),
            "bdbnet.config.evaluation.distance is 'odd'",
        ),
        (lambda entry: entry["config"]["model"].update(branches=[1]), "build no network|BDBNetwork"),
        (lambda entry: entry["config"]["model"].update(embedding_dims={"global": "x"}), "build no network|BDBNetwork"),
    ],
)
def test_a_checkpoint_with_another_entry_is_named_by_its_key(finished_run, tmp_path, change, message):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    change(content["bdbnet"])
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises((CheckpointError, ConfigError), match=f"odd.ckpt: .*({message})"):
        bdbnet.load(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("entry", [None, 5, [], "x", torch.ones(2)])
def test_a_checkpoint_with_an_entry_that_is_none_is_refused(finished_run, tmp_path, entry):
    content = torch.load(finished_run / "last.ckpt", weights_only=True)
    torch.save(content | {"bdbnet": entry}, tmp_path / "odd.ckpt")
    with pytest.raises((CheckpointError, ConfigError), match=r"odd\.ckpt"):
        bdbnet.load(tmp_path / "odd.ckpt")


def test_a_saved_folder_is_the_same_embedder(finished_run, tmp_path):
    embedder = bdbnet.load(finished_run / "last.ckpt", device="cpu")
    embedder.threshold = 7.5
    folder = embedder.save(tmp_path / "model")
    again = bdbnet.load(folder, device="cpu")
    assert again.fingerprint == embedder.fingerprint
    assert again.threshold == 7.5
    np.testing.assert_array_equal(again.embed(CROPS), embedder.embed(CROPS))
    assert "64 x 32 pixels" in (folder / "README.md").read_text()
    again.save(folder)  # over itself
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds thesis.tex; give a new or empty one"):
        embedder.save(tmp_path / "full")


def test_a_changed_byte_of_a_saved_folder_is_found(finished_run, tmp_path):
    folder = bdbnet.load(finished_run / "last.ckpt").save(tmp_path / "model")
    file, record = folder / "model.safetensors", json.loads((folder / "bdbnet.json").read_text())
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or edited"):
        bdbnet.load(folder)
    del record["digest"]  # as earlier versions wrote it
    (folder / "bdbnet.json").write_text(json.dumps(record))
    bdbnet.load(folder)


def test_a_damaged_folder_is_named(finished_run, tmp_path):
    folder = bdbnet.load(finished_run / "last.ckpt").save(tmp_path / "model")
    record = json.loads((folder / "bdbnet.json").read_text())
    for broken, message in (
        ("{", "bdbnet.json is damaged"),
        (json.dumps({**record, "schema": 99}), "schema 99, this version reads"),
        (json.dumps({**record, "network": []}), "network is a list of 0; expected a mapping"),
        (json.dumps({**record, "settings": {"normalize": "odd"}}), "damaged"),
        (json.dumps({**record, "settings": {**record["settings"], "none": 7}}), "its settings can't be used"),
        (json.dumps({**record, "preprocessing": {**record["preprocessing"], "std": [0, 1, 1]}}), "damaged"),
        (json.dumps({**record, "trained_with": 5}), "damaged|trained_with"),
        (json.dumps({**record, "threshold": "high"}), "damaged|threshold"),
        (json.dumps({**record, "network": {"model": {"_target_": "os.system"}}}), "os.system|damaged|backbone"),
    ):
        (folder / "bdbnet.json").write_text(broken)
        with pytest.raises((CheckpointError, ConfigError), match=message):
            bdbnet.load(folder)
    (folder / "bdbnet.json").write_text(json.dumps(record))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        bdbnet.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is not there"):
        bdbnet.load(folder)


def test_unknown_sources_are_named(tmp_path):
    osnet_file(tmp_path / "osnet.pth")
    (tmp_path / "osnet_x0_25_market.pth").touch()
    torch.save({"stem.weight": torch.zeros(3, 4), "head.bias": torch.zeros(7)}, tmp_path / "foreign.pth")
    for source, error, message in (
        ("nothing_here", CheckpointError, "no such file of weights. A source is a checkpoint"),
        (tmp_path / "osnet.pht", CheckpointError, r"Did you mean .*osnet.pth\?"),
        (tmp_path / "osnet_x0_25_market1501.pht", CheckpointError, r"Did you mean .*/osnet_x0_25_market.pth\?"),
        ("osnet_x0_25_market", CheckpointError, r"Did you mean osnet_x0_25_market1501\?"),
        (tmp_path, CheckpointError, "a folder without bdbnet.json"),
        (
            tmp_path / "foreign.pth",
            CheckpointError,
            r"not recognised. Its keys: stem.weight \(3, 4\); head.bias \(7,\).*model=",
        ),
        ("timm:no_such_model_at_all", CheckpointError, "timm .* has no model 'no_such_model_at_all'"),
        ("torchvision:no_such_model", CheckpointError, "torchvision has no model 'no_such_model'"),
    ):
        with pytest.raises(error, match=message):
            bdbnet.load(source)
    for arguments, message in (
        ({"model": "baseline"}, "give backbone= too"),
        ({"model": "baseline", "backbone": "osnet"}, "backbone=osnet: choose one of custom, osnet_x0_25"),
        ({"image_size": [64]}, r"image_size=\[64\]: give \[height,width\]"),
        ({"device": "tpu"}, r"accelerator=tpu \(device= in Python\): choose one of auto, cpu, gpu"),
    ):
        with pytest.raises(ConfigError, match=message):
            bdbnet.load(tmp_path / "osnet.pth", **arguments)


def test_names_of_groups_settle_the_architecture(tmp_path):
    path = osnet_file(tmp_path / "osnet.pth")
    given = bdbnet.load(path, model="baseline", backbone="osnet_x0_25", image_size=(256, 128), device="cpu")
    assert np.array_equal(given.embed(CROPS), bdbnet.load(path, device="cpu").embed(CROPS))
    with pytest.raises(CheckpointError, match="does not match the architecture of BDBNetwork"):
        bdbnet.load(path, model="baseline", backbone="osnet_x0_5", image_size=(256, 128))


def test_a_pretrained_network_of_torchvision_as_it_is(shared_data, tmp_path, monkeypatch):
    """Its pooled features, through the code that downloads: the file lies where torchvision keeps it."""
    import torchvision

    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    state = torch.load(shared_data / "weights" / "squeezenet1_1_imagenet.pth", weights_only=True)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: state)
    embedder = bdbnet.load("torchvision:squeezenet1_1", device="cpu")
    assert (embedder.dimensions, embedder.preprocessing.image_size) == (512, (224, 224))
    model = torchvision.models.squeezenet1_1(weights=None).eval()
    model.load_state_dict(state)
    images = torch.from_numpy(np.stack([embedder.preprocessing.prepare(crop) for crop in CROPS])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.features(embedder.preprocessing.normalize(images)).mean((2, 3))
    np.testing.assert_allclose(embedder.embed(CROPS), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match="load it by its name"):
        embedder.save(tmp_path / "model")


def test_a_pretrained_network_of_timm_as_it_is(monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    for name, size in (("mobilenetv3_small_050", None), ("vit_tiny_patch16_224", (64, 32))):
        torch.manual_seed(0)
        embedder = bdbnet.load(f"timm:{name}", image_size=size, device="cpu")
        assert embedder.preprocessing.image_size == (size or (224, 224))
        assert embedder.embed(CROPS).shape == (3, embedder.dimensions)
    assert embedder.preprocessing.mean == (0.5, 0.5, 0.5)


def test_real_weights_equal_what_evaluate_embeds(shared_data, tmp_path):
    """The published OSNet through the Python door and through the evaluation's own batches."""
    from bdbnet.datasets import load_manifest
    from bdbnet.loading import EvaluationTransform, TrainTransform

    embedder = bdbnet.load(shared_data / "weights" / "osnet_x0_25_market1501.pth", device="cpu")
    manifest = load_manifest(
        "synthetic_reid", tmp_path / "data", train_identities=4, test_identities=4, images_per_camera=2, cameras=2,
        distractors=0, image_size=[128, 64], workers=1,
    )  # fmt: skip
    data = data_module(manifest, TrainTransform((256, 128)), EvaluationTransform((256, 128)), num_workers=0)
    (batch,) = data.test_dataloader()
    evaluated = embedder.embed_prepared(data.on_after_batch_transfer(batch, 0)["image"]).numpy()
    from bdbnet.datasets.images import read_image

    arrays = [read_image(manifest.root / path) for path in data.test_table["path"]]
    np.testing.assert_allclose(embedder.embed(arrays), evaluated, rtol=0, atol=1e-6)


def test_importing_bdbnet_imports_no_torch():
    code = (
        "import sys, time; began = time.process_time(); import bdbnet; print(time.process_time() - began);"
        "print([name for name in ('torch', 'numpy', 'pandas', 'hydra') if name in sys.modules]); print('load' in dir(bdbnet))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["[]", "True"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bdbnet.nothing  # noqa: B018


def test_weights_of_earlier_versions_load_and_keep_the_fingerprint(tmp_path):
    """The global branch's module had the name of a Python keyword, with which nothing could be exported."""
    torch.manual_seed(0)
    network = BDBNetwork(5, OSNetBackbone(0.25)).eval()
    former = {key.replace(".global_.", ".global."): tensor for key, tensor in network.state_dict().items()}
    assert former.keys() != network.state_dict().keys()
    torch.save(former, tmp_path / "former.pth")
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = network.embed(images)
        loaded = bdbnet.load(tmp_path / "former.pth", image_size=(64, 32), device="cpu")
        assert torch.allclose(loaded.network.embed(images), expected, atol=1e-3)
        other = BDBNetwork(5, OSNetBackbone(0.25)).eval()
        other.load_state_dict(former)
        assert torch.equal(other.embed(images), expected)
        wrapped = torch.nn.ModuleDict({"network": BDBNetwork(5, OSNetBackbone(0.25)).eval()})
        wrapped.load_state_dict({f"network.{key}": tensor for key, tensor in former.items()})
        assert torch.equal(wrapped["network"].embed(images), expected)
    plain = BDBNetwork(0, OSNetBackbone(0.25)).eval()
    for tensor in plain.state_dict().values():
        tensor.fill_(1)
    parts = {"model": {"_target_": "bdbnet.models.BDBNetwork", "branches": ["global", "dropping"]}}
    embedder = bdbnet.Embedder(plain, bdbnet.Preprocessing((64, 32)), origin=Origin(network=parts))
    # As the version before the renaming computed it: galleries that are there stay comparable.
    assert embedder.fingerprint == "110d1f61e88efe13d45c940d75263ad90b33a180ee3687ef501f42bc5d9cacb8"
