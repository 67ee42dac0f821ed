"""Embeddings of other programs: every format gives the same numbers, near misses of names are read, bad files are named."""

import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.io import savemat

from bdbnet.config import ConfigError
from bdbnet.datasets import Manifest
from bdbnet.evaluation.calibrating import CalibrationError, Comparison, calibrate
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.evaluate_features import evaluate_features
from bdbnet.evaluation.feature_files import read_arrays
from bdbnet.evaluation.feature_sets import align, assemble
from bdbnet.evaluation.features import KINDS, FeatureError, Role, role_of, sides_of
from bdbnet.evaluation.test_set import EvaluationError
from bdbnet.gallery.stored_features import read_stored
from bdbnet.models import CheckpointError
from bdbnet.reporting import ReportError, read_run, write_report
from bdbnet.results import read_result
from bdbnet.retrieval import reid_metrics

RNG = np.random.default_rng(3)
QUERIES, IMAGES, DIMENSIONS = 12, 30, 6


def side(count):
    labels = np.arange(count) % 6
    embeddings = (RNG.normal(size=(count, DIMENSIONS)) + 0.8 * np.eye(6)[labels]).astype(np.float32)
    return embeddings, labels, RNG.integers(1, 4, count), np.array([f"img/{number:03d}.jpg" for number in range(count)])


QUERY, GALLERY = side(QUERIES), side(IMAGES)
NAMES = ("embeddings", "labels", "cameras")
PLAIN = {
    f"{of}_{name}": values
    for of, side_of in (("query", QUERY), ("gallery", GALLERY))
    for name, values in zip(NAMES, side_of)
}
ROWS = pd.DataFrame(
    {
        "label": np.concatenate([QUERY[1], GALLERY[1]]),
        "camera": np.concatenate([QUERY[2], GALLERY[2]]),
        "split": ["query"] * QUERIES + ["gallery"] * IMAGES,
    }
)
ALL = np.concatenate([QUERY[0], GALLERY[0]])


def write_npz(folder):
    np.savez(folder / "f.npz", **PLAIN)
    return folder / "f.npz"


def write_mat(folder):
    layumi = {
        f"{of}_{name}": value
        for of, side_of in (("query", QUERY), ("gallery", GALLERY))
        for name, value in zip(("f", "label", "cam"), (side_of[0], side_of[1].tolist(), side_of[2].tolist()))
    }
    savemat(folder / "pytorch_result.mat", layumi)
    return folder / "pytorch_result.mat"


def write_torchreid(folder):
    content = {"qf": torch.from_numpy(QUERY[0]), "q_pids": QUERY[1], "q_camids": QUERY[2].tolist()}
    content |= {"gf": torch.from_numpy(GALLERY[0]), "g_pids": torch.from_numpy(GALLERY[1]), "g_camids": GALLERY[2]}
    torch.save(content, folder / "f.pt")
    return folder / "f.pt"


def write_nested(folder):
    names = ("features", "pids", "camids")
    torch.save({"query": dict(zip(names, QUERY)), "gallery": dict(zip(names, GALLERY)), "epoch": 3}, folder / "n.pth")
    return folder / "n.pth"


def write_safetensors(folder):
    safetensors.numpy.save_file(PLAIN, folder / "f.safetensors")
    return folder / "f.safetensors"


def write_parquet(folder):
    pq.write_table(pa.Table.from_pandas(ROWS).append_column("embedding", pa.array(ALL.tolist())), folder / "f.parquet")
    return folder / "f.parquet"


def write_wide_parquet(folder):
    table = ROWS.assign(is_query=ROWS["split"] == "query").drop(columns="split")
    for column in range(DIMENSIONS):
        table[f"emb_{column}"] = ALL[:, column]
    table.sample(frac=1, random_state=1)[[*reversed(table.columns)]].sort_index().to_parquet(folder / "w.parquet")
    return folder / "w.parquet"


def write_whole(folder):
    np.savez(folder / "w.npz", feats=ALL, pid=ROWS["label"], camid=ROWS["camera"], is_query=ROWS["split"] == "query")
    return folder / "w.npz"


WRITERS = [
    write_npz, write_mat, write_torchreid, write_nested, write_safetensors, write_parquet, write_wide_parquet, write_whole,
]  # fmt: skip


@pytest.fixture
def run(tiny_config, tmp_path):
    """``run(path, "evaluation.rerank=true")``: the result of evaluating embeddings, and the notes."""

    def evaluate(path, *overrides, folder=tmp_path / "out"):
        config = tiny_config(f"features={path}", *overrides, command="evaluate")
        return evaluate_features(config, folder, read_folder=read_stored)

    return evaluate


def expected(**settings):
    return reid_metrics(QUERY[0], GALLERY[0], QUERY[1], GALLERY[1], QUERY[2], GALLERY[2], **settings)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_the_numbers_of_its_arrays(write, run, tmp_path):
    result, _ = run(write(tmp_path))
    found = read_result(tmp_path / "out" / "result.json")
    assert found.metrics == result.metrics == pytest.approx({k: float(v) for k, v in expected().items()})
    assert found.protocol.preprocessing == "unknown"
    assert found.protocol.image_size is None
    assert found.embedding_dim == DIMENSIONS


def test_re_ranking_expansion_distance_and_scaling_are_those_of_networks(run, tmp_path):
    path = write_npz(tmp_path)
    result, _ = run(
        path, "evaluation.distance=cosine", "evaluation.rerank={k1:4,k2:2}", "evaluation.query_expansion={k:2}"
    )
    assert result.plain == pytest.approx({k: float(v) for k, v in expected(distance="cosine").items()})
    assert result.metrics != result.plain
    assert (result.protocol.rerank or {})["k1"] == 4
    unit, _ = run(path, "evaluation.normalize=joint", folder=tmp_path / "unit")
    lengths = [of / np.linalg.norm(of, axis=1, keepdims=True) for of in (QUERY[0], GALLERY[0])]
    own = reid_metrics(*lengths, QUERY[1], GALLERY[1], QUERY[2], GALLERY[2])
    assert unit.metrics == pytest.approx({k: float(v) for k, v in own.items()})


def test_analysis_comparison_and_page_are_there_as_for_a_network(run, tmp_path):
    from bdbnet.reporting.compare_runs import compare_runs

    path = write_npz(tmp_path)
    one, other = tmp_path / "euclidean", tmp_path / "cosine"
    run(path, "analysis=true", folder=one)
    run(path, "analysis=true", "evaluation.distance=cosine", folder=other)
    page = write_report(one).read_text()
    assert "their preprocessing is unknown" in page
    assert "pixels;" not in page
    assert "images are not shown" in page
    text, _ = compare_runs(one, other)
    assert "12 queries" in text
    assert json.loads((one / "result.json").read_text())["protocol"]["preprocessing"] == "unknown"


def test_paths_of_images_show_pictures(run, tmp_path):
    from PIL import Image

    (tmp_path / "img").mkdir()
    for path in {*GALLERY[3], *QUERY[3]}:
        Image.new("RGB", (8, 16), (200, 20, 20)).save(tmp_path / path)
    absolute = {
        "query_paths": [f"{tmp_path}/{p}" for p in QUERY[3]],
        "gallery_paths": [f"{tmp_path}/{p}" for p in GALLERY[3]],
    }
    np.savez(tmp_path / "p.npz", **PLAIN, **absolute)
    run(tmp_path / "p.npz")
    assert pd.read_parquet(tmp_path / "out" / "topk.parquet")["query_path"].iloc[0] == "000.jpg"
    assert write_report(tmp_path / "out", queries=2).read_text().count("data:image/jpeg") > 10


def test_junk_is_left_out_and_said(run, tmp_path):
    arrays = {**PLAIN, "gallery_labels": GALLERY[1].copy()}
    arrays["gallery_labels"][:5] = -1
    np.savez(tmp_path / "j.npz", **arrays)
    result, notes = run(tmp_path / "j.npz")
    own = reid_metrics(QUERY[0], GALLERY[0][5:], QUERY[1], GALLERY[1][5:], QUERY[2], GALLERY[2][5:])
    assert result.metrics == pytest.approx({k: float(v) for k, v in own.items()})
    assert any("5 gallery images have the label -1" in note for note in notes)


def test_names_of_people_and_cameras_are_read(run, tmp_path):
    named = dict(PLAIN)
    for of in ("query", "gallery"):
        named[f"{of}_labels"] = np.array([f"person {label}" for label in PLAIN[f"{of}_labels"]])
        named[f"{of}_cameras"] = np.array([f"cam {camera}" for camera in PLAIN[f"{of}_cameras"]])
    np.savez(tmp_path / "names.npz", **named)
    result, _ = run(tmp_path / "names.npz")
    assert result.metrics == pytest.approx({k: float(v) for k, v in expected().items()})


