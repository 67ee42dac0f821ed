"""Datasets by name: every reader turns a folder into a `Manifest`."""

import importlib
import inspect
import warnings
from pathlib import Path

from bdbnet.datasets.catalogue import FACTS, PUBLISHED_COUNTS, DatasetFacts
from bdbnet.datasets.manifest import (
    BOX_COLUMNS,
    CountWarning,
    DatasetError,
    Manifest,
    OverlapWarning,
    Role,
    SplitCounts,
    expanded,
)

__all__ = [
    "BOX_COLUMNS",
    "FACTS",
    "PUBLISHED_COUNTS",
    "READERS",
    "CountWarning",
    "DatasetError",
    "DatasetFacts",
    "Manifest",
    "OverlapWarning",
    "Role",
    "SplitCounts",
    "load_manifest",
]

# Name -> "module:function" with the signature reader(root: Path, **options) -> Manifest; imported when first used.
READERS: dict[str, str] = {
    "market1501": "bdbnet.datasets.person_reid:read_market1501",
    "market1501_500k": "bdbnet.datasets.person_reid:read_market1501_500k",
    "market1501_multi_query": "bdbnet.datasets.person_reid:read_market1501_multi_query",
    "dukemtmc_reid": "bdbnet.datasets.person_reid:read_dukemtmc_reid",
    "cuhk03_detect": "bdbnet.datasets.cuhk03:read_cuhk03_detect",
    "cuhk03_label": "bdbnet.datasets.cuhk03:read_cuhk03_label",
    "msmt17_v1": "bdbnet.datasets.person_reid:read_msmt17_v1",
    "msmt17_v2": "bdbnet.datasets.person_reid:read_msmt17_v2",
    "cub200": "bdbnet.datasets.image_retrieval:read_cub200",
    "cars196": "bdbnet.datasets.image_retrieval:read_cars196",
    "sop": "bdbnet.datasets.image_retrieval:read_sop",
    "inshop": "bdbnet.datasets.image_retrieval:read_inshop",
    "synthetic_reid": "bdbnet.datasets.synthetic.readers:read_synthetic_reid",
    "synthetic_retrieval": "bdbnet.datasets.synthetic.readers:read_synthetic_retrieval",
    "table": "bdbnet.datasets.tabular:read_table",
}


def load_manifest(name: str, root: str | Path | None, **options: object) -> Manifest:
    """Read the dataset `name` from the folder `root`; `options` are arguments of its reader.

    Only `table` takes None for `root`. Warns (OverlapWarning) where train and test share identities.
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
    if root is None and name != "table":
        raise DatasetError(f"dataset {name} has no folder: set dataset.root to where it lies")
    manifest: Manifest = reader(None if root is None else expanded(root), **options)
    shared = manifest.shared_labels()
    if len(shared):
        warnings.warn(
            f"{manifest.name}: {len(shared):,} identities have images in train and in test (the first is {shared[0]}), so "
            "that results are not those of unseen identities. Move each into one of the two if that is what you want.",
            OverlapWarning,
            stacklevel=2,
        )
    return manifest
