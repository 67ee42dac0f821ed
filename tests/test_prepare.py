"""The prepare command: sets a dataset up, checks it, and says clearly what is wrong."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdbnet import prepare
from bdbnet.datasets import FACTS, PUBLISHED_COUNTS, SplitCounts

FILES = (
    "Market/bounding_box_train/0002_c1s1_000451_03.jpg",
    "Market/query/0001_c1s1_001051_00.jpg",
    "Market/bounding_box_test/0001_c2s1_000351_00.jpg",
)


def jpeg(seed: int) -> bytes:
    """A small image of its own."""
    pixels, content = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "market.zip"
    with zipfile.ZipFile(path, "w") as file:
        for seed, name in enumerate(FILES):
            file.writestr(name, jpeg(seed))
    return path


@pytest.fixture
def three_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Market-1501 had been published with three images."""
    one = SplitCounts(identities=1, images=1, cameras=1)
    monkeypatch.setitem(PUBLISHED_COUNTS, "market1501", {"train": one, "query": one, "gallery": one})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of the command, empty at its start."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.delenv("BDBNET_DATA", raising=False)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `python -m bdbnet.prepare ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    try:
        prepare.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


@pytest.mark.usefixtures("three_images")
def test_archive_is_extracted_and_checked(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 0
    first = capsys.readouterr().out
    assert first.count("1 ok") == 9
    assert "fingerprint " in first
    assert "no faults found" in first
    assert (folder / "data" / "market1501" / FILES[0]).is_file()
    assert [path.name for path in folder.iterdir()] == ["data"]

    assert run(monkeypatch, "dataset=market1501") == 0
    assert capsys.readouterr().out == first


def test_unpublished_counts_are_shown_and_end_with_status_1(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 1
    captured = capsys.readouterr()
    assert "1 (published 12,936)" in captured.out
    assert "error: " in captured.err
    assert "gallery has 1 images, published 15,913" in captured.err
    assert "Warning" not in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("three_images")
def test_data_root_comes_from_the_environment(
    folder: Path, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDBNET_DATA", str(tmp_path / "all"))
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 0
    assert (tmp_path / "all" / "market1501" / "Market" / "query").is_dir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=market1501"], "there is no folder data/market1501"),
        (["dataset=market1501", "archive=absent.zip"], "can't read the archive absent.zip"),
        (["dataset=market1501", "archive=../markets.zip"], "Did you mean archive=../market.zip?"),
        (["dataset=market1501", "dataset.root=.."], "unexpected layout"),
        (["dataset=market1501", "+dataset.options.chek_counts=false"], "no option chek_counts"),
        (["dataset=market1502"], "market1501"),
        (["dataset=market1501", "archiv=x"], "archiv"),
        ([], "choose a dataset: add dataset=NAME with one of market1501"),
        (["dataset=market1501", "archive=~nobody-of-that-name/a.zip"], "there is no such user"),
        (["dataset=market1501", "dataset.root=~nobody-of-that-name/a"], "there is no such user"),
        (["dataset=synthetic_reid", "archive=a.zip"], "leave out archive="),
        (["dataset=market1501", "archive=a.zip", "dataset.root=null"], "dataset.root is null"),
        (["dataset=market1501", "archive=[]"], "archive=[]: give a file or folder"),
    ],
)
def test_wrong_input_gets_one_clear_message(
    folder: Path,
    archive: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
    assert list(folder.iterdir()) == []


def test_archive_of_something_else_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as file:
        file.writestr("birds/1.jpg", b"")
    assert run(monkeypatch, "dataset=market1501", f"archive={tmp_path / 'birds.zip'}") == 1
    message = capsys.readouterr().err
    assert "birds.zip is not market1501; the extracted files were removed" in message
    assert "found birds" in message
    assert "bounding_box_train/  12,936 images" in message  # the layout that was expected
    assert list((folder / "data").iterdir()) == []


def test_a_wrong_archive_into_a_linked_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    (folder / "link").symlink_to(tmp_path / "disk")
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as file:
        file.writestr("birds/1.jpg", b"")
    arguments = ["dataset=market1501", f"archive={tmp_path / 'birds.zip'}", "dataset.root=link"]
    for _ in range(2):
        assert run(monkeypatch, *arguments) == 1
        assert "is not market1501; the extracted files were removed" in capsys.readouterr().err


def test_an_archive_with_another_fault_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "market.zip", "w") as file:
        for name in (*FILES, "Market/query/holiday.jpg"):
            file.writestr(name, jpeg(0))
    assert run(monkeypatch, "dataset=market1501", f"archive={tmp_path / 'market.zip'}") == 1
    message = capsys.readouterr().err
    assert "'holiday.jpg'" in message
    assert "was extracted to data/market1501: leave out archive= to read it again" in message
    assert (folder / "data" / "market1501" / FILES[0]).is_file()


def test_counts_are_no_fault_where_they_are_not_asked_for(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dataset=market1501", "dataset.options.check_counts=false"]
    assert run(monkeypatch, *arguments, f"archive={archive}") == 0
    assert "1 (published 12,936)" in capsys.readouterr().out


def test_second_extraction_leaves_the_data_alone(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = folder / "data" / "market1501" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert run(monkeypatch, "dataset=market1501", f"archive={archive}") == 1
    assert "holds files already" in capsys.readouterr().err
    assert list(kept.parent.iterdir()) == [kept]


def test_help_names_the_command_lines_and_the_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "python -m bdbnet.prepare dataset=market1501 archive=" in text
    assert "dataset: " in text


def test_several_archives_and_a_list_beside_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "img.tgz", "w:gz") as file:
        for number, name in enumerate(("id_00000001/01.jpg", "id_00000002/01.jpg", "id_00000002/02.jpg")):
            member = tarfile.TarInfo(f"img/MEN/Denim/{name}")
            member.size = len(jpeg(number))
            file.addfile(member, io.BytesIO(jpeg(number)))
    listed = ["3", "image_name item_id evaluation_status"]
    listed += [f"img/MEN/Denim/id_0000000{item}/0{view}.jpg id_0000000{item} {split}"
               for item, view, split in ((1, 1, "train"), (2, 1, "query"), (2, 2, "gallery"))]  # fmt: skip
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(listed))
    one = SplitCounts(identities=1, images=1, cameras=0)
    monkeypatch.setitem(PUBLISHED_COUNTS, "inshop", {"train": one, "query": one, "gallery": one})
    files = f"[{tmp_path / 'img.tgz'},{tmp_path / 'list_eval_partition.txt'}]"
    assert run(monkeypatch, "dataset=inshop", f"archive={files}") == 0
    out = capsys.readouterr().out
    assert "no faults found" in out
    assert "no cameras: the retrieval protocol" in out
    assert sorted(path.name for path in (folder / "data" / "inshop").iterdir()) == ["img", "list_eval_partition.txt"]


@pytest.mark.usefixtures("three_images")
def test_every_fault_is_listed_with_its_fix(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Identity 1 trains too, a query has no match, two files are equal, one is damaged, one is too many."""
    content = {
        "bounding_box_train/0001_c1s1_000451_03.jpg": jpeg(0),
        "bounding_box_train/0002_c1s1_000451_03.jpg": jpeg(1),
        "query/0001_c1s1_001051_00.jpg": jpeg(0),
        "query/0003_c1s1_001051_00.jpg": jpeg(2),
        "bounding_box_test/0001_c2s1_000351_00.jpg": jpeg(3)[:-40],
    }
    for name, data in content.items():
        path = folder / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert run(monkeypatch, "dataset=market1501", "dataset.root=mine") == 1
    captured = capsys.readouterr()
    assert "2 (published 1)" in captured.out
    assert "note: 2 training identities were seen by one camera only" in captured.out
    message = captured.err
    assert "has 5 faults" in message
    assert message.count("Fix: ") == 5
    for said in (
        "train has 2 identities, published 1",
        "1 identities have images in both train and test, the first is 1 (bounding_box_train/0001_c1s1_000451_03.jpg)",
        "1 queries of 1 identities have no image of their identity under another camera in the gallery",
        "1 images can't be read:\n     image ",
        "0001_c2s1_000351_00.jpg can't be read",
        "1 test images are also in the training set, byte for byte, the first is query/0001_c1s1_001051_00.jpg",
    ):
        assert said in message
    assert "Traceback" not in message

    assert run(monkeypatch, "dataset=market1501", "dataset.root=mine", "check_images=false") == 1
    assert "has 3 faults" in capsys.readouterr().err


def test_a_table_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["path,label,split,x1,y1,x2,y2"]
    for number in range(4):
        (folder / f"photo {number}.jpg").write_bytes(jpeg(number))
        rows.append(
            f"photo {number}.jpg,{'ab'[number // 2]},{'train' if number < 2 else 'test'},1,1,4,{9 if number else 8}"
        )
    (folder / "my.csv").write_text("\n".join(rows))
    assert run(monkeypatch, "dataset=table", "dataset.manifest=my.csv") == 0
    out = capsys.readouterr().out
    assert "my in " in out
    assert "published" not in out
    assert "note: 3 boxes extend beyond the image and are clipped, the first in photo 1.jpg" in out
    assert "no faults found" in out

    assert run(monkeypatch, "dataset=table", "dataset.manifest=my.csv", "archive=a.zip") == 1
    assert "leave out archive=" in capsys.readouterr().err
    assert run(monkeypatch, "dataset=table", "dataset.manifest=your.csv") == 1
    assert "your.csv" in capsys.readouterr().err


def test_the_protocol_that_was_asked_for_decides_what_is_a_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Test images of one camera: a fault for re-ID, none for retrieval; split test is one for multi-query."""
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    rows = ["path,label,camera,split", *(f"{n}.jpg,{n // 2},{n // 2},{'train' if n < 2 else 'test'}" for n in range(4))]
    (folder / "my.csv").write_text("\n".join(rows))
    arguments = ["dataset=table", "dataset.manifest=my.csv"]
    assert run(monkeypatch, *arguments) == 1
    assert "under another camera in the gallery" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "dataset.protocol=retrieval") == 0
    assert run(monkeypatch, *arguments, "dataset.protocol=reid_multi_query") == 1
    assert "needs cameras, and separate query and gallery images" in capsys.readouterr().err


def test_another_version_of_a_dataset_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test"):
        (folder / "msmt" / "MSMT17_V1" / name).mkdir(parents=True)
    for name in ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"):
        (folder / "msmt" / "MSMT17_V1" / name).write_text("0000/0000_000_01_0303morning_0015_0_ex.jpg 0\n")
    assert run(monkeypatch, "dataset=msmt17_v2", "dataset.root=msmt") == 1
    message = capsys.readouterr().err
    assert "MSMT17 V1" in message
    assert "dataset=msmt17_v1" in message


@pytest.mark.parametrize("name", FACTS)
def test_help_of_a_dataset_shows_its_layout_and_terms(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f"dataset={name}", "--help") == 0
    text = capsys.readouterr().out
    facts = FACTS[name]
    for line in (*facts.layout.splitlines(), facts.obtain, facts.archives):
        assert line in text


def test_help_lists_every_dataset_with_its_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for name, facts in FACTS.items():
        assert f"{name}: {facts.title}" in text
        assert facts.obtain in text
    assert "withdrew it in 2019" in text


def table(folder: Path, rows: list[str]) -> None:
    """my.csv of these rows, and its images."""
    (folder / "my.csv").write_text("\n".join(["path,label,split,camera", *rows]))
    for seed, row in enumerate(rows):
        (folder / row.partition(",")[0]).write_bytes(jpeg(seed))


@pytest.mark.parametrize(
    ("rows", "expected", "unexpected"),
    [
        (
            ["c.jpg,2,query,1", "d.jpg,2,gallery,1", "e.jpg,3,query,1", "f.jpg,3,gallery,1"],
            "All query and gallery images are from one camera: set dataset.protocol=retrieval",
            "out",
        ),
        (
            ["c.jpg,2,query,1", "d.jpg,2,gallery,1", "e.jpg,3,query,2", "f.jpg,3,gallery,2"],
            "No identity was seen by two cameras: set dataset.protocol=retrieval",
            "out",
        ),
        (
            ["c.jpg,2,query,1", "d.jpg,3,gallery,2"],
            "Correct the labels or cameras: every query has to have another image of its label in the gallery",
            "out",
        ),
        (
            ["c.jpg,2,query,1", "d.jpg,2,gallery,2", "e.jpg,3,query,1"],
            "Correct the labels or cameras, or take these rows of split query out",
            "protocol=",
        ),
        (
            ["c.jpg,2,test,1", "d.jpg,2,test,2", "e.jpg,3,test,1"],
            "leave these rows of split test out, which are query and gallery at once",
            "protocol=",
        ),
    ],
)
def test_queries_without_a_match_come_with_advice_that_fits(
    folder: Path,
    rows: list[str],
    expected: str,
    unexpected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(folder, ["a.jpg,1,train,1", *rows])
    assert run(monkeypatch, "dataset=table", "dataset.manifest=my.csv") == 1
    message = capsys.readouterr().err
    assert expected in message
    assert unexpected not in message.partition("Fix:")[2]


def test_data_of_one_camera_is_fine_under_the_retrieval_protocol(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table(folder, ["a.jpg,1,train,1", "c.jpg,2,query,1", "d.jpg,2,gallery,1"])
    arguments = ["dataset=table", "dataset.manifest=my.csv", "dataset.protocol=retrieval"]
    assert run(monkeypatch, *arguments) == 0
    assert "no faults found" in capsys.readouterr().out


def test_columns_that_are_not_used_and_class_names_of_two_folders_are_notes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my.csv").write_text("path,label,split,kamera\na.jpg,1,train,1\nb.jpg,2,test,1\nc.jpg,2,test,2\n")
    for seed, name in enumerate(
        ("a.jpg", "b.jpg", "c.jpg", "x/audi/1.jpg", "x/vw/2.jpg", "y/audi/1.jpg", "y/bmw/1.jpg")
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(seed))
    assert run(monkeypatch, "dataset=table", "dataset.manifest=my.csv") == 0
    assert "columns that are not used: kamera; did you mean camera by 'kamera'?" in capsys.readouterr().out
    arguments = ["dataset=table", "dataset.manifest=[x,y]", "dataset.train_classes=1"]
    run(monkeypatch, *arguments)
    assert "note: 1 class name(s) are in more than one source, such as 'audi'" in capsys.readouterr().out
    run(monkeypatch, *arguments, "dataset.options.share_labels=true")
    assert "class name" not in capsys.readouterr().out


def test_vehicleid_from_its_archive(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its test images are queries and gallery by turns; a vehicle with one test image is a fault under its protocol."""
    with zipfile.ZipFile(tmp_path / "VehicleID_V1.0.zip", "w") as file:
        for number in range(1, 5):
            file.writestr(f"VehicleID_V1.0/image/000000{number}.jpg", jpeg(number))
        file.writestr("VehicleID_V1.0/train_test_split/train_list.txt", "0000001 9\n")
        file.writestr("VehicleID_V1.0/train_test_split/test_list_800.txt", "0000002 7\n0000003 7\n0000004 8\n")
    arguments = ["dataset=vehicleid_small", "dataset.options.check_counts=false"]
    assert run(monkeypatch, *arguments, f"archive={tmp_path / 'VehicleID_V1.0.zip'}") == 1
    captured = capsys.readouterr()
    assert "3 (published 6,493)" in captured.out
    assert "1 identities have one test image alone, the first is 8 (image/0000004.jpg)" in captured.err
    assert "Fix: Leave these rows out, or choose another dataset.protocol" in captured.err
    assert (folder / "data" / "vehicleid" / "VehicleID_V1.0" / "image").is_dir()


def test_a_pattern_of_ones_own_is_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("bounding_box_train/ann-cam1-0", "query/ben-cam1-0", "bounding_box_test/ben-cam2-0")):
        (folder / "mine" / name).parent.mkdir(parents=True)
        (folder / "mine" / f"{name}.jpg").write_bytes(jpeg(seed))
    for pattern in (r'"(?P<identity>\w+)-cam(?P<camera>\d+)-.*"', r"([a-z]+)-cam(\d+)-.*"):
        arguments = ["dataset=market_layout", "dataset.root=mine", f"dataset.options.pattern={pattern}"]
        assert run(monkeypatch, *arguments) == 0
        out = capsys.readouterr().out
        assert "mine in " in out
        assert "no faults found" in out


def test_a_video_needs_no_training_sequences(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for frame in (1, 2, 3):
        (folder / "clip" / "img1").mkdir(parents=True, exist_ok=True)
        (folder / "clip" / "img1" / f"{frame:06d}.jpg").write_bytes(jpeg(frame))
    (folder / "clip" / "gt").mkdir()
    (folder / "clip" / "gt" / "gt.txt").write_text("".join(f"{frame},1,1,1,4,4\n" for frame in (1, 2, 3)))
    arguments = ["dataset=mot", "dataset.root=clip", "dataset.options.after=1", "dataset.options.min_height=1"]
    assert run(monkeypatch, *arguments) == 0
    assert "no faults found" in capsys.readouterr().out
    (folder / "clip" / "gt" / "gt.txt").unlink()
    assert run(monkeypatch, *arguments) == 1
    assert "has no ground truth: there is no gt/gt.txt" in capsys.readouterr().err


SMALL = (
    "dataset.options.train_identities=4 dataset.options.test_identities=4 dataset.options.images_per_camera=2 "
    "dataset.options.cameras=2 dataset.options.distractors=2 dataset.options.image_size=[32,16] dataset.options.workers=1"
)


def test_each_data_set_of_a_list_is_set_up_and_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = f'dataset=["synthetic_reid {SMALL}","synthetic_reid {SMALL} dataset.options.seed=1"]'
    assert run(monkeypatch, listed) == 0
    said = capsys.readouterr().out
    assert said.count("no faults found") == 2
    assert len({line for line in said.splitlines() if line.startswith(f"synthetic_reid in {folder}/data/")}) == 2
    assert len([path for path in (folder / "data" / "synthetic_reid").iterdir() if path.is_dir()]) == 2


def test_one_faulty_data_set_of_a_list_does_not_hide_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f'dataset=[market1501,"synthetic_reid {SMALL}",msmt17_v2]') == 1
    captured = capsys.readouterr()
    assert "no faults found" in captured.out
    assert "there is no folder data/market1501" in captured.err
    assert "there is no folder data/msmt17_v2" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=[market1501,synthetic_reid]", "archive=a.zip"], "archive= is of one data set"),
        (["dataset=[market1501,no_such_set]"], "no_such_set"),
        (["dataset=[market1501,synthetic_reid]", "dataset.root=x"], "'dataset=[\"market1501 dataset.root=x\",...]'"),
    ],
)
def test_a_wrong_list_is_refused_before_anything_is_done(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []
