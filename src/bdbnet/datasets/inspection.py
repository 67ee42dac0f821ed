"""Checks of a dataset: its table and every image in it; each finding comes with a fix."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from bdbnet.datasets.checking import check_images
from bdbnet.datasets.cuhk03 import mistaken_kind
from bdbnet.datasets.manifest import ADJECTIVES, BOX_COLUMNS, ROLES, Manifest, Role, SplitCounts

_SHOWN = 10


class Finding(NamedTuple):
    """A fault of a dataset and its fix."""

    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem}.\n  Fix: {self.fix}."


def inspect_table(
    manifest: Manifest, published: Mapping[Role, SplitCounts], *, protocol: str = "auto", test_only: bool = False
) -> list[Finding]:
    """Faults of the table: counts that differ from the published ones, identities in both train and test, queries
    without a match under `protocol`. With `test_only` it needs no training images."""
    findings = []
    needed = [role for role in ROLES if role != "train" or not test_only]
    missing = [role for role in needed if not len(manifest.subset(role).table)]
    if missing:
        findings.append(
            Finding(
                f"there are no {' and no '.join(ADJECTIVES[role] for role in missing)} images",
                "add rows of every role: split train, and test, or query and gallery",
            )
        )
    gallery = manifest.subset("gallery").table["split"]
    if gallery.nunique() > 1:
        findings.append(
            Finding(
                "some gallery images have split test (query and gallery in one) and some have split gallery",
                "use either query and gallery, or test alone",
            )
        )
    if protocol == "reid_multi_query" and (not manifest.has_cameras or (gallery == "test").any()):
        findings.append(
            Finding(
                "dataset.protocol=reid_multi_query needs cameras, and separate query and gallery images",
                "give every row a camera and use the splits query and gallery, or choose another protocol",
            )
        )
    if protocol == "reid_reassociation" and not manifest.has_cameras:
        findings.append(
            Finding(
                "dataset.protocol=reid_reassociation needs cameras, which are the numbers of the frames",
                "give every row a camera, or choose another protocol",
            )
        )
    if protocol == "reid_single_shot" and len(alone := seen_once(manifest)):
        problem, _, fix = seen_once_advice(manifest, alone).rpartition(". ")
        findings.append(Finding(problem, fix))
    differences = manifest.differences(published)
    if (mistaken := mistaken_kind(manifest)) is not None:
        findings.append(Finding(f"these are not the images of {manifest.name}", mistaken))
    elif differences:
        findings.append(
            Finding(
                f"not the complete {manifest.name}: {'; '.join(differences)}",
                "delete the folder and extract the authors' archive again, or set dataset.options.check_counts=false and "
                "do not compare with published results",
            )
        )
    shared = manifest.shared_labels()
    if len(shared):
        findings.append(
            Finding(
                f"{len(shared):,} identities have images in both train and test, the first is {_first(manifest, shared[0])}",
                "move all images of an identity into one of the two, or give them different labels",
            )
        )
    by_camera = manifest.has_cameras and protocol != "retrieval"
    unmatched = manifest.unmatched(by_camera=by_camera)
    if len(unmatched):
        others = "under another camera in the gallery" if by_camera else "among the other test images"
        findings.append(
            Finding(
                f"{len(unmatched):,} queries of {unmatched['label'].nunique():,} identities have no image of their identity "
                f"{others}, the first is {unmatched['path'].iloc[0]}: no metric counts them",
                match_advice(manifest, by_camera=by_camera, unmatched=unmatched).rstrip("."),
            )
        )
    return findings


def seen_once(manifest: Manifest) -> pd.DataFrame:
    """The rows of the queries that are their identity's only test image, which no single gallery shot can answer."""
    tested = manifest.table[manifest.table["split"] != "train"]
    sizes = tested.groupby("label")["path"].transform("size")
    return tested[(sizes == 1) & (tested["split"] != "gallery")]


def seen_once_advice(manifest: Manifest, alone: pd.DataFrame) -> str:
    """What is wrong with the rows of `seen_once`, and in a last sentence, without its full stop, what to do about them."""
    first = alone.iloc[0]
    return (
        f"a single gallery shot shows each identity by one image and searches for it by another, but {len(alone):,} identities "
        f"have one test image alone, the first is {manifest.name_of(first['label'])} ({first['path']}). Leave these rows out, or "
        "choose another dataset.protocol"
    )


