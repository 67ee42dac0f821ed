"""The kinds of cases: what makes one and runs it."""

import random
from collections.abc import Callable

from fuzz_archives import archive
from fuzz_checkpoints import checkpoint, saved_folder
from fuzz_commands import Place
from fuzz_data import author_list, manifest
from fuzz_images import image
from fuzz_meeting import Case
from fuzz_records import parts, result, settings, store

KINDS: dict[str, Callable[[random.Random, Place], Case]] = {
    "manifests": manifest,
    "lists": author_list,
    "archives": archive,
    "checkpoints": checkpoint,
    "saved": saved_folder,
    "images": image,
    "results": result,
    "stores": store,
    "parts": parts,
    "settings": settings,
}
