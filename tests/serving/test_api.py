"""The JSON API: what it finds, and what it says of bad input."""

import io
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from bdbnet.evaluation.embedder import Embedder
from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.indexes import ExactIndex, FaissIndex
from bdbnet.gallery.shards import embed_into
from bdbnet.loading.sources import find_images
from bdbnet.serving.api_page import api_page
from bdbnet.serving.gallery import ServedGallery


@pytest.fixture(scope="module")
def photo(stored: Path) -> Path:
    """The file of row 5."""
    store = EmbeddingStore.open(stored)
    return store.root / store.table["path"][5]


def post(
    client: TestClient, path: str = "/api/search", data: bytes | None = None, name: str = "a.png", **fields: object
):
    return client.post(path, data=fields, files=None if data is None else {"image": (name, data)})


def found(answer) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def refused(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


# What it finds


def test_the_file_of_a_gallery_image_finds_itself_and_the_same_as_the_exact_index(client, stored, photo):
    store = EmbeddingStore.open(stored)
    results = found(post(client, data=photo.read_bytes(), k=4))
    indices, distances = ExactIndex(store.embeddings).search(store.embeddings[5:6], 4)
    assert [hit["row"] for hit in results] == indices[0].tolist()
    np.testing.assert_allclose([hit["distance"] for hit in results], distances[0], atol=1e-5)
    assert results[0] == {
        "rank": 1, "distance": results[0]["distance"], "same": None, "row": 5, "name": "/".join(photo.parts[-2:]),
        "label": int(store.table["label"][5]), "camera": int(store.table["camera"][5]), "time": "2024-01-01T05:00:00+00:00",
    }  # fmt: skip


def test_a_row_finds_others_but_not_itself(client):
    results = found(post(client, row=5, k=18))
    assert sorted(hit["row"] for hit in results) == [row for row in range(19) if row != 5]
    assert [hit["rank"] for hit in results] == [*range(1, 19)]


def test_filters_of_camera_and_time(client):
    cameras = {image["row"]: image["camera"] for image in client.get("/api/images").json()["images"]}
    results = found(post(client, row=0, camera=[1], k=19))
    assert {hit["row"] for hit in results} == {row for row, camera in cameras.items() if camera == 1} - {0}
    span = {"after": "2024-01-01T03:00", "before": "2024-01-01T06:00:00Z"}
    assert {hit["row"] for hit in found(post(client, row=0, **span))} == {3, 4, 5}
    page = client.get("/api/images", params={**span, "camera": [1, 2]}).json()
    assert (page["total"], [image["row"] for image in page["images"]]) == (3, [3, 4, 5])
    assert found(post(client, row=0, camera=[99])) == []


def test_paging_through_the_gallery(client):
    page = client.get("/api/images", params={"offset": 15, "limit": 10}).json()
    assert (page["total"], [image["row"] for image in page["images"]]) == (19, [15, 16, 17, 18])
    assert client.get("/api/images", params={"offset": 100}).json()["images"] == []
    assert refused(client.get("/api/images", params={"offset": -1}), 422).startswith("offset: ")


def test_a_box_is_the_embedding_of_the_crop(client, stored: Path, embedder: Embedder, tools: SimpleNamespace):
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    boxes = ["10,20,50,80", "60.4,0,130,90"]
    answer = post(client, "/api/embed", tools.encoded(frame), box=boxes)
    expected = embedder.embed_boxes(frame, [[10, 20, 50, 80], [60.4, 0, 130, 90]])
    np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-5)
    assert answer.json()["network_fingerprint"] == EmbeddingStore.open(stored).model.fingerprint
    alone = post(client, "/api/embed", tools.encoded(frame), box=boxes[:1]).json()["embeddings"]
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)
    whole = post(client, "/api/embed", tools.encoded(frame)).json()["embeddings"]
    np.testing.assert_allclose(whole, embedder.embed(frame), atol=1e-5)
    assert found(post(client, data=tools.encoded(frame), box="10,20,50,80", k=3)) != found(
        post(client, data=tools.encoded(frame), k=3)
    )


