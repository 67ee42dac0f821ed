"""Searching stored embeddings: from a command's settings to the table and the page of what was found."""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import forked_commands
from bdbnet.config import ConfigError, config_dir
from bdbnet.datasets import Manifest
from bdbnet.evaluation.calibration import Calibration
from bdbnet.evaluation.embedder import EmbeddingError
from bdbnet.gallery import EmbeddingStore, StoreError, write_store
from bdbnet.gallery.embedding import Embedder, build_embedder, stamp_of
from bdbnet.gallery.indexes.exact import GalleryIndexError
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.searching import ENGINES, FOUND, PAGE, read_queries, results_text, search
from bdbnet.gallery.shards import embed_into
from bdbnet.gallery.store import ModelStamp
from bdbnet.loading.sources import find_images
from calibrations import calibration
from forked_commands import Done


@pytest.fixture(scope="module")
def tables(rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables of the rendered gallery and queries, with a camera and an hour of 1 January 2024 for each image."""
    folder = tmp_path_factory.mktemp("tables")
    found = {}
    for split in ("gallery", "query"):
        table = rendered.subset(split).table.drop(columns="split")
        table["time"] = [f"2024-01-01T{number % 24:02d}:00:00" for number in range(len(table))]
        found[split] = folder / f"{split}.csv"
        table.to_csv(found[split], index=False)
    return found


@pytest.fixture(scope="module")
def stores(
    tables: dict[str, Path], rendered: Manifest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Embeddings of gallery and queries."""
    root = tmp_path_factory.mktemp("stores")
    for split, table in tables.items():
        embed_into(root / split, embedder, find_images(table, root=rendered.root), batch_size=8, num_workers=0)
    return {split: root / split for split in tables}


@pytest.fixture
def settings(stores: dict[str, Path], tables: dict[str, Path], tmp_path: Path) -> Callable[..., DictConfig]:
    """``settings("key=value", ...)``: configuration of a search for the rendered queries, files of engines in tmp_path."""

    def build(*overrides: str, source: str | None = None) -> DictConfig:
        shared = [
            f"index={stores['gallery']}",
            source or f"queries={stores['query']}",
            f"index_folder={tmp_path / 'engine'}",
        ]
        shared += ["accelerator=cpu", "num_workers=0", "batch_size=8", "k=5", "run_name=test"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("search", [*shared, *overrides])

    return build


def naive_ranking(stores: dict[str, Path], keep: Callable[[pd.Series, pd.Series], bool]) -> list[list[str]]:
    """Paths of the gallery images that `keep(query, image)` lets through, nearest first, by an explicit sort."""
    query, gallery = EmbeddingStore.open(stores["query"]), EmbeddingStore.open(stores["gallery"])
    found = []
    for (_, asked), embedding in zip(query.table.iterrows(), query.embeddings, strict=True):
        away = np.linalg.norm(gallery.embeddings.astype(float) - embedding, axis=1)
        rows = [(distance, path) for (_, image), distance, path in
                zip(gallery.table.iterrows(), away, gallery.table["path"], strict=True) if keep(asked, image)]  # fmt: skip
        found.append([path for _, path in sorted(rows)])
    return found


def test_table_and_page_hold_what_is_nearest(settings, stores, tmp_path):
    found = search(settings("pictures=3"), tmp_path / "out")
    rows, facts = found.rows, found.facts
    expected = naive_ranking(stores, lambda query, image: True)
    assert rows.groupby("query_index")["gallery_path"].apply(list).tolist() == [paths[:5] for paths in expected]
    assert rows["rank"].tolist() == [1, 2, 3, 4, 5] * 8
    assert (rows["correct"] == (rows["query_label"] == rows["gallery_label"])).all()
    assert {"distance", "query_path", "query_camera", "gallery_camera", "gallery_time"} <= {*rows}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / FOUND), rows)
    page = (tmp_path / "out" / PAGE).read_text()
    assert page.count('class="query"') == 3
    assert page.count("data:image/jpeg;base64,") == 3 * 6
    assert page.count('<li class="right">') == rows.loc[rows["query_index"] < 3, "correct"].sum()
    assert "http" not in page.replace("http-equiv", "")
    names = ["/".join(Path(path).parts[-2:]) for path in rows.loc[rows["query_index"] < 3, "gallery_path"]]
    assert re.findall('<span class="file">(.*?)</span>', page.replace("<wbr>", "")) == names
    assert facts["engine"] == "exact"
    lines = results_text(found, 2).splitlines()
    assert len(lines) == 2 * 6
    assert lines[1].split()[0] == "1"
    assert rows["gallery_path"][0] in lines[1]


