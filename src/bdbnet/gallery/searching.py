"""A search of queries in a set of embeddings, from what the command is given to a table of what was found."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig
from tqdm import tqdm

from bdbnet.checked import checked, read_json
from bdbnet.config import ConfigError, plain
from bdbnet.datasets import BOX_COLUMNS
from bdbnet.evaluation.embedder import Embedded, Embedder, EmbeddingError
from bdbnet.gallery.embedding import checkpoint_of, embedder_of
from bdbnet.gallery.indexes.exact import ExactIndex, Filter, GalleryIndex
from bdbnet.gallery.indexes.faiss import FaissIndex
from bdbnet.gallery.indexes.milvus import MilvusIndex
from bdbnet.gallery.indexes.quality import IndexQuality, measure_index
from bdbnet.gallery.marks import Marks, marking_of
from bdbnet.gallery.pages import search_page
from bdbnet.gallery.shards import skipped_images, unreadable_named, write_skipped
from bdbnet.gallery.store import SKIPPED, EmbeddingStore, check_same_model
from bdbnet.loading.sources import Images, find_images
from bdbnet.overwriting import refuse_other_settings, settings_that_count
from bdbnet.regular_files import require_regular
from bdbnet.reporting.index_page import links_of, navigation, update_index
from bdbnet.results import write_atomically
from bdbnet.wording import counted, date_text

# Files of a search.
FOUND = "search.parquet"
PAGE = "search.html"

ENGINES = ("exact", "faiss_ivf", "faiss_hnsw", "milvus")
COLUMNS = ("path", "label", "camera", "time", *BOX_COLUMNS)

_SETTINGS = b"bdbnet"  # key in the metadata of what was found
_ENOUGH_QUERIES = 100  # below that many the recall is measured on gallery images instead


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries of a search.

    Attributes:
        embeddings: (Q, D).
        table: with `path` and what else is known.
        root: folder of their paths.
        embedder: that embedded them just now; None where they come from a folder.
        skipped: images that could not be read and were left out; None: there are none.
    """

    embeddings: np.ndarray
    table: pd.DataFrame
    root: Path
    embedder: Embedder | None = None
    skipped: pd.DataFrame | None = None


class Found(NamedTuple):
    """What a search found.

    Attributes:
        rows: see `results_table`.
        queries: path of each query, also of those for which a filter left nothing.
        facts: what was searched and how, as texts under short names.
    """

    rows: pd.DataFrame
    queries: list[str]
    facts: dict[str, str]


def search(config: DictConfig, folder: Path) -> Found:
    """Search for the queries of ``config`` in its index; writes ``search.parquet`` and ``search.html`` to ``folder``.

    Raises:
        ConfigError: also where the folder holds what another search found, and `config.overwrite` is not set.
        StoreError, GalleryIndexError and what `read_queries` raises: see there.
    """
    gallery = EmbeddingStore.open(config.index, verify=config.verify)
    if config.distance is None:
        config.distance = gallery.model.distance
    settings = settings_that_count(plain(config))
    if not config.overwrite:
        _refuse_other_search(folder, settings)
    if config.k > len(gallery):
        raise ConfigError(f"k={config.k}: {config.index} holds {counted(len(gallery), 'image')}, so k is at most that")
    queries = read_queries(config, gallery)
    allowed = filter_of(config, gallery, queries)
    index = open_index(config, gallery)
    parts = [] if config.same_camera else ["not the query's own camera"]
    parts += [f"{key} {config[key]}" for key in ("after", "before") if config[key] is not None]
    facts = {
        "gallery": f"{counted(len(gallery), 'image')}, embeddings of {gallery.dimensions} numbers",
        "queries": f"{len(queries.table):,} from {config.images or config.queries}",
        "network": f"{gallery.model.shown}, images of {' x '.join(map(str, gallery.model.image_size))} pixels",
        "distance": config.distance,
        "filter": ", ".join(parts) or "none",
        "engine": config.engine,
    }
    if queries.skipped is not None:
        facts["queries"] += f"; left out {len(queries.skipped):,} that can't be read: {folder / SKIPPED}"
    if config.engine != "exact":
        quality = quality_of(index, index_folder(config) / f"{config.engine}.recall.json", queries.embeddings)
        facts["engine"] += f", {index.built}; without a filter {quality}"
    marks, facts["marks"] = marking_of(gallery.model, config.distance, queries.embedder)
    rows = results_table(queries, gallery, *index.search(queries.embeddings, config.k, allowed=allowed), marks)
    _write_rows(rows, settings, folder / FOUND)
    if queries.skipped is None:
        (folder / SKIPPED).unlink(missing_ok=True)  # of an earlier search
    else:
        write_skipped(folder, queries.skipped)
    name = Path(config.index).resolve().name
    text = search_page(
        rows,
        queries.table["path"].tolist(),
        queries.root,
        gallery.root,
        queries=config.pictures,
        facts=facts,
        name=name,
        date=date_text(datetime.now(UTC)),
        navigation=navigation(links_of(folder)),
    )
    write_atomically(folder / PAGE, text.encode("utf-8", "xmlcharrefreplace"))
    update_index(folder)
    return Found(rows, queries.table["path"].tolist(), facts)


