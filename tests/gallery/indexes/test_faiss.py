import json
import sys

import numpy as np
import pytest

from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndexError
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.quality import recall_against_exact

ALL = {"ivf": {"lists": 20, "probes": 20}, "hnsw": {"ef_search": 600}}


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 24))
    embeddings = (centres[rng.integers(0, 40, 600)] + 0.4 * rng.standard_normal((600, 24))).astype(np.float32)
    queries = (centres[rng.integers(0, 40, 30)] + 0.4 * rng.standard_normal((30, 24))).astype(np.float32)
    times = np.where(rng.random(600) < 0.1, np.nan, rng.random(600))
    return embeddings, queries, {"cameras": rng.integers(0, 4, 600), "times": times}


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "allowed",
    [
        Filter(),
        Filter(np.arange(30) % 5 - 1),
        Filter(after=0.5),
        Filter(np.arange(30) % 4, 0.2, 0.6),
        Filter(after=0.98),
        Filter(after=2.0),
    ],
)
def test_a_thorough_search_equals_the_exact_one(gallery, kind, distance, allowed):
    embeddings, queries, columns = gallery
    index = FaissIndex(embeddings, kind=kind, distance=distance, **ALL[kind], **columns)
    expected = ExactIndex(embeddings, distance=distance, **columns).search(queries, 40, allowed=allowed)
    for ours, exact in zip(index.search(queries, 40, allowed=allowed), expected, strict=True):
        np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_usual_settings_find_nearly_all(gallery, kind):
    embeddings, queries, _ = gallery
    assert recall_against_exact(FaissIndex(embeddings, kind=kind), queries) > 0.99


def test_few_lists_miss_some_but_give_as_many_as_there_are(gallery):
    embeddings, queries, columns = gallery
    index = FaissIndex(embeddings, lists=200, probes=1, **columns)
    assert recall_against_exact(index, queries, k=2) < 0.95
    indices, distances = index.search(queries, 600, allowed=Filter(np.zeros(30, int)))
    there = int((columns["cameras"] != 0).sum())
    assert (indices >= 0).sum(1).tolist() == [there] * 30
    assert np.isinf(distances[:, there:]).all()


@pytest.mark.parametrize(("kind", "build"), [("ivf", {"lists": 7}), ("hnsw", {"links": 8})])
def test_a_kept_index_is_read_again_until_something_changes(gallery, tmp_path, kind, build):
    embeddings, queries, _ = gallery
    first = FaissIndex(embeddings, kind=kind, folder=tmp_path)
    assert first.build_seconds is not None
    again = FaissIndex(embeddings, kind=kind, folder=tmp_path, probes=3, ef_search=50)
    assert again.build_seconds is None
    assert again.settings != first.settings
    np.testing.assert_array_equal(
        first.search(queries, 5)[0], FaissIndex(embeddings, kind=kind, folder=tmp_path).search(queries, 5)[0]
    )
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path, **build).build_seconds is not None
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path).build_seconds is not None
    assert FaissIndex(embeddings, kind=kind, folder=tmp_path, distance="cosine").build_seconds is not None
    changed = FaissIndex(embeddings[:-1], kind=kind, folder=tmp_path)
    assert changed.build_seconds is not None
    assert changed.search(queries, 5)[0].max() < 599
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    (file,) = names - {f"faiss-{kind}.json"}
    assert json.loads((tmp_path / f"faiss-{kind}.json").read_text())["file"] == file


@pytest.mark.parametrize("damaged", ["*.index", "faiss-ivf.json"])
def test_a_damaged_file_is_built_anew(gallery, tmp_path, damaged):
    embeddings, queries, _ = gallery
    expected = FaissIndex(embeddings, folder=tmp_path).search(queries, 5)[0]
    (file,) = tmp_path.glob(damaged)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    index = FaissIndex(embeddings, folder=tmp_path)
    assert index.build_seconds is not None
    np.testing.assert_array_equal(index.search(queries, 5)[0], expected)


def test_one_image_is_a_gallery():
    for kind in ("ivf", "hnsw"):
        indices, distances = FaissIndex(np.ones((1, 3), np.float32), kind=kind).search(np.zeros((2, 3)), 2)
        assert indices.tolist() == [[0, -1], [0, -1]]
        np.testing.assert_allclose(distances[:, 0], np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pq"}, "kind must be one of ivf, hnsw"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"lists": 601}, "lists=601: the gallery has 600 images"),
    ],
)
def test_refuses_bad_settings(gallery, options, message):
    with pytest.raises(GalleryIndexError, match=message):
        FaissIndex(gallery[0], **options)