def test_a_box_in_an_image_of_the_gallery(client, embedder: Embedder, photo: Path, stored: Path):
    hits = found(post(client, row=5, box="0,0,16,16", k=19))
    assert {hit["row"] for hit in hits} == {*range(19)}
    crop = np.asarray(Image.open(photo).convert("RGB"))[:16, :16]
    store = EmbeddingStore.open(stored)
    expected = np.linalg.norm(store.embeddings - embedder.embed(crop), axis=1)
    np.testing.assert_allclose([hit["distance"] for hit in hits], np.sort(expected), atol=1e-4)


def test_what_the_gallery_is(client, stored):
    info = client.get("/api/info").json()
    assert (info["images"], info["dimensions"], info["engines"], info["same"]) == (19, 512, ["exact"], None)
    assert [camera["camera"] for camera in info["cameras"]] == [1, 2]
    assert info["times"] == ["2024-01-01T00:00:00+00:00", "2024-01-01T18:00:00+00:00"]
    facts = client.get("/api/images/5").json()
    assert (facts["row"], facts["height"], facts["width"]) == (5, 32, 16)
    assert facts["fingerprint"] == info["fingerprint"]


def forbidden(*_args: object, **_options: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_an_index_of_faiss_that_is_there_is_an_engine(make_client, make_store, embedder, tmp_path, monkeypatch):
    folder = make_store(tmp_path / "gallery", embedder)
    store = EmbeddingStore.open(folder)
    FaissIndex(
        store.embeddings, cameras=store.table["camera"], times=store.table["time"], fingerprint=store.fingerprint,
        kind="ivf", folder=folder, lists=3,
    )  # fmt: skip
    (file,) = folder.glob("faiss-ivf.*.index")
    before = file.stat().st_mtime_ns
    client = make_client(folder)
    assert client.get("/api/info").json()["engines"] == ["exact", "faiss_ivf"]
    exact, faiss = (found(post(client, row=3, k=5, engine=engine)) for engine in ("exact", "faiss_ivf"))
    assert [hit["row"] for hit in exact] == [hit["row"] for hit in faiss]
    assert {hit["camera"] for hit in found(post(client, row=3, engine="faiss_ivf", camera=2))} == {2}
    assert file.stat().st_mtime_ns == before
    assert make_client(folder, "distance=cosine").get("/api/info").json()["engines"] == ["exact"]
    store.remove(
        store.table["path"][:1]
    )  # the index is brought up to date in memory; where it would have to be built anew, it is left out
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkstemp", forbidden)  # as in a folder that can't be written to
        patched.setattr("bdbnet.gallery.indexes.faiss.FileLock", forbidden)
        assert make_client(folder).get("/api/info").json()["engines"] == ["exact", "faiss_ivf"]
    assert [*folder.glob("faiss-ivf.*.index")] == [file]
    assert file.stat().st_mtime_ns == before
    EmbeddingStore.open(folder).remove(store.table["path"][1:9])
    assert make_client(folder).get("/api/info").json()["engines"] == ["exact"]


def test_the_mark_comes_from_the_threshold_of_the_network(make_client, embedder, stored, tmp_path, monkeypatch):
    def with_threshold(*_: object, **__: object) -> Embedder:
        return Embedder(
            embedder.network, embedder.preprocessing, distance="euclidean", threshold=limit, origin=embedder.origin
        )

    distances = sorted(hit["distance"] for hit in found(post(make_client(stored), row=0)))
    limit = (distances[2] + distances[3]) / 2
    monkeypatch.setattr("bdbnet.serving.running.embedder_of", with_threshold)
    client = make_client(stored)
    assert client.get("/api/info").json()["same"]["threshold"] == limit
    assert [hit["same"] for hit in found(post(client, row=0))][:5] == ["same"] * 3 + ["not same"] * 2
    # A threshold of another distance marks nothing.
    assert {hit["same"] for hit in found(post(make_client(stored, "distance=cosine"), row=0))} == {None}


# Uploads


def test_an_upload_of_200_mb_is_refused_before_it_is_read(client):
    sent = 0

    def body():
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield b"\0" * 2**20

    answer = client.post("/api/search", content=body(), headers={"Content-Length": str(200 * 2**20)})
    assert refused(answer, 413) == "more than 20 MB: send a smaller image file"
    assert sent == 0


def test_an_upload_that_hides_its_size_is_cut_off(client):
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = (part for part in [start, *[b"\0" * 2**20] * 30])
    answer = client.post("/api/search", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert "more than 20 MB" in refused(answer, 413)


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many black pixels in some bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8000, 8000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_by_its_head(client, size):
    said = refused(post(client, data=bomb(*size), name="bomb.png"), 413)
    assert said.startswith("bomb.png has ")
    assert said.endswith("the limit is 50,000,000: send a smaller image")


def test_the_limit_of_pixels_is_a_setting(make_client, stored, tools):
    client = make_client(stored, "max_pixels=1000")
    assert "has 40 x 30 pixels, the limit is 1,000" in refused(
        post(client, data=tools.encoded(np.zeros((30, 40, 3), np.uint8))), 413
    )


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"hello, I am no image", 415, "notes.txt is not an image; send one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "notes.txt is not an image"),
        (b"", 400, "notes.txt is empty"),
    ],
)
def test_what_is_not_an_image(client, data, status, said):
    assert said in refused(post(client, data=data, name="notes.txt"), status)