def test_retrieval_needs_no_cameras(run, tmp_path):
    np.savez(tmp_path / "r.npz", **{name: of for name, of in PLAIN.items() if "cameras" not in name})
    result, _ = run(tmp_path / "r.npz", "dataset=features", "dataset.protocol=retrieval")
    nearest = [int(np.argmin([np.linalg.norm(q - g) for g in GALLERY[0]])) for q in QUERY[0]]
    hits = [GALLERY[1][found] == label for found, label in zip(nearest, QUERY[1])]
    assert result.metrics["recall@1"] == pytest.approx(np.mean(hits))


def test_a_single_shot_needs_no_cameras_but_two_images_of_each_label(run, tmp_path):
    embeddings, labels = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 0, 1, 1, 2, 2])
    np.savez(tmp_path / "s.npz", embeddings=embeddings, labels=labels)
    result, _ = run(tmp_path / "s.npz", "dataset=features", "dataset.protocol=reid_single_shot")
    assert result.metrics["valid_queries"] == 3
    assert result.metrics["rank5"] == 1
    np.savez(tmp_path / "t.npz", embeddings=embeddings[:5], labels=labels[:5])
    with pytest.raises(EvaluationError, match="1 identities have one image, the first is 2"):
        run(tmp_path / "t.npz", "dataset=features", "dataset.protocol=reid_single_shot", folder=tmp_path / "other")


def test_two_files_are_gallery_and_queries(run, tmp_path):
    for name, of in (("g", GALLERY), ("q", QUERY)):
        np.savez(tmp_path / f"{name}.npz", features=of[0], pids=of[1], camids=of[2])
    result, notes = run(tmp_path / "g.npz", f"queries={tmp_path / 'q.npz'}")
    assert result.metrics == pytest.approx({k: float(v) for k, v in expected().items()})
    assert any("pids as labels" in note for note in notes)


def test_a_bare_tensor_goes_with_a_data_set(run, tiny_config, tmp_path):
    from bdbnet.loading.datamodule import test_rows as rows_of
    from bdbnet.loading.from_config import build_manifest

    data = [
        "dataset=synthetic_reid",
        *(f"dataset.options.{key}={value}".replace(" ", "") for key, value in TINY.items()),
    ]
    manifest = build_manifest(tiny_config("features=x", *data, command="evaluate"))
    table = rows_of(manifest)
    embeddings = RNG.normal(size=(len(table), 4)).astype(np.float32)
    order = manifest.table[manifest.table["split"] != "train"].merge(
        table.assign(row=np.arange(len(table))), on=["path", "split"]
    )["row"]
    torch.save(torch.from_numpy(embeddings[order]), tmp_path / "cache.pth")
    result, _ = run(tmp_path / "cache.pth", *data)
    query = (table["split"] == "query").to_numpy()
    columns = [table[name].to_numpy() for name in ("label", "camera")]
    own = reid_metrics(embeddings[query], embeddings[~query], *(of[part] for of in columns for part in (query, ~query)))
    assert result.metrics == pytest.approx({k: float(v) for k, v in own.items()})
    assert result.data["fingerprint"] == manifest.fingerprint
    # By path in any order.
    shuffled = RNG.permutation(len(table))
    np.savez(tmp_path / "paths.npz", embeddings=embeddings[shuffled], paths=table["path"].to_numpy(str)[shuffled])
    again, _ = run(tmp_path / "paths.npz", *data, folder=tmp_path / "again")
    assert again.metrics == result.metrics
    # Labels of another order are noticed.
    np.savez(tmp_path / "wrong.npz", embeddings=embeddings, labels=np.roll(table["label"].to_numpy(), 1))
    with pytest.raises(FeatureError, match=r"wrong.npz: labels, row .* in another order"):
        run(tmp_path / "wrong.npz", *data, folder=tmp_path / "wrong")
    np.savez(tmp_path / "short.npz", embeddings=embeddings[:-1])
    with pytest.raises(FeatureError, match=r"test images. Give the embeddings of all of them"):
        run(tmp_path / "short.npz", *data, folder=tmp_path / "short")


TINY = {
    "train_identities": 4, "test_identities": 4, "images_per_camera": 2, "cameras": 2, "distractors": 2,
    "image_size": [32, 16], "workers": 1,
}  # fmt: skip


