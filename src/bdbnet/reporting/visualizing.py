"""Pictures of where networks look: figures as files, their values as arrays, and a page with all of them."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from bdbnet.config import ConfigError, plain
from bdbnet.datasets import DatasetError
from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.map_areas import ALL, area_differences, map_areas, mean_area
from bdbnet.evaluation.maps import METHODS, MapError, Maps, class_maps, energy_maps, similarity_maps
from bdbnet.figures import RankedImage, RankingList, activation_maps_figure, overlay, ranking_lists_figure
from bdbnet.overwriting import refuse_other_settings, settings_that_count
from bdbnet.reporting.image_choice import ImageChoice
from bdbnet.reporting.index_page import links_of, navigation, update_index
from bdbnet.reporting.list_maps import agreement
from bdbnet.reporting.page import note_paragraphs, page, settings_of_page
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reporting.table import Grid, as_html, as_text
from bdbnet.results import write_atomically
from bdbnet.wording import date_text, distance, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bdbnet.figures import Theme

PAGE = "visualize.html"
ARRAYS = "maps.npz"
AREAS = "areas.csv"
_STEPS = 3  # training steps whose masks are shown


class Section(NamedTuple):
    """One kind of picture: its heading, words, how to draw it, and the values in it."""

    kind: str
    title: str
    words: str
    draw: "Callable[[Theme], Figure] | None"
    arrays: Mapping[str, np.ndarray]
    table: Grid | None = None


def visualize(
    config: DictConfig, embedders: Mapping[str, Embedder], images: ImageChoice, folder: Path, source: str
) -> list[str]:
    """Draw what `config.what` asks for into a folder.

    Args:
        config: of `bdbnet.visualize`.
        embedders: name -> network.
        images: what they are asked to look at.
        source: what the images are, for people.

    Returns:
        What to print.

    Raises:
        MapError: a network that can't give such a map, or one image alone where two are compared.
        ConfigError: the folder holds figures of other settings, and `config.overwrite` is not set.
    """
    settings = settings_that_count(plain(config))
    if not config.overwrite and (earlier := settings_of_page(folder / PAGE)):
        refuse_other_settings(folder, json.loads(earlier), settings)
    makers: dict[str, Callable[[], Section]] = {
        "activation": lambda: activation_section(embedders, images, tokens=config.tokens),
        "class": lambda: _class(embedders, images, config),
        "similarity": lambda: _similarity(embedders, images, config),
        "masks": lambda: _masks(embedders, images, config),
        "ranking": lambda: ranking_section(
            embedders,
            images,
            config.top,
            config.loading.test_batch_size,
            config.loading.num_workers,
            tokens=config.tokens,
        ),
        "area": lambda: _area(embedders, images, config, folder),
    }
    sections = [makers[kind]() for kind in dict.fromkeys(config.what)]
    files = [file for section in sections for file in write_figure(section, folder, config.format, config.dpi)]
    arrays = {name: values for section in sections for name, values in section.arrays.items()}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **cast(Any, arrays))
        files.append(write_atomically(folder / ARRAYS, buffer.getvalue()))
    text = page(
        "Where networks look",
        "Activation maps",
        f"{', '.join(embedders)} on {source}",
        [section_html(section) for section in sections],
        name=folder.name,
        date=date_text(datetime.now(UTC)),
        settings=json.dumps(settings),
        navigation=navigation(links_of(folder)),
    )
    files.append(write_atomically(folder / PAGE, text.encode("utf-8", "xmlcharrefreplace")))
    update_index(folder)
    tables = [as_text(section.table) for section in sections if section.table is not None]
    return [*tables, f"{', '.join(file.name for file in files)} in {folder}"]


# Kinds


def activation_section(
    embedders: Mapping[str, Embedder], images: ImageChoice, *, tokens: bool = False, branches: Sequence[str] = ()
) -> Section:
    """Squared activation of each network's branches, or of some of them.  Raises MapError where a network has none of these."""
    maps: dict[str, Maps] = {}
    for name, embedder in embedders.items():
        found = energy_maps(embedder, images.prepared(embedder, images.rows), tokens=tokens)
        maps[name] = {branch: values for branch, values in found.items() if not branches or branch in branches}
        if not maps[name]:
            raise MapError(f"{name} has the branches {', '.join(found)}, none of {', '.join(branches)}")
    return _section(
        "activation", "Activation", "Squared activation, summed over channels: where the last feature map is active.",
        maps, images, images.rows, "squared activation, summed over channels",
    )  # fmt: skip


