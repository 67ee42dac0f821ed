"""Pictures and tables of a finished run for dashboards: ranking lists, maps, worst queries, distances of pairs, drop masks."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from bdbnet.datasets import BOX_COLUMNS
from bdbnet.datasets.images import ImageError, read_image
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.error_analysis import pair_record, query_table
from bdbnet.evaluation.error_analysis import worst_queries as worst_of
from bdbnet.evaluation.maps import MapError, energy_maps
from bdbnet.evaluation.run_log import Outcome, Picture
from bdbnet.evaluation.verification import pair_distances
from bdbnet.figures import (
    RankedImage,
    RankingList,
    activation_maps_figure,
    drop_masks_figure,
    ranking_lists_figure,
    read_thumbnail,
)
from bdbnet.loading import Preprocessing
from bdbnet.models import EmbeddingNetwork
from bdbnet.reporting.run_folder import file_below
from bdbnet.retrieval import distance_blocks, rank_queries

_TOP = 5  # gallery images of a ranking list
_CHANNELS = 3  # of a feature map, in the picture of the masks
#: W&B shows at most this many pictures under one name, and refuses larger ones; a browser is slow from far fewer pixels on.
MOST_PICTURES, LONGEST_SIDE = 108, 4096


@dataclass(frozen=True)
class Shown:
    """What a dashboard shows of a run.

    Attributes:
        images: whether pictures of the data set's images are shown; None: of rendered data alone, in which are no real people.
        ranking_lists: how many, half of them at random and half of the worst; 0 for none.
        worst_queries: rows of the table of the worst queries; 0 for none.
        distances: ROC and histogram of the distances of pairs.
        masks: what the drop layers drop in a training step.
        activation_maps: of how many queries the squared activation of each branch is shown; 0 for none.
    """

    images: bool | None = None
    ranking_lists: int = 8
    worst_queries: int = 20
    distances: bool = True
    masks: bool = True
    activation_maps: int = 4

    def images_of(self, synthetic: bool) -> bool:
        """Whether pictures of a data set's images are shown."""
        return synthetic if self.images is None else self.images


class Pictures(NamedTuple):
    """Pictures under one name; `of_images`: they show images of the data set."""

    name: str
    pictures: list[Picture]
    of_images: bool


class WorstQueries(NamedTuple):
    """Rows of the table of the worst queries; the first two columns are pictures, None where they may not be shown."""

    columns: tuple[str, ...]
    rows: list[list[Any]]


def pictures_of(outcome: Outcome, shown: Shown, *, images: bool) -> Iterator[Pictures]:
    """The pictures of a run.

    Args:
        images: whether the data set's images may be shown.
    """
    if images and shown.ranking_lists and outcome.images is not None and outcome.test.evaluated is not None:
        yield Pictures("test/ranking_lists", _ranking_lists(outcome, shown.ranking_lists), True)
    if images and shown.activation_maps and (maps := _activation_maps(outcome, shown.activation_maps)) is not None:
        yield Pictures("test/activation_maps", [maps], True)
    if shown.distances and (pairs := _pairs(outcome)) is not None:
        from bdbnet.figures.error_analysis import distance_distributions, roc_curve

        rate, threshold = pairs["equal_error_rate"], pairs["equal_error_threshold"]
        words = f"equal error rate {100 * rate:.2f} % at distance {threshold:.4g}"
        roc = roc_curve(**pairs["roc"], marks=[("EER", rate, 1 - rate)])
        histogram = distance_distributions(**pairs["histogram"], threshold=threshold)
        yield Pictures("test/roc", [Picture(roc, words)], False)
        yield Pictures("test/distances", [Picture(histogram, words)], False)
    if shown.masks and (masks := _masks(outcome)):
        words = ", ".join(f"{name} {mask.mean():.0%}" for name, mask in masks.items())
        yield Pictures("train/drop_masks", [Picture(drop_masks_figure(masks, channels=_CHANNELS), words)], False)


