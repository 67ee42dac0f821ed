"""Build time, recall and speed of the indexes over a gallery.

    OMP_NUM_THREADS=2 python experiments/benchmarks/gallery_indexes.py
    OMP_NUM_THREADS=2 python experiments/benchmarks/gallery_indexes.py --store outputs/embed/gallery --queries outputs/embed/query

Without `--store` the gallery has the size of Market-1501's and is drawn at random: 15,913 embeddings of 512 numbers around
750 centres, and 1,000 queries around the same ones. Without `--queries` images of the gallery are searched for, which find
themselves. Recall@10 is the share of the 10 nearest images of the exact search that an index finds; the latency is the
median over 50 queries searched one at a time, the rate that of up to 1,000 queries in one call. Milvus is Milvus Lite, in
this process. Everything is built in a temporary folder and removed.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bdbnet.gallery import EmbeddingStore
from bdbnet.gallery.indexes.exact import ExactIndex, GalleryIndex
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.milvus import MilvusIndex
from bdbnet.gallery.indexes.quality import measure_index

CENTRES = 750


def drawn(count: int, dimensions: int, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal((count, dimensions), dtype=np.float32)
    return centres[rng.integers(0, len(centres), count)] + noise


def main() -> None:
    parser = argparse.ArgumentParser(description="Build time, recall and speed of the indexes over a gallery.")
    parser.add_argument("--store", type=Path, help="folder of embeddings; without it they are drawn at random")
    parser.add_argument("--queries", type=Path, help="folder of the queries' embeddings")
    parser.add_argument("--images", type=int, default=15_913, help="without --store")
    parser.add_argument("--dimensions", type=int, default=512, help="without --store")
    parser.add_argument("--distance", default="euclidean")
    arguments = parser.parse_args()
    if arguments.store is None:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((CENTRES, arguments.dimensions), dtype=np.float32)
        gallery = drawn(arguments.images, arguments.dimensions, centres, rng)
        queries = drawn(1000, arguments.dimensions, centres, rng)
    else:
        gallery = EmbeddingStore.open(arguments.store).embeddings
        queries = gallery if arguments.queries is None else EmbeddingStore.open(arguments.queries).embeddings

    print(f"{len(gallery):,} images, embeddings of {gallery.shape[1]} numbers, {arguments.distance}")
    print(
        f"{os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}, load {os.getloadavg()[0]:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        options = {"distance": arguments.distance}
        engines: dict[str, Callable[[], GalleryIndex]] = {
            "exact": lambda: ExactIndex(gallery, **options),
            "faiss_ivf": lambda: FaissIndex(gallery, kind="ivf", folder=folder, **options),
            "faiss_hnsw": lambda: FaissIndex(gallery, kind="hnsw", folder=folder, **options),
            "milvus": lambda: MilvusIndex(gallery, uri=Path(folder, "milvus.db"), **options),
        }
        print(f"{'engine':12}{'build, s':>10}{'recall@10':>12}{'ms/query':>11}{'queries/s':>12}")
        for name, build in engines.items():
            index = build()
            quality = measure_index(index, queries)
            print(
                f"{name:12}{index.build_seconds or 0:>10.2f}{quality.recall:>12.4f}{quality.latency_ms:>11.2f}"
                f"{quality.queries_per_second:>12,.0f}"
            )


if __name__ == "__main__":
    main()
