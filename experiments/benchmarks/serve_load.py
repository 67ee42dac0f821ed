"""Latency, memory and slow clients of `bdbnet.serve`, against embedding and searching in this process.

    OMP_NUM_THREADS=1 python experiments/benchmarks/serve_load.py
    OMP_NUM_THREADS=1 python experiments/benchmarks/serve_load.py --requests 500 --clients 4

A gallery of random embeddings and rendered pictures, OSNet x0.25 with random weights. The server runs as a user starts it, in
a process of its own. Each request uploads a JPEG of 128 x 64 pixels and asks for 24 images. The floor is what the server has to do
in any case: decode, embed and search for one image in one process, without HTTP.

- alone: one client, one request after the other.
- together: several clients at once, to the end of the 5,000 requests; the resident memory of the server at the end
  against that after the first 500, which fill the caches of the libraries.
- slow: one client, while 20 others send their upload at a byte a second; the time that an upload may take is set so long that
  none of them is cut off meanwhile.
"""

import argparse
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from bdbnet.datasets import load_manifest
from bdbnet.evaluation.load import Wanted, open_embedder
from bdbnet.gallery import EmbeddingStore, write_store
from bdbnet.gallery.embedding import stamp_of
from bdbnet.models import BDBNetwork, OSNetBackbone
from bdbnet.serving.gallery import ServedGallery
from bdbnet.serving.uploads import Upload

K = 24
SIZE = (128, 64)
SLOW = 20


def build(folder: Path, images: int) -> tuple[ServedGallery, list[bytes]]:
    """A gallery in a folder, opened as the server does, and query images."""
    manifest = load_manifest(
        "synthetic_reid", folder / "data", train_identities=2, test_identities=10, images_per_camera=2, cameras=2,
        distractors=0, image_size=[128, 64], workers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = BDBNetwork(num_classes=0, backbone=OSNetBackbone(width=0.25), branches=["global"]).eval()
    torch.save(network.state_dict(), folder / "random.pth")
    embedder = open_embedder(str(folder / "random.pth"), Wanted("baseline", "osnet_x0_25", [*SIZE]), device="cpu")
    pictures = manifest.subset("gallery").table.drop(columns="split")
    table = pictures.iloc[np.arange(images) % len(pictures)].reset_index(drop=True)
    random = np.random.default_rng(0).standard_normal((images, embedder.dimensions), np.float32)
    (folder / "gallery").mkdir()
    stamp = stamp_of(embedder, folder / "gallery")
    write_store(folder / "gallery", [random], table, root=manifest.root, model=stamp)
    store = EmbeddingStore.open(folder / "gallery")
    served = ServedGallery(store, embedder, distance="euclidean", index_folder=folder)
    queries = []
    for path in manifest.paths[:20]:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "JPEG", quality=90)
        queries.append(buffer.getvalue())
    return served, queries


def floor(gallery: ServedGallery, queries: list[bytes], count: int) -> list[float]:
    """Seconds of decoding, embedding and searching in this process."""
    taken = []
    for number in range(count):
        begin = time.perf_counter()
        upload = Upload.checked("query.jpg", queries[number % len(queries)], 50_000_000)
        gallery.search(gallery.embed(upload), K)
        taken.append(time.perf_counter() - begin)
    return taken[count // 10 :]


def requests(address: str, queries: list[bytes], count: int) -> list[float]:
    """Seconds of each of `count` requests, one after the other on one connection."""
    taken = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for number in range(count):
            begin = time.perf_counter()
            data = queries[number % len(queries)]
            answer = client.post("/api/search", data={"k": K}, files={"image": ("query.jpg", data, "image/jpeg")})
            taken.append(time.perf_counter() - begin)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"]) == K
    return taken


def in_turns(gallery: ServedGallery, address: str, queries: list[bytes], count: int) -> tuple[list[float], list[float]]:
    """Seconds of `count` requests and of the floor, ten times in turns: another program slows both down alike."""
    taken, base = [], []
    for _ in range(10):
        base += floor(gallery, queries, count // 10)
        taken += requests(address, queries, count // 10)
    return taken, base


def together(address: str, queries: list[bytes], count: int, clients: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in range(clients)]

    def run(place: int) -> None:
        taken[place] = requests(address, queries, count // clients)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [value for part in taken for value in part]
    assert len(found) == count // clients * clients, "a request failed"
    return found


def resident(process: int) -> float:
    """Megabytes."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) / 1024


def trickle(address: str, stop: threading.Event, cut: list[int]) -> None:
    """An upload at a byte a second; one that the server cuts off goes into `cut`, as the bytes that it took."""
    host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    sent = 0
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(head + start)
        while not stop.wait(1):
            try:
                sock.sendall(b"-")
                sent += 1
            except OSError:
                cut.append(sent)
                break


def line(name: str, taken: list[float], base: list[float]) -> None:
    p50, p95 = (1000 * float(np.percentile(taken, q)) for q in (50, 95))
    ratio = statistics.median(taken) / statistics.median(base)
    print(f"{name:34}{p50:>8.1f}{p95:>9.1f}{ratio:>9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16_000, help="of the gallery (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=5000, help="in all (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="at once (default: %(default)s)")
    options = parser.parse_args()
    few = min(200, options.requests // 5)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        gallery, queries = build(Path(name), options.images)
        print(f"{options.images:,} images of {gallery.embedder.dimensions} numbers; {os.cpu_count()} cores, OMP_NUM_THREADS "
              f"{os.environ.get('OMP_NUM_THREADS')}, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "bdbnet.serve",
            f"index={name}/gallery",
            "port=0",
            "requests_per_second=null",
            "timeout=600",
        ]
        server = stack.enter_context(
            subprocess.Popen([*command, "accelerator=cpu"], stdout=subprocess.PIPE, text=True, cwd=name)
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        address = [server.stdout.readline() for _ in range(3)][2].split()[1]
        requests(address, queries, 20)
        print(f"{'':34}{'p50, ms':>8}{'p95, ms':>9}{'ratio':>9}")
        alone, base = in_turns(gallery, address, queries, few)
        line("floor: in process", base, base)
        line("one client", alone, base)
        stop = threading.Event()
        cut: list[int] = []
        slow = [threading.Thread(target=trickle, args=(address, stop, cut)) for _ in range(SLOW)]
        for thread in slow:
            thread.start()
        time.sleep(1.5)
        beside, base = in_turns(gallery, address, queries, few)
        stop.set()
        for thread in slow:
            thread.join()
        assert not cut, f"{len(cut)} slow uploads were cut off while the client was measured"
        line("floor: in process", base, base)
        line(f"one client beside {SLOW} slow uploads", beside, base)
        left = options.requests - 2 * few - 20
        first = min(max(0, 500 - 2 * few - 20), left // 2)
        together(address, queries, first, options.clients)
        before = resident(server.pid)
        begin = time.perf_counter()
        rest = together(address, queries, left - first, options.clients)
        seconds = time.perf_counter() - begin
        line(f"{options.clients} clients at once", rest, base)
        after = resident(server.pid)
        rate, most = len(rest) / seconds, 1 / statistics.median(base)
        print(f"\n{options.clients} clients: {rate:.0f} requests/s; one after the other in process: {most:.0f}/s")
        done = f"{after:.0f} MB after {options.requests:,}: {after - before:+.1f} MB"
        print(f"memory of the server: {before:.0f} MB after the first requests, {done}")


if __name__ == "__main__":
    main()
