"""CUHK03 readers on the real index files of the new protocol, with generated images."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from bdbnet.datasets import PUBLISHED_COUNTS, CountWarning, DatasetError, cuhk03, load_manifest
from bdbnet.datasets.cuhk03 import mistaken_kind, read_cuhk03_detect, read_cuhk03_label
from cuhk03_files import FILES, KINDS, pixels, write_images, write_old

OTHER = {"cuhk03_detect": "cuhk03_label", "cuhk03_label": "cuhk03_detect"}
INDEX: dict[str, Any] = {
    "filelist": np.array([[file] for file in FILES], dtype=object),
    "labels": np.array([[1], [1], [2], [2], [3], [3]], np.uint16),
    "camId": np.array([[1], [2], [1], [2], [1], [2]], np.uint8),
    "train_idx": np.array([[3], [4]], np.uint16),
    "query_idx": np.array([[1], [5]], np.uint16),
    "gallery_idx": np.array([[2], [6]], np.uint16),
}


def write_small(root: Path, name: str = "cuhk03_detect", **fields: object) -> Path:
    """The authors' layout with six images; `fields` replace those of the index, None leaves one out."""
    root.mkdir(exist_ok=True)
    index = {field: values for field, values in (INDEX | fields).items() if values is not None}
    savemat(root / f"cuhk03_new_protocol_config_{KINDS[name]}.mat", index)
    write_images(root / "cuhk-03.mat", KINDS[name], FILES)
    return root


def write_pre_cut(root: Path, kind: str, sizes: Sequence[int]) -> Path:
    """CUHK03-NP: 767 people train, 700 others test; numbers of images as in `sizes` (train, query, gallery)."""
    source = root / "source"
    root.mkdir(exist_ok=True)
    Image.new("RGB", (3, 5)).save(source, "png")
    first = {"bounding_box_train": (1, 767), "query": (768, 700), "bounding_box_test": (768, 700)}
    for (folder, (start, people)), size in zip(first.items(), sizes):
        (root / kind / folder).mkdir(parents=True)
        for number in range(size):
            turn, person = divmod(number, people)
            os.link(source, root / kind / folder / f"{start + person:04d}_c{1 + turn % 2}_{turn}.png")
    return root


def copy_real_index(shared_data: Path, name: str, root: Path) -> dict[str, Any]:
    source = shared_data / "protocols" / "cuhk03" / f"cuhk03_new_protocol_config_{KINDS[name]}.mat"
    shutil.copy(source, root)
    content: dict[str, Any] = loadmat(source)
    return content


def error_of(root: Path, name: str = "cuhk03_detect") -> str:
    with pytest.raises(DatasetError) as error:
        load_manifest(name, root, check_counts=False)
    return str(error.value)


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("name", KINDS)
def test_the_real_index_has_the_published_counts(
    name: str, shared_data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    content = copy_real_index(shared_data, name, tmp_path)
    files = [str(cell.item()) for cell in content["filelist"].ravel()]
    (tmp_path / f"images_{KINDS[name]}").mkdir()
    Image.new("RGB", (3, 5)).save(tmp_path / "source", "png")
    for file in files:
        os.link(tmp_path / "source", tmp_path / f"images_{KINDS[name]}" / file)
    manifest = load_manifest(name, tmp_path)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS[name]) == []
    assert manifest.counts()["images"].tolist() == (
        [7_365, 1_400, 5_332] if "detect" in name else [7_368, 1_400, 5_328]
    )
    assert len(manifest.shared_labels()) == 0
    assert manifest.unmatched_queries() == 0
    assert mistaken_kind(manifest) is None
    labels = dict(zip(files, content["labels"].ravel()))
    for row in manifest.table.itertuples():
        file = str(row.path).removeprefix(f"images_{KINDS[name]}/")
        assert (row.label, row.camera) == (labels[file], int(file.split("_")[2]))


