"""Datasets by name: every reader turns a folder into a `Manifest`."""

import importlib
import inspect
from pathlib import Path

from bdbnet.datasets.manifest import CountWarning, DatasetError, Manifest, Role, SplitCounts
from bdbnet.datasets.person_reid import PUBLISHED_COUNTS

__all__ = [
    "PUBLISHED_COUNTS",
    "READERS",
    "CountWarning",
    "DatasetError",
    "Manifest",
    "Role",
    "SplitCounts",
    "load_manifest",
]

# Name -> "module:function" with the signature reader(root: Path, **options) -> Manifest; imported when first used.
READERS: dict[str, str] = {
    "market1501": "bdbnet.datasets.person_reid:read_market1501",
    "synthetic_reid": "bdbnet.datasets.synthetic:read_synthetic_reid",
    "synthetic_retrieval": "bdbnet.datasets.synthetic:read_synthetic_retrieval",
}


def load_manifest(name: str, root: str | Path, **options: object) -> Manifest:
    """Read the dataset `name` from the folder `root`; `options` are arguments of its reader.

    Raises DatasetError for an unknown name, an unknown option, and for data that can't be used.
    """
    if name not in READERS:
        raise DatasetError(f"unknown dataset {name!r}: choose one of {', '.join(READERS)}")
    module, function = READERS[name].split(":")
    reader = getattr(importlib.import_module(module), function)
    known = [option for option in inspect.signature(reader).parameters if option != "root"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise DatasetError(f"dataset {name} has no option {', '.join(unknown)}: its options are {', '.join(known)}")
    manifest: Manifest = reader(Path(root).expanduser(), **options)
    return manifest
