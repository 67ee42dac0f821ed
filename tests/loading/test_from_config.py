"""From the configuration to the protocol, the sizes and the batches."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bdbnet.config import ConfigError
from bdbnet.evaluation.evaluate import evaluate
from bdbnet.evaluation.protocol import build_protocol
from bdbnet.loading.from_config import build_data, build_manifest, settle_protocol
from bdbnet.reporting.pictures import box_of, picture
from bdbnet.reporting.run_folder import image_root, read_run
from bdbnet.training.runs import train

TABLE = [
    "dataset=table", "dataset.image_size=[32,32]", "backbone=osnet_x0_25", "sampler.batch_size=4",
    "sampler.images_per_identity=2", "trainer.max_epochs=1", "trainer.precision=32-true", "trainer.accelerator=cpu",
    "callbacks.progress=false", "evaluation.top_k=2", "loading.num_workers=0", "run_name=test",
]  # fmt: skip


def write_table(folder: Path, *, cameras: bool = False, suffix: str = ".png") -> Path:
    """3 train and 2 test identities of 4 images: a table beside its images."""
    generator, rows = np.random.default_rng(0), []
    for number in range(20):
        Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{number}{suffix}")
        label = number // 4
        split = "train" if label < 3 else ("query" if number % 2 else "gallery") if cameras else "test"
        rows.append((f"{number}{suffix}", label, split, number % 2))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "camera"])
    (table if cameras else table.drop(columns="camera")).to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def composed(tiny_config, *overrides: str):
    return tiny_config(*TABLE, *overrides, options={})


def test_a_table_without_cameras_is_evaluated_by_recall_and_says_so(tiny_config, tmp_path, capsys):
    table = write_table(tmp_path)
    result = train(composed(tiny_config, f"dataset.manifest={table}"), tmp_path / "run")
    out = capsys.readouterr().out
    assert "no cameras: evaluated by the retrieval protocol (Recall@K)" in out
    assert "images: train 32 x 32; test 32 x 32" in out
    assert {"recall@1", "recall@8"} <= result.metrics.keys()
    assert result.protocol.task == "retrieval"
    assert result.protocol.dataset == "mine"
    assert result.protocol.pad_to_square
    assert result.data["cameras"] is False
    assert result.config["dropping"]["height_ratio"] == 0.5
    assert result.config["augmentation"]["erasing"] == [{"_target_": "bdbnet.loading.RandomErasing"}]
    again = read_run(tmp_path / "run")
    assert again.result.protocol == result.protocol
    assert image_root(again) == (tmp_path, "")


def test_a_table_with_cameras_is_evaluated_by_rank(tiny_config, tmp_path):
    table = write_table(tmp_path, cameras=True)
    result = train(composed(tiny_config, f"dataset.manifest={table}"), tmp_path / "run")
    assert {"rank1", "mAP"} <= result.metrics.keys()
    assert result.protocol.task == "reid"
    assert not result.protocol.pad_to_square
    assert result.config["dropping"] == result.config["dropping"] | {"height_ratio": 0.3, "width_ratio": 1.0}

    # The protocol can be overridden, and a checkpoint evaluated under another one at its own size.
    config = tiny_config(
        "dataset=table", f"dataset.manifest={table}", "dataset.protocol=retrieval",
        f"checkpoint={tmp_path / 'run' / 'last.ckpt'}", command="evaluate",
    )  # fmt: skip
    evaluated = evaluate(config, tmp_path / "evaluated")
    assert "recall@1" in evaluated.metrics
    assert evaluated.protocol.image_size == (32, 32)


def test_multi_query_is_pooled_stamped_and_listed_once_per_query(tiny_config, tmp_path):
    result = train(tiny_config("dataset.protocol=reid_multi_query", "trainer.max_epochs=1"), tmp_path)
    assert result.protocol.task == "reid_multi_query"
    assert result.protocol.query_pooling == "mean"
    lists = pd.read_parquet(tmp_path / "topk.parquet")
    queries = lists.drop_duplicates("query_index")
    assert not queries.duplicated(["query_label", "query_camera"]).any()
    assert len(queries) == result.metrics["valid_queries"]


@pytest.mark.parametrize(
    ("key", "image_size", "prepared", "test", "pads"),
    [
        ("market1501", (384, 128), (384, 128), (384, 128), (False, False)),
        ("cuhk03_detect", (384, 128), (384, 128), (384, 128), (False, False)),
        ("cub200", (224, 224), (256, 256), (256, 256), (True, True)),
        ("cars196", (224, 224), (256, 256), (256, 256), (True, False)),
        ("sop", (224, 224), (256, 256), (256, 256), (True, True)),
        ("inshop", (224, 224), (256, 256), (256, 256), (True, True)),
    ],
)
def test_each_dataset_brings_the_transforms_of_the_paper(tiny_config, key, image_size, prepared, test, pads):
    manifest = build_manifest(tiny_config())
    config = tiny_config(f"dataset={key}", "backbone=osnet_x0_25", command="evaluate")
    data = build_data(config, manifest)
    assert data.train_transform.image_size == image_size
    assert data.train_transform.prepared_size == prepared
    assert data.test_transform.image_size == test
    assert (data.train_transform.pad_to_square, data.test_transform.pad_to_square) == pads
    protocol = build_protocol(config, data)
    assert (protocol.image_size, protocol.pad_to_square) == (test, pads[1])
    assert protocol.decode_margin == 2
    config.dataset.test_size = [100, 90]
    assert build_data(config, manifest).test_transform.image_size == (100, 90)
    assert build_data(config, manifest, test_size=[64, 32]).test_transform.image_size == (64, 32)


def test_default_augmentation_is_the_datasets_and_can_be_switched_off(tiny_config):
    manifest = build_manifest(tiny_config())
    erasers = {}
    for key in ("market1501", "cub200"):
        for choice in ("default", "none", "cutout"):
            config = tiny_config(f"augmentation={choice}")
            config.dataset = tiny_config(f"dataset={key}", command="evaluate").dataset
            data = build_data(config, manifest)
            erasers[key, choice] = [type(eraser).__name__ for eraser in data.train_transform.erasing]
    assert erasers == {
        ("market1501", "default"): [], ("market1501", "none"): [], ("market1501", "cutout"): ["Cutout"],
        ("cub200", "default"): ["RandomErasing"], ("cub200", "none"): [], ("cub200", "cutout"): ["Cutout"],
    }  # fmt: skip


def test_a_protocol_that_does_not_fit_is_refused(tiny_config):
    config = tiny_config()
    manifest = build_manifest(config)
    without = type(manifest)(manifest.table.assign(camera=-1), manifest.root)
    for protocol, message in (
        ("reid_multi_query", "no cameras to group queries by"),
        ("reid_reassociation", "no cameras, which are the numbers of their frames"),
    ):
        config.dataset.protocol = protocol
        with pytest.raises(ConfigError, match=message):
            settle_protocol(config.dataset, without)


@pytest.mark.parametrize("split", ["test", "query"])
def test_a_single_shot_of_an_identity_with_one_image_is_refused(tiny_config, split):
    config = tiny_config("dataset.protocol=reid_single_shot")
    manifest = build_manifest(config)
    table = manifest.table[manifest.table["split"] != "gallery"].replace({"split": {"query": "test"}})
    test = table[table["split"] == "test"]
    whole = pd.concat([table, test.iloc[:1].assign(path="alone.png", label=12345, split=split)])
    settle_protocol(config.dataset, type(manifest)(table, manifest.root))
    message = r"single gallery shot .* but 1 identities have one test image alone, the first is 12345 \(alone.png\)"
    with pytest.raises(ConfigError, match=message):
        settle_protocol(config.dataset, type(manifest)(whole, manifest.root))


def test_multi_query_needs_queries_and_gallery_apart(tiny_config):
    config = tiny_config("dataset.protocol=reid_multi_query")
    manifest = build_manifest(config)
    table = manifest.table[manifest.table["split"] != "gallery"].replace({"split": {"query": "test"}})
    with pytest.raises(ConfigError, match="images of split test are queries and gallery at once"):
        settle_protocol(config.dataset, type(manifest)(table, manifest.root))


def test_cameras_do_not_count_where_recall_is_the_metric(tiny_config, tmp_path):
    """Each test identity under one camera: nothing to find for re-ID, everything for retrieval."""
    table = write_table(tmp_path, cameras=True)
    rows = pd.read_csv(table)
    rows.assign(camera=rows["label"]).to_csv(table, index=False)
    with pytest.raises(
        ConfigError,
        match=r"another camera.*No identity was seen by two cameras: set dataset\.protocol=retrieval",
    ):
        build_manifest(composed(tiny_config, f"dataset.manifest={table}"))
    build_manifest(composed(tiny_config, f"dataset.manifest={table}", "dataset.protocol=retrieval"))


@pytest.mark.parametrize("value", ["[1,2]", "[mine.csv,null]", '"~nobody-of-that-name/x.csv"', '""'])
def test_sources_that_are_none_are_named(tiny_config, value):
    with pytest.raises(ValueError, match=r"dataset\.manifest|no such user|~nobody"):
        build_manifest(composed(tiny_config, f"dataset.manifest={value}"))


def test_an_unreadable_test_image_shows_before_the_first_epoch_where_there_is_a_cache(tiny_config, tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "19.png").write_bytes(b"damaged")
    where = [f"loading.cache_root={tmp_path / 'cache'}", "loading.cache=packed"]
    with pytest.raises(ValueError, match=r"19\.png can't be read"):
        train(composed(tiny_config, f"dataset.manifest={table}", *where), tmp_path / "run")
    assert not (tmp_path / "run" / "history.csv").exists()


def test_an_own_size_is_not_cut_out_of_the_presets(tiny_config, tmp_path):
    config = composed(tiny_config, f"dataset.manifest={write_table(tmp_path)}")
    build_manifest(config)
    assert config.dataset.resize is None
    assert config.dataset.test_size == [32, 32]
    config = composed(tiny_config, f"dataset.manifest={tmp_path / 'mine.csv'}", "dataset.image_size=null")
    build_manifest(config)
    assert (config.dataset.image_size, config.dataset.resize, config.dataset.test_size) == (
        [224] * 2,
        [256] * 2,
        [256] * 2,
    )


def test_an_image_that_is_damaged_during_training_is_named(tiny_config, tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "5.png").write_bytes(b"damaged")
    config = composed(tiny_config, f"dataset.manifest={table}", "sampler.epoch=images")
    with pytest.raises(ValueError, match=r"5\.png can't be read"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("cache", ["none", "packed", "device"])
def test_damaged_images_are_replaced_and_counted_where_that_is_asked_for(tiny_config, tmp_path, cache):
    table = write_table(tmp_path)
    (tmp_path / "5.png").write_bytes(b"damaged")
    settings = ["sampler.epoch=images", "loading.on_error=replace", f"loading.cache={cache}", "trainer.max_epochs=2"]
    config = composed(tiny_config, f"dataset.manifest={table}", f"loading.cache_root={tmp_path / 'cache'}", *settings)
    with pytest.warns(UserWarning, match="replaced by"):
        result = train(config, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert (history["replaced_images"] >= 1).all()
    assert result.data["replaced_images"] == history["replaced_images"].sum()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_cache_changes_no_number(tiny_config, tmp_path, suffix):
    """Same losses and metrics, bit for bit, from files, from a packed cache and from images on the device."""
    table, seen = write_table(tmp_path, suffix=suffix), []
    for cache in ("none", "packed", "device"):
        where = [f"loading.cache={cache}", f"loading.cache_root={tmp_path / 'cache'}", "trainer.max_epochs=2"]
        result = train(composed(tiny_config, f"dataset.manifest={table}", *where), tmp_path / cache)
        history = pd.read_csv(tmp_path / cache / "history.csv")
        seen.append((result.metrics, history["loss"].tolist()))
    assert seen[0] == seen[1] == seen[2]


def test_boxes_are_cut_out_in_training_and_in_the_report(tiny_config, tmp_path):
    """Two images in every photograph: left half black, right half white."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = 255
    rows = []
    for number in range(10):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows += [(f"{number}.png", side, "train" if number < 6 else "test", 30 * side) for side in (0, 1)]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "x1"])
    table = table.assign(label=table["label"] + 2 * (table["split"] == "test"), y1=0, x2=table["x1"] + 30, y2=40)
    table.to_csv(tmp_path / "mine.csv", index=False)
    config = composed(tiny_config, f"dataset.manifest={tmp_path / 'mine.csv'}")
    result = train(config, tmp_path / "run")
    assert result.metrics["recall@1"] == 1
    lists = pd.read_parquet(tmp_path / "run" / "topk.parquet")
    assert (lists["query_x2"] - lists["query_x1"] == 30).all()
    first = lists.iloc[0]
    shown = re.search(
        r'src="data:image/jpeg;base64,([^"]+)"', picture(tmp_path, first.query_path, "", box_of(first, "query"))
    )
    assert Image.open(io.BytesIO(base64.b64decode(shown[1]))).size == (30, 40)