def test_images_of_all_camera_pairs_are_cut(shared_data: Path, tmp_path: Path) -> None:
    content = copy_real_index(shared_data, "cuhk03_detect", tmp_path)
    few = {field: content[field][::20] for field in ("filelist", "labels", "camId")}
    files = [str(cell.item()) for cell in few["filelist"].ravel()]
    parts = {"train_idx": np.arange(3, len(files) + 1), "query_idx": [1], "gallery_idx": [2]}
    savemat(tmp_path / "cuhk03_new_protocol_config_detected.mat", few | parts)
    write_images(tmp_path / "cuhk03_release" / "cuhk-03.mat", "detected", files)
    manifest = load_manifest("cuhk03_detect", tmp_path, check_counts=False)
    assert {Path(path).name[0] for path in manifest.paths} == set("12345")
    assert entries(tmp_path / "images_detected") == set(files)
    for path in manifest.paths:
        assert np.array_equal(np.asarray(Image.open(path)), pixels(Path(path).name))


@pytest.mark.parametrize("name", KINDS)
def test_pre_cut_images_have_the_published_counts(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    sizes = [counts.images for counts in PUBLISHED_COUNTS[name].values()]
    write_pre_cut(tmp_path / "cuhk03-np", KINDS[name], sizes)
    manifest = load_manifest(name, tmp_path)
    assert not recwarn.list
    assert manifest.differences(PUBLISHED_COUNTS[name]) == []
    assert manifest.table.iloc[0].tolist() == [f"{KINDS[name]}/bounding_box_train/0001_c1_0.png", 1, 1, "train"]
    assert Path(manifest.paths[-1]).is_file()


@pytest.mark.parametrize("name", KINDS)
def test_a_renamed_version_is_recognised_by_its_counts(name: str, tmp_path: Path) -> None:
    sizes = [counts.images for counts in PUBLISHED_COUNTS[OTHER[name]].values()]
    write_pre_cut(tmp_path, KINDS[name], sizes)
    expected = f"the counts are those of the {KINDS[OTHER[name]]} version: use dataset={OTHER[name]}"
    with pytest.warns(CountWarning, match=expected):
        manifest = load_manifest(name, tmp_path)
    assert mistaken_kind(manifest) == expected


def test_a_part_is_not_taken_for_the_other_version(tmp_path: Path) -> None:
    write_pre_cut(tmp_path, "detected", (1_534, 1_400, 1_400))
    expected = r"train has 1,534 images, published 7,365; gallery has 1,400 images, published 5,332\. Results"
    with pytest.warns(CountWarning, match=expected) as caught:
        manifest = load_manifest("cuhk03_detect", tmp_path)
    assert "version" not in str(caught[0].message)
    assert mistaken_kind(manifest) is None


def test_images_are_cut_once(tmp_path: Path) -> None:
    write_small(tmp_path)
    manifest = read_cuhk03_detect(tmp_path, check_counts=False)
    assert manifest.table.to_numpy().tolist() == [
        ["images_detected/1_002_1_05.png", 2, 1, "train"],
        ["images_detected/1_002_2_10.png", 2, 2, "train"],
        ["images_detected/1_001_1_01.png", 1, 1, "query"],
        ["images_detected/2_001_1_02.png", 3, 1, "query"],
        ["images_detected/1_001_2_06.png", 1, 2, "gallery"],
        ["images_detected/2_001_2_07.png", 3, 2, "gallery"],
    ]
    for path in manifest.paths:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert np.array_equal(np.asarray(image), pixels(Path(path).name))
    (tmp_path / "cuhk-03.mat").write_bytes(b"is not opened")
    assert read_cuhk03_detect(tmp_path, check_counts=False).fingerprint == manifest.fingerprint
    assert entries(tmp_path) == {"cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat", "images_detected"}


def test_pre_cut_images_are_preferred(tmp_path: Path) -> None:
    write_small(write_pre_cut(tmp_path, "labeled", (767, 700, 700)), "cuhk03_label")
    assert len(read_cuhk03_label(tmp_path, check_counts=False).table) == 767 + 700 + 700
    (tmp_path / "labeled" / "query").rename(tmp_path / "elsewhere")
    assert len(read_cuhk03_label(tmp_path, check_counts=False).table) == len(FILES)


def test_half_of_the_pre_cut_images(tmp_path: Path) -> None:
    write_pre_cut(tmp_path, "labeled", (1, 1, 1))
    shutil.rmtree(tmp_path / "labeled" / "query")
    message = error_of(tmp_path, "cuhk03_label")
    assert "holds labeled/bounding_box_train, labeled/bounding_box_test but not labeled/query" in message
    assert "python -m bdbnet.prepare dataset=cuhk03_label archive=FILE" in message
    assert "with FILE = cuhk03-np.zip" in message


@pytest.mark.parametrize("name", ["0001_c3_1.png", "0001_c1s1_000451_03.jpg", "1_c1_1.png"])
def test_a_pre_cut_image_with_another_name(tmp_path: Path, name: str) -> None:
    write_pre_cut(tmp_path, "detected", (1, 1, 1))
    (tmp_path / "detected" / "query" / name).touch()
    message = error_of(tmp_path)
    assert f"{tmp_path / 'detected' / 'query'}: can't read identity and camera from the file name {name!r}" in message
    assert "looks like 0003_c1_1.png" in message


def test_nothing_known_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cuhk-03.zip").touch()
    message = error_of(tmp_path)
    assert "found cuhk-03.zip" in message
    assert "cuhk03_new_protocol_config_detected.mat" in message


@pytest.mark.parametrize("held", ["cuhk-03.mat", "cuhk03_release/cuhk-03.mat", "images_detected/1_001_1_01.png"])
def test_images_without_an_index(tmp_path: Path, held: str) -> None:
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).touch()
    message = error_of(tmp_path)
    assert (
        f"{tmp_path} holds {held.removesuffix('/1_001_1_01.png')} but not cuhk03_new_protocol_config_detected"
        in message
    )