def _class(embedders: Mapping[str, Embedder], images: ImageChoice, config: DictConfig) -> Section:
    maps, chosen = {}, []
    for name, embedder in embedders.items():
        prepared = images.prepared(embedder, images.rows)
        wanted = None if config.identity is None else [config.identity] * len(prepared)
        maps[name], identities = class_maps(embedder, prepared, wanted, method=config.method, tokens=config.tokens)
        chosen.append(f"{name}: {', '.join(map(str, identities))}")
    said = "the likeliest training identity" if config.identity is None else f"training identity {config.identity}"
    own = config.method in METHODS
    how = "from the gradient of its logit" if own else "by pytorch-grad-cam, each map scaled to 0 to 1"
    words = f"What speaks for {said} ({config.method}), {how}. Identities: {'; '.join(chosen)}."
    unit = "gradient of the logit x activation" if own else "from 0 to 1 in each image"
    return _section("class", "Class maps", words, maps, images, images.rows, unit)


def _similarity(embedders: Mapping[str, Embedder], images: ImageChoice, config: DictConfig) -> Section:
    pairs = _pairs(images, config.seed)
    maps: dict[str, Maps] = {}
    away: dict[str, np.ndarray] = {}
    for name, embedder in embedders.items():
        left, right = (images.prepared(embedder, [pair[side] for pair in pairs]) for side in (0, 1))
        a, b = similarity_maps(embedder, left, right, tokens=config.tokens)
        # The two images of a pair beneath each other.
        maps[name] = {branch: np.stack([a[branch], b[branch]], 1).reshape(-1, *a[branch].shape[1:]) for branch in a}
        embeddings = [embedder.embed_prepared(side).cpu().numpy() for side in (left, right)]
        away[name] = np.array([embedder.distance(*pair) for pair in zip(*embeddings, strict=True)])
    rows = np.array(pairs).ravel()
    captions = []
    for number in range(len(pairs)):
        apart = "\n".join(
            f"{f'{name}: ' if len(away) > 1 else 'distance '}{distance(values[number])}"
            for name, values in away.items()
        )
        captions += [images.caption(int(rows[2 * number])), f"{images.caption(int(rows[2 * number + 1]))}\n{apart}"]
    words = "Pairs of images, one above the other: each place's contribution to the inner product of their embeddings."
    return _section(
        "similarity", "Where two images agree", words, maps, images, rows, "contribution to the inner product", captions
    )


def _masks(embedders: Mapping[str, Embedder], images: ImageChoice, config: DictConfig) -> Section:
    rows = images.rows
    columns: dict[str, np.ndarray] = {}
    masks: dict[str, list[np.ndarray | None]] = {}
    for name, embedder in embedders.items():
        layer: Any = next((part for part in embedder.network.modules() if hasattr(part, "dropped")), None)
        maps = energy_maps(embedder, images.prepared(embedder, rows))
        if layer is None or "dropping" not in maps:
            raise MapError(
                f"{name} has no drop layer, whose masks could be shown: give a network with a dropping branch (model=bdb)"
            )
        energy = maps["dropping"]
        before = layer.step
        for step in range(_STEPS):
            layer.step = torch.full_like(before, config.seed + step)
            drawn = layer.dropped((len(rows), 1, *energy.shape[1:])).cpu().numpy()
            column = f"{f'{name}{chr(10)}' if len(embedders) > 1 else ''}step {step + 1}"
            columns[column] = energy
            masks[column] = [*np.broadcast_to(drawn[:, 0], energy.shape)]
        layer.step = before
    pictures = [images.picture(int(row)) for row in rows]
    captions = [images.caption(int(row)) for row in rows]
    return Section(
        "masks",
        "What is dropped",
        "The dropping branch's activation, without what the drop layer drops in three training steps (paper, Figure 6).",
        lambda theme: activation_maps_figure(
            pictures, {name: [*values] for name, values in columns.items()}, captions=captions, masks=masks,
            unit="squared activation, summed over channels", theme=theme,
        ),
        {f"masks/{name.replace(chr(10), '/')}": np.stack([np.asarray(one) for one in of]) for name, of in masks.items()},
    )  # fmt: skip


