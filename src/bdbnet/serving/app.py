"""The pages and the JSON API of the server."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
from fastapi import FastAPI, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bdbnet.config import ConfigError
from bdbnet.datasets.checking import usable_cores
from bdbnet.gallery.indexes.exact import Filter
from bdbnet.gallery.searching import seconds_of
from bdbnet.serving.api_page import api_page
from bdbnet.serving.errors import RequestError
from bdbnet.serving.gallery import MOST_BOXES, ServedGallery
from bdbnet.serving.guard import Guard, Limits, refusal
from bdbnet.serving.uploads import Upload
from bdbnet.serving.work import WorkPool

MOST_FOUND = 500  # images of one answer
SIZES = (96, 224, 1024)  # of pictures, pixels of the longer side
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

_AFTER = "only images of this time or later: seconds since 1970, or ISO 8601, UTC without a zone"
_BEFORE = "only images of an earlier time than this"
_BOX = "x1,y1,x2,y2 in pixels; what is beyond the image is cut off, a box without a pixel in it is error 422"
Cameras = Annotated[list[int] | None, Query(description="only images of these cameras")]
After = Annotated[str | None, Query(description=_AFTER)]
Before = Annotated[str | None, Query(description=_BEFORE)]
_STATE = "that of /api/info when the row was seen: error 409 if the gallery has changed since"
State = Annotated[str | None, Query(description=_STATE)]
Row = Annotated[int, Path(description="id of an image of the gallery")]


@dataclass(frozen=True)
class ServerSettings:
    """How the server answers.

    Attributes:
        token: what requests have to show; None: nothing.
        k: images found unless asked otherwise.
        limits: of each client.
        max_pixels: of an image that is sent.
        workers: threads that embed and search.
        waiting: requests that may wait for one of them.
        seconds: longest time of a piece of work.
    """

    token: str | None
    k: int
    limits: Limits
    max_pixels: int
    workers: int
    waiting: int
    seconds: float


def build_app(gallery: ServedGallery, settings: ServerSettings) -> Guard:
    """The ASGI application over a gallery."""
    threads = max(1, usable_cores() // settings.workers)
    work = WorkPool(
        "search", settings.workers, settings.waiting, settings.seconds, lambda: torch.set_num_threads(threads)
    )
    pictures = WorkPool("pictures", max(1, usable_cores() // 2), 8 * MOST_FOUND, settings.seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        work.close()
        pictures.close()

    app = FastAPI(
        title="bdbnet",
        summary="Search a gallery of images by image.",
        description="An error has the form {\"error\": \"what is wrong and what to send instead\"}.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    _add_pages(app, token=settings.token is not None)
    _add_reading(app, gallery, settings, pictures)
    _add_searching(app, gallery, settings, work)
    return Guard(app, settings.token, settings.limits)


def _add_pages(app: FastAPI, *, token: bool) -> None:
    files = {
        file.name: file.read_bytes()
        for file in resources.files("bdbnet.serving").joinpath("static").iterdir()
        if file.is_file()
    }

    def file(name: str) -> Response:
        if name not in files:
            raise RequestError(404, f"there is no file {name}")
        return Response(
            files[name], media_type=_KINDS["." + name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"}
        )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return file(name)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        page = api_page(app.openapi(), str(request.base_url).rstrip("/"), token=token)
        return Response(page, media_type="text/html")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not isinstance(error, RequestError) and error.status_code in (404, 405):
            said = f"there is no {request.method} {request.url.path[:200]}: /docs lists what there is"
            error = HTTPException(error.status_code, said, error.headers)
        status, headers, content = refusal(error, request.url.path, request.headers.get("accept", ""))
        return Response(content, status, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["loc"][-1] == "image":
            return await refused(
                request, RequestError(422, "image: send a file as a field of a form (curl -F image=@FILE)")
            )
        key = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return await refused(request, RequestError(422, f"{key}: {first['msg']}"))

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)


def _add_reading(app: FastAPI, gallery: ServedGallery, settings: ServerSettings, pool: WorkPool) -> None:
    limits = {
        "upload_bytes": settings.limits.upload_bytes, "pixels": settings.max_pixels, "k": MOST_FOUND, "boxes": MOST_BOXES,
    }  # fmt: skip

    @app.get("/api/info", summary="What the gallery is and what can be asked of it")
    async def info() -> dict[str, Any]:
        return {**await pool.run(gallery.info), "k": settings.k, "limits": limits}

    @app.get("/api/images", summary="Page through the gallery")
    async def images(
        offset: Annotated[int, Query(ge=0, description="images to leave out at the beginning")] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_FOUND, description="images wanted")] = 50,
        camera: Cameras = None,
        after: After = None,
        before: Before = None,
    ) -> dict[str, Any]:
        return await pool.run(gallery.images, offset, limit, allowed_by(camera, after, before))

    @app.get("/api/images/{row}", summary="What the gallery knows of one image")
    async def image(row: Row, fingerprint: State = None) -> dict[str, Any]:
        return await pool.run(gallery.image, row, fingerprint)

    @app.get("/image/{row}", summary="An image of the gallery as JPEG", response_class=Response,
             responses={200: {"content": {"image/jpeg": {}}}})  # fmt: skip
    async def picture(
        row: Row,
        size: Annotated[Literal["96", "224", "1024"], Query(description="fits so many pixels")] = "224",
        fingerprint: State = None,
    ) -> Response:
        content = await pool.run(gallery.picture, row, int(size), fingerprint)
        # The page's addresses hold the fingerprint, which changes with the gallery.
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_searching(app: FastAPI, gallery: ServedGallery, settings: ServerSettings, pool: WorkPool) -> None:
    def check_size(image: UploadFile | None) -> None:
        if image is not None and image.size is not None and image.size > settings.limits.upload_bytes:
            raise RequestError(413, f"more than {settings.limits.upload_bytes / 2**20:g} MB: send a smaller image file")

    def read(image: UploadFile) -> Upload:
        """Called in the pool: what waits for a place there is not in memory."""
        return Upload.checked(image.filename, image.file.read(), settings.max_pixels)

    @app.post("/api/search", summary="Find the images nearest to a query")
    async def search(
        image: Annotated[UploadFile | None, File(description="the query: an image file; or row")] = None,
        row: Annotated[
            int | None, Form(description="the query: id of an image of the gallery, which is not found itself")
        ] = None,
        box: Annotated[str | None, Form(description=f"part of the image that is the query: {_BOX}")] = None,
        k: Annotated[int, Form(ge=1, le=MOST_FOUND, description="images wanted")] = settings.k,
        camera: Annotated[list[int] | None, Form(description="only images of these cameras")] = None,
        after: Annotated[str | None, Form(description=_AFTER)] = None,
        before: Annotated[str | None, Form(description=_BEFORE)] = None,
        engine: Annotated[str, Form(description="exact, or one of /api/info")] = "exact",
        fingerprint: Annotated[str | None, Form(description=_STATE)] = None,
    ) -> dict[str, Any]:
        allowed = allowed_by(camera, after, before)
        boxes = [] if not box else [box_of(box)]
        if (image is None) == (row is None):
            raise RequestError(
                422,
                "send one of image (a file) or row (the id of an image of the gallery) as a field of a form",
            )
        check_size(image)

        def work() -> dict[str, Any]:
            began = perf_counter()
            if image is not None:
                upload = read(image)
                query = gallery.embed(upload, boxes)
                size = {"height": upload.height, "width": upload.width}
            else:
                assert row is not None
                query = gallery.embed_row(row, boxes[0] if boxes else None, fingerprint)
                size = {"row": row}
            embedded = perf_counter()
            # Taken before the search: where the gallery changes in between, the answer names the state before, and a client that
            # comes back with a row of it is told so.
            state = gallery.opened().store.fingerprint
            but = row if not boxes else None
            results = gallery.search(query, k, engine, allowed, but=but)
            took = {"embed_ms": 1000 * (embedded - began), "search_ms": 1000 * (perf_counter() - embedded)}
            return {
                "query": size, "distance": gallery.distance, "engine": engine, "fingerprint": state, **took, "results": results,
            }  # fmt: skip

        return await pool.run(work)

    @app.post("/api/embed", summary="The embedding of an image, or of each of several boxes in it")
    async def embed(
        image: Annotated[UploadFile, File(description="an image file")],
        box: Annotated[list[str] | None, Form(description=f"{_BOX}; at most {MOST_BOXES} boxes")] = None,
    ) -> dict[str, Any]:
        boxes = [box_of(each) for each in box or []]
        if len(boxes) > MOST_BOXES:
            raise RequestError(422, f"{len(boxes)} boxes: send at most {MOST_BOXES} at a time")
        check_size(image)

        def work() -> dict[str, Any]:
            embeddings = gallery.embed(read(image), boxes)
            return {"embeddings": embeddings.tolist(), "network_fingerprint": gallery.fingerprint}

        return await pool.run(work)


def allowed_by(cameras: list[int] | None, after: str | None, before: str | None) -> Filter:
    """The filter that a request asks for; an empty text is no wish.  Raises RequestError for what is no time."""
    if any(abs(camera) >= 2**63 for camera in cameras or ()):
        raise RequestError(422, "camera: give whole numbers as in /api/info")
    return Filter(None, _time(after, "after"), _time(before, "before"), tuple(cameras) if cameras else None)


def _time(text: str | None, key: str) -> float | None:
    text = (text or "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            found = seconds_of(text, key)
        except (ConfigError, OverflowError) as error:
            raise RequestError(422, str(error)) from error
        return found
    if not math.isfinite(seconds):
        raise RequestError(422, f"{key}={text}: give seconds since 1970, or a date and time")
    return seconds


def box_of(text: str) -> list[float]:
    """A box x1,y1,x2,y2 as numbers.  Raises RequestError for another text.

    >>> box_of("1, 2,30,40.5")
    [1.0, 2.0, 30.0, 40.5]
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise RequestError(422, f"box={text[:80]}: give x1,y1,x2,y2 in pixels of the image, such as 10,20,110,220")
    return numbers