def test_an_index_without_images(tmp_path: Path) -> None:
    (write_small(tmp_path) / "cuhk-03.mat").unlink()
    assert (
        f"{tmp_path} holds cuhk03_new_protocol_config_detected.mat but neither images_detected nor cuhk-03.mat"
        in error_of(tmp_path)
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_index_of_the_other_version(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "protocols" / "cuhk03" / f"cuhk03_new_protocol_config_{KINDS[OTHER[name]]}.mat"
    target = tmp_path / f"cuhk03_new_protocol_config_{KINDS[name]}.mat"
    shutil.copy(source, target)
    message = error_of(tmp_path, name)
    assert f"{target} is the index of the {KINDS[OTHER[name]]} version" in message
    assert f"dataset={OTHER[name]}" in message


def test_the_index_of_another_protocol(tmp_path: Path) -> None:
    write_small(tmp_path, filelist=None, train_idx=None, query_idx=None, gallery_idx=None, camId=None, testsets=[1])
    message = error_of(tmp_path)
    assert (
        f"{tmp_path / 'cuhk03_new_protocol_config_detected.mat'} lacks the field(s) filelist, camId, train_idx"
        in message
    )
    assert "it holds labels, testsets" in message


def test_an_index_of_matlab_7_3(tmp_path: Path) -> None:
    write_small(tmp_path)
    shutil.copy(tmp_path / "cuhk-03.mat", tmp_path / "cuhk03_new_protocol_config_detected.mat")
    assert "detected.mat can't be read as a MATLAB file of version 4 to 7.2" in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"404: Not Found", b"<html><body>" + b"x" * 200, bytes(500)])
def test_an_index_that_is_no_matlab_file(tmp_path: Path, content: bytes) -> None:
    (write_small(tmp_path) / "cuhk03_new_protocol_config_detected.mat").write_bytes(content)
    assert "cuhk03_new_protocol_config_detected.mat" in error_of(tmp_path)


