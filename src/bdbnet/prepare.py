"""Extract a dataset's archive and check what is there: `python -m bdbnet.prepare dataset=market1501 archive=FILE`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdbnet.config import command
from bdbnet.datasets import (
    PUBLISHED_COUNTS,
    READERS,
    CountWarning,
    DatasetError,
    Manifest,
    Role,
    SplitCounts,
    load_manifest,
)
from bdbnet.datasets.archives import extract_archive


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Extract `archive` (if given) into `dataset.root`, read the dataset there and print its counts.

    Raises DatasetError if the archive or the folder can't be used, or if a count is not the published one.
    """
    if "dataset" not in cfg:
        raise DatasetError(f"which dataset? Add dataset=NAME with one of {', '.join(READERS)}. --help says more.")
    root = Path(cfg.dataset.root).expanduser()
    if cfg.archive is not None:
        extract_archive(Path(str(cfg.archive)).expanduser(), root)
    try:
        manifest = _read(cfg.dataset, root)
    except DatasetError as error:
        if cfg.archive is None:
            raise
        raise DatasetError(f"{error}\n{cfg.archive} was extracted to {root}: delete it to try another.") from None

    published = PUBLISHED_COUNTS.get(manifest.name, {})
    print(f"{manifest.name} in {manifest.root}\n")
    print(counts_table(manifest, published))
    print(f"\nfingerprint {manifest.fingerprint}")
    unmatched = manifest.unmatched_queries()
    if unmatched:
        print(f"{unmatched:,} queries have no image of their identity in the gallery: no metric counts them.")
    differences = manifest.differences(published)
    if differences:
        raise DatasetError(
            f"{manifest.root} is not the complete {manifest.name}: {'; '.join(differences)}. "
            "Delete the folder and extract the authors' archive again."
        )


def _read(dataset: DictConfig, root: Path) -> Manifest:
    options: Any = OmegaConf.to_container(dataset.options, resolve=True)
    with warnings.catch_warnings():
        # The table shows the same, and a difference ends this command with an error.
        warnings.simplefilter("ignore", CountWarning)
        return load_manifest(dataset.name, root, **options)


def counts_table(manifest: Manifest, published: Mapping[Role, SplitCounts]) -> str:
    """Counts of each role as text, each marked `ok` or with the published number where there is one."""
    lines = [f"{'':8}" + "".join(f"{field:>26}" for field in SplitCounts._fields)]
    for role, row in manifest.counts().iterrows():
        expected: tuple[int | None, ...] = published.get(role, (None,) * len(row))  # type: ignore[call-overload]
        cells = [_cell(int(found), number) for found, number in zip(row, expected)]
        lines.append(f"{role!s:8}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _cell(found: int, published: int | None) -> str:
    if published is None:
        return f"{found:,}"
    return f"{found:,} ok" if found == published else f"{found:,} (published {published:,})"


if __name__ == "__main__":
    main()
