"""Stored embeddings are those that are evaluated, whatever reads the images and whenever."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from bdbnet.checked import UnfitError
from bdbnet.config import ConfigError
from bdbnet.evaluation import evaluate as evaluation
from bdbnet.evaluation.embedder import EmbeddingError
from bdbnet.gallery import ModelStamp, StoreError, check_same_model
from bdbnet.gallery.embedding import build_embedder, embedder_of, stamp_of
from bdbnet.loading import ImageError
from bdbnet.loading.sources import dataset_images, find_images
from bdbnet.models import CheckpointError
from small_files import touch


def batches(count: int, size: int = 8) -> list[range]:
    return [range(count)[first : first + size] for first in range(0, count, size)]


def embedded(embedder, images, size: int = 8, **options) -> np.ndarray:
    parts = [*embedder.embed_files(images.manifest, batches(len(images), size), num_workers=0, **options)]
    assert np.concatenate([part.rows for part in parts]).tolist() == [*range(len(images))]
    return np.concatenate([part.embeddings for part in parts])


@pytest.mark.parametrize(
    "settings",
    [[], ["evaluation.normalize=per_branch", "evaluation.flip=true", "evaluation.scales=[1,1.5]"]],
    ids=["plain", "all"],
)
def test_embeddings_are_bit_for_bit_those_that_are_evaluated(
    settings, make_config, dataset_overrides, tmp_path, monkeypatch
):
    tests = []
    build = evaluation.build_test_set
    monkeypatch.setattr(
        evaluation, "build_test_set", lambda *given, **more: tests.append(build(*given, **more)) or tests[0]
    )
    evaluation.evaluate(
        make_config(*dataset_overrides, *settings, "trainer.accelerator=cpu", command="evaluate"), tmp_path
    )
    evaluated, is_query = (
        tests[0].evaluated.embeddings.numpy(),
        tests[0].evaluated.is_query.numpy(),
    )  # gallery before queries
    config = make_config(*dataset_overrides, *settings, "accelerator=cpu")
    found = embedded(build_embedder(config), dataset_images(config.dataset, "test"))
    assert found.shape == (27, 512)
    assert np.array_equal(found[:8], evaluated[is_query])
    assert np.array_equal(found[8:], evaluated[~is_query])


def test_workers_and_batches_play_no_part(embedder, photos):
    images = find_images(photos)
    expected = embedded(embedder, images)
    parts = [*embedder.embed_files(images.manifest, batches(len(images)), num_workers=2)]
    assert np.array_equal(np.concatenate([part.embeddings for part in parts]), expected)
    np.testing.assert_allclose(embedded(embedder, images, 5), expected, rtol=1e-4, atol=1e-5)
    backwards = [*embedder.embed_files(images.manifest, [[3, 1]], num_workers=0)]
    assert backwards[0].rows.tolist() == [3, 1]
    np.testing.assert_allclose(backwards[0].embeddings, expected[[3, 1]], rtol=1e-4, atol=1e-5)


def test_a_box_is_embedded_as_the_image_cut_out_of_it(embedder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels[5:37, 3:19]).save(tmp_path / "part.png")
    (tmp_path / "my.csv").write_text("path,x1,y1,x2,y2\nwhole.png,3,5,19,37\n")
    (tmp_path / "parts.csv").write_text("path\npart.png\n")
    assert np.array_equal(*(embedded(embedder, find_images(tmp_path / name)) for name in ("my.csv", "parts.csv")))


def test_the_stamp_rebuilds_the_same_embedder_and_refuses_another(embedder, weights, photos, tmp_path):
    again = embedder_of(stamp_of(embedder), accelerator="cpu")
    assert stamp_of(again) == stamp_of(embedder)
    images = find_images(photos)
    assert np.array_equal(embedded(again, images), embedded(embedder, images))
    moved = tmp_path / "moved.pth"
    state = torch.load(weights, weights_only=True)
    torch.save(state, moved)
    assert embedder_of(stamp_of(embedder), checkpoint=moved).fingerprint == embedder.fingerprint
    state["backbone.conv1.conv.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, moved)
    with pytest.raises(
        StoreError, match=r"random.pth and of .*moved.pth can't be compared: they differ in the weights"
    ):
        embedder_of(stamp_of(embedder), checkpoint=moved)
    moved.unlink()
    with pytest.raises(CheckpointError, match=r"moved.pth: no such file"):
        embedder_of(stamp_of(embedder), checkpoint=moved)


@pytest.mark.parametrize(
    "setting",
    [
        "image_size=[32,64]", "pad_to_square=true", "loading.decode_margin=null", "loading.decode_margin=1", "evaluation.flip=true",
        "evaluation.scales=[1,2]", "evaluation.normalize=joint", "evaluation.precision=bf16-mixed",
    ],
)  # fmt: skip
def test_every_setting_that_changes_an_embedding_is_in_the_fingerprint(setting, make_config, embedder):
    other = stamp_of(build_embedder(make_config("accelerator=cpu", setting)))
    with pytest.raises(StoreError, match=f"differ in {setting.partition('=')[0].partition('.')[2]}"):
        check_same_model(stamp_of(embedder), other)


def test_parts_without_parameters_are_in_the_fingerprint(make_config, embedder):
    other = stamp_of(build_embedder(make_config("accelerator=cpu", "model.pooling=avg")))
    with pytest.raises(StoreError, match="differ in network"):
        check_same_model(stamp_of(embedder), other)


def test_settings_that_say_the_same_have_the_same_fingerprint(make_config, embedder):
    for setting in ("evaluation.scales=[1]", "loading.decode_margin=2.0", "pad_to_square=false"):
        assert stamp_of(build_embedder(make_config("accelerator=cpu", setting))) == stamp_of(embedder)


def test_a_checkpoint_of_a_training_brings_its_own_size_and_padding(make_config, weights, tmp_path):
    config = make_config()
    saved = {
        "model": config.model, "backbone": config.backbone, "dropping": {"_target_": "torch.nn.Identity"},
        "dataset": {"test_size": [32, 24], "image_size": [8, 8], "pad_test": True},
    }  # fmt: skip
    state = {f"network.{key}": value for key, value in torch.load(weights, weights_only=True).items()}
    record = OmegaConf.to_container(OmegaConf.create(saved), resolve=True)
    torch.save({"state_dict": state, "bdbnet": {"config": record}}, tmp_path / "last.ckpt")
    own = [f"checkpoint={tmp_path / 'last.ckpt'}", "~model", "~backbone", "image_size=null", "accelerator=cpu"]
    stamp = stamp_of(build_embedder(make_config(*own)))
    assert (stamp.image_size, stamp.pad_to_square) == ((32, 24), True)
    assert stamp_of(embedder_of(stamp, accelerator="cpu")) == stamp
    assert not build_embedder(make_config(*own, "dataset=synthetic_reid")).preprocessing.pad_to_square


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("image_size=null", r"image_size= is missing: .*random.pth is a file of bare weights"),
        ("image_size=[64]", r"image_size=\[64\]: give \[height,width\]"),
        ("image_size=[64,0]", r"image_size=\[64, 0\]: give \[height,width\]"),
        ("loading.decode_margin=0.5", r"decode_margin=0.5: give a number of at least 1, or null"),
        ("evaluation.normalize=all", r"evaluation.normalize='all': choose one of none"),
        ("evaluation.scales=[0]", r"evaluation.scales=\[0\]: give a list of factors above 0"),
        ("accelerator=tpu", r"accelerator=tpu \(device= in Python\): choose one of auto, cpu, gpu"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(setting, message, make_config):
    with pytest.raises(ConfigError, match=message):
        build_embedder(make_config(setting))


def test_an_unreadable_image_is_named_or_left_out(embedder, photos, tmp_path):
    (tmp_path / "a.jpg").write_bytes((photos / "day" / "001.jpg").read_bytes())
    touch(tmp_path, "broken.jpg", "worse.jpg")
    images = find_images(tmp_path)
    with pytest.raises(ImageError, match=r"broken.jpg can't be read"):
        [*embedder.embed_files(images.manifest, [[0, 1]], num_workers=0)]
    parts = [*embedder.embed_files(images.manifest, [[0, 1], [2]], num_workers=0, skip_unreadable=True)]
    assert [part.rows.tolist() for part in parts] == [[0], []]
    assert [[*part.unreadable] for part in parts] == [[1], [2]]
    assert "broken.jpg can't be read" in parts[0].unreadable[1]
    assert [part.embeddings.shape for part in parts] == [(1, 512), (0, 512)]


def test_an_embedding_with_nan_is_named(embedder, photos, monkeypatch):
    def spoilt(images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 512).index_fill_(0, torch.tensor(1), torch.nan)

    monkeypatch.setattr(embedder, "embed_prepared", spoilt)
    with pytest.raises(EmbeddingError, match=r"day/003.jpg holds NaN or infinity"):
        [*embedder.embed_files(find_images(photos).manifest, [[0, 1]], num_workers=0)]


def test_the_stamp_survives_json(embedder):
    assert ModelStamp.from_json(json.loads(json.dumps(asdict(stamp_of(embedder))))) == stamp_of(embedder)
    with pytest.raises(UnfitError, match=r"model\.fingerprint is missing"):
        ModelStamp.from_json({"image_size": [1, 2], "network": {}})
