"""Figure 6: what the drop layers that a table compares take from the feature maps of one batch."""

from typing import Any

from bdbnet.config import instantiate
from bdbnet.reporting.pictures import themed_picture
from bdbnet.reproduction.cells import compose_training
from bdbnet.reproduction.measured import Measured
from bdbnet.visualization import drop_masks_figure

#: Images, channels, rows and columns that are drawn; the paper's feature map.
_SHAPE = (2, 3, 24, 8)


def drop_masks(measured: Measured) -> str:
    """The picture as HTML; empty for a table that does not compare drop layers."""
    layers: dict[str, Any] = {}
    for entry in measured:
        target = None if entry.cell is None else entry.cell.settings.get("dropping._target_")
        if entry.cell is not None and target not in (None, "torch.nn.Identity", *layers):
            layers[str(target)] = (entry.row.name, instantiate(compose_training(entry.cell.overrides).dropping))
    if len(layers) < 2:
        return ""
    masks = {name: layer.dropped(_SHAPE).expand(_SHAPE).numpy() for name, layer in layers.values()}
    words = ", ".join(f"{name} {mask.mean():.0%}" for name, mask in masks.items())
    picture = themed_picture(
        lambda theme: drop_masks_figure(masks, theme=theme),
        "What is dropped in two images of a batch (Figure 6)",
        words,
    )
    return f'<div class="masks">\n{picture}</div>\n'
