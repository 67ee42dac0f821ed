"""Crops of videos in the format of MOTChallenge, on generated sequences."""

from pathlib import Path

import pytest
from PIL import Image

from bdbnet.datasets import DatasetError, Manifest, load_manifest
from bdbnet.datasets.inspection import inspect_images, inspect_table
from bdbnet.retrieval.matches import Matches

BOXES = {1: (11, 21, 20, 40), 2: (41, 21, 20, 40), 3: (91, 1, 20, 40)}
"""id -> left, top, width, height; the third reaches over the right edge of the frame"""


def sequence(folder: Path, *lines: str, frames: int = 7, size: tuple[int, int] = (100, 80)) -> Path:
    """A video of one gray frame in `frames` files, with these lines of ground truth."""
    (folder / "img1").mkdir(parents=True)
    for number in range(1, frames + 1):
        Image.new("RGB", size, (30 * number, sum(folder.name.encode()) % 256, 99)).save(
            folder / "img1" / f"{number:06d}.jpg"
        )
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def line(frame: int, person: int, more: str = ",1,1,1") -> str:
    return f"{frame},{person},{','.join(map(str, BOXES[person]))}{more}"


def walk(*people: int, frames: int = 7, more: str = ",1,1,1") -> list[str]:
    return [line(frame, person, more) for person in people for frame in range(1, frames + 1)]


def error_of(root: Path, **options: object) -> str:
    with pytest.raises(DatasetError) as error:
        load_manifest("mot", root, after=3, **options)
    return str(error.value)


def cells(manifest: Manifest, role: str) -> list[tuple[object, ...]]:
    table = manifest.table[manifest.table["split"] == role]
    return [(Path(path).stem, manifest.name_of(label)) for path, label in zip(table["path"], table["label"])]


def test_people_are_searched_for_in_the_next_frame_that_is_used(tmp_path: Path) -> None:
    """Frames 1, 4 and 7 are used; id 3 is in frame 4 alone, and so a distractor; nobody in frame 7 has a next one."""
    root = sequence(tmp_path / "walk", *walk(1, 2), line(4, 3))
    with pytest.warns(
        UserWarning, match="1 of 3 ids are never seen again after 3 frames and are distractors, the first is 3"
    ):
        manifest = load_manifest("mot", root, after=3)
    everybody = [
        (f"00000{frame}", person) for frame in (1, 4, 7) for person in ("1", "2", "3") if person != "3" or frame == 4
    ]
    assert cells(manifest, "gallery") == everybody
    assert cells(manifest, "query") == [cell for cell in everybody if cell[1] != "3" and cell[0] != "000007"]
    assert manifest.table.iloc[0][["x1", "y1", "x2", "y2"]].tolist() == [10, 20, 30, 60]
    third = manifest.table[manifest.table["label"] == 2].iloc[0]
    assert third[["x1", "y1", "x2", "y2"]].tolist() == [90, 0, 100, 40]  # cut at the edge of the frame

    query, gallery = manifest.subset("query").table, manifest.subset("gallery").table
    of = Matches.of_labels(
        query["label"].to_numpy(), gallery["label"].to_numpy(), query["camera"].to_numpy(), gallery["camera"].to_numpy(),
        sizes=(len(query), len(gallery)), next_camera=True,
    )  # fmt: skip
    for number in range(len(query)):
        positives, left_out = of.of(number)
        after = f"{int(Path(query['path'].iloc[number]).stem) + 3:06d}"
        assert [everybody[place] for place in positives] == [(after, manifest.name_of(query["label"].iloc[number]))]
        counted = set(range(len(everybody))) - set(left_out)
        assert [everybody[place] for place in sorted(counted)] == [cell for cell in everybody if cell[0] == after]


def test_sequences_of_a_folder_and_their_crops(tmp_path: Path) -> None:
    """One of the three copies of MOT17-02 is read; identities of two sequences differ; one trains; one has no ground truth."""
    train = tmp_path / "MOT17" / "train"
    for name in ("MOT17-02-DPM", "MOT17-02-SDP", "MOT17-04-DPM"):
        sequence(train / name, *walk(1, 2))
    blind = sequence(tmp_path / "MOT17" / "test" / "MOT17-01-DPM")
    (blind / "gt" / "gt.txt").unlink()
    with pytest.warns(UserWarning, match=r"left out are 1 sequence\(s\) without gt/gt.txt, the first is MOT17-01-DPM"):
        manifest = load_manifest("mot", tmp_path, after=3, train_sequences=["MOT17-04-FRCNN"])
    assert load_manifest("mot", train, after=3).name == "MOT17-train_after3"
    assert set(manifest.table["path"].str.split("/").str[2]) == {"MOT17-02-DPM", "MOT17-04-DPM"}
    assert manifest.counts()["images"].tolist() == [6, 4, 6]
    assert manifest.counts()["identities"].tolist() == [2, 2, 2]
    assert sorted(manifest.label_names.values())[0] == "MOT17-02-DPM:1"
    assert manifest.shared_labels().size == 0
    assert inspect_table(manifest, {}, protocol="reid_reassociation") == []
    blind = Manifest(manifest.table.assign(camera=-1), manifest.root)
    assert "needs cameras, which are the numbers of the frames" in str(
        inspect_table(blind, {}, protocol="reid_reassociation")[0]
    )
    assert inspect_images(manifest, progress=False) == ([], [])


