"""People cut out of videos in the format of MOTChallenge, for re-association: who of these people is the one of some frames ago?"""

import configparser
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from bdbnet.datasets.layout import LayoutError, how_to_prepare, list_folder, list_root
from bdbnet.datasets.manifest import BOX_COLUMNS, COLUMNS, DatasetError, Manifest
from bdbnet.datasets.person_reid import image_files

_GROUND_TRUTH = "gt/gt.txt"
_FRAMES = "img1"
_LEVELS = 3  # folders between the root and a sequence, as MOT17/train/MOT17-02-FRCNN
_FRAME = re.compile(r"(\d{1,9})\.\w+", re.ASCII)
# MOT17 holds each sequence three times, with the boxes of three detectors and one ground truth.
_DETECTOR = re.compile(r"-(DPM|FRCNN|SDP)$")
_LINE = "frame,id,left,top,width,height,flag,class,visibility"


class _BadLineError(Exception):
    """What is wrong with a line of ground truth."""


class _Choice(NamedTuple):
    """Which boxes count."""

    classes: tuple[int, ...]
    min_visibility: float
    min_height: float
    leave_out: bool


class _Sequence(NamedTuple):
    name: str
    folder: Path
    boxes: pd.DataFrame
    """frame, id and x1 y1 x2 y2 of the boxes that count, in whole pixels within the frame"""
    files: dict[int, str]
    """frame -> file in img1"""


def read_mot(
    root: Path,
    *,
    after: int = 30,
    train_sequences: Sequence[str] = (),
    classes: Sequence[int] = (1,),
    min_visibility: float = 0.3,
    min_height: float = 32,
    outside: str = "refuse",
) -> Manifest:
    """Crops of videos: MOT16, MOT17, MOT20, DanceTrack, or your own in their format.

    `root` is a sequence, with the frames in `img1` (`000001.jpg`) and the boxes in `gt/gt.txt`, or holds sequences, up to three
    folders down. A line of `gt.txt` is `frame,id,left,top,width,height`, and perhaps `flag,class,visibility`; positions
    count from 1. Sequences without ground truth are left out with a warning if others have it; of MOT17's three copies of a
    sequence one is read. The rows hold boxes of the frames, which are cut in memory.

    Of each sequence every `after`-th frame is used, and is a camera of its own; the next one has the next number. Queries are the
    people who are seen again in the next used frame; the gallery is everybody in the used frames. Under the protocol
    `reid_reassociation` a query is searched for among the people of the next used frame: the same person is the match, the others
    are the distractors. Under `reid` it is searched for in all used frames but its own. An identity is an id of a sequence.
    Rows are sorted by sequence, frame and id within train, query, gallery. The name says folder and `after`.

    Args:
        after: frames from a query to the frame in which it is searched for.
        train_sequences: names of the sequences whose crops are training images; all others are for testing. Of MOT17 any of
            the three copies, or the name without a detector. Where several folders have one name, it is the path below `root`.
        classes: values of the column class that count; all, where the file has no such column.
        min_visibility: smallest visibility that counts; all, where the file has no such column.
        min_height: smallest height in pixels that counts.
        outside: what becomes of a box that lies wholly outside of its frame: `refuse` or `leave_out`. A box that lies partly
            outside is cut at the frame's edge.

    Raises DatasetError for a folder without ground truth, a malformed line, a frame that is missing, a box wholly outside of its
    frame, and where nobody is seen again.
    """
    choice = _checked(after, classes, min_visibility, min_height, outside)
    root = Path(root).absolute()
    folders = _find_sequences(root)
    train = [train_sequences] if isinstance(train_sequences, str) else list(train_sequences)
    names = _names(root, folders)
    known = {_DETECTOR.sub("", name) for name in names}
    if unknown := [str(name) for name in train if _DETECTOR.sub("", str(name)) not in known]:
        listed = ", ".join(names)
        raise DatasetError(
            f"dataset.options.train_sequences names {', '.join(unknown)}, but the sequences are {listed}"
        )
    sequences = [_read_sequence(name, folder, choice) for name, folder in zip(names, folders)]
    table, labels = _rows(root, sequences, after, {_DETECTOR.sub("", str(name)) for name in train})
    # Other frames are another test, so the name says which; MOT17/train is better known by the folder above.
    title = f"{root.parent.name}-{root.name}" if root.name in ("train", "test") else root.name
    return Manifest.from_table(table, root, f"{title}_after{after}", source=root, label_names=labels)