def ranking_section(
    embedders: Mapping[str, Embedder],
    images: ImageChoice,
    top: int,
    batch_size: int = 64,
    num_workers: int | None = None,
    *,
    tokens: bool = False,
    with_maps: bool = True,
) -> Section:
    """Ranking lists of each network, with or without the places that make images near."""
    queries = images.rows if images.of_dataset else images.rows[:1]
    _require_two(images)
    top = min(top, len(images.gallery))
    lists: list[RankingList] = []
    arrays: dict[str, np.ndarray] = {}
    table = images.manifest.table
    several = len(embedders) > 1
    for name, embedder in embedders.items():
        asked = embedder.embed(images.manifest.with_rows(table.iloc[queries]), num_workers=0)
        gallery = images.manifest.with_rows(table.iloc[images.gallery])
        found = embedder.embed(gallery, batch_size=batch_size, num_workers=num_workers)
        for query, row in zip(asked, queries.tolist(), strict=True):
            nearest = _nearest(embedder.distance(query, found), images, row, top)
            plain = _plain_list(name if several else "query", images, row, nearest)
            lists.append(plain)
            if with_maps:
                title = name if several else ""
                lists.append(_with_maps(embedder, title, plain, images, row, nearest, arrays, tokens))
    words = "Each query and its nearest images with their distances."
    if with_maps:
        words = (
            "Each query and its nearest images, and beneath them what makes them near: each place's contribution to the inner "
            "product of the two embeddings, of all branches together. The query's map is that for rank 1."
        )
    return Section(
        "ranking", "Ranking lists", words, lambda theme: ranking_lists_figure(lists, top=top, theme=theme), arrays
    )


def _nearest(away: np.ndarray, images: ImageChoice, query: int, top: int) -> list[tuple[int, float]]:
    """Rows and distances of the nearest images; those of the query's identity and camera do not count, nor the query."""
    gallery = images.gallery
    left_out = gallery == query
    if images.of_dataset and images.cameras[query] >= 0:
        left_out |= (images.labels[gallery] == images.labels[query]) & (
            images.cameras[gallery] == images.cameras[query]
        )
    away = np.where(left_out, np.inf, away)
    order = np.argsort(away, kind="stable")[:top]
    return [(int(gallery[place]), float(away[place])) for place in order if np.isfinite(away[place])]


def _plain_list(title: str, images: ImageChoice, query: int, nearest: Sequence[tuple[int, float]]) -> RankingList:
    known = images.labels[query] >= 0
    results = [
        RankedImage(images.picture(row), away, bool(images.labels[row] == images.labels[query]) if known else None)
        for row, away in nearest
    ]
    return RankingList(images.picture(query), results, title)


def _with_maps(
    embedder: Embedder, name: str, plain: RankingList, images: ImageChoice, query: int, nearest: Sequence[tuple[int, float]],
    arrays: dict[str, np.ndarray], tokens: bool,
) -> RankingList:  # fmt: skip
    """A ranking list with the maps of each pair over its images."""
    rows = [row for row, _ in nearest]
    asked = images.prepared(embedder, [query])
    own, theirs = similarity_maps(
        embedder, asked.expand(len(rows), *asked.shape[1:]), images.prepared(embedder, rows), tokens=tokens
    )
    left, right = agreement(own), agreement(theirs)
    highest = float(max(left[0].max(), right.max()))
    arrays["/".join(filter(None, ["ranking", name, f"{query}-{Path(images.manifest.paths[query]).name}"]))] = right
    results = [
        result._replace(picture=overlay(result.picture, one, highest))
        for result, one in zip(plain.results, right, strict=True)
    ]
    return RankingList(overlay(plain.query, left[0], highest), results, "agrees")


def _area(embedders: Mapping[str, Embedder], images: ImageChoice, config: DictConfig, folder: Path) -> Section:
    manifest = images.manifest
    known = (images.labels >= 0).all()
    owners = images.labels if known else np.arange(len(images.labels))
    if len(np.unique(owners)) < 2:
        raise MapError("area: an interval needs images of at least two identities")
    columns: dict[str, np.ndarray] = {}
    for name, embedder in embedders.items():
        areas = map_areas(
            embedder, manifest, batch_size=config.loading.test_batch_size, num_workers=config.loading.num_workers,
            tokens=config.tokens,
        )  # fmt: skip
        for branch, values in areas.items():
            columns[", ".join([name] * (len(embedders) > 1) + [branch] * (len(areas) > 1)) or name] = values
    first = next(iter(columns))
    differences = area_differences(columns, first, owners, config.seed)
    rows = []
    for name, values in columns.items():
        found = mean_area(values, owners, config.seed)
        row = [name, percent(found.mean), f"{percent(found.interval.low)} to {percent(found.interval.high)}"]
        if name == first:
            rows.append([*row, "", ""])
            continue
        other = differences[name]
        low, high = (f"{100 * end:+.1f}" for end in other.interval)
        rows.append([*row, f"{100 * other.difference:+.1f} ({low} to {high})", f"{other.p_value:.4f}"])
    kind = "identities" if known else "images"
    notes = [
        f"Share of the map's area that carries half of its energy: 50 % for a map that is even, less for one with peaks. Means "
        f"over {len(owners):,} images; intervals of 95 % and the permutation test are over {len(np.unique(owners)):,} {kind}."
    ]
    if any(ALL in name for name in columns):
        notes.append(f"{ALL.capitalize()}: the mean of their maps, each with the same total energy.")
    heads = ["", "area", "95 % interval", "difference from the first, points", "p"]
    table = pd.DataFrame({"path": manifest.table["path"], "label": images.labels, **columns})
    write_atomically(folder / AREAS, table.to_csv(index=False).encode())
    grid = Grid("Area that carries half of the energy", heads, rows, notes)
    return Section("area", "How spread out", "", None, {}, grid)