def test_searches_by_the_distance_that_the_network_is_meant_for(settings, stores, embedder, tmp_path, monkeypatch):
    assert search(settings(), tmp_path / "out").facts["distance"] == "euclidean"
    assert "distance" not in json.loads((stores["gallery"] / "meta.json").read_text())["model"]
    monkeypatch.setattr(embedder, "distance_name", "cosine")
    stamp = stamp_of(embedder)
    assert ModelStamp.from_json(stamp.record()).distance == "cosine"
    meta = json.loads((stores["gallery"] / "meta.json").read_text())
    meta["model"]["distance"] = stamp.record()["distance"]
    shutil.copytree(stores["gallery"], tmp_path / "cosine")
    (tmp_path / "cosine" / "meta.json").write_text(json.dumps(meta))
    of_cosine = [f"index={tmp_path / 'cosine'}"]
    found = search(settings(*of_cosine), tmp_path / "by_angle")
    assert found.facts["distance"] == "cosine"
    pd.testing.assert_frame_equal(
        found.rows, search(settings(*of_cosine, "distance=cosine"), tmp_path / "by_angle").rows
    )
    assert search(settings(*of_cosine, "distance=euclidean"), tmp_path / "far").facts["distance"] == "euclidean"


@pytest.fixture
def stamped(stores, tmp_path):
    """``stamped(calibration)``: the gallery with a calibration in its stamp."""

    def build(made: Calibration) -> Path:
        shutil.copytree(stores["gallery"], tmp_path / "stamped", dirs_exist_ok=True)
        meta = json.loads((tmp_path / "stamped" / "meta.json").read_text())
        meta["model"]["calibration"] = made.record()
        (tmp_path / "stamped" / "meta.json").write_text(json.dumps(meta))
        return tmp_path / "stamped"

    return build


def test_results_are_marked_by_the_calibration_in_the_gallerys_stamp(settings, stores, stamped, embedder, tmp_path):
    first = search(settings("k=19"), tmp_path / "plain")
    assert "mark" not in first.rows
    assert first.facts["marks"] == "none: no threshold is known for this network; python -m bdbnet.calibrate finds one"
    low, high = np.quantile(first.rows["distance"], [0.3, 0.6])
    made = calibration(float(low), float(high), **{k: v for k, v in embedder.made_for.items() if k != "distance"})
    found = search(settings(f"index={stamped(made)}", "k=19", "pictures=2"), tmp_path / "out")
    wanted = ["same" if far < low else "unsure" if far < high else "not same" for far in found.rows["distance"]]
    assert found.rows["mark"].tolist() == wanted
    assert set(wanted) == {"same", "unsure", "not same"}
    assert pd.read_parquet(tmp_path / "out" / FOUND)["mark"].tolist() == wanted
    page = (tmp_path / "out" / PAGE).read_text()
    for mark in ("same", "unsure", "not same"):
        shown = f'<span class="mark {mark.replace(" ", "-")}">{mark}</span>'
        assert page.count(shown) == (found.rows["query_index"] < 2)[found.rows["mark"] == mark].sum()
    assert results_text(found, 1).splitlines()[1].split()[3] == found.rows["mark"][0]
    assert found.facts["marks"].startswith(
        f"same: nearer than {low:#.3g}, unsure: up to {high:#.3g} (the gallery: calibrated"
    )


def test_a_calibration_of_another_distance_or_of_other_settings_marks_nothing(settings, stamped, embedder, tmp_path):
    rest = {name: value for name, value in embedder.made_for.items() if name != "distance"}
    of_search = settings(f"index={stamped(calibration(1.0, 2.0, **rest))}", "distance=cosine")
    found = search(of_search, tmp_path / "cosine")
    assert "mark" not in found.rows
    assert found.facts["marks"] == (
        "none: the calibration of the gallery was made for distance euclidean, not cosine: search with distance=euclidean, or "
        "calibrate again with python -m bdbnet.calibrate"
    )
    assert 'class="mark' not in (tmp_path / "cosine" / PAGE).read_text()
    flipped = stamped(calibration(1.0, 2.0, **{**rest, "flip": True}))
    said = search(settings(f"index={flipped}"), tmp_path / "flip").facts["marks"]
    assert said.startswith("none: the calibration of the gallery was made for flip True, not False: calibrate again")


