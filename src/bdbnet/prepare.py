"""``python -m bdbnet.prepare``: set up a dataset and check it."""

import shutil
import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import command, shown_path
from bdbnet.datasets import (
    FACTS,
    PUBLISHED_COUNTS,
    READERS,
    CountWarning,
    DatasetError,
    Manifest,
    OverlapWarning,
    Role,
    SplitCounts,
    load_manifest,
)
from bdbnet.datasets.archives import extract_archives
from bdbnet.datasets.catalogue import UNTRIED
from bdbnet.datasets.inspection import inspect_images, inspect_table, remarks
from bdbnet.datasets.layout import LayoutError, layout_of
from bdbnet.datasets.manifest import ROLES, expanded
from bdbnet.wording import counted

_UNTRIED_MARK = " (unverified: layout and counts from documentation)"


def dataset_help(name: str | None) -> str:
    """Layout, origin and terms of a dataset, or one entry for each, for `--help`."""
    if name is None:
        entries = [
            f"  {key}: {facts.title}\n    archive={facts.archives}\n    {facts.obtain}{'' if facts.tried else _UNTRIED_MARK}"
            for key, facts in FACTS.items()
        ]
        return "\n".join(["Datasets (dataset=NAME --help shows the expected folder):", *entries])
    if name not in FACTS:
        return f"  {name}: see the comment at the top of conf/dataset/{name}.yaml"
    facts = FACTS[name]
    return (
        f"{facts.title}\n  {facts.paper}\n  Where and terms: {facts.obtain}\n  Expected in dataset.root, or in one folder "
        f"below it:\n{layout_of(facts)}\n  From the authors' files: archive={facts.archives}"
        + ("" if facts.tried else f"\n  {UNTRIED}")
    )


OmegaConf.register_new_resolver("dataset_help", dataset_help, replace=True)


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Extract `archive` (if given) into `dataset.root`, read the dataset there, print its counts and its faults.

    With `union` it does so for each of several data sets.  Raises DatasetError if the archive or a folder can't be used, or if
    the check finds a fault.
    """
    if "dataset" not in cfg:
        raise DatasetError(f"choose a dataset: add dataset=NAME with one of {', '.join(READERS)}. See also --help.")
    if not cfg.union:
        return _prepare(cfg)
    from bdbnet.loading.entries import dataset_of

    if cfg.archive is not None:
        raise DatasetError("archive= is of one data set: set up each by itself, with dataset=NAME archive=FILE")
    faulty: list[str] = []
    several = [cfg.dataset, *(dataset_of(entry, str(cfg.data_root), "dataset") for entry in cfg.union)]
    for dataset in several:
        own = cfg.copy()
        own.dataset = dataset
        try:
            _prepare(own)
        except DatasetError as error:
            faulty.append(str(error))
        print()
    if faulty:
        raise DatasetError("\n\n".join(faulty))
    return None


def _prepare(cfg: DictConfig) -> None:
    """Set up and check one data set.  Raises DatasetError."""
    manifest, left_out = _set_up(cfg)
    published = PUBLISHED_COUNTS.get(cfg.dataset.name, {})
    print(f"{manifest.name} in {manifest.root}\n")
    print(counts_table(manifest, published))
    print(f"\nfingerprint {manifest.fingerprint}", flush=True)

    complete = cfg.dataset.options.get("check_counts", True)
    protocol = str(cfg.dataset.protocol)
    facts = FACTS.get(cfg.dataset.name)
    test_only = facts is not None and facts.test_only
    findings = inspect_table(manifest, published if complete else {}, protocol=protocol, test_only=test_only)
    notes = [*left_out, *remarks(manifest, protocol=protocol)]
    if cfg.check_images:
        found, noted = inspect_images(manifest)
        findings, notes = findings + found, notes + noted
    for note in notes:
        print(f"note: {note}")
    if not findings:
        print("no faults found")
        return
    listed = "\n".join(f"{number}. {finding}" for number, finding in enumerate(findings, 1))
    raise DatasetError(f"{manifest.name} in {manifest.root} has {counted(len(findings), 'fault')}:\n{listed}")


def _set_up(cfg: DictConfig) -> tuple[Manifest, list[str]]:
    if cfg.archive is None:
        return _read(cfg.dataset)
    if cfg.dataset.name not in FACTS:
        raise DatasetError(f"dataset={cfg.dataset.name} has no authors' archive: leave out archive=")
    if cfg.dataset.root is None:
        raise DatasetError("dataset.root is null: set it to the folder to extract the archive into")
    archives = [cfg.archive] if isinstance(cfg.archive, str) else list(cfg.archive)
    root = extract_archives([expanded(str(archive)) for archive in archives], expanded(cfg.dataset.root))
    shown = ", ".join(str(shown_path(archive)) for archive in archives)
    try:
        return _read(cfg.dataset)
    except LayoutError as error:
        shutil.rmtree(root)  # it was new or empty before, and its files are still in the archive
        raise DatasetError(f"{shown} is not {cfg.dataset.name}; the extracted files were removed. {error}") from None
    except DatasetError as error:
        raise DatasetError(
            f"{error}\n{shown} was extracted to {shown_path(root)}: leave out archive= to read it again, or delete that folder"
        ) from None


def _read(dataset: DictConfig) -> tuple[Manifest, list[str]]:
    """The manifest, and its reader's warnings about data that was left out."""
    if OmegaConf.is_missing(dataset, "reader"):
        raise DatasetError("dataset.reader= is missing: give the dotted path of a function, such as mypkg.read_mine")
    options: Any = OmegaConf.to_container(dataset.options, resolve=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manifest = load_manifest(dataset.name, dataset.root, reader=dataset.get("reader"), **options)
    # Warnings about counts and shared identities are reported as findings, with an error.
    others = [warning for warning in caught if not issubclass(warning.category, CountWarning | OverlapWarning)]
    return manifest, [str(warning.message) for warning in others]


def counts_table(manifest: Manifest, published: Mapping[Role, SplitCounts]) -> str:
    """Counts of each role as text, each marked `ok` or with the published number where there is one."""
    lines = [f"{'':8}" + "".join(f"{field:>26}" for field in SplitCounts._fields)]
    for role, row in zip(ROLES, manifest.counts().to_numpy().tolist()):
        expected = published.get(role, (None,) * len(row))
        cells = [_cell(found, number) for found, number in zip(row, expected)]
        lines.append(f"{role:8}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _cell(found: int, published: int | None) -> str:
    if published is None:
        return f"{found:,}"
    return f"{found:,} ok" if found == published else f"{found:,} (published {published:,})"


if __name__ == "__main__":
    main()
