"""Figure 6: drop masks of the drop layers that a table or a figure compares."""

import numpy as np

from bdbnet.config import instantiate
from bdbnet.figures import drop_masks_figure
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reproduction.cells import compose_training
from bdbnet.reproduction.measured import Measured

#: Images, channels, rows and columns that are drawn; the paper's feature map.
SHAPE = (2, 3, 24, 8)


def masks_of(measured: Measured) -> dict[str, np.ndarray]:
    """Name of a row -> what its drop layer drops, bool of `SHAPE`; a layer that several rows have is listed once."""
    found: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for entry in measured:
        target = "" if entry.cell is None else str(entry.cell.settings.get("dropping._target_", ""))
        if entry.cell is None or target in ("", "torch.nn.Identity") or target in seen:
            continue
        layer = compose_training(entry.cell.overrides).dropping
        # The ratios of a table of one's own are only settled when it is read.
        if layer.height_ratio is None:
            return {}
        seen.add(target)
        found[entry.row.name] = instantiate(layer).dropped(SHAPE).expand(SHAPE).numpy()
    return found


def drop_masks(measured: Measured) -> str:
    """The picture as HTML; empty for a table that does not compare drop layers, and for a figure, which has its own."""
    masks = {} if measured.table.picture is not None else masks_of(measured)
    if len(masks) < 2:
        return ""
    words = ", ".join(f"{name} {mask.mean():.0%}" for name, mask in masks.items())
    picture = themed_picture(
        lambda theme: drop_masks_figure(masks, theme=theme),
        "What is dropped in two images of a batch (Figure 6)",
        words,
    )
    return f'<div class="masks">\n{picture}</div>\n'