def test_the_network_that_embeds_the_queries_brings_the_newer_calibration(
    settings, stamped, embedder, rendered, tables, tmp_path
):
    rest = {name: value for name, value in embedder.made_for.items() if name != "distance"}
    calibrated = Embedder(
        embedder.network, embedder.preprocessing, embedder.settings, origin=embedder.origin,
        calibration=calibration(0.5, 2.0, **rest),
    )  # fmt: skip
    calibrated.save(tmp_path / "model")
    index = stamped(calibration(1.0, 2.0, **rest))
    source = f"images={tables['query']}"
    overrides = f"index={index}", f"root={rendered.root}", f"checkpoint={tmp_path / 'model'}"
    by_network = search(settings(*overrides, source=source), tmp_path / "a").facts["marks"]
    assert by_network.startswith("same: nearer than 0.500, ")
    assert search(settings(f"index={index}"), tmp_path / "b").facts["marks"].startswith("same: nearer than 1.00, ")


def test_images_are_embedded_as_the_index_was(settings, rendered, stores, tables, tmp_path):
    from_table = settings(f"root={rendered.root}", source=f"images={tables['query']}")
    from_images = search(from_table, tmp_path / "images").rows
    from_store = search(settings(), tmp_path / "store").rows
    pd.testing.assert_frame_equal(from_images, from_store)
    one = EmbeddingStore.open(stores["gallery"]).table["path"][7]
    rows = search(settings("k=1", source=f"images={rendered.root / one}"), tmp_path / "one").rows
    assert rows["gallery_path"].tolist() == [one]  # an image of the gallery is its own nearest
    assert rows["distance"][0] < 1e-3
    assert "correct" not in rows
    assert 'class="right"' not in (tmp_path / "one" / PAGE).read_text()


