"""What `loading.cache=auto` chooses, and how much memory of a device is free."""

from typing import Literal, NamedTuple

import torch

#: Part of a device's free memory that images may take unasked.
SHARE = 4


class Choice(NamedTuple):
    """A cache and the reason for it, for a line of output."""

    cache: Literal["none", "packed", "device"]
    reason: str


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for another device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def choose_cache(images: int, size: int, device: torch.device) -> Choice:
    """The cache for so many images that take `size` bytes when they are prepared, on a device.

    On a CPU the files are read for each batch: the network takes longer than they do. On a GPU they would hold it up.
    """
    free = free_memory(device)
    if free is None:
        return Choice("none", f"on {device.type} reading image files takes less time than the network")
    shown = f"the {images:,} prepared images take {_mebibytes(size)}"
    if size * SHARE <= free:
        return Choice("device", f"{shown}, at most a quarter of the {_mebibytes(free)} that are free on {device}")
    return Choice("packed", f"{shown}, more than a quarter of the {_mebibytes(free)} that are free on {device}")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