def worst_queries(outcome: Outcome, shown: Shown, *, images: bool) -> WorstQueries | None:
    """The queries of lowest average precision with what stood at rank 1; None where none is asked for."""
    found = outcome.test.evaluated
    if not shown.worst_queries or found is None:
        return None
    facts = found.facts
    if facts is None:  # as while training
        facts = rank_queries(found.query, found.gallery, found.matches, found.search, facts=True).facts
    assert facts is not None
    queries = query_table(outcome.test.table, found, facts, {})
    boxes = _boxes(outcome)
    rows = []
    for query in worst_of(queries, shown.worst_queries):
        nearest = query["nearest"]
        asked, at_first = (
            _thumbnail(outcome, path, boxes) if images else None for path in (query["path"], nearest["path"])
        )
        rows.append(
            [asked, at_first, query["path"], query["label"], query["camera"], query["ap"], query["first_match_rank"],
             nearest["label"], nearest["camera"], nearest["distance"], query["first_match_rank"] == 1]
        )  # fmt: skip
    return WorstQueries(
        ("query", "rank 1", "path", "label", "camera", "AP", "first match rank", "label at rank 1", "camera at rank 1",
         "distance at rank 1", "correct"),
        rows,
    )  # fmt: skip


def as_image(picture: Picture) -> Image.Image:
    """A picture as RGB pixels that every dashboard takes: no side is longer than `LONGEST_SIDE`.

    Raises:
        ValueError: an array that is no picture.
    """
    content = picture.content
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim not in (2, 3) or 0 in content.shape:
            raise ValueError(f"a picture is uint8 (H, W, 3) or (H, W), not {content.dtype} {content.shape}")
        content = Image.fromarray(content)
    elif not isinstance(content, Image.Image):
        buffer = io.BytesIO()
        content.savefig(buffer, format="png", dpi=130)
        content = Image.open(buffer)
    image = content.convert("RGB")
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return image


def as_images(name: str, pictures: Sequence[Picture]) -> list[tuple[Image.Image, str]]:
    """Pictures and captions, at most `MOST_PICTURES` of them."""
    if len(pictures) > MOST_PICTURES:
        warnings.warn(f"{name}: {len(pictures)} pictures; the first {MOST_PICTURES} are logged", stacklevel=3)
    return [(as_image(picture), picture.caption) for picture in pictures[:MOST_PICTURES]]