def match_advice(manifest: Manifest, *, by_camera: bool, unmatched: pd.DataFrame | None = None) -> str:
    """What to do about queries without a true match, as a sentence; `unmatched` are their rows, None for all queries."""
    queries = manifest.subset("query").table
    every = unmatched is None or len(unmatched) == len(queries)
    if every and by_camera and (matched := len(queries) - manifest.unmatched_queries(by_camera=False)):
        tested = manifest.table[manifest.table["split"] != "train"]
        one = tested["camera"].nunique() == 1
        seen = "All query and gallery images are from one camera" if one else "No identity was seen by two cameras"
        return (
            f"{seen}: set dataset.protocol=retrieval, which does not ask for another camera "
            f"(Recall@K; {matched:,} of the {len(queries):,} queries then have a match), or correct the cameras."
        )
    columns = "labels or cameras" if by_camera else "labels"
    if every:
        return f"Correct the {columns}: every query has to have another image of its label in the gallery."
    assert unmatched is not None
    if (unmatched["split"] == "test").any():
        return f"Correct the {columns}, or leave these rows of split test out, which are query and gallery at once."
    return f"Correct the {columns}, or take these rows of split query out."


def remarks(manifest: Manifest, *, protocol: str = "auto") -> list[str]:
    """Notes that are no faults: training identities with one camera or one image, a missing camera column."""
    train = manifest.subset("train").table.groupby("label")
    notes = []
    if manifest.has_cameras:
        single = int((train["camera"].nunique() == 1).sum())
        if single:
            notes.append(f"{single:,} training identities were seen by one camera only")
    alone = int((train.size() == 1).sum())
    if alone:
        notes.append(f"{alone:,} training identities have a single image: batches repeat it")
    if not manifest.has_cameras and protocol in ("auto", "retrieval"):
        notes.append("the images have no cameras: the retrieval protocol (Recall@K) is used")
    return notes


def inspect_images(manifest: Manifest, *, progress: bool = True) -> tuple[list[Finding], list[str]]:
    """Faults of the image files, and notes: unreadable files, images in both train and test, clipped boxes."""
    checked = check_images(manifest, progress=progress)
    findings = []
    if checked.unreadable:
        shown = [*checked.unreadable.values()][:_SHOWN]
        more = len(checked.unreadable) - len(shown)
        listed = "\n     ".join(shown + ([f"... and {more:,} more"] if more else []))
        findings.append(
            Finding(
                f"{len(checked.unreadable):,} images can't be read:\n     {listed}",
                "restore these files from the authors' archive, remove their rows, or train with "
                "loading.on_error=replace",
            )
        )
    findings += duplicates_across(manifest, checked.digests)
    notes = []
    if checked.clipped:
        first = manifest.table["path"].iloc[checked.clipped[0]]
        notes.append(f"{len(checked.clipped):,} boxes extend beyond the image and are clipped, the first in {first}")
    return findings, notes


def duplicates_across(manifest: Manifest, digests: np.ndarray) -> list[Finding]:
    """Images in both train and test. `digests` (N,) identify the content of each row's file; "" for unreadable ones."""
    table = manifest.table.assign(digest=digests)
    boxes = [column for column in BOX_COLUMNS if column in table.columns]
    table = table[table["digest"] != ""]
    train, test = table[table["split"] == "train"], table[table["split"] != "train"]
    train = train.drop_duplicates(["digest", *boxes])
    pairs: pd.DataFrame = train.merge(test, on=["digest", *boxes], suffixes=("_train", "_test"))
    if pairs.empty:
        return []
    images = pairs["path_test"].nunique()
    first = pairs.iloc[0]
    return [
        Finding(
            f"{images:,} test images are also in the training set, byte for byte, the first is {first['path_test']} "
            f"(as {first['path_train']})",
            "remove them from one of the two sets",
        )
    ]


def _first(manifest: Manifest, label: int) -> str:
    row = manifest.table[manifest.table["label"] == label].iloc[0]
    return f"{manifest.name_of(label)} ({row['path']})"