def _checked(after: Any, classes: Any, min_visibility: Any, min_height: Any, outside: Any) -> _Choice:
    """Raises DatasetError that names the option."""
    if isinstance(after, bool) or not isinstance(after, int) or after < 1:
        raise DatasetError(f"dataset.options.after={after}: give a whole number of frames from 1")
    if outside not in ("refuse", "leave_out"):
        raise DatasetError(f"dataset.options.outside={outside}: choose one of refuse, leave_out")
    kinds = [classes] if isinstance(classes, int) else classes
    if isinstance(kinds, str) or not all(isinstance(kind, int) for kind in kinds):
        raise DatasetError(f"dataset.options.classes={classes}: give whole numbers such as [1]")
    for option, value in (("min_visibility", min_visibility), ("min_height", min_height)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DatasetError(f"dataset.options.{option}={value}: give a number")
    return _Choice(tuple(kinds), min_visibility, min_height, outside == "leave_out")


def _find_sequences(root: Path) -> list[Path]:
    """The folders with frames and ground truth."""
    list_root("mot", root)
    found, level = [], [root]
    for _ in range(1 + _LEVELS):
        found += [folder for folder in level if (folder / _FRAMES).is_dir()]
        level = [
            folder / entry
            for folder in level
            if folder not in found
            for entry, is_folder in sorted(list_folder(folder).items())
            if is_folder and not entry.startswith(".")
        ]
    if not found:
        raise LayoutError(
            f"mot: found no sequence in {root}: looked for folders with {_FRAMES}/ and {_GROUND_TRUTH}.\n"
            f"{how_to_prepare('mot', root)}"
        )
    known = [folder for folder in found if (folder / _GROUND_TRUTH).is_file()]
    blind = [folder for folder in found if folder not in known]
    if not known:
        raise DatasetError(
            f"mot: {blind[0]} has no ground truth: there is no {_GROUND_TRUTH}. Test sequences of MOTChallenge come without: use "
            "those of its folder train. For a video without ground truth there is bdbnet.Embedder.embed_boxes."
        )
    if blind:
        warnings.warn(
            f"{root}: left out are {len(blind)} sequence(s) without {_GROUND_TRUTH}, the first is {blind[0].name}",
            stacklevel=4,
        )
    places = {(folder.parent, _DETECTOR.sub("", folder.name)): folder for folder in reversed(known)}
    return list(places.values())[::-1]


def _names(root: Path, folders: Sequence[Path]) -> list[str]:
    """A name for each sequence: its folder's, or the path below the root where another folder has the same."""
    count = Counter(_DETECTOR.sub("", folder.name) for folder in folders)
    return [
        folder.name if count[_DETECTOR.sub("", folder.name)] == 1 else folder.relative_to(root).as_posix()
        for folder in folders
    ]


def _read_sequence(name: str, folder: Path, choice: _Choice) -> _Sequence:
    files = {int(match[1]): file for file in image_files(folder / _FRAMES) if (match := _FRAME.fullmatch(file))}
    if not files:
        raise DatasetError(f"{folder / _FRAMES} holds no frames such as 000001.jpg. Extract the archive again.")
    size = _frame_size(folder, files)
    file = folder / _GROUND_TRUTH
    boxes: list[tuple[int, ...]] = []
    first: dict[tuple[int, int], int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = _values(line, choice)
            if values is None:
                continue
            frame, person = int(values[0]), int(values[1])
            if frame not in files:
                raise _BadLineError(f"frame {frame} is not in {folder / _FRAMES}. Correct the line, or add the frame.")
            if (before := first.setdefault((frame, person), number)) != number:
                raise _BadLineError(
                    f"id {person} is in frame {frame} a second time, first in line {before}. Remove one of the two lines."
                )
            box = _within(values[2:6], *size, choice.leave_out)
        except _BadLineError as error:
            raise DatasetError(f"{file}, line {number}: {error}") from None
        if box is not None:
            boxes.append((frame, person, *box, number))
    table = pd.DataFrame(boxes, columns=["frame", "id", *BOX_COLUMNS, "line"]).sort_values(
        ["frame", "id"], kind="stable"
    )
    return _Sequence(name, folder, table, files)


def _values(line: str, choice: _Choice) -> list[float] | None:
    """The numbers of a line, None for a box that does not count.  Raises _BadLineError."""
    try:
        values = list(map(float, line.split(",")))
        good = (
            len(values) >= 6 and all(map(math.isfinite, values)) and values[0].is_integer() and values[1].is_integer()
        )
    except ValueError:
        good = False
    if not good:
        raise _BadLineError(f"{line[:80]!r} is not {_LINE}. Correct the line.")
    flag = values[6] if len(values) > 6 else 1
    # With ten columns (MOT15) those after the flag are a place in the world.
    kind = values[7] if len(values) in (8, 9) else None
    visibility = values[8] if len(values) == 9 else 1.0
    if flag == 0 or (kind is not None and int(kind) not in choice.classes):
        return None
    if values[4] <= 0 or values[5] <= 0:
        raise _BadLineError(f"the box is empty ({values[4]:g} x {values[5]:g} pixels). Correct or remove the line.")
    return values if visibility >= choice.min_visibility and values[5] >= choice.min_height else None


def _within(box: Sequence[float], width: int, height: int, leave_out: bool) -> tuple[int, int, int, int] | None:
    """The part of left, top, width, height that lies in the frame, as x1 y1 x2 y2; None for none that is left out."""
    left, top = box[0] - 1, box[1] - 1  # the format counts from 1
    x1, y1 = max(math.floor(left), 0), max(math.floor(top), 0)
    x2, y2 = min(math.ceil(left + box[2]), width), min(math.ceil(top + box[3]), height)
    if x1 < x2 and y1 < y2:
        return x1, y1, x2, y2
    if leave_out:
        return None
    raise _BadLineError(
        f"the box left {box[0]:g}, top {box[1]:g}, width {box[2]:g}, height {box[3]:g} lies outside of the frame of "
        f"{width} x {height} pixels. Correct or remove the line, or set dataset.options.outside=leave_out."
    )


def _frame_size(folder: Path, files: dict[int, str]) -> tuple[int, int]:
    """Width and height of the frames: those of the first one."""
    first = folder / _FRAMES / files[min(files)]
    info = configparser.ConfigParser()
    try:
        info.read(folder / "seqinfo.ini", encoding="utf-8")
        return info.getint("Sequence", "imWidth"), info.getint("Sequence", "imHeight")
    except (configparser.Error, ValueError):  # no such file, or one that does not say it
        pass
    try:
        with Image.open(first) as image:
            return image.size
    except OSError as error:
        raise DatasetError(f"{first} can't be read ({error}). Extract the archive again.") from None


def _refuse_equal_boxes(used: pd.DataFrame, file: Path) -> None:
    """Raise DatasetError where two people of a frame have one box: they would be one image."""
    by_line = used.sort_values("line")
    place = ["frame", *BOX_COLUMNS]
    again = by_line[by_line.duplicated(place)]
    if len(again):
        second = again.iloc[0]
        first = by_line[(by_line[place] == second[place]).all(axis=1)].iloc[0]
        raise DatasetError(
            f"{file}, line {second['line']}: id {second['id']} has the box of id {first['id']} in frame {second['frame']}, see "
            f"line {first['line']}. Correct or remove one of the two lines."
        )


def _rows(
    root: Path, sequences: Sequence[_Sequence], after: int, train: Collection[str]
) -> tuple[pd.DataFrame, dict[int, str]]:
    """The table of the boxes in every `after`-th frame, and the names of its labels.  Raises DatasetError: nobody comes again."""
    parts: dict[str, list[pd.DataFrame]] = {"train": [], "query": [], "gallery": []}
    names: dict[int, str] = {}
    cameras = people = alone = 0
    missed = ""
    for sequence in sequences:
        start = min(sequence.files)
        used = sequence.boxes[(sequence.boxes["frame"] - start) % after == 0]
        _refuse_equal_boxes(used, sequence.folder / _GROUND_TRUTH)
        ids, label = np.unique(used["id"], return_inverse=True)
        folder = sequence.folder.relative_to(root).as_posix()
        inside = _FRAMES if folder == "." else f"{folder}/{_FRAMES}"
        rows = used[list(BOX_COLUMNS)].assign(
            path=[f"{inside}/{sequence.files[frame]}" for frame in used["frame"]],
            label=label + len(names),
            camera=(used["frame"] - start) // after + cameras,
        )
        prefix = f"{sequence.name}:" if len(sequences) > 1 else ""
        names |= {len(names) + number: f"{prefix}{person}" for number, person in enumerate(ids)}
        cameras += (max(sequence.files) - start) // after + 1
        if _DETECTOR.sub("", sequence.name) in train:
            parts["train"].append(rows)
            continue
        seen = set(zip(rows["label"], rows["camera"]))
        again = np.array([(label, camera + 1) in seen for label, camera in zip(rows["label"], rows["camera"])], bool)
        parts["query"].append(rows[again])
        parts["gallery"].append(rows)
        people += len(ids)
        never = rows.loc[~rows["label"].isin(rows.loc[again, "label"]), "label"].unique()
        alone += len(never)
        missed = missed or (names[int(never[0])] if len(never) else "")
    if not sum(map(len, (*parts["train"], *parts["gallery"]))):
        raise DatasetError(
            f"{root}: no box counts: see dataset.options.classes, min_visibility and min_height, and the flags in {_GROUND_TRUTH}"
        )
    if people and people == alone:
        raise DatasetError(
            f"{root}: nobody is seen again after {after} frames: of the {people} ids none is in two successive ones of the used "
            f"frames, the first is {missed}. Set dataset.options.after to fewer frames, or correct the ids in {_GROUND_TRUTH}."
        )
    if alone:
        warnings.warn(
            f"{root}: {alone} of {people} ids are never seen again after {after} frames and are distractors, the first is {missed}",
            stacklevel=4,
        )
    table = pd.concat([part.assign(split=split) for split, found in parts.items() for part in found])
    return table[[*COLUMNS, *BOX_COLUMNS]], names