def _write_rows(rows: pd.DataFrame, settings: Mapping[str, Any], path: Path) -> None:
    """Write what was found, with the settings of the search in the file's metadata."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SETTINGS: json.dumps(settings)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _refuse_other_search(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where a folder holds what another search found."""
    try:
        require_regular(folder / FOUND)
        said = (pq.read_schema(folder / FOUND).metadata or {}).get(_SETTINGS)
        then = None if said is None else json.loads(said)
    except FileNotFoundError:
        return
    except (OSError, ValueError):  # pyarrow's errors are both
        then = None
    if not isinstance(then, dict):
        raise ConfigError(
            f"{folder / FOUND} does not say by which settings it was found. Keep it: run_name=<another name>. Replace it: "
            "overwrite=true."
        )
    refuse_other_settings(folder, then, settings)


def read_queries(config: DictConfig, gallery: EmbeddingStore) -> Queries:
    """The queries that `config.images` or `config.queries` names, as embeddings that can be compared with the gallery's.

    With `config.on_error=skip` images that can't be read are left out.

    Raises:
        ConfigError: neither or both are given, an image can't be read, or the gallery's checkpoint is not where it was.
        StoreError: the queries' embeddings are of another model.
        DatasetError, CheckpointError, EmbeddingError: see `find_images`, `embedder_of` and `Embedder.embed_files`.
    """
    if (config.images is None) == (config.queries is None):
        raise ConfigError(
            "set exactly one of images= (a file, folder or table) or queries= (a folder that bdbnet.embed made)"
        )
    if config.queries is not None:
        store = EmbeddingStore.open(config.queries, verify=config.get("verify", True))
        check_same_model(gallery.model, store.model)
        return Queries(np.asarray(store.embeddings), store.table, store.root)
    images = find_images(config.images, root=config.root)
    checkpoint = checkpoint_of(gallery, config.checkpoint)
    embedder = embedder_of(
        gallery.model,
        checkpoint=checkpoint,
        accelerator=config.accelerator,
        model=config.get("model"),
        backbone=config.get("backbone"),
    )
    with unreadable_named():
        embedded = _embedded(embedder, images, config)
    if not len(embedded.rows):
        raise EmbeddingError(f"{images.source}: no image can be read; the first: {embedded.unreadable[0]}")
    table = images.table.iloc[embedded.rows].reset_index(drop=True)
    skipped = skipped_images(images, embedded.unreadable) if embedded.unreadable else None
    return Queries(embedded.embeddings, table, images.root, embedder, skipped)


def _embedded(embedder: Embedder, images: Images, config: DictConfig) -> Embedded:
    """The embeddings of all images, under a progress bar."""
    count, size = len(images), config.batch_size
    batches = [range(count)[first : first + size] for first in range(0, count, size)]
    stream = embedder.embed_files(
        images.manifest,
        batches,
        num_workers=0 if config.num_workers is None and len(batches) == 1 else config.num_workers,
        skip_unreadable=config.on_error == "skip",
    )
    parts = [*tqdm(stream, "embedding", len(batches), unit=" batches", leave=False, disable=None, delay=2)]
    return Embedded(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
        {row: reason for part in parts for row, reason in part.unreadable.items()},
    )


def open_index(config: DictConfig, gallery: EmbeddingStore) -> GalleryIndex:
    """The gallery behind the engine that `config.engine` names; an approximate one is built if it is not there yet.

    Raises:
        ConfigError: an unknown engine.
        GalleryIndexError: see the engines.
    """
    if config.engine not in ENGINES:
        raise ConfigError(f"engine={config.engine}: choose one of {', '.join(ENGINES)}")
    columns = index_columns(gallery, config.distance)
    if config.engine == "exact":
        return ExactIndex(gallery.embeddings, **columns)
    folder = index_folder(config)
    if config.engine == "milvus":
        uri = folder / "milvus.db" if config.milvus.uri is None else config.milvus.uri
        with tqdm(total=len(gallery), unit=" images", desc="inserting", leave=False, disable=None) as bar:
            return MilvusIndex(
                gallery.embeddings,
                uri=uri,
                timeout=config.milvus.timeout,
                **config.hnsw,
                **columns,
                progress=lambda done: bar.update(done - bar.n),
            )
    kind = config.engine.removeprefix("faiss_")
    return FaissIndex(gallery.embeddings, kind=kind, folder=folder, **config[kind], **columns)