def test_queries_that_cannot_be_read_are_left_out_and_listed(settings, rendered, stores, tables, tmp_path):
    photos, gallery = tmp_path / "photos", EmbeddingStore.open(stores["gallery"])
    photos.mkdir()
    for number, name in enumerate(pd.read_csv(tables["query"])["path"].tolist()[:3]):
        shutil.copy(rendered.root / name, photos / f"{number}.jpg")
    expected = read_queries(settings(source=f"images={photos}"), gallery)
    (photos / "00.jpg").write_text("no image")
    config = settings("on_error=skip", source=f"images={photos}")
    queries = read_queries(config, gallery)
    assert np.allclose(queries.embeddings, expected.embeddings, atol=1e-4)
    assert queries.table["path"].tolist() == expected.table["path"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    found = search(config, tmp_path / "found")
    listed = tmp_path / "found" / "skipped.csv"
    assert found.facts["queries"] == f"3 from {photos}; left out 1 that can't be read: {listed}"
    assert pd.read_csv(listed)["path"].tolist() == ["00.jpg"]


@pytest.mark.parametrize(
    ("on_error", "error", "said"),
    [
        ("raise", ConfigError, r"0\.jpg.*\. on_error=skip leaves out all such images and lists them in skipped\.csv$"),
        ("skip", EmbeddingError, r": no image can be read; the first: .*0\.jpg"),
    ],
)
def test_a_query_that_cannot_be_read_ends_a_search(on_error, error, said, settings, stores, tmp_path):
    (tmp_path / "0.jpg").write_text("no image")
    config = settings(f"on_error={on_error}", source=f"images={tmp_path / '0.jpg'}")
    with pytest.raises(error, match=said):
        read_queries(config, EmbeddingStore.open(stores["gallery"]))


@pytest.mark.parametrize("engine", ["exact", "faiss_ivf", "faiss_hnsw", "milvus"])
def test_filters_hold_in_every_engine(settings, stores, tmp_path, engine):
    six, noon = 1704088800, 1704110400
    wanted = naive_ranking(
        stores, lambda query, image: query["camera"] != image["camera"] and six <= image["time"] < noon
    )
    overrides = ["same_camera=false", "after=2024-01-01T06:00", f"before={noon}", f"engine={engine}", "k=19"]
    rows, _, facts = search(settings(*overrides), tmp_path / "out")
    assert rows.groupby("query_index")["gallery_path"].apply(list).tolist() == wanted
    assert facts["filter"] == f"not the query's own camera, after 2024-01-01T06:00, before {noon}"
    assert ("recall@10 1.0000 over 19 gallery images (each finds itself too)" in facts["engine"]) == (engine != "exact")


def test_queries_for_which_nothing_is_found_are_listed(settings, tmp_path):
    found = search(settings("after=2025-01-01", "pictures=3"), tmp_path)
    assert len(found.rows) == 0
    page = (tmp_path / PAGE).read_text()
    assert "3 of 8 queries" in page
    assert page.count("nothing found") == 3
    assert results_text(found, 2).splitlines() == [f"{path}  nothing found" for path in found.queries[:2]]


def test_an_index_and_its_recall_are_kept(settings, tmp_path, monkeypatch):
    *_, first = search(settings("engine=faiss_ivf"), tmp_path / "out")
    record = json.loads((tmp_path / "engine" / "faiss_ivf.recall.json").read_text())
    assert record["quality"]["recall"] == 1
    monkeypatch.setattr(FaissIndex, "_build", lambda self: pytest.fail("built again"))
    *_, again = search(settings("engine=faiss_ivf"), tmp_path / "out")
    assert "built in" in first["engine"]
    assert "kept from before" in again["engine"]
    assert first["engine"].partition("; ")[2] == again["engine"].partition("; ")[2]
    search(settings("engine=faiss_ivf", "ivf.probes=1", "overwrite=true"), tmp_path / "out")
    assert json.loads((tmp_path / "engine" / "faiss_ivf.recall.json").read_text())["settings"]["probes"] == 1


@pytest.mark.parametrize("engine", ["faiss_ivf", "faiss_hnsw", "milvus"])
def test_an_index_grows_with_its_gallery(settings, stores, tmp_path, engine):
    folder = Path(shutil.copytree(stores["gallery"], tmp_path / "gallery"))
    options = [f"index={folder}", f"engine={engine}", "overwrite=true", "ivf.probes=1000"]
    search(settings(*options), tmp_path / "out")
    store = EmbeddingStore.open(folder)
    embeddings, table = np.array(store.embeddings[:2]), store.table[:2]
    store = store.remove(store.table["path"][:3]).add(embeddings + 0.01, table)
    found = search(settings(*options), tmp_path / "out")
    assert ", 2 images added and 3 taken out in " in found.facts["engine"]
    columns = ["query_index", "rank", "gallery_path"]
    exact = search(settings(*options, "engine=exact"), tmp_path / "out")
    pd.testing.assert_frame_equal(found.rows[columns], exact.rows[columns])
    assert "kept from before" in search(settings(*options), tmp_path / "out").facts["engine"]


def test_what_another_search_found_is_not_replaced(settings, tmp_path):
    first = search(settings(), tmp_path).rows
    with pytest.raises(ConfigError, match=r"k was 5, is 4.*run_name=<another name>.*overwrite=true"):
        search(settings("k=4"), tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / FOUND), first)
    search(settings("batch_size=3"), tmp_path)  # the same search
    search(settings("k=4", "overwrite=true"), tmp_path)
    assert pd.read_parquet(tmp_path / FOUND)["rank"].max() == 4
    first.to_parquet(tmp_path / FOUND)  # as earlier versions left it
    with pytest.raises(ConfigError, match=r"does not say by which settings.*overwrite=true"):
        search(settings("k=4"), tmp_path)


