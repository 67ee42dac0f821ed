"""From the command's settings to a server that listens."""

import logging
import socket
from pathlib import Path

import uvicorn
from omegaconf import DictConfig

from bdbnet.datasets.checking import usable_cores
from bdbnet.gallery.embedding import checkpoint_of, embedder_of
from bdbnet.gallery.searching import index_folder
from bdbnet.gallery.store import EmbeddingStore
from bdbnet.serving.address import CONNECTIONS, PEER_REQUESTS, is_loopback, shown_host
from bdbnet.serving.app import ServerSettings, build_app
from bdbnet.serving.gallery import ServedGallery
from bdbnet.serving.guard import Guard, Limits
from bdbnet.serving.protocol import TimedProtocol


def serve(config: DictConfig, sock: socket.socket, token: str | None) -> None:
    """Serve the gallery of `config.index` on a socket that listens, until a signal ends it.

    Raises:
        ConfigError, StoreError, GalleryIndexError, CheckpointError: a gallery or a network that can't be used.
    """
    app, gallery = open_app(config, token)
    for line in greeting(config, gallery, token, sock.getsockname()[1]):
        print(line, flush=True)
    logging.getLogger("python_multipart").setLevel(
        logging.CRITICAL
    )  # clients are told what is wrong with their requests
    settings = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,  # an address may hold the token
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(settings).run(sockets=[sock])


def open_app(config: DictConfig, token: str | None) -> tuple[Guard, ServedGallery]:
    """The application over the gallery and the network that the settings name."""
    store = EmbeddingStore.open(config.index, verify=config.verify)
    embedder = embedder_of(
        store.model,
        checkpoint=checkpoint_of(store, config.checkpoint),
        accelerator=config.accelerator,
        model=config.get("model"),
        backbone=config.get("backbone"),
    )
    gallery = ServedGallery(
        store,
        embedder,
        distance=config.distance or embedder.distance_name,
        index_folder=index_folder(config),
        verify=config.verify,
    )
    limits = Limits(
        upload_bytes=round(config.max_upload_mb * 2**20),
        upload_seconds=config.timeout,
        rate=config.requests_per_second,
        open_requests=PEER_REQUESTS,
    )
    workers = min(4, usable_cores()) if config.workers is None else config.workers
    settings = ServerSettings(token, config.k, limits, config.max_pixels, workers, config.waiting, config.timeout)
    return build_app(gallery, settings), gallery


def greeting(config: DictConfig, gallery: ServedGallery, token: str | None, port: int) -> list[str]:
    """What the command says when the server is ready."""
    info = gallery.info()
    lines = [
        f"gallery: {info['images']:,} images of {Path(config.index)}",
        f"network: {info['network']} on {gallery.embedder.device}; {info['distance']} distance; "
        f"engines: {', '.join(info['engines'])}",
    ]
    shown = "" if token is None else f"?token={token}" if config.token == "auto" else "?token=<your token>"
    lines.append(f"open http://{shown_host(str(config.host))}:{port}/{shown}   (Ctrl-C ends the server)")
    if gallery.marks is not None or gallery.embedder.threshold is not None:
        lines.append(f"marks: {gallery.marking}")
    if not is_loopback(str(config.host)):
        lines.append("note: the connection is not encrypted; put a proxy with HTTPS before it where others can listen")
    return lines