def test_what_does_not_count(tmp_path: Path) -> None:
    """Flag 0, another class, hidden, too small; ten columns, as in MOT15, have no class."""
    small = ["1,9,1,1,5,8,1,1,1", "4,9,1,1,5,8,1,1,1"]
    lines = [*walk(1), *walk(2, more=",0,1,1"), *walk(3, more=",1,7,1"), *small]
    assert set(cells(load_manifest("mot", sequence(tmp_path / "a", *lines), after=3), "gallery")) == {
        ("000001", "1"), ("000004", "1"), ("000007", "1"),
    }  # fmt: skip
    hidden = sequence(tmp_path / "b", *walk(1, more=",1,1,0.2"))
    assert "no box counts: see dataset.options.classes, min_visibility and min_height" in error_of(hidden)
    world = sequence(tmp_path / "c", *walk(1, 3, more=",1,-1,-1,-1"))
    assert len(load_manifest("mot", world, after=3).subset("gallery").table) == 6


def test_no_ground_truth(tmp_path: Path) -> None:
    root = sequence(tmp_path / "blind")
    (root / "gt" / "gt.txt").unlink()
    assert f"{root} has no ground truth: there is no gt/gt.txt" in error_of(root)
    assert "found no sequence in" in error_of(root / "img1")
    assert "there is no folder" in error_of(tmp_path / "absent")


def test_ids_that_never_come_again(tmp_path: Path) -> None:
    message = error_of(sequence(tmp_path / "video", line(1, 1), line(2, 1), line(4, 2), line(7, 3)))
    assert (
        "nobody is seen again after 3 frames: of the 3 ids none is in two successive ones of the used frames, the first is 1"
        in message
    )
    assert "Set dataset.options.after to fewer frames" in message


def test_a_box_outside_of_the_frame(tmp_path: Path) -> None:
    root = sequence(tmp_path / "video", *walk(1), "4,5,101,1,20,40,1,1,1")
    message = error_of(root)
    assert (
        f"{root / 'gt/gt.txt'}, line 8: the box left 101, top 1, width 20, height 40 lies outside of the frame"
        in message
    )
    assert "of 100 x 80 pixels" in message
    assert len(load_manifest("mot", root, after=3, outside="leave_out").subset("gallery").table) == 3
    # The size that seqinfo.ini gives counts.
    (root / "seqinfo.ini").write_text("[Sequence]\nname=video\nimWidth=200\nimHeight=80\n")
    with pytest.warns(UserWarning, match="the first is 5"):
        assert len(load_manifest("mot", root, after=3).subset("gallery").table) == 4


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1,1,5,5,20"], "line 1: '1,1,5,5,20' is not frame,id,left,top,width,height"),
        (["1,1,5,x,20,40"], "line 1: '1,1,5,x,20,40' is not"),
        (["1.5,1,5,5,20,40"], "line 1: '1.5,1,5,5,20,40' is not"),
        (["1,1,5,5,nan,40", "1,1,5,5,0,40"], "line 1: '1,1,5,5,nan,40' is not"),
        (["1,1,5,5,0,40"], "line 1: the box is empty (0 x 40 pixels)"),
        (["99,1,5,5,20,40"], "line 1: frame 99 is not in"),
        (
            [
                "1,1,5,5,20,40",
                "4,1,5,5,20,40",
                "1,2,5,5,20,40",
                "2,3,5,5,20,40",
                "2,4,5,5,20,40",
            ],  # frame 2 is not used
            "line 3: id 2 has the box of id 1 in frame 1, see line 1. Correct or remove one of the two lines",
        ),
        (["1,1,5,5,20,40", "", "1,1,6,5,20,40"], "line 3: id 1 is in frame 1 a second time, first in line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    assert f"gt.txt, {expected}" in error_of(sequence(tmp_path / "video", *lines))


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    root = sequence(tmp_path / "video", *walk(1))
    assert "outside=keep: choose one of refuse, leave_out" in error_of(root, outside="keep")
    assert "train_sequences names other, but the sequences are video" in error_of(root, train_sequences=["other"])
    assert len(load_manifest("mot", root, train_sequences="video").subset("train").table) == 1
    assert "classes=car: give whole numbers such as [1]" in error_of(root, classes="car")
    assert "min_height=tall: give a number" in error_of(root, min_height="tall")
    with pytest.raises(DatasetError, match="after=0: give a whole number of frames from 1"):
        load_manifest("mot", root, after=0)


def test_sequences_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for day in ("day1", "day2"):
        sequence(tmp_path / day / "cam", *walk(1, 2))
    manifest = load_manifest("mot", tmp_path, after=3)
    assert [manifest.name_of(label) for label in range(4)] == ["day1/cam:1", "day1/cam:2", "day2/cam:1", "day2/cam:2"]
    trained = load_manifest("mot", tmp_path, after=3, train_sequences=["day1/cam"])
    assert trained.subset("train").table["label"].nunique() == 2
    assert "but the sequences are day1/cam, day2/cam" in error_of(tmp_path, train_sequences=["cam"])


def test_lines_that_do_not_count_may_be_empty_and_cars_are_no_people(tmp_path: Path) -> None:
    root = sequence(
        tmp_path / "walk", *walk(1), "1,2,1,1,0,0,0,1,1", *(f"{frame},3,1,1,20,40,1,3" for frame in range(1, 8))
    )
    assert load_manifest("mot", root, after=3).table["label"].nunique() == 1
