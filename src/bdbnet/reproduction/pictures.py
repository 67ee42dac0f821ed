"""The paper's figures of pictures (1, 4, 5, 6, 8, 9), drawn from the networks of a measured figure."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.load import load
from bdbnet.figures import drop_masks_figure
from bdbnet.loading.datamodule import test_rows
from bdbnet.loading.from_config import read_manifest, settle_protocol
from bdbnet.reporting.image_choice import drawn_queries
from bdbnet.reporting.visualizing import Section, activation_section, ranking_section
from bdbnet.reproduction.cells import compose_training
from bdbnet.reproduction.cross_matrix import matrix_section
from bdbnet.reproduction.masks import masks_of
from bdbnet.reproduction.measured import Entry, Measured
from bdbnet.results import LAST

FORMATS = ("pdf", "png")
DPI = 300
_SEED = 1  # of the images that are drawn


class Drawn(NamedTuple):
    """A picture of one data set; `section` is None where it could not be drawn, and `remark` says why."""

    name: str
    section: Section | None
    remark: str = ""


def pictures_of(measured: Measured) -> Iterator[Drawn]:
    """The pictures of a figure, one for each data set, or of a cross-domain table; none of another figure or table."""
    if measured.table.cross and (section := matrix_section(measured)) is not None:
        yield Drawn(measured.table.name, section)
    picture = measured.table.picture
    if picture is None:
        return
    if picture.kind == "masks":
        yield Drawn(measured.table.name, _masks(measured))
        return
    drawn: set[str] = set()
    for dataset in measured.datasets:
        data = measured.stand_in(dataset)
        if data in drawn:  # what stands in for several data sets
            continue
        drawn.add(data)
        name = f"{measured.table.name}-{data}" if len(measured.datasets) > 1 else measured.table.name
        entries = [entry for entry in measured if entry.dataset == dataset and entry.cell is not None]
        lacking = [f"{entry.row.name}: {_why(entry)}" for entry in entries if _checkpoint(entry) is None]
        if lacking or not entries:
            yield Drawn(name, None, f"No picture of {data}. {'; '.join(lacking)}.")
            continue
        yield Drawn(name, _section(measured, entries, data))


def _section(measured: Measured, entries: list[Entry], data: str) -> Section:
    picture, cell = measured.table.picture, entries[0].cell
    assert picture is not None
    assert cell is not None
    dataset = compose_training(cell.overrides).dataset
    manifest = read_manifest(dataset)
    settle_protocol(dataset, manifest)
    images = drawn_queries(manifest, test_rows(manifest), picture.images, _SEED)
    embedders: dict[str, Embedder] = {entry.row.name: load(str(_checkpoint(entry))) for entry in entries}
    if picture.kind == "ranking":
        section = ranking_section(embedders, images, picture.top, with_maps=False)
    else:
        section = activation_section(embedders, images, branches=picture.branches)
    return section._replace(title=f"{section.title}: {data}")


def _checkpoint(entry: Entry) -> Path | None:
    """The last checkpoint of the first seed that has one."""
    return next((run.folder / LAST for run in entry.counted if (run.folder / LAST).is_file()), None)


def _why(entry: Entry) -> str:
    if entry.counted:
        return f"measured, but its {LAST} was not kept; retry=true trains it again"
    return str(entry.state.value)


def _masks(measured: Measured) -> Section:
    masks = masks_of(measured)
    words = ", ".join(f"{name} {mask.mean():.0%}" for name, mask in masks.items())
    return Section(
        "masks", "What is dropped", f"Share of the units that is dropped: {words}.",
        lambda theme: drop_masks_figure(masks, theme=theme), {},
    )  # fmt: skip
