"""Maps beside ranking lists: where each image found agrees with its query."""

from pathlib import Path

import numpy as np
import pandas as pd

from bdbnet.config import ConfigError
from bdbnet.datasets.images import ImageError, read_image
from bdbnet.evaluation.embedder import Embedder, EmbeddingSettings
from bdbnet.evaluation.load import Wanted, open_embedder
from bdbnet.evaluation.maps import Maps
from bdbnet.figures import overlay, upsampled
from bdbnet.models import CheckpointError
from bdbnet.reporting.run_folder import ReportError, RunFolder, file_below
from bdbnet.results import LAST


def network_of(run: RunFolder, checkpoint: str | None) -> Embedder:
    """The network whose ranking lists a run holds, with the run's own preprocessing and distance.

    Raises:
        ReportError: the run has no ranking lists, or its network is not where it says, and no other is given.
    """
    if run.ranking is None:
        raise ReportError(f"maps=true: {run.path} has no ranking lists (evaluation.top_k=0)")
    result = run.result
    protocol, trains = result.protocol, result.kind == "train"
    place = checkpoint or (str(run.path / LAST) if trains else result.checkpoint)
    wanted = Wanted(
        model=None if trains else result.config.get("model"),
        backbone=None if trains else result.config.get("backbone"),
        image_size=protocol.image_size,
        pad_to_square=protocol.pad_to_square,
        settings=EmbeddingSettings(normalize=protocol.normalize),
        distance=protocol.measure,
    )
    try:
        return open_embedder(place, wanted)
    except (CheckpointError, ConfigError) as error:
        raise ReportError(f"maps=true needs the run's network: {error}. Give its file: checkpoint=FILE") from error


def agreement(maps: Maps) -> np.ndarray:
    """The maps of all branches as one, (N, h, w), at the size of the largest; a smaller one's values are spread over it."""
    height, width = max(one.shape[1:] for one in maps.values())
    large = [
        np.stack([upsampled(one, height, width) for one in branch]) * (branch[0].size / (height * width))
        for branch in maps.values()
    ]
    total: np.ndarray = np.sum(large, axis=0)
    return total


def overlays(embedder: Embedder, root: Path, rows: pd.DataFrame) -> list[np.ndarray] | None:
    """The query, with where it agrees with the image at rank 1, and the images found, uint8 (H, W, 3) RGB; None where one
    can't be read."""
    from bdbnet.reporting.pictures import box_of

    first = rows.iloc[0]
    places = [(first["query_path"], box_of(first, "query"))]
    places += [(row["gallery_path"], box_of(row, "gallery")) for row in rows.to_dict("records")]
    images = []
    for path, box in places:
        try:
            file = file_below(root, path)
            if file is None:
                return None
            images.append(np.asarray(read_image(str(file), box=box)))
        except (OSError, ValueError, ImageError):
            return None
    asked, found = embedder.similarity_maps([images[0]] * (len(images) - 1), images[1:])
    left, right = agreement(asked), agreement(found)
    highest = float(max(left[0].max(), right.max()))
    return [overlay(image, values, highest) for image, values in zip(images, [left[0], *right], strict=True)]
