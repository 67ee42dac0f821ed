"""Figure 6: drop masks of the drop layers that a table compares."""

from typing import Any

from bdbnet.config import instantiate
from bdbnet.figures import drop_masks_figure
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reproduction.cells import compose_training
from bdbnet.reproduction.measured import Measured

#: Images, channels, rows and columns that are drawn; the paper's feature map.
_SHAPE = (2, 3, 24, 8)


def drop_masks(measured: Measured) -> str:
    """The picture as HTML; empty for a table that does not compare drop layers."""
    layers: dict[str, tuple[str, Any]] = {}
    for entry in measured:
        target = None if entry.cell is None else entry.cell.settings.get("dropping._target_")
        if entry.cell is not None and target not in (None, "torch.nn.Identity", *layers):
            layers[str(target)] = (entry.row.name, compose_training(entry.cell.overrides).dropping)
    # The ratios of a table of one's own are only settled when it is read.
    if len(layers) < 2 or any(layer.height_ratio is None for _, layer in layers.values()):
        return ""
    drops = {name: instantiate(layer).dropped(_SHAPE) for name, layer in layers.values()}
    masks = {name: dropped.expand(_SHAPE).numpy() for name, dropped in drops.items()}
    words = ", ".join(f"{name} {mask.mean():.0%}" for name, mask in masks.items())
    picture = themed_picture(
        lambda theme: drop_masks_figure(masks, theme=theme),
        "What is dropped in two images of a batch (Figure 6)",
        words,
    )
    return f'<div class="masks">\n{picture}</div>\n'