def test_an_index_that_is_cut_off(tmp_path: Path) -> None:
    index = write_small(tmp_path) / "cuhk03_new_protocol_config_detected.mat"
    index.write_bytes(index.read_bytes()[:700])
    assert f"{index} can't be read as a MATLAB file" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"labels": [1, 1, 2]}, "different lengths (6, 3 and 6)"),
        ({"train_idx": [3, 7]}, "has 7 in its field train_idx, but 6 images"),
        ({"query_idx": [0]}, "has 0 in its field query_idx"),
        (
            {"filelist": np.array([["../secret.png"]] + [["1_001_1_01.png"]] * 5, object)},
            "'../secret.png' in its field",
        ),
        ({"filelist": [1, 2, 3, 4, 5, 6]}, "'1' in its field filelist"),
        ({"labels": np.array([["a"]] * 6, object)}, "of another form"),
    ],
)
def test_an_index_with_wrong_values(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    message = error_of(write_small(tmp_path, **fields))
    assert str(tmp_path / "cuhk03_new_protocol_config_detected.mat") in message
    assert problem in message
    assert not (tmp_path / "images_detected").exists()


@pytest.mark.parametrize("lost", ["1_002_2_10.png", "1_001_1_01.png", "2_001_2_07.png"])
def test_an_image_that_the_authors_file_lacks(tmp_path: Path, lost: str) -> None:
    write_small(tmp_path)
    write_images(tmp_path / "cuhk-03.mat", "detected", [file for file in FILES if file != lost])
    message = error_of(tmp_path)
    assert (
        f"{tmp_path / 'cuhk-03.mat'} lacks the image {lost} (camera pair {lost[0]}, person {int(lost[2:5])}" in message
    )
    assert entries(tmp_path) == {"cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat"}


def test_a_camera_pair_that_the_authors_file_lacks(tmp_path: Path) -> None:
    write_small(tmp_path)
    write_images(tmp_path / "cuhk-03.mat", "detected", FILES[:4])
    assert "lacks the image 2_001_1_02.png (camera pair 2, person 1, image 2)" in error_of(tmp_path)


@pytest.mark.parametrize("damage", ["no HDF5", "cut off", "other kind", "no cells"])
def test_a_damaged_authors_file(tmp_path: Path, damage: str) -> None:
    source = write_small(tmp_path) / "cuhk-03.mat"
    if damage == "no HDF5":
        source.write_bytes(b"MATLAB 5.0" * 100)
    elif damage == "cut off":
        source.write_bytes(source.read_bytes()[:3000])
    elif damage == "other kind":
        write_images(source, "labeled", FILES)
    else:
        with h5py.File(source, "w") as content:
            content["detected"] = np.arange(5)
    message = error_of(tmp_path)
    assert f"{source} can't be read as the MATLAB 7.3 (HDF5) file of CUHK03 with the field detected" in message
    assert entries(tmp_path) == {"cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat"}


def test_cut_images_that_were_lost(tmp_path: Path) -> None:
    manifest = read_cuhk03_detect(write_small(tmp_path), check_counts=False)
    Path(manifest.paths[1]).unlink()
    message = error_of(tmp_path)
    assert f"{tmp_path / 'images_detected'} lacks 1 of the 6 images" in message
    assert "the first is 1_002_2_10.png. Delete this folder" in message


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = error_of(tmp_path)
    assert f"into {tmp_path / 'images_detected'}: Permission denied" in message
    assert f"make writable {tmp_path}" in message
    assert "set dataset.root" in message


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_cutting_leaves_nothing(
    tmp_path: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path)
    save, saved = Image.Image.save, []

    def failing(image: Image.Image, path: Path) -> None:
        if len(saved) == 3:
            raise failure
        save(image, path)
        saved.append(path)

    monkeypatch.setattr(Image.Image, "save", failing)
    expected = DatasetError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as error:
        read_cuhk03_detect(tmp_path, check_counts=False)
    assert entries(tmp_path) == {"cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat"}
    if expected is DatasetError:
        assert "No space left on device" in str(error.value)
    monkeypatch.setattr(Image.Image, "save", save)
    assert len(read_cuhk03_detect(tmp_path, check_counts=False).table) == len(FILES)


def test_the_slower_of_two_processes_uses_the_other_ones_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = read_cuhk03_detect(write_small(tmp_path / "other"), check_counts=False)
    mine = write_small(tmp_path / "mine")
    stored = cuhk03._stored_images

    def overtaken(*arguments: Any) -> Any:
        yield from stored(*arguments)
        shutil.copytree(other.root / "images_detected", mine / "images_detected")

    monkeypatch.setattr(cuhk03, "_stored_images", overtaken)
    manifest = read_cuhk03_detect(mine, check_counts=False)
    assert manifest.fingerprint == other.fingerprint
    assert entries(mine) == {"cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat", "images_detected"}


# The first protocol


@pytest.mark.parametrize("kind", ["detect", "label"])
def test_the_splits_of_the_first_protocol(kind: str, tmp_path: Path) -> None:
    """Every image is cut once; a split's people are asked for in view 1 and found in view 2, all others train."""
    name, folder = f"cuhk03_{kind}_old", f"images_all_{KINDS[f'cuhk03_{kind}']}"
    write_old(tmp_path, [(1, 1), (2, 1)], [(1, 2)], kind=KINDS[f"cuhk03_{kind}"])
    first, second = load_manifest(name, tmp_path), load_manifest(name, tmp_path, split=2)
    assert entries(tmp_path / "cuhk03_release" / folder) == set(FILES)
    assert [(path.removeprefix(f"{folder}/"), *rest) for path, *rest in first.table.to_numpy().tolist()] == [
        (FILES[2], 10_002, 1, "train"), (FILES[3], 10_002, 2, "train"),
        (FILES[0], 10_001, 1, "query"), (FILES[4], 20_001, 3, "query"),
        (FILES[1], 10_001, 2, "gallery"), (FILES[5], 20_001, 4, "gallery"),
    ]  # fmt: skip
    assert first.unmatched_queries() == 0
    assert [path.rpartition("/")[2] for path in second.subset("query").table["path"]] == [FILES[2]]
    with Image.open(first.paths[0]) as image:
        assert np.array_equal(np.asarray(image), pixels(FILES[2]))
    assert load_manifest(name, tmp_path, split=3).fingerprint == first.fingerprint


def test_what_is_wrong_with_the_first_protocol_is_named(tmp_path: Path) -> None:
    write_old(tmp_path / "a", [(1, 1)], [(5, 9)])
    with pytest.raises(DatasetError, match=r"dataset.options.split=21: choose one of 1 to 20"):
        load_manifest("cuhk03_detect_old", tmp_path / "a", split=21)
    with pytest.raises(DatasetError, match=r"split 2 tests person 9 of camera pair 5, of whom it holds no image"):
        load_manifest("cuhk03_detect_old", tmp_path / "a", split=2)
    with pytest.raises(
        DatasetError, match=r"can't be read as the MATLAB 7.3 \(HDF5\) file of CUHK03 with the fields labeled and"
    ):
        load_manifest("cuhk03_label_old", tmp_path / "a")
    load_manifest("cuhk03_detect_old", tmp_path / "a")
    (tmp_path / "a/cuhk03_release/images_all_detected" / FILES[5]).unlink()
    with pytest.raises(
        DatasetError, match=r"images_all_detected lacks 1 of the 6 images in cuhk-03.mat, the first is 2_001_2_07"
    ):
        load_manifest("cuhk03_detect_old", tmp_path / "a")
    write_images(tmp_path / "b/cuhk-03.mat", "detected", FILES)
    with pytest.raises(DatasetError, match=r"testsets"):
        load_manifest("cuhk03_detect_old", tmp_path / "b")