def test_a_stored_gallery_is_a_file_of_embeddings_too(run, tiny_config, tmp_path):
    from bdbnet.gallery.store import ModelStamp, write_store

    stamp = ModelStamp("f" * 64, "x.pth", {}, DIMENSIONS, (4, 4))
    some = GALLERY[2].copy()
    some[5] = -1
    for name, of in (("g", GALLERY), ("q", QUERY), ("some", (*GALLERY[:2], some, GALLERY[3]))):
        table = pd.DataFrame({"path": of[3], "label": of[1], "camera": of[2]})
        (tmp_path / name).mkdir()
        write_store(tmp_path / name, [of[0]], table, root=tmp_path, model=stamp)
    result, _ = run(tmp_path / "g", f"queries={tmp_path / 'q'}")
    assert result.metrics == pytest.approx({k: float(v) for k, v in expected().items()})
    with pytest.raises(FeatureError, match="camera -1 is negative, so some images have none"):
        run(tmp_path / "some", f"queries={tmp_path / 'q'}", folder=tmp_path / "other")


# Bad input: each error names the file and the array, and says what to do


def changed(**arrays):
    return {name: of for name, of in (PLAIN | arrays).items() if of is not None}


WRONG = {
    "other length": (changed(gallery_labels=GALLERY[1][:-1]), "gallery_labels has 29 values.*30 rows"),
    "NaN": (changed(query_embeddings=np.where(np.eye(12, 6) > 0, np.nan, QUERY[0])), "query_embeddings, row 1: holds NaN"),
    "cameras": (changed(query_cameras=None, gallery_cameras=None), "cameras are missing.*dataset.protocol=retrieval"),
    "cameras of one side": (changed(gallery_cameras=None, galery_cams=[1]), r"missing.*\. The file also holds galery_cams$"),
    "labels": (changed(query_labels=None), "labels are missing"),
    "whole numbers": (changed(query_embeddings=QUERY[0].astype(int)), "query_embeddings is int64; expected floating"),
    "one dimension": (changed(query_embeddings=QUERY[0][:, 0]), r"query_embeddings has shape \(12,\)"),
    "other dimensions": (changed(query_embeddings=QUERY[0][:, :4]), "has 4 dimensions.*6"),
    "half labels": (changed(query_labels=QUERY[1] + 0.5), "query_labels, row 1: 0.5 is not a whole number"),
    "true labels": (changed(query_labels=QUERY[1] > 2), "query_labels is bool"),
    "labels on two axes": (changed(query_labels=np.zeros((12, 2))), r"query_labels has shape \(12, 2\)"),
    "no gallery": ({k: v for k, v in PLAIN.items() if "query" in k}, "gallery_embeddings are missing"),
    "unknown names": ({"a": QUERY[0], "b": QUERY[1]}, "holds no embeddings, but a, b. Name the arrays query_embeddings"),
    "twice": (changed(q_feat=QUERY[0]), "query_embeddings and q_feat may both be the query embeddings"),
    "negative camera": (changed(query_cameras=QUERY[2] - 9), "camera -8 is negative"),
    "no match": (changed(query_labels=QUERY[1] + 100), "none of the 12 queries has a true match"),
    "names and numbers": (changed(query_labels=QUERY[1].astype(str).astype(object) + "x"), "names on one side|Python objects"),
    "empty": (changed(query_embeddings=np.zeros((0, 6), np.float32)), "query_embeddings is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_file_is_named_with_its_array(case, run, tmp_path):
    arrays, message = WRONG[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FeatureError, match=message) as error:
        run(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)
    assert not (tmp_path / "out" / "result.json").exists()


def test_nothing_in_a_file_is_run(run, tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    np.savez(tmp_path / "o.npz", **{**PLAIN, "query_labels": np.array([Runs()] * QUERIES, object)})
    with pytest.raises(FeatureError, match="refused: it holds Python objects"):
        run(tmp_path / "o.npz")
    torch.save({"qf": Runs()}, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match="refused"):
        run(tmp_path / "o.pt")
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(FeatureError):
        run(tmp_path / "p.npz")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt", ".pth.tar", ".safetensors", ".parquet", ".mat", ".xyz"])
def test_damaged_files_are_named(suffix, run, tmp_path):
    path = tmp_path / f"broken{suffix}"
    for content in (b"", b"this is no file of embeddings" * 40):
        path.write_bytes(content)
        with pytest.raises((FeatureError, CheckpointError), match=f"broken{suffix}"):
            run(path)
    with pytest.raises(FeatureError, match="no such file"):
        run(tmp_path / f"absent{suffix}")
    with pytest.raises(
        FeatureError, match=rf"brokn{suffix}: no such file of embeddings; did you mean .*/broken{suffix}\?"
    ):
        run(tmp_path / f"brokn{suffix}")


def test_a_name_of_torchreid_s_checkpoints_is_read_as_torch_writes_it(tmp_path):
    torch.save({"qf": torch.eye(3), "q_pids": np.arange(3)}, tmp_path / "features.pth.tar")
    arrays = read_arrays(tmp_path / "features.pth.tar")
    assert {name: value.tolist() for name, value in arrays.items()} == {"qf": np.eye(3).tolist(), "q_pids": [0, 1, 2]}


@pytest.mark.parametrize(
    "setting", ["checkpoint=a.ckpt", "image_size=[64,32]", "evaluation.flip=true", "evaluation.precision=bf16-mixed",
                "evaluation.scales=[1,2]", "evaluation.normalize=per_branch", "model=baseline"],
)  # fmt: skip
def test_settings_of_a_network_are_refused(setting, run, tmp_path):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        run(write_npz(tmp_path), setting)


def test_other_embeddings_do_not_replace_a_result(run, tmp_path):
    path = write_npz(tmp_path)
    run(path)
    run(path)
    np.savez(path, **changed(query_labels=QUERY[1][::-1]))
    with pytest.raises(ConfigError, match="overwrite=true"):
        run(path)


@given(st.sampled_from([(kind, name) for kind, names in KINDS.items() for name in names]), st.sampled_from(["query", "gallery"]),
       st.sampled_from(["_", ".", "-", " "]), st.booleans(), st.booleans())  # fmt: skip
def test_a_side_and_a_kind_are_known_in_any_order_and_case(known, of, between, before, upper):
    kind, name = known
    if kind in ("is_query", "is_gallery"):
        return
    parts = [of, name] if before else [name, of]
    written = between.join(parts)
    assert role_of(written.upper() if upper else written) == Role(of, kind)


def test_what_is_left_out_is_said():
    _, notes = sides_of({**PLAIN, "logits": np.zeros(3)}, "x.npz")
    assert notes == ["left out logits"]
    assert OmegaConf.create({"notes": notes})


def many(folder, identities):
    """Queries and gallery of so many identities, two images of each under two cameras on either side."""
    rng = np.random.default_rng(1)
    centres, labels = rng.normal(size=(identities, 8)), np.repeat(np.arange(identities), 2)
    arrays = {}
    for of in ("query", "gallery"):
        arrays[f"{of}_embeddings"] = (centres[labels] + 0.5 * rng.normal(size=(len(labels), 8))).astype(np.float32)
        arrays |= {f"{of}_labels": labels, f"{of}_cameras": np.tile([1, 2], identities)}
    np.savez(folder / "many.npz", **arrays)
    return folder / "many.npz", arrays


def test_a_threshold_is_chosen_on_half_of_the_identities_and_shown_on_the_page(run, tmp_path):
    path, arrays = many(tmp_path, 60)
    folder = tmp_path / "out"
    run(path, "calibrate=true", "fmr=0.02", "evaluation.rerank={k1:4,k2:2}")
    made = Calibration.from_json(json.loads((folder / "calibration.json").read_text()))
    values = [arrays[f"{of}_{name}"] for name in NAMES for of in ("query", "gallery")]
    by_hand = calibrate(*Comparison(*values).halves(1), fmr=0.02, seed=1)
    assert (made.threshold, made.reached, made.true_positive_rate) == (
        by_hand.threshold, by_hand.reached, by_hand.true_positive_rate,
    )  # fmt: skip
    assert made.made_for == {"distance": "euclidean", "normalize": "none", "preprocessing": "unknown"}
    page = write_report(folder, queries=0).read_text()
    section = page[page.index("<h2>The same identity?</h2>") :]
    assert section.count("data:image/svg+xml") == 4  # two figures, light and dark
    assert f"Same identity: nearer than {made.threshold:#.3g}" in section
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(ReportError, match=r"calibration\.json: not a complete calibration .*calibrate=true"):
        write_report(folder)
    run(path, "fmr=0.02", "calibrate=true", "evaluation.rerank={k1:4,k2:2}")
    assert read_run(folder).calibration == made
    run(path, "overwrite=true")
    assert not (folder / "calibration.json").exists()
    assert "The same identity?" not in write_report(folder, queries=0).read_text()


def test_what_can_not_be_calibrated_is_said_before_or_beside_the_metrics(run, tmp_path, capsys):
    path, _ = many(tmp_path, 39)
    with pytest.raises(CalibrationError, match=r"features test: 19 identities on one side of the calibration; 20 are"):
        run(path, "calibrate=true")
    with pytest.raises(ConfigError, match=r"fmr=0\.02: goes with calibrate=true"):
        run(path, "fmr=0.02")
    with pytest.raises(ConfigError, match=r"fmr=3: give a share of the pairs of two people, between 0 and 1"):
        run(path, "fmr=3", "calibrate=true")
    assert not (tmp_path / "out").exists()
    path, _ = many(tmp_path, 60)
    with pytest.raises(CalibrationError, match=r"no threshold for fmr=1e-08: .* Give a larger fmr, or more images"):
        run(path, "fmr=1e-8", "calibrate=true")
    result = read_result(tmp_path / "out" / "result.json")
    assert f"measured: Rank-1 {100 * result.metrics['rank1']:.1f} %" in capsys.readouterr().out


class TestOfADataSet:
    """Embeddings whose paths are those of the images of a data set."""

    PATHS = ("query/1.jpg", "query/2.jpg", "gallery/1.jpg", "gallery/2.jpg")

    def align(self, *, sides=("query", "gallery"), split=("query", "query", "gallery", "gallery")):
        table = pd.DataFrame({"path": self.PATHS, "label": [0, 1, 0, 1], "camera": [1, 1, 2, 2], "split": split})
        arrays = {}
        for of in sides:
            rows = [number for number, path in enumerate(self.PATHS) if path.startswith(of)]
            arrays |= {f"{of}_embeddings": np.eye(4)[rows], f"{of}_paths": np.array(self.PATHS)[rows]}
        manifest = Manifest.from_table(table, ".", "shop", source="shop.csv")
        return align(sides_of(arrays, "f.npz")[0], manifest, table)

    def test_both_sides_are_found_by_their_paths(self):
        assert np.array_equal(self.align().embeddings, np.eye(4))

    @pytest.mark.parametrize(("side", "other"), [("query", "gallery"), ("gallery", "query")])
    def test_a_side_that_is_not_there_is_named(self, side, other):
        with pytest.raises(FeatureError, match=rf"f\.npz: .*the {side} alone; {other}_embeddings are missing"):
            self.align(sides=(side,))

    def test_images_that_are_both_come_together(self):
        with pytest.raises(FeatureError, match=r"shop: its images are queries and gallery at once: give .* together"):
            self.align(split=["test"] * 4)


@pytest.mark.parametrize(
    ("paths", "root", "expected"),
    [
        (["/a/q/1.jpg", "/a/g/2.jpg"], None, (["q/1.jpg", "g/2.jpg"], "/a")),
        (["/a/q/1.jpg", "/a/q/2.jpg"], "/a", (["q/1.jpg", "q/2.jpg"], "/a")),
        (["C:\\a\\1.jpg", "C:\\a\\2.jpg"], None, (["1.jpg", "2.jpg"], "C:/a")),
        (["/a/1.jpg", "/b/2.jpg"], "/a", "dataset.root=/a: .*/b/2.jpg is not below it"),
        (["C:/a/1.jpg", "/b/2.jpg"], None, "f.npz: path: C:/a/1.jpg and /b/2.jpg have no folder in common"),
        (["/b/2.jpg", "C:/a/1.jpg"], None, "f.npz: path: /b/2.jpg and C:/a/1.jpg have no folder in common"),
    ],
)
def test_absolute_paths_are_relative_to_the_root_or_their_common_folder(paths, root, expected):
    arrays = {"embeddings": np.eye(2), "label": [0, 0], "camera": [1, 2], "path": np.array(paths)}
    arrays |= {"is_query": np.array([True, False])}
    sides = sides_of({name: np.asarray(values) for name, values in arrays.items()}, "f.npz")[0]
    if isinstance(expected, str):
        with pytest.raises(FeatureError, match=expected):
            assemble(sides, cameras=True, root=root)
        return
    found = assemble(sides, cameras=True, root=root)
    assert (found.manifest.table["path"].tolist(), str(found.root)) == expected