# Inside


def _pairs(images: ImageChoice, seed: int) -> list[tuple[int, int]]:
    _require_two(images)
    if not images.of_dataset:
        return [(0, int(row)) for row in images.rows[1:]]
    rng = np.random.default_rng(seed)
    pairs = []
    for row in images.rows.tolist():
        same = images.gallery[images.labels[images.gallery] == images.labels[row]]
        other = same[images.cameras[same] != images.cameras[row]] if images.cameras[row] >= 0 else same[same != row]
        if len(other):
            pairs.append((row, int(rng.choice(other))))
    if not pairs:
        raise DatasetError(
            "similarity: no drawn query has another image of its identity in the gallery; draw more with count="
        )
    return pairs


def _require_two(images: ImageChoice) -> None:
    if len(images.labels) < 2 or (not images.of_dataset and len(images.rows) < 2):
        raise MapError(
            "similarity and ranking compare images: give a folder or table with at least two, and count=2 or more"
        )


def _section(
    kind: str, title: str, words: str, maps: Mapping[str, Maps], images: ImageChoice, rows: np.ndarray, unit: str,
    captions: Sequence[str] = (),
) -> Section:  # fmt: skip
    """Maps of several networks side by side."""
    single = len(maps) == 1
    columns = {
        branch if single else f"{name}\n{branch}": values for name, of in maps.items() for branch, values in of.items()
    }
    pictures = [images.picture(int(row)) for row in rows]
    said = captions or [images.caption(int(row)) for row in rows]
    draw = partial(_draw_maps, pictures, columns, said, unit)
    arrays = {f"{kind}/{name}/{branch}": values for name, of in maps.items() for branch, values in of.items()}
    return Section(kind, title, words, draw, arrays)


def _draw_maps(
    pictures: Sequence[Any], columns: Mapping[str, np.ndarray], captions: Sequence[str], unit: str, theme: "Theme"
) -> "Figure":
    maps = {name: [*values] for name, values in columns.items()}
    return activation_maps_figure(pictures, maps, captions=captions, unit=unit, theme=theme)


def write_figure(
    section: Section, folder: Path, formats: Sequence[str], dpi: int, name: str | None = None
) -> Iterator[Path]:
    """Write a section's figure in each format, under its kind or another name."""
    if section.draw is None:
        return
    from bdbnet.figures import LIGHT

    figure = section.draw(LIGHT)
    for format in formats:
        buffer = io.BytesIO()
        # No date: the same figure is the same file.
        dates: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        figure.savefig(buffer, format=format, dpi=dpi, metadata=dates.get(format))
        yield write_atomically(folder / f"{name or section.kind}.{format}", buffer.getvalue())


def section_html(section: Section) -> str:
    """A section of a page."""
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>\n", note_paragraphs(filter(None, [section.words]))]
    if section.draw is not None:
        parts.append(f'<div class="masks">\n{themed_picture(section.draw, section.title, section.words)}</div>\n')
    if section.table is not None:
        parts.append(as_html(section.table))
    return "".join(parts) + "</section>"


def names_of(checkpoints: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """What to call the networks: as the user says, else by their files, with the folder where files are called alike.

    >>> names_of(["a/last.ckpt", "b/last.ckpt"], None), names_of(["net.pth"], None), names_of(["net.pth"], ["ours"])
    (['a', 'b'], ['net'], ['ours'])

    Raises:
        ConfigError: another number of names than of networks, or two alike.
    """
    if names is not None:
        if len(names) != len(checkpoints) or len({*names}) < len(names):
            raise ConfigError(f"names={[*names]}: give a different name for each of the {len(checkpoints)} networks")
        return [*names]
    paths = [Path(re.sub(r"^\w+:", "", source)) for source in checkpoints]
    for candidates in ([path.stem or path.name for path in paths], [path.parent.name for path in paths]):
        if len({*candidates}) == len(paths) and all(candidates) and {*candidates} != {"last"}:
            return candidates
    return [f"{number}: {path.stem}" for number, path in enumerate(paths, start=1)]
