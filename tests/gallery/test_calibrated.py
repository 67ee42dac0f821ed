"""The command bdbnet.calibrate: a threshold in a saved folder and in the stamps of galleries, and where it may be used."""

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

import bdbnet
from bdbnet.calibrate import main
from bdbnet.checked import UnfitError
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.embedder import EmbeddingError
from bdbnet.evaluation.load import Wanted, open_embedder
from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.embedding import build_embedder, stamp_of
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from bdbnet.models import CheckpointError
from calibrations import calibration

IDENTITIES = 40


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Table of 40 identities in three images each: a noisy picture of their own, under two cameras, as test images; 20 train."""
    folder, rng, rows = tmp_path_factory.mktemp("people"), np.random.default_rng(0), []
    for identity in range(IDENTITIES + 20):
        own = rng.integers(0, 256, (8, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        for number in range(3):
            noisy = np.clip(own + rng.normal(0, 60, own.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{identity}_{number}.png")
            split = "train" if identity >= IDENTITIES else "query" if number == 0 else "gallery"
            rows.append((f"{identity}_{number}.png", identity, split, min(number, 1)))
    pd.DataFrame(rows, columns=["path", "label", "split", "camera"]).to_csv(folder / "people.csv", index=False)
    return folder / "people.csv"


@pytest.fixture
def command(people, weights, tmp_path, monkeypatch, capsys):
    """``command("key=value", ...)``: exit status, output and errors of the command, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, data=people):
        given = [
            f"checkpoint={weights}",
            "model=baseline",
            "backbone=osnet_x0_25",
            "dataset=table",
            f"dataset.manifest={data}",
        ]
        given += ["image_size=[32,16]", "accelerator=cpu", "loading.num_workers=0", "fmr=0.05", "output=model"]
        monkeypatch.setattr(sys, "argv", ["calibrate", *given, *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_threshold_is_kept_in_the_folder_and_in_galleries_and_answers(command, people, tmp_path):
    status, printed, error = command()
    assert (status, error) == (0, "")
    made = Calibration.from_json(json.loads((tmp_path / "model" / "calibration.json").read_text()))
    assert (made.chosen_on.identities, made.held_out.identities) == (20, 20)
    assert (made.chosen_on.split, made.fmr, made.made_for["image_size"]) == ("test", 0.05, [32, 16])
    assert made.chosen_fmr <= 0.05
    assert f"Same identity: nearer than {made.threshold:#.3g}" in printed
    assert (tmp_path / "model" / "calibration.svg").read_text().count("<image") == 2

    embedder = bdbnet.load(tmp_path / "model", device="cpu")
    assert (embedder.calibration, embedder.threshold) == (made, made.threshold)
    embeddings = embedder.embed([people.parent / f"{name}.png" for name in ("0_0", "0_2", "1_0")])
    away = embedder.distance(embeddings, embeddings)
    np.testing.assert_array_equal(embedder.same(embeddings, embeddings), away < made.threshold)
    np.testing.assert_allclose(
        embedder.same_probability(embeddings, embeddings), np.interp(away, made.distances, made.probabilities)
    )
    # Another distance or other views need another threshold.
    embedder.distance_name = "cosine"
    for ask in (embedder.same, embedder.same_probability):
        with pytest.raises(
            EmbeddingError, match=r"calibrated for distance euclidean, not cosine: calibrate again with"
        ):
            ask(embeddings, embeddings)
    assert embedder.same(embeddings[0], embeddings[0], threshold=0.1)
    embedder.distance_name = "euclidean"
    embedder.settings = replace(embedder.settings, flip=True)
    with pytest.raises(EmbeddingError, match="flip False, not True"):
        embedder.same(embeddings, embeddings)

    # The stamp of a gallery, and what other versions read of one without it.
    again = bdbnet.load(tmp_path / "model", device="cpu")
    images = find_images(people)
    embed_into(tmp_path / "gallery", again, images, batch_size=64, num_workers=0, progress=False)
    assert EmbeddingStore.open(tmp_path / "gallery").model.calibration == made
    again.calibration = again.threshold = None
    assert "calibration" not in stamp_of(again).record()
    with pytest.raises(EmbeddingError, match=r"no threshold is known.*bdbnet\.calibrate"):
        again.same(embeddings, embeddings)
    with pytest.raises(EmbeddingError, match="not calibrated"):
        again.same_probability(embeddings, embeddings)

    # Stored embeddings give the same, and a folder that is there is kept.
    status, _, error = command(f"embeddings={tmp_path / 'gallery'}")
    assert (status, error.strip()[:60]) == (1, "error: output=model: holds a saved network already; give ano")
    assert command(f"embeddings={tmp_path / 'gallery'}", "overwrite=true")[0] == 0
    assert json.loads((tmp_path / "model" / "calibration.json").read_text()) == json.loads(json.dumps(made.record()))


def test_one_part_chooses_and_another_tests(command, tmp_path):
    assert command("split=train", "held_out=test", "distance=cosine")[0] == 0
    made = Calibration.from_json(json.loads((tmp_path / "model" / "calibration.json").read_text()))
    assert (made.chosen_on.split, made.chosen_on.identities) == ("train", 20)
    assert (made.held_out.split, made.held_out.identities) == ("test", IDENTITIES)
    assert made.made_for["distance"] == bdbnet.load(tmp_path / "model", device="cpu").distance_name == "cosine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=null"], "checkpoint= is missing"),
        (["held_out=test"], "held_out=test: the threshold is chosen on these; use half, or another split"),
        (["split=train"], "people train: 10 identities on one side of the calibration; 20 are needed to choose a threshold on"),
        (["fmr=1e-6"], "no threshold for fmr=1e-06: a false positive rate of 1e-06 needs 1,000,000 negative pairs"),
        (["fmr=2"], "fmr=2: give a share between 0 and 1, such as fmr=1e-3"),
        (["fmr=0"], "fmr=0: give a number above 0"),
        (["distance=manhattan"], "distance=manhattan: choose one of"),
        (["embeddings=nowhere"], "embeddings=nowhere: no folder that python -m bdbnet.embed made"),
    ],
)  # fmt: skip
def test_what_can_not_be_calibrated_is_named(command, tmp_path, arguments, message):
    status, _, error = command(*arguments)
    assert status == 1
    assert error.startswith("\nerror: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "model").exists()


def test_a_damaged_calibration_in_a_folder_is_named(embedder, tmp_path):
    made = calibration(1.0, 2.0, **{name: of for name, of in embedder.made_for.items() if name != "distance"})
    embedder_of = type(embedder)
    embedder_of(embedder.network, embedder.preprocessing, calibration=made, origin=embedder.origin).save(tmp_path)
    record = json.loads((tmp_path / "bdbnet.json").read_text())
    record["calibration"]["probabilities"] = [0.1, 0.9, 0.2, 0.1]
    (tmp_path / "bdbnet.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"bdbnet\.json is damaged \(calibration: distances do not ascend"):
        bdbnet.load(tmp_path)


def test_the_end_of_unsure_is_where_the_marks_change():
    made = calibration(1.0, 3.0)
    assert made.unsure_until == pytest.approx(3.0)
    assert made.marks([0.999, 1.0, 2.999, 3.001]).tolist() == ["same", "unsure", "unsure", "not same"]
    steep = Calibration.from_json(
        made.record() | {"distances": [0.0, 0.5, 2.0, 3.0], "probabilities": [1.0, 0.04, 0.02, 0.0]}
    )
    assert (steep.unsure_until, steep.marks([1.0]).tolist()) == (1.0, ["not same"])
    never = Calibration.from_json(made.record() | {"probabilities": [1.0, 0.6, 0.3, 0.2]})
    assert (never.unsure_until, never.marks([99.0]).tolist()) == (float("inf"), ["unsure"])
    with pytest.raises(UnfitError, match="reached"):
        Calibration.from_json(made.record() | {"reached": 3})


def test_an_output_with_other_files_is_refused_before_anything_is_embedded(command, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    monkeypatch.setattr("bdbnet.gallery.calibrated.build_embedder", lambda _: pytest.fail("it went on"))
    status, _, error = command()
    assert (status, "the folder holds notes.txt" in error) == (1, True)
    (tmp_path / "file").write_text("")
    status, _, error = command("output=file")
    assert (status, "a file; give a new or empty folder" in error) == (1, True)


def test_a_network_of_padded_images_stays_one(command, people, tmp_path):
    weights = bdbnet.load("bdb_osnet_x0_25_synthetic", device="cpu")
    weights.preprocessing = replace(weights.preprocessing, pad_to_square=True)
    weights.save(tmp_path / "padded")
    record = build_embedder(
        OmegaConf.create({
            "checkpoint": str(tmp_path / "padded"), "pad_to_square": None, "image_size": None, "accelerator": "cpu",
            "dataset": {"pad_test": None, "test_size": None}, "loading": {"decode_margin": 2},
            "evaluation": {"precision": "32-true", "normalize": "none", "flip": False, "scales": None},
        })
    )  # fmt: skip
    assert record.preprocessing.pad_to_square


def test_a_bare_threshold_is_not_used_with_another_distance(tmp_path):
    embedder = bdbnet.load("bdb_osnet_x0_25_synthetic", device="cpu")
    embedder.threshold = 12.0
    embedder.save(tmp_path / "model")
    assert bdbnet.load(tmp_path / "model", device="cpu").threshold == 12
    with pytest.warns(UserWarning, match="its threshold 12 is for other settings and is left out"):
        other = open_embedder(tmp_path / "model", Wanted(distance="cosine"), device="cpu")
    assert other.threshold is None