def test_a_gallery_and_its_checkpoint_move_together(settings, photos, weights, embedder, tmp_path):
    """A gallery says where its checkpoint lies as seen from itself, not where that was on one machine."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "train").mkdir(parents=True)
    shutil.copy(weights, old / "train" / "last.pth")
    moving = replace(embedder.origin, source=str(old / "train" / "last.pth"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "origin", moving)
        embed_into(old / "gallery", embedder, find_images(photos), batch_size=8, num_workers=0)
    text = (old / "gallery" / "meta.json").read_text()
    assert EmbeddingStore.open(old / "gallery").model.place == "../train/last.pth"
    assert str(tmp_path) not in text.replace(json.loads(text)["root"], "").replace(json.loads(text)["source"], "")
    old.rename(new)
    source = f"images={photos / 'day' / '001.jpg'}"
    overrides = [f"index={new / 'gallery'}", "k=1"]
    assert search(settings(*overrides, source=source), tmp_path / "a").rows["gallery_path"].tolist() == ["day/001.jpg"]
    (new / "train" / "last.pth").rename(new / "gallery" / "last.pth")
    assert len(search(settings(*overrides, source=source), tmp_path / "b").rows) == 1
    (new / "gallery" / "last.pth").unlink()
    with pytest.raises(ConfigError, match=r"train/last.pth: no such file.*checkpoint=FILE \(last.pth \(fingerprint "):
        search(settings(*overrides, source=source), tmp_path / "c")


def test_a_gallery_of_an_earlier_version_names_its_checkpoint_by_a_path(
    settings, photos, weights, photo_store, tmp_path
):
    shutil.copytree(photo_store.folder, tmp_path / "gallery")
    meta = json.loads((tmp_path / "gallery" / "meta.json").read_text())
    del meta["model"]["place"]
    meta["model"]["checkpoint"] = str(weights)
    (tmp_path / "gallery" / "meta.json").write_text(json.dumps(meta))
    source = f"images={photos / 'day' / '001.jpg'}"
    assert len(search(settings(f"index={tmp_path / 'gallery'}", source=source), tmp_path / "out").rows) == 5


def test_changed_embeddings_are_not_searched(settings, stores, tmp_path):
    shutil.copytree(stores["gallery"], tmp_path / "gallery")
    file = tmp_path / "gallery" / "embeddings.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    file.write_bytes(content)
    index = f"index={tmp_path / 'gallery'}"
    with pytest.raises(StoreError, match=r"damaged or was changed.*overwrite=true.*verify=false"):
        search(settings(index), tmp_path / "out")
    assert len(search(settings(index, "verify=false"), tmp_path / "out").rows) == 40


def test_a_page_shows_no_image_outside_of_the_galleries_folder(settings, stores, rendered, tmp_path):
    """A gallery may come from somebody else."""
    outside = tmp_path / "mine.png"
    shutil.copy(rendered.paths[0], outside)
    store = EmbeddingStore.open(stores["gallery"])
    paths = [str(outside), os.path.relpath(outside, store.root), "<script>.png"]
    table = store.table.assign(path=[paths[number % 3] for number in range(len(store))])
    write_store(tmp_path / "foreign", [store.embeddings], table, root=store.root, model=store.model)
    search(settings(f"index={tmp_path / 'foreign'}", "pictures=8", "k=6"), tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text()
    assert page.count("<img") == 8  # the queries
    assert "(not in the data set&#x27;s folder)" in page
    assert "<script" not in page


def test_another_network_is_refused(settings, photos, stores, weights, tmp_path):
    state = torch.load(weights)
    name = next(key for key in state if key.endswith("weight"))
    state[name] += 0.1
    torch.save(state, tmp_path / "other.pth")
    source = f"images={photos}"
    with pytest.raises(StoreError, match="differ in the weights"):
        search(settings(f"checkpoint={tmp_path / 'other.pth'}", source=source), tmp_path)
    with pytest.raises(ConfigError, match=r"none\.pth: no such file, but the network in it made the embeddings"):
        search(settings(f"checkpoint={tmp_path / 'none.pth'}", source=source), tmp_path)
    shutil.copytree(stores["query"], tmp_path / "other")
    meta = json.loads((tmp_path / "other" / "meta.json").read_text())
    meta["model"] |= {"fingerprint": "0" * 64, "flip": True}
    (tmp_path / "other" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="they differ in flip False and True"):
        search(settings(source=f"queries={tmp_path / 'other'}"), tmp_path)
    assert not (tmp_path / FOUND).exists()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["k=20"], ConfigError, "k=20: .* holds 19 images"),
        (["images=x.jpg"], ConfigError, "set exactly one of images="),
        (["queries=null"], ConfigError, "set exactly one of images="),
        (["engine=annoy"], ConfigError, "engine=annoy: choose one of exact, faiss_ivf"),
        (["after=yesterday"], ConfigError, "after=yesterday: give seconds since 1970, or a date"),
        (["index=nowhere"], StoreError, "nowhere: there is no such folder"),
        (
            ["engine=milvus", "milvus.uri=http://127.0.0.1:1", "milvus.timeout=2"],
            GalleryIndexError,
            "no Milvus answered",
        ),
        (["engine=faiss_ivf", "ivf.lists=50"], GalleryIndexError, "lists=50"),
        (["distance=manhattan"], GalleryIndexError, "distance must be one of"),
    ],
)
def test_bad_settings_are_named(settings, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        search(settings(*overrides), tmp_path)


def test_filters_need_what_they_filter_by(settings, photos, photo_store, tables, tmp_path):
    with pytest.raises(ConfigError, match=r"same_camera=false: the camera of 51 of the 51 images of .* is not known"):
        search(settings("same_camera=false", source=f"images={photos}"), tmp_path)
    for override in ("after=5", "before=2024-01-01"):
        with pytest.raises(ConfigError, match=f"{override}: no times are known in .*photos"):
            search(settings(f"index={photo_store.folder}", override), tmp_path)


@pytest.mark.end_to_end
def test_the_command_from_a_shell(stores, tables, rendered, tmp_path):
    def run(*arguments: str) -> Done:
        return forked_commands.run("search", *arguments, folder=tmp_path, log=tmp_path / "log")

    queries = f"index={stores['gallery']}", f"images={tables['query']}", f"root={rendered.root}"
    done = run(*queries, "engine=faiss_hnsw", "k=3", "run_name=a")
    assert done.returncode == 0, done.stderr
    assert "recall@10" in done.stdout
    assert "outputs/search/a/search.parquet" in done.stdout
    assert (tmp_path / "outputs/search/a" / PAGE).stat().st_size > 10_000
    assert len([*stores["gallery"].glob("faiss-hnsw.*.index")]) == 1
    wrong = run(*queries, "k=0")
    assert wrong.returncode == 1
    assert wrong.stderr.strip().startswith("error: k=0: give a whole number of at least 1")
    assert "Traceback" not in wrong.stderr


def test_real_embeddings_are_found_by_every_engine(shared_data, make_config, tmp_path):
    """200 gallery images of Market-1501 and their identities' queries, embedded by the published OSNet."""
    rows: dict[str, list[tuple[str, int, int]]] = {"query": [], "bounding_box_test": []}
    with zipfile.ZipFile(shared_data / "Market-1501-v15.09.15.zip") as archive:
        for name in sorted(archive.namelist()):
            match = re.search(r"(query|bounding_box_test)/((\d{4})_c(\d).*\.jpg)$", name)
            if match and match[3] != "0000" and len(rows[match[1]]) < 200:
                rows[match[1]].append((archive.extract(name, tmp_path), int(match[3]), int(match[4])))
    tables = {split: pd.DataFrame(found, columns=["path", "label", "camera"]) for split, found in rows.items()}
    tables["query"] = tables["query"][tables["query"]["label"].isin(tables["bounding_box_test"]["label"])]
    embedder = build_embedder(
        make_config(
            f"checkpoint={shared_data / 'weights' / 'osnet_x0_25_market1501.pth'}",
            "image_size=[256,128]",
            "accelerator=cpu",
        )
    )
    for split, table in tables.items():
        table["path"] = [Path(path).relative_to(tmp_path).as_posix() for path in table["path"]]
        table.to_csv(tmp_path / f"{split}.csv", index=False)
        embed_into(tmp_path / split, embedder, find_images(tmp_path / f"{split}.csv"), batch_size=64, num_workers=0)
    found = {}
    for engine in ENGINES:
        overrides = [f"index={tmp_path / 'bounding_box_test'}", f"queries={tmp_path / 'query'}", f"engine={engine}"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("search", [*overrides, "same_camera=false", "pictures=0", "run_name=test"])
        found[engine] = search(config, tmp_path / engine).rows
    assert found["exact"].groupby("query_index")["correct"].first().mean() > 0.9
    for engine in ENGINES[1:]:
        both = found["exact"].merge(found[engine], on=["query_index", "gallery_path"])
        assert len(both) > 0.98 * len(found["exact"])
        assert (both["distance_x"] == both["distance_y"]).all()