def _ranking_lists(outcome: Outcome, count: int) -> list[Picture]:
    found = outcome.test.evaluated
    assert found is not None
    top = found.top_k
    if top is None or top[0].shape[1] < _TOP:
        top = rank_queries(found.query, found.gallery, found.matches, found.search, top_k=_TOP).top_k
    assert top is not None
    nearest, distances = top[0][:, :_TOP], top[1][:, :_TOP]
    labels, paths = outcome.test.table["label"].to_numpy(), outcome.test.table["path"].to_numpy()
    correct = (labels[found.gallery_rows[nearest]] == labels[found.query_rows][:, None]) & (nearest >= 0)
    first = np.where(correct.any(axis=1), correct.argmax(axis=1), _TOP)
    order = np.random.default_rng(outcome.result.seed).permutation(len(first))
    drawn = order[: (count + 1) // 2]
    rest = order[len(drawn) :]
    worst = rest[np.argsort(-first[rest], kind="stable")][: count // 2]
    boxes, pictures = _boxes(outcome), []
    for kind, queries in (("at random", drawn), ("among the worst", worst)):
        for query in queries:
            row = found.query_rows[query]
            listed = [
                RankedImage(_pixels(outcome, paths[found.gallery_rows[n]], boxes), float(away), bool(right))
                for n, away, right in zip(nearest[query], distances[query], correct[query], strict=True)
                if n >= 0
            ]
            ranking = RankingList(_pixels(outcome, paths[row], boxes), listed)
            hit = f"first correct at rank {first[query] + 1}" if first[query] < _TOP else f"none correct in {_TOP}"
            caption = f"{outcome.test.label_names.get(int(labels[row]), labels[row])}: {hit} ({kind})"
            pictures.append(Picture(ranking_lists_figure([ranking], top=_TOP), caption))
    return pictures


def _activation_maps(outcome: Outcome, count: int) -> Picture | None:
    """Squared activation of some queries, drawn at random; None where the network has no map, or the images are not there."""
    found, network = outcome.test.evaluated, outcome.network
    if found is None or outcome.image_size is None or not isinstance(network, EmbeddingNetwork):
        return None
    labels, paths = outcome.test.table["label"].to_numpy(), outcome.test.table["path"].to_numpy()
    drawn = np.random.default_rng(outcome.result.seed).permutation(len(found.query_rows))[:count]
    boxes = _boxes(outcome)
    shown = [(row, _thumbnail(outcome, paths[row], boxes)) for row in found.query_rows[drawn].tolist()]
    read = [(row, np.asarray(image)) for row, image in shown if image is not None]
    if not read:
        return None
    images = [image for _, image in read]
    embedder = Embedder(network, _preprocessing(outcome))
    training = network.training
    try:
        network.eval()
        maps = energy_maps(embedder, embedder.prepare(images))
    except MapError:
        return None
    finally:
        network.train(training)
    names = [str(outcome.test.label_names.get(int(labels[row]), labels[row])) for row, _ in read]
    figure = activation_maps_figure(
        images, {name: [*values] for name, values in maps.items()}, captions=names,
        unit="squared activation, summed over channels",
    )  # fmt: skip
    return Picture(figure, "where each branch is active")


def _preprocessing(outcome: Outcome) -> Preprocessing:
    """That of the test images, as the protocol says."""
    assert outcome.image_size is not None
    protocol = outcome.result.protocol
    said = protocol.preprocessing if isinstance(protocol.preprocessing, Mapping) else {}
    unusual: dict[str, Any] = {key: tuple(of) if isinstance(of, list) else of for key, of in said.items()}
    return replace(Preprocessing(outcome.image_size, protocol.pad_to_square), **unusual)


def _boxes(outcome: Outcome) -> Mapping[str, tuple[int, int, int, int]]:
    """Parts of photographs that are images, by path, where the data set has such."""
    table = outcome.test.table
    if not {*BOX_COLUMNS} <= {*table.columns}:
        return {}
    columns = [table[name].astype(int) for name in BOX_COLUMNS]
    return dict(zip(table["path"], zip(*columns, strict=True), strict=True))


def _pixels(outcome: Outcome, path: str, boxes: Mapping[str, tuple[int, int, int, int]]) -> np.ndarray | Path:
    """An image of the test set; where it can't be read, a path that is not there, for which a figure has a grey field."""
    image = _thumbnail(outcome, path, boxes)
    return Path("missing") if image is None else np.asarray(image)


def _thumbnail(outcome: Outcome, path: str, boxes: Mapping[str, tuple[int, int, int, int]]) -> Image.Image | None:
    if outcome.images is None:
        return None
    try:
        file = file_below(outcome.images, path)
        if file is None:
            return None
        return read_thumbnail(read_image(file, box=boxes[path]) if path in boxes else file)
    except (OSError, ValueError, ImageError):
        return None


def _pairs(outcome: Outcome) -> Mapping[str, Any] | None:
    """Distances of pairs; None where there are no two identities to tell apart."""
    found, pairs = outcome.test.evaluated, outcome.pairs
    if pairs is None and found is not None:
        blocks = distance_blocks(
            found.query, found.gallery, distance=found.search.distance, absolute=True,
            chunk_memory_mb=found.search.chunk_memory_mb,
        )  # fmt: skip
        try:
            pairs = pair_record(pair_distances(blocks, found.matches, seed=outcome.result.seed))
        except ValueError:
            return None
    return pairs if pairs is not None and pairs["negatives"] else None


def _masks(outcome: Outcome) -> dict[str, np.ndarray]:
    """The mask of each drop layer in its next training step: name -> bool (2, channels, H, W); of maps of one size."""
    network = outcome.network
    if outcome.result.kind != "train" or network is None or outcome.image_size is None:
        return {}
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "mask_scope")}
    shapes: dict[str, tuple[int, int, int, int]] = {}
    hooks = [layer.register_forward_hook(_noting(shapes, name)) for name, layer in layers.items()]
    training, device = network.training, next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, 3, *outcome.image_size, device=device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    masks: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        layer: Any = layers[name]
        shown = (shape[0], min(shape[1], _CHANNELS), *shape[2:])
        if shown[1] == _CHANNELS and (not masks or next(iter(masks.values())).shape[2:] == shape[2:]):
            masks[name] = layer.dropped(shown).expand(shown).cpu().numpy()
    return masks


def _noting(shapes: dict[str, tuple[int, int, int, int]], name: str) -> Any:
    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
        shapes[name] = tuple(inputs[0].shape)  # type: ignore[assignment]

    return note