def test_says_what_to_install(gallery, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(GalleryIndexError, match=r'pip install "bdbnet\[faiss\]"'):
        FaissIndex(gallery[0])


class Growing:
    """A gallery in several states: which of the images it holds, as `EmbeddingStore` says it."""

    def __init__(self, images: np.ndarray, count: int) -> None:
        self.images, self.ids, self.next, self.history = images, np.arange(count), count, (("state 0", count),)

    def change(self, add: int, gone=()) -> None:
        self.ids = np.concatenate([np.setdiff1d(self.ids, gone), np.arange(self.next, self.next + add)])
        self.next += add
        self.history = (*self.history, (f"state {len(self.history)}", self.next))

    @property
    def now(self) -> dict:
        first = len(self.history) == 1  # a gallery as it was made has neither
        return {
            "embeddings": self.images[self.ids], "cameras": self.ids % 4, "fingerprint": self.history[-1][0],
            "ids": None if first else self.ids, "history": () if first else self.history,
        }  # fmt: skip


@pytest.fixture
def growing(gallery) -> Growing:
    return Growing(gallery[0], 200)


@pytest.mark.parametrize(("kind", "options"), [("ivf", {"probes": 600}), ("hnsw", {"ef_search": 600})])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_an_extended_index_finds_what_one_built_anew_finds(gallery, growing, tmp_path, kind, options, distance):
    options |= {"kind": kind, "distance": distance}
    FaissIndex(**growing.now, folder=tmp_path, **options)
    for add, gone in ((60, ()), (0, range(0, 40)), (30, range(190, 205)), (1, [260])):
        growing.change(add, [*gone])
        index = FaissIndex(**growing.now, folder=tmp_path, **options)
        assert index.built.startswith(f"{add} image{'' if add == 1 else 's'} added and ")
        assert index.settings["built_with"] == 200
        again = FaissIndex(**growing.now, folder=tmp_path, build=False, **options)
        assert again.build_seconds is None
        anew = FaissIndex(**growing.now, **options)
        for allowed in (Filter(), Filter(np.arange(30) % 4), Filter(cameras=(1,))):
            ours, others, kept = (found.search(gallery[1], 20, allowed=allowed) for found in (index, anew, again))
            np.testing.assert_array_equal(ours[0], kept[0])
            if kind == "ivf":
                np.testing.assert_array_equal(ours[0], others[0])
                np.testing.assert_array_equal(ours[1], others[1])
            else:  # a graph may have images to which no link leads: others after an extension than when built at once
                exact = ExactIndex(growing.now["embeddings"], cameras=growing.ids % 4, distance=distance)
                nearest = exact.search(gallery[1], 20, allowed=allowed)[0]
                for found in (ours, others):
                    assert np.mean([len(np.intersect1d(*each)) for each in zip(found[0], nearest, strict=True)]) > 19.5
    assert sorted(path.name.rpartition(".")[2] for path in tmp_path.glob("faiss*")) == [
        "index",
        "json",
    ]  # numbers 0 to 290


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_usual_settings_of_an_extended_index_find_nearly_all(gallery, growing, tmp_path, kind):
    FaissIndex(**growing.now, kind=kind, folder=tmp_path)
    growing.change(400, [*range(100, 140)])
    index = FaissIndex(**growing.now, kind=kind, folder=tmp_path)
    assert "400 images added and 40 taken out" in index.built
    assert recall_against_exact(index, gallery[1]) > 0.99


def test_an_index_that_has_lost_or_won_too_much_is_built_anew_and_says_why(growing, tmp_path):
    for kind in ("ivf", "hnsw"):
        FaissIndex(**growing.now, kind=kind, folder=tmp_path)
    growing.change(0, [*range(60)])
    for kind in ("ivf", "hnsw"):
        with pytest.raises(
            GalleryIndexError, match=f"no index faiss_{kind} of this gallery that can be kept: 60 of the 200"
        ):
            FaissIndex(**growing.now, kind=kind, folder=tmp_path, build=False)
        index = FaissIndex(**growing.now, kind=kind, folder=tmp_path)
        assert "because 60 of the 200 images of the earlier one are gone" in index.built
        assert "built_with" not in index.settings
    small = Growing(growing.images, 90)
    for kind in ("ivf", "hnsw"):
        FaissIndex(**small.now, kind=kind, folder=tmp_path / "small")
    small.change(271)
    assert (
        "because the lists of the earlier one were made for 90 images"
        in FaissIndex(**small.now, folder=tmp_path / "small").built
    )
    assert "271 images added" in FaissIndex(**small.now, kind="hnsw", folder=tmp_path / "small").built


def test_only_indexes_of_the_same_gallery_and_settings_are_extended(growing, tmp_path):
    FaissIndex(**growing.now, folder=tmp_path)
    growing.change(10)
    assert FaissIndex(**growing.now, folder=tmp_path, lists=7).built.startswith("built in")
    growing.change(10)
    assert FaissIndex(**growing.now, folder=tmp_path, lists=7).built.startswith("10 images added")
    other = growing.now | {"history": (("another", 3), ("another's", 9)), "fingerprint": "another's"}
    assert FaissIndex(**other, folder=tmp_path, lists=7).built.startswith("built in")


@pytest.mark.parametrize("broken", ["write_index", "write_atomically"])
def test_an_extension_that_breaks_off_leaves_the_index_as_it_was(growing, tmp_path, monkeypatch, broken):
    first = growing.now
    FaissIndex(**first, folder=tmp_path)
    growing.change(20, [3])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"faiss.{broken}" if broken == "write_index" else f"bdbnet.gallery.indexes.faiss.{broken}", stop)
        with pytest.raises(KeyboardInterrupt):
            FaissIndex(**growing.now, folder=tmp_path)
    assert FaissIndex(**first, folder=tmp_path).build_seconds is None
    assert FaissIndex(**growing.now, folder=tmp_path).built.startswith("20 images added and 1 taken out")
    assert len([*tmp_path.glob("*.index")]) == 1


def test_an_index_that_an_earlier_version_wrote_is_read_and_extended(growing, tmp_path):
    FaissIndex(**growing.now, folder=tmp_path)
    description = tmp_path / "faiss-ivf.json"
    record = json.loads(description.read_text())
    (tmp_path / record.pop("file")).rename(tmp_path / "faiss-ivf.index")
    description.write_text(json.dumps({key: record[key] for key in ("kind", "lists", "measure", "fingerprint")}))
    assert FaissIndex(**growing.now, folder=tmp_path).build_seconds is None
    growing.change(5)
    assert FaissIndex(**growing.now, folder=tmp_path).built.startswith("5 images added")
    assert not (tmp_path / "faiss-ivf.index").exists()
    description.write_text(json.dumps(json.loads(description.read_text()) | {"file": "../secret.index"}))
    assert FaissIndex(**growing.now, folder=tmp_path).built.startswith("built in")