def test_an_upload_is_read_where_it_is_worked_on(client, tools, monkeypatch):
    monkeypatch.setattr("starlette.datastructures.UploadFile.read", forbidden)  # by the event loop
    data = tools.encoded(np.zeros((20, 10, 3), np.uint8))
    assert found(post(client, data=data))
    assert post(client, "/api/embed", data).status_code == 200


def test_a_file_that_is_cut_off(client, tools):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for format in ("PNG", "JPEG"):
        data = tools.encoded(pixels, format)
        assert "can't be decoded" in refused(post(client, data=data[: len(data) // 2]), 422)


def test_of_a_gif_the_first_frame_counts(client, tools, embedder):
    frames = [Image.new("RGB", (20, 40), colour) for colour in ("red", "blue")]
    data = tools.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    got = post(client, "/api/embed", data, name="a.gif").json()["embeddings"]
    np.testing.assert_allclose(got, embedder.embed(frames[0]), atol=1e-5)


def test_an_exif_orientation_is_applied_to_image_and_box(client, tools, embedder):
    upright = np.random.default_rng(1).integers(0, 255, (40, 20, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right by a quarter
    turned = tools.encoded(np.ascontiguousarray(np.rot90(upright)), "PNG", exif=exif)
    got = post(client, "/api/embed", turned).json()["embeddings"]
    np.testing.assert_allclose(got, embedder.embed(upright), atol=1e-5)
    part = post(client, "/api/embed", turned, box="0,0,20,10").json()["embeddings"]
    np.testing.assert_allclose(part, embedder.embed(upright[:10]), atol=1e-5)
    query = post(client, data=turned).json()["query"]
    assert query == {"height": 40, "width": 20}


def test_an_image_of_one_pixel_is_searched_for(client, tools):
    assert len(found(post(client, data=tools.encoded(np.full((1, 1, 3), 90, np.uint8)), k=3))) == 3


# Other bad input


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "send one of image (a file) or row"),
        ({"row": 0, "k": 0}, "k: "),
        ({"row": 0, "k": 501}, "k: "),
        ({"row": "one"}, "row: "),
        ({"row": 0, "engine": "milvus"}, "engine=milvus: choose one of exact"),
        ({"row": 0, "after": "yesterday"}, "after=yesterday: give seconds since 1970"),
        ({"row": 0, "after": "nan"}, "after=nan: give seconds since 1970"),
        ({"row": 0, "camera": 2**70}, "camera: give whole numbers"),
        ({"row": 0, "box": "1,2,3"}, "box=1,2,3: give x1,y1,x2,y2"),
        ({"row": 0, "box": "nan,0,5,5"}, "give x1,y1,x2,y2"),
        ({"row": 0, "box": "10,10,5,5"}, "has no pixel in the frame"),
        ({"row": 0, "box": "1e308,0,1e309,5"}, "give x1,y1,x2,y2"),
        ({"row": 0, "box": "100,100,110,110"}, "has no pixel in the frame of 16 x 32 pixels"),
    ],
)
def test_fields_that_make_no_sense(client, fields, said):
    assert said in refused(post(client, **fields), 422)


def test_what_is_no_form_and_no_call(client):
    assert "as a field of a form" in refused(client.post("/api/search", json={"row": 1}), 422)
    for path in ("/api/search", "/api/embed"):
        assert "image: send a file" in refused(client.post(path, data={"image": "query.jpg"}), 422)
    assert refused(client.get("/nothing"), 404) == "there is no GET /nothing: /docs lists what there is"
    assert refused(client.delete("/api/search"), 405) == "there is no DELETE /api/search: /docs lists what there is"


def test_too_many_boxes(client, tools):
    data = tools.encoded(np.zeros((9, 9, 3), np.uint8))
    assert (
        refused(post(client, "/api/embed", data, box=["0,0,5,5"] * 257), 422) == "257 boxes: send at most 256 at a time"
    )


@pytest.mark.parametrize("row", [-1, 19, 10**30])
def test_a_row_that_is_not_there(client, row):
    assert refused(client.get(f"/image/{row}"), 404).endswith("the gallery has the rows 0 to 18")
    assert "there is no image" in refused(client.get(f"/api/images/{row}"), 404)
    assert "there is no image" in refused(post(client, row=row), 404)


@pytest.mark.parametrize(
    "path",
    ["/image/../../etc/passwd",
     "/image/..%2f..%2fetc%2fpasswd", "/image/%2e%2e%2fmeta.json", "/static/..%2fapp.py", "/static/../app.py",
     "/image/0%00.jpg", "/static//etc/passwd", "/api/images/..%5c..%5cx"],
)  # fmt: skip
def test_paths_lead_nowhere(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_a_table_that_leads_out_of_its_folder_shows_nothing(make_store, embedder, tmp_path):
    folder = make_store(tmp_path / "gallery", embedder)
    store = EmbeddingStore.open(folder)
    store.table.loc[0, "path"] = "../secret.jpg"
    store.table.loc[1, "path"] = "/etc/hostname"
    Image.new("RGB", (9, 9)).save(store.root.parent / "secret.jpg")
    served = ServedGallery(store, embedder, distance="euclidean", index_folder=folder)
    for row in (0, 1):
        with pytest.raises(Exception, match="not in the folder"):
            served.picture(row, 96)
        with pytest.raises(Exception, match="not in the folder"):
            served.embed_row(row, [0, 0, 5, 5])


# Pictures and pages


def test_pictures_are_small_jpegs(client):
    answer = client.get("/image/5?size=96")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (16, 32)
    assert refused(client.get("/image/5?size=100000"), 422).startswith("size: ")


def test_the_page_of_the_api_lists_every_call_and_loads_nothing_from_elsewhere(client):
    page = client.get("/docs").text
    description = client.get("/openapi.json").json()
    assert {*description["paths"]} == {
        "/api/info",
        "/api/images",
        "/api/images/{row}",
        "/image/{row}",
        "/api/search",
        "/api/embed",
    }
    for path in description["paths"]:
        assert f" {path}</code>" in page
    for word in ("engine", "box", "file", "any number of times"):
        assert word in page
    assert "https://" not in page
    assert "curl http://127.0.0.1:8765/api/search -F image=@query.jpg" in page
    assert api_page(description, "http://127.0.0.1:8765", token=False) == page
    assert "Bearer TOKEN&#x27; http://a/api/info" in api_page(description, "http://a", token=True)


def test_the_page_is_whole(client):
    page = client.get("/").text
    for name in ("style.css", "app.js", "theme.js", "icon.svg"):
        assert f"/static/{name}" in page
        assert client.get(f"/static/{name}").status_code == 200
    assert "://" not in page
    assert "<style" not in page
    assert " style=" not in page
    assert refused(client.get("/static/nothing.js"), 404) == "there is no file nothing.js"


# A gallery that changes


def test_a_gallery_that_is_deleted_while_the_server_runs(make_client, make_store, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
    monkeypatch.setattr("bdbnet.serving.gallery._PATIENCE", 60)
    folder = make_store(tmp_path / "gallery", embedder)
    client = make_client(folder)
    assert found(post(client, row=0))
    folder.rename(tmp_path / "moved")
    for answer in (post(client, row=0), client.get("/api/info"), client.get("/image/0"), client.get("/api/images")):
        assert "was deleted or moved while the server runs" in refused(answer, 503)
    assert client.get("/").status_code == 200  # the page itself says it
    (tmp_path / "moved").rename(folder)
    assert found(post(client, row=0))


def test_a_gallery_of_another_network(
    make_client, make_store, make_embedder: Callable[[int], Embedder], embedder, tmp_path, monkeypatch
):
    monkeypatch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
    monkeypatch.setattr("bdbnet.serving.gallery._PATIENCE", 60)
    folder = make_store(tmp_path / "gallery", embedder)
    client = make_client(folder)
    make_store(folder, make_embedder(1))
    said = refused(post(client, row=0), 503)
    assert "is now one of another network, random1.pth" in said
    assert "Start the server again" in said
    make_store(folder, embedder)
    assert found(post(client, row=0))


def test_a_gallery_that_is_damaged_while_the_server_runs(make_client, make_store, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
    monkeypatch.setattr("bdbnet.serving.gallery._PATIENCE", 60)
    folder = make_store(tmp_path / "gallery", embedder)
    client = make_client(folder)
    (folder / "meta.json").write_text("{")
    assert "the gallery can't be used: " in refused(client.get("/api/info"), 503)


def test_the_gallery_before_is_searched_until_the_new_one_is_open(
    make_client, make_store, embedder, tmp_path, monkeypatch
):
    monkeypatch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
    folder = make_store(tmp_path / "gallery", embedder)
    client = make_client(folder)
    EmbeddingStore.open(folder).remove(EmbeddingStore.open(folder).table["path"][:1])
    go, opened = threading.Event(), EmbeddingStore.open

    def slow(*args: object, **options: object) -> EmbeddingStore:
        assert go.wait(60)
        return opened(*args, **options)

    monkeypatch.setattr("bdbnet.serving.gallery.EmbeddingStore.open", slow)
    monkeypatch.setattr("bdbnet.serving.gallery._PATIENCE", 0)
    for _ in range(2):
        assert len(found(post(client, row=0, k=50))) == 18
    (thread,) = [each for each in threading.enumerate() if each.name == "open gallery"]
    go.set()
    thread.join(60)
    assert len(found(post(client, row=0, k=50))) == 17


def test_an_image_file_that_is_gone(make_client, gallery_table, embedder, rendered, tmp_path):
    shutil.copytree(rendered.root, tmp_path / "images")
    embed_into(
        tmp_path / "gallery",
        embedder,
        find_images(gallery_table, root=tmp_path / "images"),
        num_workers=0,
        progress=False,
    )
    client = make_client(tmp_path / "gallery")
    shutil.rmtree(tmp_path / "images")
    assert "is not in the folder of the gallery's images any more" in refused(client.get("/image/3"), 404)
    assert found(post(client, row=3))  # its embedding is still there


def test_a_gallery_that_grows_and_shrinks_while_the_server_runs(
    make_client, make_store, embedder, tmp_path, monkeypatch
):
    monkeypatch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
    monkeypatch.setattr("bdbnet.serving.gallery._PATIENCE", 60)
    folder = make_store(tmp_path / "gallery", embedder)
    client = make_client(folder)
    before = client.get("/api/info").json()["fingerprint"]
    store = EmbeddingStore.open(folder)
    added = store.table.iloc[:2].assign(path=["new/a.jpg", "new/b.jpg"], camera=7)
    store.add(store.embeddings[:2], added)
    answer = post(client, row=0, k=3)
    assert {hit["name"] for hit in found(answer)} > {"new/a.jpg"}
    info = client.get("/api/info").json()
    assert (info["images"], info["cameras"][-1]) == (21, {"camera": 7, "images": 2})
    after = client.get("/api/images", params={"limit": 1}).json()["fingerprint"]
    assert before != after == info["fingerprint"] == answer.json()["fingerprint"]
    # A row that was seen before the change is not taken for one of the gallery as it is now.
    earlier = {"params": {"fingerprint": before}}
    for late in (
        post(client, row=0, fingerprint=before),
        client.get("/image/0", **earlier),
        client.get("/api/images/0", **earlier),
    ):
        assert "the gallery has changed" in refused(late, 409)
    assert found(post(client, row=0, fingerprint=after))
    assert client.get("/image/0", params={"fingerprint": after}).status_code == 200
    EmbeddingStore.open(folder).remove(["new/a.jpg"])
    assert client.get("/api/info").json()["images"] == 20
