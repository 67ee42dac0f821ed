"""Trainings on the union of several data sets."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bdbnet import plugins
from bdbnet.command_line import one_dataset_each
from bdbnet.config import ConfigError
from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.datasets.union import TrainingSets
from bdbnet.loading import IdentityBatchSampler, SamplerError
from bdbnet.reporting.terminal import metrics_table
from bdbnet.results import read_result
from bdbnet.training.runs import train
from bdbnet.training.union import read_members
from forked_commands import run

OPTIONS = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 2, "cameras": 2, "distractors": 2,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip


def other(seed: int = 1, size: str = "[64,32]") -> str:
    """A second synthetic set as an entry of the list."""
    options = " ".join(f"dataset.options.{k}={v}" for k, v in {**OPTIONS, "seed": seed}.items()).replace(", ", ",")
    return f"synthetic_reid dataset.image_size={size} {options}"


def union_of(tiny_config, *entries: str, more: tuple[str, ...] = ()):
    listed = ",".join(f'"{entry}"' for entry in entries)
    return tiny_config(f"union=[{listed}]", "trainer.max_epochs=1", *more)


def manifest(root, name: str, labels: list[int], *, box: bool = False, cameras: bool = True) -> Manifest:
    rows = pd.DataFrame({
        "path": [f"{name}/{number}.png" for number in range(len(labels))], "label": labels,
        "camera": [number % 2 if cameras else -1 for number in range(len(labels))], "split": "train",
    })  # fmt: skip
    if box:
        rows[["x1", "y1", "x2", "y2"]] = [0, 0, 2, 2]
    return Manifest(rows, root, name, {label: f"{label:04d}" for label in labels})


def test_identities_and_cameras_of_two_sets_are_apart(tmp_path):
    sets = TrainingSets((manifest(tmp_path, "a", [3, 3, 7]), manifest(tmp_path / "deep", "b", [3, 0, 0], box=True)))
    table = sets.train.table
    assert table["label"].tolist() == [3, 3, 7, 11, 8, 8]
    assert table["camera"].tolist() == [0, 1, 0, 2, 3, 2]
    assert [sets.train.name_of(label) for label in table["label"]] == ["a:0003"] * 2 + ["a:0007", "b:0003"] + [
        "b:0000"
    ] * 2
    assert sets.train.paths == [str(tmp_path / f"a/{n}.png") for n in range(3)] + [
        str(tmp_path / f"deep/b/{n}.png") for n in range(3)
    ]
    assert table["x1"].tolist() == [-1] * 3 + [0] * 3
    assert sets.sets.tolist() == [0, 0, 0, 1, 1, 1]
    assert sets.train.training_labels().tolist() == [0, 0, 1, 3, 2, 2]
    turned = TrainingSets(sets.members[::-1])
    assert len({sets.fingerprint, turned.fingerprint, sets.members[0].fingerprint}) == 3
    assert TrainingSets(sets.members[:1]).fingerprint == sets.members[0].fingerprint


def test_what_two_sets_may_not_have_in_common(tmp_path):
    one = manifest(tmp_path, "a", [0, 0, 1])
    with pytest.raises(DatasetError, match="a: the same data set is in the union twice"):
        TrainingSets((one, manifest(tmp_path, "a", [0, 0, 1])))
    with pytest.raises(
        DatasetError, match=r"a/0\.png is a training image of a and a training image of other \(2 images"
    ):
        TrainingSets((one, Manifest(one.table.iloc[:2], tmp_path, "other")))
    tested = one.table.iloc[:1].assign(split="test")
    other_train = manifest(tmp_path, "b", [4, 4]).table
    with pytest.raises(DatasetError, match="is a training image of a and a test image of other"):
        TrainingSets((one, Manifest(pd.concat([tested, other_train]), tmp_path, "other")))
    people = pd.DataFrame(
        {"path": ["x/1.png", "x/2.png", "y/1.png"], "label": [0, 0, 1], "camera": -1, "split": "train"}
    )
    same = people.assign(path=["x/3.png", "x/4.png", "z/1.png"])
    with pytest.raises(DatasetError, match="x is the folder of identity 0 in a and of 0 in b"):
        TrainingSets((Manifest(people, tmp_path, "a"), Manifest(same, tmp_path, "b")))
    pair = [manifest(tmp_path / name, name, [0, 1, 1]) for name in ("cuhk03_label", "cuhk03_detect")]
    with pytest.raises(DatasetError, match="made of the same identities"):
        TrainingSets(tuple(pair))


@pytest.mark.parametrize("epoch", ["identities", "images"])
def test_balanced_batches_have_as_many_identities_of_each_set(epoch):
    labels = np.repeat(np.arange(24), 3)
    sets = (labels >= 4).astype(int) + (labels >= 9)  # 4, 5 and 15 identities
    sampler = IdentityBatchSampler(labels, 8, 2, epoch=epoch, sets=sets, seed=3)
    batches = sampler.batches(0)
    # Three of each of the first two sets and two of the third, which needs 7 batches for 15 identities, or 15 for 30 groups.
    assert len(batches) == len(sampler) == (7 if epoch == "identities" else 15)
    for batch in batches:
        assert np.bincount(sets[batch[:, 0]], minlength=3).tolist() == [3, 3, 2]
        assert len(set(labels[batch[:, 0]])) == 8
        assert (labels[batch] == labels[batch][:, :1]).all()
    assert len({*labels[batches].ravel().tolist()}) >= (23 if epoch == "identities" else 24)
    places = sets[batches[:, :, 0]]
    assert not (places == places[0]).all()  # in random order, so that ranks do not have a set each
    assert (sampler.batches(0) == batches).all()
    assert not (sampler.batches(1) == batches).all()


def test_a_set_that_is_too_small_to_be_balanced_is_named():
    labels, sets = np.repeat(np.arange(6), 2), np.repeat([0, 1], [2, 10])
    with pytest.raises(SamplerError, match=r"2 identities of few, which has 1: .*batch_size to at most 4"):
        IdentityBatchSampler(labels, 4, 2, sets=sets, set_names=("few", "many"))
    with pytest.raises(SamplerError, match=r"2 identities .* for 3 data sets: set sampler.batch_size to at least 6"):
        IdentityBatchSampler(labels, 2, 2, sets=np.repeat([0, 1, 2], 4))


@pytest.mark.parametrize(
    ("arguments", "spelled"),
    [
        (["dataset=[a]"], ["dataset=a"]),
        (["dataset=a"], ["dataset=a"]),
        (["dataset=['table dataset.manifest=x y.csv',b]".replace("x y", "x")],
         ["dataset=table", 'dataset.manifest="x.csv"', 'union=["b"]']),
        (["dataset=[a,b]", "dataset.image_size=[64,32]"],
         ["dataset=a", "union=[\"b 'dataset.image_size=[64,32]'\"]", "dataset.image_size=[64,32]"]),
        (["dataset=['a dataset.pad_test=true',b]", "dataset.pad_test=false"],
         ["dataset=a", "dataset.pad_test=true", 'union=["b dataset.pad_test=false"]']),
    ],
)  # fmt: skip
def test_a_list_of_data_sets_is_spelled_out(arguments, spelled):
    assert one_dataset_each(arguments, "union") == spelled


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dataset=[a,b]", "dataset.root=x"], "dataset.root=x: of which data set? Write it into its entry"),
        (["dataset=[a,3]"], "dataset=[a,3]: give names of data sets"),
        (["dataset=[]"], "dataset=[]: give names of data sets"),
        (["dataset=a,[a,b]", "-m"], "write -m dataset=a union=[],[b]"),
        (["dataset=[a,b]", "union=[c]"], "leave union= out"),
        (["dataset=[a,b]", "dataset=[c]"], "write one list"),
    ],
)
def test_a_list_that_can_t_be_read_says_what_to_type(arguments, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        one_dataset_each(arguments, "union")


def test_a_training_on_two_sets_records_both_and_is_tested_on_both(tiny_config, tmp_path):
    config = union_of(tiny_config, other(), more=("sampler.balance=per_set", "loading.cache=packed",
                                                  f"loading.cache_root={tmp_path / 'cache'}"))  # fmt: skip
    result = train(config, tmp_path / "both")
    alone = load_manifest("synthetic_reid", config.dataset.root, **OPTIONS)
    assert result.protocol.dataset == "synthetic_reid"
    assert result.data["fingerprint"] == alone.fingerprint
    assert [(each["name"], each["identities"]) for each in result.data["trained_on"]] == [
        ("synthetic_reid", 4), ("synthetic_reid_2", 4),
    ]  # fmt: skip
    assert list(result.further) == ["synthetic_reid_2"]
    assert read_result(tmp_path / "both" / "result.json").data == result.data
    shown = metrics_table(result)
    assert (
        "Trained on synthetic_reid (4 identities, 16 images) and synthetic_reid_2 (4 identities, 16 images)." in shown
    )
    caches = {path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")}
    assert len(caches) == 4  # a training and a test part of each
    # A training on the second set alone finds its part.
    own = tiny_config("trainer.max_epochs=1", "loading.cache=packed", f"loading.cache_root={tmp_path / 'cache'}",
                      "++dataset.options.seed=1")  # fmt: skip
    train(own, tmp_path / "one")
    assert {path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")} == caches

    changed = tiny_config("trainer.max_epochs=1", f"ckpt_path={tmp_path / 'both' / 'last.ckpt'}")
    with pytest.raises(
        ConfigError, match=r"was trained on synthetic_reid and synthetic_reid .*, this run is on synthetic_reid\."
    ):
        train(changed, tmp_path / "changed")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (other(size="[32,16]"), r"\[64, 32\] and synthetic_reid \[32, 16\].*dataset\.image_size=\[64,32\] beside"),
        ("no_such_set", "dataset: no_such_set: .*no_such_set"),
        ("synthetic_reid dataset.rot=a", "dataset: synthetic_reid dataset.rot=a: .*rot"),
        ("market1501 dataset.image_size=[64,32] dataset.root=/not/there", "market1501: there is no folder /not/there"),
    ],
)  # fmt: skip
def test_sets_that_do_not_fit_are_named(tiny_config, tmp_path, entry, said):
    with pytest.raises((ConfigError, DatasetError), match=said):
        train(union_of(tiny_config, entry), tmp_path)


def test_a_set_twice_is_refused(tiny_config, tmp_path):
    with pytest.raises(DatasetError, match="synthetic_reid: the same data set is in the union twice"):
        train(union_of(tiny_config, other(seed=0)), tmp_path)


def test_re_id_and_retrieval_sets_are_no_union(tiny_config, tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
    rows = {"path": [f"{n}.png" for n in range(4)], "label": [0, 0, 1, 1], "split": ["train", "train", "test", "test"]}
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    config = union_of(tiny_config, f"table dataset.manifest={tmp_path / 'mine.csv'} dataset.image_size=[64,32]")
    with pytest.raises(
        ConfigError, match=r"synthetic_reid has dataset\.protocol=reid and mine retrieval: a union is of re-ID"
    ):
        read_members(config, load_manifest("synthetic_reid", config.dataset.root, **OPTIONS))


def test_balance_needs_several_sets(tiny_config, tmp_path):
    with pytest.raises(SamplerError, match=r"there is one data set; train on several with dataset=\[a,b\]"):
        train(tiny_config("sampler.balance=per_set"), tmp_path)


def test_a_data_set_of_a_plugin_in_a_union(tiny_config, tiny_data, plugin, tmp_path):
    plugin(
        "mine",
        f"""
        from bdbnet import plugins
        from bdbnet.datasets import Manifest, load_manifest

        @plugins.dataset("mine_people")
        def read(root, seed=2):
            found = load_manifest("synthetic_reid", root, seed=seed, **{OPTIONS})
            return Manifest(found.table, found.root, "mine", found.label_names)
        """,
    )
    plugins.load(["mine"])
    root = tiny_data / "synthetic_reid"
    registered = f"mine_people dataset.root={root} dataset.image_size=[64,32]"
    by_reader = (
        f"custom dataset.reader=mine.read dataset.root={root} dataset.image_size=[64,32] +dataset.options.seed=3"
    )
    result = train(union_of(tiny_config, registered, by_reader), tmp_path)
    assert [each["name"] for each in result.data["trained_on"]] == ["synthetic_reid", "mine", "mine_2"]
    assert list(result.further) == ["mine", "mine_2"]
    assert all(values["valid_queries"] > 0 for values in result.further.values())


@pytest.mark.end_to_end
def test_a_union_that_is_typed_as_a_list_trains(tiny_data, tmp_path):
    first, second = other(seed=0), other()
    done = run(
        "train", f'dataset=["{first}","{second}"]', f"data_root={tiny_data}", "backbone=osnet_x0_25", "sampler.batch_size=8",
        "sampler.balance=per_set", "trainer.max_epochs=1", "trainer.accelerator=cpu", "loading.num_workers=0", "run_name=both",
        folder=tmp_path, log=tmp_path / "log", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "outputs" / "train" / "both" / "result.json")
    assert [(each["name"], each["images"]) for each in result.data["trained_on"]] == [
        ("synthetic_reid", 16), ("synthetic_reid_2", 16),
    ]  # fmt: skip
    assert list(result.further) == ["synthetic_reid_2"]
    assert (
        "Trained on synthetic_reid (4 identities, 16 images) and synthetic_reid_2 (4 identities, 16 images)."
        in done.stdout
    )
    assert "On synthetic_reid_2: Rank-1 " in done.stdout
