"""How spread out a network's activation is: the share of the map's area that carries half of its energy, as a number.

The paper says of its Figure 1 that BDB's activation is "more comprehensive and spatially distributed" than the baseline's; this
measures it over a whole set of images.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from bdbnet.datasets import Manifest
from bdbnet.evaluation.maps import energy_maps, half_energy_area, united
from bdbnet.evaluation.significance import Interval, PairedDifference, bootstrap_interval, paired_difference

if TYPE_CHECKING:
    from bdbnet.evaluation.embedder import Embedder

#: Name of the map of all branches together.
ALL = "all branches"


class MeanArea(NamedTuple):
    """Mean over images of the share of the area, with its 95 % interval over identities, and how many images count."""

    mean: float
    interval: Interval
    images: int


def map_areas(
    embedder: "Embedder",
    manifest: Manifest,
    *,
    batch_size: int = 128,
    num_workers: int | None = None,
    tokens: bool = False,
) -> dict[str, np.ndarray]:
    """`half_energy_area` of every image of a manifest: branch -> (N,) float64; of several branches also of their mean map.

    Raises:
        ImageError: an image can't be read.
        MapError: the network has no feature map.
    """
    count = len(manifest.table)
    batches = [range(count)[first : first + batch_size] for first in range(0, count, batch_size)]
    found: dict[str, list[np.ndarray]] = {}
    with tqdm(total=count, desc="maps", unit=" images", leave=False, delay=2, disable=None) as bar:
        for _, images, _ in embedder.prepared_files(manifest, batches, num_workers=num_workers):
            maps = energy_maps(embedder, images, tokens=tokens)
            if len(maps) > 1 and len({one.shape for one in maps.values()}) == 1:
                maps[ALL] = united(maps)
            for name, one in maps.items():
                found.setdefault(name, []).append(half_energy_area(one))
            bar.update(len(images))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def mean_area(areas: np.ndarray, identities: np.ndarray, seed: int = 0) -> MeanArea:
    """Args: areas (N,), NaN for a map of zeros; identities (N,) integers, whose images are drawn together."""
    interval = bootstrap_interval(areas, identities, seed=seed, limits=(0, 1))
    return MeanArea(float(np.nanmean(areas)), interval, int(np.isfinite(areas).sum()))


def area_differences(
    areas: Mapping[str, np.ndarray], first: str, identities: np.ndarray, seed: int = 0
) -> dict[str, PairedDifference]:
    """How each of several columns (N,) differs from the first, image by image; `identities` (N,) of the images."""
    return {
        name: paired_difference(values, areas[first], identities, seed=seed)
        for name, values in areas.items()
        if name != first
    }