def index_columns(gallery: EmbeddingStore, distance: str) -> dict[str, Any]:
    """What an index knows of a gallery besides its embeddings: arguments of every `GalleryIndex`."""
    return {
        "cameras": gallery.table.get("camera"),
        "times": gallery.table.get("time"),
        "distance": distance,
        "fingerprint": gallery.fingerprint,
        "ids": gallery.ids,
        "history": gallery.history,
    }


def index_folder(config: DictConfig) -> Path:
    """Where an approximate engine keeps its files."""
    return Path(config.index if config.index_folder is None else config.index_folder).expanduser()


def quality_of(index: GalleryIndex, record: Path, queries: np.ndarray) -> IndexQuality:
    """What an approximate index is worth, measured once and kept in the file `record` for as long as it holds.

    It is measured on the queries (Q, D) if there are at least 100 of them, else on images of the gallery, which it says.
    """
    try:
        known = read_json(record)
        if known["settings"] == index.settings:
            return checked(known["quality"], IndexQuality)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    if len(queries) >= _ENOUGH_QUERIES:
        quality = measure_index(index, queries)
    else:
        quality = replace(measure_index(index, index.sampled()), of="gallery images (each finds itself too)")
    content = {"settings": index.settings, "quality": asdict(quality)}
    write_atomically(record, (json.dumps(content, indent=2) + "\n").encode())
    return quality


def filter_of(config: DictConfig, gallery: EmbeddingStore, queries: Queries) -> Filter:
    """What the settings `same_camera`, `after` and `before` allow to find.

    Raises:
        ConfigError: no time, or a filter on a camera or a time that is not known.
    """
    after, before = (seconds_of(config[key], key) for key in ("after", "before"))
    for key, value in (("after", after), ("before", before)):
        if value is not None and "time" not in gallery.table:
            raise ConfigError(
                f"{key}={config[key]}: no times are known in {config.index}. Embed its images from a table with a column "
                "time, or leave it out."
            )
    if config.same_camera:
        return Filter(None, after, before)
    for name, table in ((config.index, gallery.table), (config.images or config.queries, queries.table)):
        unknown = np.flatnonzero(table["camera"] < 0) if "camera" in table else np.arange(len(table))
        if len(unknown):
            raise ConfigError(
                f"same_camera=false: the camera of {len(unknown):,} of the {len(table):,} images of {name} is not known, the "
                f"first is {table['path'].iloc[unknown[0]]}. Name them from a table with a column camera, or leave same_camera "
                "out."
            )
    return Filter(queries.table["camera"].to_numpy(), after, before)


def seconds_of(value: Any, key: str) -> float | None:
    """Seconds since 1970 of a number or an ISO 8601 date and time, in UTC where it has no zone.  Raises ConfigError for another."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(
            f"{key}={value}: give seconds since 1970, or a date or date and time as in 2024-05-31T18:30:00+02:00"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def results_table(
    queries: Queries, gallery: EmbeddingStore, indices: np.ndarray, distances: np.ndarray, marks: Marks | None = None
) -> pd.DataFrame:
    """A row for each image found, of `indices` and `distances` (Q, k): `query_index`, `rank` (from 1), `distance`, `mark` where
    there are any, and for query and image what their tables hold, as `query_path`, `gallery_path`, `query_label`, `gallery_label`
    and so on; `correct` where both have labels."""
    query, place = np.nonzero(indices >= 0)
    rows = pd.DataFrame({"query_index": query, "rank": place + 1, "distance": distances[query, place]})
    if marks is not None:
        rows["mark"] = marks.of(rows["distance"])
    for name, table, chosen in (
        ("query", queries.table, query),
        ("gallery", gallery.table, indices[query, place]),
    ):
        for column in COLUMNS:
            if column in table:
                rows[f"{name}_{column}"] = table[column].iloc[chosen].to_numpy()
    if {"query_label", "gallery_label"} <= {*rows}:
        rows["correct"] = rows["query_label"] == rows["gallery_label"]
    return rows


def results_text(found: Found, queries: int) -> str:
    """The hits of the first queries as text."""
    lines = []
    for number, path in enumerate(found.queries[:queries]):
        hits = found.rows[found.rows["query_index"] == number]
        lines.append(_described(hits.iloc[0], "query") if len(hits) else f"{path}  nothing found")
        for row in hits.to_dict("records"):
            mark = {True: " ✓", False: " ✗"}[row["correct"]] if "correct" in row else ""
            said = f"{row['mark']:<8}  " if "mark" in row else ""
            lines.append(f"{row['rank']:>5}{mark}  {row['distance']:<10.4g}  {said}{_described(row, 'gallery')}")
    return "\n".join(lines)


def _described(row: Any, of: str) -> str:
    """Path, label and camera, as far as they are known."""
    known = [f"{word} {row[key]}" for word in ("label", "camera") if (key := f"{of}_{word}") in row and row[key] >= 0]
    return "  ".join([row[f"{of}_path"], *known])
