"""Datasets by name: every reader turns a folder into a `Manifest`."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdbnet import plugins
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

if TYPE_CHECKING:
    from bdbnet.datasets.inspection import inspect_images, inspect_table

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
    "inspect_images",
    "inspect_table",
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
    "market_layout": "bdbnet.datasets.market_layout:read_market_layout",
    "occluded_duke": "bdbnet.datasets.occluded:read_occluded_duke",
    "occluded_reid": "bdbnet.datasets.occluded:read_occluded_reid",
    "partial_reid": "bdbnet.datasets.occluded:read_partial_reid",
    "partial_ilids": "bdbnet.datasets.occluded:read_partial_ilids",
    "veri776": "bdbnet.datasets.vehicles:read_veri776",
    "vehicleid_small": "bdbnet.datasets.vehicles:read_vehicleid_small",
    "vehicleid_medium": "bdbnet.datasets.vehicles:read_vehicleid_medium",
    "vehicleid_large": "bdbnet.datasets.vehicles:read_vehicleid_large",
    "veri_wild_small": "bdbnet.datasets.vehicles:read_veri_wild_small",
    "veri_wild_medium": "bdbnet.datasets.vehicles:read_veri_wild_medium",
    "veri_wild_large": "bdbnet.datasets.vehicles:read_veri_wild_large",
    "inat2018": "bdbnet.datasets.image_retrieval:read_inat2018",
    "cuhk03_detect_old": "bdbnet.datasets.cuhk03_old:read_cuhk03_detect_old",
    "cuhk03_label_old": "bdbnet.datasets.cuhk03_old:read_cuhk03_label_old",
    "mot": "bdbnet.datasets.mot:read_mot",
    "synthetic_reid": "bdbnet.datasets.synthetic.readers:read_synthetic_reid",
    "synthetic_retrieval": "bdbnet.datasets.synthetic.readers:read_synthetic_retrieval",
    "table": "bdbnet.datasets.tabular:read_table",
}


def __getattr__(name: str) -> Any:
    if name not in ("inspect_images", "inspect_table"):  # imported when first used
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bdbnet.datasets.inspection"), name)


def load_manifest(
    name: str, root: str | Path | None, *, reader: str | Callable[..., Manifest] | None = None, **options: object
) -> Manifest:
    """Read the dataset `name` from the folder `root`; `options` are arguments of its reader.

    `reader` is a function of your own, `(root, **options) -> Manifest`, or its dotted path in a plugin that the user named;
    without it the dataset is one of bdbnet, or one that a plugin registered.

    Only `table` and readers of your own take None for `root`. Warns (OverlapWarning) where train and test share identities.
    Raises DatasetError for an unknown name, an unknown option, and for data that can't be used; PluginError for a `reader` in no
    plugin.
    """
    own = reader is None and name in READERS
    if own:
        module, function = READERS[name].split(":")
        read, said = getattr(importlib.import_module(module), function), f"dataset {name}"
    else:
        read, said = _foreign_reader(name, reader)
    parameters = inspect.signature(read).parameters
    known = [option for option in parameters if option != "root"]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [option for option in options if option not in known]
    if unknown and not takes_all:
        raise DatasetError(f"{said} has no option {', '.join(unknown)}: its options are {', '.join(known) or 'none'}")
    if root is None and own and name != "table":
        raise DatasetError(f"dataset {name} has no folder: set dataset.root to where it lies")
    folder = None if root is None else expanded(root)
    manifest: Manifest = read(folder, **options) if own else _read_foreign(read, said, folder, options)
    shared = manifest.shared_labels()
    if len(shared):
        first = manifest.name_of(shared[0])
        warnings.warn(
            f"{manifest.name}: {len(shared):,} identities have images in train and in test (the first is {first}), so "
            "that results are not those of unseen identities. Move each into one of the two if that is what you want.",
            OverlapWarning,
            stacklevel=2,
        )
    return manifest


def require_given(name: str, root: str | Path | None, manifest: object = None) -> None:
    """Look for the folder of a dataset of bdbnet, or for what ``dataset=table`` names, and read nothing.

    Raises DatasetError, as `load_manifest` does, where it is not there. Of datasets that are made up or of plugins nothing is said.
    """
    if name == "table":
        importlib.import_module("bdbnet.datasets.tabular").require_sources(manifest)
    elif name in FACTS and root is not None:
        importlib.import_module("bdbnet.datasets.layout").list_root(name, expanded(root))


def _foreign_reader(name: str, reader: str | Callable[..., Manifest] | None) -> tuple[Callable[..., Manifest], str]:
    """A reader that is not bdbnet's, and how messages name it."""
    if callable(reader):
        return reader, f"reader {getattr(reader, '__module__', '')}.{getattr(reader, '__qualname__', reader)}"
    if reader is not None:
        read = plugins.find(str(reader))
        if not callable(read):
            kind = type(read).__name__
            raise DatasetError(
                f"dataset.reader={reader} is a {kind}; expected a function (root, **options) -> Manifest"
            )
        return read, f"dataset.reader={reader}"
    if (registered := plugins.reader(name)) is not None:
        return registered, f"dataset {name} (reader {registered.__module__}.{registered.__qualname__})"
    raise DatasetError(f"unknown dataset {name!r}: choose one of {', '.join(READERS)}")


def _read_foreign(
    read: Callable[..., Manifest], said: str, root: Path | None, options: Mapping[str, object]
) -> Manifest:
    """What a plugin's reader returns, checked."""
    try:
        manifest = read(root, **options)
    except (DatasetError, OSError):
        raise
    except Exception as error:
        raise DatasetError(f"{said} fails: {type(error).__name__}: {error}. HYDRA_FULL_ERROR=1 shows where") from error
    if not isinstance(manifest, Manifest):
        raise DatasetError(f"{said} returned a {type(manifest).__name__}; expected a bdbnet.datasets.Manifest")
    for role in ("query", "gallery"):
        if not len(manifest.subset(role).table):
            raise DatasetError(
                f"{said} returned no {role} images ({len(manifest.table):,} rows, of split "
                f"{', '.join(sorted(set(manifest.table['split']))) or 'none'}): give some rows split {role}, or test for images "
                "that are query and gallery"
            )
    return manifest
